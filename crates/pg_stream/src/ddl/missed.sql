-- What of a stream table is gone or is not as the catalog has it: its table, its hidden view, or its
-- name or owner.
SELECT pgs_id,
       CASE WHEN t.oid IS NULL THEN 'table' WHEN v.oid IS NULL THEN 'query' ELSE 'identity' END
FROM pgstream.pgs_stream_tables
LEFT JOIN pg_class AS t ON t.oid = pgs_relid
LEFT JOIN pg_namespace AS n ON n.oid = t.relnamespace
LEFT JOIN pg_class AS v ON v.oid = view_relid
WHERE pgs_relid IS NOT NULL
  AND (t.oid IS NULL
       OR (n.nspname, t.relname) <> (pgs_schema, pgs_name)
       OR t.relowner <> v.relowner
       OR view_relid IS NOT NULL AND v.oid IS NULL
          AND (status <> 'ERROR'
               OR EXISTS (SELECT FROM pgstream.pgs_change_tracking
                          WHERE pgs_id = ANY (tracked_by_pgs_ids))))
ORDER BY pgs_id DESC
