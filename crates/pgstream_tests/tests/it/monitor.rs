//! What one can see of refreshes from outside.

use pgstream_tests::{Database, REFRESH, Session, Sessions};

const TABLES: &str = "
    CREATE TABLE o (id int PRIMARY KEY, region text, amount numeric, \"Odd col\" int DEFAULT 1);
    CREATE TABLE c (region text PRIMARY KEY, mgr text);
    CREATE TABLE e (a int, b int);";

const CHANGES: &str = "
    INSERT INTO c VALUES ('a', 'x'), ('b', 'y');
    INSERT INTO o VALUES (1, 'a', 5), (2, 'b', 30);
    INSERT INTO e VALUES (1, 2), (2, 3);";

fn session() -> (Session, Database) {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    (session, database)
}

/// Every statement that `explain_st` shows can be pasted.
fn statements_run(query: &str) {
    let (mut session, _database) = session();
    session.create("st", query);
    session.run(CHANGES);
    session.run("SELECT pgstream.refresh_stream_table('st')");
    session.run("UPDATE o SET amount = amount + 1; DELETE FROM e");
    let rows = session
        .rows("SELECT property FROM pgstream.explain_st('st') WHERE property LIKE '%delta_query'");
    assert!(!rows.is_empty(), "no delta query");
    let statements = session.rows(
        "SELECT replace(value, E'\\n', ' ') FROM pgstream.explain_st('st')
         WHERE property LIKE '%query' AND property <> 'defining_query' AND value <> ''",
    );
    for statement in statements {
        session.run(&format!("EXPLAIN {statement}"));
        session.run(&statement);
    }
}

#[test]
fn statements_of_an_aggregate_over_a_join_can_be_run() {
    statements_run(
        "SELECT o.region, c.mgr, sum(amount), max(\"Odd col\"), string_agg(mgr, ',' ORDER BY mgr)
         FROM o JOIN c USING (region) GROUP BY 1, 2",
    );
}

#[test]
fn statements_of_windows_can_be_run() {
    statements_run(
        "SELECT *, row_number() OVER (PARTITION BY region ORDER BY id), rank() OVER (ORDER BY amount) FROM o",
    );
}

#[test]
fn statements_of_a_recursion_can_be_run() {
    statements_run(
        "WITH RECURSIVE r AS (SELECT a, b, 1 AS d FROM e UNION ALL
         SELECT r.a, e.b, d + 1 FROM r JOIN e ON r.b = e.a WHERE d < 5) SELECT * FROM r",
    );
}

#[test]
fn statements_of_set_operations_and_sub_queries_can_be_run() {
    statements_run(
        "SELECT region, (SELECT count(*) FROM o WHERE o.region = c.region) FROM c
         EXCEPT SELECT region, 7 FROM o WHERE amount IN (SELECT max(a) FROM e)",
    );
}

#[test]
fn the_delta_query_shows_the_pending_change() {
    let (mut session, _database) = session();
    session.create("st", "SELECT id, amount FROM o WHERE amount > 10");
    session.run(CHANGES);
    session.refresh("st");
    session.run("UPDATE o SET amount = 40 WHERE id = 2; INSERT INTO o VALUES (3, 'c', 1)");
    let statement =
        session.value("SELECT value FROM pgstream.explain_st('st') WHERE property = 'delta_query'");
    let mut rows = session.rows(&format!("SELECT c0, c1, w FROM ({statement}) AS q"));
    rows.sort();
    assert_eq!(rows, ["2|30|-1", "2|40|1"]);
}

#[test]
fn a_refresh_that_changed_something_is_announced() {
    let (mut session, _database) = session();
    session.create("\"T\"", "SELECT id, amount FROM o");
    session.run("LISTEN pg_stream_alert");
    session.refresh("\"T\"");
    session.run(CHANGES);
    session.refresh("\"T\"");
    let messages = session.notifications("pg_stream_alert");
    assert_eq!(messages.len(), 1, "{messages:?}");
    let fields = session.value(&format!(
        "SELECT m ->> 'event', m ->> 'pgs_schema', m ->> 'pgs_name', m ->> 'st', m ->> 'action',
                m ->> 'rows_inserted', m ->> 'rows_deleted', (m ->> 'duration_ms')::float8 >= 0
         FROM (SELECT $m${}$m$::jsonb AS m) AS q",
        messages[0]
    ));
    assert_eq!(fields, "refresh_completed|public|T|public.T|DIFFERENTIAL|2|0|t");
}

#[test]
fn a_full_refresh_of_a_table_with_triggers_is_announced() {
    let (mut session, _database) = session();
    session.create("st", "SELECT id, amount FROM o");
    session.run(
        "CREATE TABLE log (what text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO public.log VALUES (tg_op); RETURN NULL; END $$;
         CREATE TRIGGER note AFTER INSERT OR DELETE ON st FOR EACH ROW EXECUTE FUNCTION note();
         LISTEN pgstream_refresh",
    );
    session.run(CHANGES);
    session.refresh("st");
    assert_eq!(session.rows("SELECT what FROM log"), ["INSERT", "INSERT"]);
    session.run("TRUNCATE o");
    session.refresh("st");
    let messages = session.notifications("pgstream_refresh");
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert!(messages[0].contains("\"rows_deleted\":2"), "{messages:?}");
    assert_eq!(session.value("SELECT count(*) FROM log"), "2");
}

#[test]
fn user_triggers_can_be_switched_off() {
    let (mut session, _database) = session();
    session.create("st", "SELECT id, amount FROM o");
    session.run(
        "CREATE TABLE log (what text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO public.log VALUES (tg_op); RETURN NULL; END $$;
         CREATE TRIGGER note AFTER INSERT ON st FOR EACH ROW EXECUTE FUNCTION note()",
    );
    session.run("SET pg_stream.user_triggers = off");
    session.run(CHANGES);
    session.refresh("st");
    assert_eq!(session.rows("SELECT count(*) FROM log"), ["0"]);
    session.run("SET pg_stream.user_triggers = auto; INSERT INTO o VALUES (3, 'a', 1)");
    session.refresh("st");
    assert_eq!(session.rows("SELECT count(*) FROM log"), ["1"]);
    assert_eq!(session.value("SELECT count(*) FROM st"), "3");
}

#[test]
fn a_refresh_shows_how_far_it_is() {
    const PROGRESS: &str = "SELECT pgs_name, phase, changes_read, started_at <= clock_timestamp()
         FROM pgstream.pg_stat_progress_refresh";
    let database = Database::new();
    let mut s = Sessions::new(&database, &["w", "r"]);
    s.monitor().run(TABLES);
    s.monitor().create("st", "SELECT id, amount FROM o");
    s.run("w", "BEGIN; LOCK TABLE o");
    s.blocks("r", REFRESH);
    assert_eq!(s.monitor().rows(PROGRESS), ["st|waiting for locks|0|t"]);
    s.run("w", "COMMIT");
    s.finish("r").expect("the lock is gone");
    assert_eq!(s.monitor().rows(PROGRESS), [""; 0]);
    s.run("w", CHANGES);
    s.run("w", "BEGIN; LOCK TABLE st IN SHARE MODE");
    s.blocks("r", REFRESH);
    assert_eq!(s.monitor().rows(PROGRESS), ["st|applying changes|2|t"]);
    let pid = s.pid("r");
    assert_eq!(s.monitor().value(&format!("SELECT pg_terminate_backend({pid}, 10000)")), "t");
    assert_eq!(s.monitor().rows(PROGRESS), [""; 0]);
}

#[test]
fn the_history_says_until_when_the_data_is_fresh() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY)");
    for (name, schedule) in [("a", "'5m'"), ("b", "'@hourly'"), ("c", "'CALCULATED'")] {
        session.run(&format!(
            "SELECT pgstream.create_stream_table('{name}', 'SELECT id FROM t', {schedule})"
        ));
    }
    session.run("INSERT INTO t VALUES (1)");
    ["a", "b", "c"].iter().for_each(|it| session.refresh(it));
    let deadlines = "SELECT pgs_name, count(*), bool_and(freshness_deadline = CASE pgs_name
            WHEN 'a' THEN h.data_timestamp + interval '5 minutes'
            WHEN 'b' THEN date_trunc('hour', h.data_timestamp, 'UTC') + interval '1 hour' END)
        FROM pgstream.pgs_refresh_history h JOIN pgstream.pgs_stream_tables USING (pgs_id) GROUP BY 1 ORDER BY 1";
    assert_eq!(session.rows(deadlines), ["a|2|t", "b|2|t", "c|2|NULL"]);
}
