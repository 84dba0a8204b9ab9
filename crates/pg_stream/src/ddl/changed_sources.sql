-- For each captured table whose tree the command touched: its OID, after noting that what reads it
-- is to be rebuilt, unless the command only created a partition. First column: the name of a table
-- whose capture is switched off.
WITH RECURSIVE touched AS MATERIALIZED (
    SELECT DISTINCT objid AS relid, command_tag
    FROM pg_catalog.pg_event_trigger_ddl_commands()
    WHERE classid = 'pg_catalog.pg_class'::regclass
),
above(relid, ancestor, command_tag) AS (
    SELECT relid, relid, command_tag FROM touched
    UNION
    SELECT a.relid, i.inhparent, a.command_tag
    FROM above a JOIN pg_catalog.pg_inherits i ON i.inhrelid = a.ancestor
),
captured AS MATERIALIZED (
    SELECT t.source_relid, t.tracked_by_pgs_ids, a.command_tag,
           a.relid <> a.ancestor
           OR EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhparent = a.ancestor) AS is_tree
    FROM above a JOIN pgstream.pgs_change_tracking t ON t.source_relid = a.ancestor
    UNION
    -- What has left the tree still has its triggers.
    SELECT t.source_relid, t.tracked_by_pgs_ids, c.command_tag, true
    FROM touched c
    JOIN pg_catalog.pg_trigger g ON g.tgrelid = c.relid
    JOIN pgstream.pgs_change_tracking t
      ON g.tgfoid = 'pgstream.capture()'::pg_catalog.regprocedure AND t.source_relid <> c.relid
     AND pg_catalog.encode(g.tgargs, 'escape') = t.source_relid::text || '\000'
),
marked AS (
    UPDATE pgstream.pgs_stream_tables s SET needs_reinit = true
    FROM captured c
    WHERE s.pgs_id = ANY (c.tracked_by_pgs_ids) AND c.is_tree AND c.command_tag = 'ALTER TABLE'
)
SELECT NULL::text, source_relid
FROM (SELECT DISTINCT source_relid FROM captured WHERE is_tree) AS trees
UNION ALL
SELECT g.tgrelid::regclass::text, NULL
FROM pg_catalog.pg_trigger g JOIN touched c ON c.relid = g.tgrelid
WHERE g.tgfoid = 'pgstream.capture()'::pg_catalog.regprocedure AND g.tgenabled = 'D'
   OR g.tgfoid = 'pgstream.guard_stream_table()'::pg_catalog.regprocedure AND g.tgenabled <> 'A'
