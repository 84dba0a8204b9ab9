WITH advanced AS (
    UPDATE pgstream.pgs_stream_tables
    SET consumed = $4,
        frontier = $5::jsonb,
        fingerprint = $6,
        data_timestamp = $2,
        last_refresh_at = $3,
        is_populated = true,
        -- Whoever sets it while a refresh runs must find it set afterwards.
        needs_reinit = needs_reinit AND $7 <> 'REINITIALIZE' AND refresh_mode <> 'FULL',
        consecutive_errors = 0,
        last_full_ms = CASE WHEN $7 IN ('DIFFERENTIAL', 'NO_DATA') THEN last_full_ms
                            ELSE extract(epoch FROM $3 - $2) * 1000 END,
        status = CASE WHEN status = 'INITIALIZING' THEN 'ACTIVE' ELSE status END,
        updated_at = CASE WHEN status = 'INITIALIZING' THEN $3 ELSE updated_at END
    WHERE pgs_id = $1
)
INSERT INTO pgstream.pgs_refresh_history
    (pgs_id, data_timestamp, start_time, end_time, action, status,
     rows_inserted, rows_updated, rows_deleted, initiated_by)
SELECT $1, $2, $2, $3, $7, 'COMPLETED', $8, $9, $10, $11
WHERE $7 <> 'NO_DATA'
