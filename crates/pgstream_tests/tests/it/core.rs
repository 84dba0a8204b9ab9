//! Scan, filter, select list, UNION ALL, views, sub-queries in FROM, plain CTEs; every kind of DML.

use pgstream_tests::{Comparison, Database, Scenario, Watched, check};

const ITEMS: &str = "
    CREATE TABLE items (id int PRIMARY KEY, kind text, price numeric(10,2), qty int, note text);
    INSERT INTO items VALUES (1, 'a', 1.50, 10, NULL), (2, 'b', 2.00, NULL, 'x'), (3, NULL, NULL, 3, 'y')";

#[test]
fn a_scan_follows_inserts_updates_and_deletes() {
    check(Scenario {
        tables: ITEMS,
        query: "SELECT * FROM items",
        changes: &[
            "INSERT INTO items VALUES (4, 'c', 9.99, 1, 'z')",
            "UPDATE items SET price = price * 2",
            "UPDATE items SET kind = NULL WHERE id = 1",
            "UPDATE items SET id = id + 100", // the key itself
            "DELETE FROM items WHERE id = 102",
            "DELETE FROM items",
            "INSERT INTO items VALUES (1, 'again', 0, 0, '')",
        ],
    });
}

#[test]
fn an_expression_is_computed_for_each_row() {
    check(Scenario {
        tables: ITEMS,
        query: "SELECT id, price * qty AS total, coalesce(kind, 'none') || '/' || coalesce(note, '') AS label,
                       CASE WHEN qty > 5 THEN 'many' WHEN qty IS NULL THEN NULL ELSE 'few' END AS amount,
                       qty BETWEEN 1 AND 5 AS is_small, kind IN ('a', 'b') AS is_known, $$it's $1$$::text AS c
                FROM items",
        changes: &[
            "INSERT INTO items VALUES (4, 'it''s', 9.99, 1, '$1 \"q\"')",
            "UPDATE items SET qty = qty + 1",
            "UPDATE items SET note = kind, kind = note",
            "DELETE FROM items WHERE qty IS NULL",
        ],
    });
}

#[test]
fn rows_enter_and_leave_a_filter() {
    check(Scenario {
        tables: ITEMS,
        query: "SELECT id, kind FROM items WHERE qty > 5 AND (kind IS DISTINCT FROM 'b' OR note LIKE 'x%')",
        changes: &[
            "UPDATE items SET qty = 20",
            "UPDATE items SET qty = NULL WHERE id = 1",
            "UPDATE items SET qty = 1 WHERE id = 2",
            "UPDATE items SET note = 'changed, but not selected'",
            "UPDATE items SET qty = 7, kind = 'b', note = 'xx'",
            "DELETE FROM items WHERE id IN (1, 3)",
        ],
    });
}

#[test]
fn a_projection_keeps_duplicates() {
    check(Scenario {
        tables: ITEMS,
        query: "SELECT kind FROM items",
        changes: &[
            "INSERT INTO items VALUES (4, 'a', 1, 1, ''), (5, 'a', 2, 2, ''), (6, NULL, 3, 3, '')",
            "DELETE FROM items WHERE id = 1",
            "UPDATE items SET kind = 'a' WHERE kind IS NULL",
            "DELETE FROM items WHERE id IN (4, 5)",
            "UPDATE items SET id = id + 10, qty = 0",
        ],
    });
}

#[test]
fn a_filter_that_is_always_false_or_always_true() {
    check(Scenario {
        tables: ITEMS,
        query: "SELECT id FROM items WHERE false UNION ALL SELECT -id FROM items WHERE true",
        changes: &[
            "INSERT INTO items VALUES (4, 'c', 9.99, 1, 'z')",
            "DELETE FROM items WHERE id = 1",
        ],
    });
}

#[test]
fn several_statements_in_one_transaction() {
    check(Scenario {
        tables: ITEMS,
        query: "SELECT id, kind, qty FROM items WHERE qty > 2",
        changes: &[
            "INSERT INTO items VALUES (4, 'c', 1, 5, ''); UPDATE items SET qty = 6 WHERE id = 4;
             UPDATE items SET qty = 7 WHERE id = 4; DELETE FROM items WHERE id = 4",
            "DELETE FROM items WHERE id = 1; INSERT INTO items VALUES (1, 'a', 1.50, 10, NULL)",
            "DELETE FROM items WHERE id = 1; INSERT INTO items VALUES (1, 'other', 1.50, 11, NULL)",
            "UPDATE items SET id = 9 WHERE id = 1; UPDATE items SET id = 1 WHERE id = 3; UPDATE items SET id = 3 WHERE id = 9",
            "UPDATE items SET kind = kind", // nothing really changes
        ],
    });
}

#[test]
fn a_savepoint_that_is_rolled_back_leaves_nothing() {
    check(Scenario {
        tables: ITEMS,
        query: "SELECT id, kind FROM items",
        changes: &[
            "BEGIN; INSERT INTO items VALUES (4, 'kept', 1, 1, ''); SAVEPOINT s; INSERT INTO items VALUES (5, 'lost', 1, 1, '');
             UPDATE items SET kind = 'lost'; ROLLBACK TO s; INSERT INTO items VALUES (6, 'kept', 1, 1, ''); COMMIT",
            "BEGIN; DELETE FROM items; ROLLBACK",
            "BEGIN; SAVEPOINT a; DELETE FROM items WHERE id = 4; RELEASE a; SAVEPOINT b; DELETE FROM items; ROLLBACK TO b; COMMIT",
        ],
    });
}

#[test]
fn merge_and_on_conflict() {
    check(Scenario {
        tables: ITEMS,
        query: "SELECT id, kind, qty FROM items WHERE qty IS NOT NULL",
        changes: &[
            "INSERT INTO items VALUES (1, 'up', 0, 1, ''), (7, 'new', 0, 1, '')
             ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, qty = items.qty + 1",
            "INSERT INTO items VALUES (1, 'no', 0, 1, ''), (8, 'new', 0, 1, '') ON CONFLICT DO NOTHING",
            "MERGE INTO items USING (VALUES (1), (2), (30)) AS s (id) ON items.id = s.id
             WHEN MATCHED AND s.id = 1 THEN DELETE
             WHEN MATCHED THEN UPDATE SET qty = 100
             WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'merged', 0, 5, '')
             WHEN NOT MATCHED BY SOURCE AND items.id = 8 THEN DELETE",
        ],
    });
}

#[test]
fn copy_and_statements_that_change_tables_inside_with() {
    check(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int, v text);
                 INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 50) i",
        query: "SELECT id, v FROM t UNION ALL SELECT id, v FROM u",
        changes: &[
            r"COPY t FROM PROGRAM 'printf ''100\tcopied\n101\t\\N\n'''",
            "WITH gone AS (DELETE FROM t WHERE id < 10 RETURNING *) INSERT INTO u SELECT * FROM gone",
            "WITH a AS (UPDATE t SET v = 'one' WHERE id = 10), b AS (INSERT INTO t VALUES (200, 'two')) DELETE FROM u WHERE id = 3",
            "UPDATE t SET v = u.v FROM u WHERE t.id = u.id + 20",
            "DELETE FROM t USING u WHERE t.id = u.id + 30",
        ],
    });
}

#[test]
fn truncate_is_followed() {
    check(Scenario {
        tables:
            "CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE b (id int PRIMARY KEY, v int);
                 INSERT INTO a VALUES (1, 10), (2, 20); INSERT INTO b VALUES (1, 100), (3, 300)",
        query: "SELECT a.id, a.v AS av, b.v AS bv FROM a JOIN b ON a.id = b.id",
        changes: &[
            "TRUNCATE a",
            "INSERT INTO a VALUES (1, 11), (3, 33)",
            "BEGIN; INSERT INTO a VALUES (5, 5); TRUNCATE a; INSERT INTO a VALUES (3, 34); UPDATE b SET v = v + 1; COMMIT",
            "BEGIN; TRUNCATE a, b; ROLLBACK",
            "TRUNCATE a, b",
            "INSERT INTO a VALUES (1, 1); INSERT INTO b VALUES (1, 1)",
        ],
    });
}

#[test]
fn union_all_counts_each_branch() {
    check(Scenario {
        tables: "CREATE TABLE a (v int); CREATE TABLE b (v numeric); INSERT INTO a VALUES (1), (1), (NULL); INSERT INTO b VALUES (1), (2.5)",
        query: "SELECT v FROM a UNION ALL SELECT v FROM b UNION ALL SELECT v + 1 FROM a WHERE v > 0",
        changes: &[
            "INSERT INTO a VALUES (2), (NULL)",
            "DELETE FROM a WHERE v = 1; INSERT INTO b VALUES (1)",
            "UPDATE b SET v = v + 0.5",
            "DELETE FROM b; DELETE FROM a",
        ],
    });
}

#[test]
fn views_are_seen_through() {
    check(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, grp int, v int); INSERT INTO t SELECT i, i % 3, i FROM generate_series(1, 9) i;
                 CREATE VIEW big AS SELECT id, grp, v * 10 AS w FROM t WHERE v > 2;
                 CREATE VIEW bigger (k, x) AS SELECT grp, w + 1 FROM big WHERE w < 80",
        query: "SELECT b.k, b.x, t.v FROM bigger b JOIN t ON t.grp = b.k WHERE b.x <> 41",
        changes: &[
            "UPDATE t SET v = v + 1",
            "INSERT INTO t VALUES (20, 1, 3), (21, 2, NULL)",
            "UPDATE t SET grp = 2 WHERE grp = 1",
            "DELETE FROM t WHERE v > 6",
        ],
    });
}

#[test]
fn sub_queries_in_from_and_plain_ctes() {
    check(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, grp int, v int); INSERT INTO t SELECT i, i % 3, i FROM generate_series(1, 9) i",
        query: "WITH small AS (SELECT id, grp, v FROM t WHERE v < 7), twice AS (SELECT grp, v * 2 AS w FROM small)
                SELECT s.id, x.w, y.n FROM small s
                JOIN twice x ON x.grp = s.grp
                JOIN (SELECT grp AS g, v + 1 AS n FROM (SELECT * FROM t WHERE v <> 4) AS inner_t) AS y ON y.g = x.grp",
        changes: &[
            "UPDATE t SET v = v + 1 WHERE grp = 0",
            "DELETE FROM t WHERE id IN (4, 5); INSERT INTO t VALUES (4, 2, 1)",
            "UPDATE t SET grp = (grp + 1) % 3",
            "DELETE FROM t WHERE grp = 1",
        ],
    });
}

#[test]
fn a_cte_that_is_used_twice_or_not_at_all() {
    check(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1), (2, 2), (3, 2)",
        query:
            "WITH c AS MATERIALIZED (SELECT id, v FROM t WHERE v > 0), unused AS (SELECT 1 FROM t)
                SELECT a.id AS a, b.id AS b FROM c a JOIN c b ON a.v = b.v AND a.id <= b.id
                UNION ALL SELECT id, NULL FROM c",
        changes: &[
            "INSERT INTO t VALUES (4, 1), (5, 0)",
            "UPDATE t SET v = 2 WHERE id = 1",
            "UPDATE t SET v = 3 - v",
            "DELETE FROM t WHERE v = 1",
        ],
    });
}

#[test]
fn order_by_at_top_level_is_ignored() {
    check(Scenario {
        tables: ITEMS,
        query: "SELECT id, kind FROM items ORDER BY kind DESC NULLS LAST, 1",
        changes: &["UPDATE items SET kind = 'zz' WHERE id = 3", "DELETE FROM items WHERE id = 1"],
    });
}

#[test]
fn many_rows_at_once() {
    check(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, v int)",
        query: "SELECT v, id FROM t WHERE v % 2 = 0",
        changes: &[
            "INSERT INTO t SELECT i, i % 100 FROM generate_series(1, 20000) i",
            "UPDATE t SET v = v + 1 WHERE id % 3 = 0",
            "DELETE FROM t WHERE id % 5 < 3",
            "INSERT INTO t SELECT i, i FROM generate_series(1, 20000) i ON CONFLICT (id) DO UPDATE SET v = excluded.v",
        ],
    });
}

#[test]
fn large_values_are_captured_whole() {
    check(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, v text, n int);
                 INSERT INTO t SELECT i, string_agg(md5(i::text || j::text), ''), 0 FROM generate_series(1, 3) i, generate_series(1, 2000) j GROUP BY i",
        query: "SELECT id, v, n FROM t",
        changes: &[
            "UPDATE t SET n = n + 1", // the large value is not touched
            "UPDATE t SET v = v || 'tail' WHERE id = 2",
            "DELETE FROM t WHERE id = 1",
            "INSERT INTO t SELECT 9, repeat(v, 3), 1 FROM t WHERE id = 3",
        ],
    });
}

#[test]
fn stable_values_of_the_session_do_not_leak_into_the_query() {
    check(Scenario {
        tables: "CREATE SCHEMA other; CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE other.t (id int PRIMARY KEY, v int);
                 INSERT INTO t VALUES (1, 1); INSERT INTO other.t VALUES (2, 2)",
        query: "SELECT id, v FROM public.t",
        changes: &["SET search_path = other, public; INSERT INTO t VALUES (3, 3); INSERT INTO public.t VALUES (4, 4); RESET search_path"],
    });
}

/// Rows that another session has added look like those that were there.
#[test]
fn constants_mean_what_they_meant_at_creation() {
    let database = Database::new();
    let (mut session, mut other) = (database.session(), database.session());
    session.run(
        "CREATE TABLE t (id int PRIMARY KEY, x int, a text[]); INSERT INTO t VALUES (1, 1, '{a}')",
    );
    let query = "SELECT id, x, a || '{p,NULL}'::text[] AS c, '{1,NULL}'::int[] AS d FROM t";
    session.create("st", query);
    other.run("SET array_nulls = off; INSERT INTO t VALUES (2, 2, '{x}')");
    other.refresh("st");
    // The hidden view is made again from its text.
    other.run("ALTER TABLE t ALTER COLUMN x TYPE bigint; INSERT INTO t VALUES (3, 3, '{y}')");
    other.refresh("st");
    let wrong = pgstream_tests::difference(&mut session, "st", query, Comparison::Text)
        .expect("comparable");
    assert!(wrong.is_none(), "{}", wrong.expect("it is there"));
}

#[test]
fn a_query_follows_the_settings_at_creation() {
    const TABLES: &str = "
        CREATE TABLE t (id int PRIMARY KEY, s text, f float8, b bytea, z timestamptz,
            vf text GENERATED ALWAYS AS (f::text) VIRTUAL, vb text GENERATED ALWAYS AS (textin(byteaout(b))) VIRTUAL);
        CREATE FUNCTION is_null(text) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT ($1 = NULL) IS NOT NULL';
        CREATE FUNCTION utc(timestamptz) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $1::text; END'";
    let row = |id| {
        format!(
            "INSERT INTO t VALUES ({id}, 'NULL', 0.1::float8 + 0.2, '\\x41ff', '2020-06-01 00:00Z')"
        )
    };
    let refreshed = |setting: &str, query: &str, first_row: &str| {
        let database = Database::new();
        let (mut session, mut other) = (database.session(), database.session());
        session.run(&format!("SET TimeZone = 'UTC'; {TABLES}; {}", row(1)));
        session.create("st", query);
        other.run(&format!("SET {setting}"));
        other.run(&row(2));
        other.refresh("st");
        let action = session.value("SELECT action FROM pgstream.get_refresh_history('st', 1)");
        let rows = session.rows("SELECT count(*), x FROM st GROUP BY x");
        let is_same = action == "DIFFERENTIAL" && rows == [format!("2|{first_row}")];
        (!is_same).then(|| format!("{setting}: {query}: {action} {rows:?}"))
    };
    let mut wrong = Vec::new();
    for (setting, expression, value) in [
        (
            "timezone_abbreviations = 'India'",
            "('2020-01-01 00:00 IST' || left(s, 0))::timestamptz AT TIME ZONE 'UTC'",
            "2019-12-31 22:00:00",
        ),
        ("array_nulls = off", "(('{a,' || s || '}')::text[])[2] IS NULL", "t"),
        ("transform_null_equals = on", "is_null(s)", "f"),
        ("TimeZone = 'Asia/Tokyo'", "utc(z)", "2020-06-01 00:00:00+00"),
        (
            "TimeZone = 'Asia/Tokyo'",
            "JSON_OBJECT('a': z RETURNING text)",
            "{\"a\" : \"2020-06-01T00:00:00+00:00\"}",
        ),
        (
            "TimeZone = 'Asia/Tokyo'",
            "JSON_ARRAY(z RETURNING text)",
            "[\"2020-06-01T00:00:00+00:00\"]",
        ),
        ("TimeZone = 'Asia/Tokyo'", "JSON_SCALAR(z)::text", "\"2020-06-01T00:00:00+00:00\""),
        (
            "TimeZone = 'Asia/Tokyo'",
            "JSON_VALUE(to_json(left(s, 0) || '2020-06-01 00:00')::jsonb, '$' RETURNING timestamptz) = '2020-06-01 00:00Z'",
            "t",
        ),
        ("bytea_output = escape", "b::text", "\\x41ff"),
        ("bytea_output = escape", "s || b::text", "NULL\\x41ff"),
        ("bytea_output = escape", "textin(byteaout(b))", "\\x41ff"),
        ("bytea_output = escape", "vb", "\\x41ff"),
        ("extra_float_digits = -10", "vf", "0.30000000000000004"),
        ("extra_float_digits = -10", "f::text", "0.30000000000000004"),
        ("extra_float_digits = -10", "ARRAY[f]::text[]", "{0.30000000000000004}"),
        (
            "extra_float_digits = -10",
            "point(f, f)::text",
            "(0.30000000000000004,0.30000000000000004)",
        ),
    ] {
        wrong.extend(refreshed(setting, &format!("SELECT id, {expression} AS x FROM t"), value));
    }
    wrong.extend(refreshed(
        "TimeZone = 'Asia/Tokyo'",
        "SELECT id, x = '2020-06-01 00:00Z' AS x FROM t, JSON_TABLE('\"2020-06-01 00:00\"'::jsonb, '$' COLUMNS (x timestamptz PATH '$'))",
        "t",
    ));
    assert_eq!(wrong, [""; 0]);
}

/// Whatever writes it as text.
#[test]
fn a_name_in_the_catalog_is_followed() {
    let database = Database::new();
    let (mut session, mut other) = (database.session(), database.session());
    session.run(
        "CREATE TABLE old (x int); CREATE TYPE pair AS (x int, r regclass); CREATE DOMAIN class AS regclass;
         CREATE TABLE t (id int PRIMARY KEY, r regclass, rs regclass[], p pair, d class, j jsonb);
         INSERT INTO t VALUES (1, 'old', '{old}', '(1,old)', 'old', '{\"r\": \"old\"}')",
    );
    let expressions = [
        "format('%s', r)",
        "concat(1, r)",
        "concat_ws(',', d)",
        "'is ' || r",
        "quote_literal(r)",
        "to_jsonb(r)",
        "jsonb_build_object('p', p)",
        "JSON_OBJECT('r': r)",
        "(SELECT jsonb_agg(x) FROM unnest(rs) AS x)",
        "(SELECT to_jsonb(q) FROM (SELECT r) AS q)",
        "to_jsonb(ROW(1, r))",
        "to_jsonb(ARRAY[p])",
        "array_to_string(rs, ',')",
        "rs::text",
        "p::text",
        "d::text",
    ];
    let query = |expression: &str| format!("SELECT id, {expression} AS x FROM public.t");
    for (number, expression) in expressions.iter().enumerate() {
        session.create(&format!("st{number}"), &query(expression));
    }
    session.run("ALTER TABLE old RENAME TO new; INSERT INTO t SELECT 2, r, rs, p, d FROM t");
    // As in a refresh, for names are written with their schemas where these are not searched.
    session.run("SET search_path = pg_catalog");
    for (number, expression) in expressions.iter().enumerate() {
        let name = format!("public.st{number}");
        other.refresh(&name);
        let query = query(expression);
        let wrong = pgstream_tests::difference(&mut session, &name, &query, Comparison::Text)
            .expect("comparable");
        assert!(wrong.is_none(), "{expression} {}", wrong.expect("it is there"));
    }
}

#[test]
fn what_follows_the_moment_is_evaluated_wholly_and_nothing_else() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE t (id int PRIMARY KEY, s text, r regclass, o oid, ti time, tz timetz, z timestamptz, a aclitem, j jsonb, x xid);
         CREATE TYPE pair AS (x int, r regclass)",
    );
    for (expression, is_momentary) in [
        ("now() > z", true),
        ("CURRENT_DATE", true),
        ("SYSTEM_USER", true),
        ("getpgusername()", true),
        ("mxid_age(x)", true),
        ("ti::timetz", true),
        ("tz AT TIME ZONE s", true),
        ("tz AT LOCAL", true),
        ("s::timetz", true),
        ("a::text", true),
        ("to_json(a)", true),
        ("jsonb_populate_record(NULL::pair, j)", true),
        ("(SELECT q.r FROM jsonb_to_record(j) AS q (r regclass))", true),
        ("JSON_VALUE(j, '$' RETURNING regclass)", true),
        ("JSON_VALUE(j, '$.t.time_tz()' RETURNING text)", true),
        ("JSON_VALUE(j, s::jsonpath RETURNING text)", true),
        ("JSON_EXISTS(j, '$.time() ? (@ < $x)' PASSING tz AS x)", true),
        (
            "(SELECT max(q.a) FROM JSON_TABLE(j, '$.t ? (@.time() < $x)' PASSING tz AS x COLUMNS (a int PATH '$')) AS q)",
            true,
        ),
        ("JSON_EXISTS(j, '$ ? (@ < $x)' PASSING id AS x)", false),
        ("jsonb_path_query_first_tz(j, '$.t ? (@.time() < \"10:00+00\".datetime())')", true),
        (
            "(SELECT max(q.a) FROM JSON_TABLE(j, '$' COLUMNS (NESTED PATH '$.x ? (@.time_tz() < 1)' COLUMNS (a int PATH '$.a'))) AS q)",
            true,
        ),
        (
            "JSON_VALUE(j, '$.datetime.timestamp_tz()') || jsonb_path_query_first_tz(j, '$.time_tz')::text",
            false,
        ),
        (
            "(SELECT max(q.a) FROM JSON_TABLE(j, '$' COLUMNS (NESTED PATH '$.x' COLUMNS (a int PATH '$.a'))) AS q)",
            false,
        ),
        ("format('%s %s', id, z)", false),
        ("to_jsonb(tz)", false),
        ("z AT LOCAL", false),
        (
            "to_char(z, 'YYYY') || (r = 'pg_class'::regclass) || to_tsvector('english', s)::text",
            false,
        ),
        ("concat(r IS NULL, o)", false),
        ("s::timestamptz", false),
        ("(j->>'at')::timestamptz", false),
        ("'2020-01-01'::timestamptz < z", false),
    ] {
        session.run("SET client_min_messages = error");
        session.create("st", &format!("SELECT id, {expression} AS x FROM t"));
        session.run("INSERT INTO t SELECT count(*) FROM t");
        session.refresh("st");
        let action = session.value("SELECT action FROM pgstream.get_refresh_history('st', 1)");
        assert_eq!(action == "FULL", is_momentary, "{expression}: {action}");
        session.run("SELECT pgstream.drop_stream_table('st')");
    }
}

/// Refreshes read arrays with it on, so a query that may show it off is refused.
#[test]
fn a_query_cannot_follow_array_nulls() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, x text); INSERT INTO t VALUES (1, 'a'); SET array_nulls = off");
    let query = "SELECT id, ('{' || x || ',null}')::text[] AS a FROM t";
    for mode in ["DIFFERENTIAL", "FULL"] {
        let create =
            format!("SELECT pgstream.create_stream_table('st', $${query}$$, '1h', '{mode}')");
        let error = session.error(&create);
        assert!(error.code == "0A000" && error.message.contains("array_nulls"), "{error}");
    }
    session.create("plain", "SELECT id, '{a,null}'::text[] AS a FROM t");
    assert_eq!(session.value("SELECT a FROM plain"), "{a,\"null\"}");
}

/// What a value of a setting names may be gone, or never have been on this server.
#[test]
fn a_setting_that_is_not_valid_any_more_fails_until_it_is_replaced() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE t (id int PRIMARY KEY, body text, at timestamptz); INSERT INTO t VALUES (1, 'the dogs', '2020-01-01 00:00Z');
         CREATE FUNCTION f(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1'; SET default_text_search_config = 'simple'; SET TimeZone = 'UTC'",
    );
    let queries = [
        ("plain", "SELECT id, id::text || body AS x FROM t", ""),
        (
            "searched",
            "SELECT id, to_tsvector(body)::text AS x FROM t",
            "default_text_search_config",
        ),
        ("compared", "SELECT id, body @@ 'dog' AS x FROM t", "default_text_search_config"),
        ("charged", "SELECT id, ARRAY[id::money]::text AS x FROM t", "lc_monetary"),
        ("formatted", "SELECT id, to_char(id, '9D9') AS x FROM t", "lc_monetary"),
        ("dated", "SELECT id, to_jsonb(t) AS x FROM t", "TimeZone"),
        ("called", "SELECT id, f(body) AS x FROM t", "TimeZone"),
    ];
    for (name, query, _) in queries {
        session.create(name, query);
    }
    session.run("INSERT INTO t VALUES (2, 'two dogs', '2021-01-01 00:00Z')");
    for name in [
        "TimeZone",
        "timezone_abbreviations",
        "lc_monetary",
        "lc_numeric",
        "lc_time",
        "default_text_search_config",
    ] {
        session.run(&format!(
            "UPDATE pgstream.pgs_stream_tables SET settings[array_position(settings, '{name}') + 1] = 'gone'"
        ));
    }
    let new = "SET default_text_search_config = 'english'; SET TimeZone = 'Asia/Tokyo'";
    session.run(new);
    for settings in [new, "RESET ALL"] {
        let mut other = database.session();
        other.run(settings);
        for (name, query, setting) in queries {
            let refresh = format!("SELECT pgstream.refresh_stream_table('{name}')");
            if !setting.is_empty() && settings == new {
                let error = other.error(&refresh);
                assert_eq!(error.code, "22023", "{error}");
                assert!(error.message.contains(setting), "{name}: {error}");
                let verify = format!("SELECT pgstream.verify_stream_table('{name}')");
                assert_eq!(other.error(&verify).code, "22023", "{name}");
                other.run(&format!("SELECT pgstream.repair_stream_table('{name}')"));
                let notices = other.take_notices();
                assert!(notices.iter().any(|it| it.contains(setting)), "{name}: {notices:?}");
            } else {
                other.run(&refresh);
            }
            let wrong = pgstream_tests::difference(&mut session, name, query, Comparison::Text)
                .expect("comparable");
            assert!(wrong.is_none(), "{name}: {}", wrong.expect("it is there"));
        }
        session.run("UPDATE t SET body = 'the cats' WHERE id = 1");
    }
}

/// A limit by which PostgreSQL answers with some of the rows.
#[test]
fn a_refresh_finds_all_that_an_index_has() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int, a int[]); CREATE INDEX ON t USING gin (a); CREATE TABLE d (k int[])");
    session.run("INSERT INTO t SELECT i, ARRAY[1] FROM generate_series(1, 20000) AS i");
    session.run("VACUUM ANALYZE t");
    session.run("SELECT pgstream.create_stream_table('st', 'SELECT id FROM t WHERE a @> ARRAY[1]', '1d', 'FULL')");
    session.run("SET gin_fuzzy_search_limit = 10; SET enable_seqscan = off");
    session.refresh("st");
    assert_eq!(session.value("SELECT count(*) FROM st"), "20000");
}

#[test]
fn how_a_session_writes_names_and_values_changes_nothing() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE t (id int PRIMARY KEY, g text, v int); INSERT INTO t VALUES (1, 'a', 1)",
    );
    let watched = Watched::create(
        &mut session,
        "st",
        "SELECT g, sum(v) AS s, max(v) AS m FROM t GROUP BY g",
        Comparison::Text,
    );
    for (number, settings) in [
        "SET quote_all_identifiers = on",
        "SET standard_conforming_strings = off; SET escape_string_warning = off",
        "RESET quote_all_identifiers",
        "SET DateStyle = 'SQL, DMY'; SET IntervalStyle = 'iso_8601'; SET extra_float_digits = -5",
        "RESET ALL",
    ]
    .into_iter()
    .enumerate()
    {
        let mut other = database.session();
        for session in [&mut session, &mut other] {
            session.run(settings);
            session.run(&format!("INSERT INTO t SELECT max(id) + 1, 'b', {number} FROM t"));
            // It fails unless the refresh is differential.
            watched.refresh_and_compare(session, settings);
        }
    }
}

/// Each session numbers the types of its anonymous rows in its own way.
#[test]
fn a_full_refresh_finds_what_another_session_has_written() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')");
    session.run("SELECT pgstream.create_stream_table('st', 'SELECT id, v FROM t', '1d', 'FULL')");
    let first = "SELECT __pgs_row_id, xmin FROM st WHERE id = 1";
    let before = session.value(first);
    let mut other = database.session();
    other.run("SELECT row(1, 2, 3), row('a'::text, 1), row(1::numeric)");
    let identity = "SELECT pgstream.row_id(row(1, 'a'::text)::record)";
    assert_eq!(other.value(identity), database.session().value(identity));
    other.run("INSERT INTO t VALUES (3, 'c')");
    other.refresh("st");
    assert_eq!(session.value(first), before);
    let written = "SELECT rows_inserted, rows_deleted FROM pgstream.pgs_refresh_history ORDER BY refresh_id DESC LIMIT 1";
    assert_eq!(session.value(written), "1|0");
}
