-- Commands that take away what default privileges have given to others than the owner: on relation $1, or, if
-- that is NULL, on what the extension's script has made, where everybody may read the catalog.
SELECT format('REVOKE %s ON %s %I.%I FROM %s',
              CASE WHEN g.grantee <> 0 OR n.nspname <> 'pgstream' THEN 'ALL'
                   WHEN c.relkind = 'S' THEN 'USAGE, UPDATE'
                   ELSE 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER, MAINTAIN' END,
              CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, n.nspname, c.relname,
              CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END)
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace,
aclexplode(c.relacl) AS g
WHERE g.grantee <> c.relowner
  AND CASE WHEN $1 IS NULL THEN n.nspname = 'pgstream' AND c.relkind IN ('r', 'v', 'S') ELSE c.oid = $1 END
UNION
SELECT format('REVOKE ALL ON FUNCTION %s FROM %I', p.oid::regprocedure, pg_get_userbyid(g.grantee))
FROM pg_catalog.pg_proc AS p, aclexplode(p.proacl) AS g
WHERE $1 IS NULL AND p.pronamespace = 'pgstream'::regnamespace AND g.grantee NOT IN (0, p.proowner)
UNION
SELECT format('REVOKE %s ON SCHEMA %I FROM %s',
              CASE WHEN g.grantee <> 0 OR n.nspname = 'pgstream_changes' THEN 'ALL' ELSE 'CREATE' END, n.nspname,
              CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END)
FROM pg_catalog.pg_namespace AS n, aclexplode(n.nspacl) AS g
WHERE $1 IS NULL AND n.nspname IN ('pgstream', 'pgstream_state', 'pgstream_changes')
  AND g.grantee <> n.nspowner
