//! Changes captured from the write-ahead log. Each test has a server of its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use pgstream_tests::{Comparison, Database, Server, Session, Watched, difference, kill_9};

const SETTINGS: [&str; 6] = [
    "fsync=off",
    "wal_level=logical",
    "output_plugin_libraries=pg_stream",
    "pg_stream.cdc_mode=wal",
    "pg_stream.enabled=off",
    "pg_stream.scheduler_interval_ms=100",
];

fn database() -> Database {
    Database::on(Server::start(&SETTINGS))
}

/// Waits until changes of the tables are decoded.
#[track_caller]
fn decoded(session: &mut Session, tables: &[&str]) {
    for table in tables {
        mode_is(session, table, "WAL");
    }
}

/// Waits until changes of the table are not decoded, although they may be wanted to be.
#[track_caller]
fn captured_by_triggers(session: &mut Session, table: &str) {
    session.wait_until(&format!(
        "SELECT cdc_mode <> 'WAL' FROM pgstream.pgs_change_tracking WHERE source_relid = '{table}'::regclass"
    ));
}

#[track_caller]
fn mode_is(session: &mut Session, table: &str, mode: &str) {
    session.wait_until(&format!(
        "SELECT cdc_mode = '{mode}' FROM pgstream.pgs_change_tracking WHERE source_relid = '{table}'::regclass"
    ));
}

#[track_caller]
fn watched(session: &mut Session, name: &str, query: &str) -> Watched {
    Watched::create(session, name, query, Comparison::Text)
}

/// Runs each change and refreshes all.
#[track_caller]
fn follow(session: &mut Session, all: &[Watched], changes: &[&str]) {
    for change in changes {
        session.run(change);
        for it in all {
            it.refresh_and_compare(session, change);
        }
    }
}

/// How often the stream tables of the database were computed anew.
fn computed_anew(session: &mut Session) -> String {
    session.value(
        "SELECT count(*) FROM pgstream.pgs_refresh_history
         WHERE action IN ('FULL', 'REINITIALIZE') AND initiated_by <> 'INITIAL' OR status = 'FAILED'",
    )
}

const TABLES: &str =
    "CREATE TABLE t (id int PRIMARY KEY, g int, v int); ALTER TABLE t REPLICA IDENTITY FULL;
    CREATE TABLE u (g int PRIMARY KEY, name text); ALTER TABLE u REPLICA IDENTITY FULL;
    CREATE TABLE p (g int PRIMARY KEY, note text);
    INSERT INTO t SELECT i, i % 4, i FROM generate_series(1, 20) i;
    INSERT INTO u SELECT i, 'u' || i FROM generate_series(0, 3) i;
    INSERT INTO p SELECT i, 'p' || i FROM generate_series(0, 3) i";

const SUMS: &str =
    "SELECT g, count(*) AS n, sum(v) AS s, min(v) AS least, max(v) AS most FROM t GROUP BY g";
const BOTH: &str = "SELECT t.id, t.v, u.name FROM t JOIN u USING (g)";
const MIXED: &str = "SELECT t.id, t.v, p.note FROM t LEFT JOIN p USING (g)";

/// `t` and `u` are decoded, `p` is captured by triggers.
fn three_tables(session: &mut Session) -> [Watched; 3] {
    session.run(TABLES);
    let all = [("sums", SUMS), ("joined", BOTH), ("mixed", MIXED)]
        .map(|(name, query)| watched(session, name, query));
    decoded(session, &["t", "u"]);
    all
}

#[test]
fn every_kind_of_change_is_decoded() {
    let database = database();
    let mut session = database.session();
    let all = three_tables(&mut session);
    follow(
        &mut session,
        &all,
        &[
            "INSERT INTO t VALUES (100, 1, 7), (101, NULL, NULL), (102, 9, 1)",
            "UPDATE t SET v = v + 1 WHERE g = 1",
            "UPDATE t SET v = v",
            "UPDATE t SET id = id + 1000 WHERE id < 5",
            "UPDATE t SET g = 3 - g",
            "DELETE FROM t WHERE g = 2",
            "UPDATE u SET g = g + 10; UPDATE p SET note = note || '!'; UPDATE t SET g = g + 10 WHERE id % 2 = 0",
            "DELETE FROM u WHERE g = 11; DELETE FROM p WHERE g = 1; INSERT INTO u VALUES (1, 'new'); INSERT INTO p VALUES (12, 'x')",
            "INSERT INTO t VALUES (100, 5, 5) ON CONFLICT (id) DO UPDATE SET v = -1",
            "INSERT INTO t VALUES (100, 5, 5), (200, 5, 5) ON CONFLICT DO NOTHING",
            "COPY t FROM PROGRAM 'printf \"300,1,1\\n301,12,2\\n\"' (FORMAT csv)",
            "MERGE INTO t USING (VALUES (300, 2), (302, 3), (301, NULL)) AS n (id, v) USING (id)
             WHEN MATCHED AND n.v IS NULL THEN DELETE WHEN MATCHED THEN UPDATE SET v = n.v
             WHEN NOT MATCHED THEN INSERT VALUES (n.id, 1, n.v)"
                .replace("USING (id)\n", "ON t.id = n.id\n")
                .as_str(),
            "SET LOCAL session_replication_role = replica; INSERT INTO t VALUES (400, 1, 1); UPDATE u SET name = 'r';
             UPDATE p SET note = 'r'; DELETE FROM t WHERE id = 300",
            "BEGIN; INSERT INTO t VALUES (500, 1, 1); SAVEPOINT a; INSERT INTO t VALUES (501, 1, 1); UPDATE u SET name = 'lost';
             DELETE FROM t WHERE id = 400; ROLLBACK TO a; INSERT INTO t VALUES (502, 1, 1); SAVEPOINT b;
             UPDATE t SET v = v * 2; RELEASE b; SAVEPOINT c; DELETE FROM t WHERE id = 500; COMMIT",
            "DO $$ BEGIN FOR i IN 600..700 LOOP BEGIN INSERT INTO t VALUES (i, i % 3, i);
               IF i % 3 = 0 THEN RAISE 'no'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$",
            "BEGIN; DELETE FROM t; INSERT INTO t SELECT i, i % 3, i FROM generate_series(1, 50) i; UPDATE t SET v = 1 WHERE id < 5; COMMIT",
            "TRUNCATE t",
            "INSERT INTO t VALUES (1, 1, 1), (2, 2, 2)",
            "BEGIN; INSERT INTO t VALUES (3, 3, 3); TRUNCATE t, u; INSERT INTO u VALUES (1, 'one'); INSERT INTO t VALUES (1, 1, 1); COMMIT",
            "BEGIN; SAVEPOINT a; TRUNCATE u; ROLLBACK TO a; INSERT INTO t VALUES (4, 1, 1); COMMIT",
            "VACUUM FULL t",
            "CLUSTER t USING t_pkey",
            "UPDATE t SET v = 5",
        ],
    );
    // A rolled back transaction, and one that another session ends.
    session.run("BEGIN; DELETE FROM t; ROLLBACK");
    session.run("BEGIN; INSERT INTO t VALUES (10, 1, 1); SAVEPOINT s; UPDATE t SET v = 6; ROLLBACK TO s; DELETE FROM t WHERE id = 1; PREPARE TRANSACTION 'one'");
    session.run("BEGIN; INSERT INTO u VALUES (2, 'two'); PREPARE TRANSACTION 'two'");
    session.run("INSERT INTO u VALUES (3, 'three'); UPDATE p SET g = g + 100");
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "prepared"));
    let mut other = database.session();
    other.run("COMMIT PREPARED 'one'");
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "committed"));
    other.run("ROLLBACK PREPARED 'two'");
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "rolled back"));
    decoded(&mut session, &["t", "u"]);
}

#[test]
fn every_kind_of_value_is_decoded() {
    let database = database();
    let mut session = database.session();
    session.run(
        "CREATE DOMAIN positive AS int CHECK (value > 0); CREATE DOMAIN more AS positive;
         CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TYPE pair AS (a int, b text);
         CREATE TABLE v (id int PRIMARY KEY, gone text, long text, raw bytea, d more, e mood, a int[], c pair, j jsonb, n numeric,
           f float8, s \"char\", nm name, r int4range, b bool, ts timestamptz, twice int GENERATED ALWAYS AS (id * 2) STORED, words text[],
           packed text COMPRESSION pglz);
         ALTER TABLE v ALTER raw SET STORAGE EXTERNAL;
         ALTER TABLE v REPLICA IDENTITY FULL;
         CREATE TABLE bag (x int, y text); ALTER TABLE bag REPLICA IDENTITY FULL;
         CREATE TABLE virtual (id int, two int GENERATED ALWAYS AS (id * 2) VIRTUAL, note text); ALTER TABLE virtual REPLICA IDENTITY FULL;
         CREATE FUNCTION noise(n int) RETURNS text LANGUAGE sql AS $$ SELECT string_agg(md5(i::text || n), '') FROM generate_series(1, n) i $$;
         INSERT INTO v (id, gone, long, raw) SELECT i, 'x', noise(i * 100), decode(noise(i * 100), 'hex') FROM generate_series(1, 5) i",
    );
    let all = [
        ("all_columns", "SELECT id, long, raw, d, e, a, c, j, n, f, s, nm, r, b, ts, twice, words, packed FROM v"),
        ("lengths", "SELECT e, d, count(*) AS n, sum(length(long)) AS l, max(md5(long)) AS m, sum(twice) AS t FROM v GROUP BY e, d"),
        ("bags", "SELECT x, y FROM bag"),
        ("counted", "SELECT y, count(*) AS n, sum(x) AS s FROM bag GROUP BY y"),
        ("doubled", "SELECT id, two, note FROM virtual"),
    ]
    .map(|(name, query)| watched(&mut session, name, query));
    decoded(&mut session, &["v", "bag"]);
    follow(
        &mut session,
        &all,
        &[
            // Long values that stay where they are.
            "UPDATE v SET d = id",
            "UPDATE v SET id = id + 10, e = 'happy' WHERE id % 2 = 0",
            "UPDATE v SET long = long || 'end' WHERE id = 1; UPDATE v SET d = d + 1",
            "UPDATE v SET long = repeat('again and ', 2000), words = ARRAY[noise(200), NULL, repeat('x', 100000)], j = jsonb_build_object('k', noise(300)) WHERE id = 3",
            "UPDATE v SET packed = repeat('packed ', 5000), c = ROW(1, noise(200)), n = repeat('123456789', 1000)::numeric",
            "ALTER TABLE v ALTER packed SET STORAGE EXTERNAL; UPDATE v SET packed = packed || '' WHERE id < 4",
            "UPDATE v SET f = 'NaN', b = true WHERE id = 1; UPDATE v SET long = long",
            "UPDATE v SET long = NULL, words = NULL, packed = NULL WHERE id = 3",
            "INSERT INTO v (id, long, d, e, a, c, j, n, f, s, nm, r, b, ts)
             VALUES (50, 'short', 3, 'sad', '{1,NULL,3}', '(1,\"a b\")', '{\"a\": [1, null]}', 'NaN', '-0', 'c', 'name', '[1,5)', true, '2020-01-01'),
                    (51, NULL, NULL, NULL, '{}', NULL, 'null', 1.10, 'Infinity', '', '', 'empty', false, 'infinity')",
            "UPDATE v SET a = a || 7, c.b = 'new', n = 1.1, s = NULL, ts = ts - interval '1 day' WHERE id >= 50",
            "DELETE FROM v WHERE id IN (1, 12, 51)",
            // No key, and rows more than once.
            "INSERT INTO bag SELECT 1, 'a' FROM generate_series(1, 5); INSERT INTO bag VALUES (NULL, NULL), (NULL, NULL), (2, 'b')",
            "DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag WHERE x = 1)",
            "UPDATE bag SET y = 'b' WHERE ctid = (SELECT min(ctid) FROM bag WHERE x = 1)",
            "UPDATE bag SET x = x + 1; DELETE FROM bag WHERE x IS NULL AND ctid = (SELECT max(ctid) FROM bag WHERE x IS NULL)",
            "INSERT INTO virtual VALUES (1, DEFAULT, 'a'), (2, DEFAULT, 'b'); UPDATE virtual SET id = id + 1; DELETE FROM virtual WHERE id = 2",
        ],
    );
    // Columns that rows of old do not have.
    session.run("ALTER TABLE v DROP COLUMN gone");
    session.run("ALTER TABLE v ADD COLUMN late int DEFAULT 7, ADD COLUMN later text");
    follow(
        &mut session,
        &all,
        &["UPDATE v SET d = 9 WHERE id = 3", "INSERT INTO v (id, late) VALUES (60, 1)"],
    );
    // In the buffer with the next reader, for changes that are not decoded yet.
    session.run("UPDATE v SET d = 8; DELETE FROM v WHERE id = 14");
    let late = watched(
        &mut session,
        "lately",
        "SELECT late, count(later) AS c, count(*) AS n FROM v GROUP BY late",
    );
    decoded(&mut session, &["v"]);
    let late = [late];
    follow(
        &mut session,
        &late,
        &[
            "UPDATE v SET d = 7",
            "UPDATE v SET late = 8, later = 'x' WHERE id = 3",
            "DELETE FROM v WHERE id = 5",
        ],
    );
    follow(
        &mut session,
        &all,
        &["ALTER TABLE v ADD COLUMN third int", "UPDATE v SET third = 1, late = 2, a = '{1}'"],
    );
    follow(&mut session, &late, &["UPDATE v SET third = 2"]);
}

const REFRESH_ALL: [&str; 3] = ["sums", "joined", "mixed"];

fn refresh_all(session: &mut Session) {
    REFRESH_ALL.iter().for_each(|it| session.refresh(it));
}

#[track_caller]
fn compare_all(session: &mut Session, all: &[Watched], when: &str) {
    all.iter().for_each(|it| it.compare(session, when));
}

#[track_caller]
fn refused(session: &mut Session, sql: &str) {
    assert_eq!(session.error(sql).code, "55006", "{sql}");
}

#[test]
fn each_transaction_counts_once_whenever_it_commits() {
    let database = database();
    let (mut session, mut writer, mut reader) =
        (database.session(), database.session(), database.session());
    let all = three_tables(&mut session);
    // Written before and committed after a refresh of somebody else.
    writer.run("BEGIN");
    writer.run("INSERT INTO t VALUES (100, 1, 1)");
    writer.run("SAVEPOINT a; UPDATE u SET name = name || '!'; UPDATE p SET note = 'w' WHERE g = 1; RELEASE a");
    session.run("INSERT INTO t VALUES (101, 1, 1); DELETE FROM t WHERE id = 1");
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "written, not committed"));
    writer.run("DELETE FROM t WHERE id = 2; COMMIT");
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "committed"));

    // A snapshot that is older than what is decoded.
    reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t");
    writer.run("UPDATE t SET v = v + 10, g = g + 1; INSERT INTO u VALUES (4, 'four'); UPDATE p SET g = g + 50 WHERE g = 2");
    let other = watched(&mut session, "other", SUMS);
    session.run("DELETE FROM t WHERE id = 5");
    other.refresh_and_compare(&mut session, "another reader makes sure that it is decoded");
    reader.run("SAVEPOINT a");
    refresh_all(&mut reader);
    compare_all(&mut reader, &all, "at an old snapshot");
    writer.run("INSERT INTO t VALUES (102, 2, 2)");
    refresh_all(&mut reader);
    compare_all(&mut reader, &all, "at an old snapshot, again");
    reader.run("COMMIT");
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "at a new snapshot"));

    // A table that was emptied is not seen as it was.
    reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM p");
    writer.run("TRUNCATE t; INSERT INTO t SELECT i, i % 3, i FROM generate_series(1, 20) i");
    assert_eq!(reader.error("SELECT pgstream.refresh_stream_table('sums')").code, "40001");
    reader.run("ROLLBACK");
    refresh_all(&mut session);
    compare_all(&mut session, &all, "TRUNCATE");
    other.refresh_and_compare(&mut session, "TRUNCATE");

    // Refreshed first and changed later.
    for level in ["READ COMMITTED", "REPEATABLE READ"] {
        writer.run("UPDATE t SET v = v + 1");
        session.run(&format!("BEGIN ISOLATION LEVEL {level}"));
        refresh_all(&mut session);
        compare_all(&mut session, &all, "in the transaction");
        session.run("SAVEPOINT a; INSERT INTO t VALUES (200, 1, 1); ROLLBACK TO a");
        refresh_all(&mut session);
        writer.run("DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (4, 1, 5)");
        session.run("UPDATE p SET note = note || '?'; INSERT INTO t VALUES (201, 2, 9)");
        session.run("UPDATE t SET v = v + 1, g = 3 WHERE id = 6");
        session.run("COMMIT");
        all.iter().for_each(|it| it.refresh_and_compare(&mut session, "the later changes"));
        all.iter().for_each(|it| it.refresh_and_compare(&mut session, "not again"));
        session.run("DELETE FROM t WHERE id = 201");
    }
    session.run("BEGIN; SAVEPOINT a");
    refresh_all(&mut session);
    session.run("RELEASE a; SAVEPOINT b; UPDATE t SET v = v + 1; RELEASE b; COMMIT");
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "in subtransactions"));
    // A reader that is created between a change and its commit, and needs nothing that is not captured.
    writer.run("BEGIN; INSERT INTO t VALUES (210, 1, 1); UPDATE t SET v = v + 1 WHERE id = 7");
    let among = watched(&mut session, "among", "SELECT id, g FROM t");
    writer.run("DELETE FROM t WHERE id = 8; COMMIT");
    among.refresh_and_compare(&mut session, "committed after creation");
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "committed after a creation"));
    // Columns that are captured, given up and captured again, with changes that are not decoded yet.
    session.run("ALTER TABLE t ADD COLUMN c int DEFAULT 3");
    for _ in 0..3 {
        let it = watched(&mut session, "passing", "SELECT id, c FROM t");
        session.run("UPDATE t SET c = c + 1 WHERE id % 2 = 0; UPDATE t SET v = v + 1");
        it.refresh_and_compare(&mut session, "UPDATE");
        session.run("UPDATE t SET c = c + 1; DELETE FROM t WHERE id = (SELECT max(id) FROM t)");
        session.run("SELECT pgstream.drop_stream_table('passing')");
        session.run("UPDATE t SET c = c + 1, v = v + 1");
        all.iter().for_each(|it| it.refresh_and_compare(&mut session, "another one was dropped"));
        session.run("UPDATE t SET c = c + 1, v = v + 1");
    }
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "another one was dropped"));
    // Created and changed in one transaction.
    session.run("BEGIN; SELECT pgstream.create_stream_table('fresh', 'SELECT id, v FROM t', '1d'); INSERT INTO t VALUES (300, 1, 1);
        UPDATE t SET v = v + 1 WHERE id < 9; COMMIT");
    session.refresh("fresh");
    assert_eq!(
        session.value("SELECT count(*), sum(v) FROM fresh"),
        session.value("SELECT count(*), sum(v) FROM t")
    );
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "after another was created"));
    decoded(&mut session, &["t", "u"]);
}

#[test]
fn own_changes_that_are_not_decoded_yet_refuse_a_refresh() {
    let database = database();
    let mut session = database.session();
    let all = three_tables(&mut session);
    let refresh = "SELECT pgstream.refresh_stream_table('sums')";
    let writes = [
        "INSERT INTO t VALUES (100, 1, 1)",
        "UPDATE t SET v = 1 WHERE id = 1",
        "DELETE FROM t WHERE id = 1",
        "TRUNCATE t",
        "MERGE INTO t USING u ON t.g = u.g AND t.id = 3 WHEN MATCHED THEN DELETE",
        "COPY t FROM PROGRAM 'echo 100,1,1' (FORMAT csv)",
        "WITH w AS (INSERT INTO t VALUES (100, 1, 1) RETURNING *) SELECT * FROM w",
        "DO $$ BEGIN DELETE FROM t; EXCEPTION WHEN others THEN NULL; END $$",
        "SAVEPOINT b; INSERT INTO t VALUES (100, 1, 1); RELEASE b",
        "ALTER TABLE t ALTER v TYPE numeric(20, 1)",
        "SAVEPOINT b; ALTER TABLE t ALTER v TYPE bigint; ROLLBACK TO b; TRUNCATE t",
    ];
    for write in writes {
        session.run("BEGIN");
        session.run(write);
        session.run("SAVEPOINT a");
        refused(&mut session, refresh);
        session.run("ROLLBACK TO a");
        refused(
            &mut session,
            "SELECT pgstream.create_stream_table('more', 'SELECT id, v FROM t', '1d')",
        );
        session.run("ROLLBACK TO a");
        session.run("ROLLBACK");
        // A table that is not read does not matter, nor what was undone.
        session.run("BEGIN; UPDATE u SET name = name || 'x'; SAVEPOINT a");
        session.run(write);
        session.run("ROLLBACK TO a");
        session.run(refresh);
        all[0].compare(&mut session, write);
        refused(&mut session, "SELECT pgstream.refresh_stream_table('joined')");
        session.run("ROLLBACK");
    }
    // Changes that triggers capture are as good as ever.
    session.run("BEGIN; UPDATE p SET note = 'y' WHERE g = 1");
    session.refresh("mixed");
    all[2].compare(&mut session, "p");
    session.run("DELETE FROM p WHERE g = 2");
    session.refresh("mixed");
    all[2].compare(&mut session, "p");
    session.run("INSERT INTO t VALUES (100, 3, 3)");
    session.run("COMMIT");
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "all of it"));
    // From a trigger, and a function.
    session.run(
        "CREATE FUNCTION refresh() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           PERFORM pgstream.refresh_stream_table('sums'); RETURN NULL; END $$;
         CREATE TRIGGER z AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION refresh()",
    );
    refused(&mut session, "INSERT INTO t VALUES (101, 1, 1)");
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "nothing"));
}

/// Sessions that change `t`, `u` and `p` until they are told to stop.
struct Writers {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicI32>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    fn start(database: &Database, count: i32) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI32::new(0)));
        let start = |number: i32| {
            let mut session = database.session();
            let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
            thread::spawn(move || {
                let mut round = 0;
                while !stop.load(SeqCst) {
                    // The server may be crashed.
                    if session.try_run(&change(number, round)).is_err() {
                        return;
                    }
                    round += 1;
                    rounds.fetch_add(1, SeqCst);
                }
            })
        };
        let threads = (1..=count).map(start).collect();
        Self { stop, rounds, threads }
    }

    /// Lets them change something.
    fn wait(&self, more: i32) {
        let until = self.rounds.load(SeqCst) + more;
        while self.rounds.load(SeqCst) < until && !self.threads.iter().all(JoinHandle::is_finished)
        {
            thread::park_timeout(Duration::from_millis(1));
        }
    }

    fn stop(self) {
        self.stop.store(true, SeqCst);
        for thread in self.threads {
            thread.join().expect("it stops");
        }
    }
}

/// What one writer does: keys are its own, groups are everybody's.
fn change(number: i32, round: i32) -> String {
    let id = number * 1_000_000 + round;
    let (g, own) = (round % 7, number * 100 + round % 3);
    let base = format!(
        "INSERT INTO t VALUES ({id}, {g}, {round}); DELETE FROM t WHERE id = {id} - 20;
         UPDATE t SET g = (g + 1) % 7, v = v + 1 WHERE id = {id} - 3"
    );
    match round % 5 {
        0 => base,
        1 => format!(
            "BEGIN; {base}; SAVEPOINT a; DELETE FROM t WHERE id BETWEEN {id} - 9 AND {id}; ROLLBACK TO a; UPDATE t SET v = -v WHERE id = {id}; COMMIT"
        ),
        2 => format!(
            "{base}; INSERT INTO u VALUES ({own}, 'w') ON CONFLICT (g) DO UPDATE SET name = 'w{round}'"
        ),
        3 => format!(
            "{base}; DELETE FROM p WHERE g = {own}; INSERT INTO p VALUES ({own}, 'w{round}')"
        ),
        _ => format!("BEGIN; {base}; ROLLBACK"),
    }
}

/// Refreshes and compares at one snapshot. A source that changes over after it was taken is a reason to try
/// again.
#[track_caller]
fn right_now(session: &mut Session, stream_table: &str, query: &str) {
    loop {
        session.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
        let refresh = format!("SELECT pgstream.refresh_stream_table('{stream_table}')");
        match session.try_run(&refresh) {
            Ok(()) => break,
            Err(error) if error.code == "40001" => session.run("ROLLBACK"),
            Err(error) => panic!("{stream_table}: {error}"),
        }
    }
    let wrong = difference(session, stream_table, query, Comparison::Text).expect("comparable");
    assert!(wrong.is_none(), "{stream_table}\n{}", wrong.expect("it is there"));
    session.run("COMMIT");
}

#[test]
fn sources_change_over_and_back_under_writers() {
    let database = database();
    let mut session = database.session();
    let all = three_tables(&mut session);
    session
        .run("ALTER TABLE t ADD COLUMN more_0 int DEFAULT 0, ADD COLUMN more_1 text DEFAULT 'x'");
    let writers = Writers::start(&database, 3);
    for round in 0..10 {
        let mode = if round % 2 == 0 { "trigger" } else { "wal" };
        session.run(&format!("ALTER SYSTEM SET pg_stream.cdc_mode = {mode}"));
        session.run("SELECT pg_reload_conf()");
        // Whatever the decoder is doing may be cancelled; what it knows then is not what it did.
        for _ in 0..if round % 5 == 1 { 30 } else { 0 } {
            session.run(&format!("SELECT pg_cancel_backend(pid) FROM ({DECODER}) AS q"));
            thread::park_timeout(Duration::from_millis(10));
        }
        if round % 4 < 2 {
            let mode = if mode == "wal" { "WAL" } else { "TRIGGER" };
            for table in ["t", "u"] {
                let now = format!(
                    "SELECT cdc_mode FROM pgstream.pgs_change_tracking WHERE source_relid = '{table}'::regclass"
                );
                while session.value(&now) != mode {
                    // A source does not change over while its readers are refreshed.
                    thread::park_timeout(Duration::from_millis(50));
                }
                refresh_all(&mut session);
            }
        } else {
            refresh_all(&mut session);
        }
        writers.wait(20);
        if round % 3 == 1 {
            session.run(&format!("SELECT pg_terminate_backend(pid) FROM ({DECODER}) AS q"));
        }
        // A reader that comes and goes, and needs another column every time.
        let more = format!("SELECT id, more_{} FROM t", round % 2);
        session.run("SET lock_timeout = '10s'");
        session.create("extra", &more);
        writers.wait(10);
        right_now(&mut session, "extra", &more);
        session.run("SELECT pgstream.drop_stream_table('extra')");
        for (it, query) in REFRESH_ALL.iter().zip([SUMS, BOTH, MIXED]) {
            right_now(&mut session, it, query);
        }
    }
    writers.stop();
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "writers"));
    assert_eq!(computed_anew(&mut session), "0");
    decoded(&mut session, &["t", "u"]);
    // In the end nothing is decoded, and there is no slot.
    session.run("ALTER SYSTEM SET pg_stream.cdc_mode = trigger");
    session.run("SELECT pg_reload_conf()");
    session.wait_until("SELECT count(*) = 0 FROM pg_replication_slots");
    session.wait_until(
        "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'pg_stream decoder'",
    );
    follow(
        &mut session,
        &all,
        &[
            "UPDATE t SET v = v + 1",
            "BEGIN; DELETE FROM u WHERE g = 1; SAVEPOINT a; DELETE FROM t; ROLLBACK TO a; COMMIT",
        ],
    );
    session.run("BEGIN; INSERT INTO t VALUES (1, 1, 1) ON CONFLICT DO NOTHING");
    session.run("UPDATE t SET v = v + 2");
    refresh_all(&mut session);
    compare_all(&mut session, &all, "own changes");
    session.run("UPDATE t SET v = v + 3");
    refresh_all(&mut session);
    compare_all(&mut session, &all, "own changes again");
    session.run("COMMIT");
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "nothing more"));
    assert_eq!(computed_anew(&mut session), "0");
}

/// Buffers are locked until the end of a transaction that adds columns to them, or drops them.
#[test]
fn creations_and_drops_hold_up_nobody_else() {
    let database = database();
    let (mut session, mut other) = (database.session(), database.session());
    session.run("CREATE TABLE w (id int PRIMARY KEY, v int); ALTER TABLE w REPLICA IDENTITY FULL");
    let all = three_tables(&mut session);
    let names = [watched(&mut session, "names", "SELECT g, name FROM u")];
    watched(&mut session, "passing", "SELECT id, v FROM w");
    decoded(&mut session, &["w"]);
    session.run("ALTER TABLE t ADD COLUMN more int DEFAULT 1; SET statement_timeout = '5s'");
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "ALTER TABLE"));
    other.run("SET statement_timeout = '5s'");
    let wide = "SELECT id, more FROM t";
    other.run("UPDATE t SET v = v + 1");
    other.run(&format!("BEGIN; SELECT pgstream.create_stream_table('wide', '{wide}', '1d')"));
    follow(&mut session, &names, &["UPDATE u SET name = name || '!'", "DELETE FROM u WHERE g = 1"]);
    // Nor itself.
    refresh_all(&mut other);
    compare_all(&mut other, &all, "in the transaction");
    other.run("COMMIT");
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "after the creation"));
    session.run("UPDATE t SET more = more + 1, v = v + 1");
    right_now(&mut session, "wide", wide);
    other.run("INSERT INTO w SELECT i, i FROM generate_series(1, 1000) i");
    other.run("BEGIN; SELECT pgstream.drop_stream_table('passing')");
    follow(&mut session, &names, &["UPDATE u SET name = name || '?'"]);
    other.run("COMMIT");
    // A table that somebody has locked.
    other.run("BEGIN; LOCK TABLE t");
    follow(&mut session, &names, &["UPDATE u SET name = name || '.'"]);
    other.run("COMMIT");
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "in the end"));
    decoded(&mut session, &["t", "u"]);
    assert_eq!(computed_anew(&mut session), "0");
}

#[test]
fn a_strict_transaction_from_before_a_change_of_capture_tries_again() {
    let database = database();
    let (mut session, mut strict) = (database.session(), database.session());
    let all = three_tables(&mut session);
    for mode in ["trigger", "wal"] {
        strict.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t");
        session.run(&format!("ALTER SYSTEM SET pg_stream.cdc_mode = {mode}"));
        session.run("SELECT pg_reload_conf()");
        for table in ["t", "u"] {
            mode_is(&mut session, table, &mode.to_uppercase());
        }
        session.run("UPDATE t SET v = v + 1");
        assert_eq!(strict.error("SELECT pgstream.refresh_stream_table('sums')").code, "40001");
        strict.run("ROLLBACK");
        refresh_all(&mut strict);
        compare_all(&mut strict, &all, mode);
    }
    assert_eq!(computed_anew(&mut session), "0");
}

#[test]
fn commands_on_decoded_tables() {
    let database = database();
    let mut session = database.session();
    let all = three_tables(&mut session);
    // What does not matter to what is read.
    follow(
        &mut session,
        &all,
        &[
            "ALTER TABLE t ADD COLUMN note text DEFAULT 'x'",
            "UPDATE t SET note = 'y', v = v + 1",
            "BEGIN; UPDATE t SET v = v + 1; ALTER TABLE t ADD COLUMN more int; UPDATE t SET v = v + 1; ALTER TABLE t DROP COLUMN note; UPDATE t SET more = v, g = g + 1; COMMIT",
            "ALTER TABLE t DROP COLUMN more; INSERT INTO t VALUES (100, 1, 1)",
            "CREATE INDEX ON t (g); UPDATE t SET v = 4 WHERE g = 1",
            "ALTER TABLE t CLUSTER ON t_pkey; ALTER TABLE t SET (fillfactor = 50); INSERT INTO t VALUES (101, 1, 1)",
        ],
    );
    decoded(&mut session, &["t", "u"]);
    assert_eq!(computed_anew(&mut session), "0");
    // Triggers that somebody switches on do not count changes twice.
    for command in [
        "ALTER TABLE t DISABLE TRIGGER ALL",
        "ALTER TABLE t ENABLE TRIGGER ALL",
        "ALTER TABLE t ENABLE TRIGGER USER",
        "SET LOCAL event_triggers = off; ALTER TABLE t ENABLE TRIGGER ALL",
        "SET LOCAL event_triggers = off; ALTER TABLE t DISABLE TRIGGER ALL",
    ] {
        session.run(command);
        for change in [
            "INSERT INTO t VALUES (200, 1, 1); UPDATE t SET v = v + 1",
            "DELETE FROM t WHERE id = 200",
        ] {
            session.run(change);
            refresh_all(&mut session);
            compare_all(&mut session, &all, &format!("{command}; {change}"));
        }
    }
    decoded(&mut session, &["t", "u"]);
    // What may compute anew.
    for command in [
        "ALTER TABLE t ADD COLUMN filled float8 DEFAULT random(); DELETE FROM t WHERE id = 3",
        "ALTER TABLE t SET UNLOGGED; UPDATE t SET v = v + 1; ALTER TABLE t SET LOGGED; UPDATE t SET v = v + 1",
        "ALTER TABLE t RENAME COLUMN v TO w",
        "ALTER TABLE t RENAME COLUMN w TO v",
        "ALTER TABLE t RENAME TO s",
        "ALTER TABLE s RENAME TO t",
        "CREATE SCHEMA elsewhere; ALTER TABLE t SET SCHEMA elsewhere",
        "ALTER TABLE elsewhere.t SET SCHEMA public",
        "ALTER TABLE t ALTER v TYPE bigint",
        "BEGIN; UPDATE t SET v = v + 1; ALTER TABLE t ALTER v TYPE int; UPDATE t SET v = v + 1; INSERT INTO t VALUES (300, 1, 1); COMMIT",
    ] {
        session.run(command);
        let table = session.value("SELECT relid::regclass FROM (SELECT source_relid AS relid FROM pgstream.pgs_change_tracking) AS q WHERE relid::regclass::text NOT IN ('u', 'p')");
        let column = session.value(&format!(
            "SELECT attname FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum = 3"
        ));
        session.run(&format!("INSERT INTO {table} (id, g, {column}) VALUES (200, 1, 1); UPDATE {table} SET {column} = {column} + 1"));
        refresh_all(&mut session);
        session.run(&format!("DELETE FROM {table} WHERE id = 200; UPDATE {table} SET {column} = {column} - 1 WHERE id < 9"));
        refresh_all(&mut session);
        let sums = SUMS
            .replace("FROM t", &format!("FROM {table} AS t"))
            .replace("(v)", &format!("({column})"));
        let wrong = difference(&mut session, "sums", &sums, Comparison::Text).expect("comparable");
        assert!(wrong.is_none(), "{command}\n{}", wrong.expect("it is there"));
    }
    compare_all(&mut session, &all, "names are as before");
    decoded(&mut session, &["t", "u"]);
    // What drops a column that is read.
    session.run("ALTER TABLE p RENAME note TO remark");
    refresh_all(&mut session);
}

/// Lets the decoder look at once at what no event trigger has seen.
fn hurry(session: &mut Session) {
    session.run("SELECT pgstream.alter_stream_table('mixed', schedule => '1d')");
}

#[test]
fn a_table_that_cannot_be_decoded_any_longer_goes_back_to_triggers() {
    let database = database();
    let mut session = database.session();
    let all = three_tables(&mut session);
    let more = [
        "INSERT INTO t VALUES (400, 1, 1); UPDATE u SET name = name || '.'",
        "UPDATE t SET v = v + 1",
        "DELETE FROM t WHERE id = 400",
    ];
    for (round, (command, undo)) in [
        ("ALTER TABLE t REPLICA IDENTITY DEFAULT", "ALTER TABLE t REPLICA IDENTITY FULL"),
        ("BEGIN; UPDATE t SET v = v + 1; DELETE FROM t WHERE id = 1; ALTER TABLE t REPLICA IDENTITY NOTHING; UPDATE t SET v = v + 1; COMMIT", "ALTER TABLE t REPLICA IDENTITY FULL"),
        ("SET LOCAL event_triggers = off; ALTER TABLE t REPLICA IDENTITY DEFAULT", "ALTER TABLE t REPLICA IDENTITY FULL"),
        ("SET LOCAL event_triggers = off; UPDATE t SET v = v + 1; ALTER TABLE t REPLICA IDENTITY NOTHING; UPDATE t SET v = v + 1", "SET LOCAL event_triggers = off; ALTER TABLE t REPLICA IDENTITY FULL"),
        ("CREATE TABLE child () INHERITS (t); INSERT INTO child VALUES (500, 1, 1)", "DROP TABLE child"),
        ("SET LOCAL event_triggers = off; CREATE TABLE child () INHERITS (t); INSERT INTO child VALUES (500, 1, 1)", "DROP TABLE child"),
        ("CREATE TABLE parent (id int, g int, v int) PARTITION BY LIST (id); ALTER TABLE parent ATTACH PARTITION t DEFAULT", "ALTER TABLE parent DETACH PARTITION t; DROP TABLE parent"),
    ]
    .into_iter()
    .enumerate()
    {
        session.run("UPDATE t SET v = v + 1");
        session.run(command);
        refresh_all(&mut session);
        compare_all(&mut session, &all, command);
        for change in more {
            session.run(change);
            refresh_all(&mut session);
            compare_all(&mut session, &all, &format!("{command}; {change}"));
        }
        hurry(&mut session);
        mode_is(&mut session, "t", "TRIGGER");
        mode_is(&mut session, "u", "WAL");
        if round > 0 && command.contains("parent") {
            session.run("INSERT INTO parent VALUES (600, 1, 1); UPDATE parent SET v = v + 1; DELETE FROM parent WHERE id = 600");
        }
        for change in more {
            session.run(change);
            refresh_all(&mut session);
            compare_all(&mut session, &all, &format!("{command}; {change}"));
        }
        session.run(undo);
        session.run("UPDATE t SET v = v + 1");
        refresh_all(&mut session);
        compare_all(&mut session, &all, undo);
        hurry(&mut session);
        decoded(&mut session, &["t", "u"]);
        let before = computed_anew(&mut session);
        for change in more {
            session.run(change);
            refresh_all(&mut session);
            compare_all(&mut session, &all, &format!("{undo}; {change}"));
        }
        assert_eq!(computed_anew(&mut session), before, "{undo}");
    }
}

/// Nothing is missing or twice after a crash, nor computed anew.
#[track_caller]
fn recover(database: &Database, all: &[Watched]) -> Session {
    let mut session = database.session_after_crash();
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "a crash"));
    follow(
        &mut session,
        all,
        &[
            "UPDATE t SET v = v + 1; DELETE FROM u WHERE g = 3; UPDATE p SET note = 'after'",
            "DELETE FROM t WHERE id % 3 = 0",
        ],
    );
    assert_eq!(computed_anew(&mut session), "0");
    session
}

const DECODER: &str = "SELECT pid FROM pg_stat_activity
    WHERE backend_type = 'pg_stream decoder' AND datname = current_database()";

/// Waits for a decoder.
fn decoder(session: &mut Session) -> String {
    session.wait_until(&format!("SELECT EXISTS ({DECODER})"));
    session.value(DECODER)
}

#[test]
fn crashes_lose_nothing_and_repeat_nothing() {
    let database = database();
    let mut session = database.session();
    let all = three_tables(&mut session);
    for round in 0..5 {
        session.run("INSERT INTO u VALUES (3, 'three') ON CONFLICT DO NOTHING");
        let writers = Writers::start(&database, 2);
        writers.wait(10 + 7 * round);
        refresh_all(&mut session);
        writers.wait(5 + 3 * round);
        let pid = decoder(&mut session);
        // Some changes are decoded and consumed, some are only decoded, some are neither.
        match round {
            0..3 => {
                kill_9(&pid);
                // The postmaster ends all sessions before it recovers.
                while session.try_run("SELECT 1").is_ok() {}
            }
            3 => database.server().kill(),
            _ => {
                writers.stop();
                drop(session);
                database.server().stop();
                database.server().start_again();
                session = recover(&database, &all);
                continue;
            }
        }
        drop(session);
        writers.stop();
        if round == 3 {
            database.server().start_again();
        }
        session = recover(&database, &all);
    }
    decoded(&mut session, &["t", "u"]);
    // The decoder alone is ended, with changes under way.
    let writers = Writers::start(&database, 2);
    for _ in 0..3 {
        writers.wait(5);
        decoder(&mut session);
        session.run(&format!("SELECT pg_terminate_backend(pid) FROM ({DECODER}) AS q"));
        writers.wait(5);
        refresh_all(&mut session);
    }
    writers.stop();
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "without a decoder"));
    assert_eq!(computed_anew(&mut session), "0");
}

/// Takes the decoder its slot away; gives the slot's name.
fn drop_slot(session: &mut Session) -> String {
    let slot = session.value("SELECT slot_name FROM pg_replication_slots");
    loop {
        session.run(&format!("SELECT pg_terminate_backend(pid, 5000) FROM ({DECODER}) AS q"));
        if session.try_run(&format!("SELECT pg_drop_replication_slot('{slot}')")).is_ok() {
            return slot;
        }
    }
}

#[test]
fn what_is_lost_with_its_slot_is_computed_anew() {
    let database = database();
    let mut session = database.session();
    let all = three_tables(&mut session);
    for round in 0..3 {
        let writers = Writers::start(&database, 1);
        writers.wait(10);
        drop_slot(&mut session);
        writers.wait(5);
        if round == 1 {
            // Nobody waits for ever for what does not come.
            let _ignored = session.try_run("SELECT pgstream.refresh_stream_table('sums')");
        }
        writers.wait(5);
        session.wait_until("SELECT count(*) = 1 FROM pg_replication_slots WHERE active");
        decoded(&mut session, &["t", "u"]);
        writers.stop();
        refresh_all(&mut session);
        compare_all(&mut session, &all, "a lost slot");
        follow(&mut session, &all, &["UPDATE t SET v = v + 1; UPDATE u SET name = name || '+'"]);
    }
    // A source that somebody has changed and not committed holds up only those that read it.
    let names = [watched(&mut session, "names", "SELECT g, name FROM u")];
    session.run("BEGIN; UPDATE t SET v = v + 1; PREPARE TRANSACTION 'one'");
    session.run("UPDATE u SET name = name || '-'");
    drop_slot(&mut session);
    captured_by_triggers(&mut session, "u");
    session.run("UPDATE u SET name = name || '.'");
    session.refresh("names");
    compare_all(&mut session, &names, "a lost slot and a long transaction");
    follow(&mut session, &names, &["UPDATE u SET name = name || '!'; DELETE FROM u WHERE g = 2"]);
    // As if somebody had locked it, which suspends nothing.
    let error = session.error("SELECT pgstream.refresh_stream_table('sums')");
    assert_eq!(error.code, "55P03", "{error}");
    session.run("COMMIT PREPARED 'one'");
    decoded(&mut session, &["t", "u"]);
    refresh_all(&mut session);
    compare_all(&mut session, &all, "a lost slot and a long transaction");
    // Another slot of that name.
    let slot = drop_slot(&mut session);
    session.run("UPDATE t SET v = v + 1");
    // It may be there again already.
    let _ignored = session
        .try_run(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pg_stream')"));
    session.wait_until("SELECT count(*) = 1 FROM pg_replication_slots WHERE active");
    decoded(&mut session, &["t", "u"]);
    refresh_all(&mut session);
    compare_all(&mut session, &all, "another slot");
    follow(&mut session, &all, &["UPDATE t SET v = v + 1; UPDATE u SET name = name || '+'"]);
}

#[test]
fn a_slot_that_cannot_be_taken_is_given_up() {
    let database = database();
    let mut session = database.session();
    let all = three_tables(&mut session);
    // For so long none is made when that has failed.
    session.run("ALTER SYSTEM SET pg_stream.wal_transition_timeout = 10");
    session.run("ALTER SYSTEM SET output_plugin_libraries = ''");
    session.run("SELECT pg_reload_conf()");
    let pid = decoder(&mut session);
    session.run(&format!("SELECT pg_terminate_backend({pid}, 5000)"));
    session.run("UPDATE t SET v = v + 1; UPDATE u SET name = name || '!'");
    for table in ["t", "u"] {
        captured_by_triggers(&mut session, table);
    }
    refresh_all(&mut session);
    compare_all(&mut session, &all, "captured by triggers");
    follow(&mut session, &all, &["UPDATE t SET v = v + 1; UPDATE u SET name = name || '?'"]);
    session.run("ALTER SYSTEM RESET output_plugin_libraries");
    session.run("SELECT pg_reload_conf()");
    decoded(&mut session, &["t", "u"]);
    follow(&mut session, &all, &["UPDATE t SET v = v + 1; UPDATE u SET name = name || '.'"]);
}

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots";

#[test]
fn the_slot_goes_with_what_it_is_for() {
    let database = database();
    let mut session = database.session();
    let other = "other";
    session.run(&format!("CREATE DATABASE {other}"));
    let mut second = database.server().session(other);
    second.run("CREATE EXTENSION pg_stream");
    let all = three_tables(&mut session);
    let more = three_tables(&mut second);
    assert_eq!(session.value(SLOTS), "2");
    for (session, all) in [(&mut session, &all), (&mut second, &more)] {
        follow(
            session,
            all,
            &["UPDATE t SET v = v + 1; DELETE FROM u WHERE g = 1", "DELETE FROM t WHERE id < 4"],
        );
    }
    // The last reader of one table, then of all.
    second.run("SELECT pgstream.drop_stream_table('joined')");
    assert_eq!(
        second.value(
            "SELECT count(*) FROM pgstream.pgs_change_tracking WHERE source_relid = 'u'::regclass"
        ),
        "0"
    );
    second.run("UPDATE u SET name = 'x'; UPDATE t SET v = v + 1");
    more[0].refresh_and_compare(&mut second, "UPDATE");
    second.run(
        "SELECT pgstream.drop_stream_table('sums'); SELECT pgstream.drop_stream_table('mixed')",
    );
    second.run("UPDATE t SET v = v + 1");
    let again = [watched(&mut second, "again", SUMS)];
    follow(&mut second, &again, &["UPDATE t SET v = v + 1"]);
    decoded(&mut second, &["t"]);
    follow(&mut second, &again, &["UPDATE t SET v = v + 1"]);
    second.run("DROP TABLE t CASCADE");
    second.run("DROP EXTENSION pg_stream CASCADE; DROP TABLE IF EXISTS again");
    second.wait_until(&format!("SELECT ({SLOTS}) = 1"));
    second.wait_until("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'pg_stream decoder' AND datname = current_database()");
    second.run("CREATE EXTENSION pg_stream; CREATE TABLE t (id int, g int, v int); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 1, 1)");
    let again = [watched(&mut second, "again", SUMS)];
    decoded(&mut second, &["t"]);
    follow(&mut second, &again, &["UPDATE t SET v = v + 1", "INSERT INTO t VALUES (1, 1, 1)"]);
    drop(second);
    session.run(&format!("DROP DATABASE {other}"));
    session.wait_until(&format!("SELECT ({SLOTS}) = 1"));
    follow(&mut session, &all, &["UPDATE t SET v = v + 1", "DELETE FROM t WHERE id = 5"]);
    assert_eq!(computed_anew(&mut session), "0");
}

#[test]
fn how_changes_are_captured_can_be_seen() {
    let database = database();
    let (mut session, mut listener) = (database.session(), database.session());
    listener.run("LISTEN pg_stream_cdc_transition");
    session.take_notices();
    let all = three_tables(&mut session);
    let notices = session.take_notices();
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(
        notices[0]
            .contains("changes of p are captured by triggers: its replica identity is not FULL")
            || notices[0].contains(
                "changes of public.p are captured by triggers: its replica identity is not FULL"
            ),
        "{notices:?}"
    );
    let slot = session
        .value("SELECT 'pgstream_' || oid FROM pg_database WHERE datname = current_database()");
    let tables = "SELECT source_relid::regclass, cdc_mode";
    assert_eq!(
        session.rows(&format!("{tables}, slot_name, transition_started_at, decoded_until FROM pgstream.pgs_change_tracking
            WHERE source_relid <> 'p'::regclass ORDER BY 1")),
        [format!("t|WAL|{slot}|NULL|NULL"), format!("u|WAL|{slot}|NULL|NULL")]
    );
    assert_eq!(
        session.rows(&format!("{tables}, slot_name, decoder_confirmed_lsn IS NULL, transition_started_at
            FROM pgstream.pgs_dependencies JOIN pgstream.pgs_stream_tables USING (pgs_id) WHERE pgs_name = 'mixed' ORDER BY 1")),
        [format!("t|WAL|{slot}|t|NULL"), "p|TRIGGER|NULL|t|NULL".to_owned()]
    );
    let payloads = listener.notifications("pg_stream_cdc_transition");
    let last = |table: &str| {
        payloads
            .iter()
            .rfind(|it| it.contains(&format!("public.{table}")))
            .cloned()
            .unwrap_or_default()
    };
    assert!(last("t").contains("\"cdc_mode\":\"WAL\""), "{payloads:?}");
    assert!(last("u").contains("\"event\":\"cdc_transition\""), "{payloads:?}");
    assert_eq!(last("p"), "");
    let health = "SELECT source_relid::regclass, active, retained_wal_bytes >= 0, wal_status, slot_name FROM pgstream.slot_health()";
    assert_eq!(
        session.rows(health)[..2],
        [format!("t|t|t|reserved|{slot}"), format!("u|t|t|reserved|{slot}")]
    );
    assert!(session.rows(health)[2].starts_with("p|t|t|trigger|"));
    let alerts = "SELECT source_table, cdc_mode, lag_bytes >= 0, confirmed_lsn IS NOT NULL, alert FROM pgstream.check_cdc_health()";
    assert_eq!(
        session.rows(alerts),
        ["public.t|WAL|t|t|NULL", "public.u|WAL|t|t|NULL", "public.p|TRIGGER|t|f|NULL"]
    );
    // A table that cannot change over yet, because somebody writes to it.
    let mut writer = database.session();
    writer.run("BEGIN; INSERT INTO p VALUES (100, 'x')");
    let mut other = database.session();
    other.run("ALTER TABLE u REPLICA IDENTITY DEFAULT");
    mode_is(&mut session, "u", "TRIGGER");
    writer.run("UPDATE u SET name = 'written'");
    other.run("SET lock_timeout = '10s'");
    let altering = thread::spawn(move || other.run("ALTER TABLE u REPLICA IDENTITY FULL"));
    thread::park_timeout(Duration::from_millis(20));
    writer.run("COMMIT");
    altering.join().expect("it gets the lock");
    mode_is(&mut session, "u", "WAL");
    all.iter()
        .for_each(|it| it.refresh_and_compare(&mut session, "TRUNCATE is allowed to compute anew"));
    // A stopped decoder.
    let pid = decoder(&mut session);
    stop(&pid, "STOP");
    session.run("INSERT INTO t VALUES (100, 1, 1)");
    session.run("SET statement_timeout = '300ms'");
    assert_eq!(session.error("SELECT pgstream.refresh_stream_table('sums')").code, "57014");
    session.run("RESET statement_timeout");
    session.wait_until(
        "SELECT lag_bytes > 0 FROM pgstream.check_cdc_health() WHERE source_table = 'public.t'",
    );
    stop(&pid, "CONT");
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "INSERT"));
}

fn stop(pid: &str, signal: &str) {
    let status = std::process::Command::new("kill").args([&format!("-{signal}"), pid]).status();
    assert!(status.expect("kill can be run").success());
}

#[test]
fn the_scheduler_follows_decoded_changes() {
    let mut settings = SETTINGS.to_vec();
    settings.push("pg_stream.min_schedule_seconds=1");
    settings.retain(|it| *it != "pg_stream.enabled=off");
    let database = Database::on(Server::start(&settings));
    let mut session = database.session();
    session.run(TABLES);
    for (name, query) in [("sums", SUMS), ("joined", BOTH), ("mixed", MIXED)] {
        session.run(&format!("SELECT pgstream.create_stream_table('{name}', '{query}', '1s')"));
    }
    session.run(
        "SELECT pgstream.create_stream_table('above', 'SELECT count(*) AS n FROM joined', '1s')",
    );
    decoded(&mut session, &["t", "u"]);
    for round in 0..3 {
        session.run(&format!("INSERT INTO t VALUES (1000 + {round}, 1, 5); DELETE FROM u WHERE g = {round}; UPDATE t SET v = v + 1"));
        // As soon as it says that it is up to date, it is.
        let since = session.value("SELECT clock_timestamp()");
        session.wait_until(&format!(
            "SELECT bool_and(data_timestamp > '{since}') FROM pgstream.pgs_stream_tables"
        ));
        for (name, query) in [
            ("sums", SUMS),
            ("joined", BOTH),
            ("mixed", MIXED),
            ("above", "SELECT count(*) AS n FROM joined"),
        ] {
            let wrong =
                difference(&mut session, name, query, Comparison::Text).expect("comparable");
            assert!(wrong.is_none(), "{name}\n{}", wrong.expect("it is there"));
        }
    }
    assert_eq!(computed_anew(&mut session), "0");
    // A table that nothing changes is as fresh as what is decoded, and no fresher.
    let pid = decoder(&mut session);
    stop(&pid, "STOP");
    session.run("INSERT INTO t VALUES (2000, 3, 5)");
    let since = session.value("SELECT clock_timestamp()");
    session.wait_until(&format!(
        "SELECT clock_timestamp() > timestamptz '{since}' + interval '2.5 s'"
    ));
    let early = session.value(&format!(
        "SELECT count(*) FROM pgstream.pgs_stream_tables WHERE data_timestamp > '{since}' AND pgs_name IN ('sums', 'joined', 'mixed')"
    ));
    let ticks = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .expect("fields")
            .split_whitespace()
            .filter_map(|it| it.parse().ok())
            .collect();
        // utime and stime, without the state.
        fields[10] + fields[11]
    };
    let scheduler = session.value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_stream scheduler' AND datname = current_database()");
    let before = ticks(&scheduler);
    let since = session.value("SELECT clock_timestamp()");
    session.wait_until(&format!(
        "SELECT clock_timestamp() > timestamptz '{since}' + interval '1.5 s'"
    ));
    let used = ticks(&scheduler) - before;
    stop(&pid, "CONT");
    assert_eq!(early, "0", "what was not decoded is not there");
    assert!(used < 75, "the scheduler used {used} of 150 ticks");
    session.wait_until("SELECT sum(n) = (SELECT count(*) FROM t) FROM sums");
    session.wait_until("SELECT count(*) = (SELECT count(*) FROM t) FROM mixed");
}

/// A decoder that is far behind or does nothing.
#[test]
fn a_creation_holds_up_writers_for_no_decoder() {
    let database = database();
    let (mut session, mut writer) = (database.session(), database.session());
    let all = three_tables(&mut session);
    session.run("ALTER TABLE t ADD COLUMN more int DEFAULT 1");
    let pid = decoder(&mut session);
    stop(&pid, "STOP");
    session.run("INSERT INTO t VALUES (100, 1, 1)");
    let mut creator = database.session();
    creator.run("SET statement_timeout = '20s'");
    let creating = thread::spawn(move || creator.create("another", "SELECT id, more FROM t"));
    writer.run("SET lock_timeout = '4s'");
    while !creating.is_finished() {
        writer.run("INSERT INTO t VALUES (101, 1, 1); DELETE FROM t WHERE id = 101");
        thread::park_timeout(Duration::from_millis(50));
    }
    creating.join().expect("it ends");
    stop(&pid, "CONT");
    all.iter().for_each(|it| it.refresh_and_compare(&mut session, "INSERT"));
    session.refresh("another");
    let wrong = difference(&mut session, "another", "SELECT id, more FROM t", Comparison::Text);
    assert!(wrong.expect("comparable").is_none());
}

/// What a trigger on one table writes is visible at once to those that are refreshed with it, and will be
/// decoded later.
#[test]
fn what_triggers_write_into_decoded_tables_counts_once() {
    let mut settings = SETTINGS.to_vec();
    settings.push("pg_stream.min_schedule_seconds=1");
    settings.retain(|it| *it != "pg_stream.enabled=off");
    let database = Database::on(Server::start(&settings));
    let mut session = database.session();
    session.run(
        "CREATE TABLE w (id int PRIMARY KEY, v int); ALTER TABLE w REPLICA IDENTITY FULL;
         CREATE TABLE stock (id int PRIMARY KEY, n int); ALTER TABLE stock REPLICA IDENTITY FULL;
         INSERT INTO stock SELECT i, 100 FROM generate_series(1, 20) i;
         CREATE TABLE log (id int); ALTER TABLE log REPLICA IDENTITY FULL;
         CREATE FUNCTION book() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           UPDATE public.stock SET n = n - NEW.v WHERE id = NEW.id; INSERT INTO public.log VALUES (NEW.id); RETURN NULL; END $$",
    );
    let tables = [
        ("a", "SELECT id, v FROM w"),
        ("b", "SELECT sum(a.v) AS v, sum(stock.n) AS n FROM a JOIN stock USING (id)"),
        ("c", "SELECT id, n FROM log JOIN stock USING (id)"),
        ("d", "SELECT v, n, (SELECT count(*) FROM c) AS k FROM b"),
    ];
    for (name, query) in tables {
        session.run(&format!("SELECT pgstream.create_stream_table('{name}', '{query}', '1s')"));
    }
    session.run("CREATE TRIGGER book AFTER INSERT ON a FOR EACH ROW EXECUTE FUNCTION book()");
    decoded(&mut session, &["w", "stock", "log"]);
    for id in 1..5 {
        session.run(&format!("INSERT INTO w VALUES ({id}, 10), ({}, 20)", id + 10));
        let since = session.value("SELECT clock_timestamp() + interval '1 s'");
        session.wait_until(&format!(
            "SELECT bool_and(data_timestamp > '{since}') FROM pgstream.pgs_stream_tables"
        ));
        for (name, query) in tables {
            let wrong =
                difference(&mut session, name, query, Comparison::Text).expect("comparable");
            assert!(wrong.is_none(), "{name}\n{}", wrong.expect("it is there"));
        }
    }
    assert_eq!(computed_anew(&mut session), "0");
    let failed = "SELECT count(*) FROM pgstream.pgs_refresh_history WHERE status NOT IN ('COMPLETED', 'SKIPPED')";
    assert_eq!(session.value(failed), "0");
}

/// One of a unit fails, and another is left to a second transaction.
#[test]
fn a_tip_over_a_failing_table_and_a_postponed_one_waits() {
    let mut settings = SETTINGS.to_vec();
    settings.extend(["pg_stream.min_schedule_seconds=1", "pg_stream.max_consecutive_errors=50"]);
    settings.retain(|it| *it != "pg_stream.enabled=off");
    let database = Database::on(Server::start(&settings));
    let mut session = database.session();
    session.run(
        "CREATE TABLE t (id int PRIMARY KEY, v int); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 1);
         CREATE TABLE w (id int PRIMARY KEY, n int); ALTER TABLE w REPLICA IDENTITY FULL; INSERT INTO w VALUES (1, 0);
         CREATE FUNCTION count_up() RETURNS trigger LANGUAGE plpgsql AS
           $$BEGIN UPDATE public.w SET n = n + 1; RETURN NULL; END$$",
    );
    for (name, query) in [
        ("a", "SELECT id, v FROM t"),
        ("x", "SELECT id, v, 10 / v AS z FROM t"),
        ("b", "SELECT t.id, t.v, w.n FROM t JOIN w USING (id)"),
        ("d", "SELECT x.id, x.v AS xv, b.v AS bv, b.n FROM x JOIN b USING (id)"),
    ] {
        session.run(&format!("SELECT pgstream.create_stream_table('{name}', '{query}', '1s')"));
    }
    session
        .run("CREATE TRIGGER count_up AFTER UPDATE ON a FOR EACH ROW EXECUTE FUNCTION count_up()");
    decoded(&mut session, &["t", "w"]);
    session.run("UPDATE t SET v = 0");
    session.wait_until("SELECT v = 0 AND n = 1 FROM b");
    for errors in 1..4 {
        session.wait_until(&format!(
            "SELECT consecutive_errors >= {errors} FROM pgstream.pgs_status() WHERE name = 'public.x'"
        ));
        assert_eq!(session.value("SELECT xv, bv FROM d"), "1|1");
    }
    session.run("UPDATE t SET v = 5");
    session.wait_until("SELECT xv = 5 AND bv = 5 FROM d");
}

#[test]
fn a_large_transaction_is_decoded_from_disk() {
    let mut settings = SETTINGS.to_vec();
    settings.extend(["logical_decoding_work_mem=64kB", "work_mem=64kB", "max_wal_size=4GB"]);
    let database = Database::on(Server::start(&settings));
    let mut session = database.session();
    session.run("ALTER SYSTEM SET temp_file_limit = '100kB'");
    session.run("SELECT pg_reload_conf()");
    session.run("SET temp_file_limit = -1");
    session.run(TABLES);
    let all = [watched(&mut session, "sums", SUMS)];
    decoded(&mut session, &["t"]);
    follow(
        &mut session,
        &all,
        &[
            "BEGIN; INSERT INTO t SELECT i, i % 100, i FROM generate_series(1001, 101000) i; SAVEPOINT a;
             INSERT INTO t SELECT i, i % 100, i FROM generate_series(400000, 410000) i; ROLLBACK TO a;
             UPDATE t SET v = v + 1 WHERE id < 20000; SAVEPOINT b; DELETE FROM t WHERE id % 1000 = 0; COMMIT",
            "DELETE FROM t WHERE id BETWEEN 2000 AND 9999",
        ],
    );
    // What is confirmed is not decoded again, and what began before and was not committed is.
    session.run("BEGIN; INSERT INTO t VALUES (99, 1, 1000); UPDATE t SET v = v + 1 WHERE id = 7; PREPARE TRANSACTION 'one'");
    session.run("UPDATE t SET v = 5 WHERE id = 8");
    let here = session.value("SELECT pg_current_wal_lsn()");
    session.wait_until(&format!(
        "SELECT EXISTS (SELECT FROM pg_logical_emit_message(true, '', repeat('x', 100000)))
            AND confirmed_flush_lsn > '{here}' FROM pg_replication_slots"
    ));
    let confirmed =
        "SELECT count(*) FROM pgstream.pgs_dependencies WHERE decoder_confirmed_lsn > '0/0'";
    assert_eq!(session.value(confirmed), "1");
    session.run("UPDATE t SET v = v + 1 WHERE id BETWEEN 1002 AND 1100");
    kill_9(&decoder(&mut session));
    while session.try_run("SELECT 1").is_ok() {}
    let mut session = database.session_after_crash();
    session.run("COMMIT PREPARED 'one'");
    all[0].refresh_and_compare(&mut session, "a crash");
    database.server().kill();
    database.server().start_again();
    let mut session = database.session();
    follow(&mut session, &all, &["UPDATE t SET v = v + 1 WHERE id < 1200"]);
}
