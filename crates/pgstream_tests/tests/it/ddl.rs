//! Changes of a source's definition: the next refresh is right, or the change is refused, or the
//! refresh says why it cannot go on; never a wrong row.

use pgstream_tests::{Comparison, Database, Session, difference};

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
    if let Some(difference) =
        difference(session, "st", &query, Comparison::Value).expect("comparable")
    {
        panic!("{query}\nafter {after}\n{difference}");
    }
}

/// Changes rows, then the definition, then rows again; refreshes in between or not.
#[track_caller]
fn survives(ddl: &str, change_after: &str) {
    for refresh_before in [true, false] {
        let (mut session, _database) = create();
        session.run("UPDATE t SET v = v + 1 WHERE id < 5; INSERT INTO t VALUES (100, 1, 100, 'x')");
        if refresh_before {
            session.refresh("st");
        }
        if let Err(error) = session.try_run(ddl) {
            assert!(!error.code.starts_with("XX"), "{ddl}\n{error}");
            session.refresh("st");
            compare(&mut session, ddl);
            continue;
        }
        session.run(change_after);
        session.refresh("st");
        compare(&mut session, ddl);
        session.run("DELETE FROM d WHERE name = 'two'");
        session.refresh("st");
        compare(&mut session, ddl);
    }
}

#[test]
fn a_column_is_added() {
    survives(
        "ALTER TABLE t ADD COLUMN w int DEFAULT 5",
        "INSERT INTO t VALUES (200, 2, 2, 'x', 7); UPDATE t SET v = 0 WHERE id = 1",
    );
}

#[test]
fn an_unused_column_is_dropped() {
    survives(
        "ALTER TABLE t DROP COLUMN unused",
        "INSERT INTO t VALUES (200, 2, 2); UPDATE t SET v = 0 WHERE id = 1",
    );
}

#[test]
fn a_used_column_is_renamed() {
    survives(
        "ALTER TABLE t RENAME COLUMN v TO amount",
        "INSERT INTO t VALUES (200, 2, 2); UPDATE t SET amount = 0 WHERE id = 1",
    );
}

#[test]
fn a_source_is_renamed_or_moved() {
    survives(
        "ALTER TABLE t RENAME TO t2",
        "INSERT INTO t2 VALUES (200, 2, 2); UPDATE t2 SET v = 0 WHERE id = 1",
    );
    survives(
        "CREATE SCHEMA s; ALTER TABLE t SET SCHEMA s",
        "INSERT INTO s.t VALUES (200, 2, 2); UPDATE s.t SET v = 0 WHERE id = 1",
    );
}

#[test]
fn a_used_columns_type_is_changed() {
    survives("ALTER TABLE t ALTER COLUMN v TYPE numeric(12,3)", "INSERT INTO t VALUES (200, 2, 2)");
    survives("ALTER TABLE t ALTER COLUMN g TYPE bigint", "INSERT INTO t VALUES (200, 2, 2)");
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
fn capture_is_switched_off() {
    survives(
        "ALTER TABLE t DISABLE TRIGGER USER",
        "INSERT INTO t VALUES (200, 2, 2); ALTER TABLE t ENABLE TRIGGER USER",
    );
    survives(
        "ALTER TABLE t DISABLE TRIGGER ALL",
        "INSERT INTO t VALUES (200, 2, 2); ALTER TABLE t ENABLE TRIGGER ALL",
    );
}

#[test]
fn the_storage_is_renamed_moved_or_given_away() {
    let (mut session, database) = create();
    let role = format!("heir_{}", database.name());
    session.run(&format!("CREATE ROLE {role}; CREATE SCHEMA s"));
    for (ddl, name) in
        [("ALTER TABLE st RENAME TO st9", "st9"), ("ALTER TABLE st9 SET SCHEMA s", "s.st9")]
    {
        if let Err(error) = session.try_run(ddl) {
            assert!(!error.code.starts_with("XX"), "{ddl}\n{error}");
            break;
        }
        session.run("UPDATE t SET v = v + 1");
        session.refresh(name);
        let difference =
            difference(&mut session, name, QUERY, Comparison::Text).expect("comparable");
        assert!(difference.is_none(), "{ddl}");
    }
    session.run(&format!("DROP ROLE {role}"));
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

#[test]
fn a_view_is_replaced() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1), (2, 2); CREATE VIEW w AS SELECT id, v FROM t WHERE v > 1");
    session.create("st", "SELECT id, v FROM w");
    session.run("CREATE OR REPLACE VIEW w AS SELECT id, v FROM t WHERE v > 0");
    session.run("INSERT INTO t VALUES (3, 3)");
    session.refresh("st");
    let difference = difference(&mut session, "st", "SELECT id, v FROM w", Comparison::Text)
        .expect("comparable");
    assert!(difference.is_none(), "{}", difference.expect("some"));
}

#[test]
fn a_function_is_replaced() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1), (2, 2); CREATE FUNCTION f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1'");
    session.create("st", "SELECT id, f(v) AS f FROM t");
    session.run(
        "CREATE OR REPLACE FUNCTION f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 10'",
    );
    session.run("INSERT INTO t VALUES (3, 3)");
    session.refresh("st");
    let difference =
        difference(&mut session, "st", "SELECT id, f(v) AS f FROM t", Comparison::Text)
            .expect("comparable");
    assert!(difference.is_none(), "{}", difference.expect("some"));
}

#[test]
fn a_used_column_is_dropped_with_cascade() {
    let (mut session, _database) = create();
    assert_eq!(session.error("ALTER TABLE t DROP COLUMN v").code, "2BP01");
    assert_eq!(session.error("DROP TABLE d").code, "2BP01");
    let rows = session.value("SELECT count(*) FROM st");
    if session.try_run("DROP TABLE d CASCADE").is_ok() {
        // Its contents are kept, and it says why it cannot go on; or it is gone altogether.
        if session.value("SELECT count(*) FROM pg_class WHERE relname = 'st'") == "1" {
            assert_eq!(session.value("SELECT count(*) FROM st"), rows);
            assert_eq!(session.value("SELECT status FROM pgstream.pgs_status()"), "ERROR");
            let error = session.error("SELECT pgstream.refresh_stream_table('st')");
            assert!(!error.code.starts_with("XX"), "{error}");
        }
    }
    session.run("INSERT INTO t VALUES (300, 1, 1)");
}
