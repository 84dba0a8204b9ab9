//! Each change is applied exactly once, whatever the timing of writers and refreshers.

use std::time::{Duration, Instant};

use pgstream_tests::{
    Comparison, Database, Interleaving, REFRESH, Sessions, Step, Watched, check_interleavings,
};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, g int, v int); INSERT INTO t VALUES (1, 1, 1), (2, 2, 2), (3, 1, 3)";
const TOTALS: &str = "SELECT g, count(*) AS n, sum(v) AS s, max(v) AS m FROM t GROUP BY g";
const ROWS: &str = "SELECT id, g, v FROM t";

/// A database with `t`, `st` over the query, and sessions of the given names.
fn sessions(query: &str, names: &[&str]) -> (Sessions, Database) {
    let database = Database::new();
    let mut sessions = Sessions::new(&database, names);
    sessions.monitor().run(TABLES);
    sessions.monitor().create("st", query);
    (sessions, database)
}

#[test]
fn a_transaction_stays_open_across_refreshes() {
    let (mut s, _database) = sessions(TOTALS, &["w", "x", "r"]);
    s.run("w", "BEGIN; INSERT INTO t VALUES (10, 1, 10)");
    s.run("r", REFRESH);
    s.compare("r", TOTALS);
    s.run("x", "INSERT INTO t VALUES (20, 1, 20)"); // starts later, commits earlier
    s.run("r", REFRESH);
    s.compare("r", TOTALS);
    s.run("w", "UPDATE t SET v = v + 100 WHERE id = 1");
    s.run("r", REFRESH);
    s.run("w", "COMMIT");
    s.run("r", REFRESH);
    s.compare("r", TOTALS);
    s.run("r", REFRESH);
    s.compare("r", TOTALS);
}

#[test]
fn two_writers_against_a_refresher() {
    check_interleavings(Interleaving {
        tables: TABLES,
        query: TOTALS,
        sessions: &[
            &["BEGIN; UPDATE t SET v = v + 10 WHERE id = 1", "COMMIT"],
            &["BEGIN; INSERT INTO t VALUES (50, 2, 50)", "COMMIT"],
            &[REFRESH, REFRESH],
        ],
    });
}

#[test]
fn a_writer_with_savepoints_against_a_refresher() {
    check_interleavings(Interleaving {
        tables: TABLES,
        query: ROWS,
        sessions: &[
            &[
                "BEGIN",
                "SAVEPOINT s; DELETE FROM t WHERE id = 1",
                "ROLLBACK TO s",
                "SAVEPOINT u; UPDATE t SET v = 0; RELEASE u",
                "COMMIT",
            ],
            &[REFRESH, REFRESH, REFRESH],
        ],
    });
}

#[test]
fn a_writer_that_rolls_back() {
    check_interleavings(Interleaving {
        tables: TABLES,
        query: TOTALS,
        sessions: &[
            &["BEGIN", "DELETE FROM t WHERE g = 1", "INSERT INTO t VALUES (1, 1, 1)", "ROLLBACK"],
            &[REFRESH, REFRESH],
        ],
    });
}

#[test]
fn repeatable_read_and_serializable_writers() {
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        check_interleavings(Interleaving {
            tables: TABLES,
            query: TOTALS,
            sessions: &[
                &[
                    &format!("BEGIN ISOLATION LEVEL {level}"),
                    "UPDATE t SET v = (SELECT sum(v) FROM t) WHERE id = 1",
                    "COMMIT",
                ],
                &["UPDATE t SET v = v + 1 WHERE id = 2", REFRESH],
                &[REFRESH],
            ],
        });
    }
}

#[test]
fn two_refreshers() {
    check_interleavings(Interleaving {
        tables: TABLES,
        query: TOTALS,
        sessions: &[
            &["INSERT INTO t VALUES (60, 1, 60)", "DELETE FROM t WHERE id = 1"],
            &["BEGIN", REFRESH, "COMMIT"],
            &[REFRESH, REFRESH],
        ],
    });
}

#[test]
fn a_refresher_in_repeatable_read() {
    check_interleavings(Interleaving {
        tables: TABLES,
        query: TOTALS,
        sessions: &[
            &["UPDATE t SET v = v + 10 WHERE id = 1", "DELETE FROM t WHERE id = 2"],
            &[
                "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM t",
                "INSERT INTO t VALUES (70, 1, 70)",
                REFRESH,
                "COMMIT",
            ],
            &[REFRESH],
        ],
    });
}

#[test]
fn changes_and_refreshes_in_one_transaction() {
    check_interleavings(Interleaving {
        tables: TABLES,
        query: TOTALS,
        sessions: &[
            &[
                "BEGIN; UPDATE t SET v = 7 WHERE id = 1",
                REFRESH,
                "DELETE FROM t WHERE id = 3",
                REFRESH,
                "COMMIT",
            ],
            &["INSERT INTO t VALUES (80, 3, 80)", REFRESH],
        ],
    });
}

#[test]
fn a_rolled_back_refresh_leaves_its_changes_to_the_next() {
    check_interleavings(Interleaving {
        tables: TABLES,
        query: TOTALS,
        sessions: &[
            &["BEGIN; UPDATE t SET v = 7 WHERE id = 1", REFRESH, "ROLLBACK", REFRESH],
            &["INSERT INTO t VALUES (80, 1, 80)", REFRESH],
        ],
    });
}

#[test]
fn rollback_to_a_savepoint_before_a_refresh() {
    let (mut s, _database) = sessions(TOTALS, &["a"]);
    s.run("a", "BEGIN; INSERT INTO t VALUES (10, 1, 10)");
    s.run("a", "SAVEPOINT one; INSERT INTO t VALUES (11, 1, 11)");
    s.run("a", REFRESH);
    s.compare("a", TOTALS);
    s.run("a", "ROLLBACK TO one");
    s.run("a", "INSERT INTO t VALUES (12, 2, 12)");
    s.run("a", REFRESH);
    s.compare("a", TOTALS);
    s.run("a", "SAVEPOINT two");
    s.run("a", REFRESH);
    s.run("a", "DELETE FROM t WHERE id = 10; ROLLBACK TO two; DELETE FROM t WHERE id = 1");
    s.run("a", REFRESH);
    s.compare("a", TOTALS);
    s.run("a", "COMMIT");
    s.run("a", REFRESH);
    s.compare("a", TOTALS);
}

#[test]
fn a_refresh_inside_a_rolled_back_savepoint_is_undone_with_it() {
    let (mut s, _database) = sessions(ROWS, &["a"]);
    s.run("a", "BEGIN; INSERT INTO t VALUES (10, 1, 10); SAVEPOINT one");
    s.run("a", REFRESH);
    s.run("a", "ROLLBACK TO one");
    s.run("a", REFRESH);
    s.compare("a", ROWS);
    s.run("a", "SAVEPOINT two; UPDATE t SET v = 0; SAVEPOINT three");
    s.run("a", REFRESH);
    s.run("a", "RELEASE three; ROLLBACK TO two; UPDATE t SET v = 1");
    s.run("a", REFRESH);
    s.compare("a", ROWS);
    s.run("a", "COMMIT");
    s.run("a", "INSERT INTO t VALUES (11, 1, 11)");
    s.run("a", REFRESH);
    s.compare("a", ROWS);
}

#[test]
fn prepared_transactions_count_when_they_commit() {
    let (mut s, database) = sessions(TOTALS, &["w", "r"]);
    let (first, second) = (format!("{}_1", database.name()), format!("{}_2", database.name()));
    s.run("w", "BEGIN");
    s.run("w", "INSERT INTO t VALUES (10, 1, 10); UPDATE t SET v = 100 WHERE id = 1");
    s.run("w", &format!("PREPARE TRANSACTION '{first}'"));
    s.run("r", REFRESH);
    s.compare("r", TOTALS);
    s.run("w", "BEGIN");
    s.run("w", "DELETE FROM t WHERE id = 2");
    s.run("w", &format!("PREPARE TRANSACTION '{second}'"));
    s.run("w", "INSERT INTO t VALUES (11, 1, 11)");
    s.run("r", REFRESH);
    s.compare("r", TOTALS);
    s.run("w", &format!("COMMIT PREPARED '{first}'"));
    s.run("r", REFRESH);
    s.compare("r", TOTALS);
    s.run("w", &format!("ROLLBACK PREPARED '{second}'"));
    s.run("r", REFRESH);
    s.compare("r", TOTALS);
}

#[test]
fn a_refresh_can_itself_be_prepared() {
    let (mut s, database) = sessions(TOTALS, &["r"]);
    let name = format!("{}_r", database.name());
    s.run("r", "INSERT INTO t VALUES (10, 1, 10)");
    s.run("r", "BEGIN");
    s.run("r", REFRESH);
    match s.step("r", &format!("PREPARE TRANSACTION '{name}'")) {
        Step::Done(Ok(())) => s.run("r", &format!("ROLLBACK PREPARED '{name}'")),
        // It may be refused; then it is rolled back.
        Step::Done(Err(error)) => assert_eq!(error.code, "0A000"),
        Step::Blocked => panic!("PREPARE waits"),
    }
    s.run("r", REFRESH);
    s.compare("r", TOTALS);
}

#[test]
fn stream_tables_at_different_paces_share_a_source() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.run("CREATE TABLE u (g int PRIMARY KEY, name text); INSERT INTO u VALUES (1, 'one'), (2, 'two')");
    let queries = [
        ("fast", TOTALS),
        ("middle", "SELECT t.id, u.name FROM t JOIN u USING (g)"),
        ("slow", "SELECT DISTINCT g FROM t"),
    ];
    let watched: Vec<_> = queries
        .iter()
        .map(|(name, query)| Watched::create(&mut session, name, query, Comparison::Text))
        .collect();
    for round in 1..=12 {
        let change = format!(
            "INSERT INTO t VALUES ({round} + 100, {round} % 4, {round}); UPDATE t SET g = g + 1 WHERE id = {round} % 3;
             DELETE FROM t WHERE id = 100 + {round} - 3; UPDATE u SET name = name || {round}"
        );
        session.run(&change);
        for (pace, one) in [1, 2, 5].iter().zip(&watched) {
            if round % pace == 0 {
                one.refresh_and_compare(&mut session, &change);
            }
        }
    }
    // A consumer that goes away does not take changes from the others.
    session.run("INSERT INTO t VALUES (500, 9, 9); SELECT pgstream.drop_stream_table('fast')");
    watched[1].refresh_and_compare(&mut session, "a drop beside it");
    watched[2].refresh_and_compare(&mut session, "a drop beside it");
}

#[test]
fn consumed_changes_are_removed() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let watched = Watched::create(&mut session, "st", TOTALS, Comparison::Text);
    for round in 0..30 {
        session.run(&format!("INSERT INTO t SELECT i, i % 10, i FROM generate_series({round}000 + 1000, {round}999 + 1000) i"));
        watched.refresh_and_compare(&mut session, "insert");
    }
    session.run("VACUUM");
    let left = session.value(
        "SELECT coalesce(sum(pg_relation_size(c.oid)), 0) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
         WHERE nspname = 'pgstream_changes' AND relkind = 'r'",
    );
    let left: u64 = left.parse().expect("a size");
    assert!(left < 1_000_000, "{left} bytes of consumed changes are left");
}

/// Two refreshes that end at the same time both clean up; the later one knows more.
#[test]
fn changes_are_removed_although_another_refresh_is_removing_changes() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["gate", "a", "b"]);
    s.monitor().run(TABLES);
    for name in ["a", "b"] {
        s.monitor().create(name, ROWS);
    }
    let oid = s.monitor().value("SELECT 't'::regclass::oid");
    let pending = format!("SELECT count(*) FROM pgstream_changes.changes_{oid}");
    s.monitor().run("INSERT INTO t VALUES (10, 1, 10)");
    s.run("a", "SELECT pgstream.refresh_stream_table('a')");
    s.monitor().run("INSERT INTO t VALUES (11, 1, 11)");
    assert_eq!(s.monitor().value(&pending), "2");
    s.run("gate", "SELECT pg_advisory_lock(7077)");
    s.run(
        "a",
        "SET pg_stream.inject_fault = 'buffer-cleaned'; SET pg_stream.inject_fault_action = wait",
    );
    s.blocks("a", "SELECT pgstream.refresh_stream_table('a')");
    s.run("b", "SELECT pgstream.refresh_stream_table('b')");
    assert_eq!(s.monitor().value(&pending), "1");
    s.run("gate", "SELECT pg_advisory_unlock(7077)");
    s.finish("a").expect("it goes on");
}

#[test]
fn creation_waits_for_a_writer_that_is_open() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["w", "c"]);
    s.monitor().run(TABLES);
    s.run("w", "BEGIN; INSERT INTO t VALUES (10, 1, 10)");
    let create = format!("SELECT pgstream.create_stream_table('st', '{TOTALS}', '1d')");
    let step = s.step("c", &create);
    s.run("w", "INSERT INTO t VALUES (11, 1, 11); COMMIT");
    match step {
        Step::Blocked => s.finish("c").expect("creation goes on after the writer"),
        Step::Done(result) => result.expect("creation succeeds"),
    }
    s.run("c", REFRESH);
    s.compare("c", TOTALS);
}

/// Runs `sql` while a creation waits, which lets it go first, until it does not get its lock in so many
/// milliseconds: the creation keeps its place for longer.
fn overtake(s: &mut Sessions, sql: &str, milliseconds: u32) {
    let began = Instant::now();
    for limit in std::iter::once(0).chain(std::iter::repeat(milliseconds)) {
        s.run("x", &format!("SET lock_timeout = {limit}"));
        if let Err(error) = s.complete("x", sql) {
            assert_eq!(error.code, "55P03", "{error}");
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "the creation keeps no place");
    }
}

/// Writers that take turns, so that there is always one, and one that stays for long.
#[test]
fn creation_lets_writers_go_first_for_a_while() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["w", "x", "c"]);
    s.monitor().run(
        "CREATE TABLE t (id int, g int, v int) PARTITION BY LIST (id);
         CREATE TABLE t1 PARTITION OF t DEFAULT; CREATE TABLE t2 PARTITION OF t FOR VALUES IN (2)",
    );
    // Of a partition the creation learns when it has locked the table.
    for (name, table) in [("a", "t"), ("b", "t1")] {
        s.run("w", "DROP TABLE IF EXISTS a");
        s.run("w", &format!("BEGIN; INSERT INTO {table} VALUES (10, 1, 10)"));
        let create = format!("SELECT pgstream.create_stream_table('{name}', '{TOTALS}', '1d')");
        s.blocks("c", &create);
        overtake(&mut s, "INSERT INTO t VALUES (2, 1, 10)", 600);
        s.run("w", "COMMIT");
        s.finish("c").expect("it has kept its place");
    }
}

/// However long it has kept its place.
#[test]
fn creation_gives_in_to_writers() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["w", "x", "c"]);
    s.monitor().run(TABLES);
    s.monitor().run("CREATE TABLE u (id int PRIMARY KEY)");
    s.run("w", "BEGIN; INSERT INTO u VALUES (1)");
    s.blocks("c", "SELECT pgstream.create_stream_table('st', 'SELECT * FROM t JOIN u USING (id)')");
    overtake(&mut s, "INSERT INTO u SELECT coalesce(max(id), 10) + 1 FROM u", 1700);
    s.complete("w", "INSERT INTO t VALUES (10, 1, 10)").expect("the creation gives in");
    assert_eq!(s.finish("c").expect_err("it has given in").code, "40P01");
}

#[test]
fn creation_in_repeatable_read_sees_what_was_committed_before_it() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["w", "c"]);
    s.monitor().run(TABLES);
    s.run("c", "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t");
    s.run("w", "INSERT INTO t VALUES (10, 1, 10)");
    let create = format!("SELECT pgstream.create_stream_table('st', '{TOTALS}', '1d')");
    match s.step("c", &create) {
        Step::Done(Ok(())) => s.run("c", "COMMIT"),
        Step::Done(Err(_)) => {
            s.run("c", "ROLLBACK");
            s.run("c", &create);
        }
        Step::Blocked => panic!("nobody holds a lock"),
    }
    s.run("w", "INSERT INTO t VALUES (11, 1, 11)");
    s.run("c", REFRESH);
    s.compare("c", TOTALS);
}

#[test]
fn a_transaction_from_before_the_creation_cannot_refresh() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["old", "c"]);
    s.monitor().run(TABLES);
    s.run("old", "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t");
    s.run("c", &format!("SELECT pgstream.create_stream_table('st', '{TOTALS}', '1d')"));
    match s.step("old", REFRESH) {
        Step::Done(Err(error)) => assert_eq!(error.code, "40001", "{error}"),
        _ => panic!("it does not see the stream table"),
    }
    s.run("old", "ROLLBACK");
    s.run("old", REFRESH);
}

#[test]
fn creation_in_a_transaction_that_has_changed_the_source() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["c", "w"]);
    s.monitor().run(TABLES);
    s.run("c", "BEGIN; INSERT INTO t VALUES (10, 1, 10)");
    s.run("c", &format!("SELECT pgstream.create_stream_table('st', '{TOTALS}', '1d')"));
    s.compare("c", TOTALS);
    s.run("c", "INSERT INTO t VALUES (11, 1, 11)");
    s.run("c", REFRESH);
    s.compare("c", TOTALS);
    s.run("c", "INSERT INTO t VALUES (12, 1, 12)");
    s.run("c", "COMMIT");
    s.run("w", "UPDATE t SET v = v + 1");
    s.run("c", REFRESH);
    s.compare("c", TOTALS);
}

#[test]
fn creation_that_is_rolled_back_leaves_nothing() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let objects = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname !~ '^pg_'
                   UNION ALL SELECT count(*) FROM pg_trigger UNION ALL SELECT count(*) FROM pg_proc";
    let before = session.rows(objects);
    session.run("BEGIN");
    session.create("st", TOTALS);
    session.run("ROLLBACK");
    assert_eq!(session.rows(objects), before);
    session.create("st", TOTALS);
}

#[test]
fn a_refresh_blocks_neither_readers_nor_writers() {
    let (mut s, _database) = sessions(TOTALS, &["r", "w", "x"]);
    s.run("w", "INSERT INTO t VALUES (10, 1, 10)");
    s.run("r", "BEGIN");
    s.run("r", REFRESH);
    s.run("x", "SELECT * FROM st"); // waits for nobody
    s.run("w", "INSERT INTO t VALUES (11, 1, 11); UPDATE t SET v = 0 WHERE id = 1; DELETE FROM t WHERE id = 2");
    s.blocks("x", REFRESH);
    s.run("r", "COMMIT");
    s.finish("x").expect("the second refresher goes on");
    s.compare("x", TOTALS);
}

#[test]
fn changes_by_the_querys_own_triggers_and_by_foreign_keys() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE p (id int PRIMARY KEY, n int DEFAULT 0); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE);
         CREATE FUNCTION bump() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE p SET n = n + 1 WHERE id = NEW.p; RETURN NEW; END $$;
         CREATE TRIGGER bump AFTER INSERT ON c FOR EACH ROW EXECUTE FUNCTION bump();
         INSERT INTO p VALUES (1), (2), (3); INSERT INTO c VALUES (1, 1), (2, 1), (3, 2)",
    );
    let watched = Watched::create(
        &mut session,
        "st",
        "SELECT p.id, p.n, c.id AS c FROM p JOIN c ON c.p = p.id",
        Comparison::Text,
    );
    for change in [
        "INSERT INTO c VALUES (4, 3), (5, 3), (6, 1)",
        "UPDATE p SET id = id + 10",
        "DELETE FROM p WHERE id = 11",
    ] {
        session.run(change);
        watched.refresh_and_compare(&mut session, change);
    }
}

#[test]
fn a_refresh_from_a_trigger_of_the_changed_table_is_right_or_refused() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let watched = Watched::create(&mut session, "st", TOTALS, Comparison::Text);
    session.run(
        "CREATE FUNCTION now() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pgstream.refresh_stream_table('st'); RETURN NULL; END $$;
         CREATE TRIGGER a_first AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION public.now();
         CREATE TRIGGER z_last AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION public.now()",
    );
    let _either_way = session.try_run("INSERT INTO t VALUES (10, 1, 10), (11, 5, 5)");
    session.run("DROP TRIGGER a_first ON t; DROP TRIGGER z_last ON t; UPDATE t SET v = v + 1");
    watched.refresh_and_compare(&mut session, "update");
}

#[test]
fn session_replication_role_replica_loses_nothing() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let watched = Watched::create(&mut session, "st", TOTALS, Comparison::Text);
    session.run("SET session_replication_role = replica");
    session.run("INSERT INTO t VALUES (10, 1, 10); UPDATE t SET v = 0 WHERE id = 2; DELETE FROM t WHERE id = 3");
    session.run("RESET session_replication_role");
    session.refresh("st");
    watched.compare(&mut session, "changes as a replica");
}

#[test]
fn the_buffer_shows_the_documented_columns() {
    let database = Database::new();
    let mut session = database.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, used int, unused int)");
    session.create("st", "SELECT id, used FROM t");
    session.run("INSERT INTO t VALUES (1, 2, 3); UPDATE t SET used = 5; DELETE FROM t");
    let oid = session.value("SELECT 't'::regclass::oid");
    let buffer = format!("pgstream_changes.changes_{oid}");
    assert_eq!(
        session.rows(&format!("SELECT action, new_id, new_used, old_id, old_used, xid IS NOT NULL FROM {buffer} ORDER BY ctid")),
        ["I|1|2|NULL|NULL|t", "U|1|5|1|2|t", "D|NULL|NULL|1|5|t"]
    );
    let unused = format!(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = '{buffer}'::regclass AND attname = 'new_unused'"
    );
    assert_eq!(session.value(&unused), "0");
    let triggers = format!(
        "SELECT count(*) > 0 FROM pg_trigger WHERE tgrelid = 't'::regclass AND tgname ~ '^pg_stream_cdc_.*{oid}'"
    );
    assert_eq!(session.value(&triggers), "t");
}

#[test]
fn two_sessions_create_or_drop_the_same_stream_table() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["a", "b"]);
    s.monitor().run(TABLES);
    let create = format!("SELECT pgstream.create_stream_table('st', '{ROWS}')");
    s.run("a", &format!("BEGIN; {create}"));
    s.blocks("b", &create);
    s.run("a", "COMMIT");
    let error = s.finish("b").expect_err("the name is taken");
    assert_eq!(error.code, "42P07");
    assert!(error.message.contains("already exists"), "{error}");
    let drop = "SELECT pgstream.drop_stream_table('st')";
    s.run("a", &format!("BEGIN; {REFRESH}"));
    s.blocks("b", drop);
    s.run("a", &format!("{drop}; COMMIT"));
    let error = s.finish("b").expect_err("it is gone");
    assert_eq!(error.code, "42P01");
    assert!(error.message.contains("st\" does not exist"), "{error}");
    s.run("b", &create);
    s.compare("b", ROWS);
}

#[test]
fn a_creation_from_a_trigger_of_the_changed_table_is_right_or_refused() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    // It is captured already.
    session.create("first", ROWS);
    session.run(&format!(
        "CREATE FUNCTION make() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pgstream.create_stream_table('st', '{TOTALS}'); RETURN NULL; END $$"
    ));
    // Before and after the trigger that captures, by their names.
    for name in ["a", "z"] {
        session.run(&format!(
            "CREATE TRIGGER {name} AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION make()"
        ));
        let error = session.error("INSERT INTO t VALUES (10, 1, 10)");
        assert_eq!(error.code, "55006", "{error}");
        session.run(&format!("DROP TRIGGER {name} ON t"));
    }
    session.run("INSERT INTO t VALUES (10, 1, 10)");
    let watched = Watched::create(&mut session, "st", TOTALS, Comparison::Text);
    session.run("INSERT INTO t VALUES (11, 1, 10)");
    watched.refresh_and_compare(&mut session, "created after the statement");
    // Nobody captures this one yet.
    session.run(
        "CREATE TABLE u (id int);
         CREATE FUNCTION make(int) RETURNS int LANGUAGE plpgsql AS $$
         BEGIN PERFORM pgstream.create_stream_table('public.su', 'SELECT id FROM public.u'); RETURN $1; END $$",
    );
    let error = session.error("INSERT INTO u SELECT CASE i WHEN 2 THEN make(i) ELSE i END FROM generate_series(1, 3) AS i");
    assert_eq!(error.code, "55006", "{error}");
}

#[test]
fn a_refresh_from_a_trigger_of_the_stream_table_itself_is_refused() {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    let watched = Watched::create(&mut session, "st", TOTALS, Comparison::Text);
    let other = Watched::create(&mut session, "other", ROWS, Comparison::Text);
    session.run(
        "CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pgstream.refresh_stream_table('public.' || TG_ARGV[0]); RETURN NULL; END $$;
         CREATE TRIGGER again AFTER INSERT OR UPDATE ON st FOR EACH STATEMENT EXECUTE FUNCTION again('st');
         INSERT INTO t VALUES (10, 1, 10)",
    );
    let error = session.error(REFRESH);
    assert_eq!(error.code, "55006", "{error}");
    // To verify is to refresh, and to undo that.
    let error = session.error("SELECT * FROM pgstream.verify_stream_table('st')");
    assert_eq!(error.code, "55006", "{error}");
    session.run(
        "CREATE OR REPLACE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM * FROM pgstream.verify_stream_table('public.' || TG_ARGV[0]); RETURN NULL; END $$",
    );
    let error = session.error(REFRESH);
    assert_eq!(error.code, "55006", "{error}");
    session.run(
        "CREATE OR REPLACE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pgstream.refresh_stream_table('public.' || TG_ARGV[0]); RETURN NULL; END $$;
         DROP TRIGGER again ON st;
         CREATE TRIGGER again AFTER INSERT OR UPDATE ON st FOR EACH STATEMENT EXECUTE FUNCTION again('other')",
    );
    watched.refresh_and_compare(&mut session, "with another one inside");
    other.compare(&mut session, "inside another one");
}

/// Deferred triggers wait for the commit, and all changes are captured before.
#[test]
fn a_refresh_while_deferred_constraints_are_to_be_checked() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE p (id int PRIMARY KEY); INSERT INTO p VALUES (1), (2);
         CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p DEFERRABLE INITIALLY DEFERRED, u int UNIQUE DEFERRABLE INITIALLY DEFERRED);
         INSERT INTO c VALUES (1, 1, 1), (2, 2, 2)",
    );
    let query = "SELECT p, count(*) AS n, sum(u) AS s FROM c GROUP BY p";
    let watched = Watched::create(&mut session, "st", query, Comparison::Text);
    session.run("BEGIN; INSERT INTO c VALUES (3, 9, 3)");
    watched.refresh_and_compare(&mut session, "a reference to nothing");
    session.run("UPDATE c SET u = u + 1; INSERT INTO p VALUES (9)");
    watched.refresh_and_compare(&mut session, "duplicates on the way");
    let other = Watched::create(&mut session, "other", query, Comparison::Text);
    session.run("DELETE FROM c WHERE id = 2; COMMIT");
    watched.refresh_and_compare(&mut session, "after the commit");
    other.refresh_and_compare(&mut session, "created meanwhile");
}

#[test]
fn a_refresh_from_a_trigger_before_the_rows_that_a_cascade_deleted_are_captured_is_refused() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE p (id int PRIMARY KEY); INSERT INTO p VALUES (1), (2);
         CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE); INSERT INTO c VALUES (1, 1), (2, 2)",
    );
    let query = "SELECT p, count(*) AS n FROM c GROUP BY p";
    let watched = Watched::create(&mut session, "st", query, Comparison::Text);
    // After those of the constraint, by its name.
    session.run(
        "CREATE FUNCTION early() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pgstream.refresh_stream_table('public.st'); RETURN NULL; END $$;
         CREATE TRIGGER z AFTER DELETE ON p FOR EACH ROW EXECUTE FUNCTION early()",
    );
    let error = session.error("DELETE FROM p WHERE id = 1");
    assert_eq!(error.code, "55006", "{error}");
    session.run("DROP TRIGGER z ON p; DELETE FROM p WHERE id = 1");
    watched.refresh_and_compare(&mut session, "after the statement");
}
