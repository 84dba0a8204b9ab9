-- The stream tables whose queries depend on objects ($1 their catalog, $2 the objects), however they
-- do: through views, operators, aggregates, types, columns of these types, or policies. Bodies of
-- functions are text that PostgreSQL does not look into, so a function that mentions the name of
-- another one, of an operator, of a type or of something for text search is taken to use it. Names
-- without quotes are in any case.
WITH RECURSIVE above(classid, objid) AS (
    SELECT $1::oid, unnest($2::oid[])
    UNION
    SELECT up.classid, up.objid
    FROM above AS a,
    LATERAL (
        SELECT d.classid, d.objid
        FROM pg_catalog.pg_depend AS d
        WHERE d.refclassid = a.classid AND d.refobjid = a.objid
          AND (d.classid IN ('pg_catalog.pg_rewrite'::regclass, 'pg_catalog.pg_proc'::regclass,
                             'pg_catalog.pg_operator'::regclass, 'pg_catalog.pg_type'::regclass,
                             'pg_catalog.pg_cast'::regclass, 'pg_catalog.pg_policy'::regclass,
                             'pg_catalog.pg_collation'::regclass, 'pg_catalog.pg_opclass'::regclass,
                             'pg_catalog.pg_opfamily'::regclass, 'pg_catalog.pg_ts_dict'::regclass,
                             'pg_catalog.pg_ts_config'::regclass, 'pg_catalog.pg_attrdef'::regclass)
               OR d.classid = 'pg_catalog.pg_class'::regclass
              AND d.refclassid IN ('pg_catalog.pg_type'::regclass, 'pg_catalog.pg_collation'::regclass,
                                   'pg_catalog.pg_ts_config'::regclass))
        UNION ALL
        SELECT 'pg_catalog.pg_class'::regclass, w.ev_class
        FROM pg_catalog.pg_rewrite AS w
        WHERE a.classid = 'pg_catalog.pg_rewrite'::regclass AND w.oid = a.objid
        UNION ALL
        SELECT 'pg_catalog.pg_class'::regclass, p.polrelid
        FROM pg_catalog.pg_policy AS p
        WHERE a.classid = 'pg_catalog.pg_policy'::regclass AND p.oid = a.objid
        UNION ALL
        -- What a stored generated column has, stays.
        SELECT 'pg_catalog.pg_class'::regclass, e.adrelid
        FROM pg_catalog.pg_attrdef AS e
        JOIN pg_catalog.pg_attribute AS g ON (g.attrelid, g.attnum) = (e.adrelid, e.adnum)
        WHERE a.classid = 'pg_catalog.pg_attrdef'::regclass AND e.oid = a.objid
          AND g.attgenerated = 'v'
        UNION ALL
        SELECT 'pg_catalog.pg_type'::regclass, c.reltype
        FROM pg_catalog.pg_class AS c
        WHERE a.classid = 'pg_catalog.pg_class'::regclass AND c.oid = a.objid
        UNION ALL
        SELECT 'pg_catalog.pg_proc'::regclass, f.oid
        FROM (SELECT '', p.proname, ''
              FROM pg_catalog.pg_proc AS p
              WHERE a.classid = 'pg_catalog.pg_proc'::regclass AND p.oid = a.objid
              UNION ALL
              SELECT '', o.oprname, ''
              FROM pg_catalog.pg_operator AS o
              WHERE a.classid = 'pg_catalog.pg_operator'::regclass AND o.oid = a.objid
              UNION ALL
              -- As a whole word, for there are types of every name: each table has one.
              SELECT '(?<!\w)', t.typname, '(?!\w)'
              FROM pg_catalog.pg_type AS t
              WHERE a.classid = 'pg_catalog.pg_type'::regclass AND t.oid = a.objid
                AND t.typelem = 0
              UNION ALL
              SELECT '(?<!\w)', c.cfgname, '(?!\w)'
              FROM pg_catalog.pg_ts_config AS c
              WHERE a.classid = 'pg_catalog.pg_ts_config'::regclass AND c.oid = a.objid
              UNION ALL
              SELECT '(?<!\w)', d.dictname, '(?!\w)'
              FROM pg_catalog.pg_ts_dict AS d
              WHERE a.classid = 'pg_catalog.pg_ts_dict'::regclass AND d.oid = a.objid) AS used(before, name, after)
        JOIN pg_catalog.pg_proc AS f
          ON f.oid >= 16384 AND f.prosqlbody IS NULL
         AND replace(f.prosrc, '""', '"')
             ~* (used.before || regexp_replace(used.name, '\W', '\\\&', 'g') || used.after)
        WHERE EXISTS (SELECT FROM pgstream.pgs_stream_tables WHERE functions_used <> '{}')
           OR EXISTS (SELECT FROM pg_catalog.pg_policy)
    ) AS up
)
SELECT DISTINCT s.pgs_id
FROM above AS a
JOIN pgstream.pgs_stream_tables AS s ON s.view_relid = a.objid
WHERE a.classid = 'pg_catalog.pg_class'::regclass
ORDER BY s.pgs_id
