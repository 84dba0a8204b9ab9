-- Column $2 of relation $1 has another name: the one that is left where there is no such column.
UPDATE pgstream.pgs_dependencies AS d
SET columns_used = array_replace(d.columns_used, gone.name, now.attname::text),
    column_snapshot = d.column_snapshot - gone.name
        || jsonb_build_object(now.attname, d.column_snapshot -> gone.name)
FROM (SELECT pgs_id, min(used) AS name
      FROM pgstream.pgs_dependencies, unnest(columns_used) AS used
      WHERE source_relid = $1
        AND used NOT IN (SELECT attname FROM pg_catalog.pg_attribute
                         WHERE attrelid = $1 AND NOT attisdropped)
      GROUP BY pgs_id HAVING count(*) = 1) AS gone,
     pg_catalog.pg_attribute AS now
WHERE d.source_relid = $1 AND d.pgs_id = gone.pgs_id
  AND now.attrelid = $1 AND now.attnum = $2
