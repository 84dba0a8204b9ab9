//! Databases whose encoding is not UTF8. What is not ASCII there is nobody's business but its owner's,
//! and refused where it would have to be understood.

use pgstream_tests::{Comparison, Server, Session, difference};

/// A new database on the shared server, in which byte 0xE4 is a letter.
fn session(encoding: &str) -> Session {
    let server = Server::shared();
    let name = format!("encoding_{}_{}", encoding.to_lowercase(), std::process::id());
    let mut admin = server.session("postgres");
    admin.run(&format!("DROP DATABASE IF EXISTS {name}"));
    admin.run(&format!(
        "CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
    ));
    let mut session = server.session(&name);
    session.run("CREATE EXTENSION pg_stream; SET client_min_messages = warning");
    session
}

/// Runs a command in which `ä` is that byte.
fn raw(sql: &str) -> String {
    let sql = sql.replace('\\', "\\\\").replace('\'', "''").replace('ä', "\\xe4");
    // The client cannot be told where an error was.
    format!(
        "DO $do$ BEGIN EXECUTE E'{sql}'; EXCEPTION WHEN OTHERS THEN RAISE '%', SQLERRM USING ERRCODE = SQLSTATE; END $do$"
    )
}

#[test]
fn commands_on_other_objects_work() {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let mut session = session(encoding);
        session.run("CREATE TABLE s (id int PRIMARY KEY, v int)");
        session.create("st", "SELECT id, v FROM s");
        for command in [
            "CREATE TABLE \"tä\" (id int PRIMARY KEY, \"ä\" int)",
            "CREATE INDEX \"iä\" ON \"tä\" (\"ä\")",
            "ALTER TABLE \"tä\" RENAME \"ä\" TO \"ää\"",
            "ALTER TABLE \"tä\" ALTER \"ää\" TYPE bigint",
            "COMMENT ON TABLE \"tä\" IS 'ä'",
            "CREATE VIEW \"vä\" AS SELECT *, 'ä'::text AS x FROM \"tä\"",
            "CREATE FUNCTION \"fä\"() RETURNS text LANGUAGE sql RETURN 'ä'",
            "CREATE SCHEMA \"sä\"",
            "ALTER TABLE \"tä\" SET SCHEMA \"sä\"",
            "DROP SCHEMA \"sä\" CASCADE",
            "CREATE TABLE plain (id int)",
            "ALTER TABLE plain RENAME TO \"tä\"",
            "DROP TABLE \"tä\"",
            "CREATE ROLE \"rä\"",
            "DROP ROLE \"rä\"",
        ] {
            if let Err(error) = session.try_run(&raw(command)) {
                panic!("{encoding}: {command}: {error}");
            }
        }
        session.run("INSERT INTO s VALUES (1, 1)");
        session.refresh("st");
        assert_eq!(session.value("SELECT id, v FROM st"), "1|1");
    }
}

#[test]
fn values_are_maintained_whatever_they_are() {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let mut session = session(encoding);
        session.run("CREATE TABLE s (id int PRIMARY KEY, x text)");
        session.run(&raw("ALTER TABLE s ADD \"nä\" text DEFAULT 'ä'"));
        session.run(&raw("INSERT INTO s VALUES (1, 'ä'), (2, 'ää'), (3, 'a')"));
        for (name, query) in [
            ("st", "SELECT id, md5(x::bytea) AS x FROM s"),
            (
                "grouped",
                "SELECT md5(x::bytea) AS x, n FROM (SELECT x, count(*) AS n FROM s GROUP BY x) AS q",
            ),
        ] {
            session.create(name, &query.replace("x::bytea", "convert_to(x, 'SQL_ASCII')"));
        }
        session.create("values", "SELECT x, id FROM s");
        session.run(&raw("INSERT INTO s VALUES (4, 'ä'); UPDATE s SET x = 'bä' WHERE id = 2; DELETE FROM s WHERE id = 3"));
        for name in ["st", "grouped", "values"] {
            session.refresh(name);
        }
        for (name, query) in [
            ("st", "SELECT id, md5(convert_to(x, 'SQL_ASCII')) AS x FROM s"),
            (
                "grouped",
                "SELECT md5(convert_to(x, 'SQL_ASCII')) AS x, count(*) AS n FROM s GROUP BY s.x",
            ),
        ] {
            let difference =
                difference(&mut session, name, query, Comparison::Text).expect("comparable");
            assert!(difference.is_none(), "{encoding}: {difference:?}");
        }
        let equal = "SELECT count(*) FROM s JOIN \"values\" AS v USING (id) WHERE s.x = v.x";
        assert_eq!(session.value(equal), "3", "{encoding}");
    }
}

#[test]
fn what_would_have_to_be_understood_is_refused() {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let mut session = session(encoding);
        session.run("CREATE TABLE s (id int PRIMARY KEY, x text)");
        session.run(&raw("INSERT INTO s VALUES (1, 'ä'), (2, 'a')"));
        session.run(&raw("CREATE TABLE \"tä\" (id int PRIMARY KEY)"));
        session.run(&raw("CREATE TABLE t (id int PRIMARY KEY, \"ä\" int)"));
        session.run(&raw("CREATE VIEW v AS SELECT id FROM s WHERE x <> 'ä'"));
        session.run(&raw("CREATE VIEW w AS SELECT id, \"ä\" AS a FROM t"));
        for (name, query) in [
            ("st", "SELECT id FROM s WHERE x = 'ä'"),
            ("st", "SELECT id FROM \"tä\""),
            ("st", "SELECT * FROM t"),
            ("\"ä\"", "SELECT id FROM s"),
            ("st", "SELECT id FROM v"),
            ("st", "SELECT id, a FROM w"),
        ] {
            for mode in ["DIFFERENTIAL", "FULL"] {
                // Without rules of change, PostgreSQL alone has to understand what a view does.
                if mode == "FULL" && !query.contains(['"', 'ä', '*']) {
                    continue;
                }
                let create = format!(
                    "SELECT pgstream.create_stream_table('{}', '{}', '1h', '{mode}')",
                    name.replace('\'', "''"),
                    query.replace('\'', "''")
                );
                let error = session.error(&raw(&create));
                assert_eq!(error.code, "0A000", "{encoding}: {create}: {error}");
                assert!(error.to_string().contains("UTF8"), "{encoding}: {create}: {error}");
            }
        }
        for view in ["v", "w"] {
            session.run(&format!(
                "SELECT pgstream.create_stream_table('full_{view}', 'SELECT id FROM {view}', '1h', 'FULL')"
            ));
        }
        session.run(&raw("INSERT INTO s VALUES (3, 'ä'), (4, 'b'); INSERT INTO t VALUES (7, 1)"));
        session.refresh("full_v");
        session.refresh("full_w");
        assert_eq!(
            session.value("SELECT string_agg(id::text, ',' ORDER BY id) FROM full_v"),
            "2,4"
        );
        assert_eq!(session.value("SELECT id FROM full_w"), "7");
        session.create("st", "SELECT id FROM t");
        session.run("UPDATE t SET id = 1");
        session.run(&raw("ALTER TABLE t RENAME \"ä\" TO \"ää\""));
        session.refresh("st");
        assert_eq!(session.value("SELECT id FROM st"), "1");
    }
}

#[test]
fn names_that_are_not_ascii_any_more_end_what_uses_them() {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let mut session = session(encoding);
        session.run("CREATE TABLE s (id int PRIMARY KEY, v int, w int); CREATE TABLE plain (id int PRIMARY KEY)");
        session.run("INSERT INTO s VALUES (1, 2, 3); INSERT INTO plain VALUES (1)");
        session.create("st", "SELECT id, v FROM s");
        session.create("column_st", "SELECT id, w FROM s");
        session.create("other", "SELECT id FROM plain");
        session.create("renamed", "SELECT id FROM plain");
        for command in [
            "ALTER TABLE s RENAME w TO \"ä\"",
            "ALTER TABLE s RENAME TO \"sä\"",
            "ALTER TABLE renamed RENAME TO \"ä\"",
        ] {
            if let Err(error) = session.try_run(&raw(command)) {
                assert_eq!(error.code, "0A000", "{encoding}: {command}: {error}");
            }
        }
        session.run("INSERT INTO plain VALUES (2)");
        session.refresh("other");
        let count = "SELECT count(*) FROM ";
        assert_eq!(session.value(&format!("{count} other")), "2");
        session.run(&raw("DO $$ BEGIN INSERT INTO \"sä\" VALUES (2, 3, 4); EXCEPTION WHEN undefined_table THEN INSERT INTO s VALUES (2, 3, 4); END $$"));
        for name in ["st", "column_st"] {
            // It is refreshed or tells why not.
            match session.try_run(&format!("SELECT pgstream.refresh_stream_table('{name}')")) {
                Ok(()) => {
                    assert_eq!(session.value(&format!("{count} {name}")), "2", "{encoding}: {name}")
                }
                Err(error) => assert_eq!(error.code, "0A000", "{encoding}: {name}: {error}"),
            }
        }
        session.run(&raw("CREATE FUNCTION \"fä\"() RETURNS int LANGUAGE sql AS 'SELECT 1'"));
        session.run(&raw("CREATE VIEW v AS SELECT id + \"fä\"() AS id FROM plain"));
        session
            .run("SELECT pgstream.create_stream_table('full_v', 'SELECT id FROM v', '1h', 'FULL')");
        session.run(&raw(
            "CREATE OR REPLACE FUNCTION \"fä\"() RETURNS int LANGUAGE sql AS 'SELECT 2'",
        ));
        session.refresh("full_v");
        assert_eq!(
            session.value("SELECT string_agg(id::text, ',' ORDER BY id) FROM full_v"),
            "3,4"
        );
        session.run(&raw("ALTER FUNCTION \"fä\" RENAME TO \"ff\""));
        session.run(&raw("CREATE TABLE \"sö\" (id int, x int, \"ä\" int)").replace('ö', "\\xf6"));
        session.run(&raw("CREATE VIEW u AS SELECT id FROM \"sö\"").replace('ö', "\\xf6"));
        session
            .run("SELECT pgstream.create_stream_table('full_u', 'SELECT id FROM u', '1h', 'FULL')");
        for command in [
            "ALTER TABLE \"sö\" ALTER \"ä\" TYPE bigint",
            "ALTER TABLE \"sö\" ALTER x TYPE bigint",
            "ALTER TABLE \"sö\" RENAME x TO \"xä\"",
            "ALTER TABLE \"sö\" DROP COLUMN \"ä\"",
            "TRUNCATE \"sö\"",
            "INSERT INTO \"sö\" VALUES (5)",
        ] {
            session.run(&raw(command).replace('ö', "\\xf6"));
        }
        session.refresh("full_u");
        assert_eq!(session.value("SELECT id FROM full_u"), "5");
        session.run(&raw("CREATE OR REPLACE VIEW v AS SELECT id, 'ä'::text AS \"ä\" FROM plain"));
        session.refresh("full_v");
        assert_eq!(
            session.value("SELECT string_agg(id::text, ',' ORDER BY id) FROM full_v"),
            "1,2"
        );
    }
}

#[test]
fn a_message_that_is_not_ascii_is_recorded() {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let server = Server::start(&[
            "fsync=off",
            "pg_stream.scheduler_interval_ms=100",
            "pg_stream.min_schedule_seconds=1",
        ]);
        let mut admin = server.session("postgres");
        admin.run(&format!(
            "CREATE DATABASE other ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
        ));
        let mut session = server.session("other");
        session.run("CREATE EXTENSION pg_stream; CREATE TABLE s (id int PRIMARY KEY)");
        session.run("SELECT pgstream.create_stream_table('st', 'SELECT id FROM s', '1s')");
        session.run(&raw("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''nä: %'', NEW.id; END'"));
        session.run("CREATE TRIGGER f BEFORE INSERT ON st FOR EACH ROW EXECUTE FUNCTION f()");
        session.run("INSERT INTO s VALUES (7)");
        session.wait_until(
            "SELECT EXISTS (SELECT FROM pgstream.pgs_refresh_history WHERE status = 'FAILED' AND error_message LIKE 'n%: 7')",
        );
        session.run("DROP TRIGGER f ON st");
        session.wait_until("SELECT EXISTS (SELECT FROM st)");
    }
}
