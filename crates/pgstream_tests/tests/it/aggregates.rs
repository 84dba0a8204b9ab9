//! GROUP BY and aggregates.

use pgstream_tests::{Scenario, check, check_values};

const ORDERS: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, region text, amount numeric(10,2), qty int, big bigint, f float8, b boolean, d date);
    INSERT INTO orders VALUES (1, 'US', 100, 1, 10, 0.5, true, '2020-01-01'), (2, 'EU', 200, 2, NULL, 1.5, false, '2020-01-02'),
                              (3, NULL, 1, NULL, 30, NULL, NULL, NULL), (4, 'US', NULL, 4, 40, 2.25, true, '2019-05-05')";

const CHANGES: &[&str] = &[
    "INSERT INTO orders VALUES (5, 'US', 7, 5, 50, 0.25, false, '2021-01-01'), (6, 'AS', 8, 6, 60, 8, true, '2022-02-02')",
    "UPDATE orders SET region = 'EU' WHERE id = 1", // a row changes its group
    "UPDATE orders SET amount = NULL, qty = NULL WHERE id = 2", // sum ignores NULL, count(*) does not
    "DELETE FROM orders WHERE region = 'EU'",                   // a group disappears
    "INSERT INTO orders VALUES (7, 'EU', 3, 3, 3, 3, true, NULL)", // and comes back
    "UPDATE orders SET region = NULL WHERE id = 5; UPDATE orders SET region = 'AS' WHERE region IS NULL AND id = 3",
    "UPDATE orders SET amount = amount + 1, qty = qty - 1, big = big * 2, f = f + 0.5, b = NOT b, d = d + 1",
    "UPDATE orders SET b = b", // nothing changes
    "DELETE FROM orders WHERE id IN (3, 5, 6); INSERT INTO orders VALUES (6, 'AS', 8, 6, 60, 8, true, '2022-02-02')",
    "DELETE FROM orders",
    "INSERT INTO orders VALUES (1, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    "INSERT INTO orders VALUES (2, NULL, 5, 5, 5, 5, false, '1999-09-09')",
];

fn orders(query: &str) {
    check(Scenario { tables: ORDERS, query, changes: CHANGES });
}

#[test]
fn sum_and_count() {
    orders(
        "SELECT region, sum(amount) AS total, count(*) AS n, count(amount) AS n_amount, sum(qty) AS q, sum(big) AS b FROM orders GROUP BY region",
    );
}

#[test]
fn avg() {
    orders(
        "SELECT region, avg(amount) AS a, avg(qty) AS q, avg(big) AS b, avg(f) AS f FROM orders GROUP BY region",
    );
}

#[test]
fn min_and_max() {
    orders(
        "SELECT region, min(amount) AS lo, max(amount) AS hi, min(d) AS first, max(region || id) AS t, max(f) AS f, min(qty) AS q FROM orders GROUP BY region",
    );
}

#[test]
fn sum_of_floats() {
    orders(
        "SELECT region, sum(f) AS f, sum(f::real) AS r, count(f) AS n FROM orders GROUP BY region",
    );
}

#[test]
fn without_group_by_there_is_always_one_row() {
    orders("SELECT count(*) AS n, sum(amount) AS total, min(qty) AS lo, avg(big) AS a FROM orders");
}

#[test]
fn without_group_by_a_filter_may_leave_nothing() {
    orders(
        "SELECT count(*) AS n, sum(amount) AS total, string_agg(region, ',' ORDER BY id) AS s FROM orders WHERE qty > 4",
    );
}

#[test]
fn without_group_by_having_may_hide_the_row() {
    orders("SELECT count(*) AS n, sum(qty) AS q FROM orders HAVING count(*) <> 4 AND sum(qty) > 3");
}

#[test]
fn aggregates_with_filter() {
    orders(
        "SELECT region, count(*) FILTER (WHERE b) AS yes, sum(amount) FILTER (WHERE qty > 2) AS s, max(qty) FILTER (WHERE NOT b) AS m,
                avg(qty) FILTER (WHERE d > '2020-01-01') AS a, string_agg(id::text, ',' ORDER BY id) FILTER (WHERE b) AS ids
         FROM orders GROUP BY region",
    );
}

#[test]
fn aggregates_with_distinct_inside() {
    orders(
        "SELECT b, count(DISTINCT region) AS regions, sum(DISTINCT qty) AS q, avg(DISTINCT amount) AS a, min(DISTINCT d) AS d, array_agg(DISTINCT region) AS r FROM orders GROUP BY b",
    );
}

#[test]
fn aggregates_inside_expressions() {
    orders(
        "SELECT upper(region) AS r, sum(amount) / nullif(count(*), 0) + 1 AS mean, coalesce(max(qty), -1) - coalesce(min(qty), -1) AS spread,
                CASE WHEN count(*) > 1 THEN 'many' ELSE 'one' END AS c, 'x' AS k
         FROM orders GROUP BY region",
    );
}

#[test]
fn having_lets_groups_in_and_out() {
    orders(
        "SELECT region, sum(qty) AS q FROM orders GROUP BY region HAVING count(*) > 1 OR max(amount) >= 8",
    );
}

#[test]
fn having_on_an_aggregate_that_is_not_selected() {
    orders("SELECT region FROM orders GROUP BY region HAVING bool_or(b) AND avg(qty) < 5");
}

#[test]
fn group_by_expressions_and_ordinals() {
    orders(
        "SELECT extract(year FROM d) AS y, qty % 2 AS parity, count(*) AS n FROM orders GROUP BY 1, qty % 2",
    );
}

#[test]
fn a_group_key_that_is_not_selected() {
    orders("SELECT count(*) AS n, sum(qty) AS q FROM orders GROUP BY region, b");
}

#[test]
fn a_key_used_in_an_expression() {
    orders(
        "SELECT region || '!' AS r, id % 2 + 1 AS p, count(*) AS n FROM orders GROUP BY region, id % 2",
    );
}

#[test]
fn grouping_by_the_primary_key_allows_its_columns() {
    orders("SELECT id, region, amount * 2 AS a, count(*) AS n FROM orders GROUP BY id");
}

#[test]
fn other_aggregates_are_evaluated_again() {
    orders(
        "SELECT region, string_agg(id::text, ',' ORDER BY id) AS s, array_agg(qty ORDER BY id DESC) AS a, bool_and(b) AS ba, bool_or(b) AS bo, every(b) AS e,
                jsonb_agg(amount ORDER BY id) AS j, bit_or(qty) AS bits, stddev(qty) AS sd, var_pop(qty) AS vp,
                percentile_disc(0.5) WITHIN GROUP (ORDER BY qty) AS med, mode() WITHIN GROUP (ORDER BY qty % 3) AS m, json_object_agg(id, qty ORDER BY id) AS jo
         FROM orders GROUP BY region",
    );
}

#[test]
fn algebraic_and_other_aggregates_together() {
    orders(
        "SELECT region, count(*) AS n, sum(amount) AS s, max(qty) AS m, string_agg(id::text, ',' ORDER BY id) AS ids, stddev_samp(qty) AS sd FROM orders GROUP BY region",
    );
}

#[test]
fn a_user_defined_aggregate() {
    check(Scenario {
        tables: &format!(
            "{ORDERS};
             CREATE FUNCTION mul_step(acc numeric, v int) RETURNS numeric LANGUAGE sql IMMUTABLE AS 'SELECT acc * coalesce(v, 1)';
             CREATE AGGREGATE product(int) (SFUNC = mul_step, STYPE = numeric, INITCOND = '1')"
        ),
        query: "SELECT region, product(qty) AS p, count(*) AS n FROM orders GROUP BY region",
        changes: CHANGES,
    });
}

#[test]
fn group_by_without_aggregates_is_distinct() {
    orders("SELECT region, b FROM orders GROUP BY region, b");
}

#[test]
fn extremes_leave_and_return() {
    check(Scenario {
        tables: "CREATE TABLE t (g int, v int); INSERT INTO t VALUES (1, 1), (1, 5), (1, 5), (2, 7), (3, NULL)",
        query: "SELECT g, min(v) AS lo, max(v) AS hi, count(*) AS n FROM t GROUP BY g",
        changes: &[
            "DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE v = 5)", // one of two maxima
            "DELETE FROM t WHERE v = 5",
            "DELETE FROM t WHERE v = 1; INSERT INTO t VALUES (1, 1), (1, 0)",
            "UPDATE t SET v = v - 10",
            "UPDATE t SET v = NULL WHERE g = 2",
            "INSERT INTO t VALUES (3, 3), (2, 2)",
            "DELETE FROM t WHERE v IS NULL",
        ],
    });
}

#[test]
fn special_values_have_no_inverse() {
    check_values(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, g int, f float8, n numeric);
                 INSERT INTO t VALUES (1, 1, 1, 1), (2, 1, 'NaN', 'NaN'), (3, 2, 'Infinity', 'Infinity'), (4, 2, 2, 2)",
        query: "SELECT g, sum(f) AS sf, avg(f) AS af, sum(n) AS sn, avg(n) AS an, min(f) AS lo, max(n) AS hi, count(*) AS c FROM t GROUP BY g",
        changes: &[
            "DELETE FROM t WHERE id IN (2, 3)",
            "INSERT INTO t VALUES (5, 1, '-Infinity', '-Infinity'), (6, 1, 'Infinity', 'Infinity')",
            "DELETE FROM t WHERE id = 6",
            "UPDATE t SET f = 0, n = 0 WHERE id = 5",
            "INSERT INTO t VALUES (7, 2, 1e100, 1e100), (8, 2, -1e100, -1e100)",
            "DELETE FROM t WHERE id = 8",
            "UPDATE t SET f = 1e-300, n = 0.0000001 WHERE id = 7",
            "INSERT INTO t VALUES (9, 3, 1e20, 1), (10, 3, 1, 1)",
            "DELETE FROM t WHERE id = 9", // 1e20 + 1 - 1e20 is 0 in floats
        ],
    });
}

#[test]
fn the_scale_of_a_numeric_sum_is_that_of_its_rows() {
    check(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, g int, n numeric); INSERT INTO t VALUES (1, 1, 1.5), (2, 1, 2.125), (3, 2, 7)",
        query: "SELECT g, sum(n) AS s, avg(n) AS a, count(n) AS c FROM t GROUP BY g",
        changes: &[
            "INSERT INTO t VALUES (4, 1, 0.00000), (5, 2, 1.50)",
            "DELETE FROM t WHERE id = 4", // fewer digits again
            "UPDATE t SET n = 1 WHERE id = 2",
            "UPDATE t SET n = n * 1.0",
            "UPDATE t SET n = NULL",
        ],
    });
}

#[test]
fn equal_keys_that_look_different_are_one_group() {
    check_values(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, k numeric, f float8); INSERT INTO t VALUES (1, 1.0, 0), (2, 1.00, '-0'), (3, 2, 'NaN')",
        query: "SELECT k, f, count(*) AS n, sum(id) AS s FROM t GROUP BY k, f",
        changes: &[
            "INSERT INTO t VALUES (4, 1, 0), (5, 1.000, '-0'), (6, 2.0, 'NaN')",
            "DELETE FROM t WHERE id IN (1, 3)",
            "UPDATE t SET k = 2.00 WHERE id = 2",
            "DELETE FROM t WHERE id IN (2, 4)",
        ],
    });
}

#[test]
fn sums_that_exceed_the_argument_type() {
    check(Scenario {
        tables: "CREATE TABLE t (g int, v bigint, i int); INSERT INTO t VALUES (1, 9223372036854775807, 2147483647), (1, 9223372036854775807, 2147483647)",
        query: "SELECT g, sum(v) AS v, sum(i) AS i, avg(v) AS a FROM t GROUP BY g",
        changes: &[
            "INSERT INTO t VALUES (1, 9223372036854775807, 2147483647)",
            "DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t)",
            "UPDATE t SET v = -v, i = -i",
        ],
    });
}

#[test]
fn sums_of_intervals_and_money() {
    check(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, g int, i interval, m money); INSERT INTO t VALUES (1, 1, '1 day', 1.50), (2, 1, '2 hours', 2), (3, 2, NULL, NULL)",
        query: "SELECT g, sum(i) AS i, avg(i) AS a, max(i) AS hi, sum(m) AS m FROM t GROUP BY g",
        changes: &[
            "INSERT INTO t VALUES (4, 2, '1 month', 5)",
            "DELETE FROM t WHERE id = 1",
            "UPDATE t SET g = 3, i = i * 2",
            "DELETE FROM t",
        ],
    });
}

#[test]
fn an_aggregate_over_a_join() {
    check(Scenario {
        tables: "CREATE TABLE c (id int PRIMARY KEY, region text); CREATE TABLE o (id int PRIMARY KEY, c int, v int);
                 INSERT INTO c VALUES (1, 'n'), (2, 's'), (3, 'n'); INSERT INTO o SELECT i, i % 4, i FROM generate_series(1, 20) i",
        query: "SELECT c.region, count(*) AS n, sum(o.v) AS v, min(o.v) AS lo, max(o.v) AS hi, avg(o.v) AS a FROM o JOIN c ON o.c = c.id GROUP BY c.region",
        changes: &[
            "INSERT INTO o VALUES (100, 1, 1000), (101, 2, -5)",
            "UPDATE c SET region = 's' WHERE id = 1",
            "UPDATE c SET region = 'w' WHERE id = 3; UPDATE o SET c = 3 WHERE v > 15; DELETE FROM o WHERE id = 100",
            "DELETE FROM c WHERE id = 2; INSERT INTO c VALUES (0, 's')",
            "UPDATE c SET id = id + 1; UPDATE o SET c = c + 1",
            "DELETE FROM o",
        ],
    });
}

#[test]
fn an_aggregate_over_union_all_and_self_join() {
    check(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, g int, v int); INSERT INTO t SELECT i, i % 3, i FROM generate_series(1, 9) i",
        query: "SELECT u.g, sum(u.v) AS s, count(*) AS n FROM (SELECT g, v FROM t UNION ALL SELECT a.g, -b.v FROM t a JOIN t b ON a.g = b.g AND a.id < b.id) u GROUP BY u.g",
        changes: &[
            "UPDATE t SET g = 1 WHERE id = 3",
            "INSERT INTO t VALUES (20, 2, 100), (21, 4, 1)",
            "DELETE FROM t WHERE g = 1",
            "UPDATE t SET v = 0",
        ],
    });
}

#[test]
fn many_groups_change_at_once() {
    check(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, g int, v int); INSERT INTO t SELECT i, i % 1000, i FROM generate_series(1, 10000) i",
        query: "SELECT g, count(*) AS n, sum(v) AS s, min(v) AS lo, max(v) AS hi FROM t GROUP BY g",
        changes: &[
            "UPDATE t SET v = v + 1 WHERE id % 7 = 0",
            "UPDATE t SET g = g + 500 WHERE id % 3 = 0",
            "DELETE FROM t WHERE g < 400",
        ],
    });
}

#[test]
fn group_keys_of_several_types() {
    check(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, a text, b date, c uuid, d bytea, e int[], j jsonb, v int);
                 INSERT INTO t SELECT i, 't' || i % 2, '2020-01-01'::date + i % 3, md5((i % 2)::text)::uuid, decode(md5((i % 2)::text), 'hex'), ARRAY[i % 2, NULL],
                                      jsonb_build_object('k', i % 2), i FROM generate_series(1, 12) i",
        query: "SELECT a, b, c, d, e, j, count(*) AS n, sum(v) AS s FROM t GROUP BY a, b, c, d, e, j",
        changes: &["UPDATE t SET a = NULL, j = NULL WHERE id < 4", "UPDATE t SET e = ARRAY[1, 2] WHERE id % 2 = 0", "DELETE FROM t WHERE id > 6", "UPDATE t SET a = 'x', b = NULL, c = NULL, d = NULL, e = NULL, j = 'null'"],
    });
}

#[test]
fn ordered_set_aggregates_with_grouping_columns_as_direct_arguments() {
    crate::windows::maintained(Scenario {
        tables: ORDERS,
        query: "SELECT b, qty, percentile_disc(qty / 10.0) WITHIN GROUP (ORDER BY id) AS p, rank(qty) WITHIN GROUP (ORDER BY id) AS r FROM orders GROUP BY b, qty",
        changes: CHANGES,
    });
}

#[test]
fn hypothetical_set_aggregates() {
    crate::windows::maintained(Scenario {
        tables: ORDERS,
        query: "SELECT region, rank(3) WITHIN GROUP (ORDER BY qty) AS r, dense_rank(5) WITHIN GROUP (ORDER BY qty DESC) AS d, percent_rank(4) WITHIN GROUP (ORDER BY qty) AS p, cume_dist(4) WITHIN GROUP (ORDER BY qty) AS c FROM orders GROUP BY region",
        changes: CHANGES,
    });
}

#[test]
fn aggregates_of_json_and_ranges() {
    crate::windows::maintained(Scenario {
        tables: ORDERS,
        query: "SELECT region, json_arrayagg(qty ORDER BY id) AS ja, json_objectagg(id: qty) FILTER (WHERE id = 1) AS jo, range_agg(int4range(id, id + 2)) AS ra, range_intersect_agg(int4range(id, 100)) AS ri, count((region, b)) AS cr FROM orders GROUP BY region",
        changes: CHANGES,
    });
}

/// What fails for other rows is not evaluated for them.
#[test]
fn arguments_behind_a_condition() {
    check(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, g int, h text); INSERT INTO t VALUES (1, 1, 'a'), (2, 2, 'b'), (3, NULL, NULL)",
        query: "SELECT h, sum(10 / g) FILTER (WHERE g <> 0) AS s, max(10 / g) FILTER (WHERE g <> 0) AS m, avg(10 / g) FILTER (WHERE g <> 0) AS v,
                bool_or(10 / g > 3) FILTER (WHERE g <> 0) AS o, count(10 / g) FILTER (WHERE g <> 0) AS n,
                count(DISTINCT 10 / g) FILTER (WHERE g <> 0) AS d, sum(DISTINCT 10 / g) FILTER (WHERE g > 0) AS e FROM t GROUP BY h",
        changes: &[
            "INSERT INTO t VALUES (4, 0, 'c'), (5, 0, 'a')",
            "UPDATE t SET g = 0 WHERE id = 1",
            "INSERT INTO t VALUES (6, 3, 'a'), (7, -3, 'a'), (8, 3, 'c')",
            "UPDATE t SET g = 1 WHERE g = 0",
            "DELETE FROM t WHERE g = 3",
        ],
    });
}

/// PostgreSQL gives an aggregate the rows in the order in which a sub-query sorts them.
#[test]
fn aggregates_over_a_sub_query_with_order_by() {
    for query in [
        "SELECT array_agg(id) AS a, count(*) AS n FROM (SELECT id FROM t ORDER BY v DESC, id) AS q",
        "SELECT g, string_agg(h, '') AS s FROM sorted GROUP BY g",
        "WITH q AS (SELECT * FROM (SELECT * FROM t ORDER BY v, id) AS p WHERE g > 0) SELECT json_agg(id)::text AS j FROM q",
        "SELECT id, JSON_ARRAY(SELECT u.id FROM t AS u WHERE u.g = t.g ORDER BY u.v DESC, u.id)::text AS j FROM t",
        "SELECT id, s FROM t, LATERAL (SELECT string_agg(h, '-') AS s FROM (SELECT h FROM t AS u WHERE u.g = t.g ORDER BY v, id LIMIT 2) AS p) AS q",
    ] {
        check(Scenario {
            tables: "CREATE TABLE t (id int PRIMARY KEY, g int, h text, v int); CREATE VIEW sorted AS SELECT * FROM t ORDER BY v DESC, id;
                INSERT INTO t SELECT i, i % 3, chr(97 + i % 5), i * 7 % 10 FROM generate_series(1, 12) AS i",
            query,
            changes: &[
                "INSERT INTO t VALUES (20, 1, 'x', 9), (21, 0, 'y', -1)",
                "UPDATE t SET v = 10 - v WHERE id < 6",
                "DELETE FROM t WHERE g = 1",
                "DELETE FROM t",
            ],
        });
    }
}
