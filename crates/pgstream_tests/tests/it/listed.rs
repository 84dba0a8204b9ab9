//! What the manual lists as supported, group by group, nested in other constructs, over NULLs and
//! duplicates.

use pgstream_tests::{Comparison, Database, Watched};

const TABLES: &str = "
    CREATE TYPE rec AS (x int); CREATE TABLE u (g int, k text, w int); CREATE TABLE e (a int, b int);
    CREATE TABLE t (id int PRIMARY KEY, g int, h text, v numeric, f float8, d date, j jsonb);
    INSERT INTO t SELECT i, nullif(i % 4, 3), (ARRAY['a', 'b', NULL])[i % 3 + 1], i * 1.5, i, '2020-01-01'::date + i % 5, jsonb_build_object('x', i % 3) FROM generate_series(1, 14) i;
    INSERT INTO u VALUES (0, 'a', 1), (1, 'b', 2), (1, 'b', 2), (NULL, 'a', 3), (2, NULL, NULL), (5, 'c', 9);
    INSERT INTO e VALUES (1, 2), (2, 3), (3, 1), (3, 4), (NULL, 1)";

const CHANGES: &[&str] = &[
    "INSERT INTO t VALUES (100, 1, 'a', 1.50, '-0', '2020-01-02', '{\"x\":1}'), (101, NULL, NULL, NULL, NULL, NULL, NULL)",
    "UPDATE t SET g = CASE g WHEN 0 THEN NULL WHEN 1 THEN 2 ELSE 0 END WHERE id % 2 = 0",
    "DELETE FROM u WHERE g IS NULL",
    "INSERT INTO u VALUES (NULL, NULL, NULL), (1, 'a', 9), (0, 'a', 1)",
    "UPDATE u SET w = w + 1, k = nullif(k, 'b')",
    "DELETE FROM e WHERE a = 3; INSERT INTO e VALUES (2,2),(2,2),(0,1); UPDATE t SET id = id + 1000 WHERE id < 4; INSERT INTO u SELECT g, h, id FROM t WHERE id > 1000",
    "UPDATE t SET v = v + 0.000, h = h",
    "DELETE FROM t WHERE g = 2 OR g IS NULL; DELETE FROM u WHERE w > 5",
    "DELETE FROM e",
    "DELETE FROM t",
    "INSERT INTO e VALUES (1,1); INSERT INTO t SELECT i, i % 2, 'a', i, i, '2020-01-01', '{\"x\": 2}' FROM generate_series(1,6) i",
    "TRUNCATE u",
    "INSERT INTO u VALUES (1,'a',1), (0,'b',2); UPDATE t SET g = NULL WHERE id = 1",
    "TRUNCATE t; INSERT INTO t SELECT i, i % 3, 'b', i, i, '2020-01-01', '{\"x\": 2}' FROM generate_series(1,6) i",
    "UPDATE t SET id = -id, j = NULL",
];

/// All of them in one database, refreshed and compared after each change.
#[track_caller]
fn follow(queries: &[&str]) {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let create = |(number, query): (usize, &&str)| {
        Watched::create(&mut session, &format!("st{number}"), query, Comparison::Text)
    };
    let all: Vec<_> = queries.iter().enumerate().map(create).collect();
    for change in CHANGES {
        session.run(change);
        for one in &all {
            one.refresh_and_compare(&mut session, change);
        }
    }
}

#[test]
fn joins() {
    follow(&[
        "SELECT t.id, u.k FROM t LEFT JOIN u ON t.g = u.g AND u.w > 1 AND t.h = 'a'",
        "SELECT t.id, u.k, e.a FROM t FULL JOIN u ON t.g = u.g FULL JOIN e ON e.a = u.w",
        "SELECT a.id AS x, b.id AS y FROM t a JOIN t b ON a.id = b.id + 1 JOIN t c ON c.id = b.id",
        "SELECT a.id, b.id AS b FROM t a RIGHT JOIN t b ON a.g < b.g AND a.h IS NOT DISTINCT FROM b.h",
        "SELECT a.id, count(b.id) n FROM t a LEFT JOIN t b ON a.g = b.g AND a.id <> b.id GROUP BY a.id",
        "SELECT x.id, y.k, z.w FROM t x LEFT JOIN (u y JOIN u z ON y.g = z.g) ON x.g = y.g",
        "SELECT * FROM u NATURAL LEFT JOIN (SELECT g, max(id) m FROM t GROUP BY g) q",
        "SELECT t.id FROM t CROSS JOIN u WHERE u.g IS NULL",
        "SELECT a.id FROM t a LEFT JOIN u b ON a.g=b.g WHERE b.g IS NULL",
        "SELECT t.id, u.k, u.w FROM t FULL JOIN u USING (g) WHERE coalesce(w, 5) > 2",
        "SELECT v.x, t.id FROM (VALUES (1,'a'),(2,'b'),(NULL,NULL)) v(x,y) LEFT JOIN t ON t.g = v.x AND t.h = v.y",
    ]);
}

#[test]
fn aggregates_and_their_modifiers() {
    follow(&[
        "SELECT g, count(DISTINCT h) AS a, count(DISTINCT d) b, sum(DISTINCT v) c, array_agg(DISTINCT h ORDER BY h) x, string_agg(DISTINCT h, ',' ORDER BY h DESC) y FROM t GROUP BY g",
        "SELECT g, rank(5) WITHIN GROUP (ORDER BY id) r, dense_rank(5.0) WITHIN GROUP (ORDER BY v) dr, percent_rank(3) WITHIN GROUP (ORDER BY id DESC) pr, cume_dist(3) WITHIN GROUP (ORDER BY id) cd, percentile_cont(ARRAY[0.25,0.5]) WITHIN GROUP (ORDER BY f) pc, mode() WITHIN GROUP (ORDER BY h) m FROM t GROUP BY g",
        "SELECT g, percentile_cont(coalesce(g,1)/10.0) WITHIN GROUP (ORDER BY f) p FROM t GROUP BY g",
        "SELECT g, bit_xor(id) AS a, bool_and(id > 3) AS b, every(h IS NULL) AS c, bit_or(id) AS d, stddev(id) AS e, var_samp(id) AS f, range_agg(int4range(id, id + 2)) AS r FROM t GROUP BY g",
        "SELECT h, min(d) AS a, max(d) AS b, min(j::text) AS c, max(f) AS e, min(v) FILTER (WHERE g = 1) AS f, count(*) FILTER (WHERE g IS NULL) AS n FROM t GROUP BY h HAVING count(*) > 1 OR h IS NULL",
        "SELECT g % 2 AS p, h IS NULL AS hn, avg(v) AS a, avg(g) AS b, sum(f) c FROM t GROUP BY 1, 2",
        "SELECT jsonb_object_agg(id, h) AS j, json_agg(id ORDER BY id)::text AS k, json_object_agg(id, v ORDER BY id)::text AS o FROM t",
        "SELECT g, JSON_ARRAYAGG(id ORDER BY id)::text AS a FROM t GROUP BY g",
        "SELECT sum(s) FROM (SELECT g, sum(v) s FROM t GROUP BY g HAVING sum(v) > 10) x WHERE g IS NOT NULL",
    ]);
}

#[test]
fn grouping_sets_cube_and_rollup() {
    follow(&[
        "SELECT GROUPING(g,h) AS gr, g, h, count(*), sum(v) FROM t GROUP BY GROUPING SETS ((g,h),(g),(h),())",
        "SELECT count(*) AS n, sum(v) s FROM t WHERE id < 0 GROUP BY GROUPING SETS ((), (g))",
        "SELECT count(*) AS n, sum(v) s FROM t WHERE id > 100 GROUP BY GROUPING SETS ((), ())",
        "SELECT g, h FROM t GROUP BY ROLLUP (g, h) HAVING GROUPING(h) = 0 OR count(*) > 3",
        "SELECT g, CASE GROUPING(g) WHEN 1 THEN 'all' ELSE coalesce(h, 'none') END c, count(*) n FROM t GROUP BY CUBE (g, h)",
        "SELECT g, h, sum(count(*)) OVER (PARTITION BY GROUPING(g) ORDER BY g, h) FROM t GROUP BY GROUPING SETS ((g), (g, h))",
    ]);
}

#[test]
fn deduplication_and_set_operations() {
    follow(&[
        "SELECT DISTINCT g, h FROM t",
        "SELECT DISTINCT ON (g) g, id, h FROM t ORDER BY g, id DESC",
        "SELECT g FROM t INTERSECT ALL SELECT g FROM u",
        "(SELECT g, h FROM t EXCEPT ALL SELECT g, k FROM u) UNION (SELECT g, k FROM u INTERSECT SELECT g, h FROM t)",
        "SELECT g FROM u EXCEPT SELECT g FROM t",
        "SELECT g::bigint AS g FROM t UNION SELECT id FROM t UNION ALL SELECT w FROM u",
        "SELECT h FROM t UNION ALL (SELECT k FROM u EXCEPT SELECT h FROM t) INTERSECT SELECT k FROM u",
        "SELECT j::json AS j, 1 AS n FROM t UNION ALL SELECT NULL::json, w FROM u",
        "SELECT B'10'::varbit AS b FROM t UNION SELECT w::bit(4)::varbit FROM u WHERE w IS NOT NULL",
    ]);
}

#[test]
fn sub_queries_with_nulls() {
    follow(&[
        "SELECT id FROM t WHERE g NOT IN (SELECT g FROM u)",
        "SELECT id FROM t WHERE g NOT IN (SELECT g FROM u WHERE g IS NOT NULL)",
        "SELECT id, g IN (SELECT g FROM u WHERE k = t.h) AS i, g NOT IN (SELECT u.g FROM u WHERE u.k = t.h) AS ni FROM t",
        "SELECT id, g > ALL (SELECT w FROM u WHERE u.g = t.g) AS al, g <= ANY (SELECT w FROM u) AS an FROM t",
        "SELECT id FROM t WHERE (g,h) NOT IN (SELECT g,k FROM u)",
        "SELECT id FROM t WHERE (g,h) IN (SELECT g,k FROM u) OR NOT EXISTS (SELECT FROM e WHERE e.a = t.g)",
        "SELECT id FROM t WHERE (SELECT count(*) FROM u WHERE u.g = t.g) = 0",
        "SELECT id FROM t WHERE h = ANY (SELECT unnest(string_to_array(k, ',')) FROM u)",
        "SELECT id FROM t WHERE NOT (g = ANY (SELECT g FROM u) AND h = ANY (SELECT k FROM u))",
        "SELECT id FROM t WHERE ROW(g, h) < ANY (SELECT g, k FROM u)",
    ]);
}

#[test]
fn sub_queries_in_lists_having_case_and_joins() {
    follow(&[
        "SELECT id, (SELECT max(w) FROM u WHERE u.g = t.g) AS m, (SELECT count(*) FROM u WHERE u.g=t.g AND u.k = t.h) AS c, (SELECT sum(w) FROM u) s FROM t",
        "SELECT g, count(*) AS n FROM t GROUP BY g HAVING count(*) > (SELECT count(*) FROM u WHERE u.g = t.g)",
        "SELECT g, sum(v) FROM t GROUP BY g HAVING sum(v) >= ALL (SELECT sum(v) FROM t GROUP BY g)",
        "SELECT id, CASE WHEN EXISTS (SELECT FROM u WHERE u.g=t.g) THEN (SELECT min(k) FROM u WHERE u.g = t.g) WHEN g IN (SELECT a FROM e) THEN 'e' ELSE (SELECT max(b)::text FROM e) END AS c FROM t",
        "SELECT t.id, u.k FROM t JOIN u ON u.g = t.g AND u.w = (SELECT max(w) FROM u u2 WHERE u2.g = t.g)",
        "SELECT t.id, u.k FROM t LEFT JOIN u ON u.g = t.g AND EXISTS (SELECT FROM e WHERE e.a = u.w)",
        "SELECT sum((SELECT count(*) FROM u WHERE u.g = t.g)) AS s, max((SELECT max(w) FROM u)) FROM t",
        "SELECT id FROM t ORDER BY (SELECT max(w) FROM u)",
        "SELECT g, (SELECT count(*) FROM u WHERE u.g IS NOT DISTINCT FROM x.g) AS n FROM (SELECT DISTINCT g FROM t) x",
        "SELECT id, (SELECT k FROM u WHERE u.g = t.g AND u.w = 9) AS one FROM t",
        "SELECT a.id FROM t a WHERE a.v > (SELECT avg(b.v) FROM t b WHERE b.g = a.g) AND a.id < ALL (SELECT id FROM t c WHERE c.g = a.g AND c.id <> a.id)",
        "SELECT x.n, count(*) FROM (SELECT t.id, (SELECT count(*) FROM u WHERE u.g = t.g) n FROM t) x GROUP BY x.n HAVING count(*) >= (SELECT min(w) FROM u)",
        "SELECT (g, h)::text AS p, ROW(g, h) IS NULL AS n, (SELECT string_agg(k, ',' ORDER BY k, w) FROM u WHERE (u.g, u.k) = (t.g, t.h)) FROM t",
        "SELECT id, v FROM t WHERE v = (SELECT max(v) FROM t) OR v = (SELECT min(v) FROM t)",
    ]);
}

#[test]
fn lateral_sub_queries() {
    follow(&[
        "SELECT id FROM t WHERE EXISTS (SELECT g FROM u WHERE u.g = t.g GROUP BY g HAVING count(*) > 1)",
        "SELECT id, x.* FROM t LEFT JOIN LATERAL (SELECT k, w FROM u WHERE u.g = t.g ORDER BY w DESC NULLS LAST, k LIMIT 1) x ON true",
        "SELECT id, x.n FROM t, LATERAL (SELECT count(*) n FROM u WHERE u.g = t.g AND EXISTS (SELECT FROM e WHERE e.b = u.w AND e.a = t.g)) x",
        "SELECT id, ARRAY(SELECT w FROM u WHERE u.g = t.g ORDER BY w) AS arr FROM t",
        "SELECT x.id FROM t x WHERE EXISTS (SELECT FROM u WHERE u.g = x.g UNION ALL SELECT FROM e WHERE e.a = x.g)",
        "SELECT id, m FROM t LEFT JOIN LATERAL (SELECT max(w) m, count(*) c FROM u WHERE u.g = t.g HAVING count(*) > 1) q ON t.h = 'a'",
        "SELECT u.g, u.k, u.w, l.* FROM u LEFT JOIN LATERAL (SELECT DISTINCT h FROM t WHERE t.g = u.g) l ON l.h <> u.k",
    ]);
}

#[test]
fn windows() {
    follow(&[
        "SELECT id, row_number() OVER (PARTITION BY g ORDER BY id) rn, rank() OVER (ORDER BY h) r, ntile(3) OVER (ORDER BY id) n, lag(h) OVER w l, lead(h, 2, 'z') OVER w le, first_value(v) OVER w fv, last_value(v) OVER w lv, nth_value(v, 2) OVER w nv FROM t WINDOW w AS (PARTITION BY g ORDER BY id)",
        "SELECT id, sum(v) OVER (ORDER BY id ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING EXCLUDE CURRENT ROW) a, sum(v) OVER (PARTITION BY g ORDER BY d GROUPS BETWEEN 1 PRECEDING AND CURRENT ROW EXCLUDE TIES) b, count(*) OVER (PARTITION BY g ORDER BY d RANGE BETWEEN '1 day' PRECEDING AND '1 day' FOLLOWING EXCLUDE GROUP) c, avg(v) OVER (PARTITION BY h) d FROM t",
        "SELECT g, sum(v) s, rank() OVER (ORDER BY sum(v) DESC) r, sum(sum(v)) OVER () tot, lag(sum(v)) OVER (ORDER BY g NULLS FIRST) l FROM t GROUP BY g",
        "SELECT id, coalesce(sum(v) OVER (PARTITION BY g) / nullif(count(*) OVER (), 0), 0) AS share FROM t",
        "SELECT * FROM (SELECT id, g, row_number() OVER (PARTITION BY g ORDER BY v DESC, id) rn FROM t) x WHERE rn <= 2",
        "SELECT DISTINCT g, count(*) OVER (PARTITION BY g) n FROM t",
        "SELECT g, max(rn) FROM (SELECT g, row_number() OVER (PARTITION BY g, h ORDER BY id) rn FROM t) x GROUP BY g",
        "SELECT id, count(*) FILTER (WHERE h = 'a') OVER (PARTITION BY g) c, array_agg(id) OVER (PARTITION BY g ORDER BY id) a FROM t",
        "SELECT t.id, u.k, dense_rank() OVER (PARTITION BY u.k ORDER BY t.v) dr FROM t LEFT JOIN u ON t.g = u.g",
        "SELECT g, h, sum(count(*)) OVER (PARTITION BY GROUPING(g) ORDER BY g, h) FROM t GROUP BY GROUPING SETS ((g), (g, h))",
    ]);
}

#[test]
fn set_returning_functions() {
    follow(&[
        "SELECT s.i, s.o, t.id FROM t, LATERAL unnest(ARRAY[g, id]) WITH ORDINALITY s(i, o) WHERE s.i IS NOT NULL",
        "SELECT id, e.key, e.value FROM t, jsonb_each(j) e",
        "SELECT id, generate_series(1, g) s, unnest(ARRAY[h]) u FROM t",
        "SELECT id, jt.* FROM t, JSON_TABLE(j, '$' COLUMNS (x int PATH '$.x', y text PATH '$.y' DEFAULT 'none' ON EMPTY)) jt",
        "SELECT id, r.* FROM t, ROWS FROM (generate_series(1, g), unnest(ARRAY[h, 'z'])) AS r(a, b)",
    ]);
}

#[test]
fn rows_and_limits() {
    follow(&[
        "SELECT id, (j).x FROM (SELECT id, jsonb_populate_record(NULL::rec, j) AS j FROM t) q",
        "SELECT t FROM t",
        "SELECT u, count(*) FROM u GROUP BY u",
        "SELECT count(*) AS n FROM (SELECT FROM t) x",
        "SELECT FROM t WHERE g = 1",
        "SELECT * FROM (SELECT g, h, id FROM t ORDER BY id DESC LIMIT 5 OFFSET 1) x",
        "SELECT g, count(*) FROM (SELECT * FROM t ORDER BY v DESC, id FETCH FIRST 6 ROWS WITH TIES) x GROUP BY g",
        "SELECT t.g, COUNT(DISTINCT (t.h, u.w)) c FROM t JOIN u ON TRUE GROUP BY t.g",
    ]);
}

#[test]
fn stateful_operators_in_each_other() {
    follow(&[
        "SELECT x.g, y.n, z.r FROM (SELECT DISTINCT g FROM t UNION SELECT g FROM u) x LEFT JOIN (SELECT g, count(*) n FROM t GROUP BY g) y ON x.g = y.g LEFT JOIN (SELECT g, rank() OVER (ORDER BY c) r FROM (SELECT g, count(*) c FROM u GROUP BY g) q) z ON z.g = x.g",
        "WITH a AS (SELECT g, count(*) n FROM t GROUP BY g), b AS (SELECT a1.g, a1.n + coalesce(a2.n, 0) AS n FROM a a1 LEFT JOIN a a2 ON a2.g = a1.g + 1) SELECT n, count(*) FROM b GROUP BY n",
        "SELECT count(*) FROM (SELECT r, count(*) FROM (SELECT id, rank() OVER (PARTITION BY n ORDER BY id) r FROM (SELECT a.id, count(b.w) n FROM t a LEFT JOIN u b ON a.g=b.g GROUP BY a.id) q) z GROUP BY r HAVING count(*) > 1) y",
    ]);
}
