//! Changes of a source's definition: the next refresh is right, or the change is refused, or the
//! refresh says why it cannot go on; never a wrong row.

use pgstream_tests::{Comparison, Database, Session, Sessions, Step, difference, orphans};

const TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, g int, v numeric, unused text); INSERT INTO t SELECT i, i % 3, i, 'u' FROM generate_series(1, 9) i;
    CREATE TABLE d (g int PRIMARY KEY, name text); INSERT INTO d VALUES (0, 'zero'), (1, 'one'), (2, 'two')";
const QUERY: &str =
    "SELECT d.name, sum(t.v) AS s, count(*) AS n FROM t JOIN d ON d.g = t.g GROUP BY d.name";

fn create() -> (Session, Database) {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.create("st", QUERY);
    (session, database)
}

/// The definition as PostgreSQL follows it through renames.
fn query_now(session: &mut Session) -> String {
    session.value(
        "SELECT replace(rtrim(pg_get_viewdef(c.oid), ';'), E'\\n', ' ') FROM pg_class c JOIN pgstream.pgs_stream_tables ON c.relname = 'query_' || pgs_id
         WHERE c.relnamespace = 'pgstream_state'::regnamespace AND pgs_name = 'st'",
    )
}

#[track_caller]
fn compare(session: &mut Session, after: &str) {
    let query = query_now(session);
    compare_with(session, "st", &query, after);
    // With the types of the query.
    let types = |of: &str| {
        format!(
            "SELECT string_agg(format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute
             WHERE attrelid = {of} AND attnum > 0 AND NOT attisdropped AND attname NOT LIKE '\\_\\_pgs%'"
        )
    };
    let view = "(SELECT view_relid FROM pgstream.pgs_stream_tables WHERE pgs_name = 'st')";
    assert_eq!(
        session.value(&types("'st'::regclass")),
        session.value(&types(view)),
        "after {after}"
    );
}

#[track_caller]
fn compare_with(session: &mut Session, table: &str, query: &str, after: &str) {
    if let Some(difference) =
        difference(session, table, query, Comparison::Value).expect("comparable")
    {
        panic!("{query}\nafter {after}\n{difference}");
    }
    assert_eq!(orphans(session).expect("readable"), [""; 0], "after {after}");
}

/// Changes rows, then the definition, then rows again; refreshes in between or not.
#[track_caller]
fn survives(ddl: &str, change_after: &str) {
    survives_with(ddl, change_after, &["DIFFERENTIAL", "FULL", "NO_DATA", "REINITIALIZE"]);
}

/// And nothing is computed anew.
#[track_caller]
fn is_followed(ddl: &str, change_after: &str) {
    survives_with(ddl, change_after, &["DIFFERENTIAL"]);
}

#[track_caller]
fn survives_with(ddl: &str, change_after: &str, actions: &[&str]) {
    for refresh_before in [true, false] {
        let (mut session, _database) = create();
        session.run("UPDATE t SET v = v + 1 WHERE id < 5; INSERT INTO t VALUES (100, 1, 100, 'x')");
        if refresh_before {
            session.refresh("st");
        }
        // Undone, it is as if it had never been.
        if !ddl.starts_with("VACUUM") {
            session
                .run(&format!("BEGIN; SAVEPOINT s; {ddl}; {change_after}; ROLLBACK TO s; COMMIT"));
            session.refresh("st");
            compare(&mut session, &format!("undoing {ddl}"));
        }
        session.run(ddl);
        assert_eq!(orphans(&mut session).expect("readable"), [""; 0], "after {ddl}");
        session.run(change_after);
        session.refresh("st");
        compare(&mut session, ddl);
        session.run("DELETE FROM d WHERE name = 'two'");
        session.refresh("st");
        compare(&mut session, ddl);
        let history =
            "SELECT action FROM pgstream.pgs_refresh_history WHERE initiated_by = 'MANUAL'";
        for action in session.rows(history) {
            assert!(actions.contains(&action.as_str()), "after {ddl}: {action}");
        }
    }
}

/// The command is refused with this code, and everything goes on.
#[track_caller]
fn is_refused(ddl: &str, code: &str) {
    let (mut session, _database) = create();
    let error = session.error(ddl);
    assert_eq!(error.code, code, "{ddl}\n{error}");
    session.run("UPDATE t SET v = v + 1");
    session.refresh("st");
    compare(&mut session, ddl);
}

#[test]
fn a_column_is_added() {
    is_followed(
        "ALTER TABLE t ADD COLUMN w int DEFAULT 5",
        "INSERT INTO t VALUES (200, 2, 2, 'x', 7); UPDATE t SET v = 0 WHERE id = 1",
    );
}

#[test]
fn an_unused_column_is_dropped() {
    is_followed(
        "ALTER TABLE t DROP COLUMN unused",
        "INSERT INTO t VALUES (200, 2, 2); UPDATE t SET v = 0 WHERE id = 1",
    );
}

#[test]
fn a_used_column_is_renamed() {
    is_followed(
        "ALTER TABLE t RENAME COLUMN v TO amount",
        "INSERT INTO t VALUES (200, 2, 2); UPDATE t SET amount = 0 WHERE id = 1",
    );
}

#[test]
fn a_source_is_renamed_or_moved() {
    is_followed(
        "ALTER TABLE t RENAME TO t2",
        "INSERT INTO t2 VALUES (200, 2, 2); UPDATE t2 SET v = 0 WHERE id = 1",
    );
    is_followed(
        "CREATE SCHEMA s; ALTER TABLE t SET SCHEMA s",
        "INSERT INTO s.t VALUES (200, 2, 2); UPDATE s.t SET v = 0 WHERE id = 1",
    );
}

#[test]
fn a_used_columns_type_is_changed() {
    let rows = "INSERT INTO t VALUES (200, 2, 2); UPDATE t SET g = g + 1 WHERE id = 2";
    survives("ALTER TABLE t ALTER COLUMN v TYPE numeric(12,3)", rows);
    survives("ALTER TABLE t ALTER COLUMN v TYPE bigint", rows);
    survives("ALTER TABLE t ALTER COLUMN v TYPE float8", rows);
    survives("ALTER TABLE t ALTER COLUMN g TYPE bigint, ADD COLUMN w int", rows);
    survives("ALTER TABLE d ALTER COLUMN name TYPE varchar(20)", rows);
    survives("ALTER TABLE d ALTER COLUMN name TYPE text COLLATE \"C\"", rows);
    survives("ALTER TABLE d ALTER COLUMN g TYPE numeric USING g::numeric", rows);
    survives(
        "ALTER TABLE t ALTER COLUMN v TYPE int; ALTER TABLE t ALTER COLUMN v TYPE bigint",
        rows,
    );
}

#[test]
fn a_type_that_the_query_cannot_use_is_refused() {
    is_refused("ALTER TABLE t ALTER COLUMN v TYPE text", "42883");
    is_refused("ALTER TABLE d ALTER COLUMN g TYPE text", "42883");
    // Somebody else's command does not touch anything.
    is_refused("ALTER TABLE t ALTER COLUMN v TYPE no_such_type", "42704");
}

#[test]
fn a_type_changes_below_two_stream_tables_in_whatever_order_they_are_refreshed() {
    let types = ["numeric", "int", "text USING v::text", "numeric USING v::numeric", "int"];
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t (v int); INSERT INTO t VALUES (1), (2)");
    session.create("a", "SELECT v FROM t");
    session.create("b", "SELECT v, count(*) AS n FROM a GROUP BY v");
    for (ty, order) in types.iter().zip([["a", "b"], ["a", "a"], ["b", "a"]].iter().cycle()) {
        session.run(&format!("ALTER TABLE t ALTER COLUMN v TYPE {ty}"));
        session.run("INSERT INTO t SELECT v FROM t LIMIT 1");
        order.iter().for_each(|it| session.refresh(it));
        session.refresh("b");
        compare_with(&mut session, "a", "SELECT v FROM t", ty);
        compare_with(&mut session, "b", "SELECT v, count(*) AS n FROM t GROUP BY v", ty);
    }
}

#[test]
fn a_type_goes_with_the_columns_that_have_it() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TYPE pair AS (x int); CREATE TYPE mood AS ENUM ('a'); CREATE TYPE span AS RANGE (subtype = int);
         CREATE TABLE t (id int PRIMARY KEY, p pair, m mood, s span, ps pair[]);
         INSERT INTO t VALUES (1, '(1)', 'a', '[1,2)', '{(1)}')",
    );
    session.create("st", "SELECT id FROM t");
    session.create("other", "SELECT p::text, m::text, s::text, ps::text FROM t");
    session.run("DROP TYPE pair CASCADE; INSERT INTO t VALUES (2, 'a')");
    session.refresh("st");
    compare_with(&mut session, "st", "SELECT id FROM t", "DROP TYPE");
    session.run("DROP TYPE mood CASCADE; DROP TYPE span CASCADE; INSERT INTO t VALUES (3)");
    session.refresh("st");
    compare_with(&mut session, "st", "SELECT id FROM t", "DROP TYPE");
    // Nothing holds on to a type that a column has no longer.
    session.run("CREATE TYPE pair AS (x int); ALTER TABLE t ADD COLUMN p pair, ADD COLUMN q pair");
    session.create("both", "SELECT id, p, q FROM t");
    session.run("INSERT INTO t VALUES (4, '(4)', '(5)')");
    session.run("SELECT pgstream.drop_stream_table('both')");
    session
        .run("ALTER TABLE t DROP COLUMN p; ALTER TABLE t ALTER COLUMN q TYPE text; DROP TYPE pair");
    session.run("UPDATE t SET id = id + 10");
    session.refresh("st");
    compare_with(&mut session, "st", "SELECT id FROM t", "DROP COLUMN");
}

#[test]
fn a_type_changes_while_another_does() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE outer_table (a int, b int); INSERT INTO outer_table VALUES (1, 1);
         CREATE TABLE inner_table (z int); INSERT INTO inner_table VALUES (1);
         CREATE FUNCTION convert(int, ty text) RETURNS bigint LANGUAGE plpgsql AS $$BEGIN
           EXECUTE 'ALTER TABLE inner_table ALTER COLUMN z TYPE ' || ty; RETURN $1;
         EXCEPTION WHEN undefined_object THEN RETURN $1; END$$",
    );
    session.create("st", "SELECT a, b FROM outer_table");
    session.create("other", "SELECT z FROM inner_table");
    for ty in ["bigint", "no_such_type", "numeric"] {
        session.run(&format!(
            "ALTER TABLE outer_table ALTER COLUMN b TYPE bigint USING convert(b::int, '{ty}')"
        ));
        session.run(
            "INSERT INTO outer_table VALUES (2, 5000000000); INSERT INTO inner_table VALUES (2)",
        );
        session.refresh("st");
        session.refresh("other");
        compare_with(&mut session, "st", "SELECT a, b FROM outer_table", ty);
        compare_with(&mut session, "other", "SELECT z FROM inner_table", ty);
        session.run("DELETE FROM outer_table WHERE a = 2");
    }
}

#[test]
fn a_type_changes_with_the_type_that_a_table_is_of() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TYPE pair AS (a int, b text); CREATE TABLE typed OF pair; INSERT INTO typed VALUES (1, 'x')");
    session.create("st", "SELECT a, b FROM typed");
    session.run("ALTER TYPE pair ALTER ATTRIBUTE a TYPE bigint CASCADE; INSERT INTO typed VALUES (5000000000, 'y')");
    session.refresh("st");
    compare_with(&mut session, "st", "SELECT a, b FROM typed", "ALTER TYPE");
    session.run("ALTER TYPE pair RENAME ATTRIBUTE a TO c CASCADE; ALTER TYPE pair ADD ATTRIBUTE d int CASCADE; INSERT INTO typed VALUES (3, 'z')");
    session.refresh("st");
    compare_with(&mut session, "st", "SELECT c AS a, b FROM typed", "ALTER TYPE");
}

#[test]
fn a_type_changes_below_views_and_stream_tables() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.create("st", "SELECT id, g, v FROM t");
    session.create("totals", "SELECT g, sum(g) AS s, count(*) AS n FROM st GROUP BY g");
    session.run("SELECT pgstream.create_stream_table('copy', 'SELECT g + 1 AS g1 FROM totals', '1d', 'FULL')");
    session
        .run("ALTER TABLE t ALTER COLUMN g TYPE bigint; INSERT INTO t VALUES (50, 5000000000, 1)");
    for _ in 0..2 {
        for name in ["st", "totals", "copy"] {
            session.refresh(name);
        }
        compare_with(&mut session, "st", "SELECT id, g, v FROM t", "int to bigint");
        compare_with(
            &mut session,
            "totals",
            "SELECT g, sum(g) AS s, count(*) AS n FROM t GROUP BY g",
            "int to bigint",
        );
        compare_with(&mut session, "copy", "SELECT g + 1 AS g1 FROM totals", "int to bigint");
        session.run("DELETE FROM t WHERE id < 3");
    }
    // A view of a user's keeps PostgreSQL's rule.
    session.run("CREATE VIEW w AS SELECT g FROM st");
    assert_eq!(session.error("ALTER TABLE t ALTER COLUMN g TYPE numeric").code, "0A000");
    session.run("DELETE FROM t WHERE id = 3");
    session.refresh("st");
    compare_with(&mut session, "st", "SELECT id, g, v FROM t", "a refusal");
}

#[test]
fn keys_come_and_go() {
    survives(
        "ALTER TABLE t DROP CONSTRAINT t_pkey",
        "INSERT INTO t VALUES (1, 2, 2), (1, 2, 2); DELETE FROM t WHERE id = 2",
    );
    survives("ALTER TABLE d DROP CONSTRAINT d_pkey", "INSERT INTO d VALUES (1, 'one'), (1, 'uno')");
    survives(
        "ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (id, g)",
        "UPDATE t SET id = 1 WHERE id IN (2, 3)",
    );
}

#[test]
fn the_table_is_rewritten() {
    survives("VACUUM FULL t", "UPDATE t SET v = v + 1");
    survives("CLUSTER t USING t_pkey", "UPDATE t SET v = v + 1");
    survives("ALTER TABLE t ADD COLUMN r float8 DEFAULT random()", "UPDATE t SET v = v + 1");
}

#[test]
fn capture_cannot_be_switched_off() {
    let rows = "INSERT INTO t VALUES (200, 2, 2); UPDATE t SET v = 5 WHERE id = 1; DELETE FROM t WHERE id = 3";
    for ddl in [
        "ALTER TABLE t DISABLE TRIGGER USER",
        "ALTER TABLE t DISABLE TRIGGER ALL",
        "ALTER TABLE t ENABLE TRIGGER USER",
        "ALTER TABLE t ENABLE TRIGGER ALL",
        "DO $$ BEGIN EXECUTE (SELECT format('ALTER TABLE t DISABLE TRIGGER %I', tgname) FROM pg_trigger WHERE tgrelid = 't'::regclass AND tgname LIKE '%\\_upd'); END $$",
        "DO $$ BEGIN EXECUTE (SELECT format('ALTER TABLE t ENABLE REPLICA TRIGGER %I', tgname) FROM pg_trigger WHERE tgrelid = 't'::regclass AND tgname LIKE '%\\_del'); END $$",
        "DO $$ BEGIN EXECUTE (SELECT format('DROP TRIGGER %I ON t', tgname) FROM pg_trigger WHERE tgrelid = 't'::regclass AND tgname LIKE '%\\_upd'); END $$",
        "DO $$ BEGIN EXECUTE (SELECT format('ALTER TRIGGER %I ON t RENAME TO mine', tgname) FROM pg_trigger WHERE tgrelid = 't'::regclass AND tgname LIKE '%\\_upd'); END $$",
        "SET LOCAL session_replication_role = replica",
    ] {
        survives(ddl, rows);
    }
}

#[test]
fn a_buffer_cannot_be_dropped() {
    is_refused(
        "DO $$ BEGIN EXECUTE (SELECT 'DROP TABLE ' || buffer_relid::regclass FROM pgstream.pgs_change_tracking WHERE source_relid = 't'::regclass); END $$",
        "2BP01",
    );
}

#[test]
fn a_capture_trigger_cannot_be_replaced() {
    is_refused(
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         DO $$ BEGIN EXECUTE (SELECT format('CREATE OR REPLACE TRIGGER %I AFTER UPDATE ON t FOR EACH STATEMENT EXECUTE FUNCTION f()', tgname)
                              FROM pg_trigger WHERE tgrelid = 't'::regclass AND tgname LIKE '%\\_upd'); END $$",
        "42710",
    );
}

/// The apply worker of logical replication and the likes of it.
#[test]
fn truncation_and_rows_are_captured_in_the_replica_role() {
    survives(
        "SET session_replication_role = replica",
        "TRUNCATE t; INSERT INTO t VALUES (1, 1, 1)",
    );
    survives(
        "SET session_replication_role = replica; ALTER TABLE t DISABLE TRIGGER ALL",
        "DELETE FROM t WHERE g = 1",
    );
}

#[test]
fn other_changes_of_a_table_do_no_harm() {
    let rows = "INSERT INTO t VALUES (200, 2, 2); UPDATE t SET v = 5 WHERE id = 1; DELETE FROM t WHERE id = 3";
    for ddl in [
        "ALTER TABLE t ALTER COLUMN v SET NOT NULL",
        "ALTER TABLE t ALTER COLUMN g SET NOT NULL; ALTER TABLE t ALTER COLUMN g DROP NOT NULL",
        "ALTER TABLE t ADD UNIQUE (v, id)",
        "CREATE UNIQUE INDEX ON t (v, id)",
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "ALTER TABLE t ALTER COLUMN v SET DEFAULT 7",
        "ALTER TABLE t SET (fillfactor = 50)",
        "ALTER TABLE t ADD COLUMN w int GENERATED ALWAYS AS (g * 2) STORED",
        "ALTER TABLE t ADD COLUMN w int GENERATED BY DEFAULT AS IDENTITY",
        "ALTER TABLE t ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY",
        "CREATE RULE r AS ON INSERT TO t WHERE NEW.id = 200 DO ALSO INSERT INTO d VALUES (201, 'ruled'); ALTER TABLE t ENABLE ALWAYS RULE r",
        "ALTER TABLE t ADD CONSTRAINT c CHECK (g >= 0) NOT VALID",
        "ALTER TABLE t ADD CONSTRAINT f FOREIGN KEY (g) REFERENCES d ON DELETE CASCADE",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "CREATE INDEX ON t (g); CLUSTER t USING t_pkey",
        "TRUNCATE t",
        "TRUNCATE t, d CASCADE",
        "ALTER TABLE t SET UNLOGGED; ALTER TABLE t SET LOGGED",
        "CREATE TABLE child () INHERITS (t); INSERT INTO child VALUES (300, 1, 1)",
        "CREATE TABLE child (LIKE t); INSERT INTO child VALUES (300, 1, 1); ALTER TABLE child INHERIT t",
        "CREATE TABLE child (LIKE t); INSERT INTO child VALUES (300, 1, 1); ALTER TABLE child INHERIT t; ALTER TABLE child NO INHERIT t; INSERT INTO child VALUES (301, 1, 1)",
        "CREATE TABLE child () INHERITS (t); INSERT INTO child VALUES (300, 1, 1); DROP TABLE child",
        "CREATE TABLE parent (LIKE t); ALTER TABLE t INHERIT parent; UPDATE parent SET v = 9; DELETE FROM parent WHERE g = 2",
        "CREATE TABLE parent (LIKE t); ALTER TABLE t INHERIT parent; ALTER TABLE t NO INHERIT parent",
        "CREATE TABLE parent (LIKE t) PARTITION BY RANGE (id); ALTER TABLE parent ATTACH PARTITION t DEFAULT; UPDATE parent SET v = 9; DELETE FROM parent WHERE g = 2",
        "CREATE TABLE parent (LIKE t) PARTITION BY RANGE (id); ALTER TABLE parent ATTACH PARTITION t DEFAULT; ALTER TABLE parent DETACH PARTITION t",
    ] {
        survives(ddl, rows);
    }
}

#[test]
fn partitions_are_attached_and_detached() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE p (id int, v int) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
         CREATE TABLE p2 (id int, v int); INSERT INTO p2 VALUES (15, 15); INSERT INTO p VALUES (1, 1)",
    );
    let query = "SELECT id, v FROM p";
    session.create("st", query);
    for ddl in [
        "ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)",
        "INSERT INTO p2 VALUES (16, 16); INSERT INTO p VALUES (17, 17); UPDATE p SET id = id + 10 WHERE id = 1",
        "CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (20) TO (30)",
        "INSERT INTO p3 VALUES (25, 25); UPDATE p SET v = v + 1",
        "ALTER TABLE p DETACH PARTITION p2",
        "UPDATE p2 SET v = 0; INSERT INTO p VALUES (2, 2)",
        "DROP TABLE p3",
        "INSERT INTO p VALUES (3, 3)",
    ] {
        session.run(ddl);
        session.refresh("st");
        let difference =
            difference(&mut session, "st", query, Comparison::Text).expect("comparable");
        assert!(difference.is_none(), "after {ddl}: {}", difference.expect("some"));
    }
}

/// Commands within CREATE SCHEMA are told of at its end.
#[test]
fn tables_are_made_with_a_schema() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE n (a int); INSERT INTO n VALUES (1);
         CREATE TABLE p (a int) PARTITION BY RANGE (a); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1)",
    );
    session.create("of_n", "SELECT sum(a) AS s FROM n");
    session.create("of_p", "SELECT sum(a) AS s FROM p");
    for change in [
        "CREATE SCHEMA s CREATE TABLE c () INHERITS (public.n) CREATE TABLE p2 PARTITION OF public.p FOR VALUES FROM (10) TO (20)",
        "INSERT INTO s.c VALUES (5); INSERT INTO s.p2 VALUES (15); UPDATE n SET a = a + 1; UPDATE p SET a = a + 1",
        "CREATE SCHEMA s2 CREATE TABLE c () INHERITS (public.n) CREATE TABLE p2 PARTITION OF public.p FOR VALUES FROM (20) TO (30);
         INSERT INTO s2.c VALUES (6); INSERT INTO s2.p2 VALUES (26); UPDATE n SET a = a + 1; UPDATE p SET a = a + 1; DROP TABLE s2.c; ALTER TABLE p DETACH PARTITION s2.p2",
        "UPDATE n SET a = a + 1; UPDATE p SET a = a + 1",
    ] {
        session.run(change);
        for (name, table) in [("of_n", "n"), ("of_p", "p")] {
            session.refresh(name);
            let query = format!("SELECT sum(a) AS s FROM {table}");
            compare_with(&mut session, name, &query, change);
        }
    }
}

/// `before`, a stream table over `query`, `change`, and then rows: the stream table follows, after
/// a rebuild that has a reason.
#[track_caller]
fn is_rebuilt(before: &str, query: &str, change: &str) {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int, s text); INSERT INTO t VALUES (1, 1, 'a'), (2, 2, 'b')");
    session.run(before);
    session.create("st", query);
    let mut other = database.session();
    other.refresh("st"); // and caches what it knows
    session.run(&format!("BEGIN; {change}; ROLLBACK"));
    assert_eq!(
        session.value("SELECT needs_reinit FROM pgstream.pgs_stream_tables"),
        "f",
        "{change}"
    );
    session.run("SET pg_stream.block_source_ddl = on");
    assert_eq!(session.error(change).code, "2BP01", "{change}");
    session.run("RESET pg_stream.block_source_ddl; LISTEN pg_stream_alert");
    session.run(change);
    assert_eq!(
        session.value(
            "SELECT needs_reinit, reinit_reason IS NOT NULL FROM pgstream.pgs_stream_tables"
        ),
        "t|t",
        "{change}"
    );
    let alerts = session.notifications("pg_stream_alert");
    assert!(alerts.iter().any(|it| it.contains("reinitialize_needed")), "{alerts:?}");
    session.run("INSERT INTO t VALUES (3, 3, 'c')");
    other.refresh("st");
    compare_with(&mut session, "st", query, change);
    assert_eq!(
        session.value("SELECT needs_reinit, reinit_reason IS NULL FROM pgstream.pgs_stream_tables"),
        "f|t"
    );
    let last = session.value("SELECT action FROM pgstream.get_refresh_history('st', 1)");
    assert_eq!(last, "REINITIALIZE", "{change}");
    session.run("DELETE FROM t WHERE id = 1");
    other.refresh("st");
    compare_with(&mut session, "st", query, change);
}

#[test]
fn what_a_query_uses_is_replaced() {
    is_rebuilt(
        "CREATE VIEW w AS SELECT id, v FROM t WHERE v > 1",
        "SELECT id, v FROM w",
        "CREATE OR REPLACE VIEW w AS SELECT id, v FROM t WHERE v > 0",
    );
    is_rebuilt(
        "CREATE VIEW w AS SELECT id, v FROM t WHERE v > 1; CREATE VIEW x AS SELECT id FROM w",
        "SELECT id FROM x",
        "CREATE OR REPLACE VIEW w AS SELECT id, v FROM t WHERE v > 0",
    );
    let f = "CREATE FUNCTION f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1'";
    let f2 =
        "CREATE OR REPLACE FUNCTION f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 10'";
    is_rebuilt(f, "SELECT id, f(v) AS f FROM t", f2);
    is_rebuilt(f, "SELECT f(v) AS f, count(*) AS n FROM t GROUP BY f(v)", f2);
    is_rebuilt(
        &format!("{f}; CREATE VIEW w AS SELECT id, f(v) AS f FROM t"),
        "SELECT id, f FROM w",
        f2,
    );
    // In the body of another function, where PostgreSQL sees no dependency.
    is_rebuilt(
        &format!(
            "{f}; CREATE FUNCTION g(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN public.f($1); END'"
        ),
        "SELECT id, g(v) AS g FROM t",
        f2,
    );
    // Names without quotes are in any case.
    for (name, mentioned) in [("tax_rate", "public.Tax_RATE"), ("\"A\"\"B\"", "public.\"A\"\"B\"")]
    {
        let define = |body: &str| {
            format!(
                "CREATE OR REPLACE FUNCTION {name}(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 {body}'"
            )
        };
        for language in [
            "plpgsql IMMUTABLE AS 'BEGIN RETURN NAME($1); END'",
            "sql IMMUTABLE AS 'SELECT NAME($1)'",
        ] {
            let language = language.replace("NAME", mentioned);
            is_rebuilt(
                &format!(
                    "{}; CREATE FUNCTION g(int) RETURNS int LANGUAGE {language}",
                    define("+ 1")
                ),
                "SELECT id, g(v) AS g FROM t",
                &define("* 10"),
            );
        }
    }
    let same = |text| {
        format!(
            "CREATE OR REPLACE FUNCTION same(text, text) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT {text}'"
        )
    };
    is_rebuilt(
        &format!("{}; CREATE OPERATOR === (LEFTARG = text, RIGHTARG = text, FUNCTION = same);
                  CREATE FUNCTION g(text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $1 OPERATOR(public.===) ''A''; END'", same("lower($1) = lower($2)")),
        "SELECT id, g(s) AS g FROM t",
        &same("true"),
    );
    is_rebuilt(
        "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE FUNCTION g(int) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN (enum_range(NULL::public.Mood))[$1]; END'",
        "SELECT id, g(v) AS g FROM t",
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
    );
    is_rebuilt(
        &format!(
            "{f}; CREATE FUNCTION g(int) RETURNS int LANGUAGE sql IMMUTABLE BEGIN ATOMIC SELECT f($1); END"
        ),
        "SELECT id, g(v) AS g FROM t",
        f2,
    );
    is_rebuilt(
        "CREATE FUNCTION f(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1 < $2'; CREATE OPERATOR <<< (FUNCTION = f, LEFTARG = int, RIGHTARG = int)",
        "SELECT id, v <<< 2 AS f FROM t",
        "CREATE OR REPLACE FUNCTION f(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1 >= $2'",
    );
    is_rebuilt(
        "CREATE FUNCTION f(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + $2'; CREATE AGGREGATE agg(int) (SFUNC = f, STYPE = int, INITCOND = 0)",
        "SELECT agg(v) AS f FROM t",
        "CREATE OR REPLACE FUNCTION f(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 - $2'",
    );
    is_rebuilt(
        "CREATE FUNCTION f(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + $2'; CREATE AGGREGATE agg(int) (SFUNC = f, STYPE = int, INITCOND = 0)",
        "SELECT agg(v) AS f FROM t",
        "CREATE OR REPLACE AGGREGATE agg(int) (SFUNC = f, STYPE = int, INITCOND = 100)",
    );
}

#[test]
fn what_a_policy_uses_is_replaced() {
    let database = Database::new();
    let mut session = database.session();
    let role = format!("reader_{}", database.name());
    let f = |allowed| {
        format!(
            "CREATE OR REPLACE FUNCTION allowed(text) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1 = ''{allowed}'''"
        )
    };
    session.run(&format!(
        "CREATE TABLE q (id int PRIMARY KEY, o text); INSERT INTO q VALUES (1, 'x'), (2, 'y'); {};
         CREATE FUNCTION by_text(text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN public.allowed($1); END';
         CREATE ROLE {role}; GRANT SELECT ON q TO {role}; CREATE SCHEMA s AUTHORIZATION {role};
         SET ROLE {role}; SELECT pgstream.create_stream_table('s.st', 'SELECT id, o FROM q', '1d'); RESET ROLE;
         ALTER TABLE q ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON q USING (allowed(o))", f("x")
    ));
    let mut other = database.session();
    for (policy, allowed) in [("allowed(o)", "y"), ("by_text(o)", "x"), ("by_text(o)", "y")] {
        session.run(&format!("ALTER POLICY p ON q USING ({policy})"));
        other.refresh("s.st");
        session.run(&f(allowed));
        assert_eq!(session.value("SELECT needs_reinit FROM pgstream.pgs_stream_tables"), "t");
        session.run("INSERT INTO q SELECT max(id) + 1, 'x' FROM q; INSERT INTO q SELECT max(id) + 1, 'y' FROM q");
        other.refresh("s.st");
        let query = format!("SELECT id, o FROM q WHERE o = '{allowed}'");
        compare_with(&mut session, "s.st", &query, policy);
    }
    session.run(&format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}"));
}

#[test]
fn a_type_that_a_query_uses_is_changed() {
    is_rebuilt(
        "CREATE TYPE mood AS ENUM ('sad', 'glad'); ALTER TABLE t ADD COLUMN m mood DEFAULT 'sad'",
        "SELECT id, m::text AS m FROM t",
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
    );
    is_rebuilt(
        "CREATE TYPE pair AS (a int, b int); ALTER TABLE t ADD COLUMN p pair DEFAULT '(1,2)'",
        "SELECT id, p::text AS p FROM t",
        "ALTER TYPE pair ADD ATTRIBUTE c int",
    );
    for change in ["ADD ATTRIBUTE c int", "DROP ATTRIBUTE b"] {
        is_rebuilt(
            "CREATE TYPE pair AS (a int, b text); ALTER TABLE t ADD COLUMN p pair DEFAULT '(1,x)', ADD COLUMN ps pair[] DEFAULT ARRAY[ROW(1, 'x')::pair]",
            "SELECT DISTINCT id, p, ps FROM t",
            &format!("ALTER TYPE pair {change}"),
        );
    }
    is_rebuilt(
        "CREATE TYPE mood AS ENUM ('sad', 'glad'); ALTER TABLE t ADD COLUMN m mood[] DEFAULT '{sad}'",
        "SELECT id, to_jsonb(t.m) AS m FROM t",
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
    );
    is_rebuilt(
        "CREATE DOMAIN pos AS int; ALTER TABLE t ADD COLUMN p pos DEFAULT 1",
        "SELECT id, p FROM t",
        "ALTER DOMAIN pos ADD CHECK (VALUE > 0)",
    );
    is_rebuilt(
        "CREATE TEXT SEARCH CONFIGURATION c (COPY = english)",
        "SELECT id, to_tsvector('c', s || ' running') AS s FROM t",
        "ALTER TEXT SEARCH CONFIGURATION c ALTER MAPPING REPLACE english_stem WITH simple",
    );
    is_rebuilt(
        "CREATE TEXT SEARCH CONFIGURATION c (COPY = english);
         CREATE FUNCTION f(text) RETURNS tsvector LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN to_tsvector('public.C', $1); END $$",
        "SELECT id, f(s || ' running') AS s FROM t",
        "ALTER TEXT SEARCH CONFIGURATION c ALTER MAPPING REPLACE english_stem WITH simple",
    );
}

/// The default one, at creation.
#[test]
fn a_text_search_configuration_that_a_query_does_not_name_is_changed() {
    const BEFORE: &str = "
        CREATE TEXT SEARCH DICTIONARY d (TEMPLATE = snowball, Language = english);
        CREATE TEXT SEARCH CONFIGURATION c (COPY = english);
        ALTER TEXT SEARCH CONFIGURATION c ALTER MAPPING REPLACE english_stem WITH d;
        CREATE VIEW w AS SELECT id, s @@ to_tsquery('run') AS s FROM t;
        UPDATE t SET s = s || ' running the'; SET default_text_search_config = c";
    for query in [
        "SELECT id, to_tsvector(s) AS s FROM t",
        "SELECT id, s FROM w",
        "SELECT id, s @@ 'run'::tsquery AS s FROM t",
        "SELECT id, ts_headline(s, 'run'::tsquery) AS s FROM t",
    ] {
        for change in [
            "ALTER TEXT SEARCH CONFIGURATION c ALTER MAPPING REPLACE d WITH simple",
            "ALTER TEXT SEARCH DICTIONARY d (StopWords = english)",
        ] {
            is_rebuilt(BEFORE, query, change);
        }
    }
    let before = "CREATE TEXT SEARCH CONFIGURATION c (COPY = english);
        ALTER TABLE t ADD COLUMN words tsvector GENERATED ALWAYS AS (to_tsvector('c', s || ' running')) VIRTUAL";
    let change = "ALTER TEXT SEARCH CONFIGURATION c ALTER MAPPING FOR asciiword WITH simple";
    is_rebuilt(before, "SELECT id, words FROM t", change);
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, s text)");
    session.run(BEFORE);
    session.create("st", "SELECT id, s || z::text AS s FROM t, (VALUES (now())) AS v (z)");
    session.create("other", "SELECT id, to_tsvector('english', s) AS s FROM t");
    session.run("CREATE TEXT SEARCH CONFIGURATION e (COPY = english); ALTER TEXT SEARCH CONFIGURATION c DROP MAPPING FOR asciiword");
    let outdated = "SELECT count(*) FROM pgstream.pgs_stream_tables WHERE needs_reinit";
    assert_eq!(session.value(outdated), "0");
}

#[test]
fn expressions_of_virtual_columns_are_changed() {
    for query in [
        "SELECT id, v FROM p",
        "SELECT id, v FROM ONLY p",
        "SELECT id, to_jsonb(p) AS v FROM ONLY p",
        "WITH RECURSIVE r AS (SELECT id, v FROM p WHERE id = 1 UNION SELECT p.id, p.v + max(r.v) OVER () FROM r JOIN p ON p.id = r.id + 1) SELECT * FROM r",
    ] {
        let database = Database::new();
        let mut session = database.session();
        session.run(
            "CREATE TABLE p (id int, n int, v int GENERATED ALWAYS AS (n * 2) VIRTUAL); CREATE TABLE c () INHERITS (p);
             INSERT INTO p VALUES (1, 1), (2, 2), (3, 3)",
        );
        session.create("st", query);
        let mut other = database.session();
        other.refresh("st"); // and caches what it knows
        session.run("ALTER TABLE p ALTER COLUMN v SET EXPRESSION AS (n * 9)");
        other.refresh("st");
        compare_with(&mut session, "st", query, "SET EXPRESSION");
    }
}

/// The configuration that the settings at creation name is used like one that the query names.
#[test]
fn the_default_text_search_configuration_is_changed_and_renamed() {
    let before = "CREATE SCHEMA ext; CREATE TEXT SEARCH CONFIGURATION ext.c (COPY = english); SET default_text_search_config = 'ext.c'";
    let query = "SELECT id, to_tsvector(s || ' running') AS s FROM t";
    let change = "ALTER TEXT SEARCH CONFIGURATION ext.c ALTER MAPPING FOR asciiword WITH simple";
    is_rebuilt(before, query, change);
    for mode in ["DIFFERENTIAL", "FULL"] {
        let database = Database::new();
        let mut session = database.session();
        session.run(&format!(
            "CREATE TABLE t (id int PRIMARY KEY, s text); INSERT INTO t VALUES (1, 'a'); {before}; {change}"
        ));
        for (name, query) in [("st", query), ("plain", "SELECT id, id::text AS s FROM t")] {
            session.run(&format!(
                "SELECT pgstream.create_stream_table('{name}', $${query}$$, '1h', '{mode}')"
            ));
        }
        for (ddl, name) in [
            (
                "ALTER TABLE t ALTER id TYPE bigint; ALTER TEXT SEARCH CONFIGURATION ext.c RENAME TO \"D\"",
                "ext.\"D\"",
            ),
            ("ALTER SCHEMA ext RENAME TO other", "other.\"D\""),
            ("ALTER TEXT SEARCH CONFIGURATION other.\"D\" SET SCHEMA public", "public.\"D\""),
        ] {
            let mut other = database.session();
            other.run(&format!("{ddl}; INSERT INTO t SELECT max(id) + 1, 'dogs' FROM t"));
            other.refresh("st");
            other.refresh("plain");
            session.run(&format!("SET default_text_search_config = '{name}'"));
            compare_with(&mut session, "st", query, ddl);
        }
        session.run("RESET default_text_search_config");
        let drop = "DROP TEXT SEARCH CONFIGURATION \"D\"";
        assert_eq!(session.error(drop).code, "2BP01");
        session.run("SELECT pgstream.drop_stream_table('st')");
        session.run(drop);
        session.run("INSERT INTO t SELECT max(id) + 1, 'dogs' FROM t");
        session.refresh("plain");
    }
}

/// Names in the value of a row are those of its type's fields.
#[test]
fn columns_of_whole_rows_are_renamed() {
    for query in [
        "SELECT to_jsonb(t) AS j FROM t",
        "SELECT row_to_json(x)::text AS j FROM (SELECT t.* FROM t) AS y, LATERAL (SELECT y.id) AS x, t WHERE t.id = y.id AND to_jsonb(t) ? 'v'",
        "SELECT jsonb_agg(t ORDER BY id) AS j FROM t",
        "SELECT id, k FROM t, LATERAL jsonb_object_keys(to_jsonb(t)) AS k",
        "SELECT to_jsonb(ARRAY[t]) AS j FROM t",
    ] {
        is_rebuilt("", query, "ALTER TABLE t RENAME v TO w");
        is_rebuilt("CREATE TABLE c () INHERITS (t)", query, "ALTER TABLE t RENAME v TO w");
        is_rebuilt("", query, "ALTER TABLE t ADD COLUMN w int DEFAULT 7");
    }
    is_rebuilt(
        "CREATE VIEW w AS SELECT id, v FROM t",
        "SELECT to_jsonb(w) AS j FROM w",
        "ALTER VIEW w RENAME v TO x",
    );
    is_rebuilt(
        "CREATE VIEW w AS SELECT id, t AS r FROM t",
        "SELECT to_jsonb(r) AS j FROM w",
        "ALTER TABLE t RENAME v TO x",
    );
    is_rebuilt(
        "CREATE FUNCTION f(t) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT to_jsonb($1)::text'",
        "SELECT f(t) AS j FROM t",
        "ALTER TABLE t RENAME v TO x",
    );
}

/// A view keeps the names and the columns of a join's row; the text of its query does not.
#[test]
fn columns_of_a_named_join_are_renamed_and_added() {
    const JOIN: &str = "(t JOIN u USING (id)) AS j";
    for query in [
        format!("SELECT to_jsonb(j) AS j FROM {JOIN}"),
        format!(
            "SELECT id, ARRAY(SELECT to_jsonb(j) FROM {JOIN} WHERE j.id <= d.id ORDER BY j.id) AS j FROM d"
        ),
        format!("SELECT j.id, k FROM {JOIN}, LATERAL jsonb_object_keys(to_jsonb(j)) AS k"),
    ] {
        for ddl in ["ALTER TABLE t RENAME b TO bb", "ALTER TABLE t ADD COLUMN z int DEFAULT 7"] {
            let database = Database::new();
            let mut session = database.session();
            session.run(
                "CREATE TABLE t (id int PRIMARY KEY, b text); CREATE TABLE u (id int PRIMARY KEY, c int); CREATE TABLE d (id int);
                 INSERT INTO t VALUES (1, 'x'); INSERT INTO u VALUES (1, 5); INSERT INTO d VALUES (1), (3)",
            );
            session.create("st", &query);
            session.run(&format!(
                "CREATE VIEW query AS {query}; {ddl}; INSERT INTO t VALUES (2, 'y'); INSERT INTO u VALUES (2, 6)"
            ));
            for change in ["SELECT", "UPDATE u SET c = c + 1; DELETE FROM t WHERE id = 1"] {
                session.run(change);
                session.refresh("st");
                compare_with(&mut session, "st", "TABLE query", &format!("{ddl}; {change}"));
            }
        }
    }
}

/// Which PostgreSQL does not take for columns that a view reads.
#[test]
fn columns_of_a_named_join_get_other_types_and_are_not_dropped() {
    for query in [
        "SELECT to_jsonb(j) AS j FROM (t JOIN u USING (id)) AS j",
        "SELECT j.id, k.value FROM (t FULL JOIN u USING (id)) AS j, LATERAL jsonb_each_text(to_jsonb(j)) AS k",
        "SELECT id, (SELECT count(*) FROM t WHERE to_jsonb(j)::text > b) AS j FROM (d JOIN (t NATURAL JOIN u) USING (id)) AS j",
    ] {
        let database = Database::new();
        let mut session = database.session();
        session.run(
            "CREATE TABLE t (id int PRIMARY KEY, b text); CREATE TABLE u (id int PRIMARY KEY, c int); CREATE TABLE d (id int);
             INSERT INTO t VALUES (1, 'x'); INSERT INTO u VALUES (1, 5); INSERT INTO d VALUES (1), (3)",
        );
        session.create("st", query);
        assert_eq!(session.error("ALTER TABLE u DROP COLUMN c").code, "2BP01", "{query}");
        for ddl in ["ALTER TABLE u ALTER c TYPE text", "ALTER TABLE t ALTER b TYPE varchar(10)"] {
            session.run(ddl);
            session.run("INSERT INTO t SELECT max(id) + 1, 'y' FROM t; INSERT INTO u SELECT max(id) + 1, 6 FROM u");
            for change in ["SELECT", "UPDATE u SET c = c || '1'; DELETE FROM t WHERE id = 1"] {
                session.run(change);
                session.refresh("st");
                compare_with(&mut session, "st", query, &format!("{ddl}; {change}"));
            }
        }
        assert_eq!(session.error("ALTER TABLE u DROP COLUMN c").code, "2BP01", "{query}");
    }
}

/// Through stream tables, by names that were changed while nobody looked.
#[test]
fn columns_of_whole_rows_are_renamed_without_event_triggers() {
    let database = Database::new();
    let (mut session, mut other) = (database.session(), database.session());
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1);
                 CREATE TABLE a (x int); CREATE TABLE b (id int PRIMARY KEY, r a); INSERT INTO b VALUES (1, ROW(1))");
    let queries = [
        ("of_t", "SELECT to_jsonb(t) AS j FROM t"),
        ("of_b", "SELECT id, r::text AS r, to_jsonb(b) AS j FROM b"),
    ];
    for (name, query) in queries {
        session.create(name, query);
        other.refresh(name);
    }
    session.run("SET event_triggers = off; ALTER TABLE t RENAME v TO w; ALTER TABLE a ADD COLUMN y int; ALTER TABLE a RENAME x TO z");
    for (name, query) in queries {
        other.refresh(name);
        compare_with(&mut session, name, query, "renaming");
    }
}

#[test]
fn a_table_whose_rows_are_values_elsewhere_is_altered() {
    let before = "CREATE TABLE a (x int); ALTER TABLE t ADD COLUMN r a DEFAULT '(1)'";
    let query = "SELECT id, r::text = '(1)' AS f, to_jsonb(r) AS j FROM t";
    is_rebuilt(before, query, "ALTER TABLE a ADD COLUMN y int");
    is_rebuilt(before, query, "ALTER TABLE a RENAME x TO y");
    is_rebuilt(
        "CREATE TABLE parent (x int); CREATE TABLE a () INHERITS (parent); ALTER TABLE t ADD COLUMN r a DEFAULT '(1)'",
        query,
        "ALTER TABLE parent ADD COLUMN y int",
    );
    is_rebuilt(
        "CREATE TABLE a (x int)",
        "SELECT id, to_jsonb(jsonb_populate_record(NULL::a, jsonb_build_object('x', v, 'y', v))) AS j FROM t",
        "ALTER TABLE a ADD COLUMN y int",
    );
    is_rebuilt(
        "CREATE MATERIALIZED VIEW a AS SELECT 1 AS x; ALTER TABLE t ADD COLUMN r a DEFAULT '(1)'",
        query,
        "ALTER MATERIALIZED VIEW a RENAME x TO y",
    );
    is_rebuilt(
        "CREATE TABLE a (x int); CREATE TABLE outer_a (a a); ALTER TABLE t ADD COLUMN r outer_a DEFAULT '(\"(1)\")'",
        query,
        "ALTER TABLE a RENAME x TO y",
    );
}

/// Hidden tables with their values would keep PostgreSQL from altering them.
#[test]
fn row_types_of_values_in_between_are_altered() {
    for (before, query) in [
        ("", "SELECT count(DISTINCT t) AS n FROM t"),
        ("", "SELECT max(q.k) AS m FROM (SELECT t AS r, count(*) AS k FROM t GROUP BY t) AS q"),
        ("", "SELECT id, rank() OVER (PARTITION BY ARRAY[t] ORDER BY id) AS r FROM t"),
        ("CREATE DOMAIN one AS t", "SELECT count(DISTINCT t::one) AS n FROM t"),
        (
            "CREATE TYPE span AS RANGE (subtype = t, multirange_type_name = spans)",
            "SELECT count(DISTINCT spans(span(t, NULL))) AS n FROM t",
        ),
        (
            "CREATE TYPE pair AS (first t, second int)",
            "SELECT count(DISTINCT ROW(t, id)::pair) AS n FROM t",
        ),
    ] {
        is_rebuilt(before, query, "ALTER TABLE t ADD w int DEFAULT 7");
        is_rebuilt(before, query, "ALTER TABLE t ALTER v TYPE bigint");
    }
    is_rebuilt(
        "CREATE TYPE one AS (v int)",
        "SELECT count(DISTINCT jsonb_populate_record(NULL::one, to_jsonb(t))) AS n FROM t",
        "ALTER TYPE one ALTER ATTRIBUTE v TYPE bigint",
    );
}

/// PostgreSQL does not alter row types of columns of users' tables anyway.
#[test]
fn values_of_row_types_that_tables_show_are_kept_in_between() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE a (x int); CREATE TABLE t (id int PRIMARY KEY, v int, r a)");
    for query in [
        "SELECT t, avg(v) AS v FROM t GROUP BY t",
        "SELECT count(DISTINCT r) AS n FROM t",
        "SELECT count(DISTINCT ARRAY[r]) AS n FROM t",
    ] {
        session.create("st", query);
        let tree = session
            .value("SELECT value FROM pgstream.explain_st('st') WHERE property = 'operator_tree'");
        assert!(!tree.contains("Opaque"), "{query}\n{tree}");
        session.run("SELECT pgstream.drop_stream_table('st')");
    }
}

#[test]
fn a_function_becomes_volatile() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1);
                 CREATE FUNCTION f(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $1; END'");
    session.create("st", "SELECT id, f(v) AS f FROM t");
    let mut other = database.session();
    other.refresh("st");
    session.run("ALTER FUNCTION f(int) VOLATILE; INSERT INTO t VALUES (2, 2)");
    let error = other.error("SELECT pgstream.refresh_stream_table('st')");
    assert_eq!(error.code, "0A000", "{error}");
    assert!(error.message.contains("volatile") || error.detail.contains("volatile"), "{error}");
    session.run("ALTER FUNCTION f(int) IMMUTABLE");
    other.refresh("st");
    compare_with(&mut session, "st", "SELECT id, f(v) AS f FROM t", "IMMUTABLE again");
    assert_eq!(session.error("DROP FUNCTION f(int)").code, "2BP01");
    session.run("DROP FUNCTION f(int) CASCADE");
    is_in_error(&mut session, "function public.f(integer) was dropped", "1|1");
}

#[track_caller]
fn is_in_error(session: &mut Session, reason: &str, first_row: &str) {
    let status = session.value("SELECT status, error_message FROM pgstream.pgs_stream_tables");
    assert_eq!(status, format!("ERROR|{reason}"));
    assert!(session.rows("SELECT id, f FROM st ORDER BY 1").iter().any(|it| it == first_row));
    for call in [
        "SELECT pgstream.refresh_stream_table('st')",
        "SELECT pgstream.alter_stream_table('st', status => 'SUSPENDED')",
    ] {
        let error = session.error(call);
        assert_eq!(error.code, "55000", "{error}");
        assert!(error.message.contains(reason), "{error}");
        assert!(error.hint.starts_with("Drop the stream table"), "{error}");
    }
    assert_eq!(session.error("SELECT pgstream.resume_stream_table('st')").code, "55000");
    assert_eq!(orphans(session).expect("readable"), [""; 0]);
}

#[test]
fn a_table_is_suspended_and_resumed_while_its_query_is_dropped() {
    const SUSPEND: &str = "SELECT pgstream.alter_stream_table('st', status => 'SUSPENDED')";
    for (before, call) in
        [("SELECT", SUSPEND), (SUSPEND, "SELECT pgstream.resume_stream_table('st')")]
    {
        let database = Database::new();
        let mut s = Sessions::new(&database, &["a", "b"]);
        s.monitor().run("CREATE TABLE t (id int PRIMARY KEY, f int); INSERT INTO t VALUES (1, 1)");
        s.monitor().create("st", "SELECT id, f FROM t");
        s.monitor().run(before);
        s.run("a", "BEGIN; DROP TABLE t CASCADE");
        s.blocks("b", call);
        s.run("a", "COMMIT");
        let error = s.finish("b").expect_err("it is in error");
        assert!(error.message.contains("table public.t was dropped"), "{error}");
        assert!(error.hint.starts_with("Drop the stream table"), "{error}");
        is_in_error(s.monitor(), "table public.t was dropped", "1|1");
    }
}

/// The names that statements were made with mean something else now.
#[test]
fn another_table_takes_the_name_of_a_source() {
    let database = Database::new();
    let (mut session, mut other) = (database.session(), database.session());
    session.run("CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY, v int); INSERT INTO s.t VALUES (1, 1);
                 CREATE TABLE s.d (id int PRIMARY KEY, n int); INSERT INTO s.d VALUES (1, 1);
                 CREATE FUNCTION s.f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1'");
    session.create("s.st", "SELECT t.id, s.f(t.v) AS v, n FROM s.t JOIN s.d USING (id)");
    session.run("UPDATE s.t SET v = 2");
    other.refresh("s.st");
    session.run("UPDATE s.t SET v = 3");
    other.refresh("s.st");
    session.run("ALTER SCHEMA s RENAME TO old; CREATE SCHEMA s;
                 CREATE TABLE s.t (id int PRIMARY KEY, v int); INSERT INTO s.t VALUES (1, 100), (2, 200);
                 CREATE TABLE s.d (id int PRIMARY KEY, n int); INSERT INTO s.d VALUES (1, 100), (2, 200);
                 CREATE TABLE s.st (id int, v int, n int);
                 CREATE FUNCTION s.f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 7'");
    session.run(
        "UPDATE old.t SET v = 5; INSERT INTO old.t VALUES (2, 2); INSERT INTO old.d VALUES (2, 2)",
    );
    other.refresh("old.st");
    let query = "SELECT t.id, old.f(t.v) AS v, n FROM old.t JOIN old.d USING (id)";
    compare_with(&mut session, "old.st", query, "a renamed schema");
    assert_eq!(session.value("SELECT count(*) FROM s.st"), "0");
    session.run("ALTER FUNCTION old.f(int) RENAME TO g; CREATE FUNCTION old.f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 8'");
    session.run("UPDATE old.t SET v = 6");
    other.refresh("old.st");
    let query = "SELECT t.id, old.g(t.v) AS v, n FROM old.t JOIN old.d USING (id)";
    compare_with(&mut session, "old.st", query, "a renamed function");
    assert_eq!(session.value("SELECT name FROM pgstream.pgs_status()"), "old.st");
}

#[test]
fn a_used_column_or_table_is_dropped_with_cascade() {
    for (ddl, reason) in [
        ("DROP TABLE d", "table public.d was dropped"),
        ("ALTER TABLE t DROP COLUMN v", "table column public.t.v was dropped"),
        ("DROP TABLE d, t", "table public.t, table public.d were dropped"),
    ] {
        let database = Database::new();
        let mut session = database.session();
        session.run(TABLES);
        session.create(
            "st",
            "SELECT t.id, t.v AS f, count(*) AS n FROM t JOIN d ON d.g = t.g GROUP BY t.id, t.v",
        );
        session.create("other", "SELECT id, g FROM t");
        session.run("SELECT pgstream.create_stream_table('rows', 'SELECT id, max(g) AS g FROM t GROUP BY id HAVING max(g) > 0', '1d', 'DIFFERENTIAL')");
        session.run("SELECT pgstream.drop_stream_table('rows')");
        assert_eq!(session.error(ddl).code, "2BP01");
        session.run("SET pg_stream.block_source_ddl = on");
        assert_eq!(session.error(&format!("{ddl} CASCADE")).code, "2BP01");
        session.run("RESET pg_stream.block_source_ddl");
        session.run(&format!("BEGIN; {ddl} CASCADE; ROLLBACK; INSERT INTO t VALUES (50, 1, 50)"));
        session.refresh("st");
        session.run(&format!("SELECT pgstream.drop_stream_table('other'); {ddl} CASCADE"));
        is_in_error(&mut session, reason, "1|1");
        let tables = session.value("SELECT count(*) FROM pg_class WHERE relnamespace = 'pgstream_changes'::regnamespace AND relkind = 'r'");
        assert_eq!(tables, "0", "nobody needs them any more");
        session.run("SELECT pgstream.drop_stream_table('st')");
        assert_eq!(orphans(&mut session).expect("readable"), [""; 0]);
    }
}

#[test]
fn everything_is_dropped_at_once() {
    for (ddl, left) in [
        ("DROP TABLE t, st, chained", "0"),
        ("DROP TABLE st, chained, t, d", "0"),
        ("DROP SCHEMA s CASCADE", "0"),
        ("DROP OWNED BY OWNER", "0"),
        ("DROP TABLE st CASCADE", "1"),
    ] {
        let database = Database::new();
        let mut session = database.session();
        let role = format!("owner_{}", database.name());
        session.run(&format!("CREATE ROLE {role}; CREATE SCHEMA s AUTHORIZATION {role}; SET SESSION AUTHORIZATION {role}; SET search_path = s"));
        session.run(TABLES);
        session.create("st", QUERY);
        session.create(
            "chained",
            "SELECT n, count(*) AS m FROM st GROUP BY n HAVING count(*) > 0 AND max(s) > 0",
        );
        session.run("RESET SESSION AUTHORIZATION; CREATE VIEW public.w AS SELECT 1");
        if ddl.starts_with("DROP TABLE st C") {
            let error = session.error("DROP TABLE st");
            assert_eq!(error.code, "2BP01", "{error}");
        }
        session.run(&format!("BEGIN; {}; ROLLBACK", ddl.replace("OWNER", &role)));
        assert_eq!(orphans(&mut session).expect("readable"), [""; 0]);
        session.run(&ddl.replace("OWNER", &role));
        assert_eq!(orphans(&mut session).expect("readable"), [""; 0], "{ddl}");
        assert_eq!(session.value("SELECT count(*) FROM pgstream.pgs_stream_tables"), left, "{ddl}");
        if left == "1" {
            let status =
                session.value("SELECT status, error_message FROM pgstream.pgs_stream_tables");
            assert_eq!(status, "ERROR|table s.st was dropped");
        }
        session.run(&format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}"));
        assert_eq!(orphans(&mut session).expect("readable"), [""; 0], "{ddl}");
    }
}

const OF_FUNCTION: &str = "SELECT f(g) AS f, count(*) AS n FROM t GROUP BY 1";
const REPLACE_FUNCTION: &str = "BEGIN; CREATE OR REPLACE FUNCTION f(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 + 1'";

/// A user and a refresher, and a stream table whose query calls a function.
fn with_function(database: &Database) -> Sessions {
    let mut s = Sessions::new(database, &["u", "r"]);
    s.monitor().run(TABLES);
    s.monitor().run("CREATE FUNCTION f(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'");
    s.monitor().create("st", OF_FUNCTION);
    s
}

/// A refresh that has read `t` waits for the transaction that has replaced the function, which then
/// waits for `t`. PostgreSQL looks for a deadlock once a wait, a second after it began.
#[test]
fn a_refresh_gives_in_to_changes_of_definition() {
    let database = Database::new();
    let mut s = with_function(&database);
    s.monitor().run("DELETE FROM t WHERE id = 1");
    s.run("u", REPLACE_FUNCTION);
    s.run("r", "SET deadlock_timeout = '1ms'");
    s.blocks("r", "SELECT pgstream.refresh_stream_table('st')");
    s.complete("u", "ALTER TABLE t ADD COLUMN w int").expect("the refresh gives in");
    assert_eq!(s.finish("r").expect_err("it has given in").code, "40P01");
    s.run("u", "COMMIT");
    s.run("r", "SELECT pgstream.refresh_stream_table('st')");
    compare_with(s.monitor(), "st", OF_FUNCTION, "all");
}

/// Who writes to the source and then reads the stream table. A plain DROP TABLE has locked that first.
#[test]
fn a_drop_is_no_deadlock_for_writers() {
    for (drop, outcome) in
        [("SELECT pgstream.drop_stream_table('st')", None), ("DROP TABLE st", Some("40P01"))]
    {
        let database = Database::new();
        let mut s = Sessions::new(&database, &["writer", "dropper"]);
        s.monitor().run(TABLES);
        s.monitor().create("st", "SELECT g, count(*) AS n FROM t GROUP BY g");
        s.run("writer", "BEGIN; DELETE FROM t WHERE id = 1");
        // PostgreSQL itself has it look once only, before there is one.
        s.run("dropper", "SET deadlock_timeout = '1ms'");
        s.blocks("dropper", drop);
        match s.step("writer", "SELECT count(*) FROM st") {
            Step::Done(result) => result,
            Step::Blocked => s.finish("writer"),
        }
        .expect("the drop waits");
        s.run("writer", "COMMIT");
        let dropped = s.finish("dropper").err().map(|it| it.code);
        assert_eq!(dropped.as_deref(), outcome, "{drop}");
    }
}

/// Without a deadlock it waits as long as `lock_timeout` says.
#[test]
fn a_refresh_waits_for_changes_of_definition() {
    let database = Database::new();
    let mut s = with_function(&database);
    for timeout in ["2s", "0"] {
        s.monitor().run("UPDATE t SET g = g + 1 WHERE id < 5");
        s.run("u", REPLACE_FUNCTION);
        s.run("r", &format!("SET lock_timeout = '{timeout}'"));
        s.blocks("r", "SELECT pgstream.refresh_stream_table('st')");
        if timeout == "0" {
            s.run("u", "COMMIT");
            s.finish("r").expect("the lock is free");
        } else {
            assert_eq!(s.finish("r").expect_err("it takes too long").code, "55P03");
            s.run("u", "COMMIT");
        }
        s.run("r", "SELECT pgstream.refresh_stream_table('st')");
        compare_with(s.monitor(), "st", OF_FUNCTION, timeout);
    }
    assert_eq!(s.monitor().value("SELECT current_setting('lock_timeout')"), "0");
}

#[test]
fn names_of_columns_in_the_catalog_follow() {
    let (mut session, _database) = create();
    session.run("ALTER TABLE t RENAME COLUMN v TO amount");
    let used = "SELECT columns_used::text, column_snapshot ->> 'amount' FROM pgstream.pgs_dependencies WHERE source_relid = 't'::regclass";
    assert_eq!(session.value(used), "{id,g,amount}|numeric");
}

#[test]
fn a_replaced_view_may_read_other_tables() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.run("CREATE VIEW w AS SELECT id, v FROM t; CREATE TABLE u (id int PRIMARY KEY, v numeric); INSERT INTO u VALUES (1, 7)");
    session.create("st", "SELECT id, v FROM w");
    session.run("CREATE OR REPLACE VIEW w AS SELECT id, v FROM u");
    session.refresh("st");
    compare_with(&mut session, "st", "SELECT id, v FROM u", "another table");
    session.run("INSERT INTO u VALUES (2, 8); DELETE FROM t");
    session.refresh("st");
    compare_with(&mut session, "st", "SELECT id, v FROM u", "a change of the other table");
    assert_eq!(
        session.value("SELECT source_relid::regclass FROM pgstream.pgs_change_tracking"),
        "u"
    );
}

#[test]
fn a_partition_is_detached_concurrently() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["ddl", "reader", "writer", "refresher"]);
    s.monitor().run(
        "CREATE TABLE p (id int, v int) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);
         INSERT INTO p SELECT i, i FROM generate_series(1, 19) i",
    );
    let query = "SELECT id, v FROM p";
    s.monitor().create("st", query);
    s.run("refresher", "SELECT pgstream.refresh_stream_table('st')");
    s.run("reader", "BEGIN; SELECT count(*) FROM p");
    s.blocks("ddl", "ALTER TABLE p DETACH PARTITION p2 CONCURRENTLY");
    s.run("refresher", "SELECT pgstream.refresh_stream_table('st')");
    s.compare("refresher", query);
    s.run("writer", "INSERT INTO p2 VALUES (15, 100); UPDATE p SET v = v + 1 WHERE id = 3");
    s.run("refresher", "SELECT pgstream.refresh_stream_table('st')");
    s.compare("refresher", query);
    s.run("reader", "COMMIT");
    s.finish("ddl").expect("it ends");
    s.run("writer", "DELETE FROM p2; UPDATE p SET v = v + 1 WHERE id = 4");
    for _ in 0..2 {
        s.run("refresher", "SELECT pgstream.refresh_stream_table('st')");
        s.compare("refresher", query);
    }
    assert_eq!(orphans(s.monitor()).expect("readable"), [""; 0]);
}

/// Attaching takes no lock that waits for writers of other partitions.
#[test]
fn a_partition_is_attached_beside_writers() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["ddl", "writer"]);
    s.monitor().run(
        "CREATE TABLE p (id int, v int) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
         CREATE TABLE p2 (id int, v int); INSERT INTO p2 VALUES (15, 15)",
    );
    s.monitor().create("st", "SELECT id, v FROM p");
    s.run("writer", "BEGIN; INSERT INTO p VALUES (1, 1)");
    s.run("ddl", "ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)");
    s.run("writer", "TRUNCATE p2; INSERT INTO p VALUES (11, 11); COMMIT");
    s.monitor().refresh("st");
    s.compare("ddl", "SELECT id, v FROM p");
}

#[test]
fn a_new_partition_is_no_reason_for_a_rebuild() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE p (id int, v int) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1, 1)");
    session.create("st", "SELECT id, v FROM p");
    session.run("SET pg_stream.block_source_ddl = on");
    session.run("CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20); INSERT INTO p VALUES (11, 11); TRUNCATE p1");
    session.run("ALTER TABLE p ADD COLUMN w int; CREATE INDEX ON p (id); ALTER TABLE p2 SET (fillfactor = 50)");
    assert_eq!(session.error("ALTER TABLE p DETACH PARTITION p1").code, "2BP01");
    session.run("INSERT INTO p2 VALUES (12, 12)");
    session.run(
        "CREATE SCHEMA more CREATE TABLE p3 PARTITION OF public.p FOR VALUES FROM (20) TO (30)",
    );
    session.run("INSERT INTO more.p3 VALUES (21, 21)");
    session.refresh("st");
    compare_with(&mut session, "st", "SELECT id, v FROM p", "a new partition");
    assert_eq!(
        session.value(
            "SELECT count(*) FROM pgstream.pgs_refresh_history WHERE action = 'REINITIALIZE'"
        ),
        "0"
    );
}

#[test]
fn a_change_of_layout_can_be_forbidden() {
    let (mut session, _database) = create();
    session.run("SET pg_stream.block_source_ddl = on; ALTER TABLE t ADD COLUMN w int; ALTER TABLE t RENAME COLUMN v TO amount; ALTER TABLE t DROP COLUMN unused");
    assert_eq!(session.error("ALTER TABLE t ALTER COLUMN amount TYPE bigint").code, "2BP01");
    session.run("UPDATE t SET amount = 5");
    session.refresh("st");
    compare(&mut session, "refusals");
}

/// DDL in a transaction with an old snapshot concerns a stream table that the snapshot does not see.
#[test]
fn ddl_under_an_old_snapshot() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["ddl", "other"]);
    s.monitor().run(TABLES);
    s.monitor()
        .run("CREATE FUNCTION f(numeric) RETURNS numeric LANGUAGE sql IMMUTABLE AS 'SELECT $1'");
    s.run("ddl", "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1");
    s.run(
        "other",
        "SELECT pgstream.create_stream_table('st', 'SELECT id, f(v) AS v FROM t', '1d')",
    );
    s.run("other", "INSERT INTO t VALUES (60, 1, 1); SELECT pgstream.refresh_stream_table('st')");
    s.run("ddl", "ALTER TABLE t DISABLE TRIGGER ALL; INSERT INTO t VALUES (61, 1, 1)");
    s.run("ddl", "CREATE OR REPLACE FUNCTION f(numeric) RETURNS numeric LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1'; COMMIT");
    s.run("other", "INSERT INTO t VALUES (62, 1, 1); SELECT pgstream.refresh_stream_table('st')");
    s.compare("other", "SELECT id, f(v) AS v FROM t");
}

#[test]
fn ddl_and_refreshes_in_every_order() {
    for ddl in [
        "ALTER TABLE t ALTER COLUMN v TYPE bigint",
        "CREATE OR REPLACE FUNCTION f(numeric) RETURNS numeric LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1'",
        "ALTER TABLE t DROP CONSTRAINT t_pkey",
        "CREATE TABLE child () INHERITS (t); INSERT INTO child VALUES (70, 1, 1)",
    ] {
        pgstream_tests::check_interleavings(pgstream_tests::Interleaving {
            tables: "CREATE TABLE t (id int PRIMARY KEY, g int, v numeric); INSERT INTO t VALUES (1, 1, 1), (2, 2, 2);
                     CREATE FUNCTION f(numeric) RETURNS numeric LANGUAGE sql IMMUTABLE AS 'SELECT $1'",
            query: "SELECT g, sum(f(v)) AS s, count(*) AS n FROM t GROUP BY g",
            sessions: &[
                &["BEGIN", ddl, "COMMIT"],
                &["UPDATE t SET v = v + 1 WHERE id = 1", pgstream_tests::REFRESH],
            ],
        });
    }
}

/// Whose tables have nothing to do with stream tables does not notice the extension.
#[test]
fn unrelated_ddl_of_others_is_not_disturbed() {
    let (mut session, database) = create();
    let role = format!("guest_{}", database.name());
    session.run(&format!("CREATE ROLE {role}; CREATE SCHEMA mine AUTHORIZATION {role}; REVOKE ALL ON SCHEMA pgstream, pgstream_state, pgstream_changes FROM PUBLIC"));
    let mut s = Sessions::new(&database, &["guest", "refresher"]);
    s.run("refresher", "BEGIN; UPDATE t SET v = v + 1");
    s.run("refresher", "SELECT pgstream.refresh_stream_table('st')");
    s.run("guest", &format!("SET SESSION AUTHORIZATION {role}; SET search_path = mine"));
    for ddl in [
        "CREATE TABLE a (id int PRIMARY KEY, v int)",
        "ALTER TABLE a ALTER COLUMN v TYPE bigint, ADD COLUMN w text DEFAULT random()::text",
        "CREATE TABLE b (id int REFERENCES a) PARTITION BY RANGE (id)",
        "CREATE TABLE b1 PARTITION OF b FOR VALUES FROM (1) TO (9)",
        "ALTER TABLE b DETACH PARTITION b1",
        "CREATE TEMP TABLE tmp (a int); DROP TABLE tmp",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'",
        "CREATE FUNCTION tf() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER x BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION tf()",
        "ALTER TABLE a DISABLE TRIGGER USER; DROP TRIGGER x ON a; CREATE RULE r AS ON UPDATE TO a DO ALSO NOTHING",
        "CREATE TYPE e AS ENUM ('a'); ALTER TYPE e ADD VALUE 'b'",
        "CREATE VIEW v AS SELECT * FROM a; CREATE OR REPLACE VIEW v AS SELECT * FROM a; DROP VIEW v",
        "DROP TABLE a CASCADE; DROP TABLE b, b1; DROP FUNCTION f; DROP SCHEMA mine CASCADE",
    ] {
        s.run("guest", ddl);
    }
    s.run("refresher", "COMMIT");
    session.run(&format!("DROP ROLE {role}"));
}

/// Who still sees the partition writes to it as a part of the table, also after a rebuild without it.
#[test]
fn a_partition_is_written_while_it_is_detached() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["ddl", "writer", "refresher"]);
    s.monitor().run(
        "CREATE TABLE p (id int, k int, v int) PARTITION BY LIST (k);
         CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2);
         INSERT INTO p SELECT i, 1 + i % 2, i FROM generate_series(1, 4) i",
    );
    let query = "SELECT k, sum(v) AS s FROM p GROUP BY k";
    s.monitor().create("st", query);
    for event_triggers in ["on", "off"] {
        s.run("ddl", &format!("SET event_triggers = {event_triggers}"));
        s.run("writer", "BEGIN; INSERT INTO p VALUES (20, 1, 20)");
        s.blocks("ddl", "ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY");
        for _ in 0..2 {
            s.run("refresher", "SELECT pgstream.refresh_stream_table('st')");
            s.compare("refresher", query);
        }
        s.run("writer", "COMMIT");
        s.finish("ddl").expect("it ends");
        for _ in 0..2 {
            s.run("refresher", "SELECT pgstream.refresh_stream_table('st')");
            s.compare("refresher", query);
        }
        s.run("ddl", "ALTER TABLE p ATTACH PARTITION p1 FOR VALUES IN (1)");
        s.run("refresher", "SELECT pgstream.refresh_stream_table('st')");
        s.compare("refresher", query);
    }
}

/// A rebuild has locked what is noted of the stream table when it comes to its sources, and so do commands
/// about these: whoever comes second waits, and has nothing that the first one needs.
#[test]
fn ddl_waits_for_a_rebuild_without_a_deadlock() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["gate", "ddl", "refresher"]);
    s.monitor().run(
        "CREATE TABLE p (id int, k int, v int) PARTITION BY LIST (k);
         CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE p2 (id int, k int, v int);
         CREATE TABLE h (id int, k int, v int); CREATE TABLE c1 () INHERITS (h); CREATE TABLE c2 () INHERITS (h);
         INSERT INTO p VALUES (1, 1, 1); INSERT INTO p2 VALUES (2, 2, 2); INSERT INTO c2 VALUES (3, 3, 3)",
    );
    let query =
        "SELECT k, sum(v) AS s FROM (SELECT * FROM p UNION ALL SELECT * FROM h) AS q GROUP BY k";
    s.monitor().create("st", query);
    let create_other = format!("SELECT pgstream.create_stream_table('other', '{query}', '1d')");
    s.monitor().run(&create_other);
    s.run("refresher", "SET pg_stream.inject_fault_action = wait");
    for (ddl, undo) in [
        (
            "ALTER TABLE p ATTACH PARTITION p2 FOR VALUES IN (2)",
            "ALTER TABLE p DETACH PARTITION p2",
        ),
        (
            "ALTER TABLE p DETACH PARTITION p1",
            "ALTER TABLE p ATTACH PARTITION p1 FOR VALUES IN (1)",
        ),
        ("ALTER TABLE c1 DISABLE TRIGGER USER", "ALTER TABLE c1 ENABLE TRIGGER USER"),
        ("ALTER TABLE c1 NO INHERIT h", "ALTER TABLE c1 INHERIT h"),
        ("CREATE TABLE c3 () INHERITS (h)", "DROP TABLE c3"),
        ("ALTER TABLE st DISABLE TRIGGER ALL", "SELECT 1"),
        ("SELECT pgstream.drop_stream_table('other')", &create_other),
    ] {
        for step in ["rebuild-begun", "source-tracked"] {
            s.run("gate", "SELECT pg_advisory_lock(7077)");
            s.monitor().run("UPDATE pgstream.pgs_stream_tables SET needs_reinit = true");
            s.run("refresher", &format!("SET pg_stream.inject_fault = '{step}'"));
            s.blocks("refresher", pgstream_tests::REFRESH);
            let started = s.step("ddl", ddl);
            s.run("gate", "SELECT pg_advisory_unlock(7077)");
            s.finish("refresher").unwrap_or_else(|error| panic!("beside {ddl}: {error}"));
            let ended = match started {
                Step::Blocked => s.finish("ddl"),
                Step::Done(result) => result,
            };
            ended.unwrap_or_else(|error| panic!("{ddl}: {error}"));
            s.run("refresher", "RESET pg_stream.inject_fault");
            for sql in ["SELECT 1", undo] {
                s.monitor().run(sql);
                s.run("refresher", pgstream_tests::REFRESH);
                s.compare("refresher", query);
            }
        }
    }
}

#[test]
fn a_source_is_altered_while_its_readers_are_dropped() {
    let database = Database::new();
    let (mut session, mut other) = (database.session(), database.session());
    session.run("CREATE TABLE t (id int, v int)");
    for number in 0..40 {
        session.run(&format!(
            "SELECT pgstream.create_stream_table('q{number}', 'SELECT id, v + 1 AS v FROM t', '1d', 'FULL')"
        ));
    }
    let dropping = std::thread::spawn(move || {
        (0..40).for_each(|it| other.run(&format!("DROP TABLE q{it}")));
    });
    while !dropping.is_finished() {
        session.run(
            "ALTER TABLE t ADD COLUMN IF NOT EXISTS w int; ALTER TABLE t DROP COLUMN IF EXISTS w",
        );
    }
    dropping.join().expect("they are dropped");
}

/// Which would come to the child, too.
#[test]
fn the_last_child_leaves_beside_a_writer_of_its_parent() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["writer", "ddl", "refresher"]);
    s.monitor().run(
        "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE child () INHERITS (t); INSERT INTO child VALUES (5, 5)",
    );
    let query = "SELECT v, count(*) AS n FROM t GROUP BY v";
    s.monitor().create("st", query);
    s.run("writer", "BEGIN; INSERT INTO t VALUES (1, 1)");
    s.run("ddl", "ALTER TABLE child NO INHERIT t");
    s.run("writer", "UPDATE t SET v = v + 1; COMMIT");
    let triggers = "SELECT string_agg(tgtype::text, ' ' ORDER BY tgtype) FROM pg_trigger WHERE tgrelid = 't'::regclass";
    let by_row = s.monitor().value(triggers);
    // Who has read it may write to it while the refresh waits.
    s.run("writer", "BEGIN; SELECT FROM t LIMIT 1");
    s.blocks("refresher", pgstream_tests::REFRESH);
    s.run("writer", "UPDATE t SET v = v + 1; COMMIT");
    s.finish("refresher").expect("nobody is in the way any more");
    s.compare("refresher", query);
    assert_ne!(s.monitor().value(triggers), by_row, "it has no children");
    s.run("writer", "UPDATE t SET v = v + 1; INSERT INTO t VALUES (7, 7)");
    s.run("refresher", pgstream_tests::REFRESH);
    s.compare("refresher", query);
}

#[test]
fn a_refresh_waits_while_its_query_is_made_anew() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["ddl", "refresher"]);
    s.monitor().run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1)");
    s.monitor().create("below", "SELECT id, v > 0 AS is_some FROM t");
    let query = "SELECT id, is_some FROM below";
    s.monitor().create("st", query);
    s.run("ddl", "BEGIN; ALTER TABLE t ALTER v TYPE bigint");
    s.blocks("refresher", pgstream_tests::REFRESH);
    s.run("ddl", "COMMIT");
    s.finish("refresher").expect("it looks again");
    s.compare("refresher", query);
}

/// Who alters what it reads need not have rights on the stream table.
#[test]
fn a_type_stays_when_rows_do_not_go_with_it_and_nobody_is_told_which() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'secret'), (2, 'secret')");
    session.create("st", "SELECT id, v FROM t");
    session.run(
        "CREATE FUNCTION f(text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS
           $$BEGIN IF length($1) < 6 THEN RAISE 'it is %', $1; END IF; RETURN true; END$$",
    );
    for (planted, ty, code) in [
        ("SELECT", "int USING 1", "22P02"),
        ("SELECT", "regclass USING 't'::regclass", "42P01"),
        ("SELECT", "regproc USING 'now'::regproc", "42883"),
        (
            "ALTER TABLE st ADD CONSTRAINT c CHECK (v::text <> 'sec')",
            "varchar(3) USING left(v, 3)",
            "23514",
        ),
        (
            "CREATE UNIQUE INDEX i ON st ((v || CASE v::text WHEN 'sec' THEN '' ELSE id::text END))",
            "varchar(3) USING left(v, 3)",
            "23505",
        ),
        (
            "ALTER TABLE st ADD CONSTRAINT c CHECK (f(v::text))",
            "varchar(3) USING left(v, 3)",
            "P0001",
        ),
    ] {
        session.run(planted);
        let error = session.error(&format!("ALTER TABLE t ALTER v TYPE {ty}"));
        assert_eq!(error.code, code, "{error}");
        assert_eq!(error.detail, "One of its rows cannot be converted to the new type.", "{error}");
        assert!(!error.to_string().contains("sec"), "{error}");
        session.run("ALTER TABLE st DROP CONSTRAINT IF EXISTS c; DROP INDEX IF EXISTS i");
    }
}

#[test]
fn a_child_keeps_columns_that_are_dropped_beside_a_change_of_type() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE p (a int, b int, c int); CREATE TABLE ch (c int) INHERITS (p); INSERT INTO ch VALUES (1, 2, 3)",
    );
    let query = "SELECT a, b, c FROM ch";
    session.create("st", query);
    for command in [
        "ALTER TABLE p ALTER b TYPE bigint, DROP COLUMN c",
        "ALTER TABLE p ALTER b TYPE numeric, DROP COLUMN IF EXISTS c",
    ] {
        session.run(command);
        session.refresh("st");
        compare_with(&mut session, "st", query, command);
    }
}

#[test]
fn a_change_of_type_that_gets_no_lock_says_so() {
    let database = Database::new();
    let (mut session, mut reader) = (database.session(), database.session());
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int)");
    session.create("st", "SELECT id, v FROM t");
    reader.run("BEGIN; SELECT FROM st");
    session.run("SET lock_timeout = '1ms'");
    let error = session.error("ALTER TABLE t ALTER v TYPE bigint");
    assert_eq!(error.code, "55P03");
    assert_eq!(error.message, "canceling statement due to lock timeout");
    reader.run("COMMIT");
    session.run("ALTER TABLE t ALTER v TYPE bigint");
}

/// As without the change of the type, which takes the query out of PostgreSQL's sight for a while.
#[test]
fn columns_are_dropped_beside_a_change_of_type() {
    for (query, table) in [
        ("SELECT id, a, b FROM s", "s"),
        ("SELECT s.id, s.a, s.b FROM s JOIN u USING (id)", "s"),
        ("SELECT to_jsonb(j) AS j FROM (s JOIN u USING (id)) AS j", "s"),
        ("SELECT id, a, b FROM parent", "parent"),
    ] {
        let database = Database::new();
        let mut session = database.session();
        session.run(
            "CREATE TABLE s (id int PRIMARY KEY, a int, b int, c int); CREATE TABLE u (id int PRIMARY KEY);
             INSERT INTO s VALUES (1, 2, 3, 4); INSERT INTO u VALUES (1); CREATE FUNCTION b(s) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 7';
             CREATE TABLE parent (id int, a int, b int, c int); CREATE TABLE child () INHERITS (parent); INSERT INTO child VALUES (1, 2, 3, 4)",
        );
        session.create("st", query);
        session.create("reader", "SELECT * FROM st");
        session.create("other", &format!("SELECT id, a FROM {table}"));
        let drop = |how: &str| format!("ALTER TABLE {table} DROP COLUMN b {how}");
        let both =
            |how: &str| format!("ALTER TABLE {table} ALTER a TYPE bigint, DROP COLUMN b {how}");
        let [plain, with_type] = [drop(""), both("")].map(|it| session.error(&it));
        assert_eq!(with_type.to_string(), plain.to_string(), "{query}");
        assert_eq!(with_type.code, "2BP01");
        session.run(&both("CASCADE"));
        let status = "SELECT pgs_name, status FROM pgstream.pgs_stream_tables ORDER BY pgs_id";
        assert_eq!(session.rows(status), ["st|ERROR", "reader|ACTIVE", "other|ACTIVE"]);
        session.run(&format!("INSERT INTO {table} VALUES (2, 5000000000)"));
        session.refresh("other");
        assert_eq!(session.rows("SELECT id, a FROM other ORDER BY 1"), ["1|2", "2|5000000000"]);
    }
}
