-- The hidden views of the owner of table $1 that no stream table has: number and comment. Who owns a
-- view can write its comment.
SELECT substr(c.relname, 7)::bigint, d.description
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_description AS d
  ON d.objoid = c.oid AND d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objsubid = 0
WHERE c.relnamespace = 'pgstream_state'::pg_catalog.regnamespace AND c.relkind = 'v'
  AND c.relowner = (SELECT relowner FROM pg_catalog.pg_class WHERE oid = $1)
  AND c.relname ~ '^query_[0-9]{1,18}$'
  AND NOT EXISTS (SELECT FROM pgstream.pgs_stream_tables AS s WHERE c.relname = 'query_' || s.pgs_id)
