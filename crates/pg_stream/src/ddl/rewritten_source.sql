WITH RECURSIVE above(relid) AS (
    SELECT pg_catalog.pg_event_trigger_table_rewrite_oid()
    UNION
    SELECT i.inhparent FROM above a JOIN pg_catalog.pg_inherits i ON i.inhrelid = a.relid
),
marked AS (
    UPDATE pgstream.pgs_stream_tables s SET needs_reinit = true
    FROM above a JOIN pgstream.pgs_change_tracking t ON t.source_relid = a.relid
    WHERE s.pgs_id = ANY (t.tracked_by_pgs_ids)
)
SELECT t.source_relid FROM above a JOIN pgstream.pgs_change_tracking t ON t.source_relid = a.relid
