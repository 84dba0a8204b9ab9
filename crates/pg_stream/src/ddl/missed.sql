-- The stream tables whose table (true) or hidden view (false) is gone although the catalog has it.
SELECT pgs_id, t.oid IS NULL
FROM pgstream.pgs_stream_tables
LEFT JOIN pg_class AS t ON t.oid = pgs_relid
LEFT JOIN pg_class AS v ON v.oid = view_relid
WHERE pgs_relid IS NOT NULL
  AND (t.oid IS NULL
       OR view_relid IS NOT NULL AND v.oid IS NULL
          AND (status <> 'ERROR'
               OR EXISTS (SELECT FROM pgstream.pgs_change_tracking
                          WHERE pgs_id = ANY (tracked_by_pgs_ids))))
ORDER BY pgs_id DESC
