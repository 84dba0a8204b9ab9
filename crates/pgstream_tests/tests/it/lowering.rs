//! Forms of queries that PostgreSQL's analyzer presents in ways of their own.

use pgstream_tests::{Database, Scenario, check};

const TABLES: &str = r#"
    CREATE TABLE c (id int PRIMARY KEY, name varchar(20) COLLATE "C" NOT NULL, region text, note json);
    CREATE TABLE o (id bigint PRIMARY KEY, cid int NOT NULL, amount numeric(10,2), qty int);
    CREATE TABLE g (id int PRIMARY KEY, a int, v int GENERATED ALWAYS AS (a * 3 + 1) VIRTUAL);
    CREATE VIEW v AS SELECT id, name || '$1' AS name, region FROM c WHERE id > 1;
    INSERT INTO c SELECT i, 'c' || i, 'r' || i % 3, '{"a": 1.0}' FROM generate_series(1, 9) i;
    INSERT INTO o SELECT i, 1 + i % 9, i * 1.5, i % 4 FROM generate_series(1, 40) i;
    INSERT INTO g (id, a) SELECT i, i % 4 FROM generate_series(1, 9) i;"#;

const CHANGES: &[&str] = &[
    "UPDATE o SET qty = qty + 1, amount = -amount WHERE id % 3 = 0; DELETE FROM o WHERE cid = 4",
    "UPDATE c SET region = NULL, note = '[]' WHERE id % 2 = 0; INSERT INTO c VALUES (20, 'n', 'r1')",
    "UPDATE g SET a = a + 1 WHERE id > 4; INSERT INTO o VALUES (99, 20, 1.25, NULL)",
    "DELETE FROM c WHERE id IN (2, 20); UPDATE o SET cid = 1",
];

#[track_caller]
fn check_query(query: &str) {
    check(Scenario { tables: TABLES, query, changes: CHANGES });
}

#[test]
fn columns_that_depend_on_a_grouped_primary_key() {
    check_query(
        "SELECT c.*, sum(amount) AS s, count(*) AS n FROM c JOIN o ON o.cid = c.id GROUP BY c.id",
    );
}

#[test]
fn a_change_that_only_one_aggregate_sees() {
    check_query(
        "SELECT c.id, max(c.name) AS m, bit_or(o.qty) AS q FROM o JOIN c ON c.id = o.cid GROUP BY c.id",
    );
}

#[test]
fn merged_columns_of_joins() {
    check_query(
        "SELECT id, x.region, count(*) AS n FROM c x JOIN v USING (id) NATURAL JOIN g GROUP BY id, x.region",
    );
}

#[test]
fn virtual_generated_columns() {
    check_query("SELECT v, count(*) AS n, sum(v) AS s FROM g WHERE v > 3 GROUP BY v");
}

#[test]
fn set_operations_with_casts() {
    check_query(
        "SELECT id, name FROM c UNION ALL SELECT amount, 'x' FROM o UNION (SELECT 1.5, NULL FROM g UNION ALL SELECT a, region FROM v JOIN g USING (id))",
    );
}

#[test]
fn expressions_over_aggregates() {
    check_query(
        "SELECT upper(c.region) AS r, sum(o.qty) FILTER (WHERE o.amount > 0) * 2 + count(DISTINCT o.qty) AS x, string_agg(DISTINCT c.name, '$1' ORDER BY c.name DESC) AS names, percentile_disc(0.5) WITHIN GROUP (ORDER BY o.id) AS p FROM c, o WHERE c.id = o.cid GROUP BY upper(c.region) HAVING max(o.id) > 3",
    );
}

#[test]
fn with_items_views_and_values() {
    check_query(
        "WITH w AS (SELECT cid, count(*) AS n FROM o GROUP BY cid), k(id, t) AS (VALUES (1, 'a'), (2, 'b'), (5, NULL)) SELECT a.cid, a.n + b.n AS n, k.t, v.name FROM w a JOIN w b ON a.cid = b.cid JOIN k ON k.id = a.cid CROSS JOIN LATERAL (SELECT 1) z JOIN v ON v.id = k.id",
    );
}

#[test]
fn having_without_groups() {
    check_query("SELECT 'some' AS some FROM o HAVING count(*) > 35 AND sum(qty) > 10");
}

/// Each FULL JOIN has its sides twice, and so have domains what is attached to them.
#[test]
fn a_query_whose_plan_would_be_huge_is_evaluated_as_a_whole() {
    let joins: Vec<_> =
        (2..=24).map(|it| format!("FULL JOIN g g{it} ON g{it}.id = g{}.id", it - 1)).collect();
    let conditions: Vec<_> = (1..=24)
        .map(|it| format!("(SELECT count(*) FROM g WHERE g.id < c.id + {it}) >= 0"))
        .collect();
    for query in [
        format!("SELECT g1.a, g24.a AS b FROM g g1 {}", joins.join(" ")),
        format!("SELECT c.id FROM c WHERE {}", conditions.join(" AND ")),
    ] {
        let database = Database::new();
        let mut session = database.session();
        session.run(TABLES);
        session.create("st", &query);
        let tree = "SELECT value FROM pgstream.explain_st('st') WHERE property = 'operator_tree'";
        let tree = session.value(tree);
        assert!(tree.contains("a query of this complexity"), "{tree}");
    }
}

#[test]
fn an_error_in_the_text_keeps_its_code() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    for (query, code) in [
        ("SELECT nosuch FROM c", "42703"),
        ("SELEC 1", "42601"),
        ("SELECT $1 FROM c", "42P02"),
        ("SELECT id FROM nosuch", "42P01"),
    ] {
        let error = session.try_create("st", query).expect_err(query);
        assert_eq!(error.code, code, "{query}: {error}");
    }
}
