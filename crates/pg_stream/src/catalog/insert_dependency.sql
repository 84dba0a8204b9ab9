INSERT INTO pgstream.pgs_dependencies
    (pgs_id, source_relid, source_type, columns_used, column_snapshot)
SELECT $1, $2, $3, $4,
       (SELECT jsonb_object_agg(attname, format_type(atttypid, atttypmod))
        FROM pg_catalog.pg_attribute
        WHERE attrelid = $2 AND attnum > 0 AND NOT attisdropped AND attname = ANY ($4))
