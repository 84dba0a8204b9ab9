//! DISTINCT ON.

use pgstream_tests::Scenario;

use crate::windows::maintained;

const TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, g int, h text, v numeric);
    CREATE TABLE u (k numeric, v int);
    INSERT INTO t SELECT i, i % 5, 'h' || i % 3, i % 7 FROM generate_series(1, 30) i;
    INSERT INTO t VALUES (100, NULL, 'h1', NULL), (101, NULL, NULL, 3.5);
    INSERT INTO u VALUES (1.0, 1), (1.00, 2), (1, 3), (NULL, 4), (NULL, 5), ('NaN', 5), ('NaN', 5);";

const CHANGES: &[&str] = &[
    "UPDATE t SET v = v + 7 WHERE id % 7 = 0; INSERT INTO u VALUES (1.000, 0), (NULL, 3)",
    "UPDATE t SET g = g + 1 WHERE id % 9 = 0; DELETE FROM t WHERE id = 12",
    "INSERT INTO t VALUES (200, NULL, 'h2', 9), (201, 7, NULL, NULL); UPDATE u SET v = v - 3 WHERE k = 1",
    "DELETE FROM t WHERE g = 2; UPDATE t SET g = NULL WHERE id = 3; DELETE FROM u WHERE k IS NULL",
    "DELETE FROM t WHERE g IS NULL; INSERT INTO u VALUES (NULL, 1)",
];

#[track_caller]
fn distinct_on(query: &str) {
    maintained(Scenario { tables: TABLES, query, changes: CHANGES });
}

#[test]
fn the_greatest_of_each_group() {
    distinct_on("SELECT DISTINCT ON (g) g, id, v FROM t ORDER BY g, v DESC NULLS LAST, id");
}

#[test]
fn by_columns_that_are_not_shown() {
    distinct_on("SELECT DISTINCT ON (g, upper(h)) v, id FROM t ORDER BY upper(h), g, id + v, id");
}

#[test]
fn equal_keys_that_look_different() {
    distinct_on("SELECT DISTINCT ON (k) k, v FROM u ORDER BY k, v");
}

#[test]
fn above_grouping_and_windows() {
    distinct_on(
        "SELECT DISTINCT ON (g) g, h, sum(v) AS s, rank() OVER (PARTITION BY h ORDER BY g) AS r FROM t GROUP BY g, h ORDER BY g, sum(v) DESC, h",
    );
}

#[test]
fn with_a_limit_below_a_join() {
    distinct_on(
        "SELECT x.g, t.id FROM (SELECT DISTINCT ON (g) g, v FROM t ORDER BY g DESC NULLS LAST, v LIMIT 3) x JOIN t USING (g)",
    );
}

#[test]
fn below_an_aggregate() {
    distinct_on(
        "SELECT h, count(*) AS n FROM (SELECT DISTINCT ON (g) g, h FROM t ORDER BY g, id DESC) x GROUP BY h",
    );
}
