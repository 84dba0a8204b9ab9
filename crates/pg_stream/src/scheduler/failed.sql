WITH counted AS (
    SELECT CASE WHEN consecutive_errors > 0 THEN own_errors ELSE 0 END + $5::int AS own
    FROM pgstream.pgs_stream_tables WHERE pgs_id = $1
    FOR NO KEY UPDATE
), failed AS (
    UPDATE pgstream.pgs_stream_tables
    SET consecutive_errors = consecutive_errors + 1,
        own_errors = own,
        -- Meanwhile it may have lost its query, which its message tells.
        status = CASE WHEN status <> 'ERROR' AND $5 AND own >= $3 THEN 'SUSPENDED' ELSE status END,
        error_message = CASE WHEN status = 'ERROR' THEN error_message WHEN $5 AND own >= $3 THEN $2 END,
        updated_at = clock_timestamp()
    FROM counted
    WHERE pgs_id = $1
    RETURNING pgs_id, pgs_schema, pgs_name, status, consecutive_errors,
              CASE WHEN is_populated THEN refresh_mode ELSE 'FULL' END AS action
), completed AS (
    UPDATE pgstream.pgs_refresh_history
    SET status = 'FAILED', end_time = clock_timestamp(), error_message = $2
    WHERE refresh_id = $6
    RETURNING refresh_id
), recorded AS (
    INSERT INTO pgstream.pgs_refresh_history
        (pgs_id, start_time, end_time, action, status, error_message, initiated_by)
    SELECT pgs_id, $4, clock_timestamp(), action, 'FAILED', $2, 'SCHEDULER' FROM failed
    WHERE NOT EXISTS (SELECT FROM completed)
)
-- A payload has less than 8000 bytes; a character can take six.
SELECT CASE WHEN $7 THEN pg_catalog.pg_notify('pg_stream_alert', message::text) END
FROM failed,
LATERAL (
    SELECT json_build_object(
        'event', 'refresh_failed', 'pgs_schema', pgs_schema, 'pgs_name', pgs_name,
        'st', pgs_schema || '.' || pgs_name, 'action', action, 'error', left($2, 1000))
    UNION ALL
    SELECT json_build_object(
        'event', 'auto_suspended', 'pgs_schema', pgs_schema, 'pgs_name', pgs_name,
        'st', pgs_schema || '.' || pgs_name, 'consecutive_errors', consecutive_errors)
    WHERE status = 'SUSPENDED'
) AS alert(message)
