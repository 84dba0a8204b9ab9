-- The hidden view of a stream table, and its comment.
SELECT v.oid,
       json_build_object('schema', s.pgs_schema, 'name', s.pgs_name, 'query', s.defining_query,
                         'schedule', s.schedule, 'refresh_mode', s.refresh_mode,
                         'settings', s.settings)::text
FROM pgstream.pgs_stream_tables AS s JOIN pg_catalog.pg_class AS v ON v.oid = s.view_relid
WHERE s.pgs_id = $1
