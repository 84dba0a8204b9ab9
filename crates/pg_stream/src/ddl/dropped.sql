WITH dropped AS MATERIALIZED (
    SELECT * FROM pg_catalog.pg_event_trigger_dropped_objects()
), relations AS MATERIALIZED (
    SELECT objid FROM dropped
    WHERE classid = 'pg_catalog.pg_class'::regclass AND objsubid = 0
), streams AS (
    SELECT pgs_id, pgs_relid, view_relid,
           EXISTS (SELECT FROM relations WHERE objid = pgs_relid) AS table_is_gone,
           EXISTS (SELECT FROM relations WHERE objid = view_relid) AS query_is_gone
    FROM pgstream.pgs_stream_tables
    WHERE EXISTS (SELECT FROM relations)
)
SELECT 'table', pgs_id, pgs_relid, NULL FROM streams WHERE table_is_gone
UNION ALL
SELECT 'query', pgs_id, pgs_relid,
       (SELECT string_agg(object_type || ' ' || object_identity, ', ') || ' was dropped'
        FROM dropped WHERE original)
FROM streams WHERE query_is_gone AND NOT table_is_gone
UNION ALL
SELECT 'source', unnest(tracked_by_pgs_ids), source_relid, NULL
FROM pgstream.pgs_change_tracking
WHERE source_relid IN (SELECT objid FROM relations)
