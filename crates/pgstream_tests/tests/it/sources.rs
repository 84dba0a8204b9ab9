//! Kinds of sources: keys, partitions, inheritance, generated columns, names, types, owners.

use pgstream_tests::{Comparison, Database, Scenario, Watched, check, check_unless_refused};

#[test]
fn a_table_without_a_key_keeps_duplicates_apart() {
    check(Scenario {
        tables: "CREATE TABLE t (a int, b text); INSERT INTO t VALUES (1, 'x'), (1, 'x'), (1, 'x'), (NULL, NULL), (NULL, NULL)",
        query: "SELECT a, b FROM t",
        changes: &[
            "DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE a = 1)",
            "INSERT INTO t VALUES (1, 'x'), (NULL, NULL)",
            "UPDATE t SET b = 'y' WHERE ctid = (SELECT min(ctid) FROM t WHERE a = 1)",
            "UPDATE t SET a = 1, b = 'x' WHERE a IS NULL",
            "DELETE FROM t WHERE b = 'x'",
        ],
    });
}

#[test]
fn a_table_with_a_unique_key_that_may_be_null() {
    check(Scenario {
        tables: "CREATE TABLE t (a int UNIQUE, b text); INSERT INTO t VALUES (1, 'x'), (2, 'y'), (NULL, 'z'), (NULL, 'z')",
        query: "SELECT a, b FROM t",
        changes: &[
            "UPDATE t SET b = 'zz' WHERE a IS NULL",
            "UPDATE t SET a = 3 WHERE ctid = (SELECT min(ctid) FROM t WHERE a IS NULL)",
            "UPDATE t SET a = NULL",
            "DELETE FROM t WHERE b = 'zz'",
        ],
    });
}

#[test]
fn a_key_of_several_columns_of_several_types() {
    check(Scenario {
        tables: "CREATE TABLE t (a text, b date, c uuid, v int, PRIMARY KEY (b, c, a)); INSERT INTO t SELECT 'k' || i % 2, '2020-01-01'::date + i, md5(i::text)::uuid, i FROM generate_series(1, 6) i",
        query: "SELECT v, a, b, c FROM t",
        changes: &[
            "UPDATE t SET b = b + 1",
            "UPDATE t SET v = -v WHERE a = 'k1'",
            "DELETE FROM t WHERE v < 0; INSERT INTO t VALUES ('n', '2000-01-01', md5('n')::uuid, 0)",
        ],
    });
}

#[test]
fn keys_swap_in_one_statement() {
    check(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 5) i",
        query: "SELECT id, v FROM t",
        changes: &[
            "UPDATE t SET id = 6 - id",
            "UPDATE t SET id = id + 1",
            "UPDATE t SET id = 7 - id, v = v || '!' WHERE id NOT IN (3, 4)",
        ],
    });
}

const PARTITIONED: &str = "
    CREATE TABLE p (id int, region text, v int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE p_eu PARTITION OF p FOR VALUES IN ('eu');
    CREATE TABLE p_us PARTITION OF p FOR VALUES IN ('us') PARTITION BY RANGE (id);
    CREATE TABLE p_us_low PARTITION OF p_us FOR VALUES FROM (0) TO (100);
    CREATE TABLE p_us_high (v int, region text NOT NULL, id int NOT NULL);
    ALTER TABLE p_us ATTACH PARTITION p_us_high FOR VALUES FROM (100) TO (1000);
    CREATE TABLE p_rest PARTITION OF p DEFAULT;
    INSERT INTO p SELECT i, (ARRAY['eu', 'us', 'as'])[i % 3 + 1], i FROM generate_series(1, 12) i";

const PARTITIONED_CHANGES: &[&str] = &[
    "INSERT INTO p VALUES (50, 'us', 50), (155, 'us', 155), (51, 'eu', 51), (52, 'xx', 52)",
    "UPDATE p SET region = 'us' WHERE id = 51", // moves to another partition
    "INSERT INTO p_eu VALUES (60, 'eu', 60); INSERT INTO p_us VALUES (61, 'us', 61), (161, 'us', 161)", // directly
    "UPDATE p_us_high SET v = v + 1; UPDATE p_us SET id = id + 100 WHERE id = 50; DELETE FROM p_rest WHERE id = 52",
    "DELETE FROM p_us_low; UPDATE p SET v = -v",
    r"COPY p_us_high (id, region, v) FROM PROGRAM 'printf ''170\tus\t1\n''' ",
    "MERGE INTO p USING (VALUES (60, 'eu'), (999, 'us')) s (id, region) ON p.id = s.id AND p.region = s.region
     WHEN MATCHED THEN UPDATE SET v = 0 WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.region, 7)",
    "INSERT INTO p VALUES (60, 'eu', 1), (400, 'eu', 1) ON CONFLICT (id, region) DO UPDATE SET v = 1000",
];

#[test]
fn a_partitioned_table() {
    check(Scenario {
        tables: PARTITIONED,
        query: "SELECT id, region, v FROM p",
        changes: PARTITIONED_CHANGES,
    });
}

#[test]
fn an_aggregate_over_a_partitioned_table() {
    check(Scenario {
        tables: PARTITIONED,
        query: "SELECT region, count(*) AS n, sum(v) AS s, max(v) AS m FROM p GROUP BY region",
        changes: PARTITIONED_CHANGES,
    });
}

#[test]
fn a_partition_alone_is_a_source() {
    check_unless_refused(Scenario {
        tables: PARTITIONED,
        query: "SELECT id, v FROM p_us",
        changes: PARTITIONED_CHANGES,
    });
}

#[test]
fn a_partition_is_truncated() {
    check(Scenario {
        tables: PARTITIONED,
        query: "SELECT region, count(*) AS n FROM p GROUP BY region",
        changes: &[
            "TRUNCATE p_us_low",
            "INSERT INTO p VALUES (1, 'us', 1)",
            "TRUNCATE p",
            "INSERT INTO p VALUES (2, 'eu', 1)",
        ],
    });
}

#[test]
fn an_inheritance_parent() {
    check_unless_refused(Scenario {
        tables: "CREATE TABLE parent (id int, v text); CREATE TABLE child (extra int) INHERITS (parent); INSERT INTO parent VALUES (1, 'p'); INSERT INTO child VALUES (2, 'c', 0)",
        query: "SELECT id, v FROM parent",
        changes: &[
            "INSERT INTO child VALUES (3, 'c3', 1); INSERT INTO parent VALUES (4, 'p4')",
            "UPDATE parent SET v = v || '!'",
            "UPDATE child SET extra = 9, v = 'direct'",
            "DELETE FROM child WHERE id = 2",
            "DELETE FROM parent",
        ],
    });
}

#[test]
fn only_excludes_the_children() {
    check_unless_refused(Scenario {
        tables: "CREATE TABLE parent (id int, v text); CREATE TABLE child () INHERITS (parent); INSERT INTO parent VALUES (1, 'p'); INSERT INTO child VALUES (2, 'c')",
        query: "SELECT id, v FROM ONLY parent",
        changes: &[
            "INSERT INTO child VALUES (3, 'c3'); INSERT INTO parent VALUES (4, 'p4')",
            "UPDATE parent SET v = v || '!'",
            "DELETE FROM child",
            "DELETE FROM parent",
        ],
    });
}

#[test]
fn generated_and_identity_columns() {
    check(Scenario {
        tables: "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) STORED, c text DEFAULT 'dflt');
                 INSERT INTO t (a) VALUES (1), (2)",
        query: "SELECT id, b, c FROM t WHERE b <> 10",
        changes: &["INSERT INTO t (a) VALUES (3), (5)", "UPDATE t SET a = a + 2", "UPDATE t SET a = 5 WHERE id = 1", "DELETE FROM t WHERE b > 8"],
    });
}

#[test]
fn virtual_generated_columns() {
    check(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) VIRTUAL); INSERT INTO t (id, a) VALUES (1, 1), (2, 2)",
        query: "SELECT id, b FROM t WHERE b <> 10",
        changes: &[
            "INSERT INTO t (id, a) VALUES (3, 3), (5, 5)",
            "UPDATE t SET a = a + 2",
            "DELETE FROM t WHERE b > 8",
        ],
    });
}

#[test]
fn dropped_columns_leave_holes() {
    check(Scenario {
        tables: "CREATE TABLE t (gone1 int, id int, gone2 text, v text, gone3 int, PRIMARY KEY (id)); ALTER TABLE t DROP gone1, DROP gone2, DROP gone3;
                 ALTER TABLE t ADD w int DEFAULT 7; INSERT INTO t VALUES (1, 'a', 1)",
        query: "SELECT * FROM t",
        changes: &["INSERT INTO t VALUES (2, 'b')", "UPDATE t SET w = 8", "DELETE FROM t WHERE id = 1"],
    });
}

#[test]
fn columns_added_later_have_their_default_in_old_rows() {
    check(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2); ALTER TABLE t ADD v text DEFAULT 'missing value'",
        query: "SELECT id, v FROM t",
        changes: &["DELETE FROM t WHERE id = 1", "UPDATE t SET id = 3"],
    });
}

#[test]
fn quoted_mixed_case_and_non_ascii_names() {
    check(Scenario {
        tables: r#"CREATE SCHEMA "My Schema"; CREATE TABLE "My Schema"."Straße ""x"" $1" ("Id" int PRIMARY KEY, "select" text, "größe, %s" int, "a.b" int, "it's" text);
                   INSERT INTO "My Schema"."Straße ""x"" $1" VALUES (1, 'a', 1, 1, 'x'), (2, 'b', 2, 2, 'y')"#,
        query: r#"SELECT "Id", "select", sum("größe, %s") AS "Σ ""total""", max("a.b") AS "A.B", min("it's") AS "it's" FROM "My Schema"."Straße ""x"" $1" GROUP BY "Id", "select""#,
        changes: &[
            r#"INSERT INTO "My Schema"."Straße ""x"" $1" VALUES (3, 'c', 3, 3, 'z')"#,
            r#"UPDATE "My Schema"."Straße ""x"" $1" SET "größe, %s" = 10"#,
            r#"DELETE FROM "My Schema"."Straße ""x"" $1" WHERE "Id" = 1"#,
        ],
    });
}

#[test]
fn a_quoted_stream_table_name_in_another_schema() {
    let database = Database::new();
    let mut session = database.session();
    session.run(r#"CREATE SCHEMA "Odd ""one"""; CREATE TABLE t (id int PRIMARY KEY, g int)"#);
    let name = r#""Odd ""one"""."My Stream.Table""#;
    let watched = Watched::create(
        &mut session,
        name,
        "SELECT g, count(*) AS \"N\" FROM t GROUP BY g",
        Comparison::Text,
    );
    session.run("INSERT INTO t VALUES (1, 1), (2, 1)");
    watched.refresh_and_compare(&mut session, "insert");
    assert_eq!(
        session.value("SELECT name FROM pgstream.pgs_status()"),
        "Odd \"one\".My Stream.Table"
    );
    session.run(&format!("SELECT pgstream.drop_stream_table('{name}')"));
}

#[test]
fn every_kind_of_type_is_captured() {
    check(Scenario {
        tables: "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN positive AS int CHECK (value > 0);
                 CREATE TABLE t (id int PRIMARY KEY, i2 int2, i8 int8, r real, f float8, n numeric, n2 numeric(12,3), m money, c char(5), vc varchar(7), tx text, na name,
                   by bytea, b bool, d date, ti time, tz timetz, ts timestamp(2), tstz timestamptz, iv interval, u uuid, js json, jb jsonb,
                   ia int[], ta text[][], p point, bx box, ci cidr, ine inet, mc macaddr, bi bit(3), vb varbit, ir int4range, mr int4multirange, e mood, co pair, dom positive,
                   coa pair[], tsv tsvector, lsn pg_lsn, o oid, \"char\" \"char\");
                 INSERT INTO t SELECT i, i, i * 1000000000::int8, i / 3.0, i / 7.0, 1.50, i * 1.1, i, 'c' || i, 'v' || i, repeat('t', i), 'n' || i,
                   decode('00ff', 'hex'), i % 2 = 0, '2020-02-28'::date + i, '10:00', '10:00+02', '2020-01-01 10:00:00.129', '2020-01-01 10:00:00+03', '1 mon 2 days', md5(i::text)::uuid,
                   '{\"b\": 1,  \"a\": 1}', '{\"b\": 1,  \"a\": [1.0, null]}', ARRAY[i, NULL], '{{a,b},{c,NULL}}', point(i, 2), box(point(0,0), point(i,i)), '10.0.0.0/8',
                   '10.0.0.1/8', '08:00:2b:01:02:03', B'101', B'1', int4range(i, 10), '{[1,3),[5,9)}', 'ok', ROW(i, 'p')::pair, i, ARRAY[ROW(1, NULL)::pair], 'a b', '0/16', i, 'x'
                 FROM generate_series(1, 4) i",
        query: "SELECT * FROM t",
        changes: &[
            "INSERT INTO t (id) VALUES (100)",
            "UPDATE t SET i2 = -1, f = 'NaN', r = '-Infinity', n = 1.500, c = '', vc = NULL, by = '', js = '{\"a\":1}', jb = 'null', ia = '{}', co = NULL, e = 'happy' WHERE id = 2",
            "UPDATE t SET js = '{\"b\": 1, \"a\": 1}' WHERE id = 3", // json has no =
            "UPDATE t SET n = 1.5, f = '-0' WHERE id = 1",
            "UPDATE t SET id = id + 1000",
            "DELETE FROM t WHERE id IN (1001, 1100); INSERT INTO t (id, p, co) VALUES (1, '(1,1)', ROW(NULL, NULL))",
        ],
    });
}

#[test]
fn a_value_that_only_looks_different_is_a_change() {
    check(Scenario {
        tables: "CREATE TABLE t (id int PRIMARY KEY, n numeric, f float8, i interval); INSERT INTO t VALUES (1, 1.0, 0, '1 day')",
        query: "SELECT n, f, i FROM t",
        changes: &["UPDATE t SET n = 1.00", "UPDATE t SET f = '-0'", "UPDATE t SET i = '24 hours'"],
    });
}

#[test]
fn the_storage_has_the_querys_types_and_collations() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t (a numeric(10,2), b varchar(7), c text COLLATE \"C\", d timestamp(3), e int[], f bit(5))");
    session.create(
        "st",
        "SELECT a, b, c, d, e, f, a + 1 AS g, b || 'x' AS h, NULL AS i, 'const' AS j FROM t",
    );
    session.run("CREATE VIEW v AS SELECT a, b, c, d, e, f, a + 1 AS g, b || 'x' AS h, NULL AS i, 'const' AS j FROM t");
    let columns = |relation: &str| {
        format!(
            "SELECT attname, format_type(atttypid, atttypmod), attcollation FROM pg_attribute
             WHERE attrelid = '{relation}'::regclass AND attnum > 0 AND attname !~ '^__pgs_' ORDER BY attnum"
        )
    };
    assert_eq!(session.rows(&columns("st")), session.rows(&columns("v")));
}

#[test]
fn an_ordinary_user_owns_and_refreshes() {
    let database = Database::new();
    let mut session = database.session();
    let (owner, writer) =
        (format!("owner_{}", database.name()), format!("writer_{}", database.name()));
    session.run(&format!(
        "CREATE ROLE {owner}; CREATE ROLE {writer}; CREATE TABLE t (id int PRIMARY KEY, g int, v int); INSERT INTO t VALUES (1, 1, 1);
         GRANT SELECT ON t TO {owner}; GRANT INSERT, UPDATE, DELETE, SELECT, TRUNCATE ON t TO {writer};
         CREATE SCHEMA own AUTHORIZATION {owner}"
    ));
    let query = "SELECT g, sum(v) AS s FROM public.t GROUP BY g";
    session.run(&format!("SET ROLE {owner}; SET search_path = own"));
    let watched = Watched::create(&mut session, "st", query, Comparison::Text);
    session.run(&format!("RESET ROLE; SET ROLE {writer}"));
    session.run("INSERT INTO public.t VALUES (2, 1, 5); UPDATE public.t SET v = v + 1; DELETE FROM public.t WHERE id = 1");
    assert_eq!(session.error("SELECT pgstream.refresh_stream_table('own.st')").code, "42501");
    assert_eq!(session.error("SELECT pgstream.drop_stream_table('own.st')").code, "42501");
    session.run(&format!("RESET ROLE; SET ROLE {owner}"));
    watched.refresh_and_compare(&mut session, "changes by a writer");
    session.run("SELECT pgstream.drop_stream_table('st')");
    session.run(&format!(
        "RESET ROLE; DROP TABLE public.t; DROP SCHEMA own CASCADE; DROP OWNED BY {owner}; DROP OWNED BY {writer}; DROP ROLE {owner}, {writer}"
    ));
}

#[test]
fn a_user_without_select_on_the_source_cannot_create() {
    let database = Database::new();
    let mut session = database.session();
    let role = format!("nobody_{}", database.name());
    session.run(&format!("CREATE TABLE t (id int); CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role}; SET ROLE {role}"));
    assert_eq!(session.try_create("st", "SELECT id FROM t").unwrap_err().code, "42501");
    session.run(&format!("RESET ROLE; REVOKE CREATE ON SCHEMA public FROM {role}; DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn a_hostile_search_path_does_not_change_the_meaning() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1);
         CREATE SCHEMA evil; CREATE FUNCTION evil.minus(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 666';
         CREATE OPERATOR evil.+ (FUNCTION = evil.minus, LEFTARG = int, RIGHTARG = int);
         CREATE FUNCTION evil.sum_step(bigint, int) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 666::bigint';
         CREATE AGGREGATE evil.sum(int) (SFUNC = evil.sum_step, STYPE = bigint)",
    );
    let watched = Watched::create(
        &mut session,
        "st",
        "SELECT id, sum(v + 1) AS s FROM public.t GROUP BY id",
        Comparison::Text,
    );
    session.run("SET search_path = evil, pg_catalog, public");
    session.run("INSERT INTO public.t VALUES (2, 2)");
    session.refresh("public.st");
    session.run("RESET search_path");
    watched.compare(&mut session, "refresh with a hostile search_path");
}
