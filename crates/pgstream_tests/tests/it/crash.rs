//! `kill -9` in the middle of a refresh, of writes and of creation.

use pgstream_tests::{Comparison, Database, Server, Sessions, Step, difference, kill_9};

const QUERY: &str = "SELECT g, count(*) AS n, sum(v) AS s, max(v) AS m FROM t GROUP BY g";
const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, g int, v int); INSERT INTO t SELECT i, i % 10, i FROM generate_series(1, 1000) i";
const REFRESH: &str = "SELECT pgstream.refresh_stream_table('st')";

fn database() -> Database {
    let database = Database::on(Server::start(&["pg_stream.enabled=off"]));
    let mut session = database.session();
    session.run(TABLES);
    session.create("st", QUERY);
    database
}

/// Waits until the server accepts connections again, then refreshes and compares.
#[track_caller]
fn recover_and_compare(database: &Database) {
    database.wait_until_up();
    let mut session = database.session();
    session.refresh("st");
    compare(&mut session);
    session.run("INSERT INTO t SELECT i, i % 12, i FROM generate_series(5001, 5100) i; DELETE FROM t WHERE id % 3 = 0");
    session.refresh("st");
    compare(&mut session);
    assert_eq!(
        session.value("SELECT action FROM pgstream.get_refresh_history('st', 1)"),
        "DIFFERENTIAL"
    );
}

#[track_caller]
fn compare(session: &mut pgstream_tests::Session) {
    if let Some(difference) =
        difference(session, "st", QUERY, Comparison::Text).expect("comparable")
    {
        panic!("{difference}");
    }
}

#[test]
fn the_refreshing_backend_is_killed_while_it_applies() {
    let database = database();
    let mut s = Sessions::new(&database, &["gate", "r"]);
    // A user's trigger makes the refresh wait in the middle of its changes.
    s.monitor().run(
        "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           PERFORM pg_catalog.pg_advisory_xact_lock(42); RETURN NULL; END $$;
         CREATE TRIGGER gate AFTER INSERT OR UPDATE OR DELETE ON st FOR EACH ROW EXECUTE FUNCTION gate();
         UPDATE t SET v = v + 1, g = g + 1",
    );
    s.run("gate", "SELECT pg_advisory_lock(42)");
    s.blocks("r", REFRESH);
    kill_9(&s.pid("r"));
    assert!(s.finish("r").is_err());
    // The postmaster ends all sessions before it recovers.
    while s.monitor().try_run("SELECT pg_sleep(0.01)").is_ok() {}
    drop(s);
    recover_and_compare(&database);
}

#[test]
fn the_server_is_killed_while_a_refresh_is_under_way() {
    let database = database();
    let mut s = Sessions::new(&database, &["gate", "r", "w"]);
    s.monitor().run(
        "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           PERFORM pg_catalog.pg_advisory_xact_lock(42); RETURN NULL; END $$;
         CREATE TRIGGER gate AFTER UPDATE ON st FOR EACH ROW EXECUTE FUNCTION gate();
         UPDATE t SET v = v + 1",
    );
    s.run("gate", "SELECT pg_advisory_lock(42)");
    s.blocks("r", REFRESH);
    s.run("w", "BEGIN; DELETE FROM t WHERE id = 1"); // never commits
    s.monitor().run("INSERT INTO t VALUES (2000, 1, 1)"); // has committed
    database.server().kill();
    drop(s);
    database.server().start_again();
    recover_and_compare(&database);
}

#[test]
fn the_server_is_killed_between_a_committed_refresh_and_the_next() {
    let database = database();
    let mut session = database.session();
    for round in 0..3 {
        session.run(&format!("UPDATE t SET v = v + 1 WHERE id % 3 = {round}; INSERT INTO t VALUES (3000 + {round}, 1, 1)"));
        if round < 2 {
            session.refresh("st");
        }
    }
    database.server().kill();
    database.server().start_again();
    recover_and_compare(&database);
}

#[test]
fn the_server_is_killed_while_many_write_and_one_refreshes() {
    let database = database();
    let writers: Vec<_> = (0..3)
        .map(|number| {
            let mut session = database.session();
            std::thread::spawn(move || {
                let mut round = 0;
                // Until the server is gone.
                while session
                    .try_run(&format!(
                        "INSERT INTO t VALUES ({number}00000 + 10000 + {round}, {round} % 7, {round});
                         UPDATE t SET v = v + 1 WHERE id = 1 + ({round} * 7 + {number}) % 900;
                         DELETE FROM t WHERE id = {number}00000 + 10000 + {round} - 5"
                    ))
                    .is_ok()
                {
                    round += 1;
                }
                round
            })
        })
        .collect();
    let mut session = database.session();
    let refresher = std::thread::spawn(move || {
        let mut refreshes = 0;
        while session.try_run(REFRESH).is_ok() {
            refreshes += 1;
        }
        refreshes
    });
    let mut monitor = database.session();
    for _ in 0..1000 {
        if monitor.value("SELECT max(id) % 100000 > 10300 FROM t WHERE id BETWEEN 10000 AND 99999")
            == "t"
        {
            break;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
    database.server().kill();
    let rounds: i32 = writers.into_iter().map(|it| it.join().expect("the writer ends")).sum();
    let refreshes = refresher.join().expect("the refresher ends");
    assert!(rounds > 10 && refreshes > 0, "{rounds} rounds, {refreshes} refreshes");
    database.server().start_again();
    recover_and_compare(&database);
}

#[test]
fn the_server_is_killed_while_a_stream_table_is_created() {
    let database = Database::on(Server::start(&["pg_stream.enabled=off"]));
    let mut s = Sessions::new(&database, &["gate", "c"]);
    s.monitor().run(TABLES);
    s.run("gate", "BEGIN; UPDATE t SET v = v + 1 WHERE id = 1");
    let create = format!("SELECT pgstream.create_stream_table('st', '{QUERY}', '1d')");
    // Creation waits for the writer, or has not committed.
    if let Step::Done(result) = s.step("c", &format!("BEGIN; {create}")) {
        result.expect("creation succeeds");
    }
    database.server().kill();
    drop(s);
    database.server().start_again();
    let mut session = database.session();
    assert_eq!(session.value("SELECT count(*) FROM pgstream.pgs_stream_tables"), "0");
    session.create("st", QUERY);
    recover_and_compare(&database);
}
