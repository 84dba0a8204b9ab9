//! Stream tables that nobody refreshes: changes of their sources do not pile up without end, and
//! somebody is told. Most of these tests have a server of their own, where the scheduler is on.

use pgstream_tests::{Comparison, Database, REFRESH, Server, Session, Sessions, difference};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, g int, v int); INSERT INTO t SELECT i, i % 3, i FROM generate_series(1, 30) i";
const QUERY: &str = "SELECT g, count(*) AS n, sum(v) AS s FROM t GROUP BY g";
/// How large the buffer of `t` is, and whether something is in it.
const BUFFER: &str = "SELECT pg_relation_size(buffer_relid) FROM pgstream.pgs_change_tracking WHERE source_relid = 't'::regclass";

fn database() -> Database {
    Database::on(Server::start(&[
        "fsync=off",
        "pg_stream.scheduler_interval_ms=100",
        "pg_stream.min_schedule_seconds=1",
        "pg_stream.buffer_warning_mb=1",
        "pg_stream.buffer_limit_mb=3",
    ]))
}

#[track_caller]
fn compare(session: &mut Session) {
    let difference = difference(session, "st", QUERY, Comparison::Text).expect("comparable");
    if let Some(difference) = difference {
        panic!("{difference}");
    }
}

/// The next alerts of these events.
fn alerts(session: &mut Session, events: &[&str], count: usize) -> Vec<String> {
    let mut alerts = Vec::new();
    for _ in 0..6 {
        alerts.extend(session.notifications("pg_stream_alert"));
        let is_wanted =
            |alert: &String| events.iter().any(|it| alert.contains(&format!("\"event\":\"{it}\"")));
        alerts.retain(is_wanted);
        if alerts.len() >= count {
            break;
        }
    }
    alerts
}

/// Event, name, keys and the values of these fields.
fn fields(session: &mut Session, alert: &str, expressions: &str) -> String {
    session.value(&format!(
        "SELECT m ->> 'event', m ->> 'st', (SELECT string_agg(k, ',' ORDER BY k) FROM jsonb_object_keys(m) AS k),
                {expressions} FROM (SELECT $m${alert}$m$::jsonb AS m) AS q"
    ))
}

#[test]
fn unconsumed_changes_are_warned_of_and_given_up_and_the_table_is_rebuilt() {
    let database = database();
    let mut session = database.session();
    session.run(TABLES);
    session.create("st", QUERY);
    session.run("SELECT pgstream.alter_stream_table('st', status => 'SUSPENDED')");
    session.run("LISTEN pg_stream_alert");
    session.run("INSERT INTO t SELECT i, i % 7, i FROM generate_series(101, 15100) i");
    let events = ["buffer_growth_warning", "reinitialize_needed"];
    let told = alerts(&mut session, &events, 1);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        fields(&mut session, &told[0], "m ->> 'source', m ->> 'pending_rows'"),
        "buffer_growth_warning|public.st|event,pending_rows,pgs_name,pgs_schema,source,st|public.t|15000"
    );
    session.run("INSERT INTO t SELECT i, i % 7, i FROM generate_series(15101, 60100) i");
    let told = alerts(&mut session, &events, 1);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        fields(&mut session, &told[0], "(m ->> 'reason') LIKE '%public.t%buffer_limit_mb'"),
        "reinitialize_needed|public.st|event,pgs_name,pgs_schema,reason,st|t"
    );
    session.eventually(BUFFER, "0");
    // It stays within bounds, and is exact in the end.
    session.run("UPDATE t SET v = v + 1; DELETE FROM t WHERE id % 10 = 0");
    session.eventually(BUFFER, "0");
    session.run("INSERT INTO t VALUES (-1, 1, 1)");
    session.run("SELECT pgstream.resume_stream_table('st')");
    session.refresh("st");
    compare(&mut session);
    assert_eq!(
        session.value("SELECT action FROM pgstream.get_refresh_history('st', 1)"),
        "REINITIALIZE"
    );
    session.run("UPDATE t SET v = 0 WHERE id < 20");
    session.refresh("st");
    compare(&mut session);
    assert_eq!(
        session.value("SELECT action, needs_reinit, reinit_reason FROM pgstream.get_refresh_history('st', 1), pgstream.pgs_stream_tables"),
        "DIFFERENTIAL|f|NULL"
    );
}

#[test]
fn changes_are_given_up_beside_open_writers_and_old_snapshots() {
    let database = database();
    let mut s = Sessions::new(&database, &["writer", "old", "strict"]);
    s.monitor().run(TABLES);
    s.monitor().create("st", QUERY);
    s.run("writer", "BEGIN; INSERT INTO t VALUES (-1, 1, 1)");
    s.run("old", "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t");
    s.run("strict", "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM t");
    s.monitor().run("INSERT INTO t SELECT i, i % 7, i FROM generate_series(101, 60100) i");
    let marked = "SELECT needs_reinit FROM pgstream.pgs_stream_tables";
    s.monitor().eventually(marked, "t");
    // The writer keeps the buffer from being emptied at once.
    let rows = "SELECT count(*) FROM pgstream_changes.changes_";
    let oid = s.monitor().value("SELECT 't'::regclass::oid");
    s.monitor().eventually(&format!("{rows}{oid}"), "0");
    for name in ["old", "strict"] {
        // It would need the changes that are gone.
        match s.step(name, REFRESH) {
            pgstream_tests::Step::Done(Err(error)) => assert_eq!(error.code, "40001", "{error}"),
            other => panic!("{name}: {other:?}"),
        }
        s.run(name, "ROLLBACK");
    }
    s.run("writer", "INSERT INTO t VALUES (-2, 2, 2); COMMIT");
    s.monitor().refresh("st");
    compare(s.monitor());
    s.monitor().run("INSERT INTO t VALUES (-3, 2, 2)");
    s.monitor().refresh("st");
    compare(s.monitor());
    assert_eq!(
        s.monitor().value("SELECT action FROM pgstream.get_refresh_history('st', 1)"),
        "DIFFERENTIAL"
    );
}

#[test]
fn one_that_is_to_be_rebuilt_does_not_hold_up_the_cleaning() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["a", "b"]);
    s.monitor().run(TABLES);
    s.monitor().create("st", QUERY);
    s.monitor().create("other", "SELECT id, g FROM t");
    let oid = s.monitor().value("SELECT 't'::regclass::oid");
    let rows = format!("SELECT count(*) FROM pgstream_changes.changes_{oid}");
    let refresh_other = "SELECT pgstream.refresh_stream_table('other')";
    s.monitor().run("UPDATE t SET v = v + 1");
    s.run("a", refresh_other);
    assert_eq!(s.monitor().value(&rows), "30", "st has not consumed them");
    s.monitor().run(
        "UPDATE pgstream.pgs_stream_tables SET needs_reinit = true WHERE pgs_name = 'st';
         INSERT INTO t VALUES (100, 1, 1)",
    );
    s.run("a", refresh_other);
    assert_eq!(s.monitor().value(&rows), "0");
    // While it is being rebuilt, what comes after its snapshot is kept for it.
    s.run("b", &format!("BEGIN; {REFRESH}"));
    s.monitor().run("INSERT INTO t VALUES (101, 1, 1)");
    s.run("a", refresh_other);
    assert_eq!(s.monitor().value(&rows), "1");
    s.run("b", "COMMIT");
    s.run("b", REFRESH);
    s.compare("b", QUERY);
    // A rebuild that waits until the cleaning is over begins after it.
    s.monitor().run(
        "UPDATE pgstream.pgs_stream_tables SET needs_reinit = true WHERE pgs_name = 'st';
         INSERT INTO t VALUES (102, 1, 1)",
    );
    s.run("a", &format!("BEGIN; {refresh_other}"));
    s.blocks("b", REFRESH);
    s.run("a", "COMMIT");
    s.finish("b").expect("the lock is free");
    s.compare("b", QUERY);
    s.monitor().run("INSERT INTO t VALUES (103, 1, 1)");
    s.run("b", REFRESH);
    s.compare("b", QUERY);
}

#[test]
fn stale_data_is_told_once_an_episode() {
    let database = database();
    let mut session = database.session();
    session.run(TABLES);
    session.create("st", QUERY);
    session.create("other", QUERY);
    session.create("third", QUERY);
    session.run(
        "SELECT pgstream.alter_stream_table(pgs_name, schedule => '1h', status => 'SUSPENDED') FROM pgstream.pgs_stream_tables;
         LISTEN pg_stream_alert",
    );
    let mut age = |hours: [u32; 3]| {
        session.run(&format!(
            "UPDATE pgstream.pgs_stream_tables SET data_timestamp = now() - make_interval(hours => ('{{{},{},{}}}'::int[])[pgs_id])",
            hours[0], hours[1], hours[2]
        ));
        let told = alerts(&mut session, &["stale_data"], 1);
        let fields = |alert: &String| {
            fields(
                &mut session,
                alert,
                "round((m ->> 'staleness_seconds')::numeric, -2), m ->> 'schedule_seconds', round((m ->> 'ratio')::numeric, 1)",
            )
        };
        told.iter().map(fields).collect::<Vec<_>>()
    };
    let alert = |name: &str, values: &str| {
        format!(
            "stale_data|public.{name}|event,pgs_name,pgs_schema,ratio,schedule_seconds,st,staleness_seconds|{values}"
        )
    };
    assert_eq!(age([3, 1, 1]), [alert("st", "10800|3600|3.0")]);
    // The first one is still stale, which was told.
    assert_eq!(age([4, 5, 1]), [alert("other", "18000|3600|5.0")]);
    // Its episode ends, and another begins.
    assert_eq!(age([1, 6, 5]), [alert("third", "18000|3600|5.0")]);
    assert_eq!(age([7, 6, 6]), [alert("st", "25200|3600|7.0")]);
}

/// However seldom the scheduler looks at everything.
#[test]
fn stale_data_is_told_as_soon_as_it_is_stale() {
    let interval = "pg_stream.scheduler_interval_ms=2000";
    let settings = ["fsync=off", interval, "pg_stream.min_schedule_seconds=1"];
    let database = Database::on(Server::start(&settings));
    let mut session = database.session();
    session.run(&format!("{TABLES}; LISTEN pg_stream_alert"));
    session.run(&format!(
        "SELECT pgstream.create_stream_table('st', $${QUERY}$$, '1s');
         SELECT pgstream.alter_stream_table('st', status => 'SUSPENDED')"
    ));
    let told = session.notifications("pg_stream_alert");
    assert!(told.len() == 1 && told[0].contains("stale_data"), "{told:?}");
}

#[test]
fn a_scheduler_that_is_started_again_tells_only_what_is_new() {
    let database = database();
    let mut session = database.session();
    session.run(TABLES);
    session.run("CREATE TABLE u (LIKE t INCLUDING ALL)");
    session.create("st", QUERY);
    session.create("other", "SELECT g, sum(v) AS s FROM u GROUP BY g");
    session.run(
        "SELECT pgstream.alter_stream_table(pgs_name, schedule => '1h', status => 'SUSPENDED') FROM pgstream.pgs_stream_tables;
         LISTEN pg_stream_alert",
    );
    let mut neglect = |source: &str, name: &str| {
        session.run(&format!(
            "INSERT INTO {source} SELECT i, i % 7, i FROM generate_series(101, 15100) i;
             UPDATE pgstream.pgs_stream_tables SET data_timestamp = now() - interval '3 h' WHERE pgs_name = '{name}'"
        ));
        let events = ["stale_data", "buffer_growth_warning"];
        let told = alerts(&mut session, &events, 2);
        session.run(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE backend_type = 'pg_stream scheduler'",
        );
        let mut told: Vec<_> = told.iter().map(|it| fields(&mut session, it, "0")).collect();
        told.sort();
        told
    };
    for (source, name) in [("t", "st"), ("u", "other")] {
        assert_eq!(
            neglect(source, name),
            [
                format!(
                    "buffer_growth_warning|public.{name}|event,pending_rows,pgs_name,pgs_schema,source,st|0"
                ),
                format!(
                    "stale_data|public.{name}|event,pgs_name,pgs_schema,ratio,schedule_seconds,st,staleness_seconds|0"
                ),
            ]
        );
    }
}

#[test]
fn data_is_stale_once_a_fire_time_is_missed() {
    let database = database();
    let mut session = database.session();
    session.run(TABLES);
    for (name, query, schedule) in [
        ("read", QUERY, "'calculated'"),
        ("reader", "SELECT count(*) AS n FROM read", "'1h'"),
        ("yearly", QUERY, "'0 0 1 1 *'"),
        ("winter", QUERY, "'0 0 1 1,2 *'"),
    ] {
        session.run(&format!(
            "SELECT pgstream.create_stream_table('{name}', $${query}$$, {schedule})"
        ));
    }
    let mut stale = |data: &str| {
        session.run(&format!("UPDATE pgstream.pgs_stream_tables SET data_timestamp = {data}"));
        session.value("SELECT coalesce(string_agg(pgs_name, ' ' ORDER BY pgs_name), '') FROM pgstream.stream_tables_info WHERE stale")
    };
    assert_eq!(stale("now()"), "");
    assert_eq!(stale("now() - interval '59 min'"), "");
    assert_eq!(stale("now() - interval '61 min'"), "read reader");
    assert_eq!(stale("now() - interval '13 months'"), "read reader winter yearly");
    assert_eq!(stale("NULL"), "");
    // Between the last fire time of a winter and the first of the next nothing is missed, though
    // the two of one winter are a month apart.
    session.run(
        "UPDATE pgstream.pgs_stream_tables SET data_timestamp = date_trunc('year', now() - interval '33 days') + interval '33 days';
         UPDATE pgstream.pgs_stream_tables SET data_timestamp = now() WHERE pgs_name <> 'winter';
         LISTEN pg_stream_alert",
    );
    assert_eq!(alerts(&mut session, &["stale_data"], 0), Vec::<String>::new());
}
