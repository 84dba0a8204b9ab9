-- Tells the scheduler when what it knows of the catalog is out of date. What a refresh notes itself is
-- written without triggers.
CREATE FUNCTION pgstream.on_catalog_change() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'on_catalog_change_wrapper';
REVOKE ALL ON FUNCTION pgstream.on_catalog_change() FROM PUBLIC;

CREATE TRIGGER pgstream_on_change
    AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF
        pgs_relid, schedule, scheduled_at, refresh_mode, status, is_populated, consecutive_errors,
        needs_reinit
    ON pgstream.pgs_stream_tables EXECUTE FUNCTION pgstream.on_catalog_change();
ALTER TABLE pgstream.pgs_stream_tables ENABLE ALWAYS TRIGGER pgstream_on_change;
CREATE TRIGGER pgstream_on_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE
    ON pgstream.pgs_dependencies EXECUTE FUNCTION pgstream.on_catalog_change();
ALTER TABLE pgstream.pgs_dependencies ENABLE ALWAYS TRIGGER pgstream_on_change;
CREATE TRIGGER pgstream_on_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE
    ON pgstream.pgs_change_tracking EXECUTE FUNCTION pgstream.on_catalog_change();
ALTER TABLE pgstream.pgs_change_tracking ENABLE ALWAYS TRIGGER pgstream_on_change;
