-- The catalog: what stream tables exist, what they read, and how their refreshes went.

-- What is not qualified below must not be found where others can put objects.
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
-- Rows of the catalog are written without SQL.
SELECT pg_catalog.set_config('default_table_access_method', 'heap', true);

-- CREATE SCHEMA is spelled out instead of `schema = pgstream` in the control file, because the
-- extension has several schemas.
CREATE SCHEMA pgstream;
CREATE SCHEMA pgstream_changes;
CREATE SCHEMA pgstream_state;
GRANT USAGE ON SCHEMA pgstream, pgstream_state TO PUBLIC;
COMMENT ON SCHEMA pgstream IS 'stream tables: functions, catalog and views';
COMMENT ON SCHEMA pgstream_changes IS 'stream tables: changes of their sources that were not yet applied';
COMMENT ON SCHEMA pgstream_state IS 'stream tables: defining queries and hidden state';

-- Without CHECK constraints: PostgreSQL parses them anew for every statement that writes a row, and a
-- refresh writes one here and one in the history.
CREATE TABLE pgstream.pgs_stream_tables (
    pgs_id             bigserial PRIMARY KEY,
    pgs_relid          oid UNIQUE,
    pgs_name           text NOT NULL,
    pgs_schema         text NOT NULL,
    defining_query     text NOT NULL,
    schedule           text,
    refresh_mode       text NOT NULL, -- FULL, DIFFERENTIAL
    -- INITIALIZING, ACTIVE, SUSPENDED, ERROR
    status             text NOT NULL DEFAULT 'INITIALIZING',
    is_populated       bool NOT NULL DEFAULT false,
    data_timestamp     timestamptz,
    frontier           jsonb,
    last_refresh_at    timestamptz,
    consecutive_errors int NOT NULL DEFAULT 0,
    needs_reinit       bool NOT NULL DEFAULT false,
    last_full_ms       float8,
    functions_used     text[],
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    -- Since when it has its schedule: a cron pattern does not fire for times before.
    scheduled_at       timestamptz NOT NULL DEFAULT now(),
    -- Why the status is ERROR or SUSPENDED.
    error_message      text,
    -- How many of the consecutive errors are its own fault. Means nothing beside 0 of them.
    own_errors         int NOT NULL DEFAULT 0,
    -- Whether an alert has told that its data is stale, and it is not known to be fresh again.
    told_stale         bool NOT NULL DEFAULT false,
    -- Why it needs to be rebuilt.
    reinit_reason      text,
    -- What was consumed of the sources' changes: one snapshot for all of them.
    consumed           text,
    -- The hidden view that holds the defining query, so that it survives renames.
    view_relid         oid UNIQUE,
    -- What the storage was laid out for.
    fingerprint        text,
    -- Digest of the triggers that protect it: see src/refresh/seal.rs.
    seal               text,
    -- Settings that functions and conversions follow, as they were at creation: the result must not depend
    -- on who refreshes. Names and values alternate.
    settings           text[] NOT NULL DEFAULT ARRAY[
        'TimeZone', pg_catalog.current_setting('TimeZone'),
        'DateStyle', pg_catalog.current_setting('DateStyle'),
        'IntervalStyle', pg_catalog.current_setting('IntervalStyle'),
        'extra_float_digits', pg_catalog.current_setting('extra_float_digits'),
        'bytea_output', pg_catalog.current_setting('bytea_output'),
        'timezone_abbreviations', pg_catalog.current_setting('timezone_abbreviations'),
        'transform_null_equals', pg_catalog.current_setting('transform_null_equals'),
        'xmloption', pg_catalog.current_setting('xmloption'),
        'xmlbinary', pg_catalog.current_setting('xmlbinary'),
        'lc_monetary', pg_catalog.current_setting('lc_monetary'),
        'lc_numeric', pg_catalog.current_setting('lc_numeric'),
        'lc_time', pg_catalog.current_setting('lc_time'),
        'default_text_search_config', pg_catalog.current_setting('default_text_search_config')
    ],
    UNIQUE (pgs_schema, pgs_name)
) WITH (fillfactor = 50);

CREATE TABLE pgstream.pgs_dependencies (
    pgs_id                bigint NOT NULL REFERENCES pgstream.pgs_stream_tables ON DELETE CASCADE,
    source_relid          oid NOT NULL,
    source_type           text NOT NULL CHECK
                          (source_type IN ('TABLE', 'STREAM_TABLE', 'VIEW', 'MATVIEW', 'FOREIGN_TABLE')),
    columns_used          text[],
    column_snapshot       jsonb,
    cdc_mode              text NOT NULL DEFAULT 'TRIGGER'
                          CHECK (cdc_mode IN ('TRIGGER', 'TRANSITIONING', 'WAL')),
    slot_name             text,
    decoder_confirmed_lsn pg_lsn,
    transition_started_at timestamptz,
    PRIMARY KEY (pgs_id, source_relid)
);
CREATE INDEX ON pgstream.pgs_dependencies (source_relid);

CREATE TABLE pgstream.pgs_refresh_history (
    refresh_id         bigserial PRIMARY KEY,
    -- Not a foreign key: the history of a dropped table stays until it is pruned.
    pgs_id             bigint NOT NULL,
    data_timestamp     timestamptz,
    start_time         timestamptz NOT NULL,
    end_time           timestamptz,
    action             text NOT NULL, -- NO_DATA, FULL, DIFFERENTIAL, REINITIALIZE, SKIP
    rows_inserted      bigint NOT NULL DEFAULT 0,
    rows_updated       bigint NOT NULL DEFAULT 0,
    rows_deleted       bigint NOT NULL DEFAULT 0,
    error_message      text,
    status             text NOT NULL, -- RUNNING, COMPLETED, FAILED, SKIPPED
    initiated_by       text NOT NULL, -- SCHEDULER, MANUAL, INITIAL
    freshness_deadline timestamptz -- when the next one is due by its own schedule
);
CREATE INDEX ON pgstream.pgs_refresh_history (pgs_id, refresh_id);

GRANT SELECT ON pgstream.pgs_stream_tables, pgstream.pgs_dependencies, pgstream.pgs_refresh_history
TO PUBLIC;

-- Whoever may dump the tables needs these too.
GRANT SELECT ON SEQUENCE pgstream.pgs_stream_tables_pgs_id_seq,
    pgstream.pgs_refresh_history_refresh_id_seq TO PUBLIC;

-- What only has a meaning together with the OIDs of one database is not dumped.
SELECT pg_catalog.pg_extension_config_dump('pgstream.pgs_stream_tables', '');
SELECT pg_catalog.pg_extension_config_dump('pgstream.pgs_stream_tables_pgs_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('pgstream.pgs_refresh_history', '');
SELECT pg_catalog.pg_extension_config_dump('pgstream.pgs_refresh_history_refresh_id_seq', '');
