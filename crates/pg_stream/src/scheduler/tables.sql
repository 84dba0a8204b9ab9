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
       -- With what its sources are parts of: who reads that sees their rows, too.
       s.pgs_relid || ARRAY(WITH RECURSIVE above(relid) AS (
                                SELECT source_relid FROM pgstream.pgs_dependencies d
                                WHERE d.pgs_id = s.pgs_id
                                UNION
                                SELECT i.inhparent FROM above
                                JOIN pg_catalog.pg_inherits i ON i.inhrelid = relid)
                            SELECT relid FROM above),
       EXISTS (SELECT FROM pgstream.pgs_dependencies d
               JOIN pgstream.pgs_change_tracking t USING (source_relid)
               WHERE d.pgs_id = s.pgs_id AND (t.cdc_mode = 'WAL' OR t.decoded_until IS NOT NULL)),
       coalesce(s.last_full_ms, 0)
FROM pgstream.pgs_stream_tables s
WHERE s.pgs_relid IS NOT NULL
