-- A capture trigger went: with a partition, or by hand. What reads the source is to be rebuilt.
UPDATE pgstream.pgs_stream_tables s SET needs_reinit = true
FROM pg_catalog.pg_event_trigger_dropped_objects() o
JOIN pgstream.pgs_change_tracking t
  ON t.source_relid::text = pg_catalog.regexp_replace(
         o.address_names[3], '^pg_stream_cdc_(truncate_)?([0-9]+).*$', '\2')
WHERE o.object_type = 'trigger' AND o.address_names[3] LIKE 'pg\_stream\_cdc\_%'
  AND s.pgs_id = ANY (t.tracked_by_pgs_ids)
