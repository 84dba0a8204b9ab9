-- Functions, operators and types that the query of view $1 uses, or that indexes, conditions and statistics of its
-- stream table $2 do; and the columns that the query reads, in rows as a whole, too, with their types. What PostgreSQL brought is left out.
SELECT d.refclassid, d.refobjid, 0::oid, 0
FROM pg_catalog.pg_depend AS d
WHERE d.refclassid IN ('pg_catalog.pg_proc'::regclass, 'pg_catalog.pg_operator'::regclass,
                       'pg_catalog.pg_type'::regclass)
  AND (d.classid, d.objid) IN (
      SELECT 'pg_catalog.pg_rewrite'::regclass, oid FROM pg_catalog.pg_rewrite WHERE ev_class = $1
      UNION ALL
      SELECT 'pg_catalog.pg_class'::regclass, indexrelid FROM pg_catalog.pg_index WHERE indrelid = $2
      UNION ALL
      SELECT 'pg_catalog.pg_constraint'::regclass, oid FROM pg_catalog.pg_constraint WHERE conrelid = $2
      UNION ALL
      SELECT 'pg_catalog.pg_statistic_ext'::regclass, oid FROM pg_catalog.pg_statistic_ext
      WHERE stxrelid = $2)
UNION
SELECT 'pg_catalog.pg_type'::regclass, a.atttypid, a.attrelid, a.attnum
FROM pg_catalog.pg_rewrite AS w
JOIN pg_catalog.pg_depend AS d
  ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = w.oid
 AND d.refclassid = 'pg_catalog.pg_class'::regclass
JOIN pg_catalog.pg_class AS t ON t.oid = d.refobjid
JOIN pg_catalog.pg_attribute AS a
  ON a.attrelid = t.oid
 AND (a.attnum = d.refobjsubid OR w.ev_action::text LIKE '% ' || t.reltype || ' %')
WHERE w.ev_class = $1 AND a.attnum > 0 AND NOT a.attisdropped
