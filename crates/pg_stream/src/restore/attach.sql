-- Gives the row that has the table's name its OIDs. Returns the number. A hidden view of somebody else
-- would let its owner read with his privileges, and one of another number than that in the table's label
-- ($2) came with another table. One that reads nothing may only hold the place for what comes later in the
-- dump. Without a hidden view that fits the table, and without a label, which has the query, all that is
-- left to do with it is to drop it.
WITH place AS MATERIALIZED (
    SELECT c.oid AS relid, s.pgs_id,
           (SELECT v.oid FROM pg_catalog.pg_class AS v
            WHERE v.relnamespace = 'pgstream_state'::pg_catalog.regnamespace AND v.relkind = 'v'
              AND v.relname = 'query_' || s.pgs_id AND s.pgs_id = coalesce($2, s.pgs_id)
              AND v.relowner = c.relowner
              AND EXISTS (SELECT FROM pg_catalog.pg_rewrite AS w
                          JOIN pg_catalog.pg_depend AS d
                            ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
                           AND d.objid = w.oid
                           AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                          WHERE w.ev_class = v.oid AND d.refobjid <> v.oid)
              AND ARRAY(SELECT (a.attname, a.atttypid, a.atttypmod, a.attcollation)::text
                        FROM pg_catalog.pg_attribute AS a
                        WHERE a.attrelid = v.oid AND a.attnum > 0 AND NOT a.attisdropped
                        ORDER BY a.attnum)
                = ARRAY(SELECT (a.attname, a.atttypid, a.atttypmod, a.attcollation)::text
                        FROM pg_catalog.pg_attribute AS a
                        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                          AND a.attname NOT IN ('__pgs_row_id', '__pgs_count')
                        ORDER BY a.attnum)) AS view
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pgstream.pgs_stream_tables AS s ON (s.pgs_schema, s.pgs_name) = (n.nspname, c.relname)
    WHERE c.oid = $1 AND c.relkind = 'r' AND s.pgs_relid IS NULL
)
UPDATE pgstream.pgs_stream_tables AS s
SET pgs_relid = p.relid, view_relid = p.view, needs_reinit = true,
    status = CASE WHEN p.view IS NULL AND $2 IS NULL THEN 'ERROR' ELSE s.status END,
    error_message = CASE WHEN p.view IS NULL AND $2 IS NULL AND s.status <> 'ERROR'
                         THEN 'its defining query was not restored' ELSE s.error_message END
FROM place AS p
WHERE s.pgs_id = p.pgs_id
RETURNING s.pgs_id
