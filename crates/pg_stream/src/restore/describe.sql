-- What the label of stream table $1, whose hidden view is $2, would have to be, unless it is.
SELECT s.pgs_relid, d.label
FROM pgstream.pgs_stream_tables AS s
JOIN pg_catalog.pg_class AS v ON v.oid = s.view_relid AND v.oid = $2,
LATERAL (SELECT json_build_object(
    'id', s.pgs_id, 'query', s.defining_query, 'definition', pg_catalog.pg_get_viewdef(v.oid),
    'schedule', s.schedule, 'refresh_mode', s.refresh_mode, 'settings', s.settings)::text
) AS d(label)
WHERE s.pgs_id = $1 AND s.pgs_relid IS NOT NULL
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_seclabel AS l
                  WHERE l.objoid = s.pgs_relid AND l.objsubid = 0 AND l.provider = 'pg_stream'
                    AND l.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass
                    AND l.label = d.label)
