SELECT s.pgs_id, s.schedule, s.status, s.consecutive_errors,
       ARRAY(SELECT u.pgs_id
             FROM pgstream.pgs_dependencies d
             JOIN pgstream.pgs_stream_tables u ON u.pgs_relid = d.source_relid
             WHERE d.pgs_id = s.pgs_id),
       coalesce(s.last_refresh_at, s.created_at)
FROM pgstream.pgs_stream_tables s
WHERE s.pgs_relid IS NOT NULL
