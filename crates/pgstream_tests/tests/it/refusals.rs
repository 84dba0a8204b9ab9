//! What cannot be maintained is refused when it is created, naming the construct.

use pgstream_tests::Database;

const TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, g int, v int); CREATE TABLE u (id int PRIMARY KEY, t int);
    CREATE MATERIALIZED VIEW m AS SELECT * FROM t;
    CREATE FUNCTION vol(int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT $1';
    CREATE FUNCTION next(bigint, int) RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT $1 + $2';
    CREATE FUNCTION plus(int, y float8 DEFAULT random()) RETURNS float8 LANGUAGE sql IMMUTABLE AS 'SELECT $1 + $2';
    CREATE AGGREGATE total (int) (SFUNC = next, STYPE = bigint);
    CREATE FUNCTION stab(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1';
    CREATE EXTENSION file_fdw; CREATE SERVER s FOREIGN DATA WRAPPER file_fdw; CREATE FOREIGN TABLE f (id int) SERVER s OPTIONS (filename '/dev/null')";

#[test]
fn refused_in_differential_mode_with_the_construct_named() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    for (query, word) in [
        ("SELECT id FROM t LIMIT 3", "LIMIT"),
        ("SELECT id FROM t OFFSET 3", "OFFSET"),
        ("SELECT id FROM t FOR UPDATE", "FOR UPDATE"),
        ("SELECT id FROM t FOR SHARE", "FOR SHARE"),
        ("SELECT id FROM t TABLESAMPLE SYSTEM (10)", "TABLESAMPLE"),
        ("SELECT id FROM m", "materialized view"),
        ("SELECT id FROM f", "foreign table"),
        ("SELECT relname FROM pg_class", "system catalog"),
        ("SELECT pgs_name, status FROM pgstream.pgs_stream_tables", "pg_stream's own table"),
        (
            "SELECT id, (SELECT max(action) FROM pgstream.pgs_refresh_history WHERE pgs_id >= t.id OFFSET t.id) AS a FROM t",
            "pg_stream's own table",
        ),
        ("SELECT id, random() AS r FROM t", "volatile"),
        ("SELECT id FROM t WHERE vol(v) > 1", "volatile"),
        ("SELECT g, sum(vol(v)) AS s FROM t GROUP BY g", "volatile"),
        ("SELECT g, total(v) AS s FROM t GROUP BY g", "volatile"),
        ("SELECT id, total(v) OVER (ORDER BY id) AS s FROM t", "volatile"),
        ("SELECT id, plus(v) AS s FROM t", "volatile"),
        ("SELECT 1 AS one", "table"),
    ] {
        let error = session.try_create("st", query).expect_err(query);
        assert_eq!(error.code, "0A000", "{query}: {error}");
        let text = error.to_string().to_lowercase();
        assert!(text.contains(&word.to_lowercase()), "{query}: {error}");
    }
    let left = session.value("SELECT count(*) FROM pg_class WHERE relname = 'st'");
    assert_eq!(left, "0");
}

/// The text that PostgreSQL prints for them has other names of fields.
#[test]
fn rows_that_cannot_be_printed() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE a (id int PRIMARY KEY, v int, t text); CREATE TABLE b (id int PRIMARY KEY, v int)");
    for query in [
        "SELECT to_jsonb(j) AS z FROM (a JOIN b USING (id)) AS j",
        "SELECT id, ARRAY(SELECT to_jsonb(j) FROM (SELECT) AS k) AS z FROM (SELECT a.*, b.v FROM a, b) AS j",
        "WITH x AS (SELECT id, v AS id FROM a) SELECT to_jsonb(x) AS z FROM x",
        "SELECT to_jsonb(u) AS z FROM a LEFT JOIN b USING (id) AS u",
        "SELECT row_to_json(x)::text AS z FROM a, unnest(ARRAY[a.v, 2], ARRAY[3]) AS x",
        "SELECT to_jsonb(x) AS z FROM a, (VALUES (1, 2)) AS x (k, k)",
        "SELECT max(row_to_json(j)::text) AS z FROM (a JOIN b ON a.id = b.id) AS j (c, d, e, f, g)",
    ] {
        for mode in ["DIFFERENTIAL", "FULL"] {
            let sql = format!(
                "SELECT pgstream.create_stream_table('st', $q${query}$q$, refresh_mode => '{mode}')"
            );
            let error = session.try_run(&sql).expect_err(query);
            assert_eq!(error.code, "0A000", "{query}: {error}");
            assert!(error.message.contains("as a whole"), "{query}: {error}");
        }
    }
    session.create("st", "SELECT to_jsonb(j) AS z, to_jsonb(a) AS a FROM (SELECT b.id, b.v + 1 AS w FROM b) AS j JOIN a USING (id)");
}

/// VACUUM FULL changes them, and so does an update of columns that nobody reads.
#[test]
fn system_columns_but_tableoid() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    for column in ["ctid", "xmin", "xmax", "cmin", "cmax"] {
        for query in [
            format!("SELECT id, t.{column}::text AS c FROM t"),
            format!(
                "SELECT id FROM t WHERE EXISTS (SELECT FROM u WHERE u.{column}::text <> t.v::text)"
            ),
            format!(
                "SELECT id FROM u WHERE (SELECT count({column}) FROM t) > 0 OR t IN (SELECT tableoid::int FROM t)"
            ),
        ] {
            let error = session.try_create("st", &query).expect_err(&query);
            assert_eq!(error.code, "0A000", "{query}: {error}");
            let words = format!("the system column {column}");
            assert!(error.message.contains(&words), "{query}: {error}");
            session.run(&format!(
                "SELECT pgstream.create_stream_table('st', $${query}$$, '1d', 'FULL'); SELECT pgstream.drop_stream_table('st')"
            ));
        }
    }
}

/// Its type has no name, as it is without the hidden columns.
#[test]
fn a_row_of_a_stream_table_as_a_column() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.create("s", "SELECT id, g FROM t");
    for query in ["SELECT s FROM s", "SELECT s AS x FROM (SELECT id FROM t) s"] {
        let error = session.try_create("st", query).expect_err(query);
        assert_eq!(error.code, "0A000", "{query}: {error}");
        let text = error.to_string();
        assert!(text.contains("to_jsonb(s)"), "{text}");
    }
    session.create("j", "SELECT to_jsonb(s) AS j FROM s");
}

#[test]
fn refused_in_both_modes() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    for query in [
        "SELECT id FROM t LIMIT 3",
        "SELECT id FROM t FOR UPDATE",
        "SELECT id FROM t TABLESAMPLE SYSTEM (10)",
    ] {
        let error = session
            .error(&format!("SELECT pgstream.create_stream_table('st', '{query}', '1d', 'FULL')"));
        assert_eq!(error.code, "0A000", "{query}: {error}");
    }
}

#[test]
fn rows_compared_by_operators_of_different_schemas() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE EXTENSION citext; CREATE TABLE t (id int, c citext)");
    for query in [
        "SELECT (id, c) IN (SELECT id, c FROM t) AS b FROM t",
        "SELECT id FROM t WHERE (id, c) <> (SELECT id, c FROM t)",
        "SELECT id FROM t WHERE (c, id) < (SELECT c, id FROM t)",
    ] {
        for mode in ["DIFFERENTIAL", "FULL"] {
            let error = session.error(&format!(
                "SELECT pgstream.create_stream_table('st', '{query}', '1d', '{mode}')"
            ));
            assert_eq!(error.code, "0A000", "{query}: {error}");
            assert!(error.message.contains("a comparison of rows"), "{query}: {error}");
        }
    }
}

#[test]
fn only_a_single_select_defines_a_stream_table() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    for query in [
        "INSERT INTO t VALUES (1) RETURNING id",
        "SELECT id FROM t; SELECT id FROM t",
        "WITH x AS (DELETE FROM t RETURNING id) SELECT id FROM x",
        "SELECT id INTO other FROM t",
        "CREATE TABLE x (id int)",
        "",
        "VACUUM",
    ] {
        let error = session.try_create("st", query).expect_err(query);
        assert!(!error.code.starts_with("XX") && error.code != "08006", "{query}: {error}");
    }
    assert_eq!(
        session.value("SELECT count(*) FROM pg_class WHERE relname IN ('st', 'other', 'x')"),
        "0"
    );
}

/// Constructs of later issues: today they are exact or refused, never wrong.
#[test]
fn a_construct_is_refused_or_exact() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.run("INSERT INTO t SELECT i, i % 4, i FROM generate_series(1, 12) i; INSERT INTO u SELECT i, i % 7 FROM generate_series(1, 12) i");
    let queries = [
        "SELECT t.id, u.id AS u FROM t LEFT JOIN u ON u.t = t.id",
        "SELECT t.id, u.id AS u FROM t RIGHT JOIN u ON u.t = t.id",
        "SELECT t.id, u.id AS u FROM t FULL JOIN u ON u.t = t.id",
        "SELECT id FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.t = t.id)",
        "SELECT id FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.t = t.id)",
        "SELECT id FROM t WHERE id IN (SELECT t FROM u)",
        "SELECT id FROM t WHERE id NOT IN (SELECT t FROM u)",
        "SELECT id FROM t WHERE v > ALL (SELECT t FROM u)",
        "SELECT id, (SELECT count(*) FROM u WHERE u.t = t.id) AS n FROM t",
        "SELECT id FROM t WHERE v > (SELECT avg(v) FROM t)",
        "SELECT g FROM t UNION SELECT t FROM u",
        "SELECT g FROM t INTERSECT SELECT t FROM u",
        "SELECT g FROM t EXCEPT ALL SELECT t FROM u",
        "SELECT DISTINCT ON (g) g, v FROM t ORDER BY g, v DESC",
        "SELECT id, row_number() OVER (PARTITION BY g ORDER BY id) AS r FROM t",
        "SELECT id, sum(v) OVER (ORDER BY id) AS s FROM t",
        "SELECT g, id % 2 AS p, sum(v) AS s FROM t GROUP BY ROLLUP (g, id % 2)",
        "SELECT g, count(*) AS n FROM t GROUP BY GROUPING SETS ((g), ())",
        "SELECT g, count(*) AS n FROM t GROUP BY CUBE (g)",
        "SELECT t.id, x.n FROM t, LATERAL (SELECT count(*) AS n FROM u WHERE u.t = t.id) x",
        "SELECT t.id, x FROM t, generate_series(1, t.g) x",
        "SELECT id, generate_series(1, g) AS s FROM t",
        "WITH RECURSIVE r AS (SELECT id, g FROM t WHERE id < 3 UNION SELECT t.id, t.g FROM t JOIN r ON t.g = r.id) SELECT * FROM r",
        "SELECT id FROM (SELECT id FROM t ORDER BY id LIMIT 3) x",
        "SELECT t.ctid::text AS c, id FROM t",
        "SELECT tableoid::regclass AS c, id FROM t",
        "SELECT xmin::text AS x, id FROM t",
        "SELECT t AS whole FROM t",
        "SELECT id, current_user::text AS who FROM t",
        "SELECT id, v FROM t WHERE id = ANY (ARRAY[1, 2, 3]) AND (id, g) IN ((1, 1), (2, 2))",
        "SELECT x.a FROM (VALUES (1), (2)) x (a) JOIN t ON t.id = x.a",
        "SELECT count(*) AS n FROM (VALUES (1), (2)) x (a), t",
        "SELECT GROUPING(g) AS k, g, count(*) AS n FROM t GROUP BY g",
        "SELECT t.id, u.id AS u FROM t LEFT JOIN u ON u.t = t.id WHERE u.id > 3",
    ];
    let mut accepted = Vec::new();
    for (number, query) in queries.iter().enumerate() {
        match session.try_create(&format!("st{number}"), query) {
            Ok(()) => accepted.push((number, query)),
            Err(error) => assert_eq!(error.code, "0A000", "{query}: {error}"),
        }
    }
    for change in [
        "UPDATE t SET g = g + 1 WHERE id < 5; INSERT INTO u VALUES (100, 1), (101, NULL)",
        "DELETE FROM t WHERE id = 7; UPDATE u SET t = 3 WHERE t = 2",
        "UPDATE t SET v = 0 WHERE g = 2; DELETE FROM u WHERE id < 4",
        "DELETE FROM t; DELETE FROM u",
        "INSERT INTO t VALUES (1, NULL, 5), (2, 2, NULL)",
    ] {
        session.run(change);
        for (number, query) in &accepted {
            session.refresh(&format!("st{number}"));
            let difference = pgstream_tests::difference(
                &mut session,
                &format!("st{number}"),
                query,
                pgstream_tests::Comparison::Text,
            );
            if let Some(difference) = difference.expect("comparable") {
                panic!("{query}\nafter {change}\n{difference}");
            }
        }
    }
}

#[test]
fn a_stable_function_is_accepted_with_a_warning() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.take_notices();
    session.create("st", "SELECT id, stab(v) AS v FROM t");
    let notices = session.take_notices();
    assert!(
        notices.iter().any(|it| it.starts_with("WARNING") && it.to_lowercase().contains("stable")),
        "{notices:?}"
    );
}

#[test]
fn errors_of_the_users_sql_keep_their_code() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    for (query, code) in [
        ("SELECT id FROM t WHERE", "42601"),
        ("SELECT nothing FROM t", "42703"),
        ("SELECT id FROM nowhere", "42P01"),
        ("SELECT id FROM t GROUP BY g", "42803"),
        ("SELECT nofunc(id) FROM t", "42883"),
        ("SELECT id / 0 AS x FROM t WHERE id = 'a'", "22P02"),
    ] {
        assert_eq!(session.try_create("st", query).expect_err(query).code, code, "{query}");
    }
}

#[test]
fn functions_and_types_that_go_with_the_session() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.run(
        "CREATE FUNCTION pg_temp.twice(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 2 * $1';
         CREATE DOMAIN pg_temp.natural_number AS int CHECK (VALUE >= 0);
         CREATE VIEW above AS SELECT id, pg_temp.twice(id) AS v FROM t",
    );
    for (query, object) in [
        ("SELECT id, pg_temp.twice(id) AS v FROM t", "temporary function"),
        ("SELECT id, v FROM above", "temporary function"),
        ("SELECT id::pg_temp.natural_number AS id FROM t", "temporary type"),
    ] {
        for mode in ["FULL", "DIFFERENTIAL"] {
            let create = format!(
                "SELECT pgstream.create_stream_table('st', $q${query}$q$, refresh_mode => '{mode}')"
            );
            let error = session.error(&create);
            assert_eq!(error.code, "0A000", "{query}");
            assert!(error.message.contains(object), "{error}");
            assert!(error.message.contains("one session only"), "{error}");
        }
    }
}
