//! Inner joins: equi, non-equi, cross, NATURAL, USING, self, several at once.

use pgstream_tests::{Scenario, check};

const PAIR: &str = "
    CREATE TABLE a (id int PRIMARY KEY, k int, v text); CREATE TABLE b (id int PRIMARY KEY, k int, w text);
    INSERT INTO a VALUES (1, 1, 'a1'), (2, 1, 'a2'), (3, 2, 'a3'), (4, NULL, 'a4');
    INSERT INTO b VALUES (1, 1, 'b1'), (2, 2, 'b2'), (3, 2, 'b3'), (4, NULL, 'b4'), (5, 5, 'b5')";

/// Changes to both sides, at the same key, in one cycle.
const BOTH_SIDES: &[&str] = &[
    "INSERT INTO a VALUES (10, 5, 'a10')",
    "INSERT INTO b VALUES (10, 1, 'b10')",
    "INSERT INTO a VALUES (11, 7, 'a11'); INSERT INTO b VALUES (11, 7, 'b11')",
    "UPDATE a SET k = 2 WHERE id = 1; UPDATE b SET k = 1 WHERE id = 2",
    "DELETE FROM a WHERE id = 11; DELETE FROM b WHERE id = 11",
    "DELETE FROM a WHERE k = 1; INSERT INTO b VALUES (12, 1, 'b12'); INSERT INTO a VALUES (2, 1, 'a2 again')",
    "UPDATE a SET k = NULL WHERE k = 2; UPDATE b SET k = 9 WHERE k IS NULL; UPDATE a SET k = 9 WHERE id = 4",
    "UPDATE a SET id = id + 100; UPDATE b SET id = id + 100, w = w || '!'",
    "DELETE FROM a",
    "INSERT INTO a SELECT i, i, 'x' FROM generate_series(1, 12) i; DELETE FROM b WHERE k = 5",
];

#[test]
fn an_equi_join() {
    check(Scenario {
        tables: PAIR,
        query: "SELECT a.id AS a_id, b.id AS b_id, v, w FROM a JOIN b ON a.k = b.k",
        changes: BOTH_SIDES,
    });
}

#[test]
fn a_join_that_drops_the_keys() {
    check(Scenario {
        tables: PAIR,
        query: "SELECT a.k FROM a JOIN b ON a.k = b.k",
        changes: BOTH_SIDES,
    });
}

#[test]
fn a_join_with_a_condition_on_each_side_and_across() {
    check(Scenario {
        tables: PAIR,
        query: "SELECT v, w FROM a JOIN b ON a.k = b.k AND a.id < b.id WHERE a.v <> 'a2' AND b.w LIKE 'b%' AND a.v || b.w <> 'a1b1'",
        changes: BOTH_SIDES,
    });
}

#[test]
fn a_non_equi_join() {
    check(Scenario {
        tables: PAIR,
        query: "SELECT a.id AS x, b.id AS y FROM a JOIN b ON a.k < b.k OR a.v = 'a4'",
        changes: BOTH_SIDES,
    });
}

#[test]
fn a_join_on_not_distinct() {
    check(Scenario {
        tables: PAIR,
        query: "SELECT v, w FROM a JOIN b ON a.k IS NOT DISTINCT FROM b.k",
        changes: BOTH_SIDES,
    });
}

#[test]
fn a_cross_join_and_a_comma() {
    check(Scenario {
        tables: PAIR,
        query: "SELECT a.v, b.w FROM a CROSS JOIN b WHERE a.id <> 2 UNION ALL SELECT v, w FROM a, b WHERE a.id = b.id",
        changes: BOTH_SIDES,
    });
}

#[test]
fn a_natural_join() {
    check(Scenario { tables: PAIR, query: "SELECT * FROM a NATURAL JOIN b", changes: BOTH_SIDES });
}

#[test]
fn a_join_using() {
    check(Scenario {
        tables: PAIR,
        query: "SELECT k, j.id, a.v, w FROM (a JOIN b USING (k, id)) AS j (k, id, v1, w) JOIN a USING (id, k)",
        changes: BOTH_SIDES,
    });
}

#[test]
fn a_join_of_different_types() {
    check(Scenario {
        tables: "CREATE TABLE a (id int PRIMARY KEY, k bigint, v varchar(20)); CREATE TABLE b (id int PRIMARY KEY, k smallint, w text);
                 INSERT INTO a VALUES (1, 1, 'a1'), (2, 1, 'b2'), (3, 2, 'a3'), (4, NULL, 'a4'); INSERT INTO b VALUES (1, 1, 'a1'), (2, 2, 'b2')",
        query: "SELECT v, w FROM a JOIN b ON a.k = b.k OR a.v = b.w",
        changes: BOTH_SIDES,
    });
}

#[test]
fn a_self_join() {
    check(Scenario {
        tables: PAIR,
        query: "SELECT x.id AS x, y.id AS y, x.v FROM a x JOIN a y ON x.k = y.k",
        changes: BOTH_SIDES,
    });
}

#[test]
fn a_self_join_over_a_hierarchy() {
    check(Scenario {
        tables: "CREATE TABLE emp (id int PRIMARY KEY, boss int, name text); INSERT INTO emp VALUES (1, NULL, 'ann'), (2, 1, 'bob'), (3, 1, 'cyd'), (4, 2, 'dan'), (5, 5, 'eve')",
        query: "SELECT e.name, b.name AS boss, bb.name AS boss_of_boss FROM emp e JOIN emp b ON e.boss = b.id JOIN emp bb ON b.boss = bb.id",
        changes: &[
            "INSERT INTO emp VALUES (6, 4, 'fay')",
            "UPDATE emp SET boss = 3 WHERE id = 2",
            "UPDATE emp SET name = upper(name)",
            "UPDATE emp SET id = 20 WHERE id = 2; UPDATE emp SET boss = 20 WHERE boss = 2",
            "DELETE FROM emp WHERE id = 3; UPDATE emp SET boss = 1 WHERE boss = 3",
        ],
    });
}

const FOUR: &str = "
    CREATE TABLE f (id int PRIMARY KEY, x int, y int, z int, v int);
    CREATE TABLE x (id int PRIMARY KEY, n text); CREATE TABLE y (id int PRIMARY KEY, n text, x int); CREATE TABLE z (id int, n text);
    INSERT INTO x SELECT i, 'x' || i FROM generate_series(1, 4) i; INSERT INTO y SELECT i, 'y' || i, i % 2 + 1 FROM generate_series(1, 4) i;
    INSERT INTO z SELECT i % 3, 'z' || i FROM generate_series(1, 6) i;
    INSERT INTO f SELECT i, i % 4 + 1, i % 5, i % 3, i FROM generate_series(1, 20) i";

const FOUR_CHANGES: &[&str] = &[
    "UPDATE x SET n = 'X' WHERE id = 2",
    "INSERT INTO f VALUES (100, 1, 1, 1, 1); UPDATE y SET n = 'Y', x = 3 WHERE id = 1; DELETE FROM z WHERE n = 'z1'; INSERT INTO x VALUES (9, 'x9')",
    "UPDATE f SET x = y, y = x; UPDATE z SET id = id + 1; DELETE FROM x WHERE id = 1; INSERT INTO x VALUES (1, 'x1 again')",
    "DELETE FROM y",
    "INSERT INTO y SELECT i, 'new', i FROM generate_series(1, 5) i; UPDATE f SET z = 0 WHERE id < 5; DELETE FROM f WHERE id > 15",
    "UPDATE f SET v = v + 1; UPDATE x SET n = n || '!'; UPDATE y SET n = n || '!'; UPDATE z SET n = n || '!'",
];

#[test]
fn a_join_of_four_tables() {
    check(Scenario {
        tables: FOUR,
        query: "SELECT f.id, x.n AS xn, y.n AS yn, z.n AS zn, f.v FROM f JOIN x ON f.x = x.id JOIN y ON f.y = y.id JOIN z ON f.z = z.id",
        changes: FOUR_CHANGES,
    });
}

#[test]
fn a_join_of_joins() {
    check(Scenario {
        tables: FOUR,
        query: "SELECT f.id, x.n AS xn, y.n AS yn, z.n AS zn FROM (f JOIN z ON f.z = z.id) JOIN (x JOIN y ON y.x = x.id) ON f.x = x.id AND f.y >= y.id",
        changes: FOUR_CHANGES,
    });
}

#[test]
fn a_join_over_union_all() {
    check(Scenario {
        tables: FOUR,
        query: "SELECT u.n, f.v FROM (SELECT id, n FROM x UNION ALL SELECT id, n FROM z UNION ALL SELECT id, n FROM x) u JOIN f ON f.x = u.id",
        changes: FOUR_CHANGES,
    });
}

#[test]
fn a_star_of_the_same_table() {
    check(Scenario {
        tables: FOUR,
        query: "SELECT f.id, a.n AS an, b.n AS bn FROM f JOIN x a ON f.x = a.id JOIN x b ON f.y = b.id JOIN f g ON g.id = f.v",
        changes: FOUR_CHANGES,
    });
}

#[test]
fn a_join_without_keys_multiplies_duplicates() {
    check(Scenario {
        tables: "CREATE TABLE a (k int, v text); CREATE TABLE b (k int, v text);
                 INSERT INTO a VALUES (1, 'x'), (1, 'x'), (2, 'y'), (NULL, 'z'); INSERT INTO b VALUES (1, 'p'), (1, 'p'), (1, 'q'), (NULL, 'r')",
        query: "SELECT a.k, a.v AS av, b.v AS bv FROM a JOIN b ON a.k = b.k",
        changes: &[
            "INSERT INTO a VALUES (1, 'x')",
            "DELETE FROM b WHERE ctid = (SELECT min(ctid) FROM b WHERE v = 'p')",
            "UPDATE a SET v = 'x2' WHERE ctid = (SELECT min(ctid) FROM a WHERE v = 'x'); INSERT INTO b VALUES (2, 's'), (2, 's')",
            "UPDATE b SET v = 'q' WHERE k = 1",
            "DELETE FROM a WHERE k = 1; DELETE FROM b WHERE k = 1",
        ],
    });
}

#[test]
fn rows_appear_and_vanish_between_two_refreshes() {
    check(Scenario {
        tables: PAIR,
        query: "SELECT a.v, b.w FROM a JOIN b ON a.k = b.k",
        changes: &[
            "INSERT INTO a VALUES (50, 2, 'short'); INSERT INTO b VALUES (50, 2, 'short'); DELETE FROM a WHERE id = 50; DELETE FROM b WHERE id = 50",
            "UPDATE a SET k = 2; UPDATE b SET k = 1; UPDATE a SET k = 1; UPDATE b SET k = 2",
            "DELETE FROM b; INSERT INTO b VALUES (1, 1, 'b1'); UPDATE a SET v = 'a'",
        ],
    });
}
