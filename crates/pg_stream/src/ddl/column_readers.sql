-- The stream tables whose queries read columns of these names ($2) of these tables ($1).
SELECT DISTINCT s.pgs_id
FROM pg_catalog.pg_attribute AS c
JOIN pg_catalog.pg_depend AS d
  ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = c.attrelid
 AND d.refobjsubid = c.attnum AND d.classid = 'pg_catalog.pg_rewrite'::regclass
JOIN pg_catalog.pg_rewrite AS w ON w.oid = d.objid
JOIN pgstream.pgs_stream_tables AS s ON s.view_relid = w.ev_class
WHERE c.attrelid = ANY ($1::oid[]) AND c.attname = ANY ($2::text[])
