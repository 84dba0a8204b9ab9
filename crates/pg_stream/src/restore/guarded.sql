-- The tables that the command gave the guard of a stream table, and that are none.
SELECT g.tgrelid
FROM pg_catalog.pg_event_trigger_ddl_commands() AS d
JOIN pg_catalog.pg_trigger AS g ON g.oid = d.objid
JOIN pg_catalog.pg_class AS c ON c.oid = g.tgrelid
WHERE c.relnamespace <> 'pgstream_state'::pg_catalog.regnamespace
  AND d.classid = 'pg_catalog.pg_trigger'::pg_catalog.regclass
  AND g.tgfoid = 'pgstream.guard_stream_table'::pg_catalog.regproc
  AND NOT EXISTS (SELECT FROM pgstream.pgs_stream_tables WHERE pgs_relid = g.tgrelid)
