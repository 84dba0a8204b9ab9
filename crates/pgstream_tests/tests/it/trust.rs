//! Stream tables that somebody has damaged: noticed, told of, and made right again.

use pgstream_tests::{Comparison, Database, Session, Watched};

const TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, g int, v int);
    INSERT INTO t SELECT i, i % 4, i FROM generate_series(1, 40) AS i";
const TOTALS: &str = "SELECT g, count(*) AS n, sum(v) AS s FROM t GROUP BY g";
/// The stream table itself is what the counts are kept in.
const COUNTS: &str = "SELECT g, count(*) AS n FROM t GROUP BY g";
/// Over an inner stage: the largest groups.
const NESTED: &str =
    "SELECT n, count(*) AS groups FROM (SELECT g, count(*) AS n FROM t GROUP BY g) AS q GROUP BY n";

fn with_st(query: &str) -> (Session, Watched, Database) {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let watched = Watched::create(&mut session, "st", query, Comparison::Text);
    (session, watched, database)
}

/// What only a superuser can do, who wants to: writing to a table of ours.
fn tamper(session: &mut Session, table: &str, statement: &str) {
    session.run(&format!(
        "BEGIN; SET LOCAL event_triggers = off;
         ALTER TABLE {table} DISABLE TRIGGER pg_stream_guard;
         {statement};
         ALTER TABLE {table} ENABLE ALWAYS TRIGGER pg_stream_guard; COMMIT"
    ));
}

/// The table of the first stage.
fn stage(session: &mut Session) -> String {
    session
        .value("SELECT format('pgstream_state.stage_%s_0', pgs_id) FROM pgstream.pgs_stream_tables")
}

fn verified(session: &mut Session) -> Vec<String> {
    session.rows(
        "SELECT difference, copies, row_data, stored_in FROM pgstream.verify_stream_table('st')
         ORDER BY difference, row_data::text COLLATE \"C\"",
    )
}

fn last_refresh(session: &mut Session) -> String {
    session.value(
        "SELECT action, status, error_message FROM pgstream.pgs_refresh_history
         ORDER BY refresh_id DESC LIMIT 1",
    )
}

const SWITCHED_OFF: &str =
    "REINITIALIZE|COMPLETED|triggers that protect it or its sources were switched off";

#[test]
fn damage_of_every_kind_is_seen_by_verify_and_made_right_by_the_next_refresh() {
    let damages = [
        ("a deleted row", "DELETE FROM st WHERE g = 1"),
        ("a changed row", "UPDATE st SET n = n + 1 WHERE g = 1"),
        ("a doubled row", "INSERT INTO st SELECT * FROM st WHERE g = 1"),
        ("an invented row", "INSERT INTO st SELECT 77, n, 77, 1 FROM st WHERE g = 1"),
        ("a changed count", "UPDATE st SET __pgs_count = __pgs_count + 5 WHERE g = 1"),
        ("a negative count", "UPDATE st SET __pgs_count = -1 WHERE g = 1"),
        ("nothing left", "DELETE FROM st"),
    ];
    for (what, statement) in damages {
        for change in ["INSERT INTO t VALUES (100, 1, 5)", "DELETE FROM t WHERE g = 1", "SELECT 1"]
        {
            let (mut session, watched, _database) = with_st(COUNTS);
            tamper(&mut session, "st", statement);
            assert_ne!(verified(&mut session), [""; 0], "{what}");
            session.run(change);
            session.refresh("st");
            watched.compare(&mut session, &format!("{what}, then {change}"));
            assert_eq!(last_refresh(&mut session), SWITCHED_OFF, "{what}, {change}");
            assert_eq!(verified(&mut session), [""; 0], "{what}, {change}");
            // And it goes on from there.
            session.run("UPDATE t SET v = v + 1; INSERT INTO t VALUES (200, 1, 1), (201, 9, 1)");
            watched.refresh_and_compare(&mut session, "later changes");
        }
    }
}

#[test]
fn damage_of_hidden_state_is_seen_by_verify_and_made_right_by_the_next_refresh() {
    let damages = [
        "DELETE FROM {stage} WHERE c0 = 1",
        "DELETE FROM {stage}",
        "TRUNCATE {stage}",
        "UPDATE {stage} SET c1 = c1 + 1 WHERE c0 = 1",
        "UPDATE {stage} SET __pgs_count = __pgs_count + 1 WHERE c0 = 1",
        "INSERT INTO {stage} SELECT * FROM {stage} WHERE c0 = 1",
    ];
    for damage in damages {
        for change in ["INSERT INTO t VALUES (100, 1, 5)", "DELETE FROM t WHERE g = 1"] {
            let (mut session, watched, _database) = with_st(NESTED);
            let stage = stage(&mut session);
            tamper(&mut session, &stage, &damage.replace("{stage}", &stage));
            let found = verified(&mut session);
            assert!(found.iter().all(|it| it.ends_with(&stage)), "{damage}: {found:?}");
            assert_ne!(found, [""; 0], "{damage}");
            session.run(change);
            session.refresh("st");
            watched.compare(&mut session, &format!("{damage}, then {change}"));
            assert_eq!(last_refresh(&mut session), SWITCHED_OFF, "{damage}");
            session.run("UPDATE t SET g = g + 1 WHERE id < 7");
            watched.refresh_and_compare(&mut session, "later changes");
        }
    }
}

#[test]
fn verify_compares_counts_that_only_hidden_state_has() {
    let (mut session, _watched, _database) = with_st(TOTALS);
    let stage = stage(&mut session);
    assert_eq!(verified(&mut session), [""; 0]);
    tamper(
        &mut session,
        &stage,
        &format!("UPDATE {stage} SET s1_count = s1_count + 1 WHERE c0 = 1"),
    );
    let found = verified(&mut session);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|it| it.ends_with(&stage)), "{found:?}");
}

#[test]
fn hidden_state_that_is_gone_is_laid_out_anew() {
    for damage in [
        "ALTER EXTENSION pg_stream DROP TABLE {stage}; DROP TABLE {stage}",
        "SET event_triggers = off; ALTER TABLE {stage} DROP COLUMN c1; RESET event_triggers",
    ] {
        let (mut session, watched, _database) = with_st(NESTED);
        let stage = stage(&mut session);
        session.run(&damage.replace("{stage}", &stage));
        session.run("INSERT INTO t VALUES (100, 1, 5)");
        session.refresh("st");
        watched.compare(&mut session, damage);
        session.run("DELETE FROM t WHERE g = 1");
        watched.refresh_and_compare(&mut session, "later changes");
    }
}

#[test]
fn a_lost_buffer_is_made_again_and_everything_computed_anew() {
    let (mut session, watched, _database) = with_st(TOTALS);
    let other = Watched::create(&mut session, "other", "SELECT v FROM t", Comparison::Text);
    let buffer = session.value("SELECT format('pgstream_changes.changes_%s', 't'::regclass::oid)");
    session.run(&format!(
        "INSERT INTO t VALUES (100, 1, 5);
         ALTER EXTENSION pg_stream DROP TABLE {buffer}; DROP TABLE {buffer}"
    ));
    session.run("DELETE FROM t WHERE id < 5");
    for table in [&watched, &other] {
        session.refresh(if std::ptr::eq(table, &watched) { "st" } else { "other" });
        table.compare(&mut session, "the buffer is gone");
    }
    session.run("INSERT INTO t VALUES (101, 1, 5); DELETE FROM t WHERE g = 2");
    watched.refresh_and_compare(&mut session, "later changes");
    other.refresh_and_compare(&mut session, "later changes");
}

#[test]
fn capture_that_was_switched_off_and_on_again_is_met_by_computing_anew() {
    let (mut session, watched, _database) = with_st(TOTALS);
    session.run(
        "BEGIN; SET LOCAL event_triggers = off; ALTER TABLE t DISABLE TRIGGER ALL;
         DELETE FROM t WHERE id < 9; ALTER TABLE t ENABLE TRIGGER ALL; COMMIT",
    );
    session.refresh("st");
    watched.compare(&mut session, "capture was off");
    assert_eq!(last_refresh(&mut session), SWITCHED_OFF);
    session.run("INSERT INTO t VALUES (102, 1, 5)");
    watched.refresh_and_compare(&mut session, "later changes");
}

#[test]
fn a_row_that_is_not_there_is_an_alert_a_warning_and_a_rebuild() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let watched =
        Watched::create(&mut session, "st", "SELECT id, v FROM t WHERE v > 3", Comparison::Text);
    // Not even the guard has noticed: as after corruption of the storage.
    tamper(&mut session, "st", "DELETE FROM st WHERE id = 7");
    session.run(
        "UPDATE pgstream.pgs_stream_tables SET seal = (
             SELECT (SELECT system_identifier FROM pg_control_system()) || ' ' || md5((SELECT string_agg(concat_ws(' ', oid, xmin, tgenabled), ',' ORDER BY oid)
                         FROM pg_trigger WHERE tgrelid = ANY ('{st,t}'::regclass[])
                         AND (tgname LIKE 'pg\\_stream\\_%'))
                 || ';' || (SELECT string_agg(concat_ws(' ', attrelid, attnum, attname, atttypid), ',' ORDER BY attrelid, attnum)
                            FROM pg_attribute WHERE attrelid = 'st'::regclass AND attnum > 0 AND NOT attisdropped)))",
    );
    assert_eq!(
        verified(&mut session),
        [r#"missing|1|{"id":7,"v":7}|st"#],
        "a difference that no refresh has touched"
    );
    session.run("INSERT INTO t VALUES (300, 0, 300)");
    watched_refresh_is_ordinary(&mut session);
    session.run("LISTEN pg_stream_alert; DELETE FROM t WHERE id = 7");
    session.take_notices();
    session.refresh("st");
    watched.compare(&mut session, "the missing row is touched");
    let last = last_refresh(&mut session);
    assert!(last.starts_with("REINITIALIZE|COMPLETED|expected to delete"), "{last}");
    let notices = session.take_notices();
    assert!(
        notices.iter().any(|it| it.contains("WARNING: stream table public.st is computed anew")),
        "{notices:?}"
    );
    let alerts = session.notifications("pg_stream_alert");
    assert!(
        alerts.iter().any(|it| it.contains("\"event\":\"reinitialize_needed\"")
            && it.contains("\"reason\":\"expected to delete")),
        "{alerts:?}"
    );
}

#[track_caller]
fn watched_refresh_is_ordinary(session: &mut Session) {
    session.refresh("st");
    assert_eq!(last_refresh(session), "DIFFERENTIAL|COMPLETED|NULL");
}

#[test]
fn what_the_failed_attempt_made_triggers_do_is_undone() {
    let (mut session, watched, _database) = with_st("SELECT id, v FROM t");
    session.run(
        "CREATE TABLE log (what text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
           $$BEGIN INSERT INTO public.log VALUES (TG_OP || NEW.id); RETURN NULL; END$$;
         CREATE TRIGGER note AFTER INSERT OR UPDATE ON st FOR EACH ROW EXECUTE FUNCTION note();
         INSERT INTO t VALUES (300, 0, 300)",
    );
    session.refresh("st");
    assert_eq!(session.rows("SELECT what FROM log"), ["INSERT300"]);
    tamper(&mut session, "st", "DELETE FROM st WHERE id = 7");
    // Vouched for by somebody who did not look.
    session.run(
        "UPDATE pgstream.pgs_stream_tables SET seal = (
             SELECT md5((SELECT string_agg(concat_ws(' ', oid, xmin, tgenabled), ',' ORDER BY oid)
                         FROM pg_trigger WHERE tgrelid = ANY ('{st,t}'::regclass[])
                         AND (tgname LIKE 'pg\\_stream\\_%'))
                 || ';' || (SELECT string_agg(concat_ws(' ', attrelid, attnum, attname, atttypid), ',' ORDER BY attrelid, attnum)
                            FROM pg_attribute WHERE attrelid = 'st'::regclass AND attnum > 0 AND NOT attisdropped)))",
    );
    session.run("UPDATE t SET v = 0 WHERE id IN (7, 8)");
    session.refresh("st");
    watched.compare(&mut session, "the missing row is touched");
    assert_eq!(session.rows("SELECT what FROM log"), ["INSERT300"]);
}

#[test]
fn readers_of_a_damaged_stream_table_are_computed_anew_too() {
    let (mut session, watched, _database) = with_st(TOTALS);
    let above =
        Watched::create(&mut session, "above", "SELECT sum(s) AS s FROM st", Comparison::Text);
    tamper(&mut session, "st", "DELETE FROM st WHERE g = 1");
    session.run("INSERT INTO t VALUES (100, 2, 5)");
    session.refresh("st");
    watched.compare(&mut session, "damage");
    session.refresh("above");
    above.compare(&mut session, "damage below");
    session.run("INSERT INTO t VALUES (101, 1, 5)");
    watched.refresh_and_compare(&mut session, "later");
    above.refresh_and_compare(&mut session, "later");
}

#[test]
fn repair_computes_anew_whatever_is_stored_and_lets_it_run_again() {
    for query in [TOTALS, NESTED, "SELECT id, v FROM t"] {
        let (mut session, watched, _database) = with_st(query);
        tamper(&mut session, "st", "DELETE FROM st");
        session.run("SELECT pgstream.alter_stream_table('st', status => 'SUSPENDED')");
        session.run("SELECT pgstream.repair_stream_table('st')");
        watched.compare(&mut session, "repair");
        assert_eq!(
            session.value(
                "SELECT status, consecutive_errors, needs_reinit FROM pgstream.pgs_stream_tables"
            ),
            "ACTIVE|0|f"
        );
        assert_eq!(last_refresh(&mut session), "REINITIALIZE|COMPLETED|NULL");
        session.run("DELETE FROM t WHERE id % 3 = 0");
        watched.refresh_and_compare(&mut session, "after the repair");
    }
}

#[test]
fn repair_in_full_mode() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.run(&format!("SELECT pgstream.create_stream_table('st', '{TOTALS}', '1d', 'FULL')"));
    tamper(&mut session, "st", "DELETE FROM st WHERE g = 1");
    session.take_notices();
    assert_eq!(verified(&mut session), [r#"missing|1|{"g":1,"n":10,"s":190}|st"#]);
    assert!(session.take_notices()[0].contains("pending changes of stream table public.st"));
    session.run("SELECT pgstream.repair_stream_table('st')");
    assert_eq!(verified(&mut session), [""; 0]);
}

#[test]
fn verify_is_silent_about_pending_changes_and_leaves_them_pending() {
    for query in [TOTALS, NESTED, "SELECT id, v FROM t WHERE v > 3"] {
        let (mut session, watched, _database) = with_st(query);
        session.run("DELETE FROM t WHERE id < 5; UPDATE t SET g = 7 WHERE id = 9");
        let before = session.rows("SELECT * FROM st ORDER BY st");
        assert_eq!(verified(&mut session), [""; 0], "{query}");
        assert_eq!(session.rows("SELECT * FROM st ORDER BY st"), before);
        watched.refresh_and_compare(&mut session, "what verify has looked at");
        assert_eq!(verified(&mut session), [""; 0], "{query}");
    }
}

#[test]
fn verify_tells_rows_by_their_images() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE t (id int PRIMARY KEY, j json, f float8, n numeric, x text);
         INSERT INTO t VALUES (1, '{\"a\": 1}', 'NaN', 1.0, NULL), (2, NULL, '-0', 'NaN', ''),
           (3, '[1, 2]', 'Infinity', 12345678901234567890.123, 'x')",
    );
    let query = "SELECT j, f, n, x FROM t UNION ALL SELECT j, f, n, x FROM t";
    Watched::create(&mut session, "st", query, Comparison::Text);
    session.run("UPDATE t SET x = 'y' WHERE id = 3");
    assert_eq!(verified(&mut session), [""; 0]);
    session.refresh("st");
    tamper(
        &mut session,
        "st",
        "UPDATE st SET f = 0 WHERE f = 0; UPDATE st SET n = 1.00 WHERE n = 1;
         UPDATE st SET j = '[1,2]' WHERE x = 'y'",
    );
    assert_eq!(
        verified(&mut session),
        [
            r#"missing|2|{"j":[1, 2],"f":"Infinity","n":12345678901234567890.123,"x":"y"}|st"#,
            r#"missing|2|{"j":null,"f":-0,"n":"NaN","x":""}|st"#,
            r#"missing|2|{"j":{"a": 1},"f":"NaN","n":1.0,"x":null}|st"#,
            r#"unexpected|2|{"j":[1,2],"f":"Infinity","n":12345678901234567890.123,"x":"y"}|st"#,
            r#"unexpected|2|{"j":null,"f":0,"n":"NaN","x":""}|st"#,
            r#"unexpected|2|{"j":{"a": 1},"f":"NaN","n":1.00,"x":null}|st"#,
        ]
    );
}

#[test]
fn verify_leaves_open_how_a_recursion_ranks_its_rows() {
    for query in [
        "WITH RECURSIVE r AS (SELECT id FROM t WHERE id < 4 UNION SELECT t.id FROM r JOIN t ON t.v = r.id) SELECT id FROM r",
        "WITH RECURSIVE r AS (SELECT id, id AS root FROM t UNION SELECT t.id, r.root FROM r JOIN t ON t.v = r.id) SELECT root, count(*) AS n FROM r GROUP BY root",
    ] {
        let (mut session, watched, _database) = with_st(query);
        session.run("UPDATE t SET v = id / 2");
        watched.refresh_and_compare(&mut session, "all are below others");
        session.run("UPDATE t SET v = id - 3; DELETE FROM t WHERE id = 7");
        watched.refresh_and_compare(&mut session, "they are elsewhere");
        session.run("INSERT INTO t VALUES (7, 0, 2), (41, 0, 8)");
        watched.refresh_and_compare(&mut session, "one comes back");
        assert_eq!(verified(&mut session), [""; 0], "{query}");
        let stage = stage(&mut session);
        tamper(&mut session, &stage, &format!("DELETE FROM {stage} WHERE c0 = 3"));
        assert_ne!(verified(&mut session), [""; 0], "{query}");
    }
}

/// The names that our statement gives to what it reads are none of the columns'.
#[test]
fn verify_shows_rows_whatever_their_columns_are_called() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE t (id int PRIMARY KEY, r int, p point); INSERT INTO t VALUES (1, 7, '(1,2)')",
    );
    session.create("st", "SELECT id AS w, r, t AS d FROM t");
    tamper(&mut session, "st", "DELETE FROM st");
    assert_eq!(
        verified(&mut session),
        [r#"missing|1|{"w":1,"r":7,"d":{"id":1,"r":7,"p":"(1,2)"}}|st"#]
    );
}

#[test]
fn verify_needs_a_populated_table() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session
        .run("SELECT pgstream.create_stream_table('st', 'SELECT id FROM t', initialize => false)");
    let error = session.error("SELECT * FROM pgstream.verify_stream_table('st')");
    assert_eq!(error.code, "55000", "{error}");
}

#[test]
fn hidden_state_cannot_be_changed_by_its_owner() {
    let (mut session, _watched, _database) = with_st(NESTED);
    let stage = stage(&mut session);
    for statement in [
        format!("DELETE FROM {stage}"),
        format!("UPDATE {stage} SET __pgs_count = 1"),
        format!("INSERT INTO {stage} SELECT * FROM {stage}"),
        format!("TRUNCATE {stage}"),
        "SET session_replication_role = replica; DELETE FROM st".to_owned(),
    ] {
        assert_eq!(session.error(&statement).code, "42809", "{statement}");
    }
}

/// Then there is nothing that its hidden state could be compared with.
#[test]
fn what_is_laid_out_for_another_definition_is_verified_by_its_content() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE t (id int PRIMARY KEY, v int, w int); INSERT INTO t SELECT g, g % 5, g FROM generate_series(1, 20) g",
    );
    session.create("back", "SELECT v, sum(id) AS s, count(*) AS n FROM t GROUP BY v");
    session.create("st", "SELECT v, sum(w) AS s, count(*) AS n FROM t GROUP BY v");
    session.run("SELECT pgstream.alter_stream_table('back', refresh_mode => 'FULL')");
    session.run("SELECT pgstream.alter_stream_table('back', refresh_mode => 'DIFFERENTIAL')");
    session.run("ALTER TABLE t ALTER w TYPE bigint");
    for name in ["back", "st"] {
        let verify = format!("SELECT count(*) FROM pgstream.verify_stream_table('{name}')");
        assert_eq!(session.value(&verify), "0");
        session.refresh(name);
        assert_eq!(session.value(&verify), "0");
    }
}

/// What captures the rows of children and partitions is switched off and on, or dropped by their owner
/// as a dump would: every stream table notices, also where another one has made it right before.
#[test]
fn capture_of_members_is_switched_off() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE h (id int, v int); CREATE TABLE h1 () INHERITS (h);
         CREATE TABLE p (id int, v int) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
         CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200);
         INSERT INTO h VALUES (1, 1); INSERT INTO h1 VALUES (2, 2); INSERT INTO p SELECT i, i % 3 FROM generate_series(1, 150) i",
    );
    let query =
        "SELECT v, count(*) AS n FROM (SELECT v FROM h UNION ALL SELECT v FROM p) q GROUP BY v";
    let tables = ["st", "other"];
    let watched = tables.map(|it| Watched::create(&mut session, it, query, Comparison::Text));
    // What they know of the definitions is from before.
    let mut sessions = tables.map(|_| database.session());
    for (it, session) in watched.iter().zip(&mut sessions) {
        it.refresh_and_compare(session, "nothing");
    }
    session.run("CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (200) TO (300)");
    let drop = "DO $$ DECLARE name text; BEGIN FOR name IN SELECT tgname FROM pg_catalog.pg_trigger
            WHERE tgrelid = 'public.h1'::regclass AND tgname LIKE 'pg_stream_cdc%' LOOP
            EXECUTE format('DROP TRIGGER %I ON public.h1', name); END LOOP; END $$";
    let as_a_dump = "SET LOCAL check_function_bodies = off;
            SELECT pg_catalog.set_config('search_path', '', true)";
    let switched = |table: &str, change: &str| {
        format!(
            "BEGIN; SET LOCAL event_triggers = off; ALTER TABLE {table} DISABLE TRIGGER ALL; {change};
             ALTER TABLE {table} ENABLE TRIGGER ALL; COMMIT"
        )
    };
    let changes = [
        switched("h1", "INSERT INTO h1 VALUES (3, 3)"),
        switched("p1", "INSERT INTO p1 VALUES (10, 10)"),
        switched("p3", "INSERT INTO p3 VALUES (210, 10)"),
        format!("BEGIN; {as_a_dump}; {drop}; INSERT INTO public.h1 VALUES (7, 7); COMMIT"),
        switched(
            "p2",
            "INSERT INTO p2 VALUES (110, 11); CREATE TABLE p4 PARTITION OF p FOR VALUES FROM (300) TO (400)",
        ),
    ];
    for change in changes {
        session.run(&change);
        // A new one makes it right for itself.
        session.create("new", "SELECT v FROM h UNION ALL SELECT v FROM p");
        session.run("SELECT pgstream.drop_stream_table('new')");
        for ((it, table), session) in watched.iter().zip(tables).zip(&mut sessions) {
            session.refresh(table);
            it.compare(session, &change);
        }
        session.run("INSERT INTO h1 VALUES (8, 8); UPDATE p SET v = v + 1 WHERE id IN (1, 110)");
        for (it, session) in watched.iter().zip(&mut sessions) {
            it.refresh_and_compare(session, "a change that is captured");
        }
    }
}
