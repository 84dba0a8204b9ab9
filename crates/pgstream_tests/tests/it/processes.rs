//! The launcher and the schedulers themselves: ended, stuck, or misled. These tests have a server of
//! their own, where the scheduler is on.

use std::{
    thread,
    time::{Duration, Instant},
};

use pgstream_tests::{Database, Server, Session};

fn server() -> Server {
    Server::start(&[
        "fsync=off",
        "pg_stream.scheduler_interval_ms=100",
        "pg_stream.min_schedule_seconds=1",
    ])
}

const STREAM_TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY);
    SELECT pgstream.create_stream_table('st', 'SELECT id FROM t', '1s')";
/// Something changes, which the scheduler is to notice.
const CHANGE: &str = "INSERT INTO t SELECT count(*) FROM t";
const IS_FRESH: &str = "SELECT (SELECT count(*) FROM st) = (SELECT count(*) FROM t)";
const LAUNCHER: &str =
    "SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE backend_type = 'pg_stream launcher'";
/// Not connected to any database yet, and waiting for one.
const STUCK: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE backend_type = 'pg_stream scheduler' AND datid IS NULL AND wait_event = 'object'";

fn terminate(session: &mut Session, whom: &str) {
    session
        .run(&format!("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {whom}"));
}

#[test]
fn a_launcher_that_is_terminated_comes_back() {
    let database = Database::on(server());
    let mut session = database.session();
    session.run(STREAM_TABLE);
    session.run(CHANGE);
    session.eventually(IS_FRESH, "t");
    let launcher = session.value(LAUNCHER);
    terminate(&mut session, "backend_type = 'pg_stream launcher'");
    terminate(&mut session, "backend_type = 'pg_stream scheduler'");
    session.run(CHANGE);
    session.eventually(IS_FRESH, "t");
    assert_ne!(session.value(LAUNCHER), launcher);
    // One that the launcher before has started is missed as well.
    terminate(&mut session, "backend_type = 'pg_stream launcher'");
    session.eventually(&format!("SELECT ({LAUNCHER}) > 0"), "t");
    terminate(&mut session, "backend_type = 'pg_stream scheduler'");
    session.run(CHANGE);
    session.eventually(IS_FRESH, "t");
    drop(session);
    database.server().stop();
    let log = database.server().log();
    let is_end = |it: &&str| it.contains("pg_stream launcher") && it.contains("exit code");
    let ends = log.lines().filter(is_end).count();
    assert_eq!(ends, 2, "the end of the server is nothing to tell of\n{log}");
    database.server().start_again();
}

#[test]
fn a_database_that_nobody_can_enter_holds_up_no_other() {
    let server = server();
    let mut admin = server.session("postgres");
    admin.run("CREATE DATABASE closed");
    admin.run("CREATE DATABASE open");
    let mut open = server.session("open");
    for session in [&mut server.session("closed"), &mut open] {
        session.run("CREATE EXTENSION pg_stream");
        session.run(STREAM_TABLE);
        session.run(CHANGE);
        session.eventually(IS_FRESH, "t");
    }
    admin.run("BEGIN; ALTER DATABASE closed RENAME TO other; PREPARE TRANSACTION 'rename'");
    open.eventually(STUCK, "1");
    terminate(&mut open, "backend_type = 'pg_stream scheduler' AND datname = 'open'");
    open.run(CHANGE);
    open.eventually(IS_FRESH, "t");
    // It can be ended, also by the launcher's end, and is missed afterwards.
    terminate(&mut open, "backend_type = 'pg_stream launcher'");
    open.eventually(STUCK, "0");
    open.eventually(STUCK, "1");
    drop((admin, open));
    let begin = Instant::now();
    server.stop();
    assert!(begin.elapsed() < Duration::from_secs(20), "it stops at once");
    server.start_again();
    let mut admin = server.session("postgres");
    admin.eventually(STUCK, "1");
    admin.run("COMMIT PREPARED 'rename'");
    let mut other = server.session("other");
    other.run(CHANGE);
    other.eventually(IS_FRESH, "t");
}

/// The workers are never idle for long, and so do not end by themselves.
#[test]
fn a_scheduler_comes_before_the_workers_of_another_database() {
    // Beside the launcher of logical replication, ours and a scheduler there are two workers.
    let server = Server::start(&[
        "fsync=off",
        "max_worker_processes=5",
        "pg_stream.scheduler_interval_ms=100",
        "pg_stream.min_schedule_seconds=1",
    ]);
    let mut admin = server.session("postgres");
    admin.run("CREATE DATABASE busy");
    let mut busy = server.session("busy");
    busy.run("CREATE EXTENSION pg_stream; CREATE TABLE t (id int PRIMARY KEY)");
    for name in ["a", "b", "c"] {
        busy.run(&format!(
            "SELECT pgstream.create_stream_table('{name}', 'SELECT clock_timestamp() AS at, pg_sleep(0.3)::text FROM t', '1s', 'FULL')"
        ));
    }
    busy.run("INSERT INTO t VALUES (1)");
    let workers =
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_stream refresh worker'";
    busy.eventually(workers, "2");
    admin.run("CREATE DATABASE other");
    let mut other = server.session("other");
    other.run("CREATE EXTENSION pg_stream");
    other.run(STREAM_TABLE);
    other.run(CHANGE);
    other.eventually(IS_FRESH, "t");
    // One is left for both.
    other.eventually(workers, "1");
    let log = server.log();
    assert!(log.contains("cannot start the scheduler of database \"other\""), "{log}");
    let now = busy.value("SELECT clock_timestamp()");
    for name in ["a", "b", "c"] {
        busy.eventually(&format!("SELECT at > '{now}' FROM {name}"), "t");
    }
}

/// Nothing tells the launcher that there is one now, and others wait for it, too.
#[test]
fn a_scheduler_that_found_no_process_starts_soon_after_there_is_one() {
    // Beside the launcher of logical replication and ours there is one.
    let server = Server::start(&["fsync=off", "max_worker_processes=3"]);
    let mut admin = server.session("postgres");
    let mut sleeper = server.session("postgres");
    let asleep = thread::spawn(move || {
        sleeper.error("SET debug_parallel_query = on; SELECT pg_sleep(3600)").code
    });
    admin.eventually(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel worker'",
        "1",
    );
    admin.run("CREATE EXTENSION pg_stream");
    let begun = Instant::now();
    while !server.log().contains("pg_stream cannot start the scheduler") {
        assert!(begun.elapsed() < Duration::from_secs(30), "it has not looked for a process");
        thread::park_timeout(Duration::from_millis(50));
    }
    admin.run(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'parallel worker'",
    );
    assert_eq!(asleep.join().expect("the session ends"), "57014");
    admin.eventually(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_stream scheduler'",
        "1",
    );
}

#[test]
fn an_extension_that_was_created_by_a_prepared_transaction_is_noticed() {
    let server = server();
    let create = "CREATE EXTENSION pg_stream; PREPARE TRANSACTION 'create'";
    for is_restarted in [false, true] {
        let name = format!("prepared_{is_restarted}");
        server.session("postgres").run(&format!("CREATE DATABASE {name}"));
        let mut session = server.session(&name);
        session.run(&format!("BEGIN; {create}"));
        if is_restarted {
            drop(session);
            server.stop();
            server.start_again();
            session = server.session(&name);
        }
        // Every database was looked at.
        session.eventually("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_stream scheduler' AND (datid IS NULL OR datname = current_database())",
            "0",
        );
        session.run("COMMIT PREPARED 'create'");
        session.run(STREAM_TABLE);
        session.run(CHANGE);
        session.eventually(IS_FRESH, "t");
    }
}

#[test]
fn settings_of_a_database_or_a_role_do_not_change_who_its_processes_are() {
    let database = Database::on(server());
    let name = database.name().to_owned();
    let mut session = database.session();
    session.run(STREAM_TABLE);
    session.run("CREATE TABLE fired (n int); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.fired VALUES (1); RETURN NULL; END';
                 CREATE TRIGGER note AFTER INSERT ON st FOR EACH STATEMENT EXECUTE FUNCTION note()");
    session.run("CREATE ROLE nobody");
    for (command, reset) in [
        (
            format!("ALTER DATABASE {name} SET role = nobody"),
            format!("ALTER DATABASE {name} RESET role"),
        ),
        (
            "ALTER ROLE postgres SET role = nobody".to_owned(),
            "ALTER ROLE postgres RESET role".to_owned(),
        ),
        (
            format!("ALTER DATABASE {name} SET session_authorization = nobody"),
            format!("ALTER DATABASE {name} RESET session_authorization"),
        ),
        (
            format!("ALTER DATABASE {name} SET session_replication_role = replica"),
            format!("ALTER DATABASE {name} RESET session_replication_role"),
        ),
        (
            format!("ALTER DATABASE {name} SET exit_on_error = on"),
            format!("ALTER DATABASE {name} RESET exit_on_error"),
        ),
        (
            format!(
                "ALTER DATABASE {name} SET restrict_nonsystem_relation_kind = 'view, foreign-table'"
            ),
            format!("ALTER DATABASE {name} RESET restrict_nonsystem_relation_kind"),
        ),
    ] {
        session.run(&command);
        terminate(
            &mut session,
            "backend_type IN ('pg_stream scheduler', 'pg_stream refresh worker')",
        );
        session.run("TRUNCATE fired");
        session.run(CHANGE);
        session.eventually(IS_FRESH, "t");
        assert_eq!(session.value("SELECT count(*) FROM fired"), "1", "{command}");
        session.run(&reset);
    }
}

#[test]
fn only_whoever_may_disturb_a_database_makes_its_scheduler_leave() {
    let database = Database::on(server());
    let name = database.name().to_owned();
    let mut session = database.session();
    session.run(STREAM_TABLE);
    session.run(CHANGE);
    session.eventually(IS_FRESH, "t");
    session.run("CREATE ROLE creator CREATEDB");
    let pid = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_stream scheduler' AND datname = current_database()";
    let scheduler = session.value(pid);
    let mut creator = database.session();
    creator.run("SET ROLE creator");
    for command in [
        format!("DROP DATABASE {name}"),
        format!("ALTER DATABASE {name} RENAME TO other"),
        format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"),
        format!("CREATE DATABASE other TEMPLATE {name}"),
    ] {
        assert_eq!(creator.error(&command).code, "42501", "{command}");
        thread::park_timeout(Duration::from_millis(200));
        assert_eq!(session.value(pid), scheduler, "{command}");
    }
}

#[test]
fn a_lock_on_the_catalog_stops_it_for_as_long_as_it_lasts_only() {
    let database = Database::on(server());
    let mut session = database.session();
    session.run(STREAM_TABLE);
    session.run(CHANGE);
    session.eventually(IS_FRESH, "t");
    for lock in ["LOCK TABLE pgstream.pgs_stream_tables", "DROP EXTENSION pg_stream CASCADE"] {
        // Meanwhile it looks at the catalog, for which a change of it asks.
        session.run("SELECT pgstream.alter_stream_table('st', schedule => '1s')");
        session.run(&format!("BEGIN; {lock}; SELECT pg_sleep(3); ROLLBACK"));
        let begin = Instant::now();
        session.run(CHANGE);
        session.eventually(IS_FRESH, "t");
        assert!(begin.elapsed() < Duration::from_secs(6), "{lock}: {:?}", begin.elapsed());
    }
    let log = database.server().log();
    let complaints = log.lines().filter(|it| it.contains("cannot read its catalog")).count();
    assert!(complaints <= 2, "{log}");
}
