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

const GRAPH: &str = "
    CREATE TABLE root (id int);
    CREATE TABLE edge (a int, b int, kind text);
    CREATE TABLE node (id int PRIMARY KEY, name text, open bool NOT NULL);
    CREATE INDEX ON edge (a);
    CREATE INDEX ON edge (b);
    INSERT INTO root VALUES (1), (1), (20), (NULL);
    INSERT INTO edge VALUES (1, 2, 'x'), (1, 2, 'x'), (2, 3, 'x'), (3, 4, 'y'), (4, 2, 'y'), (4, 5, 'x'), (5, 5, 'x'), (5, 6, NULL), (6, 1, 'x'), (20, 21, 'x'), (21, 22, 'y'), (22, 20, 'x'), (30, 31, 'x'), (31, 30, 'x'), (NULL, 30, 'x'), (6, NULL, 'y');
    INSERT INTO node SELECT i, 'n' || i % 7, i % 5 <> 0 FROM generate_series(1, 40) i;";

const GRAPH_CHANGES: &[&str] = &[
    "DELETE FROM edge WHERE ctid = (SELECT min(ctid) FROM edge WHERE a = 1)", // one of two copies
    "DELETE FROM edge WHERE a = 1",                                           // a bridge to cycles
    "INSERT INTO edge VALUES (1, 4, 'x'), (22, 3, 'y')", // two ways into the cycle
    "DELETE FROM edge WHERE a = 1 AND b = 4; UPDATE node SET open = NOT open WHERE id IN (4, 5, 22)",
    "DELETE FROM root WHERE id = 20; INSERT INTO edge VALUES (1, 1, 'x'), (1, 6, 'y')",
    "DELETE FROM root WHERE ctid = (SELECT min(ctid) FROM root WHERE id = 1); INSERT INTO edge VALUES (6, 30, 'x'), (30, 20, 'x')",
    "UPDATE edge SET a = 3 WHERE a = 6 AND b = 30; UPDATE edge SET kind = 'x' WHERE kind = 'y'; UPDATE node SET name = 'n3' WHERE id < 9",
    "DELETE FROM root; INSERT INTO root VALUES (31)", // the roots move
    "INSERT INTO edge SELECT i, i + 1, 'x' FROM generate_series(31, 60) i; INSERT INTO edge VALUES (61, 35, 'x')",
    "DELETE FROM edge WHERE a IN (31, 45)",
    "TRUNCATE edge; INSERT INTO edge VALUES (31, 32, 'x'), (32, 31, 'x')",
    "TRUNCATE root",
    "INSERT INTO root VALUES (32), (NULL)",
];

#[track_caller]
fn graph(query: &str) {
    maintained(Scenario { tables: GRAPH, query, changes: GRAPH_CHANGES });
}

#[test]
fn what_can_be_reached_over_cycles_and_self_loops() {
    graph(
        "WITH RECURSIVE r(a) AS (SELECT id FROM root UNION SELECT b FROM edge JOIN r USING (a)) SELECT a FROM r",
    );
}

#[test]
fn the_transitive_closure() {
    graph(
        "WITH RECURSIVE r AS (SELECT a, b FROM edge UNION SELECT r.a, e.b FROM r, edge e WHERE e.a = r.b) SELECT a, b FROM r",
    );
}

#[test]
fn reaching_against_the_direction_over_some_edges() {
    graph(
        "WITH RECURSIVE r AS (SELECT id, 'x'::text AS kind FROM root UNION SELECT e.a, coalesce(e.kind, r.kind) FROM edge e JOIN node n ON n.id = e.b AND n.open JOIN r ON r.id = e.b AND (r.kind = e.kind OR e.kind IS NULL)) SELECT id, kind FROM r",
    );
}

#[test]
fn a_union_below_and_above_aggregates_and_joins() {
    graph(
        "WITH RECURSIVE many AS (SELECT a, b, count(*) AS n FROM edge GROUP BY a, b), r AS (SELECT DISTINCT id, 0::bigint AS n FROM root UNION SELECT m.b, m.n FROM many m JOIN r ON r.id = m.a) SELECT n.name, count(*) AS nodes, sum(r.n) AS edges FROM r LEFT JOIN node n ON n.id = r.id GROUP BY n.name",
    );
}

#[test]
fn two_recursions_one_of_them_used_twice_and_in_the_other() {
    graph(
        "WITH RECURSIVE down AS (SELECT id FROM root UNION SELECT b FROM edge e JOIN down d ON d.id = e.a), back AS (SELECT id AS start, id FROM down WHERE id < 7 UNION SELECT k.start, e.b FROM back k JOIN edge e ON e.a = k.id JOIN down d ON d.id = e.b) SELECT down.id, back.start FROM down JOIN back ON back.id = down.id UNION ALL SELECT id, NULL FROM down",
    );
}

#[test]
fn counting_up_to_a_bound_with_union() {
    graph(
        "WITH RECURSIVE hop AS (SELECT id, 0 AS n FROM root UNION SELECT e.b, n + 1 FROM hop JOIN edge e ON e.a = hop.id WHERE n < 6) SELECT id, min(n) AS distance, count(*) AS lengths FROM hop GROUP BY id",
    );
}

#[test]
fn steps_with_exists_and_outer_joins() {
    graph(
        "WITH RECURSIVE r AS (SELECT id FROM root UNION SELECT e.b FROM r JOIN edge e ON e.a = r.id WHERE EXISTS (SELECT FROM node n WHERE n.id = e.b AND n.open)) SELECT id FROM r",
    );
    graph(
        "WITH RECURSIVE r AS (SELECT id FROM root UNION SELECT e.b FROM r JOIN edge e ON e.a = r.id WHERE e.b NOT IN (SELECT n.id FROM node n WHERE NOT n.open)) SELECT id FROM r",
    );
    graph(
        "WITH RECURSIVE r AS (SELECT id, NULL::text AS name, 0 AS n FROM root UNION SELECT e.b, x.name, r.n + 1 FROM r JOIN edge e ON e.a = r.id LEFT JOIN node x ON x.id = e.b AND x.open WHERE r.n < 5) SELECT id, name, n FROM r",
    );
    graph(
        "WITH RECURSIVE r AS (SELECT id, 0 AS n FROM root UNION ALL SELECT coalesce(e.b, 30), r.n + 1 FROM r LEFT JOIN edge e ON e.a = r.id AND e.kind = 'x' WHERE r.n < 4) SELECT id, n FROM r",
    );
}

#[test]
fn steps_with_scalar_sub_queries() {
    graph(
        "WITH RECURSIVE r AS (SELECT id, 0::bigint AS n FROM root UNION SELECT e.b, (SELECT count(*) FROM node n WHERE n.id = e.b AND n.open) FROM r JOIN edge e ON e.a = r.id) SELECT id, n FROM r",
    );
}

#[test]
fn a_step_that_makes_several_rows() {
    graph(
        "WITH RECURSIVE r(id) AS (SELECT id FROM root UNION SELECT x FROM r, LATERAL generate_series(r.id, r.id + 2) AS x WHERE x < 9) SELECT r.id, n.name FROM r JOIN node n USING (id)",
    );
}

#[test]
fn a_refresh_of_a_cycle_with_all_kinds_of_keys() {
    maintained(Scenario {
        tables: "CREATE TABLE e (a text, b text, d date, u uuid, n numeric(6,2), c char(3)); INSERT INTO e VALUES ('a', 'b', '2024-01-01', NULL, 1, 'x'), ('b', 'a', NULL, gen_random_uuid(), 'NaN', ''), ('b', '', '2024-01-01', NULL, 1.5, NULL)",
        query: "WITH RECURSIVE r AS (SELECT a, d, u, n, c FROM e WHERE a = 'a' UNION SELECT e.b, e.d, e.u, e.n, e.c FROM r JOIN e USING (a)) SELECT * FROM r",
        changes: &[
            "UPDATE e SET n = n * 2, c = c || 'y' WHERE a = 'b'; INSERT INTO e VALUES ('b', 'a', NULL, NULL, 2.00, 'x  ')",
            "INSERT INTO e VALUES ('', 'c', NULL, NULL), ('c', 'b', '2024-01-01', NULL)",
            "DELETE FROM e WHERE a = 'a'; INSERT INTO e VALUES ('a', NULL, NULL, NULL), (NULL, 'a', NULL, NULL)",
            "UPDATE e SET b = 'c', d = '2024-02-02' WHERE b IS NULL",
        ],
    });
}

#[test]
fn union_over_values_that_look_different_and_are_equal() {
    as_a_whole(
        "WITH RECURSIVE r(a) AS (SELECT cost FROM edge UNION SELECT e.cost FROM edge e JOIN r ON r.a < e.cost) SELECT count(*) AS n FROM r",
    );
}

#[test]
fn an_order_that_nobody_looks_at() {
    recursion(
        "WITH RECURSIVE tree AS (SELECT id, name FROM part WHERE parent IS NULL UNION ALL SELECT p.id, t.name || p.name FROM part p JOIN tree t ON p.parent = t.id) SEARCH DEPTH FIRST BY name SET seq SELECT id, name FROM tree ORDER BY seq",
    );
    recursion(
        "WITH RECURSIVE tree AS (SELECT id, parent FROM part WHERE parent IS NULL UNION ALL SELECT p.id, p.parent FROM part p JOIN tree t ON p.parent = t.id) SEARCH BREADTH FIRST BY id, parent SET seq SELECT parent, count(*) AS n FROM tree GROUP BY parent",
    );
    as_a_whole(
        "WITH RECURSIVE tree AS (SELECT id FROM part WHERE parent IS NULL UNION ALL SELECT p.id FROM part p JOIN tree t ON p.parent = t.id) SEARCH DEPTH FIRST BY id SET seq SELECT id, rank() OVER (ORDER BY seq) AS place FROM tree",
    );
}

#[test]
fn a_recursion_that_only_a_limit_ends() {
    as_a_whole(
        "WITH RECURSIVE n(i) AS (SELECT min(id) FROM city UNION SELECT i + 1 FROM n) SELECT city.name, q.i FROM (SELECT i FROM n LIMIT 6) AS q JOIN city ON city.id = q.i",
    );
    recursion(
        "WITH RECURSIVE n(i) AS (SELECT id FROM city UNION SELECT i + 1 FROM n WHERE i < 20) SELECT city.name, q.i FROM (SELECT i FROM n ORDER BY i DESC LIMIT 15) AS q JOIN city ON city.id = q.i",
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
    recursion(
        "WITH RECURSIVE r(a, n) AS (SELECT 1, 0 UNION ALL SELECT e.b, n + 1 FROM edge e JOIN r ON r.a = e.a WHERE n < 5 AND NOT EXISTS (SELECT FROM city c WHERE c.id = e.b AND c.name = 'x')) SELECT * FROM r",
    );
}

#[test]
fn a_step_that_is_not_linear() {
    as_a_whole(
        "WITH RECURSIVE r(a, n) AS (SELECT 1, 0::bigint UNION ALL SELECT e.b, n + rank() OVER (ORDER BY e.b) FROM edge e JOIN r ON r.a = e.a WHERE n < 5) SELECT * FROM r",
    );
}
