//! Changes captured from the write-ahead log. Each test has a server of its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use pgstream_tests::{Comparison, Database, Server, Session, Watched, kill_9};

const SETTINGS: [&str; 6] = [
    "fsync=off",
    "wal_level=logical",
    "output_plugin_libraries=pg_stream",
    "pg_stream.cdc_mode=wal",
    "pg_stream.enabled=off",
    "max_prepared_transactions=10",
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

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, g int, v int); ALTER TABLE t REPLICA IDENTITY FULL;
    CREATE TABLE u (g int PRIMARY KEY, name text); ALTER TABLE u REPLICA IDENTITY FULL;
    CREATE TABLE p (g int PRIMARY KEY, note text);
    INSERT INTO t SELECT i, i % 4, i FROM generate_series(1, 20) i;
    INSERT INTO u SELECT i, 'u' || i FROM generate_series(0, 3) i;
    INSERT INTO p SELECT i, 'p' || i FROM generate_series(0, 3) i";

const SUMS: &str = "SELECT g, count(*) AS n, sum(v) AS s, min(v) AS least, max(v) AS most FROM t GROUP BY g";
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
    follow(&mut session, &all, &["UPDATE v SET d = 9 WHERE id = 3", "INSERT INTO v (id, late) VALUES (60, 1)"]);
    // In the buffer with the next reader, for changes that are not decoded yet.
    session.run("UPDATE v SET d = 8; DELETE FROM v WHERE id = 14");
    let late = watched(&mut session, "lately", "SELECT late, count(later) AS c, count(*) AS n FROM v GROUP BY late");
    decoded(&mut session, &["v"]);
    let late = [late];
    follow(&mut session, &late, &["UPDATE v SET d = 7", "UPDATE v SET late = 8, later = 'x' WHERE id = 3", "DELETE FROM v WHERE id = 5"]);
    follow(&mut session, &all, &["ALTER TABLE v ADD COLUMN third int", "UPDATE v SET third = 1, late = 2, a = '{1}'"]);
    follow(&mut session, &late, &["UPDATE v SET third = 2"]);
}
