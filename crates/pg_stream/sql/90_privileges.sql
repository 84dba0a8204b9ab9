-- Nobody calls these but PostgreSQL, as triggers.
REVOKE ALL ON FUNCTION
    pgstream.on_sql_drop(), pgstream.on_ddl_start(), pgstream.on_ddl_end(),
    pgstream.on_table_rewrite(), pgstream.on_trigger(),
    pgstream.on_create_trigger(), pgstream.announce_reinitialize(), pgstream.keep_own_triggers()
FROM PUBLIC;

CREATE FUNCTION pgstream.protect_catalog() RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'protect_catalog_wrapper';
REVOKE ALL ON FUNCTION pgstream.protect_catalog() FROM PUBLIC;
SELECT pgstream.protect_catalog();
