//! The scheduler's workers: refreshes at once, at one snapshot, apart from each other's failures, and
//! out of everybody's way. Each test has a server of its own.

use std::{process::Command, thread, time::Duration};

use pgstream_tests::{Comparison, Database, Server, Session, difference};

const SETTINGS: [&str; 3] =
    ["fsync=off", "pg_stream.scheduler_interval_ms=100", "pg_stream.min_schedule_seconds=1"];

fn server(more: &[&str]) -> Server {
    Server::start(&[&SETTINGS, more].concat())
}

fn database() -> Database {
    Database::on(server(&[]))
}

#[track_caller]
fn same(session: &mut Session, stream_table: &str, query: &str) {
    if let Some(it) =
        difference(session, stream_table, query, Comparison::Text).expect("comparable")
    {
        panic!("{stream_table} differs from {query}\n{it}");
    }
}

/// Makes the refreshes of a stream table wait, in the middle of their changes, for whoever holds the
/// advisory lock of that number.
fn gate(session: &mut Session, stream_table: &str, number: i32) {
    session.run(&format!(
        "CREATE FUNCTION gate_{number}_{stream_table}() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pg_catalog.pg_advisory_xact_lock_shared({number}); RETURN NULL; END $$;
         CREATE TRIGGER gate AFTER INSERT OR UPDATE OR DELETE ON {stream_table}
         FOR EACH ROW EXECUTE FUNCTION gate_{number}_{stream_table}()"
    ));
}

const WAITING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE backend_type = 'pg_stream refresh worker' AND wait_event = 'advisory'";
const RUNNING: &str = "SELECT count(*) FROM pgstream.pgs_refresh_history WHERE status = 'RUNNING'";

fn two_tables(session: &mut Session) {
    for (table, stream_table) in [("t", "a"), ("u", "b")] {
        session.run(&format!("CREATE TABLE {table} (id int PRIMARY KEY, v int)"));
        session.run(&format!(
            "SELECT pgstream.create_stream_table('{stream_table}', 'SELECT id, v FROM {table}', '1s')"
        ));
    }
}

#[test]
fn two_refreshes_run_at_once_and_are_seen() {
    let database = database();
    let (mut gatekeeper, mut session) = (database.session(), database.session());
    two_tables(&mut session);
    gate(&mut session, "a", 1);
    gate(&mut session, "b", 1);
    gatekeeper.run("SELECT pg_advisory_lock(1)");
    session.run("INSERT INTO t VALUES (1, 1)");
    session.run("INSERT INTO u VALUES (1, 1)");
    session.eventually(WAITING, "2");
    let mut queries = session
        .rows("SELECT application_name, query FROM pg_stat_activity WHERE wait_event = 'advisory'");
    queries.sort();
    assert_eq!(
        queries,
        [
            "pg_stream refresh worker|REFRESH STREAM TABLE public.a",
            "pg_stream refresh worker|REFRESH STREAM TABLE public.b"
        ]
    );
    assert_eq!(session.value(RUNNING), "2");
    assert_eq!(session.value("SELECT count(*) FROM pgstream.pg_stat_progress_refresh"), "2");
    let event = "SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'pg_stream scheduler'
                 AND datname = current_database()";
    session.eventually(event, "PgStreamSchedulerMain");
    gatekeeper.run("SELECT pg_advisory_unlock(1)");
    session.eventually("SELECT count(*) FROM a JOIN b USING (id)", "1");
    session.eventually(RUNNING, "0");
    let history = "SELECT pgs_name, action, h.status, rows_inserted, h.error_message
        FROM pgstream.pgs_refresh_history h JOIN pgstream.pgs_stream_tables USING (pgs_id)
        WHERE initiated_by = 'SCHEDULER' AND h.status <> 'SKIPPED' ORDER BY 1";
    let completed = ["a|DIFFERENTIAL|COMPLETED|1|NULL", "b|DIFFERENTIAL|COMPLETED|1|NULL"];
    assert_eq!(session.rows(history), completed);
}

/// Two that read `t`, `v` and `w`.
fn siblings(session: &mut Session) {
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int)");
    for name in ["v", "w"] {
        session.run(&format!(
            "SELECT pgstream.create_stream_table('{name}', 'SELECT id, v FROM t', '1s')"
        ));
        gate(session, name, 1);
    }
}

#[test]
fn quick_readers_of_a_table_are_refreshed_at_one_snapshot() {
    let database = database();
    let (mut gatekeeper, mut session) = (database.session(), database.session());
    siblings(&mut session);
    session.run("DROP TRIGGER gate ON v");
    gatekeeper.run("SELECT pg_advisory_lock(1)");
    session.run("INSERT INTO t VALUES (1, 1)");
    session.eventually(WAITING, "1");
    session.run("INSERT INTO t VALUES (2, 1)");
    assert_eq!(session.value("SELECT (SELECT count(*) FROM v), (SELECT count(*) FROM w)"), "0|0");
    gatekeeper.run("SELECT pg_advisory_unlock(1)");
    let torn = "SELECT count(*) FROM v FULL JOIN w USING (id) WHERE v.v IS NULL OR w.v IS NULL";
    while session.value("SELECT count(*) FROM v") != "2" {
        assert_eq!(session.value(torn), "0");
    }
    assert_eq!(session.value(torn), "0");
}

#[test]
fn a_change_of_definition_during_a_refresh_is_not_forgotten() {
    let database = database();
    let (mut gatekeeper, mut session) = (database.session(), database.session());
    session.run(
        "CREATE FUNCTION f(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $1; END'",
    );
    two_tables(&mut session);
    session.run("SELECT pgstream.create_stream_table('c', 'SELECT id, f(v) AS v FROM t', '1s')");
    gate(&mut session, "c", 1);
    let changes = [
        "CREATE OR REPLACE FUNCTION f(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN -$1; END'",
        "SET event_triggers = off; ALTER TABLE t DISABLE TRIGGER ALL; UPDATE t SET v = 7;
         ALTER TABLE t ENABLE TRIGGER ALL; RESET event_triggers",
    ];
    for (id, change) in changes.iter().enumerate() {
        gatekeeper.run("SELECT pg_advisory_lock(1)");
        session.run(&format!("INSERT INTO t VALUES ({id}, 1)"));
        session.eventually(WAITING, "1");
        session.run(change);
        // The scheduler learns of it while it notes that nothing has changed for another table.
        let now = session.value("SELECT clock_timestamp() + interval '1 s'");
        let is_noted = format!(
            "SELECT data_timestamp > '{now}' FROM pgstream.pgs_stream_tables WHERE pgs_name = 'b'"
        );
        session.eventually(&is_noted, "t");
        gatekeeper.run("SELECT pg_advisory_unlock(1)");
        let is_right =
            "SELECT count(*) FROM t LEFT JOIN c USING (id) WHERE c.v IS DISTINCT FROM f(t.v)";
        session.eventually(is_right, "0");
    }
}

/// What was laid out anew is committed with the others, although it could not be filled.
#[test]
fn a_rebuild_that_fails_beside_others_is_made_up_for() {
    let database = database();
    let mut session = database.session();
    session.run(
        "CREATE TABLE t (id int PRIMARY KEY, v int, w int); INSERT INTO t SELECT g, g % 3, g FROM generate_series(1, 9) g",
    );
    let all = [
        ("a", "SELECT id, v FROM t"),
        ("b", "SELECT id, v, w FROM t"),
        ("c", "SELECT w % 2 AS g, sum(v) AS s, count(*) AS n FROM t GROUP BY w % 2"),
    ];
    for (name, query) in all {
        session.run(&format!("SELECT pgstream.create_stream_table('{name}', '{query}', '1s')"));
    }
    session.run("ALTER TABLE b ADD CONSTRAINT no CHECK (v < 1000); ALTER TABLE c ADD CONSTRAINT no CHECK (s < 1000)");
    session.run("SET event_triggers = off");
    session.run("BEGIN; ALTER TABLE t DISABLE TRIGGER ALL; INSERT INTO t VALUES (100, 5, 5)");
    session.run("ALTER TABLE t ENABLE TRIGGER ALL; INSERT INTO t VALUES (101, 5000, 7); COMMIT");
    session.run("RESET event_triggers");
    let failed = "SELECT count(DISTINCT pgs_id) FROM pgstream.pgs_refresh_history WHERE status = 'FAILED' AND action = 'REINITIALIZE'";
    session.eventually(failed, "2");
    session.run("ALTER TABLE b DROP CONSTRAINT no; ALTER TABLE c DROP CONSTRAINT no");
    session.run("INSERT INTO t VALUES (50, 1, 1)");
    session.eventually("SELECT (SELECT count(*) FROM b), (SELECT sum(n) FROM c)", "12|12");
    for (name, query) in all {
        same(&mut session, name, query);
    }
}

/// By a trigger on one, in the transaction that is about to refresh the others.
#[test]
fn a_relative_that_a_trigger_refreshes_counts_each_change_once() {
    let database = database();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1)");
    let all = [
        ("a", "SELECT id, v FROM t"),
        ("b", "SELECT v FROM t"),
        ("c", "SELECT sum(v) AS s, count(*) AS n FROM t"),
    ];
    for (name, query) in all {
        session.run(&format!("SELECT pgstream.create_stream_table('{name}', '{query}', '1s')"));
    }
    session.run(
        "CREATE FUNCTION others() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           PERFORM pgstream.refresh_stream_table('public.b'); PERFORM pgstream.refresh_stream_table('public.c'); RETURN NULL; END $$;
         CREATE TRIGGER others AFTER INSERT ON a FOR EACH ROW EXECUTE FUNCTION others()",
    );
    for id in 2..5 {
        session.run(&format!("INSERT INTO t VALUES ({id}, {id})"));
        session.eventually("SELECT bool_and(n = m) FROM (SELECT count(*) AS n FROM a UNION ALL SELECT count(*) FROM b UNION ALL SELECT n FROM c) AS q,
             (SELECT count(*) AS m FROM t) AS r",
            "t",
        );
        for (name, query) in all {
            same(&mut session, name, query);
        }
    }
}

/// Nobody sees one with a change and the other without it for long.
#[test]
fn a_relative_that_is_being_refreshed_is_waited_for() {
    let database = database();
    let (mut gatekeeper, mut session) = (database.session(), database.session());
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE u (id int PRIMARY KEY)");
    session.run("SELECT pgstream.create_stream_table('a', 'SELECT t.id, v FROM t JOIN u USING (id)', '20s')");
    session.run("SELECT pgstream.create_stream_table('b', 'SELECT id, v FROM t', '20s')");
    gate(&mut session, "a", 1);
    session.run("INSERT INTO t VALUES (1, 1)");
    // Both have rested, and nothing is known to have changed.
    session.eventually("SELECT count(*) FROM b", "1");
    let rested = "SELECT bool_and(clock_timestamp() > data_timestamp + interval '19 s') FROM pgstream.pgs_stream_tables";
    session.eventually(rested, "t");
    session.eventually(rested, "f");
    gatekeeper.run("SELECT pg_advisory_lock(1)");
    session.run("INSERT INTO u VALUES (1)");
    session.eventually(WAITING, "1");
    session.run("UPDATE t SET v = 2");
    let since = session.value("SELECT clock_timestamp()");
    session
        .wait_until(&format!("SELECT clock_timestamp() > timestamptz '{since}' + interval '1 s'"));
    assert_eq!(session.value("SELECT v FROM b"), "1");
    gatekeeper.run("SELECT pg_advisory_unlock(1)");
    session.eventually("SELECT max(v) FROM a", "2");
    assert_eq!(session.value("SELECT v FROM b"), "2");
}

#[test]
fn slow_readers_of_a_table_are_refreshed_side_by_side_from_the_start() {
    let database = database();
    let mut session = database.session();
    session.run(
        "CREATE FUNCTION slow(v int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
         BEGIN PERFORM pg_catalog.pg_sleep(0.2); RETURN v; END $$;
         CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1), (2, 2)",
    );
    for name in ["v", "w"] {
        session.run(&format!(
            "SELECT pgstream.create_stream_table('{name}', 'SELECT id, slow(v) AS s FROM t', '1s')"
        ));
    }
    session.run("INSERT INTO t SELECT i, i FROM generate_series(10, 14) i");
    session.eventually("SELECT count(*) FROM v JOIN w USING (id)", "7");
    let at_once = "SELECT count(*) > 0 FROM pgstream.get_refresh_history('v') AS v
        JOIN pgstream.get_refresh_history('w') AS w ON (v.start_time, v.end_time) OVERLAPS (w.start_time, w.end_time)
        WHERE v.action = 'DIFFERENTIAL' AND w.action = 'DIFFERENTIAL'";
    assert_eq!(session.value(at_once), "t");
}

#[test]
fn changes_are_removed_when_their_readers_were_refreshed_at_once() {
    let database = database();
    let (mut gatekeeper, mut session) = (database.session(), database.session());
    siblings(&mut session);
    // Together they take a quarter of their period.
    gatekeeper.run("SELECT pg_advisory_lock(1)");
    session.run("INSERT INTO t VALUES (1, 1)");
    session.eventually(WAITING, "1");
    let since = session.value("SELECT clock_timestamp()");
    session.wait_until(&format!(
        "SELECT clock_timestamp() > timestamptz '{since}' + interval '0.3 s'"
    ));
    gatekeeper.run("SELECT pg_advisory_unlock(1)");
    session.eventually("SELECT count(*) FROM v JOIN w USING (id)", "1");
    // So from now on each is refreshed for itself.
    gatekeeper.run("SELECT pg_advisory_lock(1)");
    session.run("INSERT INTO t VALUES (2, 1)");
    session.eventually(WAITING, "2");
    gatekeeper.run("SELECT pg_advisory_unlock(1)");
    session.eventually("SELECT count(*) FROM v JOIN w USING (id)", "2");
    let buffer = session.value("SELECT buffer_relid::regclass FROM pgstream.pgs_change_tracking");
    session.eventually(&format!("SELECT count(*) FROM {buffer}"), "0");
}

#[test]
fn no_more_run_at_once_than_may() {
    let database = Database::on(server(&["pg_stream.max_concurrent_refreshes=1"]));
    let (mut gatekeeper, mut session) = (database.session(), database.session());
    two_tables(&mut session);
    gate(&mut session, "a", 1);
    gate(&mut session, "b", 1);
    gatekeeper.run("SELECT pg_advisory_lock(1)");
    session.run("INSERT INTO t VALUES (1, 1)");
    session.run("INSERT INTO u VALUES (1, 1)");
    session.eventually(WAITING, "1");
    // Both are long due by now.
    session.eventually("SELECT bool_and(clock_timestamp() > data_timestamp + interval '3 seconds') FROM pgstream.pgs_stream_tables",
        "t",
    );
    assert_eq!(
        session.value(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_stream refresh worker'"
        ),
        "1"
    );
    session.run("ALTER SYSTEM SET pg_stream.max_concurrent_refreshes = 2");
    session.run("SELECT pg_reload_conf()");
    session.eventually(WAITING, "2");
    gatekeeper.run("SELECT pg_advisory_unlock(1)");
    session.eventually("SELECT count(*) FROM a JOIN b USING (id)", "1");
}

/// `c` and `d` read `b`... all of them `t`, in the end. Each row of `t` has v = 1.
fn diamond(session: &mut Session) {
    session.run("CREATE TABLE t (id int PRIMARY KEY, g int, v int)");
    session.run("INSERT INTO t SELECT i, i % 3, 1 FROM generate_series(1, 9) i");
    for (name, query) in DIAMOND {
        session.run(&format!("SELECT pgstream.create_stream_table('{name}', '{query}', '1s')"));
    }
}

const DIAMOND: [(&str, &str); 3] = [
    ("b", "SELECT g, sum(v) AS s FROM t GROUP BY g"),
    ("c", "SELECT g, count(*) AS n FROM t GROUP BY g"),
    ("d", "SELECT g, s, n FROM b JOIN c USING (g)"),
];

const TORN: &str = "SELECT count(*) FROM b FULL JOIN c USING (g) FULL JOIN d USING (g)
    WHERE (b.s, b.s, b.s) IS DISTINCT FROM (c.n, d.s, d.n)";

#[test]
fn a_diamond_is_refreshed_at_one_snapshot_whatever_commits_in_between() {
    let database = database();
    let (mut gatekeeper, mut session) = (database.session(), database.session());
    diamond(&mut session);
    // `c` is refreshed after `b` and before `d`.
    gate(&mut session, "c", 1);
    gatekeeper.run("SELECT pg_advisory_lock(1)");
    session.run("INSERT INTO t VALUES (100, 1, 1)");
    session.eventually(WAITING, "1");
    assert_eq!(session.value(TORN), "0");
    assert_eq!(session.value("SELECT sum(s) FROM b"), "9");
    session.run("INSERT INTO t VALUES (101, 2, 1), (102, 7, 1)");
    gatekeeper.run("SELECT pg_advisory_unlock(1)");
    // Both that were committed before, and none of those after, in all three at once.
    session.eventually("SELECT sum(s) > 9 FROM b", "t");
    assert_eq!(session.value(TORN), "0");
    session.eventually("SELECT sum(n) FROM d", "12");
    for (name, query) in DIAMOND {
        same(&mut session, name, query);
    }
    let frontiers = "SELECT count(DISTINCT frontier ->> 'lsn') > 0, count(DISTINCT data_timestamp) FROM pgstream.pgs_stream_tables";
    session.eventually(frontiers, "t|1");
}

#[test]
fn a_diamond_is_never_torn_under_writers() {
    let database = database();
    let mut session = database.session();
    diamond(&mut session);
    let writers: Vec<_> = (1..=2)
        .map(|number| {
            let mut writer = database.session();
            thread::spawn(move || {
                let mut round = 0;
                while writer.value("SELECT count(*) FROM pg_class WHERE relname = 'stop'") == "0" {
                    let id = number * 1_000_000 + round;
                    writer.run(&format!(
                        "INSERT INTO t VALUES ({id}, {round} % 5, 1); DELETE FROM t WHERE id = {id} - 20;
                         UPDATE t SET g = (g + 1) % 5 WHERE id = {id} - 3"
                    ));
                    round += 1;
                }
            })
        })
        .collect();
    let rounds = "SELECT count(*) > 5 FROM pgstream.pgs_refresh_history h
        JOIN pgstream.pgs_stream_tables USING (pgs_id)
        WHERE pgs_name = 'd' AND initiated_by = 'SCHEDULER' AND h.status = 'COMPLETED'";
    while session.value(rounds) == "f" {
        assert_eq!(session.value(TORN), "0");
    }
    session.run("CREATE TABLE stop ()");
    for writer in writers {
        writer.join().expect("it stops");
    }
    session.eventually("SELECT count(*) FROM d FULL JOIN (SELECT g, count(*) AS m FROM t GROUP BY g) AS q USING (g)
         WHERE (s, n) IS DISTINCT FROM (m, m)",
        "0",
    );
    for (name, query) in DIAMOND {
        same(&mut session, name, query);
    }
}

#[test]
fn a_failing_table_does_not_hold_up_its_siblings_nor_a_suspended_one_its_readers() {
    let database = database();
    let mut session = database.session();
    session
        .run("CREATE TABLE t (id int PRIMARY KEY, g int, v int); INSERT INTO t VALUES (1, 1, 1)");
    for (name, query) in [
        ("b", "SELECT id, 1 / v AS q FROM t"),
        ("c", "SELECT id, v FROM t"),
        ("d", "SELECT id, q, v FROM b RIGHT JOIN c USING (id)"),
    ] {
        session.run(&format!("SELECT pgstream.create_stream_table('{name}', '{query}', '1s')"));
    }
    session.run("INSERT INTO t VALUES (2, 1, 0)");
    session.eventually("SELECT count(*) FROM c", "2");
    session.eventually(
        "SELECT status, consecutive_errors FROM pgstream.pgs_status() WHERE name = 'public.b'",
        "SUSPENDED|3",
    );
    // It reads what the suspended one holds.
    session.eventually("SELECT count(*), count(q) FROM d", "2|1");
    // The pauses between the failures double.
    let pauses =
        "SELECT count(*) FROM (SELECT start_time - lag(end_time) OVER (ORDER BY refresh_id) >=
            make_interval(secs => power(2, row_number() OVER (ORDER BY refresh_id) - 2)) AS ok
        FROM pgstream.get_refresh_history('b') WHERE status = 'FAILED') AS q WHERE ok";
    assert_eq!(session.value(pauses), "2");
    session.run("UPDATE t SET v = 2 WHERE v = 0; SELECT pgstream.resume_stream_table('b')");
    session.eventually("SELECT count(*), count(q) FROM d", "2|2");
    assert_eq!(session.value(RUNNING), "0");
}

#[test]
fn a_diamond_is_not_torn_by_a_side_that_fails() {
    let database = Database::on(server(&["pg_stream.max_consecutive_errors=100"]));
    let mut session = database.session();
    diamond(&mut session);
    session.run("SELECT pgstream.create_stream_table('e', 'SELECT sum(s) AS s FROM b', '1s')");
    session.run("ALTER TABLE b ADD CONSTRAINT small CHECK (s < 4)");
    for id in 100..103 {
        session.run(&format!("INSERT INTO t VALUES ({id}, 1, 1)"));
        session.eventually("SELECT sum(n) FROM c", &(id - 90).to_string());
        let failures = format!(
            "SELECT consecutive_errors >= {} FROM pgstream.pgs_status() WHERE name = 'public.b'",
            id - 99
        );
        session.eventually(&failures, "t");
        assert_eq!(session.value("SELECT sum(s), sum(n) FROM d"), "9|9");
    }
    // What reads the failing one and nothing else goes on.
    let is_fresh = "SELECT data_timestamp > now() - interval '3 s' FROM pgstream.pgs_stream_tables WHERE pgs_name = 'e'";
    session.eventually(is_fresh, "t");
    session.run("ALTER TABLE b DROP CONSTRAINT small");
    session.eventually("SELECT sum(s), sum(n) FROM d", "12|12");
    assert_eq!(session.value(TORN), "0");
}

#[test]
fn a_diamond_is_not_torn_by_a_slow_side_that_fails() {
    let database = Database::on(server(&["pg_stream.max_consecutive_errors=100"]));
    let mut session = database.session();
    session.run(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1);
         CREATE FUNCTION slow(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
         'BEGIN PERFORM pg_sleep(1.2); RETURN $1; END'",
    );
    for (name, query, schedule) in [
        ("b", "SELECT id, v FROM t", "3s"),
        ("c", "SELECT id, slow(v) AS v FROM t", "3s"),
        // It does not wait for the others, which take longer than a second.
        ("d", "SELECT (SELECT sum(v) FROM b) AS b, sum(v) AS c FROM c", "1s"),
    ] {
        session.run(&format!(
            "SELECT pgstream.create_stream_table('{name}', '{query}', '{schedule}')"
        ));
    }
    session.run("ALTER TABLE b ADD CONSTRAINT small CHECK (v < 100); INSERT INTO t VALUES (2, 2)");
    session.eventually("SELECT b, c FROM d", "3|3");
    session.run("INSERT INTO t VALUES (3, 1000)");
    session.eventually("SELECT sum(v) FROM c", "1003");
    for errors in 1..5 {
        let failures = format!(
            "SELECT consecutive_errors >= {errors} FROM pgstream.pgs_status() WHERE name = 'public.b'"
        );
        session.eventually(&failures, "t");
        assert_eq!(session.value("SELECT b, c FROM d"), "3|3");
    }
    session.run("ALTER TABLE b DROP CONSTRAINT small");
    session.eventually("SELECT b, c FROM d", "1003|1003");
}

#[test]
fn a_diamond_is_not_torn_by_a_commit_that_fails() {
    let database = Database::on(server(&["synchronous_commit=local"]));
    let mut session = database.session();
    diamond(&mut session);
    // They see the table itself and through a side.
    for name in ["e", "f"] {
        let query = "SELECT sum(s) AS s, (SELECT count(*) FROM t) AS n FROM b";
        session.run(&format!("SELECT pgstream.create_stream_table('{name}', '{query}', '1s')"));
    }
    // It waits for a standby that there is not, and has the lock that a commit with alerts needs.
    session.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    session.run("SELECT pg_reload_conf()");
    let mut other = database.session();
    let pid = other.value("SELECT pg_backend_pid()");
    let other = thread::spawn(move || {
        other.run("SET synchronous_commit = on");
        // It is committed all the same.
        other.run("BEGIN; NOTIFY something; CREATE TABLE something (); COMMIT");
    });
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'SyncRep'"
    );
    session.eventually(&waits, "1");
    session.run("INSERT INTO t VALUES (100, 1, 1)");
    // Refreshing them together has failed, and so has the first one alone.
    let skipped = "SELECT count(*) > 0 FROM pgstream.pgs_refresh_history WHERE status = 'SKIPPED'";
    session.eventually(skipped, "t");
    session.run(&format!("SELECT pg_cancel_backend({pid})"));
    other.join().expect("it goes on");
    loop {
        let sums = session.rows(
            "SELECT sum(s), sum(n) FROM d UNION ALL SELECT s, n FROM e UNION ALL SELECT s, n FROM f",
        );
        let is_torn = sums.iter().any(|it| !["9|9", "10|10"].contains(&it.as_str()));
        assert!(!is_torn, "{sums:?}");
        if sums.iter().all(|it| it == "10|10") {
            break;
        }
    }
}

#[test]
fn a_diamond_over_a_table_and_a_part_of_it_is_not_torn_by_a_side_that_fails() {
    let database = Database::on(server(&["pg_stream.max_consecutive_errors=100"]));
    let mut session = database.session();
    session.run(
        "CREATE TABLE p (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); INSERT INTO p VALUES (1, 1);
         CREATE TABLE u (id int PRIMARY KEY, w int); INSERT INTO u VALUES (1, 1)",
    );
    for (name, query) in [
        ("a", "SELECT id, 10 / v AS x, v FROM p"),
        ("d", "SELECT id, w FROM u"),
        (
            "tip",
            "SELECT id, a.v AS v1, p1.v AS v2, u.w FROM a JOIN p1 USING (id) JOIN u USING (id)",
        ),
        // It reads the tip, and a source of it on another way.
        ("top", "SELECT id, tip.w AS w1, d.w AS w2 FROM tip JOIN d USING (id)"),
    ] {
        session.run(&format!("SELECT pgstream.create_stream_table('{name}', '{query}', '1s')"));
    }
    session.run("UPDATE p SET v = 0; UPDATE u SET w = 2");
    session.eventually("SELECT w FROM d", "2");
    for errors in 1..4 {
        let failures = format!(
            "SELECT consecutive_errors >= {errors} FROM pgstream.pgs_status() WHERE name = 'public.a'"
        );
        session.eventually(&failures, "t");
        assert_eq!(session.value("SELECT v1, v2, w, w1, w2 FROM tip, top"), "1|1|1|1|1");
    }
    session.run("UPDATE p SET v = 5");
    session.eventually("SELECT v1, v2, w, w1, w2 FROM tip, top", "5|5|2|2|2");
}

#[test]
fn a_refresh_that_outlives_its_scheduler_and_is_terminated_is_not_left_running() {
    let database = database();
    let (mut gatekeeper, mut session) = (database.session(), database.session());
    two_tables(&mut session);
    gate(&mut session, "a", 1);
    gatekeeper.run("SELECT pg_advisory_lock(1)");
    session.run("INSERT INTO t VALUES (1, 1)");
    session.eventually(WAITING, "1");
    let worker = session.value("SELECT pid FROM pg_stat_activity WHERE wait_event = 'advisory'");
    let scheduler = "SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE backend_type = 'pg_stream scheduler'
                     AND wait_event = 'PgStreamSchedulerMain' AND datname = current_database()";
    let first = session.value(scheduler);
    session.run(&format!("SELECT pg_terminate_backend({first})"));
    session.eventually(&format!("SELECT ({scheduler}) NOT IN (0, {first})"), "t");
    // It has looked for what was interrupted when it refreshes something.
    session.run("INSERT INTO u VALUES (1, 1)");
    session.eventually("SELECT count(*) FROM b", "1");
    session.run(&format!("SELECT pg_terminate_backend({worker})"));
    session.eventually(&format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {worker}"), "0");
    gatekeeper.run("SELECT pg_advisory_unlock(1)");
    session.eventually("SELECT count(*) FROM a", "1");
    session.eventually(RUNNING, "0");
}

#[test]
fn a_refresh_gives_in_however_long_it_has_waited() {
    let database = database();
    let (mut user, mut session) = (database.session(), database.session());
    session.run("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY, v int)");
    session.run(
        "SELECT pgstream.create_stream_table('j', 'SELECT id, v FROM t JOIN u USING (id)', '1s')",
    );
    user.run("BEGIN; LOCK TABLE u");
    session.run("INSERT INTO t VALUES (1)");
    // Each attempt has more patience.
    let skipped = "SELECT count(*) > 2 FROM pgstream.pgs_refresh_history WHERE status = 'SKIPPED'";
    session.eventually(skipped, "t");
    // It has looked for a deadlock when it had waited for 100 ms.
    let waiting = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE query = 'REFRESH STREAM TABLE public.j' AND waitstart < clock_timestamp() - interval '200 ms'";
    session.eventually(waiting, "1");
    user.run("ALTER TABLE t ADD COLUMN z int; COMMIT");
    session.run("INSERT INTO u VALUES (1, 1)");
    session.eventually("SELECT count(*) FROM j", "1");
}

#[test]
fn a_full_queue_of_notifications_stops_no_refresh() {
    let database = Database::on(server(&["max_notify_queue_pages=64"]));
    let (mut listener, mut session) = (database.session(), database.session());
    two_tables(&mut session);
    listener.run("LISTEN something");
    listener.run("BEGIN; SELECT txid_current()");
    let notify = "SELECT count(pg_notify('something', repeat('x', 7000) || i)) FROM generate_series(1, 10) i";
    while session.try_run(notify).is_ok() {}
    session.run("INSERT INTO t VALUES (1, 1)");
    session.eventually("SELECT count(*) FROM a", "1");
    session.run("SELECT pgstream.refresh_stream_table('a')");
    // Nobody reads the queue any more: there is room as soon as somebody looks.
    drop(listener);
    session.run("LISTEN pg_stream_alert; INSERT INTO u VALUES (1, 1)");
    session.eventually("SELECT count(*) FROM b", "1");
    assert_ne!(session.notifications("pg_stream_alert"), Vec::<String>::new());
    session.eventually(RUNNING, "0");
}

#[test]
fn a_locked_catalog_is_waited_for() {
    let database = database();
    let (mut locker, mut session) = (database.session(), database.session());
    diamond(&mut session);
    locker.run("BEGIN; LOCK TABLE pgstream.pgs_refresh_history IN SHARE MODE");
    session.run("INSERT INTO t VALUES (100, 1, 1)");
    session.eventually("SELECT bool_and(clock_timestamp() > data_timestamp + interval '5 seconds') FROM pgstream.pgs_stream_tables",
        "t",
    );
    assert_eq!(session.value(TORN), "0");
    locker.run("COMMIT");
    session.eventually("SELECT sum(n) FROM d", "10");
    assert_eq!(session.value("SELECT sum(consecutive_errors) FROM pgstream.pgs_status()"), "0");
}

#[test]
fn a_locked_source_holds_up_nobody_else_and_is_no_failure() {
    let database = database();
    let (mut locker, mut session) = (database.session(), database.session());
    two_tables(&mut session);
    session.run("INSERT INTO t VALUES (1, 1)");
    session.run("INSERT INTO u VALUES (1, 1)");
    locker.run("BEGIN; LOCK TABLE t");
    session.eventually("SELECT count(*) FROM b", "1");
    session.eventually("SELECT count(*) > 0 FROM pgstream.get_refresh_history('a') WHERE status = 'SKIPPED' AND action = 'SKIP'",
        "t",
    );
    session.run("INSERT INTO u VALUES (2, 1)");
    session.eventually("SELECT count(*) FROM b", "2");
    assert_eq!(session.value("SELECT sum(consecutive_errors) FROM pgstream.pgs_status()"), "0");
    locker.run("COMMIT");
    session.eventually("SELECT count(*) FROM a", "1");
}

#[test]
fn who_waits_for_locks_does_not_keep_all_workers_from_others() {
    let database = Database::on(server(&["pg_stream.max_concurrent_refreshes=1"]));
    let (mut locker, mut session) = (database.session(), database.session());
    two_tables(&mut session);
    locker.run("BEGIN; LOCK TABLE t");
    let skipped = "SELECT count(*) FROM pgstream.get_refresh_history('a') WHERE status = 'SKIPPED'";
    for id in 0.. {
        session.run(&format!("INSERT INTO u VALUES ({id}, 1)"));
        let is_there = format!("SELECT count(*) FROM b WHERE id = {id}");
        let before = session.value("SELECT clock_timestamp()");
        session.eventually(&is_there, "1");
        let soon = format!("SELECT clock_timestamp() < '{before}'::timestamptz + interval '3 s'");
        assert_eq!(session.value(&soon), "t");
        if session.value(skipped) == "4" {
            break;
        }
    }
    locker.run("COMMIT; INSERT INTO t VALUES (1, 1)");
    session.eventually("SELECT count(*) FROM a", "1");
}

#[test]
fn a_manual_refresh_in_an_open_transaction_is_waited_for() {
    let database = database();
    let (mut other, mut session) = (database.session(), database.session());
    two_tables(&mut session);
    other.run("BEGIN; INSERT INTO t VALUES (1, 1); SELECT pgstream.refresh_stream_table('a')");
    session.run("INSERT INTO t VALUES (2, 1); INSERT INTO u VALUES (2, 1)");
    session.eventually("SELECT count(*) FROM b", "1");
    session.eventually(
        "SELECT count(*) > 0 FROM pgstream.get_refresh_history('a') WHERE status = 'SKIPPED'",
        "t",
    );
    assert_eq!(session.value("SELECT count(*) FROM a"), "0");
    other.run("COMMIT");
    session.eventually("SELECT count(*) FROM a", "2");
}

#[test]
fn a_cron_table_catches_up_once_and_fires_no_more_after_a_restart() {
    let database = Database::on(server(&["pg_stream.enabled=off"]));
    let mut session = database.session();
    two_tables(&mut session);
    session.run("SELECT pgstream.alter_stream_table('a', schedule => '0 0 1 1 *')");
    let refreshes = "SELECT count(*) FROM pgstream.get_refresh_history('a') WHERE status = 'COMPLETED' AND action = 'DIFFERENTIAL'";
    session.run("INSERT INTO t VALUES (1, 1)");
    // As if three New Years had gone by while nobody was there.
    session.run(
        "UPDATE pgstream.pgs_stream_tables SET data_timestamp = now() - interval '3 years',
             scheduled_at = now() - interval '4 years' WHERE pgs_name = 'a'",
    );
    session.run("ALTER SYSTEM SET pg_stream.enabled = on");
    session.run("SELECT pg_reload_conf()");
    session.eventually("SELECT count(*) FROM a", "1");
    for round in 2..4 {
        session.run(&format!("INSERT INTO t VALUES ({round}, 1)"));
        session.run(&format!("INSERT INTO u VALUES ({round}, 1)"));
        session.eventually("SELECT max(id) FROM b", &round.to_string());
        assert_eq!(session.value(refreshes), "1");
    }
    drop(session);
    database.server().stop();
    database.server().start_again();
    let mut session = database.session();
    session.run("INSERT INTO u VALUES (4, 1)");
    session.eventually("SELECT max(id) FROM b", "4");
    assert_eq!(session.value(refreshes), "1");
    assert_eq!(session.value("SELECT count(*) FROM a"), "1");
    // A pattern that is chosen now does not fire for what was before.
    session.run("SELECT pgstream.alter_stream_table('a', schedule => '@yearly'); INSERT INTO u VALUES (5, 1)");
    session.eventually("SELECT max(id) FROM b", "5");
    assert_eq!(session.value(refreshes), "1");
}

#[test]
fn without_workers_the_scheduler_refreshes_by_itself_and_says_so_once() {
    // One each for the launcher of logical replication, for ours, and for the scheduler.
    let database = Database::on(server(&["max_worker_processes=3"]));
    let mut session = database.session();
    two_tables(&mut session);
    for round in 1..4 {
        session
            .run(&format!("INSERT INTO t VALUES ({round}, 1); INSERT INTO u VALUES ({round}, 1)"));
        session.eventually("SELECT max(a.id), max(b.id) FROM a, b", &format!("{round}|{round}"));
    }
    let log = database.server().log();
    let warnings =
        log.matches("of the workers that pg_stream.max_concurrent_refreshes allows").count();
    assert_eq!(warnings, 1, "{log}");
}

#[test]
fn a_database_can_be_dropped_while_it_is_being_refreshed() {
    let server = server(&[]);
    let mut admin = server.session("postgres");
    admin.run("CREATE DATABASE short_lived");
    let mut session = server.session("short_lived");
    session.run("CREATE EXTENSION pg_stream");
    two_tables(&mut session);
    session.run(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pg_catalog.pg_sleep(3600); RETURN NULL; END $$;
         CREATE TRIGGER wait AFTER INSERT ON a FOR EACH ROW EXECUTE FUNCTION wait();
         CREATE TRIGGER wait AFTER INSERT ON b FOR EACH ROW EXECUTE FUNCTION wait()",
    );
    session.run("INSERT INTO t VALUES (1, 1); INSERT INTO u VALUES (1, 1)");
    session.eventually("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE 'REFRESH STREAM TABLE %'",
        "2",
    );
    drop(session);
    admin.run("DROP DATABASE short_lived");
    assert_eq!(
        admin.value(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_stream refresh%'"
        ),
        "0"
    );
    // Another one with the same name finds everything as new.
    admin.run("CREATE DATABASE short_lived");
    let mut session = server.session("short_lived");
    session.run("CREATE EXTENSION pg_stream");
    two_tables(&mut session);
    session.run("INSERT INTO t VALUES (1, 1)");
    session.eventually("SELECT count(*) FROM a", "1");
}

#[test]
fn the_extension_comes_and_goes_under_a_running_scheduler() {
    let database = database();
    let mut session = database.session();
    for round in 0..3 {
        two_tables(&mut session);
        session.run("INSERT INTO t VALUES (1, 1)");
        session.eventually("SELECT count(*) FROM a", "1");
        session.run("DROP EXTENSION pg_stream CASCADE; DROP TABLE IF EXISTS a, b; DROP TABLE t, u");
        if round == 1 {
            // It has ended before the extension comes back.
            let mut admin = database.server().session("postgres");
            let schedulers = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_stream%' AND datname = '{}'",
                database.name()
            );
            let mut last = String::new();
            for _ in 0..600 {
                last = admin.value(&schedulers);
                if last == "0" {
                    break;
                }
                thread::park_timeout(Duration::from_millis(50));
            }
            assert_eq!(last, "0");
        }
        session.run("CREATE EXTENSION pg_stream");
    }
}

#[test]
fn stream_tables_of_an_extension_that_was_created_again_are_new() {
    let database = database();
    let mut session = database.session();
    for _ in 0..3 {
        // The scheduler sees each extension for the first time when everything is there.
        session.run("BEGIN");
        session.run("DROP EXTENSION pg_stream CASCADE; DROP TABLE IF EXISTS a, b, t, u");
        session.run("CREATE EXTENSION pg_stream");
        two_tables(&mut session);
        session.run("INSERT INTO t VALUES (1, 1)");
        session.run("COMMIT");
        session.eventually("SELECT count(*) FROM a", "1");
    }
}

#[test]
fn a_view_that_is_replaced_is_followed_whatever_was_counted_before() {
    let database = database();
    let mut session = database.session();
    session.run(
        "CREATE TABLE t (id int); CREATE TABLE u (id int); CREATE VIEW w AS SELECT id FROM t;
         SELECT pgstream.create_stream_table('a', 'SELECT id FROM w', '1s')",
    );
    for id in 1..=3 {
        session.run(&format!("INSERT INTO t VALUES ({id})"));
        session.eventually("SELECT count(*) FROM a", &id.to_string());
    }
    session.run("CREATE OR REPLACE VIEW w AS SELECT id FROM u");
    for id in 1..=5 {
        session.run(&format!("INSERT INTO u VALUES ({id})"));
        session.eventually("SELECT count(*) FROM a", &id.to_string());
    }
}

#[test]
fn a_worker_that_is_terminated_leaves_a_failure_behind() {
    let database = database();
    let (mut gatekeeper, mut session) = (database.session(), database.session());
    two_tables(&mut session);
    gate(&mut session, "a", 1);
    gatekeeper.run("SELECT pg_advisory_lock(1)");
    session.run("INSERT INTO t VALUES (1, 1)");
    session.eventually(WAITING, "1");
    session.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'advisory'",
    );
    session.eventually("SELECT count(*) FROM pgstream.get_refresh_history('a') WHERE status = 'FAILED' AND error_message = 'the refresh was terminated'",
        "1",
    );
    gatekeeper.run("SELECT pg_advisory_unlock(1)");
    session.eventually("SELECT count(*) FROM a", "1");
    session.eventually("SELECT sum(consecutive_errors) FROM pgstream.pgs_status()", "0");
    assert_eq!(session.value(RUNNING), "0");
}

#[test]
fn a_crash_of_the_server_leaves_a_failure_behind() {
    let database = Database::on(Server::start(&SETTINGS[1..]));
    let (mut gatekeeper, mut session) = (database.session(), database.session());
    two_tables(&mut session);
    gate(&mut session, "a", 1);
    gatekeeper.run("SELECT pg_advisory_lock(1)");
    session.run("INSERT INTO t VALUES (1, 1)");
    session.eventually(WAITING, "1");
    database.server().kill();
    drop((gatekeeper, session));
    database.server().start_again();
    let mut session = database.session();
    session.eventually("SELECT count(*) FROM a", "1");
    let failed = "SELECT count(*) FROM pgstream.get_refresh_history('a') WHERE status = 'FAILED' AND error_message = 'interrupted by a restart'";
    assert_eq!(session.value(failed), "1");
    assert_eq!(session.value(RUNNING), "0");
}

/// Otherwise nobody could connect, to do something about it.
#[test]
fn a_refresh_that_crashes_the_server_is_tried_again_after_growing_pauses() {
    let database = database();
    let mut session = database.session();
    two_tables(&mut session);
    // What was committed so is lost when the server crashes soon after.
    session.run("ALTER SYSTEM SET synchronous_commit = off");
    session.run("ALTER SYSTEM SET pg_stream.inject_fault = 'rows-inserted'");
    session.run("ALTER SYSTEM SET pg_stream.inject_fault_action = crash");
    session.run("SELECT pg_reload_conf()");
    session.run("SET synchronous_commit = on; INSERT INTO t VALUES (1, 1)");
    let failures = "SELECT count(*) FROM pgstream.get_refresh_history('a')
        WHERE status = 'FAILED' AND error_message = 'interrupted by a restart'";
    let has_enough = || {
        let found = database.try_session().and_then(|mut it| it.try_rows(failures));
        found.is_ok_and(|it| it[0].parse::<i32>().is_ok_and(|it| it >= 3))
    };
    let mut tries = 0;
    while !has_enough() {
        tries += 1;
        assert!(tries < 300, "no failures are written down");
        thread::park_timeout(Duration::from_millis(100));
    }
    let mut session = database.session_after_crash();
    session.run("ALTER SYSTEM RESET pg_stream.inject_fault");
    session.run("SELECT pg_reload_conf()");
    let pauses = "SELECT count(*), bool_and(pause >= interval '0.9 s' * 2 ^ (number - 2)) FROM (
        SELECT row_number() OVER w AS number, start_time - lag(end_time) OVER w AS pause
        FROM pgstream.get_refresh_history('a', 100) WHERE status = 'FAILED' WINDOW w AS (ORDER BY refresh_id)
    ) AS q WHERE number > 1";
    let found = session.value(pauses);
    assert!(found == "2|t" || found == "3|t", "{found}");
    assert_eq!(
        session.value("SELECT status FROM pgstream.pgs_status() WHERE name = 'public.a'"),
        "ACTIVE"
    );
    session.eventually("SELECT count(*) FROM a", "1");
    session.eventually("SELECT sum(consecutive_errors) FROM pgstream.pgs_status()", "0");
}

#[test]
fn it_can_be_switched_off_and_on() {
    let database = database();
    let mut session = database.session();
    two_tables(&mut session);
    session.run("ALTER SYSTEM SET pg_stream.enabled = off");
    session.run("SELECT pg_reload_conf()");
    session.run("INSERT INTO t VALUES (1, 1); SELECT pgstream.refresh_stream_table('a')");
    session.run("INSERT INTO t VALUES (2, 1)");
    session.eventually("SELECT clock_timestamp() > data_timestamp + interval '3 seconds' FROM pgstream.pgs_stream_tables WHERE pgs_name = 'a'",
        "t",
    );
    assert_eq!(session.value("SELECT count(*) FROM a"), "1");
    session.run("ALTER SYSTEM SET pg_stream.enabled = on");
    session.run("SELECT pg_reload_conf()");
    session.eventually("SELECT count(*) FROM a", "2");
}

#[test]
fn a_standby_rests_until_it_is_promoted() {
    let database = database();
    let mut session = database.session();
    two_tables(&mut session);
    session.run("ALTER SYSTEM SET pg_stream.enabled = off");
    session.run("SELECT pg_reload_conf(); INSERT INTO t VALUES (1, 1)");
    session.run("ALTER SYSTEM SET pg_stream.enabled = on");
    drop(session);
    database.server().stop();
    database.server().become_standby();
    database.server().start_again();
    let mut session = database.session();
    assert_eq!(session.value("SELECT pg_is_in_recovery()"), "t");
    let processes = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_stream%'";
    assert_eq!(session.value(processes), "0");
    session.run("SELECT pg_promote()");
    session.eventually("SELECT count(*) FROM a", "1");
}

#[test]
fn a_prepared_transaction_is_seen_when_it_commits() {
    let database = database();
    let mut session = database.session();
    two_tables(&mut session);
    session.run("INSERT INTO t VALUES (1, 1)");
    session.eventually("SELECT count(*) FROM a", "1");
    session.run("BEGIN; INSERT INTO t VALUES (2, 1); PREPARE TRANSACTION 'p'");
    session.run("INSERT INTO u VALUES (1, 1)");
    session.eventually("SELECT count(*) FROM b", "1");
    session.run("COMMIT PREPARED 'p'");
    session.eventually("SELECT count(*) FROM a", "2");
}

/// Crashes the server and starts it again with one more setting.
fn restart(database: &Database, setting: &str) -> Session {
    database.server().kill();
    database.server().set(&[setting]);
    database.server().start_again();
    database.session()
}

#[test]
fn the_commit_of_a_prepared_transaction_wakes_the_scheduler() {
    let database = database();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int)");
    session.run("SELECT pgstream.create_stream_table('a', 'SELECT id, v FROM t', '1h')");
    for number in 1..3 {
        let insert = format!("BEGIN; INSERT INTO t VALUES ({number}); PREPARE TRANSACTION 'p'");
        session = restart(&database, "pg_stream.enabled=off");
        // For a scheduler that starts it has rested for its period, and the next change is due at once.
        session
            .run("UPDATE pgstream.pgs_stream_tables SET data_timestamp = now() - interval '2 h'");
        if number == 2 {
            // Nobody tells the scheduler of it.
            session.run(&insert);
        }
        session = restart(&database, "pg_stream.enabled=on");
        let is_fresh = "SELECT max(staleness) < interval '1 h' FROM pgstream.pgs_status()";
        session.eventually(is_fresh, "t");
        if number == 1 {
            session.run(&insert);
        }
        session.run("COMMIT PREPARED 'p'");
        session.eventually("SELECT count(*) FROM a", &number.to_string());
    }
}

#[test]
fn a_stream_table_of_a_prepared_transaction_is_refreshed_from_its_commit_on() {
    let database = database();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int)");
    session.run(
        "BEGIN; SELECT pgstream.create_stream_table('a', 'SELECT id, v FROM t', '1s'); PREPARE TRANSACTION 'p'",
    );
    session.run("COMMIT PREPARED 'p'");
    session.run("INSERT INTO t VALUES (1, 1)");
    session.eventually("SELECT count(*) FROM a", "1");
}

#[test]
fn what_has_not_changed_stays_fresh() {
    let database = database();
    let mut session = database.session();
    diamond(&mut session);
    for _ in 0..2 {
        let since = session.value("SELECT clock_timestamp() + interval '3 seconds'");
        let fresh = format!(
            "SELECT bool_and(data_timestamp > '{since}' AND last_refresh_at > '{since}') FROM pgstream.pgs_stream_tables"
        );
        session.eventually(&fresh, "t");
        assert_eq!(
            session.value(
                "SELECT bool_or(staleness > interval '3 seconds') FROM pgstream.pgs_status()"
            ),
            "f"
        );
    }
    let runs = "SELECT count(*) FROM pgstream.pgs_refresh_history WHERE initiated_by = 'SCHEDULER'";
    assert_eq!(session.value(runs), "0");
    // And yet it notices a change.
    session.run("INSERT INTO t VALUES (100, 1, 1)");
    session.eventually("SELECT sum(n) FROM d", "10");
}

#[test]
fn a_damaged_table_is_rebuilt_with_its_unit() {
    let database = database();
    let mut session = database.session();
    diamond(&mut session);
    session.eventually("SELECT bool_and(data_timestamp > created_at + interval '2 seconds') FROM pgstream.pgs_stream_tables",
        "t",
    );
    // Behind the back of the idle scheduler.
    session.run(
        "SET LOCAL event_triggers = off; ALTER TABLE c DISABLE TRIGGER pg_stream_guard; UPDATE c SET n = 77;
         ALTER TABLE c ENABLE ALWAYS TRIGGER pg_stream_guard",
    );
    session.eventually("SELECT sum(n) FROM c", "9");
    session.eventually(TORN, "0");
    session.run("INSERT INTO t VALUES (100, 1, 1)");
    session.eventually("SELECT sum(n) FROM d", "10");
    assert_eq!(session.value(TORN), "0");
    for (name, query) in DIAMOND {
        same(&mut session, name, query);
    }
}

/// Three levels, each with its schedule.
const LEVELS: [(&str, &str, &str); 7] = [
    ("a", "CALCULATED", "SELECT g, count(*) AS n, sum(v) AS s, max(v) AS m FROM t GROUP BY g"),
    ("b", "1s", "SELECT t.id, t.g, u.name FROM t JOIN u USING (g)"),
    ("c", "2s", "SELECT DISTINCT g, name FROM b"),
    ("d", "1s", "SELECT a.g, a.s, a.n, c.name FROM a LEFT JOIN c USING (g)"),
    ("e", "1s", "SELECT name, sum(n) AS n, count(*) AS groups FROM d GROUP BY name"),
    ("f", "2s", "SELECT g, row_number() OVER (PARTITION BY name ORDER BY g) AS r FROM c"),
    ("h", "1s", "SELECT count(*) AS n FROM u"),
];

#[test]
fn cancels_terminations_locks_and_manual_refreshes_leave_everything_right() {
    let database = database();
    let mut session = database.session();
    session.run(
        "CREATE TABLE t (id int PRIMARY KEY, g int, v int); CREATE TABLE u (g int PRIMARY KEY, name text);
         INSERT INTO t SELECT i, i % 7, i FROM generate_series(1, 50) i;
         INSERT INTO u SELECT i, 'name ' || i % 3 FROM generate_series(0, 5) i",
    );
    for (name, schedule, query) in LEVELS {
        session.run(&format!(
            "SELECT pgstream.create_stream_table('{name}', $q${query}$q$, '{schedule}')"
        ));
    }
    let writers: Vec<_> = (1..=3)
        .map(|number| {
            let mut writer = database.session();
            thread::spawn(move || {
                let mut round = 0;
                while writer.value("SELECT count(*) FROM pg_class WHERE relname = 'stop'") == "0" {
                    let id = number * 1_000_000 + round;
                    writer.run(&format!(
                        "INSERT INTO t VALUES ({id}, {round} % 9, {round}); DELETE FROM t WHERE id = {id} - 30;
                         UPDATE t SET g = (g + 1) % 9, v = v - 1 WHERE id = {id} - 3"
                    ));
                    writer.run(&format!(
                        "INSERT INTO u VALUES ({number} + 6 , 'x') ON CONFLICT (g) DO UPDATE SET name = 'name ' || {round} % 4"
                    ));
                    round += 1;
                }
            })
        })
        .collect();
    let worker =
        "SELECT {}(pid) FROM pg_stat_activity WHERE backend_type = 'pg_stream refresh worker'
         AND state = 'active' AND query LIKE 'REFRESH%' LIMIT 1";
    for round in 0..40 {
        match round % 5 {
            0 => session.run(&worker.replace("{}", "pg_cancel_backend")),
            1 => session.run(&worker.replace("{}", "pg_terminate_backend")),
            2 => session.run("BEGIN; LOCK TABLE t; SELECT pg_sleep(0.05); COMMIT"),
            3 => session.run("ALTER TABLE u ADD COLUMN IF NOT EXISTS note text"),
            _ => session.run(&format!(
                "SELECT pgstream.refresh_stream_table('{}')",
                LEVELS[round % LEVELS.len()].0
            )),
        }
        if round == 20 {
            session.run(
                &worker
                    .replace("refresh worker", "scheduler")
                    .replace("{}", "pg_terminate_backend"),
            );
        }
        let reached = "SELECT max(id) FROM t WHERE id < 2000000";
        let before: i64 = session.value(reached).parse().expect("a number");
        session
            .eventually(&format!("SELECT max(id) > {} FROM t WHERE id < 2000000", before + 5), "t");
    }
    session.run("CREATE TABLE stop ()");
    for writer in writers {
        writer.join().expect("it stops");
    }
    let states = "SELECT count(*) FROM pgstream.pgs_stream_tables WHERE status <> 'ACTIVE'";
    assert_eq!(session.value(states), "0");
    for (name, _, query) in LEVELS {
        let columns = session.value(&format!(
            "SELECT string_agg(attname, ', ') FROM pg_attribute WHERE attrelid = '{name}'::regclass
             AND attnum > 0 AND attname NOT LIKE '\\_\\_pgs%'"
        ));
        let differences = format!(
            "SELECT count(*) FROM ((SELECT {columns} FROM ({query}) AS q EXCEPT ALL SELECT {columns} FROM {name})
             UNION ALL (SELECT {columns} FROM {name} EXCEPT ALL SELECT {columns} FROM ({query}) AS q)) AS d"
        );
        session.eventually(&differences, "0");
    }
    for (name, _, query) in LEVELS {
        same(&mut session, name, query);
    }
    session.eventually(RUNNING, "0");
}

/// As many as a server has jobs for are lost in two rounds.
#[test]
fn workers_that_end_with_their_scheduler_are_replaced() {
    let database = Database::on(server(&[
        "max_worker_processes=40",
        "pg_stream.max_concurrent_refreshes=32",
        "pg_stream.max_consecutive_errors=100",
    ]));
    let (mut gatekeeper, mut session) = (database.session(), database.session());
    for number in 0..32 {
        session.run(&format!(
            "CREATE TABLE t{number} (id int PRIMARY KEY, v int);
             SELECT pgstream.create_stream_table('st{number}', 'SELECT id, v FROM t{number}', '1s')"
        ));
        gate(&mut session, &format!("st{number}"), 1);
    }
    gatekeeper.run("SELECT pg_advisory_lock(1)");
    for number in 0..32 {
        session.run(&format!("INSERT INTO t{number} VALUES (1, 1)"));
    }
    for _ in 0..2 {
        session.eventually(WAITING, "32");
        let scheduler = session.value(
            "SELECT pid FROM pg_stat_activity
             WHERE backend_type = 'pg_stream scheduler' AND datname = current_database()",
        );
        // It does not see the workers end.
        signal("STOP", &scheduler);
        session.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE backend_type = 'pg_stream refresh worker'",
        );
        session.eventually(WAITING, "0");
        session.run(&format!("SELECT pg_terminate_backend({scheduler})"));
        signal("CONT", &scheduler);
    }
    session.eventually(WAITING, "32");
    gatekeeper.run("SELECT pg_advisory_unlock(1)");
    for number in 0..32 {
        session.eventually(&format!("SELECT count(*) FROM st{number}"), "1");
    }
}

fn signal(name: &str, pid: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), pid]).status().expect("kill");
    assert!(status.success(), "kill -{name} {pid}");
}
