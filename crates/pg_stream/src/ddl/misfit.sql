-- What is wrong with stream table $1, whose query is in view $2; NULL if nothing is.
WITH columns AS (
    SELECT c.attrelid, c.attnum, c.attname, c.atttypid, c.atttypmod, c.attcollation, c.attnotnull,
           c.attidentity, c.attrelid = $1 AND c.attname IN ('__pgs_row_id', '__pgs_count') AS is_hidden
    FROM pg_catalog.pg_attribute AS c
    WHERE c.attrelid IN ($1, $2) AND c.attnum > 0 AND NOT c.attisdropped
),
visible AS (
    SELECT attrelid,
           array_agg((attname, atttypid, atttypmod, attcollation)::text ORDER BY attnum) AS columns
    FROM columns WHERE NOT is_hidden GROUP BY attrelid
)
SELECT CASE
    WHEN NOT EXISTS (SELECT FROM columns WHERE is_hidden AND attname = '__pgs_row_id')
      OR EXISTS (SELECT FROM columns WHERE is_hidden AND (atttypid <> 'bigint'::regtype OR NOT attnotnull))
      -- A refresh could not write them, and what happens to the type would happen to them.
      OR EXISTS (SELECT FROM columns WHERE attidentity <> '')
      OR EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = $1 AND reloftype <> 0)
      OR EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = $2)
         AND (SELECT columns FROM visible WHERE attrelid = $1)
             IS DISTINCT FROM (SELECT columns FROM visible WHERE attrelid = $2)
        THEN 'columns'
    WHEN EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conrelid = $1 AND contype = 'f')
        THEN 'foreign key'
    WHEN EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhrelid = $1)
      OR EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhparent = $1)
        THEN 'inheritance'
    WHEN (SELECT relpersistence FROM pg_catalog.pg_class WHERE oid = $1) <> 'p' THEN 'unlogged'
    WHEN EXISTS (SELECT FROM pg_catalog.pg_rewrite WHERE ev_class = $1) THEN 'rule'
    WHEN NOT EXISTS (SELECT FROM pg_catalog.pg_trigger
                     WHERE tgrelid = $1 AND tgname = 'pg_stream_guard'
                       AND tgfoid = 'pgstream.guard_stream_table()'::regprocedure
                       -- Before each statement of whatever kind.
                       AND tgtype = 2 + 4 + 8 + 16 + 32 AND tgqual IS NULL AND tgattr = '')
        THEN 'guard'
END
