-- A number beyond those of all stream tables, of the history, and of the hidden views, also of what is just
-- being restored.
SELECT pg_catalog.setval(
    'pgstream.pgs_stream_tables_pgs_id_seq',
    greatest(pg_catalog.nextval('pgstream.pgs_stream_tables_pgs_id_seq'),
             (SELECT max(pgs_id) + 1 FROM pgstream.pgs_stream_tables),
             (SELECT max(pgs_id) + 1 FROM pgstream.pgs_refresh_history),
             (SELECT max(pg_catalog.substring(relname::text, '^query_([0-9]{1,18})$')::bigint) + 1
              FROM pg_catalog.pg_class
              WHERE relnamespace = 'pgstream_state'::pg_catalog.regnamespace AND relkind = 'v')))
