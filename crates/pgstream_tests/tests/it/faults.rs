//! An error, a cancel, a time-out, a termination or a crash at every step of every operation: what
//! was there before is still there, and the next try is right.
//!
//! The steps are those that `pg_stream.inject_fault` knows, so one that is added is tested here, and
//! one that no operation reaches fails the test.

use pgstream_tests::{Comparison, Database, Server, Session, Sessions, Step, difference};

const TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, g int, v int);
    CREATE TABLE names (g int PRIMARY KEY, name text);
    CREATE TABLE other (id int PRIMARY KEY, g int);
    INSERT INTO t SELECT i, i % 5, i FROM generate_series(1, 50) i;
    INSERT INTO other SELECT i, i FROM generate_series(1, 5) i;
    INSERT INTO names SELECT i, 'n' || i FROM generate_series(0, 9) i;";

/// Three stages, of which the first is stored.
const QUERY: &str = "SELECT name, n, s, rank() OVER (ORDER BY s, name) AS r
    FROM (SELECT g, count(*) AS n, sum(v) AS s FROM t GROUP BY g) AS q JOIN names USING (g)";
const ABOVE: &str = "SELECT r % 2 AS odd, count(*) AS n, min(name) AS first FROM st GROUP BY 1";

/// Rows that come, change and go, in both stages.
const CHANGES: &str = "
    INSERT INTO t SELECT max(id) + 1, 7, 100 FROM t;
    UPDATE t SET v = v + 1000 WHERE g = 1;
    DELETE FROM t WHERE g = (SELECT max(g) FROM t WHERE g < 7);
    INSERT INTO t SELECT max(id) + 1, max(id) % 5, 3 FROM t";
const REFRESH: &str = "SELECT pgstream.refresh_stream_table('st')";

/// Something that users do, and how to come to where they do it.
struct Operation {
    prepare: &'static str,
    run: String,
    /// What must hold as before when it fails.
    state: &'static str,
    /// The one step that it is for, where it takes long.
    only: Option<&'static str>,
}

const CONTENT: &str = "SELECT
    (SELECT string_agg(st::text, ',' ORDER BY st::text) FROM st),
    (SELECT string_agg(s::text, ',' ORDER BY s.pgs_id) FROM pgstream.pgs_stream_tables AS s),
    (SELECT count(*) FROM pgstream.pgs_refresh_history)";
const OBJECTS: &str = "SELECT
    (SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'v', 'i')), (SELECT count(*) FROM pg_trigger),
    (SELECT count(*) FROM pgstream.pgs_stream_tables), (SELECT count(*) FROM pgstream.pgs_dependencies),
    (SELECT string_agg(c::text, ',' ORDER BY source_relid) FROM pgstream.pgs_change_tracking AS c)";

fn operations() -> Vec<Operation> {
    let refresh =
        |prepare| Operation { prepare, run: REFRESH.to_owned(), state: CONTENT, only: None };
    let create = |options: &str| {
        Operation {
        prepare: "SELECT pgstream.drop_stream_table('extra') WHERE to_regclass('extra') IS NOT NULL",
        run: format!(
            "SELECT pgstream.create_stream_table('extra', $$SELECT g, name, id FROM other JOIN names USING (g)
             UNION SELECT g, 'x', count(*) FROM t GROUP BY g$$, '1d' {options})"
        ),
        state: OBJECTS,
        only: None,
    }
    };
    vec![
        refresh(CHANGES),
        // So many changes that the buffer is emptied at once.
        Operation {
            only: Some("buffer-truncated"),
            ..refresh(
                "INSERT INTO t SELECT i, 1, 1 FROM generate_series(10001, 40000) i; DELETE FROM t WHERE id > 10000",
            )
        },
        refresh("TRUNCATE t; INSERT INTO t SELECT i, i % 4, i FROM generate_series(1, 30) i"),
        refresh("UPDATE pgstream.pgs_stream_tables SET needs_reinit = true; UPDATE t SET v = v + 1"),
        create(""),
        create(", initialize => false"),
        Operation {
            prepare: "SELECT pgstream.create_stream_table('extra', 'SELECT id, sum(n) OVER () FROM
                      (SELECT id, g, count(*) AS n FROM other GROUP BY id, g) AS q', '1d')
                      WHERE to_regclass('extra') IS NULL",
            run: "SELECT pgstream.drop_stream_table('extra')".to_owned(),
            state: OBJECTS,
            only: None,
        },
        Operation {
            prepare: "SELECT pgstream.alter_stream_table('st', refresh_mode => 'DIFFERENTIAL')",
            run: "SELECT pgstream.alter_stream_table('above', refresh_mode => 'FULL'),
                  pgstream.alter_stream_table('above', refresh_mode => 'DIFFERENTIAL', status => 'SUSPENDED'),
                  pgstream.resume_stream_table('above')"
                .to_owned(),
            state: OBJECTS,
            only: None,
        },
    ]
}

fn prepare(database: &Database) -> Session {
    let mut session = database.session();
    session.run(TABLES);
    session.create("st", QUERY);
    session.create("above", ABOVE);
    session
}

/// Nothing of a failed operation is left in the session.
#[track_caller]
fn check_session(session: &mut Session, step: &str) {
    assert_eq!(
        session.value(
            "SELECT current_user, current_setting('search_path'), current_setting('session_replication_role'),
                    current_setting('enable_hashjoin'), current_setting('work_mem'),
                    (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype IN ('object', 'advisory')),
                    (SELECT count(*) FROM pgstream.pg_stat_progress_refresh)"
        ),
        "postgres|\"$user\", public|origin|on|4MB|0|0",
        "after {step}"
    );
    let error = session.error("INSERT INTO st VALUES ('x', 1, 1, 1)");
    assert_eq!(error.code, "42809", "after {step}: {error}");
}

/// Refreshes all, and compares.
#[track_caller]
fn check_tables(session: &mut Session, step: &str) {
    for (name, query) in [("st", QUERY), ("above", ABOVE)] {
        session.refresh(name);
        let difference = difference(session, name, query, Comparison::Text);
        if let Some(difference) = difference.expect("comparable") {
            panic!("{name} is wrong after a fault at {step}\n{difference}");
        }
    }
}

fn steps(session: &mut Session) -> Vec<String> {
    let mut steps = session
        .rows("SELECT unnest(enumvals) FROM pg_settings WHERE name = 'pg_stream.inject_fault'");
    steps.retain(|it| it != "none" && it != "every");
    assert!(steps.len() > 20, "{steps:?}");
    steps
}

#[test]
fn an_error_at_any_step_changes_nothing_and_the_next_try_is_right() {
    let database = Database::new();
    let mut session = prepare(&database);
    let steps = steps(&mut session);
    let mut reached = vec![0; steps.len()];
    for operation in operations() {
        for (step, reached) in steps.iter().zip(&mut reached) {
            if operation.only.is_some_and(|it| it != step) {
                continue;
            }
            let mut skip = 0;
            loop {
                session.run(operation.prepare);
                let before = session.rows(operation.state);
                session.run(&format!(
                    "SET pg_stream.inject_fault = '{step}'; SET pg_stream.inject_fault_skip = {skip}"
                ));
                let result = session.try_run(&operation.run);
                session.run("SET pg_stream.inject_fault = 'none'");
                let Err(error) = result else { break };
                assert_eq!(error.code, "XX000", "{step}: {error}");
                assert!(error.message.starts_with("fault injected"), "{step}: {error}");
                assert_eq!(session.rows(operation.state), before, "{step} of {}", operation.run);
                check_session(&mut session, step);
                session.run(&operation.run);
                check_tables(&mut session, step);
                *reached += 1;
                skip += 1;
            }
        }
    }
    for (step, reached) in steps.iter().zip(reached) {
        assert!(reached > 0, "no operation has reached the step {step}");
    }
}

/// Stops a refresh at each step in turn, ends it by `end`, which is told the process, and checks.
fn interrupted_at_every_step(before: &str, code: &str, mut end: impl FnMut(&mut Session, &str)) {
    let database = Database::new();
    drop(prepare(&database));
    let mut skip = 0;
    loop {
        let mut s = Sessions::new(&database, &["gate", "r"]);
        s.run("gate", "SELECT pg_advisory_lock(7077)");
        s.monitor().run(CHANGES);
        let content = s.monitor().rows(CONTENT);
        s.run(
            "r",
            &format!(
                "SET pg_stream.inject_fault = every; SET pg_stream.inject_fault_action = wait;
                 SET pg_stream.inject_fault_skip = {skip}; {before}"
            ),
        );
        let stopped = match s.step("r", REFRESH) {
            Step::Done(result) => result,
            Step::Blocked => {
                let pid = s.pid("r");
                end(s.monitor(), &pid);
                s.finish("r")
            }
        };
        // It has fewer steps, and if it waited, then for an autovacuum.
        let Err(error) = stopped else { break };
        // The server may close the connection before its message is read.
        let is_closed = code == "57P01" && error.code == "08006";
        assert!(is_closed || error.code == code, "step {skip}: {error}");
        let step = format!("{code} at step {skip}");
        assert_eq!(s.monitor().rows(CONTENT), content, "{step}");
        if code != "57P01" {
            // In the same session, with what it has cached.
            s.run("r", "RESET ALL");
            s.run("r", REFRESH);
            s.compare("r", QUERY);
        }
        check_tables(s.monitor(), &step);
        check_session(s.monitor(), &step);
        skip += 1;
    }
    assert!(skip > 15, "only {skip} steps");
}

#[test]
fn a_refresh_is_cancelled_at_every_step() {
    interrupted_at_every_step("", "57014", |monitor, pid| {
        monitor.run(&format!("SELECT pg_cancel_backend({pid})"));
    });
}

#[test]
fn a_refresh_is_terminated_at_every_step() {
    interrupted_at_every_step("", "57P01", |monitor, pid| {
        monitor.run(&format!("SELECT pg_terminate_backend({pid}, 10000)"));
    });
}

#[test]
fn a_refresh_runs_into_the_statement_timeout_at_every_step() {
    interrupted_at_every_step("SET statement_timeout = '200ms'", "57014", |_, _| {});
}

#[test]
fn a_refresh_runs_into_the_lock_timeout_at_every_step() {
    interrupted_at_every_step("SET lock_timeout = '100ms'", "55P03", |_, _| {});
}

#[test]
fn the_server_crashes_at_every_step() {
    let database = Database::on(Server::start(&["pg_stream.enabled=off"]));
    let mut session = prepare(&database);
    let all = operations();
    // A crash takes its time: every step of a refresh, and some of a rebuild and of a creation.
    for (operation, stride) in [(&all[0], 1), (&all[3], 3), (&all[4], 3)] {
        let mut skip = 0;
        loop {
            session.run(operation.prepare);
            let before = session.rows(operation.state);
            session.run(&format!(
                "SET pg_stream.inject_fault = every; SET pg_stream.inject_fault_action = crash;
                 SET pg_stream.inject_fault_skip = {skip}"
            ));
            let mut witness = database.session();
            let result = session.try_run(&operation.run);
            let Err(error) = result else { break };
            // The postmaster ends all sessions before it recovers.
            while witness.try_run("SELECT").is_ok() {}
            session = database.session_after_crash();
            assert_eq!(error.code, "08006", "step {skip}: {error}");
            assert_eq!(session.rows(operation.state), before, "{skip} of {}", operation.run);
            session.run(&operation.run);
            check_tables(&mut session, &format!("step {skip}"));
            check_session(&mut session, &format!("step {skip}"));
            skip += stride;
        }
        assert!(skip > 3, "only {skip} steps");
        session.run("RESET ALL");
    }
}

/// Sets the fault of all workers, or none.
fn inject_everywhere(session: &mut Session, skip: Option<usize>) {
    match skip {
        Some(skip) => {
            session.run("ALTER SYSTEM SET pg_stream.inject_fault = 'every'");
            session.run(&format!("ALTER SYSTEM SET pg_stream.inject_fault_skip = {skip}"));
        }
        None => session.run("ALTER SYSTEM RESET pg_stream.inject_fault"),
    }
    session.run("SELECT pg_reload_conf()");
}

/// Whether all is up to date, or a scheduled refresh has failed since that row of the history; waits
/// for either.
fn wait_for_scheduler(session: &mut Session, last: &str) -> bool {
    let failed = format!(
        "SELECT count(*) > 0 FROM pgstream.pgs_refresh_history WHERE status = 'FAILED' AND refresh_id > {last}"
    );
    for _ in 0..3000 {
        if session.value(&failed) == "t" {
            return false;
        }
        if is_up_to_date(session) {
            return true;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
    panic!("the scheduler does nothing");
}

fn is_up_to_date(session: &mut Session) -> bool {
    [("st", QUERY), ("above", ABOVE)].iter().all(|(name, query)| {
        difference(session, name, query, Comparison::Text).expect("comparable").is_none()
    })
}

#[test]
fn scheduled_refreshes_of_connected_tables_fail_at_any_step_and_are_right_afterwards() {
    let database = Database::on(Server::start(&[
        "fsync=off",
        "pg_stream.scheduler_interval_ms=100",
        "pg_stream.min_schedule_seconds=1",
        "pg_stream.max_consecutive_errors=100",
    ]));
    let mut session = database.session();
    session.run("SET pg_stream.inject_fault = 'none'");
    session.run(TABLES);
    for (name, query) in [("st", QUERY), ("above", ABOVE)] {
        session.run(&format!("SELECT pgstream.create_stream_table('{name}', $${query}$$, '1s')"));
    }
    let mut skip = 0;
    let mut early = 0;
    loop {
        inject_everywhere(&mut session, Some(skip));
        let last =
            session.value("SELECT coalesce(max(refresh_id), 0) FROM pgstream.pgs_refresh_history");
        session.run(CHANGES);
        let is_done = wait_for_scheduler(&mut session, &last);
        inject_everywhere(&mut session, None);
        // On a busy machine a worker may refresh before it has heard of the fault.
        if is_done && skip <= 12 && early < 20 {
            early += 1;
            continue;
        }
        if is_done {
            break;
        }
        // Until all is right, whatever else fails before the workers have heard.
        let mut tries = 0;
        while !is_up_to_date(&mut session) {
            std::thread::park_timeout(std::time::Duration::from_millis(20));
            tries += 1;
            assert!(tries < 3000, "not up to date after a fault at step {skip}");
        }
        skip += 4;
    }
    assert!(skip > 12, "only {skip} steps");
    assert_eq!(
        session.value("SELECT count(*) FROM pgstream.pgs_refresh_history WHERE status = 'RUNNING'"),
        "0"
    );
}
