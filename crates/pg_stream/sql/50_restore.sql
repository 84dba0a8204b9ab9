-- What a dump brings back becomes stream tables again: see src/restore.rs.

CREATE FUNCTION pgstream.on_restored_row() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'on_restored_row_wrapper';
REVOKE ALL ON FUNCTION pgstream.on_restored_row() FROM PUBLIC;
-- A new stream table has neither.
CREATE TRIGGER pg_stream_restore BEFORE INSERT ON pgstream.pgs_stream_tables
    FOR EACH ROW WHEN (new.pgs_relid IS NOT NULL OR new.needs_reinit)
    EXECUTE FUNCTION pgstream.on_restored_row();
ALTER TABLE pgstream.pgs_stream_tables ENABLE ALWAYS TRIGGER pg_stream_restore;
CREATE FUNCTION pgstream.after_restored_row() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'after_restored_row_wrapper';
REVOKE ALL ON FUNCTION pgstream.after_restored_row() FROM PUBLIC;
CREATE TRIGGER pg_stream_attach AFTER INSERT ON pgstream.pgs_stream_tables
    FOR EACH ROW WHEN (new.needs_reinit)
    EXECUTE FUNCTION pgstream.after_restored_row();
ALTER TABLE pgstream.pgs_stream_tables ENABLE ALWAYS TRIGGER pg_stream_attach;
CREATE TRIGGER pg_stream_restore BEFORE INSERT ON pgstream.pgs_refresh_history
    FOR EACH ROW EXECUTE FUNCTION pgstream.on_restored_row();
ALTER TABLE pgstream.pgs_refresh_history ENABLE ALWAYS TRIGGER pg_stream_restore;

CREATE FUNCTION pgstream.describe_stream_table() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'describe_stream_table_wrapper';
REVOKE ALL ON FUNCTION pgstream.describe_stream_table() FROM PUBLIC;
CREATE TRIGGER pg_stream_describe
    AFTER UPDATE OF pgs_relid, view_relid, schedule, refresh_mode, settings
    ON pgstream.pgs_stream_tables
    FOR EACH ROW WHEN (new.pgs_relid IS NOT NULL AND new.view_relid IS NOT NULL)
    EXECUTE FUNCTION pgstream.describe_stream_table();
ALTER TABLE pgstream.pgs_stream_tables ENABLE ALWAYS TRIGGER pg_stream_describe;

CREATE FUNCTION pgstream.on_create_trigger()
    RETURNS event_trigger LANGUAGE c AS 'MODULE_PATHNAME', 'on_create_trigger_wrapper';
CREATE EVENT TRIGGER pgstream_on_create_trigger ON ddl_command_end
    WHEN TAG IN ('CREATE TRIGGER') EXECUTE FUNCTION pgstream.on_create_trigger();
ALTER EVENT TRIGGER pgstream_on_create_trigger ENABLE ALWAYS;

-- pg_restore --disable-triggers would load rows of the catalog as they are.
CREATE FUNCTION pgstream.keep_own_triggers()
    RETURNS event_trigger LANGUAGE c AS 'MODULE_PATHNAME', 'keep_own_triggers_wrapper';
CREATE EVENT TRIGGER pgstream_keep_own_triggers ON ddl_command_end
    WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION pgstream.keep_own_triggers();
ALTER EVENT TRIGGER pgstream_keep_own_triggers ENABLE ALWAYS;
