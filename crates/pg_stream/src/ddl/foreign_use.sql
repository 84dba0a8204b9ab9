-- What the query of stream table $5, which used $1 (catalogs), $2 (objects) of columns $3, $4 before, could come to
-- use, or comes to use as view $6, and belongs to a role that may not act as the owner $7 anyway: what it is, and whose.
WITH RECURSIVE used AS (
    SELECT * FROM unnest($1::oid[], $2::oid[], $3::oid[], $4::int[]) AS u(classid, objid, relid, attnum)
), types(oid) AS (
    SELECT objid FROM used WHERE classid = 'pg_catalog.pg_type'::regclass
    UNION
    SELECT atttypid FROM pg_catalog.pg_attribute WHERE attrelid = $5 AND attnum > 0
    UNION
    SELECT p.prorettype FROM used JOIN pg_catalog.pg_proc AS p ON p.oid = objid
    WHERE classid = 'pg_catalog.pg_proc'::regclass
    UNION
    SELECT part.oid
    FROM types
    JOIN pg_catalog.pg_type AS t USING (oid),
    LATERAL (VALUES (t.typelem), (t.typbasetype), (t.typarray)) AS part(oid)
    WHERE part.oid <> 0
), found AS (
    -- Columns get it as their type.
    SELECT 'pg_catalog.pg_type'::regclass AS classid, a.atttypid AS objid
    FROM used
    JOIN pg_catalog.pg_attribute AS a ON (a.attrelid, a.attnum) = (relid, used.attnum) AND a.atttypid <> objid
    UNION ALL
    (
        -- Names that stand for others with other types.
        SELECT 'pg_catalog.pg_proc'::regclass, other.oid
        FROM used
        JOIN pg_catalog.pg_proc AS p ON p.oid = objid AND classid = 'pg_catalog.pg_proc'::regclass
        JOIN pg_catalog.pg_proc AS other USING (pronamespace, proname)
        UNION ALL
        SELECT 'pg_catalog.pg_operator'::regclass, other.oid
        FROM used
        JOIN pg_catalog.pg_operator AS o ON o.oid = objid AND classid = 'pg_catalog.pg_operator'::regclass
        JOIN pg_catalog.pg_operator AS other USING (oprnamespace, oprname)
        UNION ALL
        -- Who owns a type makes casts from it and to it.
        SELECT 'pg_catalog.pg_proc'::regclass, c.castfunc
        FROM types
        JOIN pg_catalog.pg_type AS t USING (oid)
        JOIN pg_catalog.pg_cast AS c ON t.oid IN (c.castsource, c.casttarget)
        WHERE NOT pg_catalog.pg_has_role(t.typowner, $7, 'USAGE')
        UNION ALL
        SELECT d.refclassid, d.refobjid
        FROM pg_catalog.pg_rewrite AS w
        JOIN pg_catalog.pg_depend AS d
          ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = w.oid
        WHERE w.ev_class = $6
        EXCEPT
        SELECT classid, objid FROM used
    )
)
SELECT pg_catalog.pg_describe_object(classid, objid, 0), pg_catalog.pg_get_userbyid(owner)::text
FROM found,
LATERAL (
    SELECT proowner FROM pg_catalog.pg_proc
    WHERE oid = objid AND classid = 'pg_catalog.pg_proc'::regclass
    UNION ALL
    SELECT oprowner FROM pg_catalog.pg_operator
    WHERE oid = objid AND classid = 'pg_catalog.pg_operator'::regclass
    UNION ALL
    SELECT typowner FROM pg_catalog.pg_type
    WHERE oid = objid AND classid = 'pg_catalog.pg_type'::regclass) AS of(owner)
WHERE NOT pg_catalog.pg_has_role(owner, $7, 'USAGE')
ORDER BY classid, objid
LIMIT 1
