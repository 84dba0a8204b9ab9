//! SELECT DISTINCT.

use pgstream_tests::{Scenario, check, check_values};

const T: &str = "
    CREATE TABLE t (id int PRIMARY KEY, a int, b text); CREATE TABLE u (a int, c text);
    INSERT INTO t VALUES (1, 1, 'x'), (2, 1, 'x'), (3, 2, NULL), (4, NULL, NULL), (5, NULL, NULL);
    INSERT INTO u VALUES (1, 'p'), (1, 'p'), (2, 'q')";

const CHANGES: &[&str] = &[
    "DELETE FROM t WHERE id = 1", // another one stays
    "DELETE FROM t WHERE id = 2",
    "INSERT INTO t VALUES (6, 1, 'x'), (7, 1, 'x'), (8, 2, NULL); INSERT INTO u VALUES (1, 'r')",
    "UPDATE t SET a = 2, b = NULL",
    "UPDATE t SET a = NULL WHERE id > 4; DELETE FROM u WHERE c = 'p'",
    "DELETE FROM t WHERE id = 6; INSERT INTO t VALUES (6, 9, 'nine'); DELETE FROM t WHERE id = 6; INSERT INTO t VALUES (6, NULL, NULL)",
    "DELETE FROM t",
    "INSERT INTO t VALUES (1, 1, 'x'), (2, 2, 'y'); INSERT INTO u VALUES (2, 'q'), (2, 'q')",
];

fn distinct(query: &str) {
    check(Scenario { tables: T, query, changes: CHANGES });
}

#[test]
fn a_row_stays_while_one_of_its_copies_does() {
    distinct("SELECT DISTINCT a, b FROM t");
}

#[test]
fn over_an_expression_and_a_filter() {
    distinct("SELECT DISTINCT a + 1 AS a, coalesce(b, 'none') AS b FROM t WHERE id <> 3");
}

#[test]
fn over_a_join() {
    distinct("SELECT DISTINCT t.a, u.c FROM t JOIN u ON t.a = u.a");
}

#[test]
fn over_union_all() {
    distinct("SELECT DISTINCT a FROM (SELECT a FROM t UNION ALL SELECT a FROM u) x");
}

#[test]
fn over_an_aggregate() {
    distinct("SELECT DISTINCT count(*) AS n, max(a) AS m FROM t GROUP BY b");
}

#[test]
fn over_values_that_are_equal_but_look_different() {
    check_values(Scenario {
        tables: "CREATE TABLE n (id int PRIMARY KEY, v numeric); INSERT INTO n VALUES (1, 1.0), (2, 1.00), (3, 2)",
        query: "SELECT DISTINCT v FROM n",
        changes: &[
            "DELETE FROM n WHERE id = 1",
            "INSERT INTO n VALUES (4, 2.0), (5, 1)",
            "DELETE FROM n WHERE id = 2",
            "DELETE FROM n WHERE v = 2",
        ],
    });
}
