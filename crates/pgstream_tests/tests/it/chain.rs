//! Stream tables on stream tables.

use pgstream_tests::{Comparison, Database, Session, Watched, difference};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, g int, v int); INSERT INTO t SELECT i, i % 5, i FROM generate_series(1, 30) i";

const CHANGES: &[&str] = &[
    "INSERT INTO t VALUES (100, 1, 1000)",
    "UPDATE t SET g = 7 WHERE id < 4",
    "DELETE FROM t WHERE g = 2",
    "UPDATE t SET v = v + 1, g = (g + 1) % 5",
    "UPDATE t SET v = v",
    "DELETE FROM t",
    "INSERT INTO t VALUES (1, 1, 1), (2, 1, 2)",
];

/// Refreshes in the given order after each change. Each is compared with its query over the
/// stream tables below it.
fn follow(session: &mut Session, chain: &[Watched]) {
    for change in CHANGES {
        session.run(change);
        for one in chain {
            one.refresh_and_compare(session, change);
        }
    }
}

#[test]
fn a_chain_hands_its_changes_on() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let chain = [
        ("a", "SELECT id, g, v * 2 AS w FROM t WHERE v > 1"),
        ("b", "SELECT g, count(*) AS n, sum(w) AS s FROM a GROUP BY g"),
        ("c", "SELECT n, count(*) AS groups, max(s) AS m FROM b GROUP BY n"),
        ("d", "SELECT c.n, c.m, b.g FROM c JOIN b USING (n)"),
        ("e", "SELECT DISTINCT m FROM d"),
    ]
    .map(|(name, query)| Watched::create(&mut session, name, query, Comparison::Text));
    follow(&mut session, &chain);
}

#[test]
fn a_diamond_with_its_source() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let chain = [
        ("lows", "SELECT g, min(v) AS lo FROM t GROUP BY g"),
        ("highs", "SELECT g, max(v) AS hi FROM t GROUP BY g"),
        ("spread", "SELECT g, hi - lo AS spread FROM lows JOIN highs USING (g)"),
        ("rows", "SELECT t.id, s.spread FROM t JOIN spread s USING (g)"),
    ]
    .map(|(name, query)| Watched::create(&mut session, name, query, Comparison::Text));
    follow(&mut session, &chain);
}

/// `*`, NATURAL and a whole row mean the visible columns of a stream table.
#[test]
fn hidden_columns_do_not_come_to_light() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    // With a count of rows, and without.
    let below = [
        ("a", "SELECT g, count(*) AS n FROM t GROUP BY g"),
        ("b", "SELECT id AS g, v AS n FROM t"),
    ]
    .map(|(name, query)| Watched::create(&mut session, name, query, Comparison::Text));
    session.run("CREATE VIEW over_a AS SELECT * FROM a");
    let readers = [
        (
            "s1",
            "SELECT * FROM a UNION SELECT * FROM b",
            "SELECT g, n FROM a UNION SELECT g, n FROM b",
        ),
        ("s2", "TABLE a EXCEPT TABLE b", "SELECT g, n FROM a EXCEPT SELECT g, n FROM b"),
        ("s3", "SELECT * FROM a NATURAL JOIN b", "SELECT a.g, a.n FROM a JOIN b USING (g, n)"),
        ("s4", "SELECT DISTINCT * FROM (SELECT * FROM a) x", "SELECT DISTINCT g, n FROM a"),
        (
            "s5",
            "SELECT row_to_json(a)::text AS j FROM a",
            "SELECT row_to_json(x)::text AS j FROM (SELECT g, n FROM a) x",
        ),
        (
            "s6",
            "SELECT count(b) AS n FROM a JOIN public.b ON a.g = public.b.g",
            "SELECT count(*) AS n FROM a JOIN b USING (g)",
        ),
        (
            "s7",
            "WITH b AS (SELECT * FROM b) SELECT b.* FROM b LEFT JOIN a ON a.n = b.n",
            "SELECT b.g, b.n FROM b LEFT JOIN a ON a.n = b.n",
        ),
        (
            "s8",
            "SELECT public.a.*, x.* FROM public.a LEFT JOIN LATERAL (SELECT b.* FROM b WHERE b.g = a.g) x(k, m) ON true",
            "SELECT a.g, a.n, b.g AS k, b.n AS m FROM a LEFT JOIN b ON b.g = a.g",
        ),
        ("s9", "SELECT * FROM over_a", "SELECT g, n FROM a"),
        (
            "s10",
            "SELECT * FROM a AS x(p, q) WHERE EXISTS (SELECT * FROM b WHERE b.g = x.q)",
            "SELECT g AS p, n AS q FROM a WHERE EXISTS (SELECT FROM b WHERE b.g = a.n)",
        ),
    ];
    for (name, query, _) in readers {
        session.create(name, query);
    }
    for change in CHANGES {
        session.run(change);
        for one in &below {
            one.refresh_and_compare(&mut session, change);
        }
        for (name, _, plain) in readers {
            session.refresh(name);
            let difference = difference(&mut session, name, plain, Comparison::Text);
            let difference = difference.expect("the query is right");
            assert!(
                difference.is_none(),
                "{name} after {change}\n{}",
                difference.expect("checked")
            );
        }
    }
}

#[test]
fn a_reader_that_lags_behind_catches_up() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let lower = Watched::create(
        &mut session,
        "a",
        "SELECT g, sum(v) AS s FROM t GROUP BY g",
        Comparison::Text,
    );
    let upper = Watched::create(
        &mut session,
        "b",
        "SELECT s % 3 AS r, count(*) AS n FROM a GROUP BY s % 3",
        Comparison::Text,
    );
    for change in CHANGES {
        session.run(change);
        lower.refresh_and_compare(&mut session, change);
    }
    upper.refresh_and_compare(&mut session, "all changes");
}

#[test]
fn a_full_refresh_below_hands_its_difference_on() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.run("SELECT pgstream.create_stream_table('a', 'SELECT g, sum(v) AS s FROM t GROUP BY g', '1d', 'FULL')");
    let upper = Watched::create(
        &mut session,
        "b",
        "SELECT s % 3 AS r, count(*) AS n FROM a GROUP BY s % 3",
        Comparison::Text,
    );
    for change in CHANGES.iter().chain(&["TRUNCATE t"]) {
        session.run(change);
        session.refresh("a");
        session.refresh("b");
        upper.compare(&mut session, change);
    }
}

#[test]
fn a_chain_in_one_transaction_and_rolled_back() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let chain = [
        ("a", "SELECT g, sum(v) AS s FROM t GROUP BY g"),
        ("b", "SELECT s % 3 AS r, count(*) AS n FROM a GROUP BY s % 3"),
    ]
    .map(|(name, query)| Watched::create(&mut session, name, query, Comparison::Text));
    session.run("BEGIN; UPDATE t SET v = v + 1");
    for one in &chain {
        one.refresh_and_compare(&mut session, "in a transaction");
    }
    session.run("SAVEPOINT s; DELETE FROM t WHERE g = 1");
    chain[0].refresh_and_compare(&mut session, "in a savepoint");
    session.run("ROLLBACK TO s; DELETE FROM t WHERE g = 2");
    for one in &chain {
        one.refresh_and_compare(&mut session, "after the savepoint");
    }
    session.run("ROLLBACK");
    session.run("DELETE FROM t WHERE g = 3");
    for one in &chain {
        one.refresh_and_compare(&mut session, "after the rollback");
    }
}

#[test]
fn a_stream_table_with_duplicates_is_a_source() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE k (a int, b text); INSERT INTO k VALUES (1, 'x'), (1, 'x'), (2, NULL), (2, NULL)");
    let chain = [
        ("a", "SELECT a, b FROM k"),
        ("b", "SELECT x.a, y.b FROM a x JOIN a y ON x.a = y.a"),
        ("c", "SELECT a, count(*) AS n FROM b GROUP BY a"),
    ]
    .map(|(name, query)| Watched::create(&mut session, name, query, Comparison::Text));
    for change in [
        "INSERT INTO k VALUES (1, 'x'), (2, 'y')",
        "DELETE FROM k WHERE ctid = (SELECT min(ctid) FROM k WHERE a = 1)",
        "UPDATE k SET a = 1",
        "DELETE FROM k WHERE b IS NULL",
    ] {
        session.run(change);
        for one in &chain {
            one.refresh_and_compare(&mut session, change);
        }
    }
}

#[test]
fn the_source_of_a_stream_table_cannot_be_dropped_alone() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.create("a", "SELECT g, sum(v) AS s FROM t GROUP BY g");
    session.create("b", "SELECT count(*) AS n FROM a");
    assert_eq!(session.error("DROP TABLE t").code, "2BP01");
    assert_eq!(session.error("ALTER TABLE t DROP COLUMN v").code, "2BP01");
    assert_eq!(session.error("SELECT pgstream.drop_stream_table('a')").code, "2BP01");
    assert_eq!(
        session.value(
            "SELECT source_type FROM pgstream.pgs_dependencies WHERE source_relid = 'a'::regclass"
        ),
        "STREAM_TABLE"
    );
    session.run("SELECT pgstream.drop_stream_table('b'); SELECT pgstream.drop_stream_table('a'); DROP TABLE t");
}
