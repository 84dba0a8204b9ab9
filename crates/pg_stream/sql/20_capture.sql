-- Capture of changes.

-- Which sources are captured, and for which stream tables.
CREATE TABLE pgstream.pgs_change_tracking (
    source_relid oid PRIMARY KEY,
    slot_name text NOT NULL,
    tracked_by_pgs_ids bigint[] NOT NULL,
    -- The table and those that inherit from it, for which there are triggers.
    members oid[],
    -- The last column: capture looks for it there.
    buffer_relid oid NOT NULL
);

-- Only a superuser may put it on a table: its argument says whose changes it writes.
CREATE FUNCTION pgstream.capture() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'pg_stream_capture';
REVOKE ALL ON FUNCTION pgstream.capture() FROM PUBLIC;

-- Identity of a whole row: a hash of the exact images of its values.
CREATE FUNCTION pgstream.row_id(VARIADIC "any") RETURNS bigint
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'pg_stream_row_id';

CREATE FUNCTION pgstream.row_id() RETURNS bigint
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'pg_stream_row_id';

-- Identity of a key: a hash that follows the = of each value's type.
CREATE FUNCTION pgstream.key_id(VARIADIC "any") RETURNS bigint
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'pg_stream_key_id';
CREATE FUNCTION pgstream.key_id() RETURNS bigint
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'pg_stream_key_id';

-- How many numerics there are of each display scale: sum() shows the largest of its inputs.
CREATE FUNCTION pgstream.scale_count(internal, numeric, bigint) RETURNS internal
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'pg_stream_scale_count';
CREATE FUNCTION pgstream.scale_counts(internal) RETURNS bigint[]
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'pg_stream_scale_counts';
CREATE AGGREGATE pgstream.scale_counts(numeric, bigint) (
    SFUNC = pgstream.scale_count, STYPE = internal, FINALFUNC = pgstream.scale_counts,
    PARALLEL = SAFE
);
CREATE FUNCTION pgstream.add_scale_counts(bigint[], bigint[]) RETURNS bigint[]
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'add_scale_counts_wrapper';
CREATE FUNCTION pgstream.max_scale(bigint[]) RETURNS int
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'max_scale_wrapper';
