WITH st AS MATERIALIZED (
    SELECT s.*, c.oid AS found, c.relowner, n.nspname, c.relname
    FROM pgstream.pgs_stream_tables s
    LEFT JOIN pg_class c ON c.oid = s.pgs_relid
    LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
), tracking AS MATERIALIZED (
    SELECT * FROM pgstream.pgs_change_tracking
), hidden AS MATERIALIZED (
    SELECT c.*, (regexp_match(c.relname, '^(query|stage)_([0-9]+)(_[0-9]+)?$'))[2]::bigint AS id
    FROM pg_class c
    WHERE c.relnamespace = 'pgstream_state'::regnamespace AND c.relkind NOT IN ('i', 't')
), capture AS MATERIALIZED (
    SELECT t.*, regexp_replace(encode(t.tgargs, 'escape'), '\\000$', '')::oid AS source
    FROM pg_trigger t WHERE t.tgfoid = 'pgstream.capture'::regproc
)
SELECT format('stream table %s has no table', pgs_id) FROM st WHERE found IS NULL
UNION ALL
SELECT format('stream table %s is called %s.%s', pgs_id, nspname, relname)
FROM st WHERE (pgs_schema, pgs_name) <> (nspname, relname)
UNION ALL
SELECT format('stream table %s is %s and has no query', pgs_name, status)
FROM st WHERE status <> 'ERROR' AND view_relid NOT IN (SELECT oid FROM hidden)
UNION ALL
SELECT format('stream table %s is in ERROR for no reason', pgs_name)
FROM st WHERE status = 'ERROR' AND coalesce(error_message, '') = ''
UNION ALL
SELECT format('stream table %s needs a rebuild for no reason', pgs_name)
FROM st WHERE needs_reinit AND coalesce(reinit_reason, '') = ''
UNION ALL
SELECT format('hidden relation %s belongs to nobody', relname)
FROM hidden h
WHERE NOT EXISTS (SELECT FROM st WHERE st.pgs_id = h.id
                  AND (h.relkind = 'r' AND h.relname LIKE 'stage%' AND st.refresh_mode = 'DIFFERENTIAL'
                       OR st.view_relid = h.oid))
UNION ALL
SELECT format('hidden relation %s is not owned by the owner of %s', h.relname, st.pgs_name)
FROM hidden h JOIN st ON st.pgs_id = h.id WHERE st.relowner <> h.relowner
UNION ALL
SELECT format('hidden relation %s would stay after %s', h.relname, st.pgs_name)
FROM hidden h JOIN st ON st.pgs_id = h.id AND h.relkind = 'v'
WHERE NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = h.oid AND d.deptype = 'a'
                    AND d.refclassid = 'pg_class'::regclass AND d.refobjid = st.pgs_relid)
UNION ALL
SELECT format('%s does not belong to the extension', oid::regclass)
FROM pg_class
WHERE (oid IN (SELECT buffer_relid FROM tracking) OR oid IN (SELECT oid FROM hidden WHERE relkind = 'r'))
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = pg_class.oid AND d.deptype = 'e')
UNION ALL
SELECT format('captured table %s does not exist', source_relid)
FROM tracking WHERE source_relid NOT IN (SELECT oid FROM pg_class)
UNION ALL
SELECT format('the buffer of %s does not exist', source_relid::regclass)
FROM tracking WHERE buffer_relid NOT IN (SELECT oid FROM pg_class)
UNION ALL
SELECT format('%s is captured for nobody', source_relid::regclass)
FROM tracking WHERE tracked_by_pgs_ids = '{}'
UNION ALL
SELECT format('%s is captured for %s, which does not exist', source_relid::regclass, id)
FROM tracking, unnest(tracked_by_pgs_ids) AS id WHERE id NOT IN (SELECT pgs_id FROM st)
UNION ALL
SELECT format('%s is captured for %s, which has no query', source_relid::regclass, pgs_name)
FROM tracking, unnest(tracked_by_pgs_ids) AS id JOIN st ON pgs_id = id
WHERE view_relid NOT IN (SELECT oid FROM hidden)
UNION ALL
SELECT format('%s is captured for %s, which does not read it', source_relid::regclass, pgs_name)
FROM tracking t, unnest(tracked_by_pgs_ids) AS id JOIN st ON pgs_id = id
WHERE NOT needs_reinit
  AND NOT EXISTS (SELECT FROM pgstream.pgs_dependencies d
                  WHERE d.pgs_id = id AND d.source_relid = t.source_relid)
UNION ALL
SELECT format('%s is not captured for %s, which reads it', d.source_relid::regclass, st.pgs_name)
FROM st JOIN pgstream.pgs_dependencies d USING (pgs_id)
WHERE st.refresh_mode = 'DIFFERENTIAL' AND st.status <> 'ERROR' AND NOT st.needs_reinit
  AND d.source_type IN ('TABLE', 'STREAM_TABLE')
  AND NOT EXISTS (SELECT FROM tracking t
                  WHERE t.source_relid = d.source_relid AND st.pgs_id = ANY (t.tracked_by_pgs_ids))
UNION ALL
SELECT format('%s depends on %s, which does not exist', st.pgs_name, d.source_relid)
FROM st JOIN pgstream.pgs_dependencies d USING (pgs_id)
WHERE st.status <> 'ERROR' AND d.source_relid NOT IN (SELECT oid FROM pg_class)
UNION ALL
SELECT format('buffer %s belongs to nobody', relname)
FROM pg_class
WHERE relnamespace = 'pgstream_changes'::regnamespace AND relkind = 'r'
  AND oid NOT IN (SELECT buffer_relid FROM tracking)
UNION ALL
SELECT format('trigger %s on %s captures for nobody', tgname, tgrelid::regclass)
FROM capture WHERE source NOT IN (SELECT source_relid FROM tracking)
UNION ALL
SELECT format('stream table %s is captured by trigger %s', pgs_name, tgname)
FROM capture JOIN st ON source = pgs_relid
UNION ALL
SELECT format('trigger %s on %s is off', tgname, tgrelid::regclass)
FROM capture WHERE tgenabled = 'D'
UNION ALL
SELECT format('%s has %s capture triggers', t.source_relid::regclass, count(c.tgname))
FROM tracking t
LEFT JOIN capture c ON c.source = t.source_relid AND c.tgrelid = t.source_relid
WHERE t.source_relid NOT IN (SELECT pgs_relid FROM st)
  AND NOT EXISTS (SELECT FROM st WHERE needs_reinit AND st.pgs_id = ANY (t.tracked_by_pgs_ids))
GROUP BY t.source_relid HAVING count(c.tgname) NOT IN (2, 5)
UNION ALL
SELECT format('%s is guarded, and no stream table', tgrelid::regclass)
FROM pg_trigger
WHERE tgfoid = 'pgstream.guard_stream_table'::regproc AND tgrelid NOT IN (SELECT pgs_relid FROM st)
  AND tgrelid NOT IN (SELECT oid FROM hidden)
UNION ALL
SELECT format('stream table %s is not guarded', pgs_name)
FROM st
WHERE NOT EXISTS (SELECT FROM pg_trigger
                  WHERE tgrelid = pgs_relid AND tgfoid = 'pgstream.guard_stream_table'::regproc
                    AND tgenabled = 'A')
UNION ALL
SELECT format('refresh %s of %s runs for ever', refresh_id, pgs_id)
FROM pgstream.pgs_refresh_history WHERE status = 'RUNNING'
