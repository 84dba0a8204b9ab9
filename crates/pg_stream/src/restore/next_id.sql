-- A number beyond those of all stream tables and of the history, also of what is just being restored.
SELECT pg_catalog.setval(
    'pgstream.pgs_stream_tables_pgs_id_seq',
    greatest(pg_catalog.nextval('pgstream.pgs_stream_tables_pgs_id_seq'),
             (SELECT max(pgs_id) + 1 FROM pgstream.pgs_stream_tables),
             (SELECT max(pgs_id) + 1 FROM pgstream.pgs_refresh_history)))
