-- Capture of changes.

-- Which sources are captured, and for which stream tables.
CREATE TABLE pgstream.pgs_change_tracking (
    source_relid oid PRIMARY KEY,
    slot_name text NOT NULL,
    tracked_by_pgs_ids bigint[] NOT NULL,
    -- The table and those that inherit from it, for which there are triggers.
    members oid[],
    -- A digest of the triggers on the others.
    triggers text,
    -- How often these were found to be others than noted: see seal.sql.
    surprises bigint NOT NULL DEFAULT 0,
    cdc_mode text NOT NULL DEFAULT 'TRIGGER' CHECK (cdc_mode IN ('TRIGGER', 'TRANSITIONING', 'WAL')),
    -- What was committed behind this position in the write-ahead log is decoded from there, up to the
    -- other one once the source has gone back to triggers.
    decoded_from pg_lsn,
    decoded_until pg_lsn,
    transition_started_at timestamptz,
    -- The readers that leave many changes unconsumed, of which an alert has told.
    told_growing bigint[] NOT NULL DEFAULT '{}',
    -- The last column: capture looks for it there.
    buffer_relid oid NOT NULL
);

-- The replication slot of this database, while there is one.
CREATE TABLE pgstream.pgs_decoder (
    slot_name text PRIMARY KEY,
    -- What was committed before, and is decoded, is in the buffers.
    decoded_lsn pg_lsn NOT NULL
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
