-- Triggers of our own tables that the command has made fire only sometimes.
SELECT g.tgrelid, g.tgname::text
FROM pg_catalog.pg_event_trigger_ddl_commands() AS d
JOIN pg_catalog.pg_class AS c ON c.oid = d.objid
JOIN pg_catalog.pg_trigger AS g ON g.tgrelid = c.oid
WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
  AND c.relnamespace = 'pgstream'::pg_catalog.regnamespace
  AND NOT g.tgisinternal AND g.tgenabled <> 'A'
