//! WITH RECURSIVE.

use pgstream_tests::{Scenario, check};

use crate::windows::maintained;

const TABLES: &str = "
    CREATE TABLE part (id int PRIMARY KEY, parent int, name text, qty numeric);
    CREATE TABLE edge (a int, b int, cost numeric);
    CREATE TABLE city (id int PRIMARY KEY, name text);
    CREATE INDEX ON part (parent);
    CREATE INDEX ON edge (a);
    INSERT INTO part SELECT i, nullif(i / 3, 0), 'p' || i, i % 4 + 0.5 FROM generate_series(1, 40) i;
    INSERT INTO edge VALUES (1, 2, 1.0), (1, 3, 1.00), (2, 4, 2), (3, 4, 2.0), (4, 5, 1), (1, 2, 1.0), (6, 7, 3), (7, NULL, 1);
    INSERT INTO city SELECT i, 'c' || i FROM generate_series(1, 9) i;";

const CHANGES: &[&str] = &[
    "UPDATE part SET qty = qty + 1 WHERE id IN (2, 9)",
    "UPDATE part SET parent = 1 WHERE id = 13; INSERT INTO edge VALUES (5, 6, 0.5), (4, 6, 1)",
    "DELETE FROM part WHERE id IN (5, 8); DELETE FROM edge WHERE a = 1 AND b = 3",
    "INSERT INTO part VALUES (5, 2, 'new', 1), (100, 40, NULL, NULL), (101, NULL, 'root', 2), (102, 101, 'x', 3)",
    "UPDATE part SET id = 1000 WHERE id = 1; UPDATE edge SET b = 3 WHERE a = 2; UPDATE city SET name = 'x' WHERE id = 4",
    "DELETE FROM edge WHERE a = 1 AND b = 2 AND ctid = (SELECT min(ctid) FROM edge WHERE a = 1); UPDATE part SET id = 1 WHERE id = 1000",
    "DELETE FROM part WHERE parent IS NULL; DELETE FROM edge WHERE a < 3",
    "INSERT INTO part VALUES (1, NULL, 'back', 1); INSERT INTO edge VALUES (1, 4, 9)",
];

#[track_caller]
fn recursion(query: &str) {
    maintained(Scenario { tables: TABLES, query, changes: CHANGES });
}

#[track_caller]
fn as_a_whole(query: &str) {
    check(Scenario { tables: TABLES, query, changes: CHANGES });
}

#[test]
fn a_tree_with_paths() {
    recursion(
        "WITH RECURSIVE tree AS (SELECT id, 1 AS level, name::text AS path FROM part WHERE parent IS NULL UNION ALL SELECT p.id, t.level + 1, t.path || '/' || p.name FROM part p JOIN tree t ON p.parent = t.id) SELECT * FROM tree",
    );
}

#[test]
fn quantities_multiply_along_the_way() {
    recursion(
        "WITH RECURSIVE bom(root, id, qty) AS (SELECT id, id, qty FROM part WHERE id < 4 UNION ALL SELECT b.root, p.id, b.qty * p.qty FROM bom b, part p WHERE p.parent = b.id AND p.qty > 0) SELECT root, count(*) AS n, sum(qty) AS total FROM bom GROUP BY root",
    );
}

#[test]
fn several_ways_to_the_same_row() {
    recursion(
        "WITH RECURSIVE walk(start, a, cost) AS (SELECT a, b, cost FROM edge UNION ALL SELECT w.start, e.b, w.cost + e.cost FROM walk w JOIN edge e ON e.a = w.a WHERE w.cost < 9) SELECT start, a, cost, city.name FROM walk JOIN city ON city.id = walk.a",
    );
}

#[test]
fn a_step_that_joins_the_same_table_twice() {
    recursion(
        "WITH RECURSIVE two(a) AS (SELECT id FROM city WHERE id = 1 UNION ALL SELECT f.b FROM two t JOIN edge e ON e.a = t.a JOIN edge f ON f.a = e.b) SELECT * FROM two",
    );
}

#[test]
fn a_step_over_an_aggregate_and_a_cte() {
    recursion(
        "WITH RECURSIVE cheapest AS (SELECT a, b, min(cost) AS cost FROM edge GROUP BY a, b), walk AS (SELECT 1 AS at, 0::numeric AS cost, 0 AS hops UNION ALL SELECT c.b, w.cost + c.cost, hops + 1 FROM walk w JOIN cheapest c ON c.a = w.at WHERE hops < 6) SELECT * FROM walk WHERE hops > 0",
    );
}

#[test]
fn one_that_is_used_twice() {
    recursion(
        "WITH RECURSIVE up AS (SELECT id, parent FROM part UNION ALL SELECT up.id, p.parent FROM up JOIN part p ON p.id = up.parent) SELECT x.id, count(y.parent) AS n FROM up x LEFT JOIN up y ON x.parent = y.id WHERE x.id > 10 GROUP BY x.id",
    );
}

#[test]
fn numbers_up_to_a_bound_in_a_table() {
    recursion(
        "WITH RECURSIVE n AS (SELECT id, 1 AS i FROM city UNION ALL SELECT id, i + 1 FROM n WHERE i < id) SELECT city.name, n.i FROM n JOIN city USING (id)",
    );
}

#[test]
fn a_cycle_that_loses_its_way_in() {
    maintained(Scenario {
        tables: "CREATE TABLE start (id int); CREATE TABLE edge (a int, b int); INSERT INTO start VALUES (1); INSERT INTO edge VALUES (1, 2), (2, 3)",
        query: "WITH RECURSIVE r AS (SELECT id FROM start UNION ALL SELECT b FROM r JOIN edge ON a = r.id) SELECT id FROM r",
        changes: &[
            "INSERT INTO edge VALUES (3, 2); DELETE FROM start",
            "DELETE FROM edge WHERE a = 3; INSERT INTO start VALUES (2)",
            "UPDATE edge SET a = 2 WHERE b = 2; DELETE FROM start", // a row that leads to itself
        ],
    });
}

#[test]
fn union_over_a_cycle() {
    as_a_whole(
        "WITH RECURSIVE r(a) AS (SELECT 1 UNION SELECT b FROM edge JOIN r USING (a)) SELECT * FROM r",
    );
}

#[test]
fn search_and_cycle_clauses() {
    as_a_whole(
        "WITH RECURSIVE r(a, b) AS (SELECT a, b FROM edge UNION ALL SELECT e.a, e.b FROM edge e JOIN r ON r.b = e.a) SEARCH DEPTH FIRST BY a SET seq CYCLE a SET is_cycle USING way SELECT a, b, is_cycle FROM r",
    );
}

#[test]
fn a_cycle_clause_ends_what_would_not_end() {
    check(Scenario {
        tables: "CREATE TABLE edge (a int, b int); INSERT INTO edge VALUES (1, 2), (2, 3), (3, 1)",
        query: "WITH RECURSIVE r(a) AS (SELECT 1 UNION ALL SELECT b FROM edge JOIN r USING (a)) CYCLE a SET seen USING way SELECT a FROM r",
        changes: &["INSERT INTO edge VALUES (3, 4), (4, 2)", "DELETE FROM edge WHERE b = 1"],
    });
}

#[test]
fn a_step_with_a_sub_query() {
    as_a_whole(
        "WITH RECURSIVE r(a, n) AS (SELECT 1, 0 UNION ALL SELECT e.b, n + 1 FROM edge e JOIN r ON r.a = e.a WHERE n < 5 AND NOT EXISTS (SELECT FROM city c WHERE c.id = e.b AND c.name = 'x')) SELECT * FROM r",
    );
}
