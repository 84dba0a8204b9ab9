//! INTERSECT and EXCEPT, with and without ALL, nested and mixed with UNION.

use pgstream_tests::{Scenario, check_values};

use crate::windows::maintained;

const TABLES: &str = "
    CREATE TABLE a (id int PRIMARY KEY, x int, y text); CREATE TABLE b (x int, y text); CREATE TABLE c (x bigint, y varchar(5));
    INSERT INTO a VALUES (1, 1, 'x'), (2, 1, 'x'), (3, 2, NULL), (4, NULL, NULL), (5, NULL, NULL), (6, 3, 'z');
    INSERT INTO b VALUES (1, 'x'), (1, 'x'), (1, 'x'), (NULL, NULL), (2, 'q'); INSERT INTO c VALUES (1, 'x'), (3, 'z'), (NULL, NULL)";

const CHANGES: &[&str] = &[
    "INSERT INTO a VALUES (10, 1, 'x'), (11, 2, 'q'), (12, 7, 'n'); INSERT INTO b VALUES (2, NULL), (3, 'z'), (7, 'n')",
    "DELETE FROM b WHERE ctid = (SELECT min(ctid) FROM b WHERE x = 1); UPDATE a SET x = NULL, y = NULL WHERE id = 1",
    "UPDATE a SET x = x; DELETE FROM c",
    "DELETE FROM b",
    "INSERT INTO c VALUES (1, 'x'), (1, 'x'), (2, 'q'); INSERT INTO b VALUES (1, 'x'), (NULL, NULL), (NULL, 'z')",
    "DELETE FROM a",
    "INSERT INTO a VALUES (1, 1, 'x'), (2, 1, 'x'), (3, 1, 'x')",
];

#[track_caller]
fn exact(query: &str) {
    maintained(Scenario { tables: TABLES, query, changes: CHANGES });
}

#[test]
fn intersect() {
    exact("SELECT x, y FROM a INTERSECT SELECT x, y FROM b");
}

#[test]
fn intersect_all_keeps_the_lesser_number_of_copies() {
    exact("SELECT x, y FROM a INTERSECT ALL SELECT x, y FROM b");
}

#[test]
fn except() {
    exact("SELECT x, y FROM a EXCEPT SELECT x, y FROM b");
}

#[test]
fn except_all_takes_copies_away() {
    exact("SELECT x, y FROM a EXCEPT ALL SELECT x, y FROM b");
}

#[test]
fn sides_with_other_types() {
    exact("SELECT x, y FROM a EXCEPT ALL SELECT x, y FROM c");
    exact("SELECT 'l' AS s, x FROM a INTERSECT SELECT 'l', x FROM c");
}

#[test]
fn nested_and_mixed() {
    exact("SELECT x FROM a INTERSECT SELECT x FROM b EXCEPT SELECT x FROM c");
    exact(
        "SELECT x FROM a EXCEPT ALL (SELECT x FROM b INTERSECT ALL SELECT x FROM c) UNION SELECT id FROM a",
    );
    exact("(SELECT x FROM a UNION ALL SELECT x FROM b) EXCEPT ALL SELECT x FROM c");
}

#[test]
fn above_and_below_other_operators() {
    exact(
        "SELECT x, count(*) AS n FROM (SELECT x, y FROM a EXCEPT ALL SELECT x, y FROM b) q GROUP BY x",
    );
    exact(
        "SELECT q.y FROM (SELECT x, y FROM a INTERSECT ALL SELECT x, y FROM b) q JOIN c ON c.x = q.x",
    );
    exact("SELECT x, count(*) AS n FROM a GROUP BY x EXCEPT SELECT x, count(*) FROM b GROUP BY x");
}

#[test]
fn types_without_a_hash_or_without_an_order() {
    let row = "i, (i % 5)::bit(3), (i % 5)::numeric::money, to_tsvector('simple', 'w' || i % 5), (i % 5)::text::xid, int4range(i % 5, 9), (i % 5)::bit(3)::varbit";
    let tables = format!(
        "CREATE TABLE k (id int PRIMARY KEY, b bit(3), m money, v tsvector, x xid, r int4range, vb varbit);
         INSERT INTO k SELECT {row} FROM generate_series(1, 9) i"
    );
    let changes = [
        &format!("INSERT INTO k SELECT {row} FROM generate_series(10, 14) i") as &str,
        "DELETE FROM k WHERE id % 4 = 0",
        "UPDATE k SET b = b'111', v = 'zz', x = '7', m = 7, vb = NULL WHERE id IN (3, 7)",
    ];
    for operation in ["INTERSECT", "EXCEPT ALL", "UNION"] {
        for columns in ["b, m, v, r, vb", "x"] {
            let query = format!(
                "SELECT {columns} FROM k WHERE id < 8 {operation} SELECT {columns} FROM k WHERE id > 4"
            );
            maintained(Scenario { tables: &tables, query: &query, changes: &changes });
        }
    }
}

#[test]
fn values_that_are_equal_but_look_different() {
    for operation in ["INTERSECT", "INTERSECT ALL", "EXCEPT", "EXCEPT ALL"] {
        check_values(Scenario {
            tables: "CREATE TABLE t (id int PRIMARY KEY, n numeric, f float8); CREATE TABLE u (id int PRIMARY KEY, n numeric, f float8);
                     INSERT INTO t VALUES (1, 1.0, 0), (2, 1.00, '-0'), (3, 2, 'NaN'), (4, 2.0, 1), (5, 2.00, 1);
                     INSERT INTO u VALUES (1, 1.000, 0), (2, 2.0, 'NaN'), (3, 3, 3)",
            query: &format!("SELECT n, f FROM t {operation} SELECT n, f FROM u"),
            changes: &[
                "INSERT INTO t VALUES (10, 1.0000, 0), (11, 3.0, 3); INSERT INTO u VALUES (10, 2.00, 1)",
                "DELETE FROM u WHERE id IN (1, 2)",
                "DELETE FROM t WHERE id IN (1, 4)",
                "INSERT INTO u SELECT id + 100, n, f FROM t",
                "DELETE FROM u",
            ],
        });
    }
}

/// The image that EXCEPT ALL shows is one of the left side.
#[test]
fn except_all_shows_a_value_of_the_left_side() {
    maintained(Scenario {
        tables: "CREATE TABLE t (n numeric); CREATE TABLE u (n numeric); INSERT INTO u VALUES (1.00)",
        query: "SELECT n FROM t EXCEPT ALL SELECT n FROM u",
        changes: &[
            "INSERT INTO t VALUES (1.0), (1.0)",
            "INSERT INTO u VALUES (1.000)",
            "INSERT INTO t VALUES (1.0)",
        ],
    });
}
