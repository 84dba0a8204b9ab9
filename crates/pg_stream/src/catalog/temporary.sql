-- What the hidden view $1 depends on, however it does, and that goes with its session.
WITH RECURSIVE below(classid, objid) AS (
    SELECT 'pg_catalog.pg_class'::regclass::oid, $1::oid
    UNION
    SELECT down.classid, down.objid
    FROM below AS b,
    LATERAL (
        SELECT d.refclassid, d.refobjid
        FROM pg_catalog.pg_depend AS d
        WHERE d.classid = b.classid AND d.objid = b.objid
        UNION ALL
        SELECT 'pg_catalog.pg_rewrite'::regclass, w.oid
        FROM pg_catalog.pg_rewrite AS w
        WHERE b.classid = 'pg_catalog.pg_class'::regclass AND w.ev_class = b.objid
    ) AS down(classid, objid)
)
SELECT 'temporary ' || i.type || ' ' || i.identity
FROM below AS b, pg_catalog.pg_identify_object(b.classid, b.objid, 0) AS i
WHERE i.schema LIKE 'pg\_temp%'
ORDER BY 1
LIMIT 1
