-- Changes of sources that are not changes of rows: see src/ddl/source.rs.
CREATE FUNCTION pgstream.on_source_change()
    RETURNS event_trigger LANGUAGE c AS 'MODULE_PATHNAME', 'on_source_change_wrapper';
CREATE FUNCTION pgstream.on_table_rewrite()
    RETURNS event_trigger LANGUAGE c AS 'MODULE_PATHNAME', 'on_table_rewrite_wrapper';
CREATE EVENT TRIGGER pgstream_on_source_change ON ddl_command_end
    WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE') EXECUTE FUNCTION pgstream.on_source_change();
ALTER EVENT TRIGGER pgstream_on_source_change ENABLE ALWAYS;
CREATE EVENT TRIGGER pgstream_on_rewrite ON table_rewrite
    EXECUTE FUNCTION pgstream.on_table_rewrite();
ALTER EVENT TRIGGER pgstream_on_rewrite ENABLE ALWAYS;
CREATE FUNCTION pgstream.on_replacement()
    RETURNS event_trigger LANGUAGE c AS 'MODULE_PATHNAME', 'on_replacement_wrapper';
CREATE EVENT TRIGGER pgstream_on_replacement ON ddl_command_end
    WHEN TAG IN ('CREATE FUNCTION', 'ALTER FUNCTION', 'CREATE AGGREGATE', 'ALTER AGGREGATE',
                 'CREATE VIEW', 'ALTER VIEW', 'ALTER TYPE', 'ALTER DOMAIN', 'CREATE OPERATOR',
                 'ALTER OPERATOR')
    EXECUTE FUNCTION pgstream.on_replacement();
ALTER EVENT TRIGGER pgstream_on_replacement ENABLE ALWAYS;
CREATE FUNCTION pgstream.on_trigger()
    RETURNS event_trigger LANGUAGE c AS 'MODULE_PATHNAME', 'on_trigger_wrapper';
CREATE EVENT TRIGGER pgstream_on_trigger ON ddl_command_end
    WHEN TAG IN ('CREATE TRIGGER', 'ALTER TRIGGER') EXECUTE FUNCTION pgstream.on_trigger();
ALTER EVENT TRIGGER pgstream_on_trigger ENABLE ALWAYS;
