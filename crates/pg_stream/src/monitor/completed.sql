SELECT pg_catalog.pg_notify('pg_stream_alert', json_build_object(
    'event', 'refresh_completed', 'pgs_schema', pgs_schema, 'pgs_name', pgs_name,
    'st', pgs_schema || '.' || pgs_name, 'action', $2, 'rows_inserted', $3, 'rows_deleted', $4,
    'duration_ms', extract(epoch FROM clock_timestamp() - data_timestamp) * 1000)::text)
FROM pgstream.pgs_stream_tables
WHERE pgs_id = $1
