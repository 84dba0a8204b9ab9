-- What reads something that was replaced is to be rebuilt, however it reads it: through views,
-- operators, aggregates or types.
WITH RECURSIVE above(classid, objid) AS (
    SELECT classid, objid FROM pg_catalog.pg_event_trigger_ddl_commands()
    UNION
    SELECT CASE WHEN w.oid IS NULL THEN d.classid ELSE 'pg_catalog.pg_class'::regclass END,
           coalesce(w.ev_class, d.objid)
    FROM above a
    JOIN pg_catalog.pg_depend d ON d.refclassid = a.classid AND d.refobjid = a.objid
    LEFT JOIN pg_catalog.pg_rewrite w
           ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND w.oid = d.objid
    WHERE d.classid IN ('pg_catalog.pg_rewrite'::regclass, 'pg_catalog.pg_proc'::regclass,
                        'pg_catalog.pg_operator'::regclass, 'pg_catalog.pg_type'::regclass,
                        'pg_catalog.pg_cast'::regclass)
)
UPDATE pgstream.pgs_stream_tables SET needs_reinit = true
WHERE view_relid IN (SELECT objid FROM above WHERE classid = 'pg_catalog.pg_class'::regclass)
