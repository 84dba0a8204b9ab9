//! Copies of a database: a dump brings the stream tables back, attached to their new tables, and
//! exact after the next refresh; physical copies go on where the original was.

use pgstream_tests::{Comparison, Database, Server, Session, difference, last_action};

const TABLES: &str = r#"
    CREATE TABLE t (id int PRIMARY KEY, g int, v numeric);
    INSERT INTO t SELECT i, nullif(i % 5, 4), i FROM generate_series(1, 200) i;
    CREATE TABLE d (g int PRIMARY KEY, name text NOT NULL, at timestamptz DEFAULT '2026-03-01 12:00Z');
    INSERT INTO d VALUES (0, 'zero'), (1, 'one'), (2, 'two'), (3, 'three');
    CREATE TABLE p (id int, v int) PARTITION BY RANGE (id);
    CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (50);
    CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (50) TO (1000);
    INSERT INTO p SELECT i, i FROM generate_series(1, 99) i;
    ALTER TABLE t ADD FOREIGN KEY (g) REFERENCES d (g);
    CREATE FUNCTION twice(numeric) RETURNS numeric LANGUAGE sql IMMUTABLE AS 'SELECT 2 * $1';
    CREATE SCHEMA "Other""s""#;

/// Name, query and mode. The second reads the first; the query of the third depends on a primary key,
/// which a dump creates after the view.
const STREAM_TABLES: [(&str, &str, &str); 7] = [
    (
        "joined",
        "SELECT d.name, count(*) AS n, sum(t.v) AS s FROM t JOIN d USING (g) GROUP BY d.name",
        "DIFFERENTIAL",
    ),
    ("upon", "SELECT name, s, rank() OVER (ORDER BY s DESC) FROM joined", "DIFFERENTIAL"),
    (
        "keyed",
        "SELECT d.g, d.name, twice(max(t.v)) AS m FROM d LEFT JOIN t USING (g) GROUP BY d.g",
        "DIFFERENTIAL",
    ),
    (
        "staged",
        "SELECT m % 2 AS odd, count(*) AS n FROM (SELECT g, max(id) AS m FROM t GROUP BY g) GROUP BY 1",
        "DIFFERENTIAL",
    ),
    ("\"Other\"\"s\".\"Parts of p\"", "SELECT id, v FROM p WHERE v % 3 = 0", "DIFFERENTIAL"),
    ("whole", "SELECT name, upper(name) AS u FROM d", "FULL"),
    ("local", "SELECT g, to_char(at, 'HH24:MI') AS at FROM d", "DIFFERENTIAL"),
];

const CHANGE: &str = "
    UPDATE t SET v = v + 1, g = (g + 1) % 4 WHERE id % 7 = 0; DELETE FROM t WHERE id % 11 = 0;
    INSERT INTO t SELECT max(id) + 1, 1, 5 FROM t; UPDATE d SET name = name || '!' WHERE g = 1;
    UPDATE p SET id = id + 40, v = v + 1 WHERE id = (SELECT min(id) FROM p); DELETE FROM p2 WHERE id % 5 = 0";

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn fill(session: &mut Session) {
    session.run(TABLES);
    session.run("SET timezone = 'Asia/Tokyo'");
    for (name, query, mode) in STREAM_TABLES {
        session.run(&format!(
            "SELECT pgstream.create_stream_table({}, {}, '2h', '{mode}')",
            literal(name),
            literal(query)
        ));
    }
    session.run("RESET timezone");
    // What people add, and a change that no refresh has seen.
    session.run(
        "CREATE INDEX ON joined (name); CREATE VIEW shown AS SELECT name FROM upon; ALTER TABLE t RENAME v TO amount",
    );
    session.run("ALTER TABLE t RENAME amount TO v");
    session.run(CHANGE);
}

/// Refreshes all, each after what it reads, and compares.
#[track_caller]
fn refresh_and_compare(session: &mut Session, after: &str) {
    for (name, query, _) in STREAM_TABLES {
        session.run(&format!("SELECT pgstream.refresh_stream_table({})", literal(name)));
        session.run("SET timezone = 'Asia/Tokyo'");
        let difference =
            difference(session, name, query, Comparison::Text).expect("it can be compared");
        session.run("RESET timezone");
        assert!(difference.is_none(), "{name} after {after}\n{}", difference.expect("some"));
    }
}

/// The stream tables are there, work, and nothing else is.
#[track_caller]
fn check_restored(session: &mut Session) {
    assert_eq!(
        session.value(
            "SELECT count(*), bool_and(defining_query <> ''), bool_and(schedule = '2h'),
                    count(*) FILTER (WHERE refresh_mode = 'FULL') FROM pgstream.pgs_stream_tables
             WHERE pgs_relid = format('%I.%I', pgs_schema, pgs_name)::regclass"
        ),
        "7|t|t|1"
    );
    // The scheduler knows at once what belongs together.
    let joined = "SELECT string_agg(source_relid::regclass::text, ',' ORDER BY source_relid::regclass::text)
        FROM pgstream.pgs_dependencies JOIN pgstream.pgs_stream_tables USING (pgs_id) WHERE pgs_name = 'joined'";
    assert_eq!(session.value(joined), "d,t");
    for (name, query, _) in STREAM_TABLES {
        assert_eq!(
            session.value(&format!(
                "SELECT defining_query = {} FROM pgstream.pgs_stream_tables WHERE pgs_relid = {}::regclass",
                literal(query),
                literal(name)
            )),
            "t"
        );
    }
    let error = session.error("INSERT INTO joined (name) VALUES ('x')");
    assert_eq!(error.code, "42809", "{error}");
    session.run(CHANGE);
    // Also before what it reads.
    session.refresh("upon");
    refresh_and_compare(session, "restoring");
    assert_eq!(
        session.value(
            "SELECT count(*) FROM pgstream.pgs_stream_tables
             WHERE view_relid = ('pgstream_state.query_' || pgs_id)::regclass"
        ),
        "7"
    );
    for round in 0..3 {
        session.run(CHANGE);
        refresh_and_compare(session, &format!("change {round}"));
        assert_eq!(last_action(session, "joined"), "DIFFERENTIAL");
        assert_eq!(last_action(session, "upon"), "DIFFERENTIAL");
    }
    check_nothing_is_left_over(session);
    session.create("fresh", "SELECT count(*) FROM t");
    session.run("SELECT pgstream.drop_stream_table('fresh')");
    session.run("SELECT pgstream.alter_stream_table('whole', '3h', 'DIFFERENTIAL')");
    refresh_and_compare(session, "a change of mode");
    assert_eq!(session.value(joined), "d,t");
    let error = session.error("SELECT pgstream.drop_stream_table('joined')");
    assert_eq!(error.code, "2BP01", "{error}");
    session.run("DROP VIEW shown");
    for (name, ..) in STREAM_TABLES.iter().rev() {
        session.run(&format!("SELECT pgstream.drop_stream_table({})", literal(name)));
    }
    check_nothing_is_left_over(session);
    assert_eq!(
        session.value("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'pg\\_stream\\_cdc%'"),
        "0"
    );
}

/// Triggers, buffers and hidden state belong to what is in the catalog.
#[track_caller]
fn check_nothing_is_left_over(session: &mut Session) {
    assert_eq!(
        session.rows(
            "SELECT tgname, tgrelid::regclass FROM pg_trigger WHERE tgname LIKE 'pg\\_stream\\_cdc\\_%'
             AND substring(tgname, '[0-9]+')::oid NOT IN (SELECT source_relid FROM pgstream.pgs_change_tracking)
             UNION ALL
             SELECT relname, oid FROM pg_class WHERE relnamespace = 'pgstream_changes'::regnamespace AND relkind = 'r'
             AND oid NOT IN (SELECT buffer_relid FROM pgstream.pgs_change_tracking)
             UNION ALL
             SELECT relname, oid FROM pg_class WHERE relnamespace = 'pgstream_state'::regnamespace AND relkind IN ('r', 'v')
             AND substring(relname, '[0-9]+')::bigint NOT IN (SELECT pgs_id FROM pgstream.pgs_stream_tables)"
        ),
        Vec::<String>::new()
    );
}

fn filled() -> Database {
    let database = Database::new();
    fill(&mut database.session());
    database
}

fn psql(target: &Database, file: &str) {
    target
        .server()
        .program("psql", &["-q", "-v", "ON_ERROR_STOP=1", "-d", target.name(), "-f", file]);
}

#[test]
fn a_plain_dump_is_restored() {
    let source = filled();
    let file = format!("{}.sql", source.name());
    source.server().program("pg_dump", &["-f", &file, source.name()]);
    let target = Database::empty(Server::shared());
    psql(&target, &file);
    let mut session = target.session();
    // Until it is refreshed, a table has what was dumped.
    let stored = "SELECT md5(string_agg(x::text, ' ' ORDER BY x::text)) FROM upon x";
    assert_eq!(session.value(stored), source.session().value(stored));
    assert_eq!(
        session.value(
            "SELECT count(*) FROM pgstream.pgs_status() WHERE is_populated AND status = 'ACTIVE'"
        ),
        "7"
    );
    check_restored(&mut session);
    // The original was not disturbed.
    check_restored(&mut source.session());
}

#[test]
fn an_archive_is_restored_in_every_way() {
    let source = filled();
    let name = source.name();
    source.server().program("pg_dump", &["-Fc", "-f", &format!("{name}.c"), name]);
    source.server().program("pg_dump", &["-Fd", "-j", "2", "-f", &format!("{name}.d"), name]);
    for (file, how) in [
        ("c", &["--exit-on-error"] as &[&str]),
        ("c", &["--single-transaction"]),
        ("c", &["--no-owner", "--no-privileges", "--exit-on-error"]),
        ("c", &["-j", "3", "--exit-on-error"]),
        ("d", &["-j", "3", "--exit-on-error"]),
    ] {
        let target = Database::empty(Server::shared());
        let file = format!("{name}.{file}");
        let arguments = [how, &["-d", target.name(), &file]].concat();
        target.server().program("pg_restore", &arguments);
        check_restored(&mut target.session());
    }
    // Where the extension is there already.
    let target = Database::new();
    let arguments = ["--exit-on-error", "-d", target.name(), &format!("{name}.c")];
    target.server().program("pg_restore", &arguments);
    check_restored(&mut target.session());
}

#[test]
fn inserts_are_restored() {
    let source = filled();
    let file = format!("{}.inserts.sql", source.name());
    source.server().program("pg_dump", &["--column-inserts", "-f", &file, source.name()]);
    let target = Database::empty(Server::shared());
    psql(&target, &file);
    check_restored(&mut target.session());
}

#[test]
fn a_dump_replaces_what_is_there() {
    let source = filled();
    let (name, file) = (source.name(), format!("{}.clean", source.name()));
    source.server().program("pg_dump", &["-Fc", "-f", &file, name]);
    // Over itself, then over what was restored.
    for how in [&["--clean"] as &[&str], &["--clean", "--if-exists"]] {
        let arguments = [how, &["--exit-on-error", "-d", name, &file]].concat();
        source.server().program("pg_restore", &arguments);
        let mut session = source.session();
        session.run(CHANGE);
        refresh_and_compare(&mut session, "replacing");
        check_nothing_is_left_over(&mut session);
    }
    check_restored(&mut source.session());
}

/// It drops hidden views of the numbers that it is about to make, which are those of others here.
#[test]
fn a_dump_that_replaces_what_is_there_leaves_others_their_queries() {
    let (source, target) = (Database::new(), Database::new());
    let query = "SELECT g, sum(v) AS s FROM t GROUP BY g";
    for (database, schema) in [(&source, "x"), (&target, "y")] {
        let mut session = database.session();
        session.run(&format!(
            "CREATE SCHEMA {schema}; SET search_path = {schema}; CREATE TABLE t (id int PRIMARY KEY, g int, v int); INSERT INTO t VALUES (1, 1, 1)"
        ));
        session.create("st", query);
        session.create("reader", "SELECT g, s FROM st");
    }
    let file = format!("{}.replacing", source.name());
    source.server().program("pg_dump", &["-Fc", "-f", &file, source.name()]);
    let arguments = ["--clean", "--if-exists", "-d", target.name(), &file];
    let errors = target.server().try_program("pg_restore", &arguments);
    let errors = errors.expect_err("the extension is in use");
    assert!(errors.contains("errors ignored on restore: 1"), "{errors}");
    for schema in ["x", "y"] {
        let mut session = target.session();
        session
            .run(&format!("SET search_path = {schema}; INSERT INTO t VALUES (2, 1, 1), (3, 2, 1)"));
        for (table, query) in [("st", query), ("reader", "SELECT g, s FROM st")] {
            session.refresh(&format!("{schema}.{table}"));
            let found =
                difference(&mut session, &format!("{schema}.{table}"), query, Comparison::Value);
            assert!(found.expect("comparable").is_none(), "{schema}.{table}");
        }
    }
    check_nothing_is_left_over(&mut target.session());
}

#[test]
fn a_dump_of_the_schema_has_the_stream_tables() {
    let source = filled();
    let file = format!("{}.schema.sql", source.name());
    source
        .session()
        .run("ALTER TABLE staged RENAME TO stages; ALTER TABLE stages RENAME TO staged");
    source.server().program("pg_dump", &["--schema-only", "-f", &file, source.name()]);
    let target = Database::empty(Server::shared());
    psql(&target, &file);
    let mut session = target.session();
    assert_eq!(
        session.value("SELECT count(*) FROM pgstream.pgs_status() WHERE NOT is_populated AND status = 'INITIALIZING'"),
        "7"
    );
    session.run("INSERT INTO d VALUES (0, 'zero'), (1, 'one'), (2, 'two'), (3, 'three'); INSERT INTO t VALUES (1, 1, 1), (2, 2, 2)");
    check_restored(&mut session);
}

#[test]
fn data_come_into_a_schema_that_is_there() {
    let source = filled();
    let name = source.name();
    source.server().program("pg_dump", &["--schema-only", "-f", &format!("{name}.s.sql"), name]);
    let file = format!("{name}.d.sql");
    for (how, refreshed_before) in
        [("--data-only", false), ("--data-only", true), ("--disable-triggers", true)]
    {
        source.server().program("pg_dump", &["--data-only", how, "-f", &file, name]);
        let target = Database::empty(Server::shared());
        psql(&target, &format!("{name}.s.sql"));
        if refreshed_before {
            refresh_and_compare(&mut target.session(), "restoring the schema");
        }
        psql(&target, &file);
        check_restored(&mut target.session());
    }
}

#[test]
fn rows_of_the_catalog_come_in_without_oids_even_if_triggers_are_to_be_disabled() {
    let source = filled();
    let file = format!("{}.disabled.sql", source.name());
    let tables = ["-t", "pgstream.pgs_stream_tables", "-t", "pgstream.pgs_refresh_history"];
    let how = ["--data-only", "--disable-triggers", "-f", &file, source.name()];
    source.server().program("pg_dump", &[&tables[..], &how].concat());
    let target = Database::new();
    psql(&target, &file);
    let mut session = target.session();
    assert_eq!(
        session.value(
            "SELECT count(*), count(pgs_relid), count(consumed) FROM pgstream.pgs_stream_tables"
        ),
        "7|0|0"
    );
    psql(&target, &file);
    assert_eq!(session.value("SELECT count(*) FROM pgstream.pgs_stream_tables"), "7");
}

#[test]
fn a_read_only_user_can_dump() {
    let source = filled();
    let role = format!("reader_{}", source.name());
    let mut session = source.session();
    session.run(&format!("CREATE ROLE {role} LOGIN IN ROLE pg_read_all_data"));
    let file = format!("{}.reader.sql", source.name());
    let dumped = source.server().try_program("pg_dump", &["-U", &role, "-f", &file, source.name()]);
    session.run(&format!("DROP ROLE {role}"));
    assert_eq!(dumped, Ok(()));
    let target = Database::empty(Server::shared());
    psql(&target, &file);
    check_restored(&mut target.session());
}

/// Refreshes these of the stream tables and compares, through some changes.
#[track_caller]
fn check_selected(session: &mut Session, names: &[&str], change: &str) {
    let selected = STREAM_TABLES.iter().filter(|it| names.contains(&it.0));
    let selected: Vec<_> = selected.collect();
    for round in 0..3 {
        for (name, query, _) in &selected {
            session.refresh(name);
            let found = difference(session, name, query, Comparison::Text);
            let found = found.expect("it can be compared");
            assert!(found.is_none(), "{name} in round {round}\n{}", found.expect("some"));
            if round > 0 {
                assert_eq!(last_action(session, name), "DIFFERENTIAL", "{name}");
            }
        }
        session.run(change);
    }
    check_nothing_is_left_over(session);
    let error = session.error(&format!("DELETE FROM {}", names[0]));
    assert_eq!(error.code, "42809", "{error}");
}

const CHANGE_OF_T: &str = "
    UPDATE t SET v = v + 1, g = (g + 1) % 4 WHERE id % 7 = 0; DELETE FROM t WHERE id % 11 = 0;
    INSERT INTO t SELECT max(id) + 1, 1, 5 FROM t; UPDATE d SET name = name || '!' WHERE g = 1";

#[test]
fn selected_tables_come_with_their_queries() {
    let source = filled();
    let name = source.name();
    let tables = ["-t", "joined", "-t", "upon", "-t", "staged", "-t", "t", "-t", "d"];
    for (number, how) in [
        &[] as &[&str],
        &["-Fc"],
        &["--schema-only"],
        &["--schema-only", "--no-comments"],
        &["--no-owner", "--no-privileges"],
        &["--inserts"],
    ]
    .iter()
    .enumerate()
    {
        let file = format!("{name}.selected.{number}");
        source.server().program("pg_dump", &[&tables[..], how, &["-f", &file, name]].concat());
        let target = Database::new();
        let mut session = target.session();
        // They have the same numbers.
        session.run("CREATE TABLE u (id int PRIMARY KEY, v int); INSERT INTO u VALUES (1, 1)");
        for other in 1..=4 {
            session.create(&format!("other{other}"), "SELECT v, count(*) FROM u GROUP BY v");
        }
        if how == &["-Fc"] {
            let arguments = ["--exit-on-error", "-j", "2", "-d", target.name(), &file];
            target.server().program("pg_restore", &arguments);
        } else {
            psql(&target, &file);
        }
        assert_eq!(
            session.value(
                "SELECT string_agg(pgs_name || ' ' || schedule, ',' ORDER BY pgs_name), count(DISTINCT pgs_relid)
                 FROM pgstream.pgs_stream_tables"
            ),
            "joined 2h,other1 1d,other2 1d,other3 1d,other4 1d,staged 2h,upon 2h|7",
            "{how:?}"
        );
        if how.contains(&"--schema-only") {
            session.run("INSERT INTO d VALUES (0, 'zero'), (1, 'one'), (2, 'two'), (3, 'three')");
            session.run("INSERT INTO t SELECT i, i % 4, i FROM generate_series(1, 50) i");
        } else {
            let stored = "SELECT md5(string_agg(x::text, ' ' ORDER BY x::text)) FROM upon x";
            assert_eq!(session.value(stored), source.session().value(stored));
        }
        check_selected(&mut session, &["joined", "upon", "staged"], CHANGE_OF_T);
        session.run("INSERT INTO u VALUES (2, 1)");
        session.refresh("other2");
        assert_eq!(session.value("SELECT v, count FROM other2"), "1|2");
        session.create("another", "SELECT * FROM u");
    }
}

#[test]
fn sources_come_with_triggers_that_do_nothing() {
    let source = filled();
    let (name, file) = (source.name(), format!("{}.sources.sql", source.name()));
    source.server().program("pg_dump", &["-t", "t", "-t", "d", "-f", &file, name]);
    let target = Database::new();
    psql(&target, &file);
    let mut session = target.session();
    let triggers = "SELECT count(*) > 0 FROM pg_trigger WHERE tgname LIKE 'pg\\_stream\\_cdc%'";
    assert_eq!(session.value(triggers), "t");
    session.run("UPDATE t SET v = v + 1; TRUNCATE t, d; INSERT INTO d VALUES (1, 'one')");
    session.run("INSERT INTO t VALUES (1, 1, 1)");
    let (_, query, _) = STREAM_TABLES[0];
    session.create("joined", query);
    check_selected(&mut session, &["joined"], "UPDATE t SET v = v + 1");
    session.run("SELECT pgstream.drop_stream_table('joined')");
    assert_eq!(session.value(triggers), "f");
}

#[test]
fn a_schema_comes_with_its_stream_tables() {
    let source = Database::new();
    let mut session = source.session();
    session.run(
        "CREATE SCHEMA app; SET search_path = app;
         CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1), (2, 2);
         CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 2 * $1';
         SELECT pgstream.create_stream_table('st', 'SELECT id, twice(v) AS v FROM t', '2h', 'FULL');
         SELECT pgstream.create_stream_table('keyed', 'SELECT t.id, t.v, count(*) AS n FROM t JOIN st USING (id) GROUP BY t.id')",
    );
    let file = format!("{}.app", source.name());
    let name = source.name();
    for how in [&["-n", "app"] as &[&str], &["--exclude-schema=pgstream_state"]] {
        source.server().program("pg_dump", &[how, &["-Fc", "-f", &file, name]].concat());
        let target = Database::empty(Server::shared());
        target.session().run("CREATE EXTENSION pg_stream");
        let arguments = ["--exit-on-error", "-d", target.name(), &file];
        target.server().program("pg_restore", &arguments);
        let mut session = target.session();
        session.run("INSERT INTO app.t VALUES (3, 3)");
        session.refresh("app.keyed");
        session.refresh("app.st");
        session.refresh("app.keyed");
        assert_eq!(session.rows("SELECT id, v FROM app.st ORDER BY 1"), ["1|2", "2|4", "3|6"]);
        assert_eq!(
            session.rows("SELECT id, v, n FROM app.keyed ORDER BY 1"),
            ["1|1|1", "2|2|1", "3|3|1"]
        );
        let error = session.error("INSERT INTO app.st VALUES (1, 1)");
        assert_eq!(error.code, "42809", "{error}");
        check_nothing_is_left_over(&mut session);
    }
}

/// All that is said of it comes, its hidden query too.
#[test]
fn a_stream_table_that_a_dump_left_out_makes_room_for_another() {
    let source = Database::new();
    let query = "SELECT id, v FROM t";
    let mut session = source.session();
    session.run(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1); CREATE SCHEMA s",
    );
    for name in ["a", "s.b", "c", "d", "s.e"] {
        session.create(name, query);
    }
    let (name, file) = (source.name(), format!("{}.sql", source.name()));
    let left_out = ["-T", "a", "-T", "c", "-T", "d", "--exclude-schema=s"];
    source.server().program("pg_dump", &[&left_out[..], &["-f", &file, name]].concat());
    let target = Database::empty(Server::shared());
    psql(&target, &file);
    let mut session = target.session();
    session.create("a", query);
    session.run("CREATE SCHEMA s");
    session.run("SELECT pgstream.drop_stream_table('s.b')");
    assert_eq!(session.error("SELECT pgstream.drop_stream_table('s.b')").code, "42P01");
    session.create("s.b", query);
    session.run("ALTER TABLE a RENAME TO c");
    session.create("z", query);
    session.run("ALTER SCHEMA s RENAME TO r; CREATE SCHEMA s; ALTER TABLE z RENAME TO e");
    session.run("ALTER TABLE e SET SCHEMA s; SELECT pgstream.drop_stream_table('d')");
    assert_eq!(
        session
            .rows("SELECT name, pgs_relid IS NULL FROM pgstream.pgs_status() AS s JOIN pgstream.pgs_stream_tables AS t ON name = pgs_schema || '.' || pgs_name ORDER BY 1"),
        ["public.c|f", "r.b|f", "s.e|f"]
    );
    session.run("ALTER TABLE t ALTER v TYPE bigint; INSERT INTO t VALUES (2, 2)");
    for table in ["c", "r.b", "s.e"] {
        session.refresh(table);
        assert_eq!(session.rows(&format!("SELECT id, v FROM {table} ORDER BY 1")), ["1|1", "2|2"]);
    }
    check_nothing_is_left_over(&mut session);
}

#[test]
fn a_source_comes_after_the_stream_table() {
    let source = filled();
    let (name, file) = (source.name(), format!("{}.st.sql", source.name()));
    source.server().program("pg_dump", &["-t", "keyed", "-f", &file, name]);
    let target = Database::new();
    psql(&target, &file);
    let mut session = target.session();
    let stored = "SELECT md5(string_agg(x::text, ' ' ORDER BY x::text)) FROM keyed x";
    let rows = session.value(stored);
    assert_eq!(rows, source.session().value(stored));
    let error = session.error("SELECT pgstream.refresh_stream_table('keyed')");
    assert_eq!(error.code, "42P01", "{error}");
    assert_eq!(
        error.message,
        "cannot restore the query of stream table \"public.keyed\": relation \"public.d\" does not exist"
    );
    let error =
        session.error("SELECT pgstream.alter_stream_table('keyed', refresh_mode => 'FULL')");
    assert_eq!(error.code, "42P01", "{error}");
    session.run("SELECT pgstream.alter_stream_table('keyed', '3h')");
    assert_eq!(session.value(stored), rows);
    // It is there for the next dump, too.
    let again = format!("{name}.again.sql");
    target.server().program("pg_dump", &["-t", "keyed", "-f", &again, target.name()]);
    // Columns of another type do not do.
    session.run("CREATE TABLE d (g bigint PRIMARY KEY, name text NOT NULL); CREATE TABLE t (g bigint, v numeric)");
    session.run(
        "CREATE FUNCTION twice(numeric) RETURNS numeric LANGUAGE sql IMMUTABLE AS 'SELECT 2 * $1'",
    );
    let error = session.error("SELECT pgstream.refresh_stream_table('keyed')");
    assert_eq!(error.code, "55000", "{error}");
    assert_eq!(session.value(stored), rows);
    session.run("DROP TABLE d, t; DROP FUNCTION twice");
    let file = format!("{name}.sources.sql");
    let rest = ["-t", "d", "-t", "t", "-f", &file, name];
    source.server().program("pg_dump", &rest);
    psql(&target, &file);
    session.run(
        "CREATE FUNCTION twice(numeric) RETURNS numeric LANGUAGE sql IMMUTABLE AS 'SELECT 2 * $1'",
    );
    check_selected(&mut session, &["keyed"], CHANGE_OF_T);
    // And into the original, instead of what is there.
    let mut original = source.session();
    original.run("SELECT pgstream.drop_stream_table('keyed')");
    psql(&source, &again);
    check_selected(&mut original, &["keyed"], CHANGE_OF_T);
}

#[test]
fn the_scheduler_waits_for_a_source() {
    let source = Database::on(Server::start(&[
        "pg_stream.scheduler_interval_ms=100",
        "pg_stream.min_schedule_seconds=1",
    ]));
    let mut session = source.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1)");
    session.run("SELECT pgstream.create_stream_table('st', 'SELECT v, count(*) AS n FROM t GROUP BY v', '1s')");
    source.server().program("pg_dump", &["-t", "st", "-f", "st.sql", source.name()]);
    source.server().program("pg_dump", &["-t", "t", "-f", "t.sql", source.name()]);
    session.run("SELECT pgstream.drop_stream_table('st'); DROP TABLE t");
    psql(&source, "st.sql");
    session.wait_until(
        "SELECT count(*) > 0 FROM pgstream.pgs_refresh_history JOIN pgstream.pgs_stream_tables USING (pgs_id)
         WHERE pgs_refresh_history.status = 'FAILED' AND pgs_refresh_history.error_message =
               'cannot restore the query of stream table \"public.st\": relation \"public.t\" does not exist'",
    );
    assert_eq!(session.value("SELECT v, n FROM st"), "1|1");
    psql(&source, "t.sql");
    session.run("INSERT INTO t VALUES (2, 1)");
    // However long it would leave it alone after failures.
    session.run("SELECT pgstream.alter_stream_table('st', status => 'SUSPENDED')");
    session.run("SELECT pgstream.resume_stream_table('st')");
    session.wait_until("SELECT count(*) > 0 FROM st WHERE (v, n) = (1, 2)");
}

#[test]
fn tables_are_selected_from_an_archive() {
    let source = filled();
    let (name, file) = (source.name(), format!("{}.all", source.name()));
    source.server().program("pg_dump", &["-Fc", "-f", &file, name]);
    let target = Database::new();
    let tables = ["-t", "joined", "-t", "upon", "-t", "whole", "-t", "t", "-t", "d"];
    let how = ["--exit-on-error", "-d", target.name(), &file];
    target.server().program("pg_restore", &[&tables[..], &how].concat());
    let mut session = target.session();
    // There are no triggers in it that would tell.
    assert_eq!(session.value("SELECT count(*) FROM pgstream.pgs_status()"), "0");
    session.refresh("upon");
    session.refresh("whole");
    assert_eq!(session.error("DELETE FROM whole").code, "42809");
    session.run(CHANGE_OF_T);
    check_selected(&mut session, &["joined", "upon"], CHANGE_OF_T);
    let error = session.error("SELECT pgstream.refresh_stream_table('t')");
    assert_eq!(error.code, "42P01", "{error}");
}

#[test]
fn a_dump_of_all_comes_to_other_stream_tables() {
    let source = filled();
    let (name, file) = (source.name(), format!("{}.beside", source.name()));
    source.server().program("pg_dump", &["-Fc", "-f", &file, name]);
    let target = Database::new();
    let mut session = target.session();
    session.run("CREATE TABLE u (id int PRIMARY KEY, v int); INSERT INTO u VALUES (1, 1)");
    for other in 1..=4 {
        session.create(&format!("other{other}"), "SELECT v, count(*) AS n FROM u GROUP BY v");
    }
    // Whose query must not be replaced: it has the columns and the number of another one.
    session.run("ALTER SEQUENCE pgstream.pgs_stream_tables_pgs_id_seq RESTART 3; SELECT pgstream.drop_stream_table('other3')");
    session.run("CREATE TABLE d2 (g int PRIMARY KEY, name text NOT NULL, m numeric)");
    session.create("other3", "SELECT g, name, m FROM d2 GROUP BY g");
    let query = "SELECT pg_get_viewdef(view_relid) FROM pgstream.pgs_stream_tables WHERE pgs_name = 'other3'";
    let (before, history) =
        (session.value(query), "SELECT count(*) FROM pgstream.pgs_refresh_history");
    assert_eq!(session.value(history), "5");
    // Of hidden views with the same number.
    let errors = target.server().try_program("pg_restore", &["-d", target.name(), &file]);
    let errors = errors.expect_err("a hidden view is there already");
    assert!(errors.contains("relation \"query_1\" already exists"), "{errors}");
    assert_eq!(session.value(query), before);
    // The history of those whose numbers are taken is left out, that of the others goes with them.
    let histories = "SELECT string_agg(pgs_name, ',' ORDER BY pgs_name), bool_and(pgs_id > 4)
        FROM pgstream.pgs_refresh_history JOIN pgstream.pgs_stream_tables USING (pgs_id)
        WHERE pgs_name NOT LIKE 'other%'";
    assert_eq!(session.value(histories), "local,whole|t");
    refresh_and_compare(&mut session, "restoring");
    assert_eq!(
        session.value(
            "SELECT count(*), count(DISTINCT pgs_relid) FROM pgstream.pgs_stream_tables
             WHERE view_relid = ('pgstream_state.query_' || pgs_id)::regclass"
        ),
        "11|11"
    );
    for round in 0..3 {
        session.run(CHANGE);
        session.run("INSERT INTO u SELECT max(id) + 1, 1 FROM u; INSERT INTO d2 SELECT count(*), 'x', 1 FROM d2");
        refresh_and_compare(&mut session, &format!("change {round}"));
        for other in 1..=4 {
            session.refresh(&format!("other{other}"));
            // The first time their hidden views were given to who has them already.
            if round > 0 {
                assert_eq!(last_action(&mut session, &format!("other{other}")), "DIFFERENTIAL");
            }
        }
    }
    assert_eq!(session.value("SELECT v, n FROM other1"), "1|4");
    assert_eq!(session.value("SELECT count(*) FROM other3"), "3");
    check_nothing_is_left_over(&mut session);
    session.create("fresh", "SELECT count(*) FROM t");
}

/// Two whose numbers are those of others here, and that have the same columns.
#[test]
fn dumped_queries_stay_with_their_tables_beside_others() {
    let source = Database::new();
    let mut session = source.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 6) AS i");
    let queries = ["v <= 2", "v BETWEEN 3 AND 4", "v > 4"]
        .map(|it| format!("SELECT id, v FROM t WHERE {it}"));
    for (number, query) in queries.iter().enumerate() {
        // Without a history.
        session.run(&format!(
            "SELECT pgstream.create_stream_table('st{number}', '{query}', initialize => false)"
        ));
    }
    for option in ["--format=custom", "--schema-only"] {
        let file = format!("{}.beside{option}", source.name());
        source.server().program("pg_dump", &["-Fc", option, "-f", &file, source.name()]);
        let target = Database::new();
        let mut session = target.session();
        session.run("CREATE TABLE u (id int PRIMARY KEY, v int)");
        session.create("other", "SELECT id, v FROM u");
        let errors = target.server().try_program("pg_restore", &["-d", target.name(), &file]);
        let errors = errors.expect_err("a hidden view is there already");
        assert!(errors.contains("relation \"query_1\" already exists"), "{errors}");
        session.run("INSERT INTO t VALUES (10, 2), (11, 3), (12, 9) ON CONFLICT DO NOTHING");
        for (number, query) in queries.iter().enumerate() {
            session.refresh(&format!("st{number}"));
            let found = difference(&mut session, &format!("st{number}"), query, Comparison::Value);
            assert!(found.expect("comparable").is_none(), "{query} {option}");
        }
        check_nothing_is_left_over(&mut session);
    }
}

/// A dump sets the sequence back.
#[test]
fn refreshes_are_numbered_on_whatever_a_dump_makes_of_the_sequence() {
    let source = filled();
    let (name, file) = (source.name(), format!("{}.numbers", source.name()));
    source.server().program("pg_dump", &["-Fc", "-f", &file, name]);
    let schema = format!("{name}.numbers.schema");
    source.server().program("pg_dump", &["--schema-only", "-Fc", "-f", &schema, name]);
    for (before, how) in
        [(None, &[][..]), (Some(&schema), &["--data-only", "--disable-triggers"][..])]
    {
        let target =
            if before.is_some() { Database::empty(Server::shared()) } else { Database::new() };
        if let Some(before) = before {
            target.server().program("pg_restore", &["-d", target.name(), before]);
        }
        let mut session = target.session();
        session.run("CREATE TABLE u (id int PRIMARY KEY, v int)");
        session.create("other", "SELECT v, count(*) AS n FROM u GROUP BY v");
        for _ in 0..60 {
            session.run("INSERT INTO u SELECT count(*), 1 FROM u");
            session.refresh("other");
        }
        // Of hidden views with the same number.
        let arguments = [how, &["-d", target.name(), &file]].concat();
        let _errors = target.server().try_program("pg_restore", &arguments);
        let last = "SELECT count(*), max(refresh_id) > 60 FROM pgstream.pgs_refresh_history
                    WHERE pgs_id = (SELECT pgs_id FROM pgstream.pgs_stream_tables WHERE pgs_name = 'other')";
        assert_eq!(session.value(last), "61|t");
        let sequence = "SELECT last_value < 30 FROM pgstream.pgs_refresh_history_refresh_id_seq";
        assert_eq!(session.value(sequence), "t");
        // As the scheduler writes down what it skips.
        session.run("INSERT INTO pgstream.pgs_refresh_history (pgs_id, start_time, action, status, initiated_by)
                     SELECT pgs_id, now(), 'SKIP', 'SKIPPED', 'SCHEDULER' FROM pgstream.pgs_stream_tables WHERE pgs_name = 'other'");
        assert_eq!(session.value(last), "62|t");
        session.run("INSERT INTO u SELECT count(*), 1 FROM u");
        session.refresh("other");
        assert_eq!(session.value("SELECT n FROM other"), "61");
        assert_eq!(session.value(last), "63|t");
        refresh_and_compare(&mut session, "restoring");
        session.create("fresh", "SELECT v FROM u");
    }
}

#[test]
fn sources_may_be_renamed_before_they_are_dumped() {
    let source = Database::new();
    let mut session = source.session();
    session.run(
        "CREATE SCHEMA s; CREATE TABLE t (id int PRIMARY KEY, a int); CREATE TABLE other (id int PRIMARY KEY, a int);
         CREATE TABLE parent (x int); CREATE TABLE child () INHERITS (parent);
         CREATE TYPE pair AS (l int, r int); CREATE TABLE pairs (p pair);
         CREATE FUNCTION s.f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1';
         INSERT INTO t VALUES (1, 10); INSERT INTO other VALUES (2, 20); INSERT INTO child VALUES (5); INSERT INTO pairs VALUES ((1, 2))",
    );
    session.create("st", "SELECT id, s.f(a) AS a FROM t");
    session.create("inherited", "SELECT x FROM child");
    session.create("composite", "SELECT (p).l FROM pairs");
    session.run(
        "ALTER TABLE t RENAME TO old; ALTER TABLE other RENAME TO t; ALTER TABLE old RENAME COLUMN a TO b;
         ALTER SCHEMA s RENAME TO r; ALTER FUNCTION r.f RENAME TO g; ALTER TABLE old SET SCHEMA r;
         ALTER TABLE parent RENAME COLUMN x TO y; ALTER TYPE pair RENAME ATTRIBUTE l TO m CASCADE",
    );
    session.run("SET search_path = pg_catalog");
    assert_eq!(
        session.rows(
            "SELECT label::json ->> 'definition' = pg_get_viewdef(view_relid)
             FROM pgstream.pgs_stream_tables LEFT JOIN pg_seclabel ON objoid = pgs_relid"
        ),
        ["t", "t", "t"]
    );
    session.run("RESET search_path");
    let (name, file) = (source.name(), format!("{}.renamed.sql", source.name()));
    source
        .server()
        .program("pg_dump", &["-t", "st", "-t", "inherited", "-t", "composite", "-f", &file, name]);
    for it in ["st", "inherited", "composite"] {
        session.run(&format!("SELECT pgstream.drop_stream_table('{it}')"));
    }
    psql(&source, &file);
    for (it, columns, rows) in
        [("st", "id, a", "1|11"), ("inherited", "x", "5"), ("composite", "l", "1")]
    {
        session.refresh(it);
        assert_eq!(session.rows(&format!("SELECT {columns} FROM {it}")), [rows]);
    }
}

/// A change of one source of a query needs no lock on the others.
#[test]
fn a_source_is_renamed_while_another_is_locked() {
    let database = Database::new();
    let mut session = database.session();
    session.run(
        "CREATE TABLE a (id int PRIMARY KEY, b int); CREATE TABLE b (id int PRIMARY KEY, w int)",
    );
    session.create("st", "SELECT a.id, w FROM a JOIN b ON a.b = b.id");
    let mut other = database.session();
    other.run("BEGIN; LOCK TABLE b IN ACCESS EXCLUSIVE MODE");
    session.run("SET lock_timeout = '5s'; BEGIN; ALTER TABLE a ADD COLUMN c int; ALTER TABLE a RENAME TO a2; ALTER TABLE a2 RENAME b TO b2");
    other.run("COMMIT; SET lock_timeout = '5s'");
    session.run("ALTER TABLE a2 RENAME id TO id2");
    // Nor does it keep one.
    other.run("BEGIN; LOCK TABLE b IN ACCESS EXCLUSIVE MODE NOWAIT; COMMIT");
    session.run("COMMIT; INSERT INTO a2 VALUES (1, 1)");
    let is_current = "SELECT label::json ->> 'definition' = pg_get_viewdef(view_relid)
        FROM pgstream.pgs_stream_tables JOIN pg_seclabel ON objoid = pgs_relid";
    session.refresh("st");
    session.run("SET search_path = pg_catalog");
    assert_eq!(session.value(is_current), "t");
}

#[test]
fn without_the_extension_there_are_tables() {
    let source = filled();
    let (name, file) = (source.name(), format!("{}.without.sql", source.name()));
    source.server().program("pg_dump", &["-t", "joined", "-t", "t", "-t", "d", "-f", &file, name]);
    let target = Database::empty(Server::shared());
    target.server().program("psql", &["-q", "-d", target.name(), "-f", &file]);
    let mut session = target.session();
    let rows = "SELECT count(*) FROM joined";
    assert_eq!(session.value(rows), source.session().value(rows));
    session.run("UPDATE t SET v = v + 1; DELETE FROM joined WHERE name = 'one'");
    // When it comes, they are what they were as soon as somebody asks for it.
    session.run("CREATE EXTENSION pg_stream");
    assert_eq!(session.value("SELECT count(*) FROM pgstream.pgs_status()"), "0");
    check_selected(&mut session, &["joined"], CHANGE_OF_T);
}

#[test]
fn owners_restore_what_is_theirs() {
    let source = Database::new();
    let owner = format!("owner_{}", source.name());
    let mut session = source.session();
    session.run(&format!(
        "CREATE ROLE {owner} LOGIN; GRANT CREATE ON SCHEMA public TO {owner}; SET ROLE {owner};
         CREATE TABLE t (id int PRIMARY KEY, g int); INSERT INTO t VALUES (1, 1), (2, 1);
         SELECT pgstream.create_stream_table('st', 'SELECT g, count(*) AS n FROM t GROUP BY g', '2h'); RESET ROLE"
    ));
    let (name, file) = (source.name(), format!("{}.owned", source.name()));
    source.server().program("pg_dump", &["-t", "st", "-f", &format!("{file}.sql"), name]);
    source
        .server()
        .program("pg_dump", &["--use-set-session-authorization", "-Fc", "-f", &file, name]);
    let check = |target: &Database| {
        let mut session = target.session();
        session.run(&format!("SET ROLE {owner}"));
        session.refresh("st");
        assert_eq!(session.rows("SELECT g, n FROM st ORDER BY 1"), ["1|2"]);
        session.run("INSERT INTO t VALUES (3, 2)");
        session.refresh("st");
        assert_eq!(session.rows("SELECT g, n FROM st ORDER BY 1"), ["1|2", "2|1"]);
        assert_eq!(last_action(&mut session, "st"), "DIFFERENTIAL");
        session.run("RESET ROLE");
        check_nothing_is_left_over(&mut session);
        session.run(&format!("DROP OWNED BY {owner}"));
    };
    // By the owner of the database.
    let target = Database::new();
    let mut session = target.session();
    session.run(&format!("GRANT CREATE ON SCHEMA public TO {owner}; SET ROLE {owner}"));
    session.run("CREATE TABLE t (id int PRIMARY KEY, g int); INSERT INTO t VALUES (1, 1), (2, 1)");
    let how = ["-q", "-v", "ON_ERROR_STOP=1", "-U", &owner, "-d", target.name()];
    target.server().program("psql", &[&how[..], &["-f", &format!("{file}.sql")]].concat());
    assert_eq!(session.value("SELECT count(*) FROM pgstream.pgs_stream_tables"), "1");
    check(&target);
    // By a superuser who becomes the owners: they may not make the hidden views.
    let target = Database::empty(Server::shared());
    target.session().run(&format!("GRANT CREATE ON SCHEMA public TO {owner}"));
    let how = ["--use-set-session-authorization", "-d", target.name(), &file];
    let errors = target.server().try_program("pg_restore", &how).expect_err("no privilege");
    assert!(errors.contains("permission denied for schema pgstream_state"), "{errors}");
    check(&target);
    drop((session, target));
    let mut session = source.session();
    session.run(&format!("DROP OWNED BY {owner}; DROP ROLE {owner}"));
}

#[test]
fn owners_are_restored() {
    let source = Database::new();
    let owner = format!("owner_{}", source.name());
    let mut session = source.session();
    session.run(&format!(
        "CREATE ROLE {owner}; GRANT CREATE ON SCHEMA public TO {owner};
         ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {owner}; SET ROLE {owner};
         CREATE TABLE t (id int PRIMARY KEY, g int); INSERT INTO t VALUES (1, 1), (2, 1);
         SELECT pgstream.create_stream_table('st', 'SELECT m, count(*) AS n FROM (SELECT g, max(id) AS m FROM t GROUP BY g) GROUP BY m', '2h');
         RESET ROLE"
    ));
    let file = format!("{}.owned", source.name());
    source.server().program("pg_dump", &["-Fc", "-f", &file, source.name()]);
    let target = Database::empty(Server::shared());
    target.server().program("pg_restore", &["--exit-on-error", "-d", target.name(), &file]);
    for database in [&target, &source] {
        let mut session = database.session();
        session.run(&format!(
            "SET ROLE {owner}; INSERT INTO t VALUES (3, 2); SELECT pgstream.refresh_stream_table('st')"
        ));
        assert_eq!(session.rows("SELECT m, n FROM st ORDER BY 1"), ["2|1", "3|1"]);
        session.run(
            "INSERT INTO t VALUES (4, 2); SELECT pgstream.refresh_stream_table('st'); RESET ROLE",
        );
        assert_eq!(session.rows("SELECT m, n FROM st ORDER BY 1"), ["2|1", "4|1"]);
        // Hidden state goes with its owner, too.
        session.run(&format!("DROP OWNED BY {owner}"));
        check_nothing_is_left_over(&mut session);
        assert_eq!(session.value("SELECT count(*) FROM pgstream.pgs_status()"), "0");
    }
    session.run(&format!("DROP ROLE {owner}"));
}

#[test]
fn a_label_gives_nobody_the_rights_of_others() {
    let database = Database::new();
    let [mallory, victim] = ["mallory", "victim"].map(|it| format!("{it}_{}", database.name()));
    let mut session = database.session();
    session.run(&format!(
        "CREATE ROLE {mallory}; CREATE ROLE {victim}; GRANT CREATE ON SCHEMA public TO PUBLIC;
         CREATE TABLE t (id int); INSERT INTO t VALUES (1); GRANT SELECT ON t TO PUBLIC;
         CREATE TABLE secret (id int); INSERT INTO secret VALUES (42); GRANT SELECT ON secret TO {victim};
         SET ROLE {victim}; CREATE TABLE plain (id int, __pgs_row_id bigint NOT NULL); GRANT ALL ON plain TO {mallory};
         SELECT pgstream.create_stream_table('st', 'SELECT id FROM t', '2h'); RESET ROLE;
         SET ROLE {mallory}; SELECT pgstream.create_stream_table('model', 'SELECT id FROM t', '2h');
         CREATE TABLE mine (id int, __pgs_row_id bigint NOT NULL)"
    ));
    let label = session.value("SELECT label FROM pg_seclabel WHERE objoid = 'model'::regclass");
    let forged = label.replace(" FROM t", " FROM secret").replace("public.t", "public.secret");
    let set = |table: &str, label: &str| {
        format!("SECURITY LABEL FOR pg_stream ON {table} IS {}", literal(label))
    };
    let guard = "CREATE TRIGGER pg_stream_guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE
                 ON {table} FOR EACH STATEMENT EXECUTE FUNCTION pgstream.guard_stream_table()";
    let guard = |table: &str| guard.replace("{table}", table);
    // Not on what others own, not on what is a stream table, not just any text.
    for (sql, code) in [
        (set("TABLE plain", &forged), "42501"),
        (set("TABLE st", &forged), "42501"),
        (set("TABLE model", &forged), "55000"),
        ("SECURITY LABEL FOR pg_stream ON TABLE model IS NULL".to_owned(), "55000"),
        (set("TABLE mine", "x"), "22023"),
        (set("TABLE mine", "{}"), "22023"),
        (set("COLUMN mine.id", &forged), "0A000"),
        (guard("mine").replace("pg_stream_guard", "pg_stream_cdc_1"), "42939"),
        (guard("mine").replace("pg_stream_guard", "other"), "42939"),
        (
            guard("model").replace("TRIGGER", "OR REPLACE TRIGGER").replace(" OR TRUNCATE", ""),
            "0A000",
        ),
        (
            guard("model")
                .replace("TRIGGER", "OR REPLACE TRIGGER")
                .replace("EXEC", "WHEN (false) EXEC"),
            "0A000",
        ),
    ] {
        assert_eq!(session.error(&sql).code, code, "{sql}");
    }
    // On his own table it is a stream table with his own rights.
    let huge = forged.replace("\"id\" : ", "\"id\" : 9223372036854775");
    session.run(&set("TABLE mine", &huge));
    session.run(&guard("mine"));
    let error = session.error("SELECT pgstream.refresh_stream_table('mine')");
    assert_eq!(error.code, "42501", "{error}");
    assert_eq!(session.value("SELECT count(*) FROM mine"), "0");
    // The text is a query and nothing else, and there is a shortest schedule.
    let several = label
        .replace(";\", \"schedule", "; CREATE TABLE public.left_over (i int)\", \"schedule")
        .replace("\"2h\"", "\"1s\"");
    session.run("CREATE TABLE several (id int, __pgs_row_id bigint NOT NULL)");
    session.run(&set("TABLE several", &several));
    session.run(&guard("several"));
    let error = session.error("SELECT pgstream.refresh_stream_table('several')");
    assert_eq!(error.code, "0A000", "{error}");
    assert_eq!(session.value("SELECT to_regclass('left_over')"), "NULL");
    let schedule = "SELECT schedule FROM pgstream.pgs_stream_tables WHERE pgs_name = 'several'";
    assert_eq!(session.value(schedule), "60s");
    session.run("SELECT pgstream.drop_stream_table('several')");
    // Another's is not made one by whoever has a privilege on it, not even with a label by its owner.
    session.run(&guard("plain"));
    session.run(&format!("RESET ROLE; SET ROLE {victim}; DROP TRIGGER pg_stream_guard ON plain"));
    session.run(&set("TABLE plain", &forged));
    session.run(&format!("SET ROLE {mallory}"));
    session.run(&guard("plain"));
    assert_eq!(session.error("SELECT pgstream.refresh_stream_table('plain')").code, "42P01");
    session.run(&format!("SET ROLE {victim}"));
    session.refresh("plain");
    assert_eq!(session.rows("SELECT id FROM plain"), ["42"]);
    session.run("RESET ROLE");
    session.create("next", "SELECT id FROM t");
    let numbers = "SELECT max(pgs_id) < 100 FROM pgstream.pgs_stream_tables";
    assert_eq!(session.value(numbers), "t");
    // What he says about his own hidden view says nothing about others'.
    let file = format!("{}.forged.sql", database.name());
    database.server().program("pg_dump", &["--schema-only", "-f", &file, database.name()]);
    let target = Database::empty(Server::shared());
    psql(&target, &file);
    let mut restored = target.session();
    restored.run("INSERT INTO t VALUES (1)");
    restored.refresh("st");
    assert_eq!(restored.rows("SELECT id FROM st"), ["1"]);
    assert_eq!(restored.error("SELECT pgstream.refresh_stream_table('mine')").code, "42501");
    drop(restored);
    drop((target, session));
    let mut admin = Server::shared().session("postgres");
    drop(database);
    admin.run(&format!("DROP ROLE {mallory}; DROP ROLE {victim}"));
}

/// A transaction that restores a stream table, and stays open.
#[test]
fn who_restores_a_stream_table_stands_in_nobodys_way() {
    let database = Database::new();
    let mut s = pgstream_tests::Sessions::new(&database, &["restorer", "other"]);
    s.monitor().run("CREATE TABLE t (id int)");
    s.monitor().create("st", "SELECT id FROM t");
    let label = s
        .monitor()
        .value("SELECT label FROM pg_seclabels WHERE provider = 'pg_stream' AND objtype = 'table'");
    s.run(
        "restorer",
        &format!(
            "BEGIN; CREATE TABLE again (LIKE st); SECURITY LABEL FOR pg_stream ON TABLE again IS {};
             CREATE TRIGGER pg_stream_guard BEFORE INSERT OR DELETE OR UPDATE OR TRUNCATE ON again
                FOR EACH STATEMENT EXECUTE FUNCTION pgstream.guard_stream_table()",
            literal(&label)
        ),
    );
    s.run("other", "INSERT INTO t VALUES (1); SELECT pgstream.refresh_stream_table('st')");
    s.run("other", "CREATE TABLE u (id int); ALTER TABLE u ADD COLUMN v int");
    s.run("restorer", "COMMIT");
    s.run("other", "SELECT pgstream.refresh_stream_table('again')");
    assert_eq!(s.monitor().rows("SELECT id FROM again"), ["1"]);
}

/// To put rows into a stream table like pg_restore takes to be its owner.
#[test]
fn nobody_else_forges_rows_as_if_they_were_restored() {
    let database = Database::new();
    let [owner, mallory] = ["owner", "mallory"].map(|it| format!("{it}_{}", database.name()));
    let mut session = database.session();
    session.run(&format!(
        "CREATE ROLE {owner}; CREATE ROLE {mallory}; GRANT CREATE ON SCHEMA public TO {owner};
         SET ROLE {owner}; CREATE TABLE t (id int); INSERT INTO t VALUES (1);
         SELECT pgstream.create_stream_table('st', 'SELECT id FROM t'); GRANT ALL ON st TO {mallory};
         SET ROLE {mallory}; SET check_function_bodies = off; SELECT set_config('search_path', '', false)"
    ));
    let error = session.error("INSERT INTO public.st VALUES (666, 1)");
    assert_eq!(error.message, "cannot change stream table \"public.st\"");
    session.run(&format!("SET ROLE {owner}; INSERT INTO public.st VALUES (2, 1)"));
    session.run("RESET search_path; SELECT pgstream.refresh_stream_table('st')");
    assert_eq!(session.rows("SELECT id FROM st"), ["1"]);
    // Nor who owns the source, whose policies run as the owner of the stream table.
    session.run(&format!(
        "RESET ROLE; SET check_function_bodies = on; CREATE TABLE u (id int); INSERT INTO u VALUES (1); GRANT SELECT ON u TO {owner};
         SET ROLE {owner}; SELECT pgstream.create_stream_table('su', 'SELECT id FROM u'); RESET ROLE;
         CREATE FUNCTION forge() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
            PERFORM set_config('search_path', '', true), set_config('check_function_bodies', 'off', true);
            INSERT INTO public.su VALUES (666, 1); RETURN true; END $$;
         CREATE FUNCTION policy() RETURNS bool LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN public.forge(); END';
         ALTER TABLE u ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON u USING (public.policy()); SET ROLE {owner}"
    ));
    let error = session.error("SELECT pgstream.refresh_stream_table('su')");
    assert_eq!(error.message, "cannot change stream table \"public.su\"");
    session.run("RESET ROLE");
    let mut admin = Server::shared().session("postgres");
    drop((session, database));
    admin.run(&format!("DROP ROLE {owner}; DROP ROLE {mallory}"));
}

#[test]
fn a_restored_table_can_be_changed_before_it_is_refreshed() {
    let source = filled();
    let file = format!("{}.changed", source.name());
    source.server().program("pg_dump", &["-Fc", "-f", &file, source.name()]);
    let target = Database::empty(Server::shared());
    target.server().program("pg_restore", &["--exit-on-error", "-d", target.name(), &file]);
    let mut session = target.session();
    session.run("SELECT pgstream.alter_stream_table('staged', '5h', 'FULL')");
    session.run("SELECT pgstream.alter_stream_table('whole', '5h', 'DIFFERENTIAL', 'SUSPENDED')");
    session.run("SELECT pgstream.resume_stream_table('whole')");
    session.run("DROP VIEW shown; SELECT pgstream.drop_stream_table('upon')");
    session.run("ALTER TABLE joined RENAME TO joined2; ALTER TABLE t RENAME v TO amount");
    session.run("UPDATE t SET amount = amount + 1");
    for name in ["staged", "whole", "joined2", "keyed"] {
        session.refresh(name);
        session.run("UPDATE t SET amount = amount + 1");
        session.refresh(name);
    }
    session.refresh("joined2");
    let query =
        "SELECT d.name, count(*) AS n, sum(t.amount) AS s FROM t JOIN d USING (g) GROUP BY d.name";
    let difference = difference(&mut session, "joined2", query, Comparison::Text);
    assert!(difference.expect("comparable").is_none());
}

#[test]
fn a_dump_without_event_triggers_is_attached_when_it_is_asked_for() {
    let source = filled();
    let file = format!("{}.quiet.sql", source.name());
    source.server().program("pg_dump", &["-f", &file, source.name()]);
    let target = Database::empty(Server::shared());
    let name = target.name().to_owned();
    target.session().run(&format!("ALTER DATABASE {name} SET event_triggers = off"));
    psql(&target, &file);
    target.session().run(&format!("ALTER DATABASE {name} RESET event_triggers"));
    let mut session = target.session();
    assert_eq!(session.value("SELECT count(*) FROM pgstream.pgs_status()"), "7");
    refresh_and_compare(&mut session, "restoring");
    check_restored(&mut session);
}

#[test]
fn a_copied_database_has_its_own_stream_tables() {
    let source = filled();
    let copy = Database::copy(Server::shared(), source.name());
    for database in [&copy, &source] {
        let mut session = database.session();
        session.run(CHANGE);
        refresh_and_compare(&mut session, "copying");
        // It goes on from where it was.
        assert_eq!(last_action(&mut session, "joined"), "DIFFERENTIAL");
    }
    check_restored(&mut copy.session());
    check_restored(&mut source.session());
}

#[test]
fn the_extension_goes_and_leaves_tables() {
    let database = filled();
    let mut session = database.session();
    session.run("DROP EXTENSION pg_stream CASCADE");
    session.run(CHANGE);
    session.run("TRUNCATE t, d; INSERT INTO joined (name, __pgs_row_id) VALUES ('x', 1)");
    assert_eq!(
        session.value("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'pg\\_stream%'"),
        "0"
    );
    assert_eq!(
        session
            .value("SELECT count(*) FROM pg_class WHERE relname ~ '^(changes|stage|query)_[0-9]'"),
        "0"
    );
    session.run("CREATE EXTENSION pg_stream; DROP TABLE joined CASCADE");
    session.create("joined", STREAM_TABLES[0].1);
}

#[test]
fn a_frontier_of_the_future_is_not_believed() {
    let database = filled();
    let mut session = database.session();
    refresh_and_compare(&mut session, "filling");
    session.run("UPDATE pgstream.pgs_stream_tables SET consumed = '90000000000:90000000000:'");
    session.run(CHANGE);
    refresh_and_compare(&mut session, "a step back");
    session.run(CHANGE);
    refresh_and_compare(&mut session, "a step back, later");
    assert_eq!(last_action(&mut session, "joined"), "DIFFERENTIAL");
}

fn server_with_database() -> Database {
    let database = Database::on(Server::start(&["pg_stream.enabled=off"]));
    let mut session = database.session();
    fill(&mut session);
    refresh_and_compare(&mut session, "filling");
    session.run(CHANGE);
    database
}

/// Goes on without a rebuild, which would hide a loss.
#[track_caller]
fn check_continued(session: &mut Session) {
    refresh_and_compare(session, "copying");
    assert_eq!(last_action(session, "joined"), "DIFFERENTIAL");
    assert_eq!(
        session.value(
            "SELECT count(*) FROM pgstream.pgs_refresh_history WHERE action = 'REINITIALIZE'"
        ),
        "0"
    );
    check_restored(session);
}

#[test]
fn pg_upgrade_keeps_stream_tables() {
    let old = server_with_database();
    let new = Server::start(&["pg_stream.enabled=off"]);
    let mut admin = old.server().session("postgres");
    admin.run("ALTER DATABASE pgstream_template ALLOW_CONNECTIONS true");
    drop(admin);
    old.server().stop();
    new.stop();
    let (from, to) = (old.server().place().join("data"), new.place().join("data"));
    let (from, to) = (from.to_string_lossy().into_owned(), to.to_string_lossy().into_owned());
    let place = new.place().to_string_lossy().into_owned();
    let programs = std::process::Command::new("pg_config").arg("--bindir").output();
    let programs = String::from_utf8(programs.expect("pg_config can be run").stdout);
    let programs = programs.expect("a path").trim().to_owned();
    let arguments = ["-b", &programs, "-d", &from, "-D", &to, "-U", "postgres", "-s", &place];
    new.program("pg_upgrade", &[&arguments[..], &["--check"]].concat());
    new.program("pg_upgrade", &arguments);
    new.start_again();
    let database = Database::existing(new, old.name());
    let mut session = database.session();
    refresh_and_compare(&mut session, "upgrading");
    assert_eq!(last_action(&mut session, "joined"), "REINITIALIZE");
    assert!(session.take_notices().is_empty());
    check_restored(&mut session);
}

#[test]
fn all_databases_are_dumped_and_restored() {
    let old = server_with_database();
    let new = Server::start(&["pg_stream.enabled=off"]);
    let file = new.place().join("all.sql").to_string_lossy().into_owned();
    let host = old.server().place().to_string_lossy().into_owned();
    new.program("pg_dumpall", &["-h", &host, "-f", &file]);
    let dump = std::fs::read_to_string(&file).expect("it was made");
    let is_there = "CREATE ROLE postgres;";
    std::fs::write(&file, dump.replace(is_there, "")).expect("the directory is ours");
    new.program("psql", &["-q", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-f", &file]);
    let database = Database::existing(new, old.name());
    check_restored(&mut database.session());
}

#[test]
fn a_standby_reads_and_goes_on_when_it_is_promoted() {
    let primary = server_with_database();
    let standby = Server::planned();
    let host = primary.server().place().to_string_lossy().into_owned();
    standby.program("pg_basebackup", &["-h", &host, "-D", "data", "-R", "-c", "fast"]);
    standby.start_copy(&[]);
    // What is running here when the standby takes over has never happened there.
    let mut open = primary.session();
    open.run("BEGIN; UPDATE t SET v = v + 1000 WHERE id < 50");
    let mut session = primary.session();
    session.run("BEGIN; UPDATE t SET v = v + 300 WHERE id = 60; PREPARE TRANSACTION 'later'");
    session.run("UPDATE t SET v = v + 7 WHERE id > 100");
    session.run("SELECT pgstream.refresh_stream_table('joined')");
    session.run("UPDATE t SET v = v + 7 WHERE id > 100");
    let lsn = session.value("SELECT pg_current_wal_flush_lsn()");
    let copy = Database::existing(standby, primary.name());
    let mut reader = copy.session();
    reader.wait_until(&format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'"));
    for sql in [
        "SELECT * FROM pgstream.pgs_status()",
        "SELECT * FROM pgstream.st_refresh_stats()",
        "SELECT * FROM pgstream.get_refresh_history('joined')",
        "SELECT pgstream.get_staleness('joined')",
        "SELECT * FROM pgstream.explain_st('joined')",
        "SELECT * FROM pgstream.slot_health()",
        "SELECT * FROM pgstream.check_cdc_health()",
        "SELECT * FROM pgstream.pg_stat_progress_refresh",
        "SELECT * FROM joined",
    ] {
        reader.try_rows(sql).unwrap_or_else(|error| panic!("{sql}\n{error}"));
    }
    for sql in [
        "SELECT pgstream.refresh_stream_table('joined')",
        "SELECT pgstream.alter_stream_table('joined', '5h')",
        "SELECT pgstream.drop_stream_table('joined')",
        "SELECT pgstream.create_stream_table('new', 'SELECT id FROM t')",
    ] {
        assert_eq!(reader.error(sql).code, "25006", "{sql}");
    }
    assert_eq!(reader.error("SELECT pgstream.get_staleness('t')").code, "42P01");
    primary.server().kill();
    reader.run("SELECT pg_promote()");
    let mut session = copy.session();
    session.refresh("joined");
    session.run("COMMIT PREPARED 'later'");
    session.run(CHANGE);
    check_continued(&mut session);
}

/// What decodes is on the primary.
#[test]
fn a_standby_misses_no_replication_slot() {
    let primary = Database::on(Server::start(&["pg_stream.enabled=off"]));
    let mut session = primary.session();
    session.run("CREATE TABLE t (id int PRIMARY KEY)");
    session.create("st", "SELECT id FROM t");
    session.run("UPDATE pgstream.pgs_change_tracking SET cdc_mode = 'WAL', slot_name = 'gone'");
    let alert = "SELECT alert FROM pgstream.check_cdc_health()";
    assert_eq!(session.value(alert), "the replication slot is missing");
    let standby = Server::planned();
    let host = primary.server().place().to_string_lossy().into_owned();
    standby.program("pg_basebackup", &["-h", &host, "-D", "data", "-R", "-c", "fast"]);
    standby.start_copy(&[]);
    let copy = Database::existing(standby, primary.name());
    assert_eq!(copy.session().value(alert), "NULL");
}

#[test]
fn a_copy_recovers_to_a_point_in_time() {
    let source = Database::on(Server::start(&[
        "pg_stream.enabled=off",
        "archive_mode=on",
        "archive_command=mkdir -p ../archive && cp %p ../archive/%f",
    ]));
    let mut session = source.session();
    fill(&mut session);
    refresh_and_compare(&mut session, "filling");
    let copy = Server::planned();
    let place = source.server().place();
    copy.program("pg_basebackup", &["-h", &place.to_string_lossy(), "-D", "data", "-c", "fast"]);
    session.run(CHANGE);
    refresh_and_compare(&mut session, "the backup");
    session.run(CHANGE);
    session.run("SELECT pg_create_restore_point('here')");
    let rows = session.value("SELECT count(*), sum(v) FROM t");
    session.run(CHANGE);
    refresh_and_compare(&mut session, "the point");
    session.run("SELECT pg_switch_wal()");
    drop(session);
    // Which archives what is left.
    source.server().stop();
    std::fs::write(copy.place().join("data/recovery.signal"), "").expect("the directory is ours");
    copy.start_copy(&[
        &format!("restore_command=cp {}/archive/%f %p", place.display()),
        "recovery_target_name=here",
        "recovery_target_action=promote",
        "archive_mode=off",
    ]);
    let database = Database::existing(copy, source.name());
    let mut session = database.session();
    session.wait_until("SELECT NOT pg_is_in_recovery()");
    assert_eq!(session.value("SELECT count(*), sum(v) FROM t"), rows);
    session.run(CHANGE);
    check_continued(&mut session);
}

#[test]
fn transaction_numbers_jump() {
    let database = server_with_database();
    let data = database.server().place().join("data").to_string_lossy().into_owned();
    for option in ["-x", "-e"] {
        let next = database.session().value("SELECT pg_current_xact_id()::xid");
        let next = next.parse::<u64>().expect("a number") + 10_000;
        let value = if option == "-x" { next.to_string() } else { "3".to_owned() };
        database.server().stop();
        database.server().program("pg_resetwal", &[option, &value, &data]);
        database.server().start_again();
        let mut session = database.session();
        session.run(CHANGE);
        refresh_and_compare(&mut session, option);
        assert_eq!(last_action(&mut session, "joined"), "DIFFERENTIAL");
    }
}
