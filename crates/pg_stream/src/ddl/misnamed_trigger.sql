-- A trigger whose name says that it is ours but is not, or the reverse; not on our own catalog.
SELECT g.tgname::text
FROM pg_catalog.pg_event_trigger_ddl_commands() AS c
JOIN pg_catalog.pg_trigger AS g ON g.oid = c.objid
JOIN pg_catalog.pg_proc AS p ON p.oid = g.tgfoid
JOIN pg_catalog.pg_class AS t ON t.oid = g.tgrelid
WHERE c.classid = 'pg_catalog.pg_trigger'::regclass
  AND t.relnamespace <> 'pgstream'::regnamespace
  AND (g.tgname LIKE 'pg\_stream\_%' <> (p.pronamespace = 'pgstream'::regnamespace)
       OR (g.tgname = 'pg_stream_guard')
          <> (p.oid = 'pgstream.guard_stream_table()'::regprocedure))
