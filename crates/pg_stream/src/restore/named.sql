-- The stream tables whose queries name one of the objects $2 of catalog $1.
SELECT DISTINCT s.pgs_id
FROM pg_catalog.pg_depend AS d
JOIN pg_catalog.pg_rewrite AS w ON w.oid = d.objid
JOIN pgstream.pgs_stream_tables AS s ON s.view_relid = w.ev_class
WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
  AND d.refclassid = $1 AND d.refobjid = ANY ($2::oid[])
