-- The stream tables whose queries name columns of these names ($2) of these tables ($1): those that are dropped
-- from the tables $3 and what inherits them, or, without $3, all, and rows of the tables as a whole. PostgreSQL
-- does not note those, so the types of the rows are looked for in the trees.
SELECT DISTINCT s.pgs_id
FROM pg_catalog.pg_attribute AS c
JOIN pg_catalog.pg_class AS t ON t.oid = c.attrelid
JOIN pg_catalog.pg_depend AS d
  ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = c.attrelid
 AND d.classid = 'pg_catalog.pg_rewrite'::regclass
JOIN pg_catalog.pg_rewrite AS w ON w.oid = d.objid
JOIN pgstream.pgs_stream_tables AS s ON s.view_relid = w.ev_class
WHERE c.attrelid = ANY ($1::oid[]) AND c.attname = ANY ($2::text[])
  AND CASE WHEN $3 IS NULL
           THEN d.refobjsubid = c.attnum OR w.ev_action::text LIKE '% ' || t.reltype || ' %'
           ELSE d.refobjsubid = c.attnum
                AND (c.attrelid = ANY ($3::oid[]) OR NOT c.attislocal AND c.attinhcount = 1) END
