-- Keeps everybody but a refresh from changing a stream table. Whoever restores a table from a dump puts
-- its trigger on it.
CREATE FUNCTION pgstream.guard_stream_table() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'guard_stream_table_wrapper';

-- Part of the statements of a refresh: true, or the error for a scalar sub-query with several rows.
CREATE FUNCTION pgstream.is_single(rows bigint) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'is_single_wrapper';
