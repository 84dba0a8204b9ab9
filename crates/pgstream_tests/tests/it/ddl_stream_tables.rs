//! What users may do to a stream table as a table, and what they may not.

use pgstream_tests::{Comparison, Database, Session, Sessions, difference, orphans};

const TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, g int, v int);
    INSERT INTO t SELECT i, i % 3, i FROM generate_series(1, 9) i";
const ROWS: &str = "SELECT id, g, v FROM t";
const TOTALS: &str = "SELECT g, sum(v) AS s, count(*) AS n FROM t GROUP BY g";

fn create() -> (Session, Database) {
    let database = Database::new();
    let mut session = database.session();
    session.run(TABLES);
    session.create("st", ROWS);
    session.create("totals", TOTALS);
    (session, database)
}

#[track_caller]
fn compare(session: &mut Session, name: &str, query: &str, after: &str) {
    if let Some(difference) =
        difference(session, name, query, Comparison::Value).expect("comparable")
    {
        panic!("{query}\nafter {after}\n{difference}");
    }
    assert_eq!(orphans(session).expect("readable"), [""; 0], "after {after}");
}

const CHANGE: &str = "UPDATE t SET v = v + 1 WHERE id < 5; DELETE FROM t WHERE id = 6; INSERT INTO t VALUES (20, 1, 1)";

#[test]
fn what_changes_its_columns_or_rows_is_refused() {
    let (mut session, _database) = create();
    session.create("counted", "SELECT g, count(*) AS n FROM t GROUP BY g");
    session.run("CREATE TABLE part (LIKE st) PARTITION BY RANGE (id); CREATE TABLE parent (LIKE st); CREATE TABLE ref (id int PRIMARY KEY); INSERT INTO ref SELECT id FROM st; CREATE UNIQUE INDEX st_id ON st (id)");
    for (ddl, code) in [
        ("ALTER TABLE st ADD COLUMN x int", "0A000"),
        ("ALTER TABLE st DROP COLUMN v", "0A000"),
        ("ALTER TABLE st DROP COLUMN __pgs_row_id", "0A000"),
        ("ALTER TABLE counted DROP COLUMN __pgs_count", "0A000"),
        ("ALTER TABLE st ALTER COLUMN v TYPE bigint", "0A000"),
        ("ALTER TABLE st ALTER COLUMN __pgs_row_id TYPE text", "0A000"),
        ("ALTER TABLE st RENAME COLUMN v TO w", "0A000"),
        ("ALTER TABLE st RENAME COLUMN __pgs_row_id TO w", "0A000"),
        ("ALTER TABLE st ADD FOREIGN KEY (id) REFERENCES ref", "0A000"),
        ("ALTER TABLE ref ADD FOREIGN KEY (id) REFERENCES st (id)", "0A000"),
        ("CREATE TABLE ref2 (id int REFERENCES st (id))", "0A000"),
        ("CREATE TABLE child () INHERITS (st)", "0A000"),
        ("ALTER TABLE st INHERIT parent", "0A000"),
        ("ALTER TABLE parent INHERIT st", "0A000"),
        ("ALTER TABLE part ATTACH PARTITION st DEFAULT", "0A000"),
        ("ALTER TABLE st SET UNLOGGED", "0A000"),
        ("CREATE RULE r AS ON INSERT TO st DO INSTEAD NOTHING", "0A000"),
        ("CREATE RULE r AS ON DELETE TO st DO ALSO DELETE FROM t", "0A000"),
        ("DROP TRIGGER pg_stream_guard ON st", "2BP01"),
        ("ALTER TRIGGER pg_stream_guard ON st RENAME TO x", "0A000"),
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE OR REPLACE TRIGGER pg_stream_guard BEFORE INSERT ON st EXECUTE FUNCTION f()",
            "0A000",
        ),
        ("ALTER VIEW pgstream_state.query_1 RENAME COLUMN v TO w", "0A000"),
        ("ALTER TABLE pgstream_state.query_1 RENAME COLUMN v TO w", "0A000"),
        (
            "CREATE OR REPLACE VIEW pgstream_state.query_1 AS SELECT 1 AS id, 2 AS g, 3 AS v",
            "0A000",
        ),
        ("INSERT INTO st SELECT * FROM st", "42809"),
        ("UPDATE st SET v = 1", "42809"),
        ("DELETE FROM st", "42809"),
        ("COPY st FROM PROGRAM 'echo 1,1,1,1' (FORMAT csv)", "42809"),
        ("TRUNCATE st", "42809"),
        ("TRUNCATE t, st", "42809"),
        ("MERGE INTO st USING t ON t.id = st.id WHEN MATCHED THEN UPDATE SET v = 1", "42809"),
        ("WITH gone AS (DELETE FROM st RETURNING *) SELECT * FROM gone", "42809"),
        ("CREATE VIEW v AS SELECT * FROM st; UPDATE v SET g = 1", "42809"),
        ("INSERT INTO st SELECT * FROM st ON CONFLICT DO NOTHING", "42809"),
        ("SET session_replication_role = replica; UPDATE st SET v = 1", "42809"),
        ("SET session_replication_role = replica; TRUNCATE st", "42809"),
        ("ALTER TABLE st DISABLE TRIGGER ALL; UPDATE st SET v = 1", "42809"),
        (
            "ALTER TABLE st ENABLE TRIGGER ALL; SET session_replication_role = replica; UPDATE st SET v = 1",
            "42809",
        ),
    ] {
        let error = session.error(ddl);
        assert_eq!(error.code, code, "{ddl}\n{error}");
        assert!(!error.message.is_empty());
        session.run("RESET ALL");
    }
    session.run(CHANGE);
    session.refresh("st");
    session.refresh("totals");
    compare(&mut session, "st", ROWS, "refusals");
    compare(&mut session, "totals", TOTALS, "refusals");
}

#[test]
fn what_does_not_change_its_rows_works() {
    for ddl in [
        "CREATE INDEX ON st (g); CREATE UNIQUE INDEX ON st (id, v); CREATE INDEX ON totals USING hash (g); REINDEX TABLE st",
        "ALTER TABLE st ADD PRIMARY KEY (id); ALTER TABLE totals ADD UNIQUE (g)",
        "CLUSTER st USING st___pgs_row_id_idx; CLUSTER totals USING totals___pgs_row_id_idx1",
        "ALTER TABLE st SET (fillfactor = 50); ALTER TABLE st ALTER COLUMN v SET STATISTICS 1000; ANALYZE st",
        "ALTER TABLE st SET ACCESS METHOD heap; ALTER TABLE st SET TABLESPACE pg_default",
        "ALTER TABLE st REPLICA IDENTITY USING INDEX nothing",
        "CREATE VIEW v AS SELECT * FROM st; CREATE MATERIALIZED VIEW m AS SELECT * FROM totals; REFRESH MATERIALIZED VIEW m; CREATE TABLE copy (LIKE st INCLUDING ALL); INSERT INTO copy SELECT * FROM st",
        "ALTER TABLE st ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON st USING (false)",
        "GRANT ALL ON st TO PUBLIC; COMMENT ON TABLE st IS 'mine'; COMMENT ON COLUMN st.v IS 'mine'",
        "CREATE STATISTICS stats ON g, v FROM st; ANALYZE st",
        "ALTER TABLE st DISABLE TRIGGER ALL; ALTER TABLE totals ENABLE TRIGGER USER",
        "ALTER TABLE st ADD CONSTRAINT c CHECK (v < 1000)",
    ] {
        let (mut session, _database) = create();
        let ddl = ddl.replace("ALTER TABLE st REPLICA IDENTITY USING INDEX nothing", "CREATE UNIQUE INDEX nothing ON st (id); ALTER TABLE st ALTER COLUMN id SET NOT NULL; ALTER TABLE st REPLICA IDENTITY USING INDEX nothing");
        let indexes = session
            .rows("SELECT indexrelid::regclass FROM pg_index WHERE indrelid = 'totals'::regclass");
        let ddl = ddl.replace("totals___pgs_row_id_idx1", &indexes[0]);
        session.run(&format!("BEGIN; {ddl}; ROLLBACK"));
        session.run(&ddl);
        for _ in 0..2 {
            session.run("UPDATE t SET v = v + 1 WHERE id < 5; INSERT INTO t SELECT max(id) + 1, 1, 1 FROM t; DELETE FROM t WHERE id = (SELECT min(id) FROM t WHERE g = 0)");
            session.refresh("st");
            session.refresh("totals");
            compare(&mut session, "st", ROWS, &ddl);
            compare(&mut session, "totals", TOTALS, &ddl);
        }
    }
}

#[test]
fn vacuum_full() {
    let (mut session, _database) = create();
    for table in ["st", "totals", "t"] {
        session.run(CHANGE.replace("20", "(SELECT max(id) + 1 FROM t)").as_str());
        session.run(&format!("VACUUM FULL {table}"));
        session.refresh("st");
        session.refresh("totals");
        compare(&mut session, "st", ROWS, table);
        compare(&mut session, "totals", TOTALS, table);
    }
}

#[test]
fn it_is_renamed_moved_and_given_away() {
    let (mut session, database) = create();
    let role = format!("heir_{}", database.name());
    session.create("chained", "SELECT id, v + 1 AS w FROM st");
    session.run(&format!("CREATE ROLE {role}; CREATE SCHEMA s; GRANT USAGE, CREATE ON SCHEMA s TO {role}; GRANT SELECT ON t TO {role}"));
    let (mut name, mut totals) = ("st", "totals");
    let mut other = database.session();
    for ddl in [
        "ALTER TABLE st RENAME TO \"St 9\"",
        "ALTER TABLE \"St 9\" SET SCHEMA s",
        "ALTER TABLE totals SET SCHEMA s",
        "ALTER SCHEMA s RENAME TO s2",
        "ALTER TABLE s2.\"St 9\" OWNER TO ROLE",
        "ALTER TABLE s2.totals OWNER TO ROLE",
        "GRANT SELECT ON s2.\"St 9\" TO PUBLIC; REASSIGN OWNED BY ROLE TO postgres",
        "ALTER TABLE s2.totals OWNER TO ROLE",
    ] {
        let ddl = ddl.replace("ROLE", &role);
        session.run(&format!("BEGIN; {ddl}; ROLLBACK"));
        session.run(CHANGE.replace("20", "(SELECT max(id) + 1 FROM t)").as_str());
        other.refresh(name);
        other.refresh(totals);
        session.run(&ddl);
        name = match name {
            "st" => "\"St 9\"",
            "\"St 9\"" => "s.\"St 9\"",
            "s.\"St 9\"" if ddl.contains("RENAME") => "s2.\"St 9\"",
            same => same,
        };
        totals = match totals {
            "totals" if ddl.contains("totals") => "s.totals",
            "s.totals" if ddl.contains("RENAME") => "s2.totals",
            same => same,
        };
        session.run("UPDATE t SET v = v + 1 WHERE id < 4");
        for (name, query) in
            [(name, ROWS), (totals, TOTALS), ("chained", "SELECT id, v + 1 AS w FROM t")]
        {
            other.refresh(name);
            compare(&mut session, name, query, &ddl);
        }
    }
    assert_eq!(
        session.rows("SELECT name FROM pgstream.pgs_status() ORDER BY 1"),
        ["public.chained", "s2.St 9", "s2.totals"]
    );
    assert_eq!(session.error(&format!("DROP ROLE {role}")).code, "2BP01");
    session.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
    assert_eq!(orphans(&mut session).expect("readable"), [""; 0]);
}

/// Everything is published, the hidden tables and the buffers included.
#[test]
fn it_can_be_published() {
    let (mut session, _database) = create();
    session.create("deep", "SELECT id, row_number() OVER (ORDER BY g, s, id) AS n FROM (SELECT id, g, sum(v) AS s FROM t GROUP BY id, g) AS q");
    session.run("CREATE PUBLICATION everything FOR ALL TABLES");
    for _ in 0..2 {
        session.run("UPDATE t SET v = v + 1 WHERE id < 5; INSERT INTO t SELECT max(id) + 1, 1, 1 FROM t; DELETE FROM t WHERE id = (SELECT min(id) FROM t WHERE g = 0)");
        for (name, query) in [
            ("st", ROWS),
            ("totals", TOTALS),
            (
                "deep",
                "SELECT id, row_number() OVER (ORDER BY g, s, id) AS n FROM (SELECT id, g, sum(v) AS s FROM t GROUP BY id, g) AS q",
            ),
        ] {
            session.refresh(name);
            compare(&mut session, name, query, "publishing");
        }
    }
    // A rebuild makes new hidden tables.
    session.run("ALTER TABLE t ALTER COLUMN v TYPE bigint; UPDATE t SET v = v + 1");
    session.refresh("deep");
    session.run("UPDATE t SET v = v - 5 WHERE id > 5");
    session.refresh("deep");
    compare(
        &mut session,
        "deep",
        "SELECT id, row_number() OVER (ORDER BY g, s, id) AS n FROM (SELECT id, g, sum(v) AS s FROM t GROUP BY id, g) AS q",
        "publishing",
    );
}

/// A unique index of the user's holds at the end of a refresh, so it must not be in the way of one.
#[test]
fn rows_swap_the_values_of_a_unique_index() {
    let (mut session, _database) = create();
    session.run("CREATE UNIQUE INDEX ON st (v); CREATE UNIQUE INDEX ON totals (s)");
    for change in [
        "UPDATE t SET v = CASE id WHEN 1 THEN 2 ELSE 1 END WHERE id IN (1, 2)",
        "UPDATE t SET v = 10 - v",
        "UPDATE t SET v = v + 1",
        "UPDATE t SET g = 2 - g",
        "UPDATE t SET id = 100 - id",
    ] {
        session.run(change);
        session.refresh("st");
        session.refresh("totals");
        compare(&mut session, "st", ROWS, change);
        compare(&mut session, "totals", TOTALS, change);
    }
}

#[test]
fn user_triggers_fire_for_what_changes() {
    let (mut session, _database) = create();
    session.run(
        "CREATE TABLE log (op text, old_id int, old_v int, new_v int);
         CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO public.log VALUES (TG_OP, OLD.id, OLD.v, NEW.v); RETURN NULL; END $$;
         CREATE TRIGGER log AFTER INSERT OR UPDATE OR DELETE ON st FOR EACH ROW EXECUTE FUNCTION log()",
    );
    session.run("UPDATE t SET v = 50 WHERE id = 1; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (30, 1, 30); UPDATE t SET v = 99 WHERE id = 3; UPDATE t SET v = 3 WHERE id = 3; INSERT INTO t VALUES (40, 1, 1); DELETE FROM t WHERE id = 40");
    session.refresh("st");
    assert_eq!(
        session.rows("SELECT * FROM log ORDER BY op"),
        ["DELETE|2|2|NULL", "INSERT|NULL|NULL|30", "UPDATE|1|1|50"]
    );
    // Switching all triggers off and on does not touch the guard.
    session
        .run("TRUNCATE log; ALTER TABLE st DISABLE TRIGGER ALL; UPDATE t SET v = 51 WHERE id = 1");
    session.refresh("st");
    assert_eq!(session.value("SELECT count(*) FROM log"), "0");
    session.run("ALTER TABLE st ENABLE TRIGGER ALL");
    session.refresh("st");
    session.run("UPDATE t SET v = 52 WHERE id = 1");
    session.refresh("st");
    assert_eq!(session.rows("SELECT * FROM log"), ["UPDATE|1|51|52"]);
    compare(&mut session, "st", ROWS, "triggers");
}

#[test]
fn it_is_dropped_beside_a_refresh() {
    let database = Database::new();
    let mut s = Sessions::new(&database, &["dropper", "refresher"]);
    for ddl in
        ["DROP TABLE st", "SELECT pgstream.drop_stream_table('st')", "ALTER TABLE st RENAME TO st2"]
    {
        for first in ["dropper", "refresher"] {
            s.monitor().run(&format!("DROP TABLE IF EXISTS st, st2, t; {TABLES}"));
            s.monitor().create("st", ROWS);
            s.monitor().run("UPDATE t SET v = v + 1");
            let refresh = "SELECT pgstream.refresh_stream_table('st')";
            let (one, two) = if first == "dropper" {
                ((first, ddl), ("refresher", refresh))
            } else {
                ((first, refresh), ("dropper", ddl))
            };
            s.run(one.0, "BEGIN");
            s.run(one.0, one.1);
            let step = s.step(two.0, two.1);
            s.run(one.0, "COMMIT");
            if step == pgstream_tests::Step::Blocked
                && let Err(error) = s.finish(two.0)
            {
                assert_eq!(error.code, "42P01", "{ddl}: {error}");
            }
            assert_eq!(orphans(s.monitor()).expect("readable"), [""; 0], "{ddl}");
        }
    }
}
