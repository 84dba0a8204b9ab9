-- The rules of views that read tables of $1 and have values of their row types $2. PostgreSQL does not
-- note that, so the types are looked for in the trees.
SELECT DISTINCT w.oid
FROM pg_catalog.pg_depend AS d
JOIN pg_catalog.pg_rewrite AS w ON w.oid = d.objid
JOIN unnest($2::oid[]) AS row_type ON w.ev_action::text LIKE '% ' || row_type || ' %'
WHERE d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = ANY ($1::oid[])
  AND d.classid = 'pg_catalog.pg_rewrite'::regclass
