SELECT s.pgs_id, s.pgs_schema, s.pgs_name, s.schedule,
       ARRAY(SELECT u.pgs_id
             FROM pgstream.pgs_dependencies d
             JOIN pgstream.pgs_stream_tables u ON u.pgs_relid = d.source_relid
             WHERE d.pgs_id = s.pgs_id),
       s.data_timestamp, s.told_stale
FROM pgstream.pgs_stream_tables s
WHERE s.pgs_relid IS NOT NULL
