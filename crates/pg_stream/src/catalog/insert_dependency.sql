INSERT INTO pgstream.pgs_dependencies
    (pgs_id, source_relid, source_type, columns_used, column_snapshot, cdc_mode, slot_name,
     transition_started_at)
SELECT $1, $2, $3, $4,
       (SELECT jsonb_object_agg(attname, format_type(atttypid, atttypmod))
        FROM pg_catalog.pg_attribute
        WHERE attrelid = $2 AND attnum > 0 AND NOT attisdropped AND attname = ANY ($4)),
       coalesce(t.cdc_mode, 'TRIGGER'),
       CASE WHEN t.cdc_mode = 'WAL' THEN t.slot_name END,
       t.transition_started_at
FROM (VALUES ($2)) AS s (source_relid)
LEFT JOIN pgstream.pgs_change_tracking AS t USING (source_relid)
