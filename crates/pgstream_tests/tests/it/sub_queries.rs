//! Sub-queries in expressions: EXISTS, IN, ANY, ALL, scalar ones, ARRAY, rows; correlated or not.

use pgstream_tests::{Comparison, Database, Scenario, Watched, check};

use crate::windows::maintained;

const TABLES: &str = "
    CREATE TABLE a (id int PRIMARY KEY, x int, y text, n numeric);
    CREATE TABLE b (id int PRIMARY KEY, aid int, v numeric(10,2));
    CREATE TABLE c (k int, z int);
    INSERT INTO a SELECT i, nullif(i % 5, 4), 't' || i, i FROM generate_series(1, 20) i;
    INSERT INTO b SELECT i, nullif(i % 25, 7), i % 6 FROM generate_series(1, 40) i;
    INSERT INTO c SELECT nullif(i % 7, 0), i % 3 FROM generate_series(1, 20) i";

const CHANGES: &[&str] = &[
    "INSERT INTO b VALUES (100, 3, 9), (101, 24, 1); UPDATE a SET x = 9 WHERE id = 3; DELETE FROM b WHERE id IN (1, 2); DELETE FROM a WHERE id = 19; INSERT INTO c VALUES (NULL, 1), (3, 3), (24, 24)",
    "UPDATE b SET aid = NULL WHERE id = 5; UPDATE b SET aid = 4 WHERE aid IS NULL; UPDATE c SET k = k + 1; UPDATE a SET x = NULL WHERE id IN (1, 2)",
    "DELETE FROM c WHERE z = 1; UPDATE a SET x = 2, n = n + 1 WHERE id < 8; INSERT INTO a VALUES (3000, 24, 'u', 1), (3001, NULL, NULL, NULL); DELETE FROM b WHERE aid = 4; UPDATE b SET v = v * 2 WHERE id % 3 = 0",
    "DELETE FROM c", // nothing to compare with
    "UPDATE a SET id = id + 100 WHERE id % 4 = 0; UPDATE b SET aid = aid + 100 WHERE aid % 8 = 0",
    "INSERT INTO c SELECT nullif(i % 7, 0), i % 3 FROM generate_series(1, 9) i; DELETE FROM a WHERE x = 2",
    "DELETE FROM b; UPDATE a SET x = coalesce(x, 0) + 1",
    "INSERT INTO b SELECT i, nullif(i % 25, 7), i % 6 FROM generate_series(1, 40) i; DELETE FROM a; INSERT INTO a SELECT i, nullif(i % 5, 4), 't' || i, i FROM generate_series(1, 20) i",
];

/// Fails unless each of the queries is exact, and maintained by rules.
#[track_caller]
fn sub_queries(queries: &[&str]) {
    for query in queries {
        maintained(Scenario { tables: TABLES, query, changes: CHANGES });
    }
}

#[test]
fn exists() {
    sub_queries(&[
        "SELECT id FROM a WHERE EXISTS (SELECT FROM b WHERE b.aid = a.id)",
        "SELECT id FROM a WHERE NOT EXISTS (SELECT 1 FROM b WHERE b.aid = a.id AND b.v > a.x)",
        "SELECT id, EXISTS (SELECT FROM b WHERE v > 8) AS e FROM a",
        "SELECT id, CASE WHEN EXISTS (SELECT FROM c WHERE k = a.x) THEN 'yes' ELSE y END AS e FROM a",
        "SELECT id FROM a WHERE EXISTS (SELECT FROM b WHERE b.aid = a.id) OR NOT EXISTS (SELECT FROM c WHERE c.k = a.x)",
    ]);
}

#[test]
fn exists_over_aggregates_and_groups() {
    sub_queries(&[
        "SELECT id FROM a WHERE EXISTS (SELECT count(*) FROM b WHERE b.aid = a.id)",
        "SELECT id, EXISTS (SELECT v FROM b WHERE b.aid = a.id GROUP BY v HAVING count(*) > 1) AS e FROM a",
        "SELECT id FROM a WHERE EXISTS (SELECT DISTINCT v FROM b WHERE b.aid < a.id LIMIT 1)",
    ]);
}

#[test]
fn membership() {
    sub_queries(&[
        "SELECT id FROM a WHERE x IN (SELECT k FROM c WHERE c.z = a.id % 3)",
        "SELECT id FROM a WHERE id IN (SELECT aid FROM b WHERE v > 2)",
        "SELECT k, count(*) FROM c WHERE k IN (SELECT x FROM a) GROUP BY k",
        "SELECT id, (x, id) IN (SELECT k, z FROM c) AS m FROM a",
    ]);
}

#[test]
fn not_in_and_its_nulls() {
    sub_queries(&[
        "SELECT id, x FROM a WHERE x NOT IN (SELECT aid FROM b)",
        "SELECT id, x FROM a WHERE x NOT IN (SELECT k FROM c WHERE k IS NOT NULL)",
        "SELECT id, x FROM a WHERE x NOT IN (SELECT k FROM c WHERE c.z = a.id % 3)",
        "SELECT id FROM a WHERE (x, id) NOT IN (SELECT k, z FROM c)",
        "SELECT id, x NOT IN (SELECT max(aid) FROM b WHERE b.id = a.id) AS m FROM a",
    ]);
}

#[test]
fn three_valued_membership_as_a_value() {
    sub_queries(&[
        "SELECT id, x IN (SELECT k FROM c WHERE c.z = a.id % 3) AS q, x NOT IN (SELECT k FROM c) AS w FROM a",
        "SELECT id, x IN (SELECT aid FROM b WHERE b.id > a.id) OR y IS NULL AS q FROM a",
        "SELECT id FROM a WHERE (x IN (SELECT k FROM c)) IS NULL",
        "SELECT id, x IN (SELECT max(aid) FROM b WHERE b.id = a.id) AS q FROM a",
    ]);
}

#[test]
fn any_and_all() {
    sub_queries(&[
        "SELECT id FROM a WHERE x > ALL (SELECT aid FROM b WHERE b.id = a.id)",
        "SELECT id, x > ALL (SELECT k FROM c WHERE c.z = a.id % 3) AS l, x <= ANY (SELECT k FROM c) AS s FROM a",
        "SELECT id FROM a WHERE x <> ALL (SELECT k FROM c) AND NOT id < ANY (SELECT aid FROM b)",
        "SELECT id FROM a WHERE y LIKE ANY (SELECT 't' || k || '%' FROM c)",
    ]);
}

#[test]
fn scalars() {
    sub_queries(&[
        "SELECT id, (SELECT sum(v) FROM b) AS s FROM a WHERE x > (SELECT avg(v) FROM b WHERE aid = 3)",
        "SELECT id, (SELECT y FROM a AS a2 WHERE a2.id = b.aid) AS y FROM b",
        "SELECT id, (SELECT k FROM c WHERE k = 99) AS nothing FROM a",
    ]);
}

#[test]
fn correlated_aggregates() {
    sub_queries(&[
        "SELECT id, (SELECT max(v) FROM b WHERE b.aid = a.id) AS m FROM a",
        "SELECT id, (SELECT count(*) FROM b WHERE b.aid = a.x) AS n, (SELECT sum(v) + 1 FROM b WHERE b.aid = a.x) AS s FROM a",
        "SELECT id, (SELECT count(*) FROM b WHERE b.aid > a.x) AS n FROM a",
        "SELECT id, (SELECT string_agg(v::text, ',' ORDER BY b.id) FROM b WHERE b.aid = a.id) AS l FROM a",
        "SELECT id, (SELECT count(*) FROM b, c WHERE b.aid = a.x AND c.k = b.aid AND c.z < a.id) AS n FROM a",
        "SELECT id FROM a WHERE (SELECT min(v) FROM b WHERE b.aid = a.id) IS NULL AND x <> ALL (SELECT k FROM c)",
    ]);
}

#[test]
fn correlated_aggregates_with_having() {
    sub_queries(&[
        "SELECT id FROM a WHERE EXISTS (SELECT FROM b WHERE b.aid = a.id HAVING count(*) > 1)",
        "SELECT id, NOT EXISTS (SELECT 1 FROM b WHERE b.aid = a.x HAVING max(v) > 3) AS e FROM a",
        "SELECT id, (SELECT sum(v) FROM b WHERE b.aid = a.x HAVING count(*) < 3) AS s FROM a",
        "SELECT id, (SELECT count(*) FROM b WHERE b.aid > a.x HAVING min(b.v) IS NULL OR count(*) > a.x) AS s FROM a",
        "SELECT id, x IN (SELECT count(*) FROM b WHERE b.aid = a.id HAVING count(*) <> 2) AS i, x <> ALL (SELECT max(k) FROM c WHERE c.z = a.x HAVING count(k) > 0) AS n FROM a",
        "SELECT id, (x, id) = (SELECT count(*), max(aid) FROM b WHERE b.aid = a.id) AS q FROM a",
        "SELECT id, (SELECT count(*) * a.id + coalesce(a.x, 0) FROM b WHERE b.aid = a.x) AS s, (SELECT a.n FROM b WHERE b.aid = a.x HAVING count(*) < 2) AS n FROM a",
    ]);
}

#[test]
fn the_first_row_of_each() {
    sub_queries(&[
        "SELECT id, (SELECT v FROM b WHERE b.aid > a.id ORDER BY v, id LIMIT 1) AS f FROM a",
        "SELECT id, (SELECT v FROM b WHERE b.aid = a.x ORDER BY v DESC, id OFFSET 1 LIMIT 1) AS f FROM a",
        "SELECT id, (SELECT DISTINCT ON (aid) v FROM b WHERE b.aid = a.x ORDER BY aid, v, id) AS f FROM a",
    ]);
}

#[test]
fn among_groups() {
    sub_queries(&[
        "SELECT x, count(*) FROM a GROUP BY x HAVING count(*) > (SELECT count(*) FROM b WHERE b.aid = a.x)",
        "SELECT sum((SELECT count(*) FROM b WHERE b.aid = a.id)) FROM a",
        "SELECT (SELECT count(*) FROM b WHERE b.aid = a.x) AS n, count(*) FROM a GROUP BY 1",
        "SELECT x, (SELECT max(z) FROM c WHERE k = x) AS m, sum(n) FROM a GROUP BY x",
    ]);
}

#[test]
fn beside_each_other() {
    sub_queries(&[
        "SELECT id, (SELECT max(v) FROM b WHERE b.aid < a.id) AS m, (SELECT count(*) FROM b WHERE b.aid < a.id) AS n, (SELECT v FROM b WHERE b.aid > a.x ORDER BY v, id LIMIT 1) AS f FROM a WHERE (SELECT count(*) FROM b WHERE b.aid < a.id) > 2 AND (SELECT max(z) FROM c WHERE c.k < a.id) > 0",
        "SELECT a.id, m.v, c.z, n.v AS w, (SELECT count(*) FROM b WHERE b.id < c.z) AS q, (SELECT count(*) FROM b WHERE b.id < a.id) AS s FROM a LEFT JOIN LATERAL (SELECT max(v) AS v FROM b WHERE b.aid < a.id) m ON m.v > 1 LEFT JOIN c ON c.k = a.x LEFT JOIN LATERAL (SELECT count(*) AS v FROM b WHERE b.aid < a.id) n ON true",
        "SELECT a.id, m.v, n.v AS w, o.z FROM a, LATERAL (SELECT v FROM b WHERE b.aid < a.id ORDER BY v, id LIMIT 1) m, LATERAL (SELECT count(*) AS v FROM b WHERE b.v < m.v) n, LATERAL (SELECT z FROM c WHERE c.k > a.x ORDER BY z LIMIT 1) o",
        "SELECT a.id, a2.x, (SELECT count(*) FROM b WHERE b.aid < a.id) AS n, (SELECT count(*) FROM b WHERE b.aid < a2.x) AS m FROM a FULL JOIN a AS a2 ON a.x = a2.id",
    ]);
}

/// The rows for which they are evaluated are those of before the others.
#[test]
fn many_beside_each_other_cost_no_more_than_one_by_one() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let of = |it| format!("SELECT count(*) AS n FROM b WHERE b.aid < a.id + {it}");
    let values: Vec<_> = (1..=30).map(|it| format!("({}) AS m{it}", of(it))).collect();
    session.create("st", &format!("SELECT id, {} FROM a", values.join(", ")));
    let items: Vec<_> =
        (1..=30).map(|it| format!("LEFT JOIN LATERAL ({}) m{it} ON true", of(it))).collect();
    let shown: Vec<_> = (1..=30).map(|it| format!("m{it}.n AS m{it}")).collect();
    let query = format!("SELECT id, {} FROM a {}", shown.join(", "), items.join(" "));
    session.create("lateral", &query);
    for name in ["st", "lateral"] {
        let domains = session.value(&format!(
            "SELECT count(*) FROM pgstream.explain_st('{name}')
             WHERE property LIKE '%_strategy' AND value LIKE 'counts of equal rows%'"
        ));
        assert_eq!(domains, "1", "{name}");
    }
}

#[test]
fn nested() {
    sub_queries(&[
        "SELECT id FROM a WHERE (SELECT count(*) FROM b WHERE aid = a.id AND EXISTS (SELECT FROM a AS a3 WHERE a3.id = b.id AND a3.x = a.x)) > 0",
        "SELECT id FROM a WHERE EXISTS (SELECT FROM b WHERE b.aid = a.id AND b.v IN (SELECT z FROM c WHERE c.k = a.x OR c.k = b.id))",
        "SELECT id, (SELECT max((SELECT count(*) FROM c WHERE c.k = b.aid)) FROM b WHERE b.aid = a.x) AS m FROM a",
    ]);
}

#[test]
fn arrays_of_what_cannot_be_hashed() {
    maintained(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, m money, v varbit); INSERT INTO t VALUES (1, '1.5', '1'), (2, NULL, '01')",
        query: "SELECT id, ARRAY(SELECT m FROM t ORDER BY id) AS ms, ARRAY(SELECT v FROM t AS u WHERE u.m = t.m ORDER BY id) AS vs FROM t",
        changes: &[
            "INSERT INTO t VALUES (3, '1.5', '1')",
            "UPDATE t SET m = '2', v = NULL WHERE id < 3",
            "DELETE FROM t WHERE id = 1",
        ],
    });
}

#[test]
fn arrays() {
    sub_queries(&[
        "SELECT id, ARRAY(SELECT b.id FROM b WHERE b.aid = a.id ORDER BY b.v DESC, b.id) AS bs FROM a",
        "SELECT id, ARRAY(SELECT z FROM c ORDER BY z) AS zs FROM a WHERE x IS NOT NULL",
        "SELECT id, ARRAY(SELECT k FROM c WHERE c.z = a.x OR c.k > a.x ORDER BY k NULLS FIRST) AS ks, x FROM a",
        "SELECT id FROM a WHERE x = ANY (ARRAY(SELECT k FROM c WHERE c.z < a.id ORDER BY 1)) OR cardinality(ARRAY(SELECT v FROM b WHERE aid = a.x ORDER BY v)) > 2",
    ]);
}

#[test]
fn arrays_over_groups_sets_and_limits() {
    sub_queries(&[
        "SELECT id, ARRAY(SELECT v || '/' || count(*) FROM b WHERE b.aid = a.x GROUP BY v ORDER BY count(*) DESC, v) AS l FROM a",
        "SELECT id, ARRAY(SELECT b.v FROM b WHERE b.aid = a.id ORDER BY b.id DESC LIMIT 2) AS l FROM a",
        "SELECT id, ARRAY(SELECT DISTINCT c.z FROM c WHERE c.k = a.x ORDER BY z DESC) AS l, ARRAY(SELECT k FROM c UNION SELECT aid FROM b ORDER BY 1) AS s FROM a",
        "SELECT x, ARRAY(SELECT max(v) FROM b GROUP BY aid ORDER BY max(v), aid) AS l, count(*) AS n FROM a GROUP BY x",
        "SELECT id, ARRAY(SELECT ARRAY[k, z] FROM c WHERE c.k = a.x ORDER BY k, z) AS l FROM a",
    ]);
}

#[test]
fn arrays_of_all_kinds_of_values() {
    const TYPES: &str = "
        CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN code AS varchar(4); CREATE DOMAIN pair AS int[];
        CREATE TABLE o (id int PRIMARY KEY);
        CREATE TABLE v (o int, i int, m mood, c code, p pair, j json, n numeric, t text COLLATE \"C\");
        INSERT INTO o SELECT generate_series(1, 4);
        INSERT INTO v SELECT i % 4, i, 'ok', 'c' || i, ARRAY[i, i], '{\"a\": 1}', i / 2.0, 'T' || i FROM generate_series(1, 9) i;";
    let changes = &[
        "UPDATE v SET m = 'sad', c = 'x', j = '[1]', n = 'NaN', t = NULL WHERE i % 3 = 0",
        "DELETE FROM v WHERE o = 1; UPDATE v SET o = 1, p = '{7,8}' WHERE i = 4",
        "INSERT INTO o VALUES (0), (9); INSERT INTO v VALUES (9, 1, NULL, NULL, '{1,2}', NULL, NULL, 'b')",
    ];
    maintained(Scenario {
        tables: TYPES,
        query: "SELECT id, ARRAY(SELECT m FROM v WHERE v.o = o.id ORDER BY i) AS m, ARRAY(SELECT c FROM v WHERE v.o = o.id ORDER BY i) AS c, ARRAY(SELECT j FROM v WHERE v.o = o.id ORDER BY i) AS j, ARRAY(SELECT n FROM v ORDER BY i DESC NULLS LAST) AS n, ARRAY(SELECT t FROM v WHERE v.o = o.id ORDER BY t DESC, i) AS t FROM o",
        changes,
    });
    check(Scenario {
        tables: TYPES,
        query: "SELECT id, ARRAY(SELECT p FROM v WHERE v.o = o.id ORDER BY i) AS p FROM o",
        changes,
    });
}

#[test]
fn rows_compared_with_a_row() {
    sub_queries(&[
        "SELECT id, (x, id) = (SELECT b.aid, b.id FROM b WHERE b.id = a.id) AS q FROM a",
        "SELECT id FROM a WHERE (x, n) < (SELECT max(aid), min(v) FROM b)",
        "SELECT id, (x, y) <> (SELECT k, 't' || z FROM c ORDER BY k, z LIMIT 1) AS q FROM a",
        "SELECT id, (id, x) >= (SELECT b.aid, b.v FROM b WHERE b.aid <= a.id AND b.v > 2 ORDER BY b.aid DESC, b.id LIMIT 1) AS q FROM a",
        "SELECT id, (x, id) = ANY (SELECT k, z FROM c WHERE c.z = a.x) AS q, (x, id) <> ALL (SELECT aid, id FROM b) AS w FROM a",
        "SELECT id, (x, n) = (SELECT aid, v FROM b WHERE v > 100) AS q FROM a",
    ]);
}

#[test]
fn a_row_compared_with_several_is_postgresqls_error() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.run("CREATE TABLE one (k int, v int); INSERT INTO one VALUES (1, 1)");
    session.create("st", "SELECT id, (id, x) = (SELECT k, v FROM one WHERE k < a.id) AS v FROM a");
    session.run("INSERT INTO one VALUES (1, 2)");
    let error = session.error("SELECT pgstream.refresh_stream_table('st')");
    assert_eq!(error.code, "21000");
}

#[test]
fn without_tables() {
    sub_queries(&[
        "SELECT id, (SELECT max(e) FROM unnest(ARRAY[id, x]) e) AS m FROM a",
        "SELECT id FROM a WHERE x = ANY (SELECT generate_series(id, id + 3) % 4)",
    ]);
}

#[test]
fn beside_joins() {
    sub_queries(&[
        "SELECT a.id, b.id AS bid FROM a LEFT JOIN b ON a.id = b.aid AND b.v > 2 WHERE EXISTS (SELECT FROM c WHERE c.k = a.x) OR b.id IS NULL",
        "SELECT a.id, b.id AS bid FROM a JOIN b ON a.id = b.aid AND b.v > (SELECT avg(v) FROM b AS b2 WHERE b2.aid = a.id)",
    ]);
}

#[test]
fn several_rows_are_postgresqls_error() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.run("CREATE TABLE one (k int, v int); INSERT INTO one VALUES (1, 1)");
    session.create("st", "SELECT id, (SELECT v FROM one WHERE k = a.id) AS v FROM a");
    session.run("INSERT INTO one VALUES (1, 2)");
    let error = session.error("SELECT pgstream.refresh_stream_table('st')");
    assert_eq!(error.code, "21000");
    session.run("DELETE FROM one WHERE v = 1");
    session.refresh("st");
    assert_eq!(session.value("SELECT v FROM st WHERE id = 1"), "2");
}

/// Fails unless the stream table is exact after each change, and has the query's error where that has one,
/// which its creation has too. After the last change there must be none.
#[track_caller]
fn with_its_errors(tables: &str, queries: &[&str], changes: &[&str]) {
    for query in queries {
        let database = Database::new();
        let mut session = database.session();
        session.run(tables);
        let watched = Watched::create(&mut session, "st", query, Comparison::Text);
        let tree = session
            .value("SELECT value FROM pgstream.explain_st('st') WHERE property = 'operator_tree'");
        assert!(!tree.contains("Opaque"), "{query}\n{tree}");
        let mut has_failed = false;
        for change in changes {
            session.run(change);
            let done = session.try_run("SELECT pgstream.refresh_stream_table('st')");
            let Err(expected) = session.try_rows(query) else {
                done.unwrap_or_else(|error| panic!("{query}\nafter\n{change}\n{error}"));
                watched.compare(&mut session, change);
                continue;
            };
            has_failed = true;
            for done in [done, session.try_create("other", query)] {
                let Err(error) = done else { panic!("{query}\nafter\n{change}\nhas no error") };
                assert_eq!((&error.code, &error.message), (&expected.code, &expected.message));
                assert_eq!(error.code, "21000");
            }
        }
        assert!(has_failed, "{query} never has an error");
        Watched::create(&mut session, "other", query, Comparison::Text);
    }
}

const NEEDED: &str = "CREATE TABLE t (id int PRIMARY KEY, k int, v int); CREATE TABLE u (k int, w int);
    INSERT INTO t VALUES (1, 1, 5), (2, 2, NULL), (3, 3, NULL), (4, NULL, 7); INSERT INTO u VALUES (1, 10), (2, 20)";

/// Values come and go that have several candidates, both where a row needs one and where none does.
const NEEDS: &[&str] = &[
    "INSERT INTO u VALUES (1, 11)",
    "UPDATE t SET v = NULL WHERE id = 1",
    "DELETE FROM u WHERE w = 10",
    "INSERT INTO u VALUES (1, 12), (1, 13); UPDATE t SET v = 6 WHERE id = 1",
    "INSERT INTO u VALUES (1, 14); DELETE FROM u WHERE w = 13",
    "DELETE FROM u WHERE w IN (12, 14); UPDATE t SET v = NULL WHERE id = 1",
    "INSERT INTO u VALUES (3, 1), (3, 2)",
    "DELETE FROM t WHERE id = 3",
    "UPDATE u SET k = 3; INSERT INTO t VALUES (5, 3, 1)",
    "DELETE FROM u",
    "INSERT INTO u VALUES (1, 1), (1, 1), (2, 9)",
    "UPDATE t SET v = 0",
    "UPDATE t SET v = NULL WHERE k = 2",
];

#[test]
fn several_rows_for_a_value_that_no_row_needs() {
    with_its_errors(
        NEEDED,
        &[
            "SELECT id, COALESCE(v, (SELECT w FROM u WHERE u.k = t.k)) AS x FROM t",
            "SELECT id, CASE WHEN v >= 0 THEN v ELSE (SELECT w FROM u WHERE u.k = t.k) END AS x FROM t",
            "SELECT id, CASE WHEN v IS NULL THEN (SELECT w + t.k FROM u WHERE u.k = t.k ORDER BY w) END AS x FROM t",
            "SELECT id FROM t WHERE v IS NOT NULL OR 15 > (SELECT w FROM u WHERE u.k = t.k)",
            "SELECT id, v IS NULL AND (SELECT w FROM u WHERE u.k = t.k) IS NULL AS x FROM t",
            "SELECT id FROM t WHERE v IS NULL AND k < (SELECT w FROM u WHERE u.k = t.k)",
            "SELECT id FROM t WHERE COALESCE(v, (SELECT w FROM u WHERE u.k = t.k)) > 5",
            "SELECT id, COALESCE(v, (SELECT w FROM u WHERE u.k = t.k)) IN (5, 6, k) AS x FROM t",
            "SELECT id, COALESCE(v, (SELECT w FROM u WHERE u.k = t.k)) IN (SELECT k FROM u) AS x FROM t",
            "SELECT id, COALESCE(v, (SELECT w FROM u WHERE u.k <= t.k AND u.k + 1 > t.k)) AS x FROM t",
            "SELECT id, COALESCE(v, (SELECT DISTINCT w FROM u WHERE u.k = t.k)) AS x FROM t",
            "SELECT id, COALESCE(v, (SELECT sum(w) FROM u WHERE u.k = t.k GROUP BY w)) AS x FROM t",
            "SELECT id, COALESCE(v, (SELECT w FROM u WHERE u.k = t.k UNION ALL SELECT w FROM u WHERE w = t.k)) AS x FROM t",
            "SELECT id, v IS NOT NULL OR (k, id) = (SELECT k, w FROM u WHERE u.k = t.k) AS x FROM t",
            "SELECT id, CASE WHEN v IS NULL THEN (k, 15) > (SELECT k, w FROM u WHERE u.k < t.k + 1 AND u.k > t.k - 1) END AS x FROM t",
        ],
        NEEDS,
    );
}

#[test]
fn several_rows_beside_groups_windows_and_joins() {
    with_its_errors(
        NEEDED,
        &[
            "SELECT sum(COALESCE(v, (SELECT w FROM u WHERE u.k = t.k))) AS s, count(*) AS n FROM t",
            "SELECT id % 2 AS g, max(COALESCE(v, (SELECT w FROM u WHERE u.k = t.k))) AS m FROM t GROUP BY 1",
            "SELECT sum((SELECT w FROM u WHERE u.k = t.k)) FILTER (WHERE v IS NULL) AS s FROM t",
            "SELECT count(*) FILTER (WHERE v IS NULL AND (SELECT w FROM u WHERE u.k = t.k) > 10) AS s FROM t",
            "SELECT count(DISTINCT COALESCE(v, (SELECT w FROM u WHERE u.k = t.k))) AS s FROM t",
            "SELECT string_agg(id::text, ',' ORDER BY COALESCE(v, (SELECT w FROM u WHERE u.k = t.k)), id) AS l FROM t",
            "SELECT COALESCE(v, (SELECT w FROM u WHERE u.k = t.k)) AS x, count(*) AS n FROM t GROUP BY 1",
            "SELECT (SELECT w FROM u WHERE u.k = t.k) AS x, count(*) AS n FROM t WHERE v IS NULL GROUP BY 1",
            "SELECT k, count(*) AS n FROM t GROUP BY k HAVING count(v) = count(*) OR k < (SELECT w FROM u WHERE u.k = t.k)",
            "SELECT k, CASE WHEN max(v) IS NULL THEN (SELECT w FROM u WHERE u.k = t.k) END AS x FROM t GROUP BY k",
            "SELECT k, v, grouping(v) AS g, CASE WHEN grouping(v) = 0 THEN COALESCE(v, (SELECT w FROM u WHERE u.k = t.k)) END AS x FROM t GROUP BY ROLLUP (k, v) HAVING grouping(k) = 0",
            "SELECT id, sum(COALESCE(v, (SELECT w FROM u WHERE u.k = t.k))) OVER (ORDER BY id) AS s FROM t",
            "SELECT id, rank() OVER (ORDER BY COALESCE(v, (SELECT w FROM u WHERE u.k = t.k))) AS r FROM t",
            "SELECT id, CASE WHEN max(v) OVER (PARTITION BY k) IS NULL THEN (SELECT w FROM u WHERE u.k = t.k) END AS x FROM t",
            "SELECT id, count(*) OVER (PARTITION BY (SELECT w FROM u WHERE u.k = t.k)) AS n FROM t WHERE v IS NULL",
            "SELECT DISTINCT COALESCE(v, (SELECT w FROM u WHERE u.k = t.k)) AS x FROM t",
            "SELECT DISTINCT ON (id % 2) id, COALESCE(v, (SELECT w FROM u WHERE u.k = t.k)) AS x FROM t ORDER BY id % 2, id",
            "SELECT id FROM t WHERE EXISTS (SELECT FROM u WHERE u.w > COALESCE(t.v, (SELECT w FROM u AS u2 WHERE u2.k = t.k)) - 2)",
            "SELECT id, x FROM (SELECT id, COALESCE(v, (SELECT w FROM u WHERE u.k = t.k)) AS x FROM t) q WHERE x IS NULL OR x < 99",
            "SELECT id AS x FROM t WHERE id = 9 UNION ALL SELECT COALESCE(v, (SELECT w FROM u WHERE u.k = t.k)) FROM t",
            "SELECT t.id, x.id AS other FROM t LEFT JOIN t AS x ON x.id = t.k AND (t.v IS NOT NULL OR 15 > (SELECT w FROM u WHERE u.k = t.k))",
        ],
        NEEDS,
    );
}

#[test]
fn several_rows_of_an_uncorrelated_value_that_no_row_needs() {
    with_its_errors(
        "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE o (w int);
         INSERT INTO t VALUES (1, 5), (2, 7), (3, 5)",
        &[
            "SELECT id, COALESCE(v, (SELECT w FROM o)) AS x FROM t",
            "SELECT id, CASE WHEN v IS NULL THEN (SELECT w FROM o WHERE w > 0 ORDER BY w) ELSE 0 END AS x FROM t",
            "SELECT id FROM t WHERE v > 0 OR id > (SELECT w FROM o)",
            "SELECT sum(COALESCE(v, (SELECT w FROM o))) AS s, count(*) AS n FROM t",
            "SELECT id, sum(v) AS s FROM t GROUP BY id HAVING sum(v) IS NOT NULL OR id < (SELECT w FROM o)",
            "SELECT id, v > 0 OR (id, v) = (SELECT w, w FROM o) AS x FROM t",
            "SELECT id, COALESCE(v, (SELECT w FROM o), (SELECT w + 1 FROM o)) AS x FROM t",
        ],
        &[
            "INSERT INTO o VALUES (1)",
            "INSERT INTO o VALUES (2)",
            "INSERT INTO t VALUES (9, NULL)",
            "DELETE FROM o WHERE w = 1",
            "INSERT INTO o VALUES (3), (4); DELETE FROM t WHERE id = 9",
            "UPDATE o SET w = w + 1",
            "DELETE FROM o; UPDATE t SET v = NULL WHERE id = 1",
            "INSERT INTO o VALUES (5)",
            "INSERT INTO o VALUES (6)",
            "UPDATE t SET v = 1 WHERE id = 1",
        ],
    );
}

#[test]
fn scalars_of_all_kinds_of_values() {
    const TABLES: &str = "
        CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN code AS varchar(4);
        CREATE TABLE o (id int PRIMARY KEY, b boolean);
        CREATE TABLE v (o int, i int, m mood, c code, p pair, a int[], j json, n numeric(6,2), t text COLLATE \"C\", f char(3), b boolean, s interval(2));
        INSERT INTO o SELECT i, i > 2 FROM generate_series(1, 4) i;
        INSERT INTO v SELECT i % 9, i, 'ok', 'c' || i, ROW(i, 'p')::pair, ARRAY[i, i], '{\"a\": 1}', i / 2.0, 'T' || i, 'f', true, '1 s' FROM generate_series(1, 9) i;";
    let changes = &[
        "UPDATE v SET m = 'sad', c = 'x', p = NULL, j = '[1]', n = 7, t = NULL, f = 'g', b = NOT b, s = '2 s' WHERE i % 3 = 0",
        "DELETE FROM v WHERE o = 1; UPDATE v SET o = 1, a = '{7,8}' WHERE i = 4",
        "INSERT INTO o VALUES (0), (9); INSERT INTO v VALUES (9, 1, NULL, NULL, NULL, '{1,2}', NULL, NULL, 'b')",
    ];
    for query in [
        "SELECT id, (SELECT m FROM v WHERE v.o = o.id) AS m, (SELECT c FROM v WHERE v.o = o.id) AS c, (SELECT p FROM v WHERE v.o = o.id) AS p, (SELECT a FROM v WHERE v.o = o.id) AS a FROM o",
        "SELECT id, (SELECT j FROM v WHERE v.o = o.id) AS j, (SELECT n FROM v WHERE v.o = o.id) AS n, (SELECT f FROM v WHERE v.o = o.id) AS f, (SELECT s FROM v WHERE i = 3) AS s FROM o",
        "SELECT id, (SELECT t FROM v WHERE v.o = o.id) AS t, (SELECT t FROM v WHERE v.o = o.id) < 'b' AS l, (SELECT t FROM v WHERE i = 3) || 'x' AS x FROM o",
        "SELECT id, ((SELECT p FROM v WHERE v.o = o.id)).b AS b, (SELECT a FROM v WHERE v.o = o.id)[2] AS e, (SELECT t FROM v WHERE v.o = o.id) COLLATE \"POSIX\" < 'b' AS l FROM o",
        "SELECT id FROM o WHERE b OR (SELECT b FROM v WHERE v.o = o.id)",
    ] {
        maintained(Scenario { tables: TABLES, query, changes });
    }
}

/// What fails for other rows is not evaluated for them.
#[test]
fn sub_queries_that_are_left_out() {
    const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, g int, h text); CREATE TABLE u (g int, w int, k text);
        CREATE FUNCTION positive(int, int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$BEGIN IF $1 <= 0 THEN RAISE 'not positive'; END IF; RETURN $1 + $2; END$$;
        INSERT INTO t VALUES (1, 1, '5'), (2, 2, 'x'), (3, NULL, NULL); INSERT INTO u VALUES (1, 5, '1'), (2, 6, '2'), (NULL, 7, NULL)";
    const CHANGES: &[&str] = &[
        "INSERT INTO t VALUES (4, 0, 'y'), (5, 0, '7')",
        "INSERT INTO u VALUES (0, 3, '3'), (1, 9, '4'), (0, 0, NULL)",
        "UPDATE t SET g = 0 WHERE id = 1; UPDATE u SET k = 'z' WHERE g = 0",
        "UPDATE u SET g = 0, w = 0 WHERE g = 2",
        "UPDATE t SET g = 3 WHERE g = 0; UPDATE u SET g = 3 WHERE g = 0",
        "UPDATE t SET g = 0; DELETE FROM u WHERE w = 0",
    ];
    for query in [
        "SELECT id, CASE WHEN g <> 0 THEN (SELECT max(w / t.g) FROM u) END AS x FROM t",
        "SELECT id, CASE g WHEN 0 THEN -1 ELSE (SELECT max(w / t.g) FROM u WHERE u.g = t.g) END AS x FROM t",
        "SELECT id FROM t WHERE g = 0 OR (SELECT max(w / t.g) FROM u) > 1",
        "SELECT id, g <> 0 AND EXISTS (SELECT FROM u WHERE u.w % t.g = 1) AS x FROM t",
        "SELECT id, CASE WHEN g <> 0 THEN 5 IN (SELECT u.w / t.g FROM u) END AS x FROM t",
        "SELECT id, CASE WHEN g <> 0 THEN ARRAY(SELECT w / t.g FROM u ORDER BY w) END AS x FROM t",
        "SELECT g, CASE WHEN g <> 0 THEN (SELECT sum(w / x.g) FROM u) END AS s FROM (SELECT g FROM t GROUP BY g) x",
        "SELECT id, COALESCE(NULLIF(id, 9), (SELECT min(k::int) FROM u WHERE u.g = t.g)) AS x FROM t",
        "SELECT id, CASE WHEN h ~ '^[0-9]+$' THEN (SELECT max(w + t.h::int) FROM u) END AS x FROM t",
        "SELECT id, CASE WHEN h ~ '^[0-9]+$' THEN (SELECT max(to_date(t.h, 'YYYY') + w) FROM u) END AS x FROM t",
        "SELECT id, CASE WHEN g <> 0 THEN (SELECT max(positive(t.g, 1) + w) FROM u) END AS x FROM t",
        "SELECT id, CASE WHEN g > 9 THEN (SELECT max(w / 0) FROM u) END AS x FROM t",
    ] {
        check(Scenario { tables: TABLES, query, changes: CHANGES });
    }
}

#[test]
fn of_domains_that_forbid_null() {
    for query in [
        "SELECT id, (SELECT p FROM b WHERE b.id = a.k) AS one FROM a",
        "SELECT id, (SELECT p FROM b WHERE p = 9) AS one FROM a",
        "SELECT id, (SELECT max(p)::positive FROM b WHERE b.id = a.k HAVING count(*) > 0) AS one FROM a",
        "SELECT id, (SELECT DISTINCT '2'::positive FROM b WHERE b.id > a.k) AS one FROM a",
        "SELECT id, one FROM a LEFT JOIN LATERAL (SELECT p AS one FROM b WHERE b.id = a.k ORDER BY p LIMIT 1) q ON true",
    ] {
        maintained(Scenario {
            tables: "
                CREATE DOMAIN positive AS int NOT NULL CHECK (value > 0);
                CREATE TABLE a (id int PRIMARY KEY, k int); CREATE TABLE b (id int PRIMARY KEY, p positive);
                INSERT INTO a VALUES (1, 1), (2, 2), (3, NULL); INSERT INTO b VALUES (1, 1)",
            query,
            changes: &[
                "INSERT INTO b VALUES (2, 9); DELETE FROM a WHERE id = 1",
                "DELETE FROM b WHERE id = 2; UPDATE b SET p = 7; INSERT INTO a VALUES (4, 3)",
                "UPDATE a SET k = 1; DELETE FROM b",
            ],
        });
    }
}
