SELECT pg_restore_relation_stats(
           'schemaname', n.nspname::text, 'relname', c.relname::text,
           'relpages', s.pages, 'reltuples', s.tuples::real),
       pg_restore_attribute_stats(
           'schemaname', n.nspname::text, 'relname', c.relname::text,
           'attname', '__pgs_row_id'::text, 'inherited', false,
           'null_frac', 0::real, 'avg_width', 8, 'n_distinct', (-1)::real)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_index i ON i.indrelid = c.oid
JOIN pg_class x ON x.oid = i.indexrelid
CROSS JOIN LATERAL (
    SELECT (pg_relation_size(c.oid) / current_setting('block_size')::int)::int AS pages,
           x.reltuples AS tuples
) s
WHERE c.oid = $1::regclass AND x.reltuples > 0
LIMIT 1
