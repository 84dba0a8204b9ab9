//! Window functions.

use pgstream_tests::{Database, Scenario, check};

const TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, g int, h text, v numeric(10,2), d date, f float8);
    CREATE TABLE u (k numeric, v int);
    CREATE TABLE d (g int PRIMARY KEY, name text);
    CREATE INDEX ON t (g);
    INSERT INTO t SELECT i, i % 5, 'h' || i % 3, i % 7 * 1.5, date '2024-01-01' + i % 11, i FROM generate_series(1, 40) i;
    INSERT INTO t VALUES (100, NULL, 'h1', NULL, NULL, NULL), (101, NULL, NULL, 3.5, '2024-03-03', 1), (102, 1, NULL, 1.5, '2024-01-04', 'NaN');
    INSERT INTO u VALUES (1.0, 1), (1.00, 2), (1, 2), (2.50, 3), (NULL, 4), (NULL, 4), ('NaN', 5);
    INSERT INTO d SELECT i, 'd' || i FROM generate_series(0, 6) i;";

const CHANGES: &[&str] = &[
    "UPDATE t SET v = v + 7 WHERE id % 7 = 0", // the order within a partition
    "UPDATE t SET g = g + 1 WHERE id % 9 = 0; DELETE FROM t WHERE id = 12", // another partition
    "INSERT INTO t VALUES (200, NULL, 'h2', 9, '2024-01-09', 2), (201, 7, NULL, NULL, NULL, NULL); UPDATE d SET name = 'x' WHERE g = 3",
    "UPDATE t SET g = NULL WHERE id = 3; UPDATE t SET g = 2 WHERE id = 100", // to and from NULL
    "INSERT INTO u VALUES (1.000, 7), (NULL, 8), (2.5, 3); DELETE FROM u WHERE v = 2 AND k::text = '1.00'",
    "UPDATE u SET k = 2.500 WHERE v = 1; UPDATE u SET v = v + 1 WHERE k IS NULL; UPDATE t SET h = 'h0', d = d + 1 WHERE id < 9",
    "DELETE FROM t WHERE g IS NULL OR g = 1; INSERT INTO t VALUES (300, 1, 'h1', 0.5, '2024-01-01', 0)",
    "TRUNCATE u; INSERT INTO u VALUES (3, 1), (3.0, 2)",
];

/// Fails unless the query is exact, and maintained by rules.
#[track_caller]
fn windows(query: &str) {
    maintained(Scenario { tables: TABLES, query, changes: CHANGES });
}

/// As [`check`], with every operator maintained by a rule of its own.
#[track_caller]
pub fn maintained(scenario: Scenario<'_>) {
    let database = Database::new();
    let mut session = database.session();
    session.run(scenario.tables);
    session.create("st", scenario.query);
    let tree = session
        .value("SELECT value FROM pgstream.explain_st('st') WHERE property = 'operator_tree'");
    assert!(!tree.contains("Opaque"), "{}\n{tree}", scenario.query);
    check(scenario);
}

#[test]
fn ranks() {
    windows(
        "SELECT id, row_number() OVER w AS rn, rank() OVER (PARTITION BY g ORDER BY v) AS r, dense_rank() OVER (PARTITION BY g ORDER BY v DESC) AS dr, percent_rank() OVER w AS pr, cume_dist() OVER w AS cd, ntile(3) OVER w AS nt FROM t WINDOW w AS (PARTITION BY g ORDER BY v, id)",
    );
}

#[test]
fn offsets_and_frame_values() {
    windows(
        "SELECT id, lag(v) OVER w AS a, lag(v, 2, -1.0) OVER w AS b, lead(h, 1, 'none') OVER w AS c, first_value(id) OVER w AS d, last_value(id) OVER w AS e, nth_value(id, 2) OVER w AS f, nth_value(id, 3) OVER (w ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS g FROM t WINDOW w AS (PARTITION BY g ORDER BY id DESC)",
    );
}

#[test]
fn aggregates_over_a_window() {
    windows(
        "SELECT id, sum(v) OVER w AS s, count(*) OVER w AS n, count(h) FILTER (WHERE h <> 'h1') OVER w AS c, avg(v) OVER w AS a, min(v) OVER w AS lo, max(d) OVER w AS hi, bool_and(v > 1) OVER w AS b, string_agg(h, ',') OVER (PARTITION BY g ORDER BY id) AS st, array_agg(id) OVER (PARTITION BY g ORDER BY id) AS ar, jsonb_object_agg(id, h) OVER (PARTITION BY g ORDER BY id) AS j, sum(f) OVER (PARTITION BY g ORDER BY id) AS fs, json_arrayagg(h) OVER (PARTITION BY g ORDER BY id) AS ja FROM t WINDOW w AS (PARTITION BY g)",
    );
}

#[test]
fn frames_of_rows() {
    windows(
        "SELECT id, sum(v) OVER (PARTITION BY g ORDER BY id ROWS 2 PRECEDING) AS a, sum(v) OVER (PARTITION BY g ORDER BY id ROWS BETWEEN 1 FOLLOWING AND 2 FOLLOWING) AS b, count(*) OVER (PARTITION BY g ORDER BY id ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING EXCLUDE CURRENT ROW) AS c, sum(v) OVER (PARTITION BY g ORDER BY id ROWS BETWEEN 1 + 1 PRECEDING AND 1 PRECEDING) AS d FROM t",
    );
}

#[test]
fn frames_of_ranges() {
    windows(
        "SELECT id, sum(v) OVER (PARTITION BY h ORDER BY d RANGE BETWEEN '2 days' PRECEDING AND '1 day' FOLLOWING) AS a, count(*) OVER (PARTITION BY h ORDER BY f DESC RANGE BETWEEN 3 PRECEDING AND CURRENT ROW) AS b, count(*) OVER (PARTITION BY h ORDER BY v NULLS FIRST RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW EXCLUDE GROUP) AS c, count(*) OVER (PARTITION BY h ORDER BY v RANGE BETWEEN CURRENT ROW AND 2.5 FOLLOWING EXCLUDE TIES) AS e FROM t",
    );
}

#[test]
fn frames_of_groups() {
    windows(
        "SELECT id, count(*) OVER (PARTITION BY g ORDER BY v GROUPS BETWEEN 1 PRECEDING AND 1 FOLLOWING) AS a, sum(v) OVER (PARTITION BY g ORDER BY v GROUPS BETWEEN 1 PRECEDING AND CURRENT ROW EXCLUDE CURRENT ROW) AS b, count(*) OVER (PARTITION BY g ORDER BY v GROUPS UNBOUNDED PRECEDING EXCLUDE NO OTHERS) AS c FROM t",
    );
}

#[test]
fn named_windows_that_build_on_each_other() {
    windows(
        "SELECT id, rank() OVER o AS r, sum(v) OVER p AS s, count(*) OVER (o ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS n FROM t WINDOW p AS (PARTITION BY g), o AS (p ORDER BY h NULLS FIRST, id USING >)",
    );
}

#[test]
fn several_partitions_and_none() {
    windows(
        "SELECT id, rank() OVER (PARTITION BY g ORDER BY id) AS a, sum(v) OVER (PARTITION BY h) AS b, count(*) OVER (PARTITION BY g, h) AS c, max(id) OVER (PARTITION BY h, g) AS c2, count(*) OVER () AS e, rank() OVER (ORDER BY v DESC) AS f FROM t",
    );
}

#[test]
fn partitions_by_expressions() {
    windows(
        "SELECT id, count(*) OVER (PARTITION BY g % 2, upper(h)) AS a, sum(v) OVER (PARTITION BY g % 2 ORDER BY v * 2, id + 1) AS b, count(*) OVER (PARTITION BY v > 5) AS c, count(*) OVER (PARTITION BY 'all') AS e FROM t",
    );
}

#[test]
fn inside_expressions() {
    windows(
        "SELECT id, v - avg(v) OVER (PARTITION BY g) AS diff, CASE WHEN row_number() OVER (PARTITION BY g ORDER BY id) = 1 THEN 'first' ELSE h END AS c, coalesce(lag(id) OVER (PARTITION BY g ORDER BY id), 0) + lead(id, 1, 0) OVER (PARTITION BY g ORDER BY id) AS n, round(100 * v / nullif(sum(v) OVER (PARTITION BY h), 0), 1) AS pct FROM t",
    );
}

#[test]
fn above_grouping() {
    windows(
        "SELECT g, h, sum(v) AS s, rank() OVER (PARTITION BY g ORDER BY sum(v) DESC NULLS LAST) AS r, sum(sum(v)) OVER (PARTITION BY h) AS x, sum(count(*)) OVER (ORDER BY g, h ROWS UNBOUNDED PRECEDING) AS running FROM t GROUP BY g, h HAVING count(*) > 1",
    );
}

#[test]
fn above_grouping_by_an_expression() {
    windows(
        "SELECT d.name, date_trunc('month', t.d::timestamp) AS m, count(*) AS n, lag(count(*)) OVER (PARTITION BY d.name ORDER BY date_trunc('month', t.d::timestamp)) AS before FROM t JOIN d USING (g) GROUP BY d.name, 2",
    );
}

#[test]
fn without_a_key_and_with_equal_keys_that_look_different() {
    windows(
        "SELECT k, v, count(*) OVER (PARTITION BY k) AS n, rank() OVER (PARTITION BY k ORDER BY v) AS r, sum(k) OVER (PARTITION BY v) AS s FROM u",
    );
}

#[test]
fn only_the_result_is_shown() {
    windows("SELECT sum(v) OVER (PARTITION BY k ORDER BY v) AS s FROM u");
}

#[test]
fn the_first_of_each_partition() {
    windows(
        "SELECT g, id, v FROM (SELECT *, row_number() OVER (PARTITION BY g ORDER BY v DESC NULLS LAST, id) AS rn FROM t) x WHERE rn <= 2 AND id > 0",
    );
}

#[test]
fn a_cte_with_a_window_that_is_used_twice() {
    windows(
        "WITH w AS (SELECT id, g, row_number() OVER (PARTITION BY g ORDER BY v) AS rn FROM t) SELECT a.g, count(*) AS n, sum(a.rn + b.rn) AS s, bool_or(a.id = b.id) AS same FROM w a JOIN w b ON a.g = b.g WHERE a.rn <= 2 AND b.rn > 2 GROUP BY a.g",
    );
}

#[test]
fn below_an_aggregate() {
    windows(
        "SELECT r, count(*) AS n, sum(v) AS s FROM (SELECT v, rank() OVER (PARTITION BY g ORDER BY v) AS r FROM t) x GROUP BY r",
    );
}

#[test]
fn below_a_join() {
    windows(
        "SELECT d.name, x.id, x.r FROM d JOIN (SELECT id, g, dense_rank() OVER (PARTITION BY g ORDER BY v) AS r FROM t) x ON x.g = d.g WHERE x.r < 3",
    );
}

#[test]
fn above_a_join_and_below_another_window() {
    windows(
        "SELECT name, r, count(*) OVER (PARTITION BY r) AS n FROM (SELECT d.name, rank() OVER (PARTITION BY d.name ORDER BY t.v) AS r FROM d JOIN t ON t.g = d.g) x",
    );
}

#[test]
fn distinct_above_a_window() {
    windows("SELECT DISTINCT g, count(*) OVER (PARTITION BY g) AS n FROM t ORDER BY n");
}

#[test]
fn in_a_branch_of_union_all_and_in_order_by() {
    windows(
        "SELECT id, rank() OVER (PARTITION BY g ORDER BY id) AS r FROM t UNION ALL (SELECT v, max(v) OVER (PARTITION BY k) FROM u ORDER BY count(*) OVER ()) UNION ALL SELECT g, 0 FROM d",
    );
}

#[test]
fn a_view_with_windows() {
    maintained(Scenario {
        tables: &format!(
            "{TABLES}; CREATE VIEW ranked AS SELECT t.*, rank() OVER (PARTITION BY h ORDER BY v) AS r FROM t"
        ),
        query: "SELECT d.name, ranked.id, ranked.r FROM ranked JOIN d USING (g) WHERE r < 4",
        changes: CHANGES,
    });
}

#[test]
fn a_window_function_of_the_user() {
    maintained(Scenario {
        tables: &format!(
            "{TABLES}; CREATE AGGREGATE product(numeric) (sfunc = numeric_mul, stype = numeric); CREATE TABLE c (id int PRIMARY KEY, s char(3)); INSERT INTO c VALUES (1, 'a'), (2, 'A'), (3, 'b'), (4, NULL)"
        ),
        query: "SELECT id, product(id) OVER (PARTITION BY s ORDER BY id) AS p, count(*) OVER (PARTITION BY s) AS n FROM c",
        changes: &[
            "INSERT INTO c VALUES (5, 'B'), (6, 'A'); DELETE FROM c WHERE id = 1",
            "UPDATE c SET s = upper(s)",
        ],
    });
}

#[test]
fn the_cost_is_told() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.create("all_rows", "SELECT id, rank() OVER (ORDER BY v) AS r FROM t");
    session.create("parts", "SELECT id, rank() OVER (PARTITION BY g ORDER BY v) AS r FROM t");
    let mut cost = |name: &str| {
        session.value(&format!(
            "SELECT value FROM pgstream.explain_st('{name}') WHERE property = 'stage_0_cost'"
        ))
    };
    assert!(cost("all_rows").contains("grows with the table"));
    assert!(cost("parts").contains("size of the affected partitions"));
}
