//! Refreshes that fail for reasons of the world: the query, privileges, limits, full disks, other
//! sessions. The table stays at its last good state and the next refresh is right.

use std::{
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    process::Command,
};

use pgstream_tests::{
    Comparison, Database, REFRESH, Server, Session, Sessions, Step, Watched, difference,
};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, g int, v int); INSERT INTO t SELECT i, i % 3, i FROM generate_series(1, 30) i";
const QUERY: &str = "SELECT g, count(*) AS n, sum(v) AS s FROM t GROUP BY g";

fn with_st(query: &str) -> (Session, Watched, Database) {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let watched = Watched::create(&mut session, "st", query, Comparison::Text);
    (session, watched, database)
}

/// A refresh that fails again and again, then succeeds.
#[track_caller]
fn fails_and_recovers(query: &str, breaking: &str, code: &str, repair: &str) {
    let (mut session, watched, _database) = with_st(query);
    let before = session.rows("SELECT * FROM st ORDER BY 1, 2");
    session.run(breaking);
    for _ in 0..3 {
        let error = session.error(REFRESH);
        assert_eq!(error.code, code, "{error}");
        assert_eq!(session.rows("SELECT * FROM st ORDER BY 1, 2"), before);
    }
    session.run(repair);
    session.run("UPDATE t SET v = v + 1 WHERE id < 5");
    watched.refresh_and_compare(&mut session, repair);
}

#[test]
fn the_query_divides_by_zero_later() {
    fails_and_recovers(
        "SELECT id, 100 / v AS q FROM t",
        "INSERT INTO t VALUES (100, 1, 0), (101, 1, 4)",
        "22012",
        "UPDATE t SET v = 1 WHERE v = 0",
    );
    fails_and_recovers(
        "SELECT g, 100 / sum(v) AS q FROM t GROUP BY g",
        "INSERT INTO t VALUES (100, 7, 0)",
        "22012",
        "DELETE FROM t WHERE g = 7",
    );
}

#[test]
fn the_sum_overflows_later() {
    fails_and_recovers(
        "SELECT g, sum(v::bigint)::int AS s FROM t GROUP BY g",
        "INSERT INTO t VALUES (100, 1, 2147483647), (101, 1, 2147483647)",
        "22003",
        "DELETE FROM t WHERE id >= 100",
    );
}

#[test]
fn a_constraint_of_the_user_is_broken_later() {
    let (mut session, watched, _database) = with_st("SELECT id, g FROM t");
    session.run("CREATE UNIQUE INDEX ON st (id); ALTER TABLE st ADD CHECK (g < 10)");
    session.run("INSERT INTO t VALUES (100, 50, 1), (101, 1, 1)");
    assert_eq!(session.error(REFRESH).code, "23514");
    assert_eq!(session.value("SELECT count(*) FROM st"), "30");
    session.run("UPDATE t SET g = 5 WHERE id = 100");
    watched.refresh_and_compare(&mut session, "repair");
}

#[test]
fn a_trigger_of_the_user_fails() {
    let (mut session, watched, _database) = with_st("SELECT id, g FROM t");
    session.run(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
         CREATE TRIGGER no AFTER INSERT ON st FOR EACH ROW EXECUTE FUNCTION no()",
    );
    session.run("INSERT INTO t VALUES (100, 1, 1); DELETE FROM t WHERE id = 1");
    assert_eq!(session.error(REFRESH).code, "P0001");
    assert_eq!(session.value("SELECT count(*), min(id) FROM st"), "30|1");
    session.run("DROP TRIGGER no ON st");
    watched.refresh_and_compare(&mut session, "repair");
}

#[test]
fn an_error_with_a_code_of_the_users_own_comes_as_it_was_raised() {
    let (mut session, watched, _database) = with_st("SELECT id, g FROM t");
    session.run(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             BEGIN RAISE 'no' USING ERRCODE = 'MY000'; EXCEPTION WHEN SQLSTATE 'MY000' THEN END;
             RAISE 'no' USING ERRCODE = 'MY001', DETAIL = 'it is so', HINT = 'do not',
                 SCHEMA = 's', TABLE = 't', COLUMN = 'c', CONSTRAINT = 'n', DATATYPE = 'd';
         END $$;
         CREATE TRIGGER no AFTER INSERT ON st FOR EACH ROW EXECUTE FUNCTION no();
         CREATE FUNCTION told() RETURNS text LANGUAGE plpgsql AS $$
         DECLARE
             a text; b text; c text; d text; e text; f text; g text; h text; i text; j text;
         BEGIN
             PERFORM pgstream.refresh_stream_table('st');
         EXCEPTION WHEN SQLSTATE 'MY001' THEN
             GET STACKED DIAGNOSTICS a = RETURNED_SQLSTATE, b = MESSAGE_TEXT,
                 c = PG_EXCEPTION_DETAIL, d = PG_EXCEPTION_HINT, e = SCHEMA_NAME, f = TABLE_NAME,
                 g = COLUMN_NAME, h = CONSTRAINT_NAME, i = PG_DATATYPE_NAME,
                 j = PG_EXCEPTION_CONTEXT;
             RETURN concat_ws('/', a, b, c, d, e, f, g, h, i, j);
         END $$",
    );
    session.run("INSERT INTO t VALUES (100, 1, 1)");
    let error = session.error(REFRESH);
    assert_eq!(
        (error.code.as_str(), error.message.as_str(), error.detail.as_str(), error.hint.as_str()),
        ("MY001", "no", "it is so", "do not")
    );
    let told = session.rows("SELECT told()").join("\n");
    assert!(
        told.starts_with(
            "MY001/no/it is so/do not/s/t/c/n/d/PL/pgSQL function public.no() line 3 at RAISE\n"
        ),
        "{told}"
    );
    assert_eq!(told.matches("PL/pgSQL function told() line 5 at PERFORM").count(), 1, "{told}");
    assert_eq!(told.matches("no()").count(), 1, "{told}");
    session.run("DROP TRIGGER no ON st");
    watched.refresh_and_compare(&mut session, "repair");
}

#[test]
fn an_error_of_a_function_in_the_query_keeps_its_code() {
    let (mut session, watched, _database) = with_st("SELECT id, g FROM t");
    drop(watched);
    session.run(
        "CREATE FUNCTION f(v int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
             IF v = 0 THEN RAISE 'zero' USING ERRCODE = '22XYZ'; END IF; RETURN v; END $$",
    );
    for query in [
        "SELECT id, f(v) AS f FROM t",
        "SELECT g, sum(f(v)) AS s FROM t GROUP BY g",
        "SELECT id, f(v) AS f, row_number() OVER (ORDER BY f(v), id) AS n FROM t",
    ] {
        session.run("DROP TABLE IF EXISTS st2");
        let watched = Watched::create(&mut session, "st2", query, Comparison::Text);
        session.run("INSERT INTO t VALUES (200, 1, 0)");
        let error = session.error("SELECT pgstream.refresh_stream_table('st2')");
        assert_eq!((error.code.as_str(), error.message.as_str()), ("22XYZ", "zero"), "{query}");
        let error = session.error("SELECT pgstream.repair_stream_table('st2')");
        assert_eq!(error.code, "22XYZ", "{query}");
        let error = session.try_create("st3", query).expect_err("the row is there");
        assert_eq!(error.code, "22XYZ", "{query}");
        session.run("UPDATE t SET v = 1 WHERE id = 200");
        watched.refresh_and_compare(&mut session, query);
        session.run("DELETE FROM t WHERE id = 200");
    }
}

#[test]
fn the_owner_loses_the_privilege_to_read() {
    let database = Database::new();
    let mut session = database.session();
    let role = format!("owner_{}", database.name());
    session.run(&format!(
        "{TABLES}; CREATE ROLE {role}; GRANT SELECT ON t TO {role}; GRANT CREATE ON SCHEMA public TO {role}; SET ROLE {role}"
    ));
    let query = "SELECT t.id, u.v FROM t JOIN t AS u ON u.id = t.g";
    let watched = Watched::create(&mut session, "st", query, Comparison::Text);
    session.run(&format!(
        "RESET ROLE; REVOKE SELECT ON t FROM {role}; INSERT INTO t VALUES (100, 1, 1)"
    ));
    assert_eq!(session.error(REFRESH).code, "42501");
    assert_eq!(session.value("SELECT count(*) FROM st"), "20");
    session.run(&format!("SET ROLE {role}"));
    assert_eq!(session.error(REFRESH).code, "42501");
    session.run(&format!("RESET ROLE; GRANT SELECT ON t TO {role}"));
    watched.refresh_and_compare(&mut session, "grant");
    session.run(&format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}"));
}

#[test]
fn temporary_files_are_limited() {
    let (mut session, watched, _database) =
        with_st("SELECT id, v, row_number() OVER (ORDER BY v, id) AS r FROM t");
    session.run("INSERT INTO t SELECT i, 1, -i FROM generate_series(101, 60000) i");
    session.run("SET pg_stream.merge_work_mem_mb = 1; SET temp_file_limit = '200kB'");
    assert_eq!(session.error(REFRESH).code, "53400");
    assert_eq!(session.value("SELECT count(*) FROM st"), "30");
    session.run("RESET ALL");
    watched.refresh_and_compare(&mut session, "no limit");
}

/// The limit of a process's files stands for a full disk: writing beyond it fails.
#[test]
fn a_file_cannot_grow() {
    let (mut session, watched, _database) =
        with_st("SELECT id, repeat(md5(v::text), 4) AS text FROM t");
    session.run("INSERT INTO t SELECT i, 1, i FROM generate_series(101, 140000) i");
    let pid = session.pid();
    // Above the size of a segment of the WAL.
    limit_files(&pid, "17000000:");
    let error = session.error(REFRESH);
    // PostgreSQL has no code for a file that is too large; a full disk is 53100.
    assert_eq!(error.code, "XX000", "{error}");
    assert_eq!(session.value("SELECT count(*) FROM st"), "30");
    limit_files(&pid, "unlimited:");
    watched.refresh_and_compare(&mut session, "no limit");
}

fn limit_files(pid: &str, limit: &str) {
    // As the server's user, who may not be ours.
    let server = fs::metadata(format!("/proc/{pid}")).expect("the process runs");
    let status = Command::new("prlimit")
        .uid(server.uid())
        .gid(server.gid())
        .args(["--pid", pid, &format!("--fsize={limit}")])
        .status()
        .expect("prlimit can be run");
    assert!(status.success(), "prlimit");
}

#[test]
fn failures_leave_no_memory_behind() {
    let (mut session, watched, _database) =
        with_st("SELECT g, 100 / sum(v) AS q, count(*) AS n FROM t GROUP BY g");
    session.run("INSERT INTO t VALUES (100, 7, 0); INSERT INTO t SELECT i, 1, 1 FROM generate_series(1001, 3000) i");
    const USED: &str = "SELECT sum(used_bytes) FROM pg_backend_memory_contexts";
    let mut used = Vec::new();
    for _ in 0..4 {
        for _ in 0..25 {
            assert_eq!(session.error(REFRESH).code, "22012");
        }
        used.push(session.value(USED).parse::<i64>().expect("a number"));
    }
    assert!(used[3] - used[1] < 64 << 10, "{used:?}");
    session.run("DELETE FROM t WHERE id = 100");
    watched.refresh_and_compare(&mut session, "repair");
}

#[test]
fn refreshes_leave_no_memory_behind() {
    let (mut session, watched, _database) = with_st(
        "SELECT g, n, rank() OVER (ORDER BY n, g) AS r FROM (SELECT g, count(*) AS n FROM t GROUP BY g) AS q",
    );
    const USED: &str = "SELECT sum(used_bytes) FROM pg_backend_memory_contexts";
    let pid = session.pid();
    let mut used = Vec::new();
    for round in 0..4 {
        for step in 0..40 {
            let number = 1000 + round * 40 + step;
            session.run(&format!("INSERT INTO t SELECT {number} * 100 + i, i % 7, i FROM generate_series(1, 50) i; DELETE FROM t WHERE id / 100 = {number} - 5"));
            session.refresh("st");
        }
        used.push((session.value(USED).parse::<i64>().expect("a number"), own_memory(&pid)));
    }
    let (contexts, memory) = (used[3].0 - used[1].0, used[3].1 - used[1].1);
    assert!(contexts < 64 << 10 && memory < 2 << 10, "{used:?}");
    watched.refresh_and_compare(&mut session, "all");
}

/// The kilobytes that a process does not share with others, those of its allocator included.
fn own_memory(pid: &str) -> i64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|it| it.strip_prefix("RssAnon:")).expect("it is told");
    line.trim().trim_end_matches("kB").trim().parse().expect("a number")
}

#[test]
fn a_second_refresher_waits_or_times_out_cleanly() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["a", "b"]);
    s.monitor().run(TABLES);
    s.monitor().create("st", QUERY);
    s.monitor().run("UPDATE t SET v = v + 1");
    s.run("a", &format!("BEGIN; {REFRESH}"));
    s.run("b", "SET lock_timeout = '100ms'");
    let Step::Done(Err(error)) = s.step("b", REFRESH) else {
        // It is seen waiting first.
        assert_eq!(s.finish("b").expect_err("the lock is held").code, "55P03");
        return finish_both(&mut s);
    };
    assert_eq!(error.code, "55P03");
    finish_both(&mut s);
}

fn finish_both(s: &mut Sessions) {
    s.run("b", "RESET lock_timeout");
    s.blocks("b", REFRESH);
    s.run("a", "COMMIT");
    s.finish("b").expect("the lock is free");
    s.compare("b", QUERY);
}

#[test]
fn a_suspended_table_is_resumed_and_catches_up() {
    let (mut session, watched, _database) = with_st(QUERY);
    session.run("SELECT pgstream.alter_stream_table('st', status => 'suspended')");
    session.run("INSERT INTO t VALUES (100, 1, 1); DELETE FROM t WHERE id < 4");
    let error = session.error(REFRESH);
    assert_eq!(error.code, "55000");
    assert!(error.hint.contains("resume_stream_table"), "{error}");
    session.run("UPDATE pgstream.pgs_stream_tables SET consecutive_errors = 3");
    session.run("SELECT pgstream.resume_stream_table('st')");
    assert_eq!(
        session.value("SELECT status, consecutive_errors FROM pgstream.pgs_status()"),
        "ACTIVE|0"
    );
    watched.refresh_and_compare(&mut session, "resumed");
}

#[test]
fn a_table_in_error_says_why_and_comes_back() {
    let (mut session, watched, _database) = with_st(QUERY);
    session.run(
        "UPDATE pgstream.pgs_stream_tables SET status = 'ERROR', error_message = 'the moon is full'",
    );
    let error = session.error(REFRESH);
    assert!(error.code == "55000" && error.message.contains("the moon is full"), "{error}");
    assert!(error.hint.contains("resume_stream_table"), "{error}");
    session.run("INSERT INTO t VALUES (100, 1, 1); SELECT pgstream.resume_stream_table('st')");
    watched.refresh_and_compare(&mut session, "resumed");
}

/// Refreshes `st` each second, and suspends it after two failures.
fn scheduled() -> Database {
    let database = Database::on(Server::start(&[
        "fsync=off",
        "pg_stream.scheduler_interval_ms=100",
        "pg_stream.min_schedule_seconds=1",
        "pg_stream.max_consecutive_errors=2",
    ]));
    let mut session = database.session();
    session.run(TABLES);
    session.run(&format!("SELECT pgstream.create_stream_table('st', '{QUERY}', '1s')"));
    database
}

#[test]
fn scheduled_failures_are_recorded_retried_and_end_in_suspension() {
    let database = scheduled();
    let mut session = database.session();
    session.run("LISTEN pg_stream_alert");
    session.run("ALTER SYSTEM SET pg_stream.inject_fault = 'frontier-stored'");
    session.run("SELECT pg_reload_conf()");
    session.run("INSERT INTO t VALUES (100, 1, 1)");
    session.eventually("SELECT status FROM pgstream.pgs_status()", "SUSPENDED");
    assert_eq!(session.value("SELECT sum(n) FROM st"), "30");
    assert_eq!(
        session.rows(
            "SELECT status, action, error_message LIKE 'fault injected%', initiated_by, end_time >= start_time
             FROM pgstream.pgs_refresh_history WHERE status <> 'COMPLETED'"
        ),
        ["FAILED|DIFFERENTIAL|t|SCHEDULER|t", "FAILED|DIFFERENTIAL|t|SCHEDULER|t"]
    );
    // The second try came a second after the first.
    assert_eq!(
        session.value(
            "SELECT max(start_time) - min(end_time) >= '0.9 s' FROM pgstream.pgs_refresh_history WHERE status = 'FAILED'"
        ),
        "t"
    );
    assert_eq!(
        session.value("SELECT consecutive_errors, failed_refreshes, successful_refreshes, last_status FROM pgstream.pg_stat_stream_tables"),
        "2|2|1|FAILED"
    );
    let mut alerts = session.notifications("pg_stream_alert");
    while !alerts.iter().any(|it| it.contains("auto_suspended")) {
        alerts.extend(session.notifications("pg_stream_alert"));
    }
    // The data may be stale meanwhile.
    alerts.retain(|it| !it.contains("stale_data"));
    let keys = |session: &mut Session, alert: &str| {
        session.value(&format!(
            "SELECT m ->> 'event', m ->> 'st', string_agg(k, ',' ORDER BY k)
             FROM (SELECT $m${alert}$m$::jsonb AS m) AS q, jsonb_object_keys(m) AS k GROUP BY m"
        ))
    };
    let failed = "refresh_failed|public.st|action,error,event,pgs_name,pgs_schema,st";
    let mut told: Vec<String> = alerts.iter().map(|it| keys(&mut session, it)).collect();
    told.retain(|it| !it.starts_with("refresh_completed"));
    assert_eq!(
        told,
        [
            failed,
            failed,
            "auto_suspended|public.st|consecutive_errors,event,pgs_name,pgs_schema,st"
        ]
    );
    assert!(session.error(REFRESH).hint.contains("resume_stream_table"));
    let log = database.server().log();
    assert!(log.contains("stream table public.st is suspended"), "{log}");
    session.run("ALTER SYSTEM RESET pg_stream.inject_fault");
    session.run("SELECT pg_reload_conf()");
    session.run("SELECT pgstream.resume_stream_table('st')");
    session.eventually("SELECT sum(n) FROM st", "31");
    let difference = difference(&mut session, "st", QUERY, Comparison::Text);
    assert!(difference.expect("comparable").is_none());
    session.eventually("SELECT status, consecutive_errors FROM pgstream.pgs_status()", "ACTIVE|0");
}

#[test]
fn what_is_not_its_fault_brings_a_table_no_nearer_to_suspension() {
    let database = scheduled();
    let mut session = database.session();
    session.run(
        "CREATE TABLE mode (code text); INSERT INTO mode VALUES ('53100');
         CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$
            DECLARE c text := (SELECT code FROM public.mode);
            BEGIN IF c <> '' THEN RAISE 'no %', c USING ERRCODE = c; END IF; RETURN NULL; END $$;
         CREATE TRIGGER no AFTER INSERT OR UPDATE ON st FOR EACH ROW EXECUTE FUNCTION no()",
    );
    let failures = |code: &str| {
        format!(
            "SELECT count(*) FROM pgstream.pgs_refresh_history WHERE error_message = 'no {code}'"
        )
    };
    let status = "SELECT status, consecutive_errors FROM pgstream.pgs_status()";
    session.run("INSERT INTO t VALUES (100, 1, 1)");
    session.eventually(&failures("53100"), "2");
    session.run("UPDATE mode SET code = 'P0001'");
    session.eventually("SELECT status FROM pgstream.pgs_status()", "SUSPENDED");
    assert_eq!(session.value(&failures("P0001")), "2");
    session.run("UPDATE mode SET code = ''; SELECT pgstream.resume_stream_table('st')");
    session.eventually("SELECT sum(n) FROM st", "31");
    assert_eq!(session.value(status), "ACTIVE|0");
    session.run("UPDATE mode SET code = 'P0001'; UPDATE t SET v = v + 1");
    session.eventually(status, "SUSPENDED|2");
}

/// A refresh that waits for a source when that is dropped fails, which is no news.
#[test]
fn what_lost_its_query_while_a_refresh_waited_says_what_was_dropped() {
    let database = scheduled();
    let (mut session, mut dropper) = (database.session(), database.session());
    dropper.run("BEGIN; LOCK TABLE t");
    session.run("UPDATE pgstream.pgs_stream_tables SET needs_reinit = true");
    session.eventually(
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
         WHERE NOT granted AND relation = 't'::regclass AND backend_type = 'pg_stream refresh worker'",
        "1",
    );
    dropper.run("DROP TABLE t CASCADE; COMMIT");
    let is_over = "SELECT count(*) FROM pgstream.pgs_refresh_history WHERE status = 'RUNNING'";
    session.eventually(is_over, "0");
    assert_eq!(
        session.value("SELECT status, error_message FROM pgstream.pgs_stream_tables"),
        "ERROR|table public.t was dropped"
    );
}
