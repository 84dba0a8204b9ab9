-- The stream table, if any, that was altered and whose columns no longer are those of its query.
WITH altered AS MATERIALIZED (
    SELECT DISTINCT s.pgs_relid, s.view_relid, s.pgs_schema || '.' || s.pgs_name AS name
    FROM pg_catalog.pg_event_trigger_ddl_commands() AS d
    JOIN pgstream.pgs_stream_tables AS s ON s.pgs_relid = d.objid
    JOIN pg_catalog.pg_class AS v ON v.oid = s.view_relid
    WHERE d.classid = 'pg_catalog.pg_class'::regclass
), columns AS (
    SELECT a.name,
           array_agg((c.attname, c.atttypid, c.atttypmod, c.attcollation)::text ORDER BY c.attnum)
               FILTER (WHERE c.attrelid = a.view_relid) AS wanted,
           array_agg((c.attname, c.atttypid, c.atttypmod, c.attcollation)::text ORDER BY c.attnum)
               FILTER (WHERE c.attrelid = a.pgs_relid
                       AND c.attname NOT IN ('__pgs_row_id', '__pgs_count')) AS found,
           bool_or(c.attrelid = a.pgs_relid AND c.attname = '__pgs_row_id') AS is_identified
    FROM altered AS a
    JOIN pg_catalog.pg_attribute AS c ON c.attrelid IN (a.view_relid, a.pgs_relid)
    WHERE c.attnum > 0 AND NOT c.attisdropped
    GROUP BY a.name
)
SELECT name FROM columns WHERE wanted IS DISTINCT FROM found OR NOT is_identified
