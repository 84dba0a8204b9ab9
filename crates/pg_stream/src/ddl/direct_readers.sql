-- The stream tables whose queries read stream table $1.
SELECT DISTINCT reader.pgs_id
FROM pgstream.pgs_stream_tables AS s
JOIN pg_catalog.pg_depend AS d
  ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = s.pgs_relid
 AND d.classid = 'pg_catalog.pg_rewrite'::regclass
JOIN pg_catalog.pg_rewrite AS w ON w.oid = d.objid
JOIN pgstream.pgs_stream_tables AS reader ON reader.view_relid = w.ev_class
WHERE s.pgs_id = $1 AND reader.pgs_id <> $1
