-- The stream tables besides $1 that these read, directly or not, whose last refresh failed or was not tried
-- to the end, and which are going to be tried again: not those that got another schedule since.
WITH RECURSIVE below(pgs_id) AS (
    SELECT pg_catalog.unnest($1::bigint[])
    UNION
    SELECT s.pgs_id
    FROM below
    JOIN pgstream.pgs_dependencies d USING (pgs_id)
    JOIN pgstream.pgs_stream_tables s ON s.pgs_relid = d.source_relid
)
SELECT s.pgs_id
FROM below
JOIN pgstream.pgs_stream_tables s USING (pgs_id)
WHERE s.pgs_id <> ALL ($1)
  AND s.status IN ('INITIALIZING', 'ACTIVE')
  AND (s.consecutive_errors > 0
       OR EXISTS (SELECT FROM (SELECT h.status, h.start_time
                               FROM pgstream.pgs_refresh_history h
                               WHERE h.pgs_id = s.pgs_id AND h.status <> 'RUNNING'
                               ORDER BY h.refresh_id DESC LIMIT 1) AS last
                  WHERE last.status = 'SKIPPED' AND last.start_time > greatest(s.data_timestamp, s.scheduled_at)))
