-- Watching stream tables.

GRANT SELECT ON pgstream.pgs_change_tracking TO PUBLIC;

-- When the schedules want the data of each populated stream table to be newer than it is.
CREATE FUNCTION pgstream.due_times(OUT pgs_id bigint, OUT due_at timestamptz)
    RETURNS SETOF record LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'due_times_wrapper';

CREATE VIEW pgstream.stream_tables_info AS
SELECT s.*,
       CASE WHEN s.data_timestamp IS NOT NULL
            THEN greatest(clock_timestamp() - s.data_timestamp, interval '0') END AS staleness,
       coalesce(clock_timestamp() > d.due_at, false) AS stale
FROM pgstream.pgs_stream_tables AS s
LEFT JOIN pgstream.due_times() AS d USING (pgs_id);

CREATE VIEW pgstream.pg_stat_stream_tables AS
SELECT s.pgs_id, s.pgs_schema, s.pgs_name, s.status, s.refresh_mode, s.is_populated,
       s.data_timestamp, s.schedule, s.staleness, s.stale, s.consecutive_errors, s.needs_reinit,
       s.last_refresh_at, h.total_refreshes, h.successful_refreshes, h.failed_refreshes,
       h.total_rows_inserted, h.total_rows_deleted, h.avg_duration_ms,
       l.action AS last_action, l.status AS last_status
FROM pgstream.stream_tables_info AS s
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE status IN ('COMPLETED', 'FAILED')) AS total_refreshes,
           count(*) FILTER (WHERE status = 'COMPLETED') AS successful_refreshes,
           count(*) FILTER (WHERE status = 'FAILED') AS failed_refreshes,
           coalesce(sum(rows_inserted), 0)::bigint AS total_rows_inserted,
           coalesce(sum(rows_deleted), 0)::bigint AS total_rows_deleted,
           (avg(extract(epoch FROM end_time - start_time)) FILTER (WHERE status = 'COMPLETED')
            * 1000)::float8 AS avg_duration_ms
    FROM pgstream.pgs_refresh_history WHERE pgs_id = s.pgs_id
) AS h
LEFT JOIN LATERAL (
    SELECT action, status FROM pgstream.pgs_refresh_history
    WHERE pgs_id = s.pgs_id ORDER BY refresh_id DESC LIMIT 1
) AS l ON true;

GRANT SELECT ON pgstream.stream_tables_info, pgstream.pg_stat_stream_tables TO PUBLIC;

-- The refreshes that run now, of all sessions in this database.
CREATE FUNCTION pgstream.refresh_progress(
    OUT pid int, OUT pgs_id bigint, OUT started_at timestamptz, OUT phase text,
    OUT stages_total int, OUT stages_done int, OUT changes_read bigint
) RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'refresh_progress_wrapper';

CREATE VIEW pgstream.pg_stat_progress_refresh AS
SELECT p.pid, s.pgs_id, s.pgs_schema, s.pgs_name, p.phase, p.started_at, p.stages_total,
       p.stages_done, p.changes_read
FROM pgstream.refresh_progress() AS p
JOIN pgstream.pgs_stream_tables AS s USING (pgs_id)
-- A refresh ends with its transaction, also when its session was terminated.
WHERE EXISTS (SELECT FROM pg_catalog.pg_locks AS l
              WHERE l.pid = p.pid AND l.locktype = 'virtualxid' AND l.granted);
COMMENT ON VIEW pgstream.pg_stat_progress_refresh IS 'how far the refreshes that run now are';

GRANT SELECT ON pgstream.pg_stat_progress_refresh TO PUBLIC;

-- Announces that a stream table is going to be rebuilt, whatever marked it.
CREATE FUNCTION pgstream.announce_reinitialize() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'announce_reinitialize_wrapper';
REVOKE ALL ON FUNCTION pgstream.announce_reinitialize() FROM PUBLIC;
CREATE TRIGGER announce_reinitialize AFTER UPDATE OF needs_reinit ON pgstream.pgs_stream_tables
    FOR EACH ROW WHEN (new.needs_reinit AND NOT old.needs_reinit)
    EXECUTE FUNCTION pgstream.announce_reinitialize();
ALTER TABLE pgstream.pgs_stream_tables ENABLE ALWAYS TRIGGER announce_reinitialize;

CREATE FUNCTION pgstream.pgs_status()
    RETURNS TABLE (name text, status text, refresh_mode text, is_populated bool,
                   consecutive_errors int, schedule text, data_timestamp timestamptz,
                   staleness interval)
    LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT pgs_schema || '.' || pgs_name, status, refresh_mode, is_populated, consecutive_errors,
           schedule, data_timestamp, staleness
    FROM pgstream.stream_tables_info ORDER BY pgs_schema, pgs_name;
END;

CREATE FUNCTION pgstream.st_refresh_stats()
    RETURNS TABLE (pgs_name text, pgs_schema text, status text, refresh_mode text,
                   is_populated bool, total_refreshes bigint, successful_refreshes bigint,
                   failed_refreshes bigint, total_rows_inserted bigint, total_rows_deleted bigint,
                   avg_duration_ms float8, last_refresh_action text, last_refresh_status text,
                   last_refresh_at timestamptz, staleness_secs float8, stale bool)
    LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT pgs_name, pgs_schema, status, refresh_mode, is_populated, total_refreshes,
           successful_refreshes, failed_refreshes, total_rows_inserted, total_rows_deleted,
           avg_duration_ms, last_action, last_status, last_refresh_at,
           extract(epoch FROM staleness)::float8, stale
    FROM pgstream.pg_stat_stream_tables ORDER BY pgs_schema, pgs_name;
END;

CREATE FUNCTION pgstream.get_refresh_history(name text, max_rows int DEFAULT 20)
    RETURNS TABLE (refresh_id bigint, data_timestamp timestamptz, start_time timestamptz,
                   end_time timestamptz, action text, status text, rows_inserted bigint,
                   rows_deleted bigint, duration_ms float8, error_message text)
    LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT h.refresh_id, h.data_timestamp, h.start_time, h.end_time, h.action, h.status,
           h.rows_inserted, h.rows_deleted,
           (extract(epoch FROM h.end_time - h.start_time) * 1000)::float8, h.error_message
    FROM pgstream.pgs_refresh_history AS h
    WHERE h.pgs_id = (SELECT pgstream.stream_table_id($1))
    ORDER BY h.refresh_id DESC LIMIT $2;
END;

CREATE FUNCTION pgstream.get_staleness(name text) RETURNS float8
    LANGUAGE sql VOLATILE STRICT
BEGIN ATOMIC
    SELECT extract(epoch FROM staleness)::float8 FROM pgstream.stream_tables_info
    WHERE pgs_id = (SELECT pgstream.stream_table_id($1));
END;

CREATE FUNCTION pgstream.slot_health()
    RETURNS TABLE (slot_name text, source_relid bigint, active bool, retained_wal_bytes bigint,
                   wal_status text)
    LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT t.slot_name, t.source_relid::bigint,
           CASE WHEN t.cdc_mode = 'WAL' THEN coalesce(s.active, false) ELSE true END,
           CASE WHEN t.cdc_mode = 'WAL' AND NOT pg_is_in_recovery()
                THEN coalesce(pg_current_wal_lsn() - s.restart_lsn, 0)::bigint ELSE 0 END,
           CASE WHEN t.cdc_mode = 'WAL' THEN coalesce(s.wal_status, 'lost') ELSE 'trigger' END
    FROM pgstream.pgs_change_tracking AS t
    LEFT JOIN pg_catalog.pg_replication_slots AS s ON s.slot_name = t.slot_name
    ORDER BY t.source_relid;
END;

CREATE FUNCTION pgstream.check_cdc_health()
    RETURNS TABLE (source_relid bigint, source_table text, cdc_mode text, slot_name text,
                   lag_bytes bigint, confirmed_lsn text, alert text)
    LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT t.source_relid::bigint, n.nspname || '.' || c.relname, t.cdc_mode, t.slot_name,
           CASE WHEN t.cdc_mode = 'WAL' AND NOT pg_is_in_recovery()
                THEN coalesce(pg_current_wal_lsn() - s.confirmed_flush_lsn, 0)::bigint ELSE 0 END,
           CASE WHEN t.cdc_mode = 'WAL' THEN s.confirmed_flush_lsn::text END,
           CASE
               WHEN c.oid IS NULL THEN 'the source table does not exist'
               WHEN EXISTS (SELECT FROM pgstream.pgs_stream_tables WHERE pgs_relid = c.oid) THEN NULL
               -- Slots and the decoder are the primary's.
               WHEN t.cdc_mode = 'WAL' AND pg_is_in_recovery() THEN NULL
               WHEN t.cdc_mode = 'WAL' AND s.slot_name IS NULL THEN 'the replication slot is missing'
               WHEN t.cdc_mode = 'WAL' AND s.invalidation_reason IS NOT NULL
                   THEN 'the replication slot is lost: ' || s.invalidation_reason
               WHEN t.cdc_mode = 'WAL' AND NOT s.active THEN 'the decoder does not run'
               WHEN t.cdc_mode = 'WAL' AND s.wal_status <> 'reserved'
                   THEN 'the replication slot keeps more of the write-ahead log than it should'
               WHEN t.cdc_mode = 'WAL' THEN NULL
               WHEN NOT EXISTS (SELECT FROM pg_catalog.pg_trigger AS g
                                WHERE g.tgrelid = c.oid AND starts_with(g.tgname::text, 'pg_stream_cdc_'))
                   THEN 'the capture triggers are missing'
               WHEN EXISTS (SELECT FROM pg_catalog.pg_trigger AS g
                            WHERE g.tgrelid = c.oid AND starts_with(g.tgname::text, 'pg_stream_cdc_')
                              AND g.tgenabled = 'D')
                   THEN 'capture triggers are disabled'
           END
    FROM pgstream.pgs_change_tracking AS t
    LEFT JOIN pg_catalog.pg_class AS c ON c.oid = t.source_relid
    LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_catalog.pg_replication_slots AS s ON t.cdc_mode = 'WAL' AND s.slot_name = t.slot_name
    ORDER BY t.source_relid;
END;
