-- The table, if any, whose guard was dropped by name. One that goes with its table was not.
SELECT address_names[1] || '.' || address_names[2]
FROM pg_catalog.pg_event_trigger_dropped_objects()
WHERE object_type = 'trigger' AND original AND address_names[3] = 'pg_stream_guard'
