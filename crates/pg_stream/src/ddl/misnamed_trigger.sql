-- A trigger whose name says that it is ours but is not, or the reverse.
SELECT g.tgname::text
FROM pg_catalog.pg_event_trigger_ddl_commands() AS c
JOIN pg_catalog.pg_trigger AS g ON g.oid = c.objid
WHERE c.classid = 'pg_catalog.pg_trigger'::regclass
  AND g.tgname LIKE 'pg\_stream\_%' <>
      (g.tgfoid IN ('pgstream.capture()'::regprocedure, 'pgstream.guard_stream_table()'::regprocedure))
