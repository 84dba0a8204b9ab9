//! It runs by itself. These tests have a server of their own, where the scheduler is on.

use pgstream_tests::{Comparison, Database, Server, difference};

fn server() -> Database {
    Database::on(Server::start(&[
        "fsync=off",
        "pg_stream.scheduler_interval_ms=100",
        "pg_stream.min_schedule_seconds=1",
    ]))
}

#[test]
fn a_stream_table_is_refreshed_when_it_is_due() {
    let database = server();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1)");
    session.run("SELECT pgstream.create_stream_table('st', 'SELECT sum(v) AS s FROM t', '1s')");
    session.run("INSERT INTO t VALUES (2, 10)");
    session.eventually("SELECT s FROM st", "11");
    session.run("UPDATE t SET v = v + 1");
    session.eventually("SELECT s FROM st", "13");
    let by = "SELECT count(*) > 0 FROM pgstream.pgs_refresh_history WHERE initiated_by = 'SCHEDULER' AND action = 'DIFFERENTIAL'";
    assert_eq!(session.value(by), "t");
}

#[test]
fn an_uninitialized_one_is_filled_at_its_first_due_time() {
    let database = server();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1)");
    session.run("SELECT pgstream.create_stream_table('st', 'SELECT sum(v) AS s FROM t', '1s', initialize => false)");
    session.eventually("SELECT status, is_populated FROM pgstream.pgs_status()", "ACTIVE|t");
    assert_eq!(session.value("SELECT s FROM st"), "1");
}

#[test]
fn a_chain_is_refreshed_in_order() {
    let database = server();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, g int, v int); INSERT INTO t SELECT i, i % 3, i FROM generate_series(1, 9) i");
    session.run("SELECT pgstream.create_stream_table('a', 'SELECT g, sum(v) AS s FROM t GROUP BY g', 'CALCULATED')");
    session.run("SELECT pgstream.create_stream_table('b', 'SELECT g, s * 2 AS d FROM a', NULL)");
    session.run("SELECT pgstream.create_stream_table('c', 'SELECT sum(d) AS total FROM b', '1s')");
    session.run("INSERT INTO t VALUES (100, 1, 100)");
    session.eventually("SELECT total FROM c", "290");
    for (name, query) in
        [("a", "SELECT g, sum(v) AS s FROM t GROUP BY g"), ("b", "SELECT g, s * 2 AS d FROM a")]
    {
        assert!(
            difference(&mut session, name, query, Comparison::Text).expect("comparable").is_none()
        );
    }
}

#[test]
fn a_failing_one_does_not_hold_up_the_others_and_is_suspended() {
    let database = server();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1)");
    session.run("SELECT pgstream.create_stream_table('bad', 'SELECT id, 1 / v AS q FROM t', '1s')");
    session.run("SELECT pgstream.create_stream_table('good', 'SELECT sum(v) AS s FROM t', '1s')");
    session.run("INSERT INTO t VALUES (2, 0), (3, 5)");
    session.eventually("SELECT s FROM good", "6");
    session.eventually(
        "SELECT status FROM pgstream.pgs_status() WHERE name = 'public.bad'",
        "SUSPENDED",
    );
    assert_eq!(session.value("SELECT count(*) FROM bad"), "1");
    session.run("UPDATE t SET v = 1 WHERE v = 0");
    session.run("SELECT pgstream.resume_stream_table('bad')");
    session.eventually("SELECT count(*) FROM bad", "3");
}

#[test]
fn it_starts_in_a_database_when_the_extension_is_created() {
    let server = Server::start(&[
        "fsync=off",
        "pg_stream.scheduler_interval_ms=100",
        "pg_stream.min_schedule_seconds=1",
    ]);
    let mut session = server.session("postgres");
    session.run(
        "CREATE EXTENSION pg_stream; CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)",
    );
    session.run("SELECT pgstream.create_stream_table('st', 'SELECT count(*) AS n FROM t', '1s')");
    session.run("INSERT INTO t VALUES (2)");
    session.eventually("SELECT n FROM st", "2");
    server.kill();
    server.start_again();
    let mut session = server.session("postgres");
    session.run("INSERT INTO t VALUES (3)");
    session.eventually("SELECT n FROM st", "3");
    session.run("DROP EXTENSION pg_stream CASCADE");
}
