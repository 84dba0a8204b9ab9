//! LATERAL without tables, functions in FROM, and set-returning functions in the select list.

use pgstream_tests::Scenario;

use crate::windows::maintained;

const TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, a int[], b text[], j jsonb, g int, v int); CREATE TABLE u (id int PRIMARY KEY, t int, w int);
    CREATE TABLE vg (id int PRIMARY KEY, a int, dbl int GENERATED ALWAYS AS (a * 2) VIRTUAL); INSERT INTO vg VALUES (1, 1), (2, 2);
    CREATE TYPE comp AS (p int, q text);
    CREATE FUNCTION two(int) RETURNS SETOF comp LANGUAGE sql IMMUTABLE AS 'SELECT i, ''q'' || i FROM generate_series(1, $1) i';
    CREATE FUNCTION anon(int) RETURNS SETOF record LANGUAGE sql IMMUTABLE AS 'SELECT i, i::text FROM generate_series(1, $1) i';
    INSERT INTO t SELECT i, ARRAY[i, i % 3, NULL], ARRAY['a' || i % 2, 'b'], jsonb_build_object('k', i % 3, 'items', jsonb_build_array(jsonb_build_object('n', i, 's', 'x' || i % 2), jsonb_build_object('n', i % 4, 's', NULL))), i % 4, i FROM generate_series(1, 8) i;
    INSERT INTO t VALUES (20, NULL, '{}', NULL, NULL, NULL), (21, '{}', NULL, '{}', 0, 3); INSERT INTO u SELECT i, i % 5, i % 3 FROM generate_series(1, 9) i";

const CHANGES: &[&str] = &[
    "INSERT INTO t SELECT i, ARRAY[i % 2, i % 3, 7], ARRAY['a', 'c', 'd', 'e'], jsonb_build_object('z', i, 'items', jsonb_build_array(jsonb_build_object('n', i))), i % 4, i FROM generate_series(30, 33) i; INSERT INTO u VALUES (30, 2, 2), (31, 3, 0); INSERT INTO vg VALUES (3, 3)",
    "UPDATE t SET a = array_append(a, id), g = g + 1 WHERE id % 2 = 0; UPDATE u SET w = w + 1, t = t - 1 WHERE id % 2 = 0; UPDATE vg SET a = 0 WHERE id = 1",
    "UPDATE t SET a = NULL, b = '{}' WHERE id = 3; DELETE FROM t WHERE id = 4; DELETE FROM u WHERE t = 2; UPDATE t SET j = NULL WHERE id = 5; UPDATE t SET g = NULL WHERE id = 6",
    "UPDATE t SET v = v + 1; DELETE FROM vg",
    "DELETE FROM t",
    r#"INSERT INTO t VALUES (1, '{1,1,1}', '{a,a}', '{"items": [{"n": 1}, {"n": 1}]}', 3, 3), (2, '{1,1,1}', '{a,a}', '{"items": [{"n": 1}, {"n": 1}]}', 3, 3)"#,
];

#[track_caller]
fn exact(query: &str) {
    maintained(Scenario { tables: TABLES, query, changes: CHANGES });
}

#[test]
fn lateral_unnest() {
    exact("SELECT t.id, x FROM t, unnest(t.a) x");
    exact("SELECT t.id, x, count(*) AS n FROM t, unnest(a) x GROUP BY t.id, x");
}

#[test]
fn lateral_jsonb_each_and_array_elements() {
    exact("SELECT t.id, e.key, e.value FROM t, jsonb_each(t.j) e");
    exact(
        "SELECT t.id, e->>'n' AS n, e->>'s' AS s FROM t, jsonb_array_elements(t.j->'items') e WHERE (e->>'n')::int > 1",
    );
}

#[test]
fn lateral_generate_series() {
    exact("SELECT t.id, s FROM t, generate_series(1, t.g) s");
    exact("SELECT t.id, h FROM generate_series(1, 3) h JOIN t ON t.g = h");
    exact("SELECT h, t.id FROM generate_series(1, 3) h LEFT JOIN t ON t.g = h");
    exact("SELECT v.id, k FROM vg v, generate_series(1, v.dbl) k");
}

#[test]
fn left_join_lateral() {
    exact("SELECT t.id, x FROM t LEFT JOIN LATERAL unnest(t.a) AS x ON true");
    exact(
        "SELECT t.id, k.name FROM t LEFT JOIN (VALUES (1, 'one'), (2, 'two')) k(id, name) ON k.id = t.g",
    );
    exact(
        "SELECT t.id, u.id AS uid, f FROM t LEFT JOIN u ON u.t = t.g LEFT JOIN LATERAL generate_series(1, u.w) f ON f > t.g",
    );
    exact(
        "SELECT t.id, u.id AS uid, f FROM t FULL JOIN (u LEFT JOIN LATERAL generate_series(2, u.w) f ON true) ON u.t = t.g",
    );
}

#[test]
fn with_ordinality_and_rows_from() {
    exact(
        "SELECT t.id, x, o FROM t LEFT JOIN LATERAL unnest(t.a) WITH ORDINALITY AS q(x, o) ON x > t.g OR o = 2",
    );
    exact(
        "SELECT t.id, q.* FROM t, ROWS FROM (unnest(t.a), generate_series(1, t.g)) WITH ORDINALITY AS q(x, y, o)",
    );
}

#[test]
fn functions_that_return_rows() {
    exact("SELECT t.id, c.p, c.q FROM t, two(t.g) c");
    exact("SELECT t.id, c.* FROM t, anon(t.g) AS c(one int, two text)");
    exact("SELECT t.id, c.* FROM t, jsonb_to_recordset(t.j->'items') AS c(n int, s text)");
}

#[test]
fn json_table() {
    exact(
        "SELECT t.id, jt.* FROM t, JSON_TABLE(t.j, '$.items[*]' COLUMNS (o FOR ORDINALITY, n int PATH '$.n', s text PATH '$.s')) jt",
    );
    exact(
        "SELECT t.id, jt.* FROM t LEFT JOIN JSON_TABLE(t.j, '$.items[*]' PASSING t.g AS g COLUMNS (n int PATH '$.n', NESTED PATH '$' COLUMNS (s text PATH '$.s'))) jt ON jt.n > t.g",
    );
}

#[test]
fn lateral_sub_queries_without_tables() {
    exact("SELECT t.id, d.n, d.z FROM t, LATERAL (VALUES ('g', t.g), ('v', t.v)) d(n, z)");
    exact(
        "SELECT t.id, s.s, s.n FROM t, LATERAL (SELECT sum(x) AS s, count(*) AS n FROM unnest(t.a) x) s",
    );
    exact(
        "SELECT t.id, s.x FROM t, LATERAL (SELECT x FROM unnest(t.a) WITH ORDINALITY t1(x, o) WHERE x > t.g ORDER BY o DESC LIMIT 1) s",
    );
    exact("SELECT t.id, x FROM t, LATERAL (SELECT x FROM unnest(t.a) x UNION SELECT t.g) q");
}

/// The printer's aliases are t1, t2, …, and so are the user's.
#[test]
fn aliases_do_not_meet() {
    exact(
        "SELECT t1.id, t2.x, t3.y FROM t t1, unnest(t1.a) t2(x), LATERAL (SELECT t2.x + t4.x AS y FROM generate_series(1, t2.x) t4(x)) t3",
    );
    exact("SELECT t.id, s.x FROM t, LATERAL (SELECT t1.x + t.g AS x FROM unnest(t.a) t1(x)) s");
    exact("SELECT t.id, (SELECT max(t1.x + t.g) FROM unnest(t.a) t1(x)) AS m FROM t");
}

#[test]
fn among_joins_and_sub_queries() {
    exact(
        "SELECT t.id, x, u.id AS uid FROM t CROSS JOIN unnest(t.a) x JOIN u ON u.id = x AND u.t = t.g",
    );
    exact("SELECT t.id FROM t WHERE EXISTS (SELECT 1 FROM unnest(t.a) x JOIN u ON u.id = x)");
    exact(
        "SELECT t.id, q.m FROM t, LATERAL (SELECT u.w + f AS m FROM u, generate_series(1, t.g) f WHERE u.t = t.g) q",
    );
    exact(
        "SELECT x.id, f FROM (SELECT g AS id, count(*) AS n FROM t GROUP BY g) x, generate_series(1, x.n) f",
    );
}

#[test]
fn in_the_select_list() {
    exact("SELECT id, unnest(a) + 1 AS x, g FROM t WHERE g > 1");
    exact("SELECT id, unnest(a) AS x, unnest(b) AS y, generate_series(1, g) AS z FROM t");
    exact("SELECT id, (jsonb_each(j)).* FROM t");
    exact("SELECT id, generate_series(1, generate_series(1, g)) AS z FROM t");
    exact("SELECT id FROM t ORDER BY generate_series(1, g)");
    exact("SELECT q.id FROM (SELECT id, unnest(a) AS x FROM t) q");
}

#[test]
fn in_the_select_list_with_grouping_and_distinct() {
    exact("SELECT DISTINCT unnest(a) AS x FROM t");
    exact("SELECT unnest(a) AS x, unnest(b) AS y, count(*) AS n FROM t GROUP BY 1, 2");
    exact("SELECT g, unnest(array_agg(v ORDER BY v)) AS n FROM t GROUP BY g HAVING count(*) > 1");
    exact("SELECT unnest(a) AS x FROM t UNION SELECT w FROM u");
    exact(
        "SELECT id, generate_series(1, g) AS s, row_number() OVER (PARTITION BY g ORDER BY id) AS r FROM t",
    );
}
