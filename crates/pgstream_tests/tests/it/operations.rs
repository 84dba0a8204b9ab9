//! What administrators do around stream tables: event triggers switched off, settings of a database
//! or a role, roles that change, maintenance between changes and refreshes.

use pgstream_tests::{
    Comparison, Database, REFRESH, Server, Session, Sessions, difference, orphans,
};

const TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, g int, v int);
    INSERT INTO t SELECT i, i % 3, i FROM generate_series(1, 30) i";
/// With hidden state: an inner stage.
const QUERY: &str = "SELECT n, count(*) AS groups, sum(s) AS s FROM (SELECT g, count(*) AS n, sum(v) AS s FROM t GROUP BY g) AS q GROUP BY n";
const CHANGE: &str = "INSERT INTO t VALUES (100, 1, 1), (101, 7, 1); DELETE FROM t WHERE id < 4; UPDATE t SET g = g + 1 WHERE id % 5 = 0";

#[track_caller]
fn compare(session: &mut Session, table: &str, query: &str, after: &str) {
    let difference = difference(session, table, query, Comparison::Text).expect("comparable");
    if let Some(difference) = difference {
        panic!("{table} after {after}\n{difference}");
    }
}

/// A server with a scheduler in a hurry.
fn scheduled(settings: &[&str]) -> Database {
    let usual =
        ["fsync=off", "pg_stream.scheduler_interval_ms=100", "pg_stream.min_schedule_seconds=1"];
    Database::on(Server::start(&[&usual, settings].concat()))
}

const WITHOUT_EVENT_TRIGGERS: &str = "SET event_triggers = off";

#[test]
fn what_is_dropped_without_event_triggers_is_forgotten_by_the_scheduler() {
    let database = scheduled(&[]);
    let mut session = database.session();
    session.run(TABLES);
    session.run("CREATE SCHEMA s; CREATE TABLE u AS SELECT * FROM t");
    session.create("st", QUERY);
    session.create("reader", "SELECT n FROM st WHERE n > 1");
    session.create("s.st", QUERY);
    session.create("of_u", "SELECT g, count(*) AS n FROM (SELECT DISTINCT u.g, t.v FROM u JOIN t USING (id)) AS q GROUP BY g");
    session.create("kept", QUERY);
    session.run(&format!(
        "BEGIN; {WITHOUT_EVENT_TRIGGERS}; DROP TABLE st, u CASCADE; DROP SCHEMA s CASCADE; RESET event_triggers; COMMIT"
    ));
    session.wait_until("SELECT count(*) = 3 AND count(*) FILTER (WHERE status = 'ERROR') = 2 FROM pgstream.pgs_stream_tables");
    session.wait_until("SELECT count(*) = 1 FROM pgstream.pgs_change_tracking");
    assert_eq!(orphans(&mut session).expect("readable"), [""; 0]);
    assert_eq!(
        session.rows(
            "SELECT pgs_name, status, error_message FROM pgstream.pgs_stream_tables ORDER BY 1"
        ),
        [
            "kept|ACTIVE|NULL",
            "of_u|ERROR|something that it reads was dropped",
            "reader|ERROR|something that it reads was dropped"
        ]
    );
    session.run(CHANGE);
    session.refresh("kept");
    compare(&mut session, "kept", QUERY, "others were dropped");
}

#[test]
fn what_is_renamed_and_given_away_without_event_triggers_is_noticed_by_the_scheduler() {
    let database = scheduled(&[]);
    let mut session = database.session();
    let heir = format!("heir_{}", database.name());
    session.run(TABLES);
    session.run(&format!("CREATE SCHEMA s; CREATE ROLE {heir}; GRANT SELECT ON t TO {heir}; GRANT USAGE ON SCHEMA s TO {heir}"));
    session.create("st", QUERY);
    session.create("kept", QUERY);
    session.run(&format!(
        "BEGIN; {WITHOUT_EVENT_TRIGGERS}; ALTER TABLE st RENAME TO \"New\"; ALTER TABLE \"New\" SET SCHEMA s;
         ALTER TABLE s.\"New\" OWNER TO {heir}; RESET event_triggers; COMMIT"
    ));
    session.wait_until("SELECT count(*) = 1 FROM pgstream.pgs_status() WHERE name = 's.New'");
    assert_eq!(orphans(&mut session).expect("readable"), [""; 0]);
    session.run(CHANGE);
    for table in ["s.\"New\"", "kept"] {
        session.refresh(table);
        compare(&mut session, table, QUERY, "renaming");
    }
    session.create("st", QUERY);
}

#[test]
fn a_stream_table_that_was_dropped_without_event_triggers_makes_room_for_another() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    for again in [
        "SELECT 1",
        "SELECT pgstream.drop_stream_table('st')",
        "SELECT pgstream.drop_stream_table('public.st')",
    ] {
        session.create("st", QUERY);
        session.run(CHANGE);
        session.run(&format!(
            "BEGIN; {WITHOUT_EVENT_TRIGGERS}; DROP TABLE st; RESET event_triggers; COMMIT"
        ));
        session.run(again);
        assert_eq!(session.error(REFRESH).code, "42P01");
        session.create("st", QUERY);
        session.run("DELETE FROM t WHERE id > 99");
        session.refresh("st");
        compare(&mut session, "st", QUERY, again);
        assert_eq!(orphans(&mut session).expect("readable"), [""; 0], "{again}");
        session.run("SELECT pgstream.drop_stream_table('st'); TRUNCATE t; INSERT INTO t SELECT i, i % 3, i FROM generate_series(1, 30) i");
    }
    for name in ["st", "s.st"] {
        let error = session.error(&format!("SELECT pgstream.drop_stream_table('{name}')"));
        assert_eq!(error.code, "42P01", "{error}");
    }
    assert_eq!(orphans(&mut session).expect("readable"), [""; 0]);
}

/// Never a wrong row: what is not noticed is refused, rebuilt or harmless.
#[test]
fn sources_are_altered_without_event_triggers() {
    for ddl in [
        "ALTER TABLE t ADD COLUMN w int DEFAULT 7",
        "ALTER TABLE t ADD COLUMN w float DEFAULT random()",
        "ALTER TABLE t RENAME COLUMN id TO key; ALTER TABLE t RENAME COLUMN key TO id",
        "ALTER TABLE t DROP CONSTRAINT t_pkey",
        "ALTER TABLE t DISABLE TRIGGER USER; DELETE FROM t WHERE id = 9; ALTER TABLE t ENABLE TRIGGER USER",
        "ALTER TABLE t DISABLE TRIGGER USER; DELETE FROM t WHERE id = 9",
        "CREATE TABLE child (LIKE t); INSERT INTO child VALUES (300, 1, 1); ALTER TABLE child INHERIT t",
        "CREATE TABLE child () INHERITS (t); INSERT INTO child VALUES (300, 1, 1)",
        "VACUUM t",
        "TRUNCATE t",
    ] {
        let database = Database::new();
        let mut session = database.session();
        session.run(TABLES);
        session.create("st", QUERY);
        session.refresh("st");
        session.run(WITHOUT_EVENT_TRIGGERS);
        for statement in ddl.split("; ") {
            session.run(statement);
        }
        session.run("RESET event_triggers");
        session.refresh("st");
        compare(&mut session, "st", QUERY, ddl);
        session.run(CHANGE);
        session.run("UPDATE t SET v = v + 1");
        session.refresh("st");
        compare(&mut session, "st", QUERY, ddl);
    }
}

#[test]
fn partitions_come_and_go_without_event_triggers() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE p (id int, v int) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
         CREATE TABLE deep PARTITION OF p FOR VALUES FROM (40) TO (60) PARTITION BY RANGE (id);
         CREATE TABLE p2 (id int, v int); INSERT INTO p2 VALUES (15, 15); INSERT INTO p VALUES (1, 1)",
    );
    let query = "SELECT id, v FROM p";
    session.create("st", query);
    for ddl in [
        "ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)",
        "INSERT INTO p2 VALUES (16, 16); INSERT INTO p VALUES (17, 17); UPDATE p SET id = id + 10 WHERE id = 1",
        "CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (20) TO (30); INSERT INTO p3 VALUES (21, 1)",
        "INSERT INTO p3 VALUES (25, 25); UPDATE p SET v = v + 1",
        "ALTER TABLE p DETACH PARTITION p2",
        "UPDATE p2 SET v = 0; INSERT INTO p VALUES (2, 2)",
        "DROP TABLE p3",
        "INSERT INTO p VALUES (3, 3)",
        "CREATE TABLE p4 (id int, v int); INSERT INTO p4 VALUES (45, 45); ALTER TABLE deep ATTACH PARTITION p4 FOR VALUES FROM (40) TO (50)",
        "UPDATE p SET id = id + 1",
    ] {
        session
            .run(&format!("BEGIN; {WITHOUT_EVENT_TRIGGERS}; {ddl}; RESET event_triggers; COMMIT"));
        session.refresh("st");
        compare(&mut session, "st", query, ddl);
    }
}

#[test]
fn children_leave_without_event_triggers() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE n (id int, v int); CREATE TABLE c () INHERITS (n); CREATE TABLE d () INHERITS (n); CREATE TABLE e () INHERITS (d);
         INSERT INTO n VALUES (1, 1); INSERT INTO c VALUES (2, 2); INSERT INTO d VALUES (3, 3); INSERT INTO e VALUES (4, 4)",
    );
    let query = "SELECT id, v FROM n";
    session.create("st", query);
    // By another session, and what this one knows by now.
    let mut other = database.session();
    for ddl in ["ALTER TABLE c NO INHERIT n", "DROP TABLE e", "ALTER TABLE d NO INHERIT n"] {
        session.refresh("st");
        session.refresh("st");
        other.run(&format!("BEGIN; {WITHOUT_EVENT_TRIGGERS}; {ddl}; COMMIT"));
        session.refresh("st");
        compare(&mut session, "st", query, ddl);
        session.run("INSERT INTO n VALUES (5, 5); UPDATE n SET v = v + 1");
        session.refresh("st");
        compare(&mut session, "st", query, ddl);
    }
}

/// Between two refreshes, so that none sees them.
#[test]
fn members_come_and_go_without_event_triggers() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE n (a int); INSERT INTO n VALUES (1); CREATE TABLE m (a int); CREATE TABLE m1 () INHERITS (m); INSERT INTO m VALUES (1);
         CREATE TABLE p (a int) PARTITION BY RANGE (a); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); INSERT INTO p VALUES (1)",
    );
    for table in ["n", "m", "p"] {
        session.create(&format!("of_{table}"), &format!("SELECT sum(a) AS s FROM {table}"));
    }
    let mut other = database.session();
    other.run(WITHOUT_EVENT_TRIGGERS);
    for (number, write, leave) in [
        (1, "UPDATE TABLE SET a = a + 1", "DROP TABLE c"),
        (2, "DELETE FROM TABLE WHERE a > 1", "DROP TABLE c"),
        (3, "INSERT INTO TABLE VALUES (250), (350)", "ALTER TABLE c LEAVE"),
    ] {
        for (table, join, left) in [
            ("n", "INHERITS (n)", "NO INHERIT n"),
            ("m", "INHERITS (m)", "NO INHERIT m"),
            ("p", "PARTITION OF p DEFAULT", ""),
        ] {
            let columns = if table == "p" { "" } else { "()" };
            other.run(&format!(
                "CREATE TABLE c {columns} {join}; INSERT INTO c VALUES ({number}00)"
            ));
            other.run(&write.replace("TABLE", table));
            if table == "p" && leave.contains("LEAVE") {
                other.run("ALTER TABLE p DETACH PARTITION c");
            } else {
                other.run(&leave.replace("LEAVE", left));
            }
            other.run("DROP TABLE IF EXISTS c");
            session.refresh(&format!("of_{table}"));
            let query = format!("SELECT sum(a) AS s FROM {table}");
            compare(&mut session, &format!("of_{table}"), &query, write);
            session.run(&format!("INSERT INTO {table} VALUES (2); UPDATE {table} SET a = a + 1"));
            session.refresh(&format!("of_{table}"));
            compare(&mut session, &format!("of_{table}"), &query, "changes after that");
        }
    }
    session.run("CREATE TABLE parent (a int)");
    other.run("ALTER TABLE n INHERIT parent; UPDATE parent SET a = a + 1");
    session.refresh("of_n");
    compare(&mut session, "of_n", "SELECT sum(a) AS s FROM n", "a new parent");
}

/// Manual refreshes under settings of the database, which suit what users do.
#[test]
fn settings_of_a_database_do_not_change_what_a_refresh_does() {
    for setting in [
        "default_transaction_isolation = 'serializable'",
        "default_transaction_deferrable = on",
        "row_security = off",
        "search_path = ''",
        "session_replication_role = replica",
        "event_triggers = off",
        "check_function_bodies = off",
        "jit_above_cost = 0",
        "transaction_timeout = '20s'",
        "array_nulls = off",
        "transform_null_equals = on",
        "standard_conforming_strings = off",
        "extra_float_digits = -15",
        "debug_parallel_query = on",
        "restrict_nonsystem_relation_kind = 'view'",
    ] {
        let database = Database::new();
        let mut session = database.session();
        session.run(TABLES);
        session.create("before", QUERY);
        session.run(&format!("ALTER DATABASE {} SET {setting}", database.name()));
        let mut session = database.session();
        session.create("public.st", &QUERY.replace("FROM t", "FROM public.t"));
        session.run(&CHANGE.replace(" t ", " public.t "));
        for table in ["public.before", "public.st"] {
            session.refresh(table);
        }
        session.run(&format!("ALTER DATABASE {} RESET ALL", database.name()));
        let mut session = database.session();
        for table in ["before", "st"] {
            compare(&mut session, table, QUERY, setting);
        }
        assert_eq!(orphans(&mut session).expect("readable"), [""; 0], "{setting}");
    }
}

/// What is set for users, by the file, a database or a role, does not reach the scheduler's processes.
#[test]
fn scheduled_refreshes_do_not_mind_timeouts_and_defaults() {
    let database =
        scheduled(&["statement_timeout=30s", "idle_in_transaction_session_timeout=20ms"]);
    let name = database.name();
    let mut session = database.session();
    session.run(TABLES);
    session.run(&format!(
        "CREATE ROLE \"owner {name}\" CONNECTION LIMIT 0 NOLOGIN;
         ALTER TABLE t OWNER TO \"owner {name}\"; GRANT CREATE ON SCHEMA public TO \"owner {name}\""
    ));
    for (scope, setting) in [
        ("DATABASE", "statement_timeout = '1ms'"),
        ("DATABASE", "transaction_timeout = '1ms'"),
        ("DATABASE", "lock_timeout = '1ms'"),
        ("DATABASE", "idle_session_timeout = '1ms'"),
        ("DATABASE", "default_transaction_isolation = 'serializable'"),
        ("DATABASE", "default_transaction_deferrable = on"),
        ("DATABASE", "default_transaction_read_only = on"),
        ("DATABASE", "search_path = ''"),
        ("DATABASE", "row_security = off"),
        ("DATABASE", "temp_tablespaces = ''"),
        ("ROLE postgres IN DATABASE", "statement_timeout = '2ms'"),
        ("ROLE postgres IN DATABASE", "transaction_timeout = '2ms'"),
        ("ROLE postgres IN DATABASE", "default_transaction_read_only = on"),
    ] {
        session.run(&format!("ALTER {scope} {name} SET {setting}"));
    }
    session.run(&format!("ALTER DATABASE {name} CONNECTION LIMIT 0"));
    session.run(&format!("ALTER ROLE \"owner {name}\" SET statement_timeout = '1ms'"));
    session.run(&format!("SET ROLE \"owner {name}\"; SELECT pgstream.create_stream_table('st', '{QUERY}', '1s'); RESET ROLE"));
    // New processes, which have these settings.
    session.run("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name LIKE 'pg_stream scheduler%' OR backend_type LIKE 'pg_stream %' AND datname = current_database()");
    session.run("SET transaction_timeout = 0");
    for round in 1..4 {
        session.run(&format!(
            "INSERT INTO t SELECT i, i % 7, i FROM generate_series({round}000, {round}100) i"
        ));
        session.wait_until("SELECT sum(s) = (SELECT sum(v) FROM t) FROM st");
        compare(&mut session, "st", QUERY, "a scheduled refresh");
        session.run("ALTER SYSTEM SET work_mem = '5MB'");
        session.run("ALTER SYSTEM SET transaction_timeout = '1ms'");
        session.run("SELECT pg_reload_conf()");
    }
    assert_eq!(
        session.rows(
            "SELECT error_message FROM pgstream.pgs_refresh_history WHERE status <> 'COMPLETED'"
        ),
        [""; 0]
    );
    // A user's session is told.
    session.run("INSERT INTO t VALUES (-1, 1, 1)");
    assert_eq!(session.error(&format!("BEGIN READ ONLY; {REFRESH}")).code, "25006");
    session.run("ROLLBACK");
}

#[test]
fn a_database_is_renamed_and_its_owner_too() {
    let database = scheduled(&[]);
    let name = database.name().to_owned();
    let mut session = database.session();
    session.run(TABLES);
    session.run(&format!("CREATE ROLE {name}_a; GRANT SELECT ON t TO {name}_a; GRANT CREATE ON SCHEMA public TO {name}_a; SET ROLE {name}_a"));
    session.run(&format!("SELECT pgstream.create_stream_table('st', '{QUERY}', '1s'); RESET ROLE"));
    session.run(CHANGE);
    session.wait_until("SELECT sum(s) = (SELECT sum(v) FROM t) FROM st");
    session.run(&format!("ALTER ROLE {name}_a RENAME TO {name}_b"));
    drop(session);
    let mut admin = database.server().session("postgres");
    admin.run(&format!("ALTER DATABASE {name} RENAME TO {name}_other"));
    let mut session = database.server().session(&format!("{name}_other"));
    session.run("DELETE FROM t WHERE id % 4 = 0");
    session.wait_until("SELECT sum(s) = (SELECT sum(v) FROM t) FROM st");
    compare(&mut session, "st", QUERY, "renaming");
    drop(session);
    admin.run(&format!("ALTER DATABASE {name}_other RENAME TO {name}"));
}

/// A failure of each kind is told in the history, contents are kept, and all is right in the end.
#[test]
fn rights_are_lost_and_come_back_under_the_scheduler() {
    let database = scheduled(&["pg_stream.max_consecutive_errors=100"]);
    let name = database.name().to_owned();
    let (owner, heir) = (format!("{name}_owner"), format!("{name}_heir"));
    let mut session = database.session();
    session.run(TABLES);
    session.run(&format!("CREATE ROLE {owner}; CREATE ROLE {heir}; GRANT SELECT ON t TO {owner}; GRANT CREATE, USAGE ON SCHEMA public TO {owner}, {heir}; SET ROLE {owner}"));
    session.run(&format!("SELECT pgstream.create_stream_table('st', '{QUERY}', '1s'); RESET ROLE"));
    let right = "SELECT sum(s) = (SELECT sum(v) FROM t) FROM st";
    let failed = "SELECT count(*) > 0 FROM pgstream.get_refresh_history('st', 1) WHERE status = 'FAILED' AND error_message = 'permission denied for table t'";
    session.run(&format!("REVOKE SELECT ON t FROM {owner}; {CHANGE}"));
    session.wait_until(failed);
    assert_eq!(session.value("SELECT sum(groups) FROM st"), "3");
    session.run(&format!("GRANT SELECT ON t TO {owner}"));
    session.wait_until(right);
    compare(&mut session, "st", QUERY, "granting again");
    // The source has another owner, who grants nothing that was not granted before.
    session.run(&format!("ALTER TABLE t OWNER TO {heir}; UPDATE t SET v = v + 1"));
    session.wait_until(right);
    // The stream table has another one, who owns the source.
    session.run(&format!("REASSIGN OWNED BY {owner} TO {heir}; UPDATE t SET v = v + 1"));
    session.wait_until(right);
    compare(&mut session, "st", QUERY, "REASSIGN OWNED");
    session.run(&format!("REVOKE ALL ON t FROM {heir}; UPDATE t SET v = v + 1"));
    session.wait_until(failed);
    session.run(&format!("GRANT SELECT ON t TO {heir}; DROP OWNED BY {owner}; DROP ROLE {owner}"));
    session.wait_until(right);
    compare(&mut session, "st", QUERY, "DROP ROLE");
    assert_eq!(orphans(&mut session).expect("readable"), [""; 0]);
    session.run(&format!("DROP OWNED BY {heir} CASCADE; DROP ROLE {heir}"));
    assert_eq!(orphans(&mut session).expect("readable"), [""; 0]);
    assert_eq!(session.value("SELECT count(*) FROM pgstream.pgs_stream_tables"), "0");
}

/// A code of the user's own is only a failure.
#[test]
fn a_scheduled_refresh_tells_the_users_own_error() {
    let database = scheduled(&["pg_stream.max_consecutive_errors=2"]);
    let mut session = database.session();
    session.run(TABLES);
    session.run("LISTEN pg_stream_alert");
    session.run(&format!("SELECT pgstream.create_stream_table('st', '{QUERY}', '1s')"));
    session.run(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no %', 'more' USING ERRCODE = 'MY001'; END $$;
         CREATE TRIGGER no AFTER INSERT OR UPDATE OR DELETE ON st FOR EACH ROW EXECUTE FUNCTION no()",
    );
    session.run(CHANGE);
    session.wait_until("SELECT status = 'SUSPENDED' FROM pgstream.pgs_stream_tables");
    assert_eq!(
        session.rows("SELECT DISTINCT error_message FROM pgstream.get_refresh_history('st') WHERE status = 'FAILED'"),
        ["no more"]
    );
    let alerts = session.notifications("pg_stream_alert");
    assert!(
        alerts.iter().any(|it| it.contains("refresh_failed") && it.contains("no more")),
        "{alerts:?}"
    );
    session.run("DROP TRIGGER no ON st; SELECT pgstream.resume_stream_table('st')");
    session.wait_until("SELECT sum(s) = (SELECT sum(v) FROM t) FROM st");
    compare(&mut session, "st", QUERY, "repair");
}

/// Between changes and the refresh.
#[test]
fn tables_are_maintained() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.create("st", QUERY);
    let buffer = session.value("SELECT buffer_relid::regclass FROM pgstream.pgs_change_tracking");
    let stage = session.value(
        "SELECT oid::regclass FROM pg_class WHERE relname LIKE 'stage\\_%' AND relkind = 'r' ORDER BY relname LIMIT 1",
    );
    let index = session.value(&format!(
        "SELECT indexrelid::regclass FROM pg_index WHERE indrelid = '{stage}'::regclass LIMIT 1"
    ));
    let mut round = 0;
    for table in ["t", "st", &buffer, &stage] {
        for command in [
            "VACUUM FULL",
            "VACUUM (FREEZE, ANALYZE)",
            "REINDEX TABLE CONCURRENTLY",
            "REINDEX TABLE",
            "ALTER TABLE TABLE_ SET TABLESPACE pg_default",
            "ANALYZE",
        ] {
            round += 1;
            session.run(&format!("INSERT INTO t VALUES ({round}000, {round} % 7, 1); DELETE FROM t WHERE id = {round}; UPDATE t SET g = g + 1 WHERE id % 11 = 0"));
            let command = if command.contains("TABLE_") {
                command.replace("TABLE_", table)
            } else {
                format!("{command} {table}")
            };
            match session.try_run(&command) {
                Ok(()) => {}
                Err(error) => panic!("{command}: {error}"),
            }
            session.run("UPDATE t SET v = v + 1 WHERE id % 3 = 0");
            session.refresh("st");
            compare(&mut session, "st", QUERY, &command);
        }
    }
    session.run(&format!(
        "UPDATE t SET v = v + 1; CLUSTER {stage} USING {}",
        index.rsplit('.').next().expect("a name")
    ));
    session.refresh("st");
    compare(&mut session, "st", QUERY, "CLUSTER");
    session.run("UPDATE t SET v = v + 1");
    session.run("REINDEX DATABASE CONCURRENTLY");
    session.refresh("st");
    compare(&mut session, "st", QUERY, "REINDEX DATABASE");
    session.run("UPDATE t SET v = v + 1");
    session.run("VACUUM FULL");
    session.refresh("st");
    compare(&mut session, "st", QUERY, "VACUUM FULL");
}

#[test]
fn tables_move_between_tablespaces() {
    let database = Database::on(Server::start(&[
        "fsync=off",
        "pg_stream.enabled=off",
        "allow_in_place_tablespaces=on",
    ]));
    let mut session = database.session();
    let name = database.name().to_owned();
    session.run("CREATE TABLESPACE one LOCATION ''");
    session.run("CREATE TABLESPACE two LOCATION ''");
    session.run("CREATE TABLESPACE three LOCATION ''");
    session.run(TABLES);
    session.create("st", QUERY);
    session.run(&format!("{CHANGE}; ALTER TABLE t SET TABLESPACE one; ALTER TABLE st SET TABLESPACE two; UPDATE t SET v = v + 1"));
    session.refresh("st");
    compare(&mut session, "st", QUERY, "SET TABLESPACE");
    session.run("ALTER INDEX t_pkey SET TABLESPACE two; UPDATE t SET v = v + 1");
    session.run("ALTER TABLE ALL IN TABLESPACE pg_default SET TABLESPACE two");
    session.run("DELETE FROM t WHERE id % 4 = 0");
    session.refresh("st");
    compare(&mut session, "st", QUERY, "ALTER TABLE ALL");
    session.run(&format!("ALTER DATABASE {name} SET default_tablespace = one; ALTER DATABASE {name} SET temp_tablespaces = two; ALTER DATABASE {name} SET work_mem = '64kB'"));
    session = database.session();
    session.create("st2", QUERY);
    session.run("UPDATE t SET g = g + 1; INSERT INTO t SELECT i, i % 100, i FROM generate_series(1000, 9000) i");
    for table in ["st", "st2"] {
        session.refresh(table);
        compare(&mut session, table, QUERY, "default_tablespace");
    }
    drop(session);
    database
        .server()
        .session("postgres")
        .run(&format!("ALTER DATABASE {name} SET TABLESPACE three"));
    let mut session = database.session();
    session.run("UPDATE t SET g = g + 1");
    for table in ["st", "st2"] {
        session.refresh(table);
        compare(&mut session, table, QUERY, "ALTER DATABASE SET TABLESPACE");
    }
    assert_eq!(orphans(&mut session).expect("readable"), [""; 0]);
}

/// Whatever the default of the session that creates them, which is no superuser but for that.
#[test]
fn hidden_tables_lie_where_what_they_belong_to_does() {
    let database = Database::on(Server::start(&["fsync=off", "pg_stream.enabled=off"]));
    let mut session = database.session();
    session.run("SET allow_in_place_tablespaces = on");
    session.run("CREATE TABLESPACE one LOCATION ''");
    session.run("CREATE TABLESPACE two LOCATION ''");
    session.run(TABLES);
    session.run("CREATE ROLE alice; GRANT CREATE ON TABLESPACE one TO alice; GRANT CREATE ON SCHEMA public TO alice; GRANT SELECT ON t TO alice");
    session.run("CREATE TABLE u (id int PRIMARY KEY, g int) TABLESPACE two; GRANT SELECT ON u TO alice; SET ROLE alice");
    let query = "SELECT n, count(*) AS groups FROM (SELECT g, count(*) AS n FROM t JOIN u USING (id, g) GROUP BY g) AS q GROUP BY n";
    let create = |name: &str| format!("SELECT pgstream.create_stream_table('{name}', '{query}')");
    session.run("SET default_tablespace = two");
    assert_eq!(session.error(&create("st")).code, "42501");
    session.run(&format!("SET default_tablespace = one; {}", create("st")));
    session.run(&format!("SET default_tablespace = ''; {}", create("plain")));
    let lies = "
        SELECT string_agg(DISTINCT concat(s.pgs_name, ' ', t.spcname), ', ')
        FROM pg_class AS c JOIN pg_index AS i ON i.indrelid = c.oid JOIN pg_class AS x ON x.oid IN (c.oid, i.indexrelid, c.reltoastrelid)
        JOIN pgstream.pgs_stream_tables AS s ON c.oid = s.pgs_relid OR c.relname LIKE format('stage_%s_%%', s.pgs_id)
        LEFT JOIN pg_tablespace AS t ON t.oid = x.reltablespace";
    let buffers = "
        SELECT count(*) FROM pgstream.pgs_change_tracking JOIN pg_class AS b ON b.oid = buffer_relid
        JOIN pg_class AS s ON s.oid = source_relid AND s.reltablespace = b.reltablespace";
    for default in ["''", "two", "one"] {
        session.run(&format!("SET default_tablespace = {default}"));
        for name in ["st", "plain"] {
            session.run(&format!("SELECT pgstream.repair_stream_table('{name}')"));
        }
        session.run("RESET ROLE");
        assert_eq!(session.value(lies), "plain , st one", "{default}");
        assert_eq!(session.value(buffers), "2", "{default}");
        session.run("SET ROLE alice");
    }
}

/// A dump locks all tables against DDL for as long as it runs, and sees one moment.
#[test]
fn a_dump_and_refreshes_do_not_wait_for_each_other() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["dump", "r"]);
    s.monitor().run(TABLES);
    s.monitor().create("st", QUERY);
    s.monitor().create("reader", "SELECT n FROM st WHERE n > 1");
    s.monitor()
        .run(&format!("SELECT pgstream.create_stream_table('whole', '{QUERY}', '1d', 'FULL')"));
    s.run("dump", "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SELECT count(*) FROM t");
    s.run("dump", "DO $$ DECLARE name text; BEGIN FOR name IN SELECT c.oid::regclass FROM pg_class c LEFT JOIN pg_depend d ON d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype = 'e' WHERE relkind = 'r' AND relnamespace::regnamespace::text !~ '^(pg_|information)' AND (d.objid IS NULL OR c.relnamespace = 'pgstream'::regnamespace) LOOP EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE', name); END LOOP; END $$");
    let before = s.monitor().rows("SELECT * FROM st ORDER BY 1");
    for (change, action) in [
        (CHANGE, "DIFFERENTIAL"),
        (
            "UPDATE pgstream.pgs_stream_tables SET needs_reinit = true; DELETE FROM t WHERE id = 9",
            "REINITIALIZE",
        ),
    ] {
        s.run("r", change);
        s.run("r", REFRESH);
        for table in ["reader", "whole"] {
            s.run("r", &format!("SELECT pgstream.refresh_stream_table('{table}')"));
        }
        assert_eq!(
            s.monitor().value("SELECT action FROM pgstream.get_refresh_history('st', 1)"),
            action
        );
        compare(s.monitor(), "st", QUERY, change);
    }
    assert_ne!(s.monitor().rows("SELECT * FROM st ORDER BY 1"), before);
    s.run("dump", "DO $$ BEGIN ASSERT (SELECT sum(s) = (SELECT sum(v) FROM t) FROM st); END $$");
    s.run("dump", "COMMIT");
}

/// A crash empties unlogged tables. Differential refreshes know only what is captured.
#[test]
fn unlogged_tables_are_for_full_refreshes() {
    let database = Database::on(Server::start(&["pg_stream.enabled=off"]));
    let mut session = database.session();
    session.run(TABLES);
    session.run("CREATE UNLOGGED TABLE u AS SELECT * FROM t");
    session.run(
        "CREATE TABLE p (id int, g int, v int) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
         CREATE UNLOGGED TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200);
         INSERT INTO p SELECT i, 1, i FROM generate_series(90, 110) i",
    );
    let query = |table: &str| QUERY.replace("FROM t", &format!("FROM {table}"));
    for table in ["u", "p"] {
        let error = session.try_create("st", &query(table)).expect_err(table);
        assert_eq!(error.code, "0A000", "{error}");
        session.run(&format!(
            "SELECT pgstream.create_stream_table('of_{table}', '{}', '1d', 'FULL')",
            query(table)
        ));
    }
    // It becomes one: refused until it is logged again.
    session.create("st", QUERY);
    session.run("ALTER TABLE t SET UNLOGGED; DELETE FROM t WHERE id = 1");
    assert_eq!(session.error(REFRESH).code, "0A000");
    drop(session);
    database.server().kill();
    database.server().start_again();
    let mut session = database.session_after_crash();
    assert_eq!(
        session.value(
            "SELECT (SELECT count(*) FROM u), (SELECT count(*) FROM p), (SELECT count(*) FROM t)"
        ),
        "0|10|0"
    );
    for table in ["u", "p"] {
        session.refresh(&format!("of_{table}"));
        compare(&mut session, &format!("of_{table}"), &query(table), "the crash");
    }
    assert_eq!(session.error(REFRESH).code, "0A000");
    assert_eq!(session.value("SELECT sum(groups) FROM st"), "3");
    session.run("ALTER TABLE t SET LOGGED; INSERT INTO t VALUES (1, 1, 1)");
    session.refresh("st");
    compare(&mut session, "st", QUERY, "SET LOGGED");
}

/// What is ours is read and written without the interface of table access methods.
#[test]
fn another_access_method_is_the_default() {
    let database = Database::empty(Server::shared());
    let mut session = database.session();
    session.run("CREATE ACCESS METHOD other TYPE TABLE HANDLER heap_tableam_handler");
    session.run("SET default_table_access_method = other");
    session.run("CREATE EXTENSION pg_stream");
    session.run(TABLES);
    session.create("st", QUERY);
    session.run(CHANGE);
    session.refresh("st");
    compare(&mut session, "st", QUERY, CHANGE);
    assert_eq!(session.value("SHOW default_table_access_method"), "other");
    assert_eq!(
        session.rows("SELECT relname FROM pg_class JOIN pg_am a ON a.oid = relam WHERE relkind = 'r' AND amname = 'other'"),
        ["t"]
    );
}
