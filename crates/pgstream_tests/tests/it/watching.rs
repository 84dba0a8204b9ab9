//! What the scheduler's refreshes leave for those who watch: alerts, statements, history.

use pgstream_tests::{Database, Server, Session};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1)";

fn server(more: &[&str]) -> Server {
    let settings =
        ["fsync=off", "pg_stream.scheduler_interval_ms=100", "pg_stream.min_schedule_seconds=1"];
    Server::start(&[&settings[..], more].concat())
}

fn keys(session: &mut Session, alert: &str) -> String {
    session.value(&format!(
        "SELECT m ->> 'event', m ->> 'st', string_agg(k, ',' ORDER BY k)
         FROM (SELECT $m${alert}$m$::jsonb AS m) AS q, jsonb_object_keys(m) AS k GROUP BY m"
    ))
}

#[test]
fn a_rebuild_to_come_is_announced_with_its_reason() {
    let database = Database::new();
    let mut session = database.session();
    session.run(&format!("{TABLES}; CREATE VIEW w AS SELECT id, v FROM t; LISTEN pg_stream_alert"));
    session.create("st", "SELECT id, v FROM w");
    for (ddl, reason) in [
        ("CREATE OR REPLACE VIEW w AS SELECT id, v + 1 AS v FROM t", ""),
        (
            "SELECT pgstream.alter_stream_table('st', refresh_mode => 'FULL')",
            "the refresh mode was changed",
        ),
    ] {
        session.run(ddl);
        let alerts = session.notifications("pg_stream_alert");
        assert_eq!(alerts.len(), 1, "{ddl}: {alerts:?}");
        assert_eq!(
            keys(&mut session, &alerts[0]),
            "reinitialize_needed|public.st|event,pgs_name,pgs_schema,reason,st"
        );
        assert!(alerts[0].contains(reason), "{alerts:?}");
        session.refresh("st");
        assert_eq!(session.value("SELECT needs_reinit FROM pgstream.pgs_stream_tables"), "f");
        let told = session.notifications("pg_stream_alert");
        assert!(told.iter().all(|it| it.contains("refresh_completed")), "{told:?}");
    }
}

#[test]
fn the_first_reason_for_a_rebuild_stays() {
    let database = Database::new();
    let mut session = database.session();
    session.run(&format!("{TABLES}; CREATE VIEW w AS SELECT id, v FROM t"));
    session.create("st", "SELECT id, v FROM w");
    let reason = "SELECT reinit_reason FROM pgstream.pgs_stream_tables";
    session.run("CREATE OR REPLACE VIEW w AS SELECT id, v + 1 AS v FROM t");
    assert_eq!(session.value(reason), "view public.w was changed");
    // As a dump does when it has restored the table.
    session.run("ALTER TABLE st ENABLE TRIGGER pg_stream_guard");
    assert_eq!(session.value(reason), "view public.w was changed");
    session.refresh("st");
    session.run("ALTER TABLE st ENABLE TRIGGER pg_stream_guard");
    assert_eq!(session.value(reason), "the trigger that guards it was changed");
}

/// PostgreSQL prepares no transaction that has sent a notification.
#[test]
fn commands_that_make_a_rebuild_necessary_can_be_prepared() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE p (id int) PARTITION BY LIST (id); CREATE TABLE p1 (id int); INSERT INTO p1 VALUES (1);
         CREATE VIEW w AS SELECT id FROM p; CREATE TABLE q (id int); CREATE VIEW x AS SELECT id FROM q;
         LISTEN pg_stream_alert",
    );
    session.create("st", "SELECT id FROM w");
    session.create("other", "SELECT id FROM x");
    let needs = "SELECT string_agg(needs_reinit::text, ',' ORDER BY pgs_name) FROM pgstream.pgs_stream_tables";
    let id = format!("attach {}", database.name());
    let attach = "BEGIN; ALTER TABLE p ATTACH PARTITION p1 FOR VALUES IN (1)";
    session.run(&format!("{attach}; PREPARE TRANSACTION '{id}'"));
    session.run(&format!("ROLLBACK PREPARED '{id}'"));
    assert_eq!(session.value(needs), "false,false");
    session.run(&format!("{attach}; PREPARE TRANSACTION '{id}'"));
    session.run(&format!("COMMIT PREPARED '{id}'"));
    assert_eq!(session.value(needs), "false,true");
    assert_eq!(session.notifications("pg_stream_alert"), [""; 0]);
    session.refresh("st");
    assert_eq!(session.value("SELECT id FROM st"), "1");
    session.notifications("pg_stream_alert");
    // Only what stays is told of.
    session.run(
        "BEGIN; SAVEPOINT a; CREATE OR REPLACE VIEW w AS SELECT id + 1 AS id FROM p; ROLLBACK TO a;
         SAVEPOINT b; SAVEPOINT c; CREATE OR REPLACE VIEW x AS SELECT id + 1 AS id FROM q; RELEASE c; RELEASE b; COMMIT",
    );
    let alerts = session.notifications("pg_stream_alert");
    assert!(alerts.len() == 1 && alerts[0].contains("public.other"), "{alerts:?}");
    // In the order in which it happened.
    session.run(
        "BEGIN; CREATE OR REPLACE VIEW w AS SELECT id + 2 AS id FROM p;
         SELECT pgstream.refresh_stream_table('st'); COMMIT",
    );
    let alerts = session.notifications("pg_stream_alert");
    let events = ["reinitialize_needed", "refresh_completed"];
    let is_so = alerts.iter().zip(events).all(|(alert, event)| alert.contains(event));
    assert!(alerts.len() == 2 && is_so, "{alerts:?}");
}

#[test]
fn scheduled_refreshes_are_announced_and_counted_by_pg_stat_statements() {
    let database = Database::on(server(&[
        "shared_preload_libraries=pg_stat_statements,pg_stream",
        "pg_stat_statements.track=all",
    ]));
    let mut session = database.session();
    session.run(&format!("CREATE EXTENSION pg_stat_statements; {TABLES}; LISTEN pg_stream_alert"));
    session.run(
        "SELECT pgstream.create_stream_table('st', 'SELECT v % 10 AS g, count(*) AS n FROM t GROUP BY 1', '1s')",
    );
    session.run("INSERT INTO t SELECT i, i FROM generate_series(2, 100) i");
    session.eventually("SELECT sum(n) FROM st", "100");
    let mut alerts = session.notifications("pg_stream_alert");
    alerts.retain(|it| !it.contains("stale_data"));
    assert_eq!(
        keys(&mut session, &alerts[0]),
        "refresh_completed|public.st|action,duration_ms,event,pgs_name,pgs_schema,rows_deleted,rows_inserted,st"
    );
    session.eventually("SELECT count(*) > 0 FROM pg_stat_statements WHERE query LIKE '%__pgs_delta%' OR query LIKE '%\"st\"%'",
        "t",
    );
}

#[test]
fn old_history_is_removed() {
    let server = server(&["pg_stream.history_retention_days=7"]);
    let database = Database::on(server);
    let mut session = database.session();
    session.run(TABLES);
    session.create("st", "SELECT count(*) AS n FROM t");
    session.run(
        "INSERT INTO pgstream.pgs_refresh_history (pgs_id, start_time, end_time, action, status, initiated_by)
         SELECT pgs_id, now() - make_interval(days => d), now() - make_interval(days => d), 'FULL', 'COMPLETED', 'MANUAL'
         FROM pgstream.pgs_stream_tables, unnest('{6,8,40}'::int[]) d",
    );
    drop(session);
    // It looks when it starts, and every hour.
    database.server().kill();
    database.server().start_again();
    let mut session = database.session_after_crash();
    session.eventually("SELECT count(*) FROM pgstream.pgs_refresh_history", "2");
}
