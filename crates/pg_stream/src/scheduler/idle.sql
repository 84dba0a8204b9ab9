UPDATE pgstream.pgs_stream_tables
SET data_timestamp = greatest(data_timestamp, $2), last_refresh_at = $2
WHERE pgs_id IN (SELECT pgs_id FROM pgstream.pgs_stream_tables
                 WHERE pgs_id = ANY ($1) AND is_populated
                 FOR NO KEY UPDATE SKIP LOCKED)
