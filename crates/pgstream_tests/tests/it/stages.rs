//! Aggregates and DISTINCT below joins, below aggregates and below each other: hidden stages.

use pgstream_tests::{Scenario, check};

const T: &str = "
    CREATE TABLE t (id int PRIMARY KEY, g int, h text, v int); CREATE TABLE d (g int PRIMARY KEY, name text);
    INSERT INTO t SELECT i, i % 4, 'h' || i % 3, i FROM generate_series(1, 24) i; INSERT INTO d VALUES (0, 'zero'), (1, 'one'), (2, 'two'), (7, 'seven')";

const CHANGES: &[&str] = &[
    "INSERT INTO t VALUES (100, 1, 'h1', 1000)",
    "UPDATE t SET g = 7 WHERE id < 4",
    "UPDATE d SET name = 'ONE' WHERE g = 1; UPDATE t SET v = v + 1 WHERE g = 1",
    "DELETE FROM t WHERE g = 2; INSERT INTO d VALUES (3, 'three')",
    "UPDATE t SET g = NULL, h = NULL WHERE id % 5 = 0",
    "DELETE FROM d WHERE g = 0; UPDATE t SET h = 'h0' WHERE h = 'h1'",
    "INSERT INTO t SELECT i, 2, 'h2', i FROM generate_series(200, 210) i; INSERT INTO d VALUES (0, 'back')",
    "UPDATE t SET v = v; UPDATE d SET name = name",
    "DELETE FROM t",
    "INSERT INTO t VALUES (1, 1, 'h1', 1)",
];

fn stages(query: &str) {
    check(Scenario { tables: T, query, changes: CHANGES });
}

#[test]
fn a_join_with_an_aggregate() {
    stages(
        "SELECT d.name, s.total, s.n FROM d JOIN (SELECT g, sum(v) AS total, count(*) AS n FROM t GROUP BY g) s ON s.g = d.g",
    );
}

#[test]
fn rows_with_their_groups_total() {
    stages(
        "SELECT t.id, t.v, s.hi FROM t JOIN (SELECT g, max(v) AS hi FROM t GROUP BY g) s ON t.g = s.g WHERE t.v < s.hi",
    );
}

#[test]
fn a_join_of_two_aggregates() {
    stages(
        "SELECT a.g, a.s, b.n FROM (SELECT g, sum(v) AS s FROM t GROUP BY g) a JOIN (SELECT g, count(*) AS n FROM t WHERE v > 5 GROUP BY g) b ON a.g = b.g",
    );
}

#[test]
fn a_join_with_the_total_of_all() {
    stages(
        "SELECT t.id, t.v, s.n, s.total FROM t CROSS JOIN (SELECT count(*) AS n, sum(v) AS total FROM t) s WHERE t.v * 10 > s.total",
    );
}

#[test]
fn an_aggregate_of_an_aggregate() {
    stages(
        "SELECT n, count(*) AS groups, sum(total) AS total FROM (SELECT g, count(*) AS n, sum(v) AS total FROM t GROUP BY g) s GROUP BY n",
    );
}

#[test]
fn an_aggregate_of_an_aggregate_of_an_aggregate() {
    stages(
        "SELECT max(m) AS m, count(*) AS n FROM (SELECT h, max(s) AS m FROM (SELECT g, h, sum(v) AS s FROM t GROUP BY g, h) x GROUP BY h) y",
    );
}

#[test]
fn distinct_below_an_aggregate() {
    stages("SELECT g, count(*) AS n FROM (SELECT DISTINCT g, h FROM t) x GROUP BY g");
}

#[test]
fn distinct_below_a_join() {
    stages("SELECT d.name, x.h FROM d JOIN (SELECT DISTINCT g, h FROM t) x ON x.g = d.g");
}

#[test]
fn an_aggregate_below_distinct_below_a_join() {
    stages(
        "SELECT d.name, x.n FROM d JOIN (SELECT DISTINCT g % 2 AS p, n FROM (SELECT g, count(*) AS n FROM t GROUP BY g) y) x ON x.p = d.g % 2",
    );
}

#[test]
fn having_below_a_join() {
    stages(
        "SELECT d.name, x.s FROM d JOIN (SELECT g, sum(v) AS s FROM t GROUP BY g HAVING count(*) > 5) x USING (g)",
    );
}

#[test]
fn a_cte_with_an_aggregate_that_is_used_twice() {
    stages(
        "WITH s AS (SELECT g, sum(v) AS total FROM t GROUP BY g) SELECT a.g AS a, b.g AS b, a.total - b.total AS diff FROM s a JOIN s b ON a.g < b.g",
    );
}

#[test]
fn a_view_with_an_aggregate() {
    check(Scenario {
        tables: &format!(
            "{T}; CREATE VIEW totals AS SELECT g, sum(v) AS total, avg(v) AS mean FROM t GROUP BY g; CREATE VIEW named AS SELECT d.name, totals.* FROM totals JOIN d USING (g)"
        ),
        query: "SELECT n.name, n.total, t.v FROM named n JOIN t USING (g) WHERE t.v > n.mean",
        changes: CHANGES,
    });
}

#[test]
fn union_all_of_aggregates() {
    stages(
        "SELECT 'g' || g AS k, sum(v) AS s FROM t GROUP BY g UNION ALL SELECT h, sum(v) FROM t GROUP BY h UNION ALL SELECT 'all', sum(v) FROM t UNION ALL SELECT name, g FROM d",
    );
}

#[test]
fn an_aggregate_over_a_join_with_an_aggregate() {
    stages(
        "SELECT d.name, count(*) AS n, sum(t.v - s.lo) AS above FROM t JOIN (SELECT g, min(v) AS lo FROM t GROUP BY g) s ON s.g = t.g JOIN d ON d.g = t.g GROUP BY d.name",
    );
}

#[test]
fn other_aggregates_below_a_join() {
    stages(
        "SELECT d.name, s.ids FROM d JOIN (SELECT g, string_agg(id::text, ',' ORDER BY id) AS ids FROM t GROUP BY g) s ON s.g = d.g",
    );
}

/// The groups of NULL and of an odd bigint look the same, and have the same row id.
#[test]
fn groups_that_look_alike_below_a_projection() {
    check(Scenario {
        tables: "CREATE TABLE t (g bigint, x text); INSERT INTO t VALUES (NULL, 'b'), ('-9223372036854775807', 'b'), (1, 'b')",
        query: "SELECT string_agg(x, '/' ORDER BY x) AS xs FROM t GROUP BY g",
        changes: &[
            "DELETE FROM t WHERE g < 0",
            "INSERT INTO t VALUES ('-9223372036854775807', 'b')",
            "UPDATE t SET x = 'c' WHERE g IS NULL",
            "UPDATE t SET x = 'b' WHERE g IS NULL",
            "UPDATE t SET x = 'c' WHERE g IS NULL; UPDATE t SET x = 'd' WHERE g < 0",
            "UPDATE t SET x = 'e'",
            "DELETE FROM t WHERE g IS NULL",
        ],
    });
}
