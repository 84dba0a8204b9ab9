SELECT s.pgs_id, s.schedule, s.scheduled_at, s.status, s.consecutive_errors, s.needs_reinit,
       ARRAY(SELECT u.pgs_id
             FROM pgstream.pgs_dependencies d
             JOIN pgstream.pgs_stream_tables u ON u.pgs_relid = d.source_relid
             WHERE d.pgs_id = s.pgs_id),
       ARRAY(SELECT t.buffer_relid
             FROM pgstream.pgs_dependencies d
             JOIN pgstream.pgs_change_tracking t USING (source_relid)
             WHERE d.pgs_id = s.pgs_id
             ORDER BY t.buffer_relid),
       coalesce(s.data_timestamp, s.created_at),
       s.pgs_relid || ARRAY(SELECT source_relid FROM pgstream.pgs_dependencies d
                            WHERE d.pgs_id = s.pgs_id),
       EXISTS (SELECT FROM pgstream.pgs_dependencies d
               JOIN pgstream.pgs_change_tracking t USING (source_relid)
               WHERE d.pgs_id = s.pgs_id AND (t.cdc_mode = 'WAL' OR t.decoded_until IS NOT NULL)),
       coalesce(s.last_full_ms, 0)
FROM pgstream.pgs_stream_tables s
WHERE s.pgs_relid IS NOT NULL
