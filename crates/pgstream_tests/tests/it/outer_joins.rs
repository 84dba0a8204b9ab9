//! LEFT, RIGHT and FULL JOIN.

use pgstream_tests::{Database, Scenario, check};

use crate::windows::maintained;

const TABLES: &str = "
    CREATE TABLE a (id int PRIMARY KEY, k int, v text); CREATE TABLE b (id int PRIMARY KEY, k int, w text);
    CREATE TABLE c (k int, z numeric); CREATE TABLE d (id int NOT NULL, x int);
    CREATE INDEX ON b (k);
    INSERT INTO a VALUES (1, 1, 'a1'), (2, 1, 'a2'), (3, 2, 'a3'), (4, NULL, 'a4'), (5, 7, 'a5');
    INSERT INTO b VALUES (1, 1, 'b1'), (2, 2, 'b2'), (3, 2, 'b3'), (4, NULL, 'b4'), (5, 5, 'b5');
    INSERT INTO c VALUES (1, 1.0), (1, 1.0), (2, 2), (NULL, 3), (4, NULL);
    INSERT INTO d SELECT i % 6, i % 4 FROM generate_series(1, 15) i;";

/// Both sides change at the same keys in one cycle; matches come first, go last, and move.
const CHANGES: &[&str] = &[
    "INSERT INTO b VALUES (10, 7, 'b10'); INSERT INTO a VALUES (10, 5, 'a10')",
    "DELETE FROM b WHERE id = 10; INSERT INTO b VALUES (11, 7, 'b11')",
    "INSERT INTO a VALUES (11, 8, 'a11'); INSERT INTO b VALUES (12, 8, 'b12'); INSERT INTO c VALUES (8, 8), (8, 8)",
    "UPDATE a SET k = 2 WHERE id = 1; UPDATE b SET k = 1 WHERE id = 2; UPDATE c SET k = k + 1, z = z + 0.50",
    "DELETE FROM a WHERE id = 11; DELETE FROM b WHERE id = 12; DELETE FROM c WHERE k = 9; UPDATE d SET x = x + 1 WHERE id < 3",
    "DELETE FROM b WHERE k = 2; INSERT INTO b VALUES (3, 2, 'b3 again'), (20, 2, 'b20'); DELETE FROM d WHERE x = 3",
    "UPDATE a SET k = NULL WHERE k = 2; UPDATE b SET k = 9 WHERE k IS NULL; UPDATE a SET k = 9 WHERE id = 4; INSERT INTO d VALUES (9, 9), (9, NULL)",
    "UPDATE a SET id = id + 100; UPDATE b SET id = id + 100, w = w || '!'; UPDATE c SET k = NULL WHERE k = 2",
    "DELETE FROM b; INSERT INTO c VALUES (1, 1), (NULL, NULL)",
    "INSERT INTO b SELECT i, i % 5, 'b' || i FROM generate_series(1, 12) i; DELETE FROM a WHERE id % 2 = 0",
    "TRUNCATE c; INSERT INTO c VALUES (1, 1.00), (3, 3)",
    "DELETE FROM a",
    "INSERT INTO a SELECT i, i % 6, 'x' FROM generate_series(1, 9) i; DELETE FROM c; DELETE FROM d WHERE id = 1",
];

/// Fails unless the query is exact, and maintained by rules.
#[track_caller]
fn outer_joins(query: &str) {
    maintained(Scenario { tables: TABLES, query, changes: CHANGES });
}

#[test]
fn left_join() {
    outer_joins("SELECT a.id, b.id AS b_id, v, w FROM a LEFT JOIN b ON a.k = b.k");
    outer_joins("SELECT v, w FROM a LEFT JOIN b ON a.k = b.k");
    outer_joins("SELECT a.k, z FROM a LEFT JOIN c ON a.k = c.k");
}

#[test]
fn right_join() {
    outer_joins("SELECT a.id, b.id AS b_id, v, w FROM a RIGHT JOIN b ON a.k = b.k");
    outer_joins("SELECT v, z FROM c RIGHT JOIN a ON a.k = c.k AND z > 1");
}

#[test]
fn full_join() {
    outer_joins("SELECT a.id, b.id AS b_id, v, w FROM a FULL JOIN b ON a.k = b.k");
    outer_joins("SELECT v, z FROM a FULL JOIN c ON a.k = c.k AND a.id > 2 AND z = 1");
}

#[test]
fn without_equality() {
    outer_joins("SELECT v, w FROM a LEFT JOIN b ON a.k < b.k OR a.v = 'a4'");
    outer_joins("SELECT v, w FROM a LEFT JOIN b ON true");
    outer_joins("SELECT v, w FROM a LEFT JOIN b ON a.k IS NOT DISTINCT FROM b.k");
    outer_joins("SELECT v, w FROM a FULL JOIN b ON a.k = b.k AND a.id <= b.id");
}

#[test]
fn conditions_on_one_side() {
    outer_joins("SELECT v, w FROM a LEFT JOIN b ON a.k = b.k AND a.id > 2");
    outer_joins("SELECT v, w FROM a LEFT JOIN b ON a.k = b.k AND b.w <> 'b2'");
    outer_joins(
        "SELECT v, w FROM a LEFT JOIN b ON a.k = b.k WHERE a.id > 2 AND (b.w IS NULL OR b.id < 100)",
    );
    outer_joins("SELECT v, w FROM a LEFT JOIN b ON a.k = b.k WHERE b.id > 2");
    outer_joins("SELECT a.id, v FROM a LEFT JOIN b ON a.k = b.k WHERE b.id IS NULL");
    outer_joins("SELECT v, w FROM a FULL JOIN b ON a.k = b.k WHERE coalesce(a.id, b.id) > 2");
}

#[test]
fn using_and_natural() {
    outer_joins("SELECT k, v, w FROM a LEFT JOIN b USING (k)");
    outer_joins("SELECT k, v, w FROM a RIGHT JOIN b USING (k)");
    outer_joins("SELECT k, v, w FROM a FULL JOIN b USING (k)");
    outer_joins("SELECT * FROM a NATURAL FULL JOIN c");
    outer_joins("SELECT k, v, z, w FROM a LEFT JOIN c USING (k) FULL JOIN b USING (k)");
    outer_joins("SELECT k, v, z FROM c LEFT JOIN (a FULL JOIN b USING (k)) USING (k)");
    outer_joins(
        "SELECT k, count(*) AS n FROM a FULL JOIN (SELECT k::bigint AS k FROM b) s USING (k) GROUP BY k",
    );
}

#[test]
fn several_in_one_query() {
    outer_joins(
        "SELECT v, w, z, x FROM a LEFT JOIN b ON a.k = b.k LEFT JOIN c ON b.id = c.k LEFT JOIN d ON c.z = d.id AND a.id = d.x",
    );
    outer_joins("SELECT v, w, z FROM a LEFT JOIN (b LEFT JOIN c ON b.id = c.k) ON a.k = b.k");
    outer_joins("SELECT v, w, z FROM a LEFT JOIN (b JOIN c ON b.id = c.k) ON a.k = c.z");
    outer_joins("SELECT v, w, z FROM (a LEFT JOIN b ON a.k = b.k) JOIN c ON a.id = c.k");
    outer_joins("SELECT v, w, z FROM (a JOIN b ON a.k = b.k) LEFT JOIN c ON a.id = c.k");
    outer_joins("SELECT v, w, z FROM (a FULL JOIN b ON a.k = b.k) FULL JOIN c ON b.id = c.k");
    outer_joins("SELECT v, w, z FROM a LEFT JOIN (b CROSS JOIN c) ON a.k = b.k AND c.k = a.id");
}

#[test]
fn with_itself() {
    outer_joins("SELECT x.v, y.v AS y_v FROM a x LEFT JOIN a y ON x.k = y.id");
    outer_joins(
        "SELECT x.id, y.x, z.x AS z_x FROM d x FULL JOIN d y ON x.id = y.x LEFT JOIN d z ON z.x = x.id",
    );
    outer_joins(
        "WITH t AS (SELECT a.id, b.k FROM a LEFT JOIN b ON a.k = b.id) SELECT p.id, q.k FROM t p LEFT JOIN t q ON p.id = q.k",
    );
}

#[test]
fn below_aggregates() {
    outer_joins(
        "SELECT a.k, count(*) AS n, count(b.id) AS matches, sum(b.id) AS s, min(b.w) AS first, max(b.id) AS last FROM a LEFT JOIN b ON a.k = b.k GROUP BY a.k",
    );
    outer_joins(
        "SELECT count(*) AS n, sum(coalesce(z, 0)) AS s, avg(z) AS m FROM a LEFT JOIN c ON a.id = c.k",
    );
    outer_joins("SELECT DISTINCT b.k, a.k AS a_k FROM b FULL JOIN a ON a.k = b.k");
    outer_joins(
        "SELECT coalesce(a.k, -1) AS k, string_agg(w, ',' ORDER BY b.id) AS ws FROM a RIGHT JOIN b ON a.k = b.k GROUP BY 1 HAVING count(*) > 1",
    );
    outer_joins(
        "SELECT a.k, count(DISTINCT b.w) AS n FROM a LEFT JOIN b ON a.k = b.k GROUP BY a.k",
    );
}

#[test]
fn above_aggregates() {
    outer_joins(
        "SELECT w, n FROM b LEFT JOIN (SELECT k, count(*) AS n FROM a GROUP BY k) g ON b.k = g.k",
    );
    outer_joins(
        "SELECT g.k, n, w FROM (SELECT k, count(*) AS n FROM a GROUP BY k) g LEFT JOIN b ON b.k = g.n",
    );
    outer_joins(
        "SELECT g.n, h.n AS h_n FROM (SELECT k, count(*) AS n FROM a GROUP BY k) g FULL JOIN (SELECT k, count(*) AS n FROM b GROUP BY k) h USING (k)",
    );
}

#[test]
fn among_other_operators() {
    outer_joins(
        "SELECT v, w FROM a LEFT JOIN b ON a.k = b.k UNION ALL SELECT v, z::text FROM a LEFT JOIN c ON a.k = c.k",
    );
    outer_joins(
        "SELECT v, w, row_number() OVER (PARTITION BY a.k ORDER BY a.id, b.id) AS n FROM a LEFT JOIN b ON a.k = b.k",
    );
    outer_joins(
        "SELECT a.id, w FROM a LEFT JOIN b ON a.k = b.k WHERE EXISTS (SELECT FROM c WHERE c.k = b.id) OR b.id IS NULL",
    );
    outer_joins(
        "SELECT a.id FROM a WHERE NOT EXISTS (SELECT FROM b LEFT JOIN c ON b.id = c.k WHERE b.k = a.k AND c.z IS NULL)",
    );
    outer_joins(
        "SELECT a.id, (SELECT count(*) FROM b LEFT JOIN c ON c.k = b.id WHERE b.k = a.k) AS n FROM a",
    );
}

#[test]
fn computed_columns_are_null_without_a_match() {
    outer_joins(
        "SELECT v, one, kk FROM a LEFT JOIN (SELECT k, 1 AS one, coalesce(k, 0) AS kk FROM b) s ON a.k = s.k",
    );
    outer_joins(
        "SELECT v, e FROM a LEFT JOIN (SELECT k, EXISTS (SELECT FROM c WHERE c.k = b.k) AS e FROM b) s ON a.k = s.k",
    );
    outer_joins("SELECT v, one FROM a FULL JOIN (SELECT k, 1 AS one FROM b) s ON a.k = s.k");
}

#[test]
fn domains_that_forbid_null() {
    maintained(Scenario {
        tables: "
            CREATE DOMAIN positive AS int NOT NULL CHECK (value > 0); CREATE DOMAIN filled AS text CHECK (value IS NOT NULL);
            CREATE TABLE a (id int PRIMARY KEY, k int, s filled); CREATE TABLE b (id int PRIMARY KEY, p positive);
            INSERT INTO a VALUES (1, 1, 'x'), (2, 2, 'y'), (3, NULL, 'z'); INSERT INTO b VALUES (1, 1), (3, 3)",
        query: "SELECT a.id, s, p FROM a FULL JOIN b ON a.k = b.id",
        changes: &[
            "INSERT INTO b VALUES (2, 9); DELETE FROM a WHERE id = 1",
            "DELETE FROM b WHERE id = 2; UPDATE b SET p = 7 WHERE id = 1; INSERT INTO a VALUES (4, 3, 'w')",
            "UPDATE a SET k = 1; DELETE FROM b",
        ],
    });
}

#[test]
fn types_without_equality_and_partitions() {
    maintained(Scenario {
        tables: "
            CREATE TABLE a (id int, j json) PARTITION BY HASH (id);
            CREATE TABLE a0 PARTITION OF a FOR VALUES WITH (MODULUS 2, REMAINDER 0);
            CREATE TABLE a1 PARTITION OF a FOR VALUES WITH (MODULUS 2, REMAINDER 1);
            CREATE TABLE b (id int, x json, p point);
            INSERT INTO a SELECT i % 4, '{\"a\": 1}' FROM generate_series(1, 6) i; INSERT INTO b VALUES (1, '[7]', '(1,2)'), (1, '[7]', '(1,2)')",
        query: "SELECT a.id, j, x, p FROM a LEFT JOIN b ON a.id = b.id",
        changes: &[
            "INSERT INTO b VALUES (2, '[]', NULL); DELETE FROM a WHERE id = 3",
            "UPDATE a SET j = '{}' WHERE id = 1; DELETE FROM b WHERE id = 1",
            "UPDATE a SET id = id + 1; INSERT INTO b VALUES (4, NULL, NULL), (3, '[1]', '(0,0)')",
        ],
    });
}

/// The text of the statements is linear in the number of joins.
#[test]
fn a_chain_of_sixteen() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t0 (id int PRIMARY KEY, x int); INSERT INTO t0 SELECT i, i FROM generate_series(1, 20) i");
    let mut query = "SELECT t0.id, t16.x FROM t0".to_owned();
    for i in 1..=16 {
        session.run(&format!(
            "CREATE TABLE t{i} (id int PRIMARY KEY, p int, x int);
             INSERT INTO t{i} SELECT i, i, i FROM generate_series(1, 18) i"
        ));
        query += &format!(" LEFT JOIN t{i} ON t{i}.p = t{}.id", i - 1);
    }
    session.create("st", &query);
    let length = session.value("SELECT sum(length(value)) FROM pgstream.explain_st('st')");
    let length: u64 = length.parse().expect("a number");
    assert!(length < 300_000, "{length}");
    for i in 0..=16 {
        session.run(&format!(
            "DELETE FROM t{i} WHERE id = {0}; UPDATE t{i} SET x = -x WHERE id = 18",
            i + 1
        ));
    }
    session.refresh("st");
    let wrong = session.value(&format!(
        "SELECT count(*) FROM ((SELECT id, x FROM st EXCEPT ALL {query}) UNION ALL ({query} EXCEPT ALL SELECT id, x FROM st)) x"
    ));
    assert_eq!(wrong, "0");
}

/// One changed row costs look-ups, not a scan of the other side.
#[test]
fn a_change_is_looked_up_by_index() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE a (id int PRIMARY KEY, k int); CREATE TABLE b (id int PRIMARY KEY, k int); CREATE INDEX ON b (k); CREATE INDEX ON a (k);
         INSERT INTO a SELECT i, i FROM generate_series(1, 20000) i; INSERT INTO b SELECT i, i FROM generate_series(1, 20000) i; ANALYZE",
    );
    session.create("l", "SELECT a.id, b.id AS b_id FROM a LEFT JOIN b ON a.k = b.k");
    session.create("f", "SELECT a.id, b.id AS b_id FROM a FULL JOIN b ON a.k = b.k");
    session.create("e", "SELECT a.id FROM a WHERE NOT EXISTS (SELECT FROM b WHERE a.k = b.k)");
    let scans = "SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE relname IN ('a', 'b')";
    session.run("SELECT pg_stat_force_next_flush()");
    let before = session.value(scans);
    for change in ["UPDATE b SET k = 5 WHERE id = 7", "UPDATE a SET k = 9 WHERE id = 11"] {
        session.run(change);
        for name in ["l", "f", "e"] {
            session.refresh(name);
        }
    }
    session.run("SELECT pg_stat_force_next_flush()");
    assert_eq!(session.value(scans), before);
}

#[test]
fn sub_queries_in_on() {
    outer_joins(
        "SELECT a.id, b.id AS b_id FROM a LEFT JOIN b ON b.id = (SELECT max(b2.id) FROM b AS b2 WHERE b2.k = a.k)",
    );
    outer_joins(
        "SELECT v, w FROM a LEFT JOIN b ON a.k = b.k AND EXISTS (SELECT FROM c WHERE c.k = b.k)",
    );
    outer_joins("SELECT v, w FROM a LEFT JOIN b ON a.k = b.k AND a.id NOT IN (SELECT k FROM c)");
    outer_joins(
        "SELECT v, w FROM a RIGHT JOIN b ON a.k = b.k AND (b.id > (SELECT min(x) FROM d WHERE d.id = b.k) OR a.k IN (SELECT k FROM c))",
    );
    outer_joins(
        "SELECT v, w FROM a LEFT JOIN b ON a.k = b.k AND (SELECT count(*) FROM d WHERE x = 1) > 1",
    );
}

#[test]
fn sub_queries_in_on_of_full_joins_and_nested_ones() {
    outer_joins(
        "SELECT v, w FROM a FULL JOIN b ON a.k = b.k AND EXISTS (SELECT FROM c WHERE c.k = a.k) AND b.id IN (SELECT id FROM d)",
    );
    outer_joins(
        "SELECT a.v, b.w, d.x FROM a LEFT JOIN (b JOIN d ON d.id = b.k AND d.x IN (SELECT k FROM c)) ON b.k = a.k AND b.id > (SELECT count(*) FROM c WHERE c.k = a.id)",
    );
    outer_joins(
        "SELECT a.v, b.w, c.z FROM a LEFT JOIN b ON a.k = b.k LEFT JOIN c ON c.k = coalesce(b.k, (SELECT max(x) FROM d WHERE d.id = a.id)) WHERE a.id IN (SELECT id FROM d) OR z IS NULL",
    );
    outer_joins(
        "SELECT id, (SELECT count(*) FROM b LEFT JOIN c ON c.k = b.k AND c.z > (SELECT min(x) FROM d WHERE d.id = c.k) WHERE b.k = a.k) AS n FROM a",
    );
}

#[test]
fn a_sub_query_in_on_about_both_sides() {
    outer_joins(
        "SELECT v, w FROM a LEFT JOIN b ON a.k = b.k AND EXISTS (SELECT FROM d WHERE d.id = a.k AND d.x = b.id)",
    );
    outer_joins(
        "SELECT a.id, b.id AS b_id, z FROM a LEFT JOIN b ON a.k IN (SELECT x FROM d WHERE d.id = b.k) LEFT JOIN c ON c.k = b.k AND b.id < 5",
    );
    outer_joins(
        "SELECT b.id, w, q.v FROM (SELECT a.id, v FROM a JOIN c ON a.k = c.k AND a.id IN (SELECT id FROM d)) AS q RIGHT JOIN b ON b.k = q.id AND (SELECT count(*) FROM d WHERE d.id = q.id AND d.x <= b.k) > 0 OR b.id = 3",
    );
    // Without a key there is nothing to tell the rows of c apart.
    check(Scenario {
        tables: TABLES,
        query: "SELECT z, w FROM c LEFT JOIN b ON c.k = b.k AND EXISTS (SELECT FROM d WHERE d.id = c.k AND d.x = b.id)",
        changes: CHANGES,
    });
}

/// As PostgreSQL does it: an outer join whose rows of NULLs a condition drops costs what a simpler one does.
#[test]
fn conditions_that_drop_rows_of_nulls() {
    // The numbers of outer joins and of marks that remain.
    let reduced: &[(&str, (usize, usize))] = &[
        ("SELECT v, w FROM a LEFT JOIN b ON a.k = b.k WHERE b.id > 2", (0, 0)),
        ("SELECT v, w FROM b RIGHT JOIN a ON a.k = b.k WHERE b.id > 2 OR b.w = 'b1'", (0, 0)),
        ("SELECT v, w FROM a FULL JOIN b ON a.k = b.k WHERE b.id > 2", (1, 0)),
        ("SELECT v, w FROM a FULL JOIN b ON a.k = b.k WHERE a.v IS NOT NULL", (1, 0)),
        ("SELECT v, w FROM a FULL JOIN b ON a.k = b.k WHERE a.id < b.id", (0, 0)),
        ("SELECT v, w FROM a FULL JOIN b ON a.k = b.k WHERE coalesce(a.id, b.id) > 2", (1, 1)),
        ("SELECT v, w FROM a FULL JOIN b ON a.k = b.k WHERE a.id > 1 OR b.id > 1", (1, 1)),
        (
            "SELECT v, w, z FROM a LEFT JOIN b ON a.k = b.k LEFT JOIN c ON b.k = c.k WHERE z > 1",
            (0, 0),
        ),
        ("SELECT v, w, z FROM a LEFT JOIN (b LEFT JOIN c ON b.k = c.k) ON a.k = c.k", (1, 0)),
        ("SELECT v, w, z FROM a LEFT JOIN (b FULL JOIN c ON b.k = c.k) ON a.k = c.k", (2, 0)),
        ("SELECT v, w, z FROM (a FULL JOIN b ON a.k = b.k) JOIN c ON a.k = c.k", (1, 0)),
        (
            "SELECT v, w, z FROM (a FULL JOIN b ON a.k = b.k) FULL JOIN c ON b.k = c.k WHERE z > 0",
            (2, 0),
        ),
        (
            "SELECT v, w, z FROM (a FULL JOIN b ON a.k = b.k) FULL JOIN c ON b.k = c.k WHERE w > ''",
            (2, 0),
        ),
        (
            "SELECT v, w FROM a LEFT JOIN b ON a.k = b.k AND (b.w = 'b2') IS NOT TRUE WHERE (b.id > 2) IS TRUE",
            (0, 0),
        ),
        ("SELECT v, w FROM a LEFT JOIN b ON a.k = b.k WHERE NOT (b.id > 2 AND a.id > 2)", (1, 0)),
        (
            "SELECT v, w FROM a LEFT JOIN b ON a.k = b.k WHERE b.id IN (1, 3) AND b.w LIKE 'b%'",
            (0, 0),
        ),
        ("SELECT v, w FROM a LEFT JOIN b ON a.k = b.k WHERE b.id = (SELECT max(x) FROM d)", (0, 0)),
        (
            "SELECT v, w, n FROM a LEFT JOIN b ON a.k = b.k, LATERAL generate_series(b.id, 3) n WHERE b.id > 1",
            (0, 0),
        ),
        (
            "SELECT v, w, m FROM a LEFT JOIN LATERAL (SELECT w, max(b.id) AS m FROM b WHERE b.k = a.k GROUP BY w) b ON true WHERE m > 1",
            (0, 0),
        ),
    ];
    for (query, expected) in reduced {
        outer_joins(query);
        let database = Database::new();
        let mut session = database.session();
        session.run(TABLES);
        session.run(&format!("SELECT pgstream.create_stream_table('st', $$ {query} $$)"));
        let tree: String = session
            .value("SELECT value FROM pgstream.explain_st('st') WHERE property = 'operator_tree'");
        let count = |operator| tree.matches(operator).count();
        assert_eq!((count("LeftJoin ("), count("Mark (")), *expected, "{query}\n{tree}");
    }
}
