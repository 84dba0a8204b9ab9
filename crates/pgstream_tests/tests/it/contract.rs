//! The public surface as the catalog shows it: names, types, defaults.

use pgstream_tests::{Database, Session};

fn session() -> (Session, Database) {
    let database = Database::new();
    (database.session(), database)
}

#[test]
fn functions_have_their_arguments_and_results() {
    let (mut session, _database) = session();
    for (name, arguments, result) in [
        (
            "create_stream_table",
            "name text, query text, schedule text DEFAULT '1m'::text, refresh_mode text DEFAULT 'DIFFERENTIAL'::text, initialize boolean DEFAULT true",
            "void",
        ),
        (
            "alter_stream_table",
            "name text, schedule text DEFAULT NULL::text, refresh_mode text DEFAULT NULL::text, status text DEFAULT NULL::text",
            "void",
        ),
        ("drop_stream_table", "name text", "void"),
        ("refresh_stream_table", "name text", "void"),
        ("resume_stream_table", "name text", "void"),
        (
            "pgs_status",
            "",
            "TABLE(name text, status text, refresh_mode text, is_populated boolean, consecutive_errors integer, schedule text, data_timestamp timestamp with time zone, staleness interval)",
        ),
        (
            "st_refresh_stats",
            "",
            "TABLE(pgs_name text, pgs_schema text, status text, refresh_mode text, is_populated boolean, total_refreshes bigint, successful_refreshes bigint, failed_refreshes bigint, total_rows_inserted bigint, total_rows_deleted bigint, avg_duration_ms double precision, last_refresh_action text, last_refresh_status text, last_refresh_at timestamp with time zone, staleness_secs double precision, stale boolean)",
        ),
        (
            "get_refresh_history",
            "name text, max_rows integer DEFAULT 20",
            "TABLE(refresh_id bigint, data_timestamp timestamp with time zone, start_time timestamp with time zone, end_time timestamp with time zone, action text, status text, rows_inserted bigint, rows_deleted bigint, duration_ms double precision, error_message text)",
        ),
        ("get_staleness", "name text", "double precision"),
        (
            "slot_health",
            "",
            "TABLE(slot_name text, source_relid bigint, active boolean, retained_wal_bytes bigint, wal_status text)",
        ),
        (
            "check_cdc_health",
            "",
            "TABLE(source_relid bigint, source_table text, cdc_mode text, slot_name text, lag_bytes bigint, confirmed_lsn text, alert text)",
        ),
        ("explain_st", "name text", "TABLE(property text, value text)"),
        ("parse_duration_seconds", "input text", "bigint"),
    ] {
        let found = session.value(&format!(
            "SELECT pg_get_function_arguments(oid), pg_get_function_result(oid) FROM pg_proc
             WHERE pronamespace = 'pgstream'::regnamespace AND proname = '{name}'"
        ));
        assert_eq!(found, format!("{arguments}|{result}"), "{name}");
    }
    assert_eq!(
        session.value("SELECT provolatile FROM pg_proc WHERE proname = 'parse_duration_seconds'"),
        "i"
    );
}

#[test]
fn relations_have_their_columns() {
    let (mut session, _database) = session();
    let mut columns = |name: &str| {
        session.rows(&format!(
            "SELECT attname || ' ' || format_type(atttypid, atttypmod) FROM pg_attribute
             WHERE attrelid = 'pgstream.{name}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        ))
    };
    let stream_tables = columns("pgs_stream_tables");
    for column in [
        "pgs_id bigint",
        "pgs_relid oid",
        "pgs_name text",
        "pgs_schema text",
        "defining_query text",
        "schedule text",
        "refresh_mode text",
        "status text",
        "is_populated boolean",
        "data_timestamp timestamp with time zone",
        "frontier jsonb",
        "last_refresh_at timestamp with time zone",
        "consecutive_errors integer",
        "needs_reinit boolean",
        "last_full_ms double precision",
        "functions_used text[]",
        "created_at timestamp with time zone",
        "updated_at timestamp with time zone",
    ] {
        assert!(stream_tables.iter().any(|it| it == column), "{column}: {stream_tables:?}");
    }
    let mut info = stream_tables;
    info.extend(["staleness interval".to_owned(), "stale boolean".to_owned()]);
    assert_eq!(columns("stream_tables_info"), info);
    assert_eq!(
        columns("pgs_dependencies"),
        [
            "pgs_id bigint",
            "source_relid oid",
            "source_type text",
            "columns_used text[]",
            "column_snapshot jsonb",
            "cdc_mode text",
            "slot_name text",
            "decoder_confirmed_lsn pg_lsn",
            "transition_started_at timestamp with time zone",
        ]
    );
    assert_eq!(
        columns("pgs_refresh_history"),
        [
            "refresh_id bigint",
            "pgs_id bigint",
            "data_timestamp timestamp with time zone",
            "start_time timestamp with time zone",
            "end_time timestamp with time zone",
            "action text",
            "rows_inserted bigint",
            "rows_updated bigint",
            "rows_deleted bigint",
            "error_message text",
            "status text",
            "initiated_by text",
            "freshness_deadline timestamp with time zone",
        ]
    );
    assert_eq!(
        columns("pgs_change_tracking")[..3],
        ["source_relid oid", "slot_name text", "tracked_by_pgs_ids bigint[]"]
    );
    assert_eq!(
        columns("pg_stat_stream_tables"),
        [
            "pgs_id bigint",
            "pgs_schema text",
            "pgs_name text",
            "status text",
            "refresh_mode text",
            "is_populated boolean",
            "data_timestamp timestamp with time zone",
            "schedule text",
            "staleness interval",
            "stale boolean",
            "consecutive_errors integer",
            "needs_reinit boolean",
            "last_refresh_at timestamp with time zone",
            "total_refreshes bigint",
            "successful_refreshes bigint",
            "failed_refreshes bigint",
            "total_rows_inserted bigint",
            "total_rows_deleted bigint",
            "avg_duration_ms double precision",
            "last_action text",
            "last_status text",
        ]
    );
}

#[test]
fn explain_lists_every_property_in_both_modes() {
    let (mut session, _database) = session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, g int)");
    for mode in ["DIFFERENTIAL", "FULL"] {
        session.run(&format!(
            "SELECT pgstream.create_stream_table('st_{mode}', 'SELECT g, count(*) AS n FROM t GROUP BY g', '1d', '{mode}')"
        ));
        let properties =
            session.rows(&format!("SELECT property FROM pgstream.explain_st('st_{mode}')"));
        for property in [
            "pgs_name",
            "defining_query",
            "refresh_mode",
            "status",
            "is_populated",
            "dvm_supported",
            "operator_tree",
            "output_columns",
            "source_oids",
            "delta_query",
            "frontier",
        ] {
            let count = properties.iter().filter(|it| *it == property).count();
            assert_eq!(count, 1, "{mode}: {property} in {properties:?}");
        }
    }
}

#[test]
fn settings_have_their_ranges() {
    let (mut session, _database) = session();
    for (name, default, minimum, maximum) in [
        ("scheduler_interval_ms", "1000", "100", "60000"),
        ("min_schedule_seconds", "60", "1", "86400"),
        ("max_consecutive_errors", "3", "1", "100"),
        ("max_concurrent_refreshes", "4", "1", "32"),
        ("differential_max_change_ratio", "0.15", "0", "1"),
        ("wal_transition_timeout", "300", "10", "3600"),
        ("buffer_warning_mb", "256", "0", "1048576"),
        ("buffer_limit_mb", "1024", "0", "1048576"),
    ] {
        assert_eq!(
            session.value(&format!(
                "SELECT boot_val, min_val, max_val, context, unit FROM pg_settings WHERE name = 'pg_stream.{name}'"
            )),
            format!("{default}|{minimum}|{maximum}|superuser|NULL"),
            "{name}"
        );
    }
    for (name, values) in [
        ("cdc_mode", "{trigger,auto,wal}"),
        ("user_triggers", "{auto,on,off}"),
        ("inject_fault_action", "{error,crash,wait}"),
    ] {
        assert_eq!(
            session.value(&format!(
                "SELECT enumvals, context FROM pg_settings WHERE name = 'pg_stream.{name}'"
            )),
            format!("{values}|superuser")
        );
        assert_eq!(session.error(&format!("SET pg_stream.{name} = 'sometimes'")).code, "22023");
    }
}

/// The counters are what one gets by adding up the history, and survive failures.
#[test]
fn statistics_add_up() {
    let (mut session, _database) = session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, g int); INSERT INTO t SELECT i, i % 2 FROM generate_series(1, 10) i");
    session.create("st", "SELECT g, count(*) AS n, 10 / min(id) AS q FROM t GROUP BY g");
    session.run("INSERT INTO t VALUES (100, 5), (101, 6)");
    session.refresh("st");
    session.refresh("st");
    session.run("DELETE FROM t WHERE g = 5; UPDATE t SET id = id + 1000 WHERE g = 1");
    session.refresh("st");
    session.run("INSERT INTO t VALUES (0, 7)");
    session.error("SELECT pgstream.refresh_stream_table('st')");
    // As the scheduler records it.
    session.run(
        "INSERT INTO pgstream.pgs_refresh_history (pgs_id, start_time, end_time, action, status, error_message, initiated_by)
         SELECT pgs_id, now(), now() + interval '1 s', 'DIFFERENTIAL', 'FAILED', 'division by zero', 'SCHEDULER' FROM pgstream.pgs_stream_tables",
    );
    assert_eq!(
        session.rows(
            "SELECT action, status, rows_inserted, rows_deleted, error_message, duration_ms >= 0 FROM pgstream.get_refresh_history('st')"
        ),
        [
            "DIFFERENTIAL|FAILED|0|0|division by zero|t",
            "DIFFERENTIAL|COMPLETED|0|1|NULL|t",
            "DIFFERENTIAL|COMPLETED|2|0|NULL|t",
            "FULL|COMPLETED|2|0|NULL|t",
        ]
    );
    assert_eq!(session.value("SELECT count(*) FROM pgstream.get_refresh_history('st', 2)"), "2");
    assert_eq!(
        session.value(
            "SELECT total_refreshes, successful_refreshes, failed_refreshes, total_rows_inserted, total_rows_deleted,
                    avg_duration_ms BETWEEN 0 AND 900, last_refresh_action, last_refresh_status FROM pgstream.st_refresh_stats()"
        ),
        "4|3|1|4|1|t|DIFFERENTIAL|FAILED"
    );
    assert_eq!(
        session.value(
            "SELECT total_refreshes, successful_refreshes, failed_refreshes, total_rows_inserted, total_rows_deleted,
                    last_action, last_status FROM pgstream.pg_stat_stream_tables"
        ),
        "4|3|1|4|1|DIFFERENTIAL|FAILED"
    );
    session.run("UPDATE pgstream.pgs_stream_tables SET schedule = '10s', data_timestamp = now() - interval '1 min'");
    assert_eq!(
        session.value(
            "SELECT s.stale, i.stale, p.stale, round(pgstream.get_staleness('st')), round(s.staleness_secs), date_trunc('minute', i.staleness), date_trunc('minute', q.staleness)
             FROM pgstream.st_refresh_stats() s, pgstream.stream_tables_info i, pgstream.pg_stat_stream_tables p, pgstream.pgs_status() q"
        ),
        "t|t|t|60|60|00:01:00|00:01:00"
    );
}

#[test]
fn the_health_of_capture_is_shown() {
    let (mut session, _database) = session();
    session.run("CREATE TABLE t (id int PRIMARY KEY)");
    session.create("st", "SELECT count(*) AS n FROM t");
    let oid = session.value("SELECT 't'::regclass::oid");
    assert_eq!(
        session.value("SELECT * FROM pgstream.slot_health()"),
        format!("pg_stream_cdc_{oid}|{oid}|t|0|trigger")
    );
    let health = "SELECT * FROM pgstream.check_cdc_health()";
    assert_eq!(
        session.value(health),
        format!("{oid}|public.t|TRIGGER|pg_stream_cdc_{oid}|0|NULL|NULL")
    );
    session.run(&format!(
        "SET allow_system_table_mods = on; UPDATE pg_trigger SET tgenabled = 'D' WHERE tgname = 'pg_stream_cdc_{oid}'"
    ));
    assert!(session.value(health).ends_with("capture triggers are disabled"));
}
