//! GROUPING SETS, CUBE, ROLLUP and GROUPING.

use pgstream_tests::{Database, Scenario, check};

use crate::windows::maintained;

const TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, a int, b text, c int, v int, n numeric(10,2), j json); CREATE TABLE d (a int PRIMARY KEY, name text, x int);
    CREATE TABLE e (a int, b int);
    INSERT INTO t SELECT i, i % 3, 'b' || i % 2, i % 4, i, i * 1.5, '{}' FROM generate_series(1, 12) i;
    INSERT INTO t VALUES (20, NULL, NULL, NULL, NULL, NULL, NULL), (21, 1, NULL, 2, NULL, 3, NULL); INSERT INTO d VALUES (0, 'zero', 1), (1, 'one', 2), (2, NULL, 3)";

const CHANGES: &[&str] = &[
    "INSERT INTO t VALUES (30, 1, 'b1', 7, 70, 7.25, '[]'), (31, 5, 'b5', 2, 1, 1, '1'), (32, NULL, 'b0', NULL, 3, 0.01, NULL); INSERT INTO e VALUES (1, 1), (1, 2), (NULL, NULL)",
    "UPDATE t SET a = a + 1 WHERE id % 3 = 0; UPDATE t SET b = NULL WHERE id = 2; UPDATE d SET name = 'X' WHERE a = 1",
    "DELETE FROM t WHERE a = 2; DELETE FROM e WHERE a = 1",
    "UPDATE t SET v = v + 1, n = n - 1",
    "DELETE FROM t WHERE b IS NULL",
    "DELETE FROM t; DELETE FROM e",
    "INSERT INTO t VALUES (1, 1, 'a', 1, 1, 1, NULL); INSERT INTO e VALUES (NULL, NULL)",
];

#[track_caller]
fn exact(query: &str) {
    maintained(Scenario { tables: TABLES, query, changes: CHANGES });
}

#[test]
fn rollup() {
    exact("SELECT a, b, sum(v) AS s, count(*) AS n FROM t GROUP BY ROLLUP (a, b)");
    exact("SELECT a, b, c, count(*) AS n FROM t GROUP BY a, ROLLUP (b, c)");
}

#[test]
fn cube() {
    exact(
        "SELECT a, b, sum(v) AS s, count(*) AS n, GROUPING(a, b) AS g FROM t GROUP BY CUBE (a, b)",
    );
}

#[test]
fn sets_and_what_they_leave_out() {
    exact(
        "SELECT a, b, c, min(v) AS s, GROUPING(c, a) AS g, GROUPING(b) AS h FROM t GROUP BY GROUPING SETS ((a, b), (c), ())",
    );
    exact("SELECT GROUPING(a) AS g, a, count(*) AS n FROM t GROUP BY a");
}

#[test]
fn expressions_see_null_where_a_column_is_left_out() {
    exact(
        "SELECT coalesce(a::text, 'all') AS a, coalesce(b, 'x') AS b, avg(n) AS m, sum(n) AS s FROM t GROUP BY ROLLUP (a, b)",
    );
    exact(
        "SELECT a + 1 AS a1, a + 1 + c AS q, count(*) AS n FROM t GROUP BY GROUPING SETS ((a + 1, c), (c), (a + 1))",
    );
    exact(
        "SELECT a, sum(a) AS s, sum(a + 1) AS s1, max(b) AS b FROM t GROUP BY GROUPING SETS ((a), (b), ())",
    );
}

/// PostgreSQL prints both as the same column, so only a view can bring such a query.
#[test]
fn an_expression_that_is_grouped_by_twice() {
    let query = "SELECT a AS x, a AS y, count(*) AS n FROM t GROUP BY ROLLUP (x, y)";
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let error = session.try_create("st", query).expect_err(query);
    assert_eq!(error.code, "0A000", "{error}");
    maintained(Scenario {
        tables: &format!("{TABLES}; CREATE VIEW doubled AS {query}"),
        query: "SELECT x, y, n FROM doubled",
        changes: CHANGES,
    });
}

#[test]
fn the_same_set_twice_and_once() {
    exact("SELECT a, count(*) AS n FROM t GROUP BY GROUPING SETS ((a), (a), ())");
    exact("SELECT a, b, count(*) AS n FROM t GROUP BY ROLLUP (a, b), CUBE (a, b)");
    exact("SELECT a, b, count(*) AS n FROM t GROUP BY DISTINCT ROLLUP (a, b), CUBE (a, b)");
}

#[test]
fn the_empty_set_has_a_row_over_nothing() {
    exact("SELECT a, count(*) AS n FROM e GROUP BY ROLLUP (a)");
    exact("SELECT a, b FROM e GROUP BY GROUPING SETS ((a, b), ())");
    exact("SELECT count(*) AS n, sum(a) AS s FROM e GROUP BY ()");
    exact("SELECT 1 AS one, count(*) AS n FROM e GROUP BY GROUPING SETS ((), ())");
}

#[test]
fn having_and_grouping_in_expressions() {
    exact(
        "SELECT a, b, sum(v) AS s FROM t GROUP BY ROLLUP (a, b) HAVING count(*) > 1 AND (GROUPING(b) = 0 OR sum(v) > 20 OR a IS NULL)",
    );
    exact(
        "SELECT CASE WHEN GROUPING(a) = 1 THEN 'total' ELSE a::text END AS l, sum(v) AS s FROM t GROUP BY ROLLUP (a)",
    );
}

#[test]
fn columns_that_depend_on_a_key_in_every_set() {
    exact(
        "SELECT id, b, j::text AS j, n * 2 AS n, count(*) AS k FROM t GROUP BY GROUPING SETS ((id), (id, a))",
    );
    exact(
        "SELECT d.name, d.x, GROUPING(t.c) AS g, t.c, sum(t.v) AS s FROM t JOIN d USING (a) GROUP BY d.a, ROLLUP (t.c)",
    );
}

#[test]
fn aggregates_of_all_kinds() {
    exact(
        "SELECT a, b, string_agg(v::text, ',' ORDER BY v) AS s, count(DISTINCT c) AS dc, count(DISTINCT v % 3) AS dv, percentile_cont(0.5) WITHIN GROUP (ORDER BY v) AS p FROM t GROUP BY ROLLUP (a, b)",
    );
}

#[test]
fn below_and_beside_other_operators() {
    exact(
        "SELECT q.b, sum(q.s) AS s FROM (SELECT a, b, sum(v) AS s FROM t GROUP BY ROLLUP (a, b)) q GROUP BY q.b",
    );
    exact(
        "SELECT q.a, d.name, q.s FROM (SELECT a, sum(v) AS s FROM t GROUP BY ROLLUP (a)) q JOIN d ON d.a = q.a",
    );
    exact(
        "SELECT a, b, sum(v) AS s FROM t GROUP BY ROLLUP (a, b) EXCEPT SELECT a, b, sum(v) FROM t GROUP BY a, b",
    );
    exact("SELECT DISTINCT b, count(*) > 2 AS many FROM t GROUP BY CUBE (a, b)");
    exact("SELECT a, generate_series(1, count(*)::int) AS s FROM t GROUP BY ROLLUP (a)");
    exact(
        "SELECT a, sum(v) AS s, rank() OVER (PARTITION BY GROUPING(a) ORDER BY sum(v)) AS r FROM t GROUP BY ROLLUP (a)",
    );
}

#[test]
fn too_many_sets_are_evaluated_as_a_whole() {
    check(Scenario {
        tables: TABLES,
        query: "SELECT count(*) AS k FROM t GROUP BY CUBE (a, b, c, v, n, id, a + 1)",
        changes: &CHANGES[..3],
    });
}

#[test]
fn of_domains_that_forbid_null() {
    maintained(Scenario {
        tables: "CREATE DOMAIN never_null AS int NOT NULL; CREATE TABLE t (id int PRIMARY KEY, a never_null, b int); INSERT INTO t VALUES (1, 1, 1), (2, 1, 2), (3, 2, 2)",
        query: "SELECT a, b, count(DISTINCT a) AS n, count(DISTINCT b) AS m, array_agg(DISTINCT a) AS l FROM t GROUP BY CUBE (a, b)",
        changes: &[
            "INSERT INTO t VALUES (4, 3, 1), (5, 1, NULL)",
            "UPDATE t SET a = 2 WHERE id = 1",
            "DELETE FROM t WHERE a = 2",
            "DELETE FROM t",
        ],
    });
}
