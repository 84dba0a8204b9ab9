-- The functions that users call.

CREATE FUNCTION pgstream.create_stream_table(
    name text, query text, schedule text DEFAULT '1m', refresh_mode text DEFAULT 'DIFFERENTIAL',
    initialize bool DEFAULT true
) RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'create_stream_table_wrapper';
COMMENT ON FUNCTION pgstream.create_stream_table IS
    'creates a table that keeps itself up to date with a query';

CREATE FUNCTION pgstream.alter_stream_table(
    name text, schedule text DEFAULT NULL, refresh_mode text DEFAULT NULL, status text DEFAULT NULL
) RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'alter_stream_table_wrapper';
COMMENT ON FUNCTION pgstream.alter_stream_table IS
    'changes schedule, refresh mode or status of a stream table; NULL leaves alone';

CREATE FUNCTION pgstream.drop_stream_table(name text)
    RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'drop_stream_table_wrapper';
COMMENT ON FUNCTION pgstream.drop_stream_table IS 'drops a stream table and all that belongs to it';

CREATE FUNCTION pgstream.refresh_stream_table(name text)
    RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'refresh_stream_table_wrapper';
COMMENT ON FUNCTION pgstream.refresh_stream_table IS 'brings a stream table up to date now';

CREATE FUNCTION pgstream.resume_stream_table(name text)
    RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'resume_stream_table_wrapper';
COMMENT ON FUNCTION pgstream.resume_stream_table IS 'lets a suspended stream table run again';

CREATE FUNCTION pgstream.verify_stream_table(name text)
    RETURNS TABLE (difference text, copies bigint, row_data json, stored_in regclass)
    LANGUAGE c AS 'MODULE_PATHNAME', 'verify_stream_table_wrapper';
COMMENT ON FUNCTION pgstream.verify_stream_table IS
    'rows of a stream table, or of its hidden state, that are missing or unexpected; none if all is right';

CREATE FUNCTION pgstream.repair_stream_table(name text)
    RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'repair_stream_table_wrapper';
COMMENT ON FUNCTION pgstream.repair_stream_table IS
    'computes a stream table anew, whatever is stored in it, and lets it run again';

CREATE FUNCTION pgstream.explain_st(name text)
    RETURNS TABLE (property text, value text) LANGUAGE c STRICT STABLE
    AS 'MODULE_PATHNAME', 'explain_st_wrapper';
COMMENT ON FUNCTION pgstream.explain_st IS 'how a stream table is maintained';

CREATE FUNCTION pgstream.parse_duration_seconds(input text)
    RETURNS bigint LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'parse_duration_seconds_wrapper';
COMMENT ON FUNCTION pgstream.parse_duration_seconds IS
    'the seconds of a duration such as 1h30m, NULL if it is none';

-- The number of a stream table by its name, as regclass reads names.
CREATE FUNCTION pgstream.stream_table_id(name text)
    RETURNS bigint LANGUAGE c STRICT STABLE AS 'MODULE_PATHNAME', 'stream_table_id_wrapper';

-- Makes the launcher start a scheduler in this database once the transaction has committed.
CREATE FUNCTION pgstream.announce_extension()
    RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'announce_extension_wrapper';
REVOKE ALL ON FUNCTION pgstream.announce_extension() FROM PUBLIC;
SELECT pgstream.announce_extension();
