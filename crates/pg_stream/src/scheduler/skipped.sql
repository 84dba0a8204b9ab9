WITH completed AS (
    UPDATE pgstream.pgs_refresh_history
    SET status = 'SKIPPED', action = 'SKIP', end_time = clock_timestamp(), error_message = $2
    WHERE refresh_id = $4
    RETURNING refresh_id
)
INSERT INTO pgstream.pgs_refresh_history
    (pgs_id, start_time, end_time, action, status, error_message, initiated_by)
SELECT $1, $3, clock_timestamp(), 'SKIP', 'SKIPPED', $2, 'SCHEDULER'
WHERE NOT EXISTS (SELECT FROM completed)
