//! LIMIT, OFFSET and FETCH in sub-queries, WITH items and views.

use pgstream_tests::{Database, Scenario, check};

use crate::windows::maintained;

const TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, g int, h text, v numeric);
    CREATE TABLE d (g int PRIMARY KEY, name text);
    CREATE VIEW top AS SELECT g, sum(v) AS s FROM t GROUP BY g ORDER BY sum(v) DESC NULLS LAST, g LIMIT 3;
    INSERT INTO t SELECT i, i % 5, 'h' || i % 3, i % 7 FROM generate_series(1, 30) i;
    INSERT INTO t VALUES (100, NULL, 'h1', NULL), (101, NULL, NULL, 3.5);
    INSERT INTO d SELECT i, 'd' || i FROM generate_series(0, 6) i;";

const CHANGES: &[&str] = &[
    "UPDATE t SET v = v + 7 WHERE id % 7 = 0",
    "UPDATE t SET g = g + 1 WHERE id % 9 = 0; DELETE FROM t WHERE id IN (1, 2, 12)",
    "INSERT INTO t VALUES (200, NULL, 'h2', 9), (201, 7, NULL, NULL), (0, 1, 'a', 99)",
    "DELETE FROM t WHERE g = 2; UPDATE t SET g = NULL WHERE id = 3; UPDATE d SET g = g + 10",
    "DELETE FROM t WHERE id > 6",
    "DELETE FROM t",
    "INSERT INTO t VALUES (1, 1, 'x', 1)",
];

#[track_caller]
fn limit(query: &str) {
    maintained(Scenario { tables: TABLES, query, changes: CHANGES });
}

#[test]
fn the_first_rows() {
    limit(
        "SELECT id, v FROM (SELECT * FROM t ORDER BY v DESC NULLS LAST, id LIMIT 5) x WHERE g > 0",
    );
}

#[test]
fn offset_and_limit() {
    limit("SELECT * FROM (SELECT id, g FROM t ORDER BY id OFFSET 4 LIMIT 1 + 2) x");
    limit("SELECT * FROM (SELECT id, g FROM t ORDER BY id DESC OFFSET 7) x");
}

#[test]
fn with_ties() {
    limit("SELECT * FROM (SELECT id, g FROM t ORDER BY g FETCH FIRST 3 ROWS WITH TIES) x");
    limit("SELECT * FROM (SELECT v FROM t ORDER BY v OFFSET 2 FETCH NEXT 4 ROWS WITH TIES) x");
    limit("SELECT * FROM (SELECT v FROM t ORDER BY v OFFSET 2 FETCH NEXT 0 ROWS WITH TIES) x");
}

#[test]
fn without_a_limit() {
    limit("SELECT * FROM (SELECT id FROM t ORDER BY v LIMIT NULL OFFSET NULL) x");
    limit("SELECT * FROM (SELECT id FROM t ORDER BY v LIMIT ALL OFFSET 0) x");
    limit("SELECT * FROM (SELECT id FROM t ORDER BY v, g) x");
}

/// As ORDER BY is accepted: these change nothing.
#[test]
fn without_a_limit_at_top_level() {
    for query in [
        "SELECT id, g FROM t LIMIT ALL",
        "SELECT id, g FROM t ORDER BY v OFFSET 0",
        "SELECT id, g FROM t LIMIT NULL OFFSET (1 - 1) ROWS",
        "SELECT g, count(*) AS n FROM t GROUP BY g ORDER BY 2 LIMIT ALL OFFSET NULL",
        "SELECT DISTINCT ON (g) g, id FROM t ORDER BY g, id OFFSET 0",
        "SELECT g FROM t UNION ALL SELECT g FROM d ORDER BY 1 LIMIT NULL::int OFFSET 0",
    ] {
        limit(query);
        let database = Database::new();
        let mut session = database.session();
        session.run(TABLES);
        session
            .run(&format!("SELECT pgstream.create_stream_table('st', $${query}$$, '1d', 'FULL')"));
        session.run("DELETE FROM t WHERE id % 2 = 0; SELECT pgstream.refresh_stream_table('st')");
        let count = "SELECT (SELECT count(*) FROM st) = (SELECT count(*) FROM (";
        assert_eq!(session.value(&format!("{count}{query}) AS q)")), "t", "{query}");
    }
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    for (clauses, words) in [
        ("LIMIT 5", "LIMIT"),
        ("LIMIT 5 OFFSET 0", "LIMIT"),
        ("LIMIT 0", "LIMIT"),
        ("LIMIT ALL OFFSET 1", "OFFSET"),
        ("OFFSET (SELECT 0)", "OFFSET"),
    ] {
        for mode in ["FULL", "DIFFERENTIAL"] {
            let error = session.error(&format!("SELECT pgstream.create_stream_table('st', 'SELECT id FROM t {clauses}', '1d', '{mode}')"));
            assert_eq!(error.code, "0A000", "{clauses}");
            assert!(error.message.contains(words), "{clauses}: {error}");
        }
    }
}

#[test]
fn nothing() {
    limit("SELECT * FROM (SELECT id FROM t LIMIT 0) x UNION ALL SELECT g FROM d");
}

#[test]
fn an_order_that_is_not_shown() {
    limit("SELECT * FROM (SELECT h FROM t ORDER BY v * 2 DESC NULLS LAST, id LIMIT 4) x");
}

#[test]
fn of_groups_distinct_rows_and_set_operations() {
    limit("SELECT d.name, top.s FROM top JOIN d USING (g)");
    limit("SELECT * FROM (SELECT DISTINCT g, h FROM t ORDER BY h, g LIMIT 4) x");
    limit(
        "(SELECT g FROM t UNION SELECT g FROM d ORDER BY 1 DESC NULLS LAST LIMIT 4) UNION ALL SELECT 1 FROM d",
    );
}

#[test]
fn a_with_item_that_is_used_twice() {
    limit(
        "WITH w AS (SELECT id, g FROM t ORDER BY id LIMIT 6) SELECT a.id, b.g FROM w a JOIN w b ON a.g = b.g",
    );
}

#[test]
fn of_windows_below_an_aggregate() {
    limit(
        "SELECT sum(r) AS s, count(*) AS n FROM (SELECT rank() OVER (PARTITION BY g ORDER BY v) AS r FROM t ORDER BY rank() OVER (PARTITION BY g ORDER BY v) DESC, id LIMIT 5) x",
    );
}

#[test]
fn what_postgresql_refuses() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    for (clause, code) in [("LIMIT -1", "2201W"), ("OFFSET 1 - 2", "2201X")] {
        let query = format!("SELECT * FROM (SELECT id FROM t ORDER BY id {clause}) x");
        let error = session.try_create("st", &query).expect_err(&query);
        assert_eq!(error.code, code, "{error}");
    }
}

#[test]
fn a_limit_that_depends_on_data() {
    check(Scenario {
        tables: TABLES,
        query: "SELECT * FROM (SELECT id FROM t ORDER BY id LIMIT (SELECT count(*) FROM d WHERE g < 4)) x",
        changes: CHANGES,
    });
}

/// PostgreSQL evaluates nothing for no rows, so a sub-query with several rows is no error.
#[test]
fn limit_0_evaluates_nothing() {
    check(Scenario {
        tables: "CREATE TABLE t (id int, v int); INSERT INTO t VALUES (1, 1), (2, 2)",
        query: "SELECT t.id, x.v FROM t LEFT JOIN (SELECT (SELECT v FROM t) AS v, 1 / (id - 1) AS w FROM t LIMIT 0) x ON true",
        changes: &["INSERT INTO t VALUES (3, 3)", "DELETE FROM t WHERE id < 3"],
    });
}
