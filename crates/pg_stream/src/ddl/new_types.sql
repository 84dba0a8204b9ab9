-- The columns of stream table $1 that have another type or collation than in its query, view $2:
-- name, type and collation there.
SELECT t.attname::text, pg_catalog.format_type(v.atttypid, v.atttypmod),
       nullif(v.attcollation, 0)
FROM pg_catalog.pg_attribute AS t
JOIN pg_catalog.pg_attribute AS v ON v.attrelid = $2 AND v.attname = t.attname
WHERE t.attrelid = $1 AND t.attnum > 0 AND v.attnum > 0 AND NOT t.attisdropped
  AND (t.atttypid, t.atttypmod, t.attcollation) <> (v.atttypid, v.atttypmod, v.attcollation)
ORDER BY t.attnum
