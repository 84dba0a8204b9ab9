-- A digest of the tables $1 that hold a stream table's rows and state, of the triggers that keep
-- others from writing to them, and of those that capture the changes of its sources $2. Whoever
-- switches one of them off and on again leaves another version of its catalog row. Those on the children
-- and partitions of a source come and go with these: capture notes them, and whoever finds others first
-- counts that as a surprise, by which everybody else learns of it.
SELECT md5((SELECT string_agg(concat_ws(' ', oid, xmin, tgenabled), ',' ORDER BY oid)
            FROM pg_trigger
            WHERE tgrelid = ANY ($1) AND tgfoid = 'pgstream.guard_stream_table()'::regprocedure
               OR tgrelid = ANY ($2) AND tgfoid = 'pgstream.capture()'::regprocedure
              AND encode(tgargs, 'escape') = tgrelid::text || '\000')
           || ';' ||
           (SELECT string_agg(concat_ws(' ', attrelid, attnum, attname, atttypid), ','
                              ORDER BY attrelid, attnum)
            FROM pg_attribute
            WHERE attrelid = ANY ($1) AND attnum > 0 AND NOT attisdropped)
           ||
           (SELECT coalesce(string_agg(concat_ws(' ', ';', source_relid, surprises), ''
                                       ORDER BY source_relid), '')
            FROM pgstream.pgs_change_tracking
            WHERE source_relid = ANY ($2) AND surprises > 0))
