-- Reactions to DDL: see src/ddl.rs.
CREATE FUNCTION pgstream.on_ddl_start()
    RETURNS event_trigger LANGUAGE c AS 'MODULE_PATHNAME', 'pg_stream_on_ddl_start';
CREATE FUNCTION pgstream.on_ddl_end()
    RETURNS event_trigger LANGUAGE c AS 'MODULE_PATHNAME', 'on_ddl_end_wrapper';
CREATE FUNCTION pgstream.on_sql_drop()
    RETURNS event_trigger LANGUAGE c AS 'MODULE_PATHNAME', 'on_sql_drop_wrapper';
CREATE FUNCTION pgstream.on_table_rewrite()
    RETURNS event_trigger LANGUAGE c AS 'MODULE_PATHNAME', 'on_table_rewrite_wrapper';

CREATE EVENT TRIGGER pgstream_on_ddl_start ON ddl_command_start
    WHEN TAG IN ('ALTER TABLE', 'ALTER FOREIGN TABLE', 'ALTER TYPE', 'DROP OWNED')
    EXECUTE FUNCTION pgstream.on_ddl_start();
-- CREATE SCHEMA and IMPORT FOREIGN SCHEMA can have other commands within, which are told of at their end.
CREATE EVENT TRIGGER pgstream_on_ddl_end ON ddl_command_end
    WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE', 'CREATE FOREIGN TABLE', 'ALTER FOREIGN TABLE',
                 'CREATE TRIGGER', 'ALTER TRIGGER', 'CREATE RULE', 'ALTER RULE',
                 'CREATE VIEW', 'ALTER VIEW', 'ALTER MATERIALIZED VIEW', 'ALTER SCHEMA', 'ALTER EXTENSION',
                 'CREATE SCHEMA', 'IMPORT FOREIGN SCHEMA',
                 'CREATE FUNCTION', 'ALTER FUNCTION', 'ALTER ROUTINE',
                 'CREATE AGGREGATE', 'ALTER AGGREGATE', 'CREATE OPERATOR', 'ALTER OPERATOR',
                 'ALTER TYPE', 'ALTER DOMAIN', 'ALTER COLLATION',
                 'ALTER TEXT SEARCH CONFIGURATION', 'ALTER TEXT SEARCH DICTIONARY')
    EXECUTE FUNCTION pgstream.on_ddl_end();
CREATE EVENT TRIGGER pgstream_on_drop ON sql_drop EXECUTE FUNCTION pgstream.on_sql_drop();
CREATE EVENT TRIGGER pgstream_on_rewrite ON table_rewrite
    EXECUTE FUNCTION pgstream.on_table_rewrite();
CREATE FUNCTION pgstream.on_trigger()
    RETURNS event_trigger LANGUAGE c AS 'MODULE_PATHNAME', 'on_trigger_wrapper';
CREATE EVENT TRIGGER pgstream_on_trigger ON ddl_command_end
    WHEN TAG IN ('CREATE TRIGGER', 'ALTER TRIGGER', 'CREATE SCHEMA') EXECUTE FUNCTION pgstream.on_trigger();
ALTER EVENT TRIGGER pgstream_on_trigger ENABLE ALWAYS;
ALTER EVENT TRIGGER pgstream_on_ddl_start ENABLE ALWAYS;
ALTER EVENT TRIGGER pgstream_on_ddl_end ENABLE ALWAYS;
ALTER EVENT TRIGGER pgstream_on_drop ENABLE ALWAYS;
ALTER EVENT TRIGGER pgstream_on_rewrite ENABLE ALWAYS;
