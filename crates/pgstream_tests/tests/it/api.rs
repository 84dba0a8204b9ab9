//! Functions, catalog, views, privileges, errors.

use pgstream_tests::{Comparison, Database, Session, Sessions, Watched, difference};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, g int, v int); INSERT INTO t VALUES (1, 1, 1), (2, 2, 2), (3, 1, 3)";
const TOTALS: &str = "SELECT g, count(*) AS n, sum(v) AS s FROM t GROUP BY g";

fn with_st() -> (Session, Watched, Database) {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let watched = Watched::create(&mut session, "st", TOTALS, Comparison::Text);
    (session, watched, database)
}

#[test]
fn creation_fills_the_catalog() {
    let (mut session, _watched, _database) = with_st();
    assert_eq!(
        session.value(
            "SELECT pgs_relid = 'st'::regclass, pgs_schema, pgs_name, defining_query, schedule, refresh_mode, status, is_populated, consecutive_errors,
                    data_timestamp IS NOT NULL, frontier IS NOT NULL, last_refresh_at IS NOT NULL, created_at IS NOT NULL, needs_reinit
             FROM pgstream.pgs_stream_tables"
        ),
        format!("t|public|st|{TOTALS}|1d|DIFFERENTIAL|ACTIVE|t|0|t|t|t|t|f")
    );
    assert_eq!(
        session.value("SELECT source_relid = 't'::regclass, source_type, cdc_mode FROM pgstream.pgs_dependencies"),
        "t|TABLE|TRIGGER"
    );
    assert_eq!(
        session.value("SELECT source_relid = 't'::regclass, cardinality(tracked_by_pgs_ids) FROM pgstream.pgs_change_tracking"),
        "t|1"
    );
}

#[test]
fn a_view_is_a_dependency_beside_its_tables() {
    let database = Database::new();
    let mut session = database.session();
    session.run(&format!("{TABLES}; CREATE VIEW v AS SELECT * FROM t"));
    session.create("st", "SELECT id FROM v");
    assert_eq!(
        session.rows(
            "SELECT source_relid::regclass, source_type FROM pgstream.pgs_dependencies ORDER BY 2"
        ),
        ["t|TABLE", "v|VIEW"]
    );
}

#[test]
fn status_statistics_and_history() {
    let (mut session, watched, _database) = with_st();
    assert_eq!(
        session.value("SELECT name, status, refresh_mode, is_populated, consecutive_errors, schedule, staleness >= '0' FROM pgstream.pgs_status()"),
        "public.st|ACTIVE|DIFFERENTIAL|t|0|1d|t"
    );
    session.run("INSERT INTO t VALUES (10, 1, 10), (11, 7, 7); DELETE FROM t WHERE id = 2");
    watched.refresh_and_compare(&mut session, "changes");
    assert_eq!(
        session.value(
            "SELECT action, status, rows_inserted > 0, rows_deleted > 0, duration_ms >= 0, error_message IS NULL, end_time >= start_time
             FROM pgstream.get_refresh_history('st', 1)"
        ),
        "DIFFERENTIAL|COMPLETED|t|t|t|t|t"
    );
    assert_eq!(
        session.value(
            "SELECT pgs_name, pgs_schema, status, refresh_mode, is_populated, total_refreshes >= 2, failed_refreshes, last_refresh_action, last_refresh_status, stale
             FROM pgstream.st_refresh_stats()"
        ),
        "st|public|ACTIVE|DIFFERENTIAL|t|t|0|DIFFERENTIAL|COMPLETED|f"
    );
    assert_eq!(session.value("SELECT pgstream.get_staleness('st') BETWEEN 0 AND 600"), "t");
    assert_eq!(session.value("SELECT pgs_name, stale FROM pgstream.stream_tables_info"), "st|f");
    assert_eq!(
        session.value(
            "SELECT pgs_name, last_action, failed_refreshes FROM pgstream.pg_stat_stream_tables"
        ),
        "st|DIFFERENTIAL|0"
    );
    assert_eq!(
        session.value("SELECT active, retained_wal_bytes, wal_status FROM pgstream.slot_health()"),
        "t|0|trigger"
    );
    assert_eq!(
        session
            .value("SELECT source_table, cdc_mode FROM pgstream.check_cdc_health()")
            .to_lowercase(),
        "public.t|trigger"
    );
    assert_eq!(
        session.value("SELECT count(*) FROM pgstream.pgs_refresh_history WHERE initiated_by IN ('MANUAL', 'INITIAL') AND status = 'COMPLETED'"),
        "2"
    );
}

#[test]
fn refreshes_without_changes_do_not_flood_the_history() {
    let (mut session, _watched, _database) = with_st();
    for _ in 0..50 {
        session.refresh("st");
    }
    let rows: i64 = session
        .value("SELECT count(*) FROM pgstream.pgs_refresh_history")
        .parse()
        .expect("a count");
    assert!(rows <= 3, "{rows} history rows");
}

#[test]
fn explain_shows_the_operators_the_stages_and_the_sql() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.create(
        "st",
        "SELECT a.g, a.n, t.id FROM (SELECT g, count(*) AS n FROM t GROUP BY g) a JOIN t USING (g)",
    );
    let properties = session.rows("SELECT DISTINCT property FROM pgstream.explain_st('st')");
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
        assert!(
            properties.iter().any(|it| it == property),
            "{property} is not among {properties:?}"
        );
    }
}

#[test]
fn an_uninitialized_stream_table_is_filled_by_its_first_refresh() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.run(&format!(
        "SELECT pgstream.create_stream_table('st', '{TOTALS}', initialize => false)"
    ));
    assert_eq!(session.value("SELECT count(*) FROM st"), "0");
    assert_eq!(
        session.value("SELECT status, is_populated, staleness IS NULL FROM pgstream.pgs_status()"),
        "INITIALIZING|f|t"
    );
    assert_eq!(session.value("SELECT pgstream.get_staleness('st') IS NULL"), "t");
    session.run("INSERT INTO t VALUES (10, 1, 10)");
    session.refresh("st");
    assert_eq!(session.value("SELECT status, is_populated FROM pgstream.pgs_status()"), "ACTIVE|t");
    assert_eq!(session.rows("SELECT g, n, s FROM st ORDER BY g"), ["1|3|14", "2|1|2"]);
    session.run("DELETE FROM t WHERE id = 2");
    session.refresh("st");
    assert_eq!(session.rows("SELECT g, n, s FROM st ORDER BY g"), ["1|3|14"]);
    assert_eq!(
        session.value("SELECT action FROM pgstream.get_refresh_history('st', 1)"),
        "DIFFERENTIAL"
    );
}

#[test]
fn full_mode_recomputes() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let query = "SELECT g, v, row_number() OVER (PARTITION BY g ORDER BY v) AS r FROM t";
    session.run(&format!("SELECT pgstream.create_stream_table('st', '{query}', '1d', 'full')"));
    assert_eq!(session.value("SELECT refresh_mode FROM pgstream.pgs_status()"), "FULL");
    for change in
        ["INSERT INTO t VALUES (10, 1, 2)", "UPDATE t SET g = 1", "DELETE FROM t", "TRUNCATE t"]
    {
        session.run(change);
        session.refresh("st");
        let difference = pgstream_tests::difference(&mut session, "st", query, Comparison::Text);
        assert!(difference.expect("comparable").is_none(), "after {change}");
    }
}

#[test]
fn full_mode_accepts_what_differential_mode_refuses() {
    let database = Database::new();
    let mut session = database.session();
    session.run(&format!("{TABLES}; CREATE MATERIALIZED VIEW m AS SELECT * FROM t"));
    for (number, query) in [
        "SELECT id, random() AS r FROM t",
        "SELECT id FROM m",
        "SELECT id FROM t UNION SELECT g FROM t",
    ]
    .iter()
    .enumerate()
    {
        session.run(&format!(
            "SELECT pgstream.create_stream_table('st{number}', '{query}', '1d', 'FULL')"
        ));
        session.refresh(&format!("st{number}"));
    }
}

#[test]
fn the_mode_can_be_altered() {
    let (mut session, watched, _database) = with_st();
    session.run("SELECT pgstream.alter_stream_table('st', refresh_mode => 'FULL')");
    session.run("INSERT INTO t VALUES (10, 1, 10)");
    session.refresh("st");
    watched.compare(&mut session, "a full refresh");
    assert_eq!(session.value("SELECT action FROM pgstream.get_refresh_history('st', 1)"), "FULL");
    session.run("INSERT INTO t VALUES (11, 1, 10)");
    session.run("SELECT pgstream.alter_stream_table('st', refresh_mode => 'incremental')");
    assert_eq!(session.value("SELECT refresh_mode FROM pgstream.pgs_status()"), "DIFFERENTIAL");
    session.run("UPDATE t SET v = v + 1");
    session.refresh("st");
    watched.compare(&mut session, "back to differential");
    session.run("DELETE FROM t WHERE id = 1");
    watched.refresh_and_compare(&mut session, "delete");
}

#[test]
fn schedule_and_status_can_be_altered() {
    let (mut session, _watched, _database) = with_st();
    session.run("SELECT pgstream.alter_stream_table('st', schedule => '2h')");
    assert_eq!(
        session.value("SELECT schedule, refresh_mode FROM pgstream.pgs_status()"),
        "2h|DIFFERENTIAL"
    );
    session.run("SELECT pgstream.alter_stream_table('st', schedule => 'CALCULATED')");
    assert_eq!(session.value("SELECT schedule IS NULL FROM pgstream.pgs_stream_tables"), "t");
    session.run("SELECT pgstream.alter_stream_table('st', status => 'SUSPENDED')");
    let error = session.error("SELECT pgstream.refresh_stream_table('st')");
    assert!(format!("{} {}", error.message, error.hint).contains("resume_stream_table"), "{error}");
    session.run("SELECT pgstream.resume_stream_table('st')");
    session.refresh("st");
    assert_eq!(session.value("SELECT status FROM pgstream.pgs_status()"), "ACTIVE");
}

/// What another session has committed meanwhile counts, not what was found before.
#[test]
fn who_waits_for_another_session_acts_on_what_that_leaves() {
    let (_session, _watched, database) = with_st();
    let mut s = Sessions::new(&database, &["a", "b"]);
    let mode =
        |mode: &str| format!("SELECT pgstream.alter_stream_table('st', refresh_mode => '{mode}')");
    s.run("a", &format!("BEGIN; {}", mode("FULL")));
    s.blocks("b", &mode("DIFFERENTIAL"));
    s.run("a", "COMMIT");
    s.finish("b").expect("it is altered");
    let state = "SELECT refresh_mode, status FROM pgstream.pgs_stream_tables";
    assert_eq!(s.monitor().value(state), "DIFFERENTIAL|ACTIVE");
    s.run("a", "BEGIN; SELECT pgstream.alter_stream_table('st', status => 'SUSPENDED')");
    s.blocks("b", "SELECT pgstream.resume_stream_table('st')");
    s.run("a", "COMMIT");
    s.finish("b").expect("it is resumed");
    assert_eq!(s.monitor().value(state), "DIFFERENTIAL|ACTIVE");
    s.run("a", "BEGIN; SELECT pgstream.alter_stream_table('st', status => 'SUSPENDED')");
    s.blocks("b", "SELECT pgstream.refresh_stream_table('st')");
    s.run("a", "COMMIT");
    assert_eq!(s.finish("b").expect_err("suspended").code, "55000");
    for call in [
        "alter_stream_table('gone', status => 'SUSPENDED')",
        "resume_stream_table('gone')",
        "refresh_stream_table('gone')",
        "verify_stream_table('gone')",
        "repair_stream_table('gone')",
        "drop_stream_table('gone')",
    ] {
        s.monitor().create("gone", "SELECT id FROM t");
        s.run("a", "BEGIN; SELECT pgstream.drop_stream_table('gone')");
        s.blocks("b", &format!("SELECT pgstream.{call}"));
        s.run("a", "COMMIT");
        let error = s.finish("b").expect_err("it is gone");
        let words = "stream table \"gone\" does not exist";
        assert_eq!((&*error.code, &*error.message), ("42P01", words), "{call}");
    }
    // The name is another one's, or its owner is.
    s.monitor().create("next", "SELECT g FROM t");
    let swap = "ALTER TABLE st RENAME TO old; ALTER TABLE next RENAME TO st";
    s.run("a", &format!("BEGIN; {}; {swap}", mode("FULL")));
    s.blocks("b", "SELECT pgstream.alter_stream_table('st', schedule => '7m')");
    s.run("a", "COMMIT");
    s.finish("b").expect("it is altered");
    let scheduled =
        "SELECT pgs_name, defining_query FROM pgstream.pgs_stream_tables WHERE schedule = '7m'";
    assert_eq!(s.monitor().value(scheduled), "st|SELECT g FROM t");
    let role = format!("alice_{}", database.name());
    s.run("b", &format!("CREATE ROLE {role}; GRANT SELECT ON t TO {role}; ALTER TABLE st OWNER TO {role}; SET ROLE {role}"));
    s.run(
        "a",
        "BEGIN; SELECT pgstream.refresh_stream_table('st'); ALTER TABLE st OWNER TO postgres",
    );
    s.blocks("b", "SELECT pgstream.alter_stream_table('st', schedule => '8m')");
    s.run("a", "COMMIT");
    assert_eq!(s.finish("b").expect_err("it is another one's").code, "42501");
    s.run("b", &format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn dropping_removes_everything_that_nobody_else_needs() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let objects = "SELECT nspname, count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname ~ '^(pgstream|public)' AND relkind IN ('r', 'v') GROUP BY 1 ORDER BY 1";
    let triggers = "SELECT count(*) FROM pg_trigger";
    let before = (session.rows(objects), session.rows(triggers));
    session.create(
        "st",
        "SELECT a.g, a.n, t.id FROM (SELECT g, count(*) AS n FROM t GROUP BY g) a JOIN t USING (g)",
    );
    session.create("other", TOTALS);
    session.run("SELECT pgstream.drop_stream_table('other')");
    session.run("INSERT INTO t VALUES (10, 1, 10)");
    session.refresh("st");
    assert_eq!(session.value("SELECT count(*) FROM st WHERE id = 10"), "1");
    session.run("SELECT pgstream.drop_stream_table('st')");
    assert_eq!((session.rows(objects), session.rows(triggers)), before);
    for table in ["pgs_stream_tables", "pgs_dependencies", "pgs_change_tracking"] {
        assert_eq!(
            session.value(&format!("SELECT count(*) FROM pgstream.{table}")),
            "0",
            "{table}"
        );
    }
    session.create("st", TOTALS);
    session.run("DROP TABLE st");
    assert_eq!((session.rows(objects), session.rows(triggers)), before);
    assert_eq!(session.value("SELECT count(*) FROM pgstream.pgs_stream_tables"), "0");
    session.run("INSERT INTO t VALUES (20, 1, 10)");
}

#[test]
fn the_whole_extension_can_be_dropped() {
    let (mut session, _watched, _database) = with_st();
    session.run("DROP EXTENSION pg_stream CASCADE");
    session.run("INSERT INTO t VALUES (10, 1, 10)");
    session.run("CREATE EXTENSION pg_stream");
    session.create("st2", TOTALS);
}

#[test]
fn direct_changes_are_refused() {
    let (mut session, watched, _database) = with_st();
    for sql in [
        "INSERT INTO st VALUES (9, 9, 9)",
        "UPDATE st SET n = 0",
        "DELETE FROM st",
        "TRUNCATE st",
        "MERGE INTO st USING t ON st.g = t.g WHEN MATCHED THEN DELETE",
        "COPY st (g, n, s) FROM PROGRAM 'printf ''1\\t2\\t3\\n'''",
        "WITH x AS (DELETE FROM st RETURNING *) SELECT * FROM x",
        "ALTER TABLE st DROP COLUMN n",
        "ALTER TABLE st ADD COLUMN x int",
        "ALTER TABLE st ALTER COLUMN n TYPE numeric",
    ] {
        let error = session.error(sql);
        assert!(!error.code.starts_with("XX"), "{sql}\n{error}");
        assert!(error.message.contains("st"), "{sql}\n{error}");
    }
    watched.compare(&mut session, "direct changes");
    assert!(!session.error("CREATE TABLE child (g int REFERENCES st (g))").code.starts_with("XX"));
}

#[test]
fn indexes_views_and_grants_of_a_stream_table_work() {
    let (mut session, watched, database) = with_st();
    let role = format!("reader_{}", database.name());
    session.run(&format!("CREATE INDEX ON st (s); CREATE VIEW v AS SELECT g, s FROM st; CREATE MATERIALIZED VIEW m AS SELECT * FROM st; CREATE ROLE {role}; GRANT SELECT ON st TO {role}"));
    session.run("INSERT INTO t VALUES (10, 1, 10)");
    watched.refresh_and_compare(&mut session, "insert");
    session.run(&format!("SET ROLE {role}"));
    assert_eq!(session.value("SELECT s FROM st WHERE g = 1"), "14");
    session.run("RESET ROLE; REFRESH MATERIALIZED VIEW m");
    session.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn a_unique_index_of_the_user_survives_changes_of_order() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 10) i");
    let watched = Watched::create(&mut session, "st", "SELECT id, v FROM t", Comparison::Text);
    session.run("CREATE UNIQUE INDEX ON st (id)");
    for change in [
        "UPDATE t SET v = -v",
        "DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (3, 33)",
        "UPDATE t SET id = id + 100",
    ] {
        session.run(change);
        watched.refresh_and_compare(&mut session, change);
    }
}

#[test]
fn user_triggers_see_what_really_changed() {
    let (mut session, watched, _database) = with_st();
    session.run(
        "CREATE TABLE log (id serial, op text, g int, n bigint);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO public.log (op, g, n) VALUES (TG_OP, coalesce(NEW.g, OLD.g), coalesce(NEW.n, OLD.n)); RETURN NULL; END $$;
         CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON st FOR EACH ROW EXECUTE FUNCTION note()",
    );
    session.run("INSERT INTO t VALUES (10, 1, 10), (11, 9, 1); DELETE FROM t WHERE id = 2");
    watched.refresh_and_compare(&mut session, "changes");
    assert_eq!(
        session.rows("SELECT op, g, n FROM log ORDER BY op, g"),
        ["DELETE|2|1", "INSERT|9|1", "UPDATE|1|3"]
    );
    session.run("TRUNCATE log; DELETE FROM t WHERE id = 11; INSERT INTO t VALUES (11, 9, 1); UPDATE t SET v = v");
    watched.refresh_and_compare(&mut session, "a change that cancels out");
    assert_eq!(session.rows("SELECT op, g FROM log"), [] as [&str; 0]);
}

#[test]
fn every_mode_of_capture_means_triggers_and_wal_is_told_so() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    for mode in ["trigger", "auto", "wal"] {
        session.run(&format!("SET pg_stream.cdc_mode = {mode}"));
        session.take_notices();
        session.create(mode, "SELECT id FROM t");
        let warnings = session.take_notices();
        assert_eq!(warnings.iter().any(|it| it.contains("captured by triggers")), mode == "wal");
        assert_eq!(
            session.value(
                "SELECT string_agg(DISTINCT cdc_mode, ',') FROM pgstream.check_cdc_health()"
            ),
            "TRIGGER"
        );
        assert_eq!(
            session
                .value("SELECT string_agg(DISTINCT wal_status, ',') FROM pgstream.slot_health()"),
            "trigger"
        );
    }
}

#[test]
fn a_before_trigger_may_change_the_row() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')");
    session.create("st", "SELECT id, v FROM t");
    session.run(
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.v := upper(NEW.v); RETURN NEW; END $$;
         CREATE TRIGGER shout BEFORE INSERT OR UPDATE ON st FOR EACH ROW EXECUTE FUNCTION shout()",
    );
    session.run("INSERT INTO t VALUES (2, 'b')");
    session.refresh("st");
    assert_eq!(session.rows("SELECT id, v FROM st ORDER BY id"), ["1|a", "2|B"]);
}

#[test]
fn a_failing_refresh_leaves_the_last_good_state_and_is_recorded() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let watched =
        Watched::create(&mut session, "st", "SELECT id, 10 / v AS q FROM t", Comparison::Text);
    session.run("INSERT INTO t VALUES (10, 1, 0), (11, 1, 5)");
    assert_eq!(session.error("SELECT pgstream.refresh_stream_table('st')").code, "22012");
    assert_eq!(session.value("SELECT count(*) FROM st"), "3");
    session.run("UPDATE t SET v = 2 WHERE id = 10");
    watched.refresh_and_compare(&mut session, "a repair");
}

#[test]
fn an_error_in_a_refresh_leaves_the_session_usable() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE a (id int PRIMARY KEY, k int); CREATE TABLE b (id int PRIMARY KEY, k int);
         CREATE FUNCTION f(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN IF $1 = 0 THEN RAISE 'no zero'; END IF; RETURN $1; END $$",
    );
    let query = "SELECT a.id, f(b.k) AS f FROM a JOIN b ON a.k = b.k";
    let watched = Watched::create(&mut session, "st", query, Comparison::Text);
    session.run("INSERT INTO a VALUES (1, 0), (2, 2); INSERT INTO b VALUES (1, 0), (2, 2)");
    let refresh = "SELECT pgstream.refresh_stream_table('st')";
    assert_eq!(session.error(refresh).code, "P0001");
    session.run("BEGIN; SAVEPOINT s");
    assert_eq!(session.error(refresh).code, "P0001");
    session.run("ROLLBACK TO s");
    session.run("DELETE FROM a WHERE k = 0; COMMIT");
    watched.refresh_and_compare(&mut session, "a repair");
}

#[test]
fn a_refresh_runs_as_the_owner_of_the_stream_table() {
    let database = Database::new();
    let mut session = database.session();
    let role = format!("owner_{}", database.name());
    session.run(&format!(
        "CREATE ROLE {role}; CREATE TABLE t (id int PRIMARY KEY); GRANT SELECT ON t TO {role}; CREATE SCHEMA own AUTHORIZATION {role};
         CREATE FUNCTION own.me(int) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT current_user::text'; INSERT INTO t VALUES (1)"
    ));
    session.run(&format!("SET ROLE {role}"));
    session.create("own.st", "SELECT id, own.me(id) AS me FROM public.t");
    session.run("RESET ROLE; INSERT INTO t VALUES (2)");
    session.refresh("own.st");
    assert_eq!(session.rows("SELECT DISTINCT me FROM own.st"), std::slice::from_ref(&role));
    session.run("SELECT pgstream.drop_stream_table('own.st')");
    session.run(&format!(
        "DROP TABLE t; DROP SCHEMA own CASCADE; DROP OWNED BY {role}; DROP ROLE {role}"
    ));
}

#[test]
fn names_and_arguments_are_checked() {
    let (mut session, _watched, _database) = with_st();
    for (sql, code, word) in [
        (
            "SELECT pgstream.create_stream_table('st', 'SELECT id FROM t')",
            "42P07",
            "already exists",
        ),
        ("SELECT pgstream.create_stream_table('t', 'SELECT id FROM t')", "42P07", "already exists"),
        (
            "SELECT pgstream.create_stream_table('nowhere.st2', 'SELECT id FROM t')",
            "3F000",
            "nowhere",
        ),
        ("SELECT pgstream.create_stream_table('st2', 'SELECT id FROM t', 'soon')", "22023", "soon"),
        ("SELECT pgstream.create_stream_table('st2', 'SELECT id FROM t', '1s')", "22023", "60"),
        (
            "SELECT pgstream.create_stream_table('st2', 'SELECT id FROM t', '1h', 'SOMETIMES')",
            "22023",
            "SOMETIMES",
        ),
        ("SELECT pgstream.create_stream_table('st2', 'SELECT nothing FROM t')", "42703", "nothing"),
        (
            "SELECT pgstream.create_stream_table('st2', 'SELECT id FROM missing')",
            "42P01",
            "missing",
        ),
        ("SELECT pgstream.create_stream_table('st2', 'SELEC id FROM t')", "42601", "SELEC"),
        ("SELECT pgstream.create_stream_table('st2', 'SELECT id, id FROM t')", "42701", "id"),
        ("SELECT pgstream.refresh_stream_table('missing')", "42P01", "missing"),
        ("SELECT pgstream.refresh_stream_table('t')", "", "t"),
        ("SELECT pgstream.drop_stream_table('missing')", "42P01", "missing"),
        ("SELECT pgstream.alter_stream_table('st', status => 'ASLEEP')", "22023", "ASLEEP"),
        (
            "SELECT pgstream.alter_stream_table('st', schedule => 'never ever')",
            "22023",
            "never ever",
        ),
        (
            "SELECT pgstream.alter_stream_table('st', schedule => '100000w')",
            "22023",
            "a hundred years",
        ),
        (
            "SELECT pgstream.alter_stream_table('st', schedule => '0 0 30 2 *')",
            "22023",
            "never fires",
        ),
        (
            "SELECT pgstream.create_stream_table('pgstream.st2', 'SELECT id FROM t')",
            "42939",
            "pgstream",
        ),
        (
            "SELECT pgstream.create_stream_table('information_schema.st2', 'SELECT id FROM t')",
            "42939",
            "information_schema",
        ),
    ] {
        let error = session.error(sql);
        assert!(code.is_empty() || error.code == code, "{sql}\nexpected {code}: {error}");
        assert!(error.to_string().contains(word), "{sql}\nexpected {word}: {error}");
    }
}

#[test]
fn a_pattern_may_fire_more_often_than_a_duration_may_pass() {
    let (mut session, _watched, _database) = with_st();
    assert_eq!(session.value("SHOW pg_stream.min_schedule_seconds"), "60");
    let alter = |it: &str| format!("SELECT pgstream.alter_stream_table('st', schedule => '{it}')");
    session.run(&alter("*/10 * * * * *"));
    assert_eq!(session.error(&alter("10s")).code, "22023");
    let schedule = "SELECT schedule FROM pgstream.pgs_stream_tables";
    assert_eq!(session.value(schedule), "*/10 * * * * *");
}

/// As a dump sets it, and whoever reads what others have made.
#[test]
fn a_session_may_keep_itself_from_reading_views() {
    let (mut session, _watched, _database) = with_st();
    session.run("CREATE VIEW w AS SELECT id FROM t; SET restrict_nonsystem_relation_kind = 'view'");
    session.run("INSERT INTO t VALUES (4, 4, 4)");
    session.refresh("st");
    session.run("SELECT pgstream.alter_stream_table('st', refresh_mode => 'FULL')");
    session.refresh("st");
    session.run("SELECT pgstream.repair_stream_table('st')");
    assert_eq!(session.rows("SELECT * FROM pgstream.verify_stream_table('st')"), [""; 0]);
    assert_eq!(session.value("SELECT count(*) FROM st"), "3");
    assert_eq!(session.value("SHOW restrict_nonsystem_relation_kind"), "view");
    assert_eq!(session.error("SELECT * FROM w").code, "55000");
}

#[test]
fn durations_are_parsed() {
    let database = Database::new();
    let mut session = database.session();
    assert_eq!(
        session.rows("SELECT i, pgstream.parse_duration_seconds(i) FROM unnest(ARRAY['90', '1m', '1h30m', '2d', '1w', '10s', 'x', '', '1x', '5 m']) WITH ORDINALITY AS u (i, n) ORDER BY n")[..7],
        ["90|90", "1m|60", "1h30m|5400", "2d|172800", "1w|604800", "10s|10", "x|NULL"]
    );
}

#[test]
fn settings_have_their_defaults_and_check_their_values() {
    let database = Database::new();
    let mut session = database.session();
    for (name, value) in [
        ("scheduler_interval_ms", "1000"),
        ("min_schedule_seconds", "60"),
        ("max_consecutive_errors", "3"),
        ("change_buffer_schema", "pgstream_changes"),
        ("max_concurrent_refreshes", "4"),
        ("cleanup_use_truncate", "on"),
        ("merge_work_mem_mb", "64"),
        ("user_triggers", "auto"),
        ("block_source_ddl", "off"),
        ("cdc_mode", "trigger"),
        ("wal_transition_timeout", "300"),
    ] {
        assert_eq!(session.value(&format!("SHOW pg_stream.{name}")), value, "{name}");
    }
    session.error("SET pg_stream.cdc_mode = 'magic'");
    session.error("SET pg_stream.min_schedule_seconds = 0");
    let role = format!("ordinary_{}", database.name());
    session.run(&format!("CREATE ROLE {role}; SET ROLE {role}"));
    assert_eq!(session.error("SET pg_stream.min_schedule_seconds = 1").code, "42501");
    session.run(&format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn a_before_trigger_may_change_what_is_stored() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE t (id int PRIMARY KEY, g int, v int);
         CREATE FUNCTION tenfold() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v := NEW.v * 10; RETURN NEW; END'",
    );
    session.create("plain", "SELECT id, v FROM t");
    session.create("copies", "SELECT g, v FROM t UNION ALL SELECT g, v FROM t");
    session.create("groups", "SELECT g, sum(v) AS v FROM t GROUP BY g");
    session.run(
        "CREATE TRIGGER a BEFORE INSERT OR UPDATE ON plain FOR EACH ROW EXECUTE FUNCTION tenfold();
         CREATE TRIGGER a BEFORE INSERT OR UPDATE ON copies FOR EACH ROW EXECUTE FUNCTION tenfold();
         CREATE TRIGGER a BEFORE INSERT OR UPDATE ON groups FOR EACH ROW EXECUTE FUNCTION tenfold()",
    );
    for change in [
        "INSERT INTO t VALUES (1, 1, 1), (2, 1, 2), (3, 2, 3)",
        "UPDATE t SET v = v + 1",
        "DELETE FROM t WHERE id = 1",
        "INSERT INTO t VALUES (4, 2, 7); DELETE FROM t WHERE id = 3",
    ] {
        session.run(change);
        for (name, query) in [
            ("plain", "SELECT id, v * 10 AS v FROM t"),
            ("copies", "SELECT g, v * 10 AS v FROM t UNION ALL SELECT g, v * 10 FROM t"),
            ("groups", "SELECT g, sum(v) * 10 AS v FROM t GROUP BY g"),
        ] {
            session.refresh(name);
            let difference =
                difference(&mut session, name, query, Comparison::Text).expect("comparable");
            assert!(difference.is_none(), "{change}: {}", difference.expect("some"));
        }
    }
}

/// Creation warns where ties leave the result open, and nowhere else.
#[test]
fn creation_warns_of_results_that_are_left_open() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, g int, v int); CREATE TABLE u (a int, b int, PRIMARY KEY (a, b)); CREATE TABLE bag (x int, y int)");
    let mut warned = |query: &str| {
        session.run("SELECT pgstream.drop_stream_table(pgs_schema || '.' || pgs_name) FROM pgstream.pgs_stream_tables");
        session.take_notices();
        session.create("st", query);
        session.take_notices().iter().any(|it| it.contains("leaves open"))
    };
    for open in [
        "SELECT * FROM (SELECT id FROM t ORDER BY v LIMIT 3) x",
        "SELECT * FROM (SELECT id FROM t LIMIT 3) x",
        "SELECT * FROM (SELECT id FROM t ORDER BY v OFFSET 3) x",
        "SELECT DISTINCT ON (g) g, v, id FROM t ORDER BY g, v",
        "SELECT id, row_number() OVER (PARTITION BY g ORDER BY v) AS n FROM t",
        "SELECT id, first_value(id) OVER (ORDER BY v) AS f FROM t",
        "SELECT id, sum(v) OVER (ORDER BY v ROWS 1 PRECEDING) AS s FROM t",
        "SELECT g, array_agg(v) AS a FROM t GROUP BY g",
        "SELECT g, string_agg(id::text, ',' ORDER BY v) AS a FROM t GROUP BY g",
        "SELECT g, jsonb_object_agg(v, id) AS a FROM t GROUP BY g",
        "SELECT g, any_value(v) AS a FROM t GROUP BY g",
        "SELECT t.id, x.b FROM t LEFT JOIN LATERAL (SELECT b FROM u WHERE u.a = t.g ORDER BY u.a LIMIT 1) x ON true",
    ] {
        assert!(warned(open), "no warning for {open}");
    }
    for determined in [
        "SELECT * FROM (SELECT id FROM t ORDER BY v, id LIMIT 3) x",
        "SELECT * FROM (SELECT x, y FROM bag ORDER BY y, x LIMIT 3) x",
        "SELECT * FROM (SELECT v FROM t ORDER BY v LIMIT 3) x",
        "SELECT * FROM (SELECT id FROM t ORDER BY v FETCH FIRST 3 ROWS WITH TIES) x",
        "SELECT * FROM (SELECT b FROM u WHERE a = 7 ORDER BY b LIMIT 3) x",
        "SELECT * FROM (SELECT t.id, u.b FROM t JOIN u ON u.a = t.g AND u.b = t.v ORDER BY t.id LIMIT 3) x",
        "SELECT DISTINCT ON (g) g, v, id FROM t ORDER BY g, v, id",
        "SELECT id, row_number() OVER (PARTITION BY g ORDER BY v, id) AS n, rank() OVER (ORDER BY v) AS r FROM t",
        "SELECT g, row_number() OVER (ORDER BY count(*), g) AS n FROM t GROUP BY g",
        "SELECT g, array_agg(v ORDER BY v) AS a, array_agg(DISTINCT v) AS d, string_agg(v::text, ',' ORDER BY id) AS s FROM t GROUP BY g",
        "SELECT g, jsonb_object_agg(id, v) AS a, mode() WITHIN GROUP (ORDER BY v) AS m FROM t GROUP BY g",
        "SELECT t.id, x.b FROM t LEFT JOIN LATERAL (SELECT b FROM u WHERE u.a = t.g ORDER BY u.b LIMIT 1) x ON true",
        "SELECT t.*, (SELECT string_agg(b::text, ',' ORDER BY b) FROM u WHERE u.a = t.g) AS bs FROM t",
    ] {
        assert!(!warned(determined), "a false alarm for {determined}");
    }
}
