-- Keeps everybody but a refresh from changing a stream table.
CREATE FUNCTION pgstream.guard_stream_table() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'guard_stream_table_wrapper';
