-- The captured tables, stream tables not among them: those are captured by their refreshes.
SELECT source_relid, transition_started_at
FROM pgstream.pgs_change_tracking
WHERE EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = source_relid)
  AND NOT EXISTS (SELECT FROM pgstream.pgs_stream_tables WHERE pgs_relid = source_relid)
ORDER BY source_relid
