-- Whether $1, a hidden stage or a change buffer, has become what it must not be, by a command of this
-- transaction. Where and how it lies on disk is the user's business.
SELECT CASE WHEN c.oid IN (SELECT buffer_relid FROM pgstream.pgs_change_tracking)
            THEN NOT (SELECT r.rolsuper FROM pg_catalog.pg_namespace AS n
                      JOIN pg_catalog.pg_roles AS r ON r.oid = n.nspowner WHERE n.oid = c.relnamespace)
            ELSE c.relnamespace <> 'pgstream_state'::regnamespace OR c.relname !~ '^stage_[0-9]+_[0-9]+$' END
    OR c.reloftype <> 0 OR c.relpersistence <> 'p' OR c.relispartition OR c.relchecks > 0 OR c.relhasrules
    OR c.relrowsecurity
    OR EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE c.oid IN (inhrelid, inhparent))
    OR EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conrelid = c.oid AND contype <> 'n')
    OR EXISTS (SELECT FROM pg_catalog.pg_trigger
               WHERE tgrelid = c.oid AND (tgname, tgenabled) <> ('pg_stream_guard', 'A'))
    OR EXISTS (SELECT FROM pg_catalog.pg_attribute
               WHERE attrelid = c.oid AND attnum > 0 AND age(xmin) <= 0)
FROM pg_catalog.pg_class AS c
WHERE c.oid = $1
