-- Up to where the changes in the replication slot $1 were written into the buffers. Nothing when there
-- is no slot, or some of it is lost: the slot may be gone on without us, or be another one than it was.
SELECT (d.decoded_lsn - '0/0'::pg_lsn)::bigint
FROM pg_catalog.pg_replication_slots AS s
JOIN pgstream.pgs_decoder AS d USING (slot_name)
WHERE s.slot_name = $1
  AND s.plugin = 'pg_stream'
  AND s.database = pg_catalog.current_database()
  AND s.invalidation_reason IS NULL
  AND s.confirmed_flush_lsn <= d.decoded_lsn
