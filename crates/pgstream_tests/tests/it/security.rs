//! Who may do what, tried as an attacker would.

use pgstream_tests::{
    Comparison, Database, Server, Session, Sessions, Watched, difference, orphans,
};

/// Roles are shared by all databases of the server, so their names carry that of the database.
struct Roles {
    names: Vec<String>,
}

impl Drop for Roles {
    fn drop(&mut self) {
        // After the database, and with it what the roles own. A failure shows up elsewhere.
        if let Ok(mut admin) = Server::shared().try_session("postgres") {
            for name in &self.names {
                let _ignored = admin.try_run(&format!("DROP ROLE {name}"));
            }
        }
    }
}

/// A database with a superuser's session; what is declared first is dropped first.
struct Place {
    admin: Session,
    database: Database,
    roles: Roles,
}

impl Place {
    fn new() -> Self {
        let database = Database::new();
        let roles = Roles { names: Vec::new() };
        Self { admin: database.session(), database, roles }
    }

    /// A new role with a schema of its own, of the same name.
    fn role(&mut self, name: &str) -> String {
        let name = format!("{name}_{}", self.database.name());
        self.admin.run(&format!("CREATE ROLE {name}; CREATE SCHEMA {name} AUTHORIZATION {name}"));
        self.roles.names.push(name.clone());
        name
    }

    /// A session of the role, which finds its own schema first.
    fn session(&mut self, role: &str) -> Session {
        let mut session = self.database.session();
        session.run(&format!("SET SESSION AUTHORIZATION {role}; SET search_path = {role}, public"));
        session
    }
}

const TABLE: &str = "
    CREATE TABLE public.t (id int PRIMARY KEY, g int, v int);
    INSERT INTO public.t SELECT i, i % 3, i FROM generate_series(1, 12) AS i;";

/// A function that gives itself away when it runs as a superuser, whatever it pretends to be.
const SPY: &str = "
    CREATE FUNCTION spy(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
    BEGIN
        IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
            RAISE EXCEPTION 'ran as a superuser' USING ERRCODE = 'ZZ001';
        END IF;
        RAISE NOTICE 'spy ran';
        RETURN $1;
    END$$";

#[track_caller]
fn assert_right(session: &mut Session, table: &str, query: &str) {
    let found = difference(session, table, query, Comparison::Text).expect("comparable");
    if let Some(found) = found {
        panic!("{table} differs from {query}\n{found}");
    }
}

#[track_caller]
fn last_action(session: &mut Session) -> String {
    session
        .value("SELECT action FROM pgstream.pgs_refresh_history ORDER BY refresh_id DESC LIMIT 1")
}

const DENIED: &str = "42501";

#[test]
fn select_on_the_sources_and_create_on_the_schema_are_needed_and_suffice() {
    let mut place = Place::new();
    place.admin.run(TABLE);
    let alice = place.role("alice");
    let mut session = place.session(&alice);
    for mode in ["DIFFERENTIAL", "FULL"] {
        let create = format!(
            "SELECT pgstream.create_stream_table('st_{mode}', 'SELECT g, count(*) AS n FROM public.t GROUP BY g', '1d', '{mode}')"
        );
        assert_eq!(session.error(&create).code, DENIED);
    }
    let in_public = "SELECT pgstream.create_stream_table('public.st', 'SELECT g FROM public.t')";
    place.admin.run(&format!("GRANT SELECT ON t TO {alice}"));
    assert_eq!(session.error(in_public).code, DENIED);
    session.create("st", "SELECT g, count(*) AS n FROM public.t GROUP BY g");
    assert_eq!(
        session.value("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'st'::regclass"),
        alice
    );
    place.admin.run("INSERT INTO t VALUES (100, 1, 1)");
    session.refresh("st");
    assert_right(&mut session, "st", "SELECT g, count(*) AS n FROM public.t GROUP BY g");
}

#[test]
fn columns_that_may_be_read_suffice_although_a_refresh_reads_the_key_too() {
    let mut place = Place::new();
    place.admin.run(TABLE);
    let alice = place.role("alice");
    place.admin.run(&format!("GRANT SELECT (g, v) ON t TO {alice}"));
    let mut session = place.session(&alice);
    let error = session.try_create("st", "SELECT id, g FROM public.t").expect_err("no right to id");
    assert_eq!(error.code, DENIED);
    let query = "SELECT a.g, b.v FROM public.t AS a JOIN public.t AS b USING (g)";
    session.create("st", query);
    place.admin.run("UPDATE t SET v = 0 WHERE id < 4; DELETE FROM t WHERE id = 5");
    session.refresh("st");
    assert_eq!(last_action(&mut session), "DIFFERENTIAL");
    assert_right(&mut session, "st", query);
    place.admin.run(&format!("REVOKE SELECT (v) ON t FROM {alice}"));
    let error = session.error("SELECT pgstream.refresh_stream_table('st')");
    assert_eq!(error.code, DENIED, "{error}");
}

#[test]
fn a_right_that_is_revoked_later_stops_the_refresh_as_it_would_stop_the_query() {
    for mode in ["DIFFERENTIAL", "FULL"] {
        let mut place = Place::new();
        place.admin.run(TABLE);
        let alice = place.role("alice");
        place.admin.run(&format!("GRANT SELECT ON t TO {alice}"));
        let mut session = place.session(&alice);
        let query = "SELECT g, sum(v) AS s FROM public.t GROUP BY g";
        session
            .run(&format!("SELECT pgstream.create_stream_table('st', '{query}', '1d', '{mode}')"));
        let before = session.rows("SELECT * FROM st ORDER BY 1");
        place
            .admin
            .run(&format!("REVOKE SELECT ON t FROM {alice}; INSERT INTO t VALUES (50, 1, 50)"));
        for refresh in ["pgstream.refresh_stream_table('st')", "pgstream.repair_stream_table('st')"]
        {
            let error = session.error(&format!("SELECT {refresh}"));
            assert_eq!(error.code, DENIED, "{mode} {error}");
        }
        // A superuser's refresh is the owner's.
        let error =
            place.admin.error(&format!("SELECT pgstream.refresh_stream_table('{alice}.st')"));
        assert_eq!(error.code, DENIED, "{mode} {error}");
        assert_eq!(session.rows("SELECT * FROM st ORDER BY 1"), before);
        place.admin.run(&format!("GRANT SELECT ON t TO {alice}"));
        session.refresh("st");
        assert_right(&mut session, "st", query);
    }
}

/// PostgreSQL does not plan it.
#[test]
fn what_a_with_item_reads_that_nothing_refers_to_may_be_unreadable() {
    let mut place = Place::new();
    place.admin.run(&format!("{TABLE} CREATE TABLE u (x int)"));
    let alice = place.role("alice");
    place.admin.run(&format!("GRANT SELECT ON t TO {alice}"));
    let mut session = place.session(&alice);
    let query = "WITH w AS (SELECT x FROM public.u) SELECT id, v FROM public.t";
    session.create("st", query);
    place.admin.run("INSERT INTO t VALUES (50, 1, 50)");
    session.refresh("st");
    assert_right(&mut session, "st", query);
}

#[test]
fn tables_behind_a_view_are_read_with_the_rights_of_the_view_owner() {
    let mut place = Place::new();
    place.admin.run(TABLE);
    let (alice, bob) = (place.role("alice"), place.role("bob"));
    place.admin.run(&format!("GRANT SELECT ON t TO {bob}; GRANT USAGE ON SCHEMA {bob} TO {alice}"));
    let mut owner = place.session(&bob);
    owner.run(&format!(
        "CREATE VIEW v AS SELECT g, v FROM public.t WHERE v > 3; GRANT SELECT ON v TO {alice}"
    ));
    let mut session = place.session(&alice);
    assert_eq!(session.error("SELECT FROM public.t").code, DENIED);
    let queries = [
        format!("SELECT g, count(*) AS n, sum(v) AS s FROM {bob}.v GROUP BY g"),
        format!("SELECT a.v, b.g FROM {bob}.v AS a LEFT JOIN {bob}.v AS b ON a.v = b.v + 1"),
        format!("SELECT g FROM {bob}.v WHERE v = (SELECT max(v) FROM {bob}.v)"),
        format!("SELECT g, array_agg(v ORDER BY v) AS a FROM {bob}.v GROUP BY g"),
        format!("SELECT v, rank() OVER (PARTITION BY g ORDER BY v) AS r FROM {bob}.v"),
    ];
    for (number, query) in queries.iter().enumerate() {
        session.create(&format!("st_{number}"), query);
    }
    place.admin.run(
        "INSERT INTO t VALUES (50, 1, 50), (51, 2, 1); UPDATE t SET v = v + 1 WHERE id % 2 = 0;
         DELETE FROM t WHERE id = 7",
    );
    for (number, query) in queries.iter().enumerate() {
        let table = format!("st_{number}");
        session.refresh(&table);
        assert_eq!(last_action(&mut session), "DIFFERENTIAL");
        assert_right(&mut session, &table, query);
    }
    assert_eq!(session.error("SELECT FROM public.t").code, DENIED);
    // The view owner's right goes, then comes back; then the right to the view goes.
    for (revoke, grant) in [
        (format!("REVOKE SELECT ON t FROM {bob}"), format!("GRANT SELECT ON t TO {bob}")),
        (
            format!("REVOKE SELECT ON {bob}.v FROM {alice}"),
            format!("GRANT SELECT ON {bob}.v TO {alice}"),
        ),
    ] {
        place.admin.run(&revoke);
        for number in 0..queries.len() {
            let error =
                session.error(&format!("SELECT pgstream.refresh_stream_table('st_{number}')"));
            assert_eq!(error.code, DENIED, "{revoke}: {error}");
        }
        place.admin.run(&grant);
        session.refresh("st_0");
    }
}

/// PostgreSQL does not look at the rights to what it has left out of the plan.
#[test]
fn creation_needs_the_rights_that_refreshes_need() {
    let mut place = Place::new();
    place.admin.run(&format!("{TABLE} CREATE TABLE u (x int)"));
    let alice = place.role("alice");
    place.admin.run(&format!("GRANT SELECT ON t TO {alice}"));
    let mut session = place.session(&alice);
    let query =
        "SELECT id FROM public.t WHERE id > 0 OR false AND (SELECT count(*) FROM public.u) > 0";
    assert_eq!(session.value(&format!("SELECT count(*) FROM ({query}) AS q")), "12");
    assert_eq!(session.try_create("st", query).expect_err(query).code, DENIED);
    session.run(&format!("SELECT pgstream.create_stream_table('st', '{query}', '1d', 'FULL')"));
    let alter = "SELECT pgstream.alter_stream_table('st', refresh_mode => 'DIFFERENTIAL')";
    assert_eq!(session.error(alter).code, DENIED);
}

#[test]
fn a_view_with_the_rights_of_its_invoker_needs_them() {
    let mut place = Place::new();
    place.admin.run(TABLE);
    let alice = place.role("alice");
    place.admin.run(&format!(
        "CREATE VIEW v WITH (security_invoker) AS SELECT id, g FROM t; GRANT SELECT ON v TO {alice}"
    ));
    let mut session = place.session(&alice);
    let error = session.try_create("st", "SELECT g FROM public.v").expect_err("no right to t");
    assert_eq!(error.code, DENIED);
    place.admin.run(&format!("GRANT SELECT ON t TO {alice}"));
    session.create("st", "SELECT g FROM public.v");
    place.admin.run("INSERT INTO t VALUES (50, 9, 50)");
    session.refresh("st");
    assert_right(&mut session, "st", "SELECT g FROM public.v");
    place.admin.run(&format!("REVOKE SELECT ON t FROM {alice}"));
    assert_eq!(session.error("SELECT pgstream.refresh_stream_table('st')").code, DENIED);
}

#[test]
fn functions_of_the_query_get_no_rights_to_what_is_behind_its_views() {
    let mut place = Place::new();
    place.admin.run(TABLE);
    let alice = place.role("alice");
    place.admin.run(&format!("CREATE VIEW v AS SELECT g FROM t; GRANT SELECT ON v TO {alice}"));
    let mut session = place.session(&alice);
    session.run(
        "CREATE FUNCTION peek(int) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS
           $$BEGIN RETURN (SELECT sum(v) FROM public.t); END$$;
         CREATE FUNCTION inlined(int) RETURNS bigint LANGUAGE sql STABLE AS
           $$SELECT sum(v) FROM public.t$$",
    );
    for function in ["peek", "inlined"] {
        let query = format!("SELECT g, {function}(g) AS p FROM public.v");
        let error = session.try_create("st", &query).expect_err("no right to t");
        assert_eq!(error.code, DENIED, "{function}: {error}");
        // Not from a refresh either.
        session.run(&format!(
            "SELECT pgstream.create_stream_table('st_{function}', '{query}', '1d', initialize => false)"
        ));
        let error =
            session.error(&format!("SELECT pgstream.refresh_stream_table('st_{function}')"));
        assert_eq!(error.code, DENIED, "{function}: {error}");
    }
}

#[test]
fn a_view_that_promises_to_hide_rows_hides_them_from_refreshes() {
    let mut place = Place::new();
    place.admin.run(TABLE);
    let alice = place.role("alice");
    place.admin.run(&format!(
        "CREATE VIEW v WITH (security_barrier) AS SELECT g, v FROM t WHERE v > 3;
         CREATE VIEW w AS SELECT g, v FROM v WHERE v < 1000; GRANT SELECT ON v, w TO {alice}"
    ));
    let mut session = place.session(&alice);
    session.run(
        "CREATE FUNCTION leak(int) RETURNS bool LANGUAGE plpgsql IMMUTABLE COST 0.0001 AS
           $$BEGIN IF $1 <= 3 THEN RAISE EXCEPTION 'leaked %', $1; END IF; RETURN true; END$$;
         CREATE TABLE own (g int); INSERT INTO own VALUES (0), (1), (1)",
    );
    let query = "SELECT g, v FROM public.v WHERE leak(v)";
    session.create("st", query);
    let above = [
        "SELECT o.g, count(v.v) AS n FROM own AS o LEFT JOIN public.w AS v ON v.g = o.g AND leak(v.v) GROUP BY o.g",
        "SELECT g FROM own AS o WHERE EXISTS (SELECT FROM public.v AS v WHERE v.g = o.g AND leak(v.v))",
        "SELECT v FROM public.w WHERE leak(v) UNION SELECT g FROM own",
    ];
    for (number, query) in above.iter().enumerate() {
        session.create(&format!("above{number}"), query);
    }
    let strategy = "SELECT bool_and(value LIKE 'evaluated as a whole, for the security_barrier view public.v%') AND count(*) = 1
        FROM pgstream.explain_st('st') WHERE property LIKE '%strategy'";
    assert_eq!(session.value(strategy), "t");
    for change in [
        "UPDATE t SET v = v - 2; INSERT INTO t VALUES (60, 1, 3), (61, 1, 4)",
        "UPDATE t SET v = 2 WHERE id = 61",
        "DELETE FROM t WHERE v < 10",
    ] {
        place.admin.run(change);
        session.refresh("st");
        assert_eq!(last_action(&mut session), "DIFFERENTIAL", "{change}");
        assert_right(&mut session, "st", query);
        for (number, query) in above.iter().enumerate() {
            session.refresh(&format!("above{number}"));
            assert_right(&mut session, &format!("above{number}"), query);
        }
        assert_eq!(session.value("SELECT count(*) FROM pgstream.verify_stream_table('st')"), "0");
    }
    // Rules, while nothing is a secret to who owns it.
    for (grant, is_whole) in [("GRANT SELECT ON t TO", "f"), ("REVOKE SELECT ON t FROM", "t")] {
        place.admin.run(&format!("{grant} {alice}"));
        session.refresh("st");
        place.admin.run("UPDATE t SET v = v + 1 WHERE v > 3; INSERT INTO t VALUES (70, 2, 7) ON CONFLICT DO NOTHING");
        session.refresh("st");
        assert_right(&mut session, "st", query);
        assert_eq!(session.value(strategy), is_whole, "{grant}");
    }
}

#[test]
fn only_the_owner_members_and_superusers_manage_a_stream_table() {
    let mut place = Place::new();
    place.admin.run(TABLE);
    let (alice, member, reader) = (place.role("alice"), place.role("member"), place.role("reader"));
    place.admin.run(&format!(
        "GRANT SELECT ON t TO {alice}; GRANT {alice} TO {member};
         GRANT USAGE ON SCHEMA {alice} TO {reader}"
    ));
    let mut owner = place.session(&alice);
    owner.create("st", "SELECT g FROM public.t");
    let calls = |table: &str| {
        [
            format!("SELECT pgstream.refresh_stream_table('{table}')"),
            format!("SELECT pgstream.alter_stream_table('{table}', schedule => '2d')"),
            format!("SELECT * FROM pgstream.verify_stream_table('{table}')"),
            format!("SELECT pgstream.repair_stream_table('{table}')"),
            format!("SELECT pgstream.resume_stream_table('{table}')"),
            format!("SELECT pgstream.drop_stream_table('{table}')"),
        ]
    };
    let table = format!("{alice}.st");
    let mut other = place.session(&reader);
    for call in calls(&table) {
        assert_eq!(other.error(&call).code, DENIED, "{call}");
    }
    assert_eq!(other.error(&format!("SELECT * FROM {table}")).code, DENIED);
    owner.run(&format!("GRANT SELECT ON st TO {reader}"));
    assert_eq!(other.rows(&format!("SELECT * FROM {table}")).len(), 12);
    assert_eq!(other.error(&format!("DELETE FROM {table}")).code, DENIED);
    owner.run(&format!("GRANT ALL ON st TO {reader}"));
    assert_eq!(other.error(&format!("DELETE FROM {table}")).code, "42809");
    for call in calls(&table) {
        assert_eq!(other.error(&call).code, DENIED, "{call}");
    }
    let mut by_membership = place.session(&member);
    for call in calls(&table) {
        by_membership.run(&call);
    }
    owner.create("st", "SELECT g FROM public.t");
    calls(&table).iter().for_each(|call| place.admin.run(call));
}

#[test]
fn a_dropped_stream_table_is_dropped_in_the_name_of_who_drops_it() {
    let mut place = Place::new();
    place.admin.run(TABLE);
    let (alice, bob) = (place.role("alice"), place.role("bob"));
    place.admin.run(&format!("GRANT SELECT ON t TO {alice}; GRANT ALL ON SCHEMA {alice} TO {bob}"));
    let mut owner = place.session(&alice);
    owner.create("st", "SELECT g FROM public.t");
    owner.run(&format!("GRANT SELECT ON st TO {bob}"));
    let mut other = place.session(&bob);
    other.run(&format!("CREATE VIEW mine AS SELECT * FROM {alice}.st"));
    assert_eq!(owner.error("SELECT pgstream.drop_stream_table('st')").code, "2BP01");
    other.run("DROP VIEW mine");
    owner.run("SELECT pgstream.drop_stream_table('st')");
    assert_eq!(place.admin.value("SELECT count(*) FROM pgstream.pgs_change_tracking"), "0");
}

#[test]
fn nothing_that_an_owner_plants_runs_as_the_superuser_who_refreshes() {
    let mut place = Place::new();
    let alice = place.role("alice");
    let mut session = place.session(&alice);
    session.run(&format!(
        "{SPY};
         CREATE TABLE s (id int PRIMARY KEY, g int, v int);
         INSERT INTO s SELECT i, i % 3, i FROM generate_series(1, 9) AS i;
         CREATE INDEX ON s ((v + spy(1)));
         CREATE UNIQUE INDEX ON s (g, id) WHERE v > spy(-100);
         ALTER TABLE s ADD CHECK (spy(v) = v);
         CREATE DOMAIN d AS int CHECK (spy(VALUE) > -1000);
         CREATE TYPE pair AS (a d, b int);
         CREATE FUNCTION t_spy() RETURNS trigger LANGUAGE plpgsql AS
           $$BEGIN EXECUTE format('SELECT %I.spy(1)', TG_TABLE_SCHEMA); RETURN NEW; END$$"
    ));
    let queries = [
        "SELECT g, count(*) AS n, spy(g) AS p FROM s GROUP BY g",
        "SELECT s.id, x FROM s, unnest('{1,2}'::d[]) AS x WHERE s.v > spy(2)",
        "SELECT id, '(1,2)'::pair AS p FROM s",
        "SELECT id, v::d AS v FROM s WHERE g = ANY ('{1,2}'::d[])",
        "SELECT g, max(v) AS m FROM (SELECT * FROM s ORDER BY v LIMIT spy(5)) AS q GROUP BY g",
        "SELECT id, rank() OVER (ORDER BY spy(v)) AS r FROM s",
    ];
    for (number, query) in queries.iter().enumerate() {
        let table = format!("st_{number}");
        session.create(&table, query);
        session.run(&format!(
            "CREATE INDEX ON {table} ((spy(1))); ALTER TABLE {table} ADD CHECK (spy(1) = 1);
             CREATE TRIGGER a AFTER INSERT OR UPDATE OR DELETE ON {table}
               FOR EACH ROW EXECUTE FUNCTION t_spy()"
        ));
    }
    session.run("INSERT INTO s VALUES (20, 1, 20); UPDATE s SET v = v + 1 WHERE id < 3; DELETE FROM s WHERE id = 5");
    let mut fresh = place.database.session();
    for (number, query) in queries.iter().enumerate() {
        let table = format!("{alice}.st_{number}");
        fresh.refresh(&table);
        fresh.run(&format!("SELECT * FROM pgstream.explain_st('{table}')"));
        fresh.run(&format!("SELECT * FROM pgstream.verify_stream_table('{table}')"));
        assert_right(&mut session, &table, query);
        session.run(&format!("UPDATE s SET v = v + 1 WHERE id = {number} + 1"));
        fresh.run(&format!(
            "UPDATE pgstream.pgs_stream_tables SET needs_reinit = true WHERE pgs_relid = '{table}'::regclass"
        ));
        fresh.refresh(&table);
        assert_eq!(last_action(&mut fresh), "REINITIALIZE");
        fresh
            .run(&format!("SELECT pgstream.alter_stream_table('{table}', refresh_mode => 'FULL')"));
        fresh.refresh(&table);
        fresh.run(&format!(
            "SELECT pgstream.alter_stream_table('{table}', refresh_mode => 'DIFFERENTIAL')"
        ));
        fresh.refresh(&table);
        fresh.run(&format!("SELECT pgstream.repair_stream_table('{table}')"));
    }
    // It was there all the time.
    session.run("ALTER FUNCTION spy(int) VOLATILE");
    assert!(session.take_notices().iter().any(|it| it.contains("spy ran")));
    place.admin.run("SET client_min_messages = error");
    let error = place.admin.error(&format!("SELECT {alice}.spy(1)"));
    assert_eq!(error.code, "ZZ001");
}

#[test]
fn a_change_of_type_runs_what_an_owner_has_planted_as_the_owner() {
    let mut place = Place::new();
    let alice = place.role("alice");
    let mut session = place.session(&alice);
    session.run(&format!(
        "CREATE FUNCTION planted() RETURNS bool LANGUAGE plpgsql IMMUTABLE AS
           $$BEGIN IF current_user <> '{alice}' THEN RAISE 'ran as %', current_user; END IF; RETURN true; END$$;
         CREATE DOMAIN d AS text CHECK (planted());
         CREATE TABLE s (id int PRIMARY KEY, v varchar(10));
         INSERT INTO s VALUES (1, 'x')"
    ));
    session.create("st", "SELECT id, v FROM s");
    session.run("ALTER TABLE st ADD CHECK (planted() AND v IS NOT NULL); CREATE INDEX ON st ((planted() AND v = ''))");
    let change = |ty: &str| format!("ALTER TABLE {alice}.s ALTER COLUMN v TYPE {ty}");
    session.run(&change("text"));
    session.run(&change("d"));
    place.admin.run(&change("varchar(20)"));
    session.refresh("st");
    assert_right(&mut session, "st", "SELECT id, v FROM s");
}

/// As for a view, a query means what it meant to its owner, whatever those who own what it reads, or may
/// create functions where its functions are, make of it.
#[test]
fn a_change_of_type_runs_nothing_of_others_as_the_owner_of_a_reader() {
    const OVERLOADS: &str = "CREATE FUNCTION pubf.f(bigint) RETURNS int IMMUTABLE RETURN spy(1)";
    const MY_TO_INT: &str = "CREATE FUNCTION toint(my) RETURNS int IMMUTABLE RETURN spy(1);
        CREATE CAST (my AS int) WITH FUNCTION toint(my) AS IMPLICIT";
    const MOOD_TO_JSON: &str =
        "CREATE FUNCTION tojson(mood) RETURNS json IMMUTABLE RETURN to_json(spy(1));
        CREATE CAST (mood AS json) WITH FUNCTION tojson(mood)";
    for (query, planted, change) in [
        ("SELECT id, a FROM t", "", "TABLE t ALTER a TYPE dom"),
        ("SELECT id FROM t WHERE a > 0", "", "TABLE t ALTER a TYPE dom"),
        ("SELECT id, a FROM t", "", "TABLE t ALTER a TYPE dom[] USING ARRAY[a]"),
        (
            "SELECT id, a FROM t",
            "CREATE TYPE span AS RANGE (subtype = dom)",
            "TABLE t ALTER a TYPE span USING NULL",
        ),
        (
            "SELECT id, a FROM t",
            "CREATE TYPE deep AS (x dom[])",
            "TABLE t ALTER a TYPE deep USING row(ARRAY[a])",
        ),
        ("SELECT id, coalesce(a, '1') AS a FROM t", "", "TABLE t ALTER a TYPE my USING row(a)"),
        ("SELECT id, a + 1 AS b FROM t", MY_TO_INT, "TABLE t ALTER a TYPE my USING row(a)"),
        ("SELECT id, m FROM t", MY_TO_INT, "TABLE t ALTER m TYPE int USING 1"),
        ("SELECT id, to_jsonb(a) AS a FROM t", MOOD_TO_JSON, "TABLE t ALTER a TYPE mood USING 'x'"),
        ("SELECT id, pubf.f(a) AS b FROM t", OVERLOADS, "TABLE t ALTER a TYPE bigint"),
        (
            "SELECT id, a OPERATOR(pubf.<+>) 1 AS b FROM t",
            "CREATE FUNCTION f(bigint, int) RETURNS int IMMUTABLE RETURN spy(1);
          CREATE OPERATOR pubf.<+> (FUNCTION = f, LEFTARG = bigint, RIGHTARG = int)",
            "TABLE t ALTER a TYPE bigint",
        ),
        (
            "SELECT id % 2 AS g, pubf.agg(a) AS b FROM t GROUP BY 1",
            "CREATE FUNCTION step(bigint, bigint) RETURNS bigint IMMUTABLE RETURN spy(1);
          CREATE AGGREGATE pubf.agg(bigint) (SFUNC = step, STYPE = bigint)",
            "TABLE t ALTER a TYPE bigint",
        ),
        (
            "SELECT id, pubf.g(a, '(1)') AS b FROM t",
            "CREATE FUNCTION pubf.g(bigint, my) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1'",
            "TABLE t ALTER a TYPE bigint",
        ),
        ("SELECT id, a FROM parted", "", "TABLE parted ALTER a TYPE dom"),
        ("SELECT id, a FROM parent", "", "TABLE parent ALTER a TYPE dom"),
        ("SELECT id, a FROM child", "", "TABLE parent ALTER a TYPE dom"),
        ("SELECT id, a FROM typed", "", "TYPE pair ALTER ATTRIBUTE a TYPE dom CASCADE"),
        ("SELECT id, a FROM own", "", "TABLE t ALTER a TYPE dom"),
        ("SELECT to_json(t) AS t FROM t", "", "TABLE t ALTER a TYPE dom"),
        ("SELECT id, (SELECT min(t::text) FROM t) AS m FROM typed", "", "TABLE t ALTER a TYPE dom"),
        ("SELECT to_jsonb(t) AS t FROM t", MOOD_TO_JSON, "TABLE t ALTER a TYPE mood USING 'x'"),
        ("SELECT to_json(parent) AS j FROM parent", "", "TABLE parent ALTER a TYPE dom"),
        ("SELECT to_json(child) AS j FROM child", "", "TABLE parent ALTER a TYPE dom"),
        (
            "SELECT to_json(typed) AS j FROM typed",
            "",
            "TYPE pair ALTER ATTRIBUTE a TYPE dom CASCADE",
        ),
        ("SELECT count(own) AS n FROM own", "", "TABLE t ALTER a TYPE dom"),
    ] {
        let mut place = Place::new();
        let mal = place.role("mal");
        place.admin.run(&format!(
            "CREATE SCHEMA pubf; GRANT USAGE, CREATE ON SCHEMA pubf TO {mal}; SET search_path = {mal}, public;
             CREATE FUNCTION pubf.f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
             CREATE FUNCTION pubf.g(int, \"any\") RETURNS int LANGUAGE internal IMMUTABLE AS 'int4up';
             CREATE OPERATOR pubf.<+> (FUNCTION = int4pl, LEFTARG = int, RIGHTARG = int);
             CREATE AGGREGATE pubf.agg(int) (SFUNC = int4pl, STYPE = int)"
        ));
        let mut session = place.session(&mal);
        session.run(&format!(
            "{SPY}; CREATE DOMAIN dom AS int CHECK (spy(VALUE) = VALUE); CREATE TYPE my AS (x dom); CREATE TYPE mood AS ENUM ('x');
             CREATE TABLE t (id int PRIMARY KEY, a int, m my); INSERT INTO t VALUES (1, 1, row(1));
             CREATE TYPE pair AS (id int, a int); CREATE TABLE typed OF pair;
             CREATE TABLE parted (id int, a int) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF parted DEFAULT;
             CREATE TABLE parent (id int, a int); CREATE TABLE child () INHERITS (parent)"
        ));
        if query.contains("own") {
            session.create("own", "SELECT id, a FROM t");
        }
        place.admin.create("public.st", query);
        session.run(planted);
        let error = session.error(&format!("ALTER {change}"));
        assert_eq!(error.code, "0A000", "{query}: {change}: {error}");
        assert!(error.message.contains("type of a column used by stream table"), "{error}");
        session.run("INSERT INTO t VALUES (2, 2, row(2))");
        place.admin.refresh("public.st");
        assert_right(&mut place.admin, "public.st", query);
    }
}

/// They are analyzed anew, too, when the columns of the stream table get other types.
#[test]
fn a_change_of_type_gives_no_other_functions_to_indexes_and_conditions_of_a_reader() {
    for planted in [
        "CREATE INDEX ON st ((pubf.f(a)))",
        "CREATE INDEX ON st (id) WHERE pubf.f(a) > 0",
        "ALTER TABLE st ADD CHECK (pubf.f(a) > 0)",
        "CREATE STATISTICS ON (pubf.f(a)), id FROM st",
    ] {
        let mut place = Place::new();
        let mal = place.role("mal");
        place.admin.run(&format!(
            "CREATE SCHEMA pubf; GRANT USAGE, CREATE ON SCHEMA pubf TO {mal};
             CREATE FUNCTION pubf.f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1'"
        ));
        let mut session = place.session(&mal);
        session.run("CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t VALUES (1, 1)");
        place.admin.create("st", &format!("SELECT id, a FROM {mal}.t"));
        place.admin.run(planted);
        session.run(&format!(
            "{SPY}; CREATE FUNCTION pubf.f(bigint) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN {mal}.spy(1); END'"
        ));
        let error = session.error("ALTER TABLE t ALTER a TYPE bigint");
        assert_eq!(error.code, "0A000", "{planted}: {error}");
        place.admin.refresh("st");
    }
}

/// Those who may act as the owner anyway.
#[test]
fn a_change_of_type_may_bring_in_what_belongs_to_the_owner_of_a_reader_or_to_who_acts_for_him() {
    let mut place = Place::new();
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|it| place.role(it));
    place.admin.run(&format!(
        "CREATE TYPE public.mood AS ENUM ('1', '2'); GRANT {alice} TO {carol}; CREATE SCHEMA pubf;
         CREATE FUNCTION pubf.f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
         CREATE FUNCTION pubf.f(bigint) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1::int';
         CREATE FUNCTION pubf.f(numeric) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1::int';
         ALTER FUNCTION pubf.f(numeric) OWNER TO {carol};
         GRANT USAGE ON SCHEMA pubf, {alice}, {bob}, {carol} TO PUBLIC"
    ));
    let domain = |of: &str| {
        format!("CREATE FUNCTION holds(text) RETURNS bool LANGUAGE plpgsql AS
                   $$BEGIN IF current_user = '{bob}' THEN RETURN true; END IF; RETURN current_user = '{alice}'; END$$;
                 CREATE DOMAIN {of}.dom AS text CHECK ({of}.holds(VALUE))")
    };
    for role in [&alice, &carol] {
        place.session(role).run(&domain(role));
    }
    let mut owner = place.session(&bob);
    owner.run(&format!(
        "CREATE TABLE t (id int PRIMARY KEY, a int, b text); INSERT INTO t VALUES (1, 1, '1'); GRANT SELECT ON t TO {alice}"
    ));
    let query =
        format!("SELECT id, a, pubf.f(a) AS f, b, b || '!' AS c, t::text AS t FROM {bob}.t");
    let mut session = place.session(&alice);
    session.create("st", &query);
    for change in [
        "a TYPE bigint".to_owned(),
        "a TYPE numeric".to_owned(),
        format!("b TYPE {alice}.dom"),
        format!("b TYPE {carol}.dom"),
        "b TYPE text".to_owned(),
        "b TYPE varchar(20)".to_owned(),
    ] {
        owner.run(&format!("ALTER TABLE t ALTER {change}"));
        owner.run("INSERT INTO t SELECT max(id) + 1, 2, '2' FROM t");
        session.refresh("st");
        assert_right(&mut session, "st", &query);
    }
    session.create("plain", &format!("SELECT b FROM {bob}.t"));
    session.run("SELECT pgstream.drop_stream_table('st')");
    owner.run("ALTER TABLE t ALTER b TYPE public.mood USING b::text::public.mood");
    session.refresh("plain");
    assert_right(&mut session, "plain", &format!("SELECT b FROM {bob}.t"));
}

/// Names that others can guess may be taken.
#[test]
fn whoever_may_create_in_a_schema_is_in_nobodys_way_there() {
    let mut place = Place::new();
    let [alice, mal] = ["alice", "mal"].map(|it| place.role(it));
    place.admin.run(TABLE);
    place.admin.run(&format!(
        "GRANT SELECT ON public.t TO {alice}; GRANT CREATE ON SCHEMA public TO {alice}, {mal}"
    ));
    let mut session = place.session(&alice);
    session.create("public.st", "SELECT id, v FROM t");
    place.session(&mal).run(
        "DO $$ BEGIN FOR i IN 1..20 LOOP
             EXECUTE format('CREATE FUNCTION public.pg_stream_query_%s() RETURNS int LANGUAGE sql AS $f$SELECT 1$f$', i);
             EXECUTE format('CREATE TYPE public.pg_stream_query_%s AS (x int)', i);
             EXECUTE format('CREATE TYPE public.query_%s AS (x int)', i);
         END LOOP; END $$",
    );
    place.admin.run("ALTER TABLE t ALTER COLUMN v TYPE bigint");
    session.create("public.another", "SELECT id, g FROM t");
    for (table, query) in
        [("public.st", "SELECT id, v FROM t"), ("public.another", "SELECT id, g FROM t")]
    {
        session.refresh(table);
        assert_right(&mut session, table, query);
    }
}

/// Rights on the schema of a stream table matter when it is created, and to its refreshes.
#[test]
fn a_type_changes_whatever_rights_the_owner_of_a_reader_has_lost() {
    let mut place = Place::new();
    let alice = place.role("alice");
    place.admin.run(TABLE);
    place.admin.run(&format!(
        "GRANT SELECT ON public.t TO {alice}; CREATE SCHEMA shelf;
         GRANT CREATE, USAGE ON SCHEMA shelf TO {alice}"
    ));
    let mut session = place.session(&alice);
    session.create("shelf.st", "SELECT id, g, v FROM t WHERE v > 1");
    session.run(
        "CREATE INDEX ON shelf.st (v); CREATE INDEX ON shelf.st ((g + v)) WHERE v > 2;
         ALTER TABLE shelf.st ADD CHECK (v < 1000); CREATE STATISTICS ON g, v FROM shelf.st",
    );
    for (revoke, ty) in [("CREATE", "bigint"), ("USAGE", "numeric")] {
        place.admin.run(&format!(
            "REVOKE {revoke} ON SCHEMA shelf FROM {alice};
             ALTER TABLE t ALTER COLUMN v TYPE {ty}; UPDATE t SET v = v + 1"
        ));
    }
    let ty = "SELECT DISTINCT pg_typeof(v) FROM shelf.st";
    assert_eq!(place.admin.value(ty), "numeric");
    assert_eq!(session.error("SELECT pgstream.refresh_stream_table('shelf.st')").code, DENIED);
    place.admin.run(&format!("GRANT USAGE ON SCHEMA shelf TO {alice}"));
    session.refresh("shelf.st");
    assert_right(&mut session, "shelf.st", "SELECT id, g, v FROM t WHERE v > 1");
}

/// It takes the rights of its owner to read a query.
#[test]
fn a_type_stays_when_the_owner_of_a_reader_may_not_use_what_his_query_names() {
    let mut place = Place::new();
    let alice = place.role("alice");
    place.admin.run(&format!(
        "CREATE SCHEMA data; CREATE TABLE data.t (id int PRIMARY KEY, v int);
         GRANT SELECT ON data.t TO {alice}; GRANT USAGE ON SCHEMA data TO {alice}"
    ));
    place.session(&alice).create("st", "SELECT id, v FROM data.t");
    let change = "ALTER TABLE data.t ALTER COLUMN v TYPE bigint";
    place.admin.run(&format!("REVOKE USAGE ON SCHEMA data FROM {alice}"));
    let error = place.admin.error(change);
    assert_eq!(error.code, DENIED);
    assert!(error.detail.contains("Its owner lacks a right"), "{error}");
    place.admin.run(&format!("GRANT USAGE ON SCHEMA data TO {alice}; {change}"));
}

#[test]
fn what_runs_in_a_refresh_cannot_change_its_role_or_leave_anything_behind() {
    let mut place = Place::new();
    let alice = place.role("alice");
    let mut session = place.session(&alice);
    session.run(
        "CREATE TABLE s (id int PRIMARY KEY); INSERT INTO s VALUES (1);
         CREATE FUNCTION attack() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN EXECUTE current_setting('test.attack'); RETURN NULL; END$$",
    );
    session.create("st", "SELECT id FROM s");
    session.run("CREATE TRIGGER a AFTER INSERT ON st FOR EACH ROW EXECUTE FUNCTION attack()");
    for attack in [
        "RESET ROLE",
        "SET ROLE postgres",
        "SET SESSION AUTHORIZATION DEFAULT",
        "CREATE TEMP TABLE pgs_stream_tables (pgs_id int)",
        "CREATE TEMP VIEW pg_class AS SELECT 1",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "LISTEN everything",
        "SET session_replication_role = replica",
        "UPDATE pgstream.pgs_stream_tables SET status = 'ERROR'",
        "DELETE FROM pgstream.pgs_refresh_history",
    ] {
        session.run("INSERT INTO s SELECT max(id) + 1 FROM s");
        let mut superuser = place.database.session();
        superuser.run(&format!("SET test.attack = $a${attack}$a$"));
        let error = superuser.error(&format!("SELECT pgstream.refresh_stream_table('{alice}.st')"));
        assert!(["42501", "42809"].contains(&error.code.as_str()), "{attack}: {error}");
    }
    session.run("INSERT INTO s SELECT max(id) + 1 FROM s");
    place.admin.run(
        "SET test.attack = $a$SELECT set_config('search_path', 'nowhere', false), set_config('work_mem', '77kB', false)$a$",
    );
    place.admin.refresh(&format!("{alice}.st"));
    assert_eq!(place.admin.value("SELECT current_user, current_setting('work_mem') = '77kB', current_setting('search_path') = 'nowhere'"), "postgres|f|f");
    assert_right(&mut session, "st", "SELECT id FROM s");
}

#[test]
fn a_full_refresh_fires_no_triggers_of_the_table_and_all_others() {
    let mut place = Place::new();
    let (alice, bob) = (place.role("alice"), place.role("bob"));
    let mut victim = place.session(&bob);
    victim.run(&format!(
        "CREATE TABLE checked (x int);
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
           $$BEGIN RAISE EXCEPTION 'not allowed' USING ERRCODE = 'ZZ002'; END$$;
         CREATE TRIGGER refuse BEFORE INSERT ON checked FOR EACH ROW EXECUTE FUNCTION refuse();
         GRANT USAGE ON SCHEMA {bob} TO {alice}; GRANT INSERT ON checked TO {alice}"
    ));
    let mut session = place.session(&alice);
    session.run(&format!(
        "CREATE TABLE s (id int); INSERT INTO s VALUES (1);
         CREATE FUNCTION sneak(int) RETURNS int LANGUAGE plpgsql VOLATILE AS
           $$BEGIN INSERT INTO {bob}.checked VALUES (1); RETURN 1; END$$;
         CREATE FUNCTION harmless(int) RETURNS text LANGUAGE sql VOLATILE AS
           $$SELECT current_setting('session_replication_role')$$"
    ));
    let error = session.error(
        "SELECT pgstream.create_stream_table('st', 'SELECT sneak(id) FROM s', '1d', 'FULL')",
    );
    assert_eq!(error.message, "not allowed", "{error}");
    session.run("SELECT pgstream.create_stream_table('st', 'SELECT harmless(id) AS r FROM s', '1d', 'FULL')");
    session.run(
        "CREATE TABLE fired (x int);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
           $$BEGIN INSERT INTO fired VALUES (1); RETURN NEW; END$$;
         CREATE TRIGGER a BEFORE INSERT ON st FOR EACH ROW EXECUTE FUNCTION note();
         CREATE TRIGGER b AFTER INSERT ON st REFERENCING NEW TABLE AS new
           FOR EACH STATEMENT EXECUTE FUNCTION note();
         INSERT INTO s VALUES (2)",
    );
    session.run("SET search_path = pg_catalog");
    session.refresh(&format!("{alice}.st"));
    session.run(&format!("SET search_path = {alice}"));
    assert_eq!(session.rows("SELECT r FROM st"), ["origin", "origin"]);
    assert_eq!(session.value("SELECT count(*) FROM fired"), "0");
}

#[test]
fn shadowed_names_change_nothing() {
    let mut place = Place::new();
    let alice = place.role("alice");
    let mut session = place.session(&alice);
    session.run(
        "CREATE TABLE s (id int PRIMARY KEY, g int, v int, x text);
         INSERT INTO s SELECT i, i % 3, i, 'x' || i FROM generate_series(1, 9) AS i",
    );
    let queries = [
        "SELECT g, count(*) AS n, sum(v) AS s, max(x) AS m FROM s GROUP BY g",
        "SELECT a.id, b.x FROM s AS a JOIN s AS b ON a.id = b.v WHERE a.v < 8",
        "SELECT DISTINCT lower(x) AS x FROM s",
        "SELECT id FROM s WHERE NOT EXISTS (SELECT FROM s AS t WHERE t.id = s.id + 1)",
    ];
    let hostile = "
        CREATE FUNCTION wrong(int, int) RETURNS bool LANGUAGE sql AS 'SELECT false';
        CREATE FUNCTION wrong(bigint, bigint) RETURNS bool LANGUAGE sql AS 'SELECT false';
        CREATE FUNCTION wrong(oid, oid) RETURNS bool LANGUAGE sql AS 'SELECT false';
        CREATE FUNCTION wrong(text, text) RETURNS bool LANGUAGE sql AS 'SELECT false';
        CREATE OPERATOR = (FUNCTION = wrong, LEFTARG = int, RIGHTARG = int);
        CREATE OPERATOR = (FUNCTION = wrong, LEFTARG = bigint, RIGHTARG = bigint);
        CREATE OPERATOR = (FUNCTION = wrong, LEFTARG = oid, RIGHTARG = oid);
        CREATE OPERATOR = (FUNCTION = wrong, LEFTARG = text, RIGHTARG = text);
        CREATE OPERATOR < (FUNCTION = wrong, LEFTARG = int, RIGHTARG = int);
        CREATE OPERATOR <> (FUNCTION = wrong, LEFTARG = bigint, RIGHTARG = bigint);
        CREATE FUNCTION lower(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT 'hijacked'$$;
        CREATE FUNCTION array_remove(bigint[], bigint) RETURNS bigint[] LANGUAGE sql AS 'SELECT NULL::bigint[]';
        CREATE FUNCTION quote_ident(text) RETURNS text LANGUAGE sql AS $$SELECT 'postgres'$$;
        CREATE AGGREGATE sum(int) (SFUNC = int4pl, STYPE = int, INITCOND = '1000');
        CREATE AGGREGATE max(text) (SFUNC = textcat, STYPE = text);
        CREATE TABLE pgs_stream_tables (pgs_id int); CREATE TABLE pg_class (oid int);
        CREATE TABLE __pgs_removed (x int); CREATE TABLE __pgs_keys (x int);";
    for (number, query) in queries.iter().enumerate() {
        session.create(&format!("st_{number}"), query);
    }
    session.run(&format!(
        "{hostile} SET search_path = {alice}, pg_catalog, public;
         CREATE TEMP TABLE pgs_stream_tables (x int); CREATE TEMP TABLE pgs_dependencies (x int);
         CREATE TEMP TABLE pg_namespace (x int)"
    ));
    session.run("INSERT INTO s VALUES (20, 1, 20, 'New'); UPDATE s SET v = v + 2 WHERE pg_catalog.int4lt(id, 4); DELETE FROM s WHERE pg_catalog.int4eq(id, 5)");
    let mut honest = place.session(&alice);
    honest.run("SET search_path = pg_catalog");
    for (number, query) in queries.iter().enumerate() {
        session.refresh(&format!("st_{number}"));
        let query = query
            .replace("FROM s", &format!("FROM {alice}.s"))
            .replace("JOIN s", &format!("JOIN {alice}.s"));
        let query =
            query.replace("s.id + 1", "q.id + 1").replace(".s WHERE NOT", ".s AS q WHERE NOT");
        assert_right(&mut honest, &format!("{alice}.st_{number}"), &query);
    }
    // What a query means is settled when it is created, as for a view.
    session
        .create("st_own", &format!("SELECT lower(x) AS l, sum(v) AS s FROM {alice}.s GROUP BY 1"));
    session.refresh("st_own");
    assert_eq!(honest.rows(&format!("SELECT l FROM {alice}.st_own")), ["hijacked"]);
    session.run("SELECT * FROM pgstream.verify_stream_table('st_own')");
    session.run("SELECT pgstream.drop_stream_table('st_own')");
    assert_eq!(
        place
            .admin
            .value("SELECT count(*) FROM pgstream.pgs_stream_tables WHERE pgs_name = 'st_own'"),
        "0"
    );
}

#[test]
fn names_are_names_whatever_is_in_them() {
    let mut place = Place::new();
    let long = "ü".repeat(31) + "x";
    let names = [
        "a'; DROP TABLE victim; --",
        "a\"b",
        "$$; DROP TABLE victim; $$",
        "line\nbreak\ttab",
        "back\\slash",
        "%s %I $1 {}",
        "{\"event\":\"fake\"}",
        "__pgs_row_id'",
        "SELECT",
        "тест 😀",
        long.as_str(),
    ];
    place.admin.run("CREATE TABLE victim (x int); LISTEN pg_stream_alert");
    for name in names {
        let quoted = format!("\"{}\"", name.replace('"', "\"\""));
        let literal = |it: &str| format!("E'{}'", it.replace('\\', "\\\\").replace('\'', "\\'"));
        place.admin.run(&format!(
            "CREATE SCHEMA {quoted}; CREATE TABLE {quoted}.{quoted} ({quoted} int PRIMARY KEY, g text);
             INSERT INTO {quoted}.{quoted} VALUES (1, {0}), (2, 'b')",
            literal(name)
        ));
        let st = format!(
            "{quoted}.\"st of {}\"",
            name.replace('"', "\"\"").chars().take(10).collect::<String>()
        );
        let query = format!(
            "SELECT g AS {quoted}, count(*) AS n, max({quoted}) AS m FROM {quoted}.{quoted} GROUP BY g"
        );
        place.admin.run(&format!(
            "SELECT pgstream.create_stream_table({}, {}, '1d', 'DIFFERENTIAL')",
            literal(&st),
            literal(&query)
        ));
        place.admin.run(&format!(
            "INSERT INTO {quoted}.{quoted} VALUES (3, 'b'), (4, 'c'); DELETE FROM {quoted}.{quoted} WHERE {quoted} = 1"
        ));
        place.admin.run(&format!("SELECT pgstream.refresh_stream_table({})", literal(&st)));
        assert_eq!(last_action(&mut place.admin), "DIFFERENTIAL", "{name}");
        assert_eq!(
            place.admin.rows(&format!("SELECT {quoted}, n, m FROM {st} ORDER BY 1")),
            ["b|2|3", "c|1|4"],
            "{name}"
        );
        place.admin.run(&format!("SELECT * FROM pgstream.explain_st({})", literal(&st)));
        assert_eq!(
            place
                .admin
                .rows(&format!("SELECT * FROM pgstream.verify_stream_table({})", literal(&st))),
            [""; 0]
        );
        for payload in place.admin.notifications("pg_stream_alert") {
            let read = place.admin.value(&format!(
                "SELECT j ->> 'event', j ->> 'pgs_schema' = {} FROM (SELECT {}::jsonb) AS q(j)",
                literal(name),
                literal(&payload)
            ));
            assert_eq!(read, "refresh_completed|t", "{payload}");
        }
        place.admin.run(&format!("SELECT pgstream.drop_stream_table({})", literal(&st)));
    }
    assert_eq!(place.admin.value("SELECT count(*) FROM victim"), "0");
    for schedule in
        ["1m'; DROP TABLE victim; --", "$$", "1m\n; SELECT 1", "* * * * * ; rm", "\u{1}"]
    {
        let error = place.admin.error(&format!(
            "SELECT pgstream.create_stream_table('st', 'SELECT x FROM victim', $q${schedule}$q$)"
        ));
        assert!(["22023", "42601"].contains(&error.code.as_str()), "{schedule}: {error}");
    }
    for query in [
        "SELECT x FROM victim; DROP TABLE victim",
        "SELECT x FROM victim) AS q; DROP TABLE victim; --",
        "DROP TABLE victim",
    ] {
        let error = place.admin.try_create("st", query).expect_err("not one SELECT");
        assert!(["0A000", "42601"].contains(&error.code.as_str()), "{query}: {error}");
    }
}

#[test]
fn nothing_of_ours_is_writable_by_others() {
    is_closed_to(|_, _, _| {});
}

#[test]
fn default_privileges_open_nothing_of_ours() {
    is_closed_to(|admin, alice, bob| {
        admin.run("DROP EXTENSION pg_stream");
        for what in ["TABLES", "SEQUENCES", "FUNCTIONS", "SCHEMAS"] {
            for (owner, whom) in
                [("postgres", bob), ("postgres", "PUBLIC"), (alice, bob), (alice, "PUBLIC")]
            {
                admin.run(&format!(
                    "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT ALL ON {what} TO {whom}"
                ));
            }
        }
        admin.run("CREATE EXTENSION pg_stream");
    });
}

/// What is closed to everybody, after `prepare` has been told the superuser's session, who owns a stream
/// table, and another role.
fn is_closed_to(prepare: impl Fn(&mut Session, &str, &str)) {
    let mut place = Place::new();
    let (alice, bob) = (place.role("alice"), place.role("bob"));
    prepare(&mut place.admin, &alice, &bob);
    place.admin.run(TABLE);
    place.admin.run(&format!("GRANT SELECT ON t TO {alice}"));
    let mut session = place.session(&alice);
    session.create("st", "SELECT n, count(*) AS c FROM (SELECT g, count(*) AS n FROM public.t GROUP BY g) AS q GROUP BY n");
    // Tables, views and sequences: at most SELECT for everybody.
    let acls = "
        SELECT c.oid::regclass, a.privilege_type, a.grantee::regrole
        FROM pg_class AS c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS a
        WHERE c.relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname LIKE 'pgstream%')
          AND c.relkind IN ('r', 'v', 'S', 'p', 'm') AND a.grantee <> c.relowner
          AND NOT (a.grantee = 0 AND a.privilege_type = 'SELECT'
                   AND c.relnamespace = 'pgstream'::regnamespace)";
    assert_eq!(place.admin.rows(acls), [""; 0]);
    let schemas = "
        SELECT nspname, a.privilege_type FROM pg_namespace AS n,
               aclexplode(coalesce(nspacl, acldefault('n', nspowner))) AS a
        WHERE nspname LIKE 'pgstream%' AND a.grantee <> nspowner ORDER BY 1";
    assert_eq!(place.admin.rows(schemas), ["pgstream|USAGE", "pgstream_state|USAGE"]);
    // What everybody may call.
    let functions = "
        SELECT string_agg(DISTINCT p.proname, ' ' ORDER BY p.proname)
        FROM pg_proc AS p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
        WHERE p.pronamespace = 'pgstream'::regnamespace AND a.grantee = 0
          AND p.prorettype IN ('trigger'::regtype, 'event_trigger'::regtype)
           OR p.proname = 'announce_extension' AND a.grantee = 0";
    // Dumps make the trigger that guards a stream table, in the name of its owner.
    assert_eq!(place.admin.value(functions), "guard_stream_table");
    assert_eq!(
        place.admin.value("SELECT count(*) FROM pg_proc WHERE pronamespace = 'pgstream'::regnamespace AND prosecdef"),
        "0"
    );
    let buffer =
        place.admin.value("SELECT format('pgstream_changes.changes_%s', 't'::regclass::oid)");
    let stage = place.admin.value(
        "SELECT format('pgstream_state.stage_%s_0', pgs_id) FROM pgstream.pgs_stream_tables",
    );
    let query = place
        .admin
        .value("SELECT format('pgstream_state.query_%s', pgs_id) FROM pgstream.pgs_stream_tables");
    let mut other = place.session(&bob);
    for statement in [
        format!("SELECT * FROM {buffer}"),
        format!("INSERT INTO {buffer} DEFAULT VALUES"),
        format!("SELECT * FROM {stage}"),
        format!("DELETE FROM {stage}"),
        format!("SELECT * FROM {query}"),
        format!("DROP TABLE {stage}"),
        format!("DROP VIEW {query}"),
        "UPDATE pgstream.pgs_stream_tables SET needs_reinit = true".to_owned(),
        "INSERT INTO pgstream.pgs_refresh_history (pgs_id) VALUES (1)".to_owned(),
        "DELETE FROM pgstream.pgs_change_tracking".to_owned(),
        "TRUNCATE pgstream.pgs_dependencies".to_owned(),
        "SELECT nextval('pgstream.pgs_stream_tables_pgs_id_seq')".to_owned(),
        "CREATE TABLE pgstream.x (i int)".to_owned(),
        "CREATE TABLE pgstream_state.stage_1_9 (i int)".to_owned(),
        "CREATE TABLE pgstream_changes.changes_1 (i int)".to_owned(),
        "SELECT pgstream.announce_extension()".to_owned(),
        "SELECT pgstream.on_sql_drop()".to_owned(),
        "SELECT pgstream.protect_catalog()".to_owned(),
        "CREATE TABLE mine (i int); CREATE TRIGGER x AFTER INSERT ON mine EXECUTE FUNCTION pgstream.capture('1')".to_owned(),
        "DROP EVENT TRIGGER pgstream_on_drop".to_owned(),
        "ALTER EVENT TRIGGER pgstream_on_drop DISABLE".to_owned(),
        "SET pg_stream.enabled = off".to_owned(),
        "DROP EXTENSION pg_stream".to_owned(),
    ] {
        assert_eq!(other.error(&statement).code, DENIED, "{statement}");
    }
    // The owner of the stream table does not get to its sources' changes either.
    assert_eq!(session.error(&format!("SELECT * FROM {buffer}")).code, DENIED);
    assert_eq!(session.error(&format!("DELETE FROM {stage}")).code, "42809");
}

/// Neither in the hidden column that tells rows apart, nor in hidden state.
#[test]
fn keys_that_the_owner_may_not_read_are_stored_nowhere() {
    let mut place = Place::new();
    let alice = place.role("alice");
    place.admin.run(&format!(
        "CREATE TABLE people (ssn bigint PRIMARY KEY, city int); INSERT INTO people VALUES (123456789, 1), (987654321, 2), (555555555, 1);
         CREATE VIEW cities AS SELECT city FROM people; GRANT SELECT ON cities TO {alice};
         CREATE TABLE acc (email text PRIMARY KEY, grp int, x int); INSERT INTO acc VALUES ('eve@corp', 1, 10), ('ann@corp', 1, 20);
         GRANT SELECT (grp, x) ON acc TO {alice}"
    ));
    let mut session = place.session(&alice);
    let queries = [
        ("a", "SELECT city FROM cities"),
        ("b", "SELECT c.city, acc.x FROM cities AS c JOIN acc ON acc.grp = c.city"),
        ("c", "SELECT x, rank() OVER (PARTITION BY grp ORDER BY x) AS r FROM acc"),
        ("d", "SELECT DISTINCT ON (grp) grp, x FROM acc ORDER BY grp, x"),
    ];
    queries.iter().for_each(|(name, query)| session.create(name, query));
    place.admin.run("INSERT INTO people VALUES (444444444, 1); UPDATE people SET city = 2 WHERE ssn = 555555555; INSERT INTO acc VALUES ('bob@corp', 1, 15); DELETE FROM acc WHERE x = 20");
    for (name, query) in queries {
        session.refresh(name);
        assert_right(
            &mut session,
            name,
            &query.replace("acc", "public.acc").replace("public.acc.", "acc."),
        );
        assert_eq!(last_action(&mut session), "DIFFERENTIAL");
    }
    let tables = session.rows(
        "SELECT oid::regclass FROM pg_class WHERE relkind = 'r' AND relowner = current_user::regrole",
    );
    assert!(tables.len() > 4, "with stages: {tables:?}");
    for table in tables {
        for row in session.rows(&format!("SELECT to_jsonb(q) FROM {table} AS q")) {
            for secret in ["123456789", "987654321", "555555555", "444444444", "@corp"] {
                assert!(!row.contains(secret), "{table}: {row}");
            }
        }
    }
}

/// How many parts of a stream table are evaluated as a whole, and because of which views.
fn wholes(session: &mut Session, table: &str) -> Vec<String> {
    session.rows(&format!(
        "SELECT substring(value FROM 'whole, for (.*), and the difference') FROM pgstream.explain_st('{table}')
         WHERE property LIKE '%strategy' AND value LIKE 'evaluated as a whole%'"
    ))
}

/// Panics when a table of the session's user shows a value that nobody told it.
fn assert_no_secret(session: &mut Session, context: &str) {
    let tables = session.rows(
        "SELECT oid::regclass FROM pg_class WHERE relkind = 'r' AND relowner = current_user::regrole",
    );
    for table in tables {
        let rows = session.rows(&format!("SELECT to_jsonb(q) FROM {table} AS q"));
        let found = rows.iter().find(|it| it.contains("secret"));
        assert_eq!(found, None, "{table} {context}");
    }
}

/// Refreshes stream tables, given with their queries, after a change.
#[track_caller]
fn follow_without_secrets(
    session: &mut Session,
    tables: &[(String, impl AsRef<str>)],
    change: &str,
) {
    for (table, query) in tables {
        let query = query.as_ref();
        session.refresh(table);
        assert_eq!(last_action(session), "DIFFERENTIAL", "{change} {query}");
        assert_right(session, table, query);
    }
    assert_no_secret(session, change);
}

const SECRETS: &str = "
    CREATE TABLE base (id int PRIMARY KEY, a int, secret text);
    INSERT INTO base SELECT i, i % 3, 'secret ' || i % 5 FROM generate_series(1, 12) AS i;
    CREATE TABLE part (id int PRIMARY KEY, a int, secret text); INSERT INTO part SELECT * FROM base;
    CREATE TABLE pub (id int PRIMARY KEY, a int); INSERT INTO pub SELECT i, i FROM generate_series(0, 4) AS i;
    CREATE VIEW plain AS SELECT a, secret FROM base WHERE secret <> 'x';
    CREATE VIEW by_pub AS SELECT a, count(*) AS n FROM pub GROUP BY a;";

/// Changes of these tables.
const SECRET_CHANGES: [&str; 3] = [
    "INSERT INTO base VALUES (20, 1, 'secret 20'), (21, 7, 'secret 1'); INSERT INTO part VALUES (20, 1, 'secret 20')",
    "UPDATE base SET secret = 'secret 21' WHERE id < 4; UPDATE part SET secret = 'secret 3', a = a + 1 WHERE id < 4; UPDATE pub SET a = a + 1",
    "DELETE FROM base WHERE id % 4 = 0; DELETE FROM part WHERE id = 20; DELETE FROM pub WHERE id = 4",
];

/// As with a materialized view, only what it shows.
#[test]
fn who_is_given_a_stream_table_gets_nothing_of_what_it_is_made_from() {
    for give in ["ALTER TABLE alice.st OWNER TO heir", "REASSIGN OWNED BY alice TO heir"] {
        let mut place = Place::new();
        let [alice, heir] = ["alice", "heir"].map(|it| place.role(it));
        let give = give.replace("alice", &alice).replace("heir", &heir);
        place.admin.run(&format!(
            "CREATE TABLE base (id int PRIMARY KEY, a int, secret text); INSERT INTO base VALUES (1, 1, 'top secret 1'), (2, 1, 'top secret 2');
             GRANT SELECT ON base TO {alice}; GRANT USAGE ON SCHEMA {alice} TO {heir}"
        ));
        let query = "SELECT a, count(*) AS n FROM (SELECT DISTINCT a, secret FROM public.base) AS x GROUP BY a";
        place.session(&alice).create("st", query);
        place.admin.run(&format!("BEGIN; {give}; ROLLBACK; INSERT INTO base VALUES (3, 1, 'x')"));
        place.admin.refresh(&format!("{alice}.st"));
        assert_eq!(last_action(&mut place.admin), "DIFFERENTIAL");
        place.admin.run(&give);
        let mut session = place.session(&heir);
        let table = format!("{alice}.st");
        let mine = "SELECT count(*) FROM pg_class WHERE relowner = current_user::regrole AND relnamespace = 'pgstream_state'::regnamespace AND relkind = 'r'";
        assert_eq!(session.value(mine), "0", "{give}");
        assert_eq!(session.rows(&format!("SELECT a, n FROM {table}")), ["1|3"], "{give}");
        let refresh = format!("SELECT pgstream.refresh_stream_table('{table}')");
        assert_eq!(session.error(&refresh).code, DENIED);
        place.admin.run(&format!("SELECT * FROM pgstream.explain_st('{table}')"));
        place
            .admin
            .run(&format!("GRANT SELECT ON base TO {heir}; INSERT INTO base VALUES (4, 2, 'y')"));
        session.run(&format!("SELECT * FROM pgstream.verify_stream_table('{table}')"));
        session.run(&refresh);
        assert_right(&mut session, &table, query);
        place.admin.run("UPDATE base SET a = 3 WHERE id < 3");
        session.run(&refresh);
        assert_eq!(last_action(&mut place.admin), "DIFFERENTIAL");
        assert_right(&mut session, &table, query);
    }
}

#[test]
fn what_a_view_hides_is_stored_nowhere() {
    let mut place = Place::new();
    let alice = place.role("alice");
    place.admin.run(&format!(
        "{SECRETS} GRANT SELECT (id, a) ON part TO {alice}; GRANT SELECT ON pub TO {alice}"
    ));
    let hiding = [
        "SELECT a, count(*) AS n FROM (SELECT DISTINCT a, secret FROM base) AS q GROUP BY a",
        "SELECT a, max(secret) > 'm' AS y FROM base GROUP BY a",
        "SELECT a, row_number() OVER (PARTITION BY secret ORDER BY id) AS r FROM base",
        "SELECT a FROM base WHERE secret <> 'x' GROUP BY a, secret",
        "SELECT a FROM base GROUP BY a HAVING max(secret) <> 'secret 4'",
        "SELECT a, (SELECT count(*) FROM base AS c WHERE c.secret = b.secret) AS n FROM base AS b",
        "SELECT a FROM base AS b WHERE EXISTS (SELECT FROM base AS c WHERE c.secret = b.secret AND c.id <> b.id)",
        "SELECT b.a, c.a AS y FROM base AS b LEFT JOIN base AS c ON c.secret = b.secret AND c.id = b.id + 5",
        "SELECT DISTINCT ON (secret) id % 2 AS y FROM base ORDER BY secret, id",
        "SELECT id FROM (SELECT id, secret FROM base ORDER BY secret, id LIMIT 5) AS q",
        "SELECT length(secret) AS y FROM (SELECT secret FROM base UNION SELECT secret FROM part) AS q",
        "SELECT length(secret) AS y FROM (SELECT secret FROM base EXCEPT ALL SELECT secret FROM part) AS q",
        "WITH w AS (SELECT DISTINCT a, secret FROM base) SELECT a FROM w",
        "WITH RECURSIVE r AS (SELECT id, secret FROM base WHERE id < 3 UNION SELECT b.id, b.secret FROM r JOIN base AS b ON b.id = r.id + 3) SELECT id FROM r",
        "SELECT q.id, l.n FROM pub AS q, LATERAL (SELECT count(DISTINCT secret) AS n FROM base AS b WHERE b.a = q.a) AS l",
        "SELECT a, count(*) AS n FROM plain GROUP BY a, secret",
        "SELECT a, count(DISTINCT secret) AS n FROM part GROUP BY a",
    ];
    let by_rules = [
        // The conditions of a view without more do not get out of it.
        "SELECT a FROM base WHERE secret <> 'x'",
        "SELECT b.a FROM base AS b JOIN part AS c ON b.secret = c.secret AND c.id > 3",
        "SELECT b.a FROM part AS b JOIN pub AS p ON length(b.secret) = p.id + 6",
        "SELECT b.a FROM base AS b JOIN by_pub AS p ON p.a = b.a AND b.secret <> 'x'",
        // Nothing is hidden here.
        "SELECT a, count(*) AS n FROM pub GROUP BY a",
        "SELECT a, count(*) AS n FROM part GROUP BY a",
        "SELECT n, count(*) FROM by_pub GROUP BY n",
    ];
    let queries = [
        "SELECT * FROM VIEW",
        "SELECT x, row_number() OVER (ORDER BY x) AS r FROM VIEW AS v(x)",
        "SELECT p.id, v.x FROM pub AS p LEFT JOIN VIEW AS v(x) ON v.x = p.id",
    ];
    let mut session = place.session(&alice);
    let mut tables = Vec::new();
    for (number, view) in hiding.iter().chain(&by_rules).enumerate() {
        let name = if number % 2 == 0 { format!("v{number}") } else { format!("above{number}") };
        place.admin.run(&format!(
            "CREATE VIEW v{number} AS {view}; CREATE VIEW above{number} AS SELECT * FROM v{number};
             GRANT SELECT ON {name} TO {alice}"
        ));
        for (at, query) in queries.iter().enumerate() {
            let (table, query) = (format!("st_{number}_{at}"), query.replace("VIEW", &name));
            session.create(&table, &query);
            let expected = match number < hiding.len() {
                true => vec![format!("the view public.v{number} over what the owner may not read")],
                false => Vec::new(),
            };
            assert_eq!(wholes(&mut session, &table), expected, "{query} of {view}");
            tables.push((table, query));
        }
    }
    assert_no_secret(&mut session, "at first");
    for change in SECRET_CHANGES {
        place.admin.run(change);
        follow_without_secrets(&mut session, &tables, change);
    }
    // Rows that look the same have the same identity, unless what tells them apart may be read.
    for number in 0..hiding.len() + 4 {
        let ids = format!(
            "SELECT count(DISTINCT __pgs_row_id) = count(DISTINCT to_jsonb(q) - '__pgs_row_id' - '__pgs_count') FROM st_{number}_0 AS q"
        );
        assert_eq!(session.value(&ids), "t", "{number}");
    }
}

/// Of a view that has rules, parts may have none.
#[test]
fn what_has_no_rule_in_a_view_that_hides_something_is_not_stored_by_itself() {
    let mut place = Place::new();
    let alice = place.role("alice");
    place.admin.run(&format!(
        "{SECRETS} CREATE TABLE child () INHERITS (base); INSERT INTO child VALUES (30, 1, 'secret 30');
         CREATE VIEW own_rows AS SELECT a FROM ONLY base WHERE secret <> 'secret 2';
         CREATE VIEW whole_rows AS SELECT a, secret, to_jsonb(q) <> '0' AS b FROM (SELECT a, secret FROM base) AS q;
         CREATE VIEW above AS SELECT a, b FROM (SELECT a, secret, b FROM whole_rows) AS q WHERE secret <> 'x';
         GRANT SELECT ON own_rows, above TO {alice}; GRANT SELECT (a, b) ON whole_rows TO {alice}"
    ));
    let queries = [
        "SELECT a FROM public.own_rows",
        "SELECT a, b FROM public.whole_rows",
        "SELECT a, b, count(*) AS n FROM public.whole_rows GROUP BY a, b",
        "SELECT b, count(*) AS n FROM public.above GROUP BY b",
    ];
    let mut session = place.session(&alice);
    let mut tables = Vec::new();
    for (number, query) in queries.iter().enumerate() {
        let table = format!("st_{number}");
        session.create(&table, query);
        assert_eq!(wholes(&mut session, &table).len(), 1, "{query}");
        tables.push((table, query));
    }
    assert_no_secret(&mut session, "at first");
    for change in SECRET_CHANGES {
        place.admin.run(change);
        follow_without_secrets(&mut session, &tables, change);
    }
}

#[test]
fn what_only_a_policy_or_a_virtual_column_reads_is_stored_nowhere() {
    let mut place = Place::new();
    let alice = place.role("alice");
    place.admin.run(&format!(
        "CREATE TABLE ps (id int UNIQUE NOT NULL, a int, tag text, hidden text, n int GENERATED ALWAYS AS (length(hidden)) VIRTUAL);
         INSERT INTO ps SELECT i, i % 3, CASE WHEN i % 2 = 0 THEN 'secret' END, 'secret ' || i FROM generate_series(1, 12) AS i;
         ALTER TABLE ps ENABLE ROW LEVEL SECURITY; CREATE POLICY pp ON ps FOR SELECT USING (tag = 'secret');
         CREATE TABLE tags (tag text); INSERT INTO tags VALUES ('secret'); CREATE TABLE own (a int); INSERT INTO own SELECT i % 4 FROM generate_series(1, 6) AS i;
         GRANT SELECT (a, n) ON ps TO {alice}; GRANT SELECT ON own, tags TO {alice};
         CREATE TABLE deep (a int, tag text, hidden text); INSERT INTO deep SELECT a, tag, hidden FROM ps; GRANT SELECT (a) ON deep TO {alice};
         ALTER TABLE deep ENABLE ROW LEVEL SECURITY; CREATE POLICY pp ON deep FOR SELECT USING (tag IN (SELECT t.tag FROM tags AS t))"
    ));
    let reader = place.role("reader");
    place.admin.run(&format!(
        "GRANT SELECT ON deep, tags TO {reader}; CREATE VIEW v AS SELECT a, hidden FROM deep WHERE hidden <> 'x';
         ALTER VIEW v OWNER TO {reader}; GRANT SELECT (a) ON v TO {alice}"
    ));
    let queries = [
        "SELECT a, n FROM public.ps",
        "SELECT a, row_number() OVER (ORDER BY a) AS r FROM public.ps",
        "SELECT a, n, row_number() OVER (PARTITION BY n ORDER BY a) AS r FROM public.ps",
        "SELECT o.a, p.n, sum(p.n) OVER (PARTITION BY o.a) AS s FROM public.own AS o LEFT JOIN public.ps AS p ON p.a = o.a",
        "SELECT p.a, rank() OVER (ORDER BY o.a) AS r FROM public.own AS o JOIN public.ps AS p ON p.a = o.a",
        "SELECT DISTINCT ON (a) a, n FROM public.ps ORDER BY a, n",
        "SELECT a, count(*) AS c FROM (SELECT a, n FROM public.ps ORDER BY n, a LIMIT 3) AS q GROUP BY a",
        "SELECT a, count(DISTINCT n) AS c FROM public.ps GROUP BY a",
        "WITH RECURSIVE r AS (SELECT a FROM public.own UNION SELECT p.n FROM r JOIN public.ps AS p ON p.a = r.a) SELECT a FROM r",
        "SELECT a, (SELECT count(*) FROM public.ps AS p WHERE p.a = o.a) AS c FROM public.own AS o",
        "SELECT count(*) AS c FROM public.ps",
        "SELECT a FROM public.own WHERE EXISTS (SELECT FROM public.ps)",
        "SELECT a, count(*) AS c FROM public.deep GROUP BY a",
        "SELECT a, count(*) AS c FROM public.v GROUP BY a",
    ];
    let mut session = place.session(&alice);
    let mut tables = Vec::new();
    for (number, query) in queries.iter().enumerate() {
        let table = format!("st_{number}");
        session.create(&table, query);
        tables.push((table, query));
    }
    assert_no_secret(&mut session, "at first");
    for change in [
        "INSERT INTO ps VALUES (20, 1, 'secret', 'secret 20'), (21, 0, 'no', 'secret 21'); INSERT INTO deep VALUES (1, 'secret', 'secret 4')",
        "UPDATE ps SET tag = 'secret' WHERE id < 4; UPDATE ps SET hidden = 'secret' WHERE id > 6; UPDATE deep SET a = a + 1",
        "UPDATE ps SET tag = 'no' WHERE id IN (2, 20); DELETE FROM ps WHERE id > 10; DELETE FROM deep WHERE a = 2",
    ] {
        place.admin.run(change);
        follow_without_secrets(&mut session, &tables, change);
    }
}

#[test]
fn a_view_has_rules_while_the_owner_may_read_what_it_hides() {
    let mut place = Place::new();
    let (alice, team) = (place.role("alice"), place.role("team"));
    place.admin.run(&format!(
        "{SECRETS} CREATE VIEW v AS SELECT a, count(DISTINCT secret) AS n FROM base GROUP BY a; GRANT SELECT ON v TO {alice};
         GRANT SELECT ON base TO {team}; GRANT SELECT (id, a) ON part TO {team}; GRANT SELECT (a) ON part TO {alice}"
    ));
    let mut session = place.session(&alice);
    let (query, keyed) = ("SELECT a, n FROM public.v", "SELECT a FROM public.part");
    session.create("st", query);
    session.create("keyed", keyed);
    let ids = "SELECT count(*) = count(DISTINCT __pgs_row_id) FROM keyed";
    // Neither of a membership nor of an attribute of a role is there a message.
    for (change, may_read, may_read_key) in [
        (format!("GRANT {team} TO {alice}"), true, true),
        (format!("REVOKE {team} FROM {alice}"), false, false),
        (format!("ALTER ROLE {alice} SUPERUSER"), true, true),
        (format!("ALTER ROLE {alice} NOSUPERUSER"), false, false),
        (format!("GRANT SELECT (a, secret) ON base TO {alice}"), true, false),
        (format!("REVOKE SELECT (secret) ON base FROM {alice}"), false, false),
        (format!("GRANT {team} TO {alice}"), true, true),
        ("ALTER TABLE base ENABLE ROW LEVEL SECURITY".to_owned(), false, true),
        ("ALTER TABLE base DISABLE ROW LEVEL SECURITY".to_owned(), true, true),
    ] {
        place.admin.run(&change);
        for table in ["st", "keyed"] {
            session.refresh(table);
        }
        assert_eq!(wholes(&mut session, "st").is_empty(), may_read, "{change}");
        assert_eq!(session.value(ids) == "t", may_read_key, "{change}");
        if !may_read {
            assert_no_secret(&mut session, &change);
        }
        place.admin.run("UPDATE base SET secret = secret || 'x' WHERE id % 3 = 1; UPDATE part SET a = a + 1 WHERE id = 3");
        for (table, query) in [("st", query), ("keyed", keyed)] {
            session.refresh(table);
            assert_eq!(last_action(&mut session), "DIFFERENTIAL", "{change}");
            assert_right(&mut session, table, query);
        }
    }
}

#[test]
fn triggers_on_a_stream_table_write_neither_to_it_nor_to_its_state() {
    let mut place = Place::new();
    let alice = place.role("alice");
    let mut session = place.session(&alice);
    session.run("CREATE TABLE t (id int PRIMARY KEY, x int); INSERT INTO t VALUES (1, 1)");
    session.create(
        "st",
        "SELECT x, count(*) AS n FROM (SELECT DISTINCT x, id FROM t) AS q GROUP BY x",
    );
    session.create("other", "SELECT id, x FROM t");
    for change in [
        "INSERT INTO st SELECT * FROM st",
        "DELETE FROM st",
        "UPDATE st SET n = 0",
        "DELETE FROM other",
        "DELETE FROM pgstream_state.stage_1_0",
    ] {
        session.run(&format!(
            "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql SET search_path = {alice} AS
               $$BEGIN {change}; RETURN NULL; END$$;
             CREATE TRIGGER meddle AFTER INSERT ON st FOR EACH ROW EXECUTE FUNCTION meddle();
             INSERT INTO t SELECT max(id) + 1, max(id) + 1 FROM t"
        ));
        assert_eq!(
            session.error("SELECT pgstream.refresh_stream_table('st')").code,
            "42809",
            "{change}"
        );
        session.run("DROP FUNCTION meddle CASCADE");
        session.refresh("st");
        assert_right(&mut session, "st", "SELECT x, count(*) AS n FROM t GROUP BY x");
    }
    // A refresh of another one by a trigger writes there.
    session.run(&format!(
        "CREATE FUNCTION refresh() RETURNS trigger LANGUAGE plpgsql SET search_path = {alice}, public AS
           $$BEGIN PERFORM pgstream.refresh_stream_table('{alice}.other'); RETURN NULL; END$$;
         CREATE TRIGGER refresh AFTER INSERT ON st FOR EACH STATEMENT EXECUTE FUNCTION refresh();
         INSERT INTO t VALUES (100, 100)"
    ));
    session.refresh("st");
    assert_right(&mut session, "st", "SELECT x, count(*) AS n FROM t GROUP BY x");
    assert_right(&mut session, "other", "SELECT id, x FROM t");
}

/// What a statement of a refresh calls is no part of it, whatever it says of itself.
#[test]
fn functions_that_a_refresh_calls_cannot_write_to_the_stream_table() {
    let mut place = Place::new();
    let alice = place.role("alice");
    let mut session = place.session(&alice);
    session.run(&format!(
        "CREATE TABLE t (id int PRIMARY KEY, x int);
         CREATE FUNCTION write(int) RETURNS int LANGUAGE plpgsql VOLATILE SET search_path = {alice} AS $$
         BEGIN IF $1 > 70 THEN INSERT INTO st (x, n, __pgs_row_id, __pgs_count) VALUES (-1, 1, 1, 1); END IF; RETURN $1; END $$;
         CREATE FUNCTION lie(int) RETURNS int LANGUAGE plpgsql IMMUTABLE SET search_path = {alice} AS $$
         BEGIN RETURN write($1); END $$"
    ));
    let totals = "SELECT x, count(*) AS n FROM t GROUP BY x";
    let through_the_query = "SELECT lie(x) AS x, count(*) AS n FROM t GROUP BY lie(x)";
    let (none, check) = ("SELECT 1", "ALTER TABLE st ADD CHECK (lie(x) IS NOT NULL)");
    let trigger =
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TRIGGER nothing AFTER INSERT ON st EXECUTE FUNCTION nothing()";
    for (query, more) in [
        (totals, check.to_owned()),
        // With that, rows are written by statements.
        (totals, format!("{check}; {trigger}")),
        (totals, "CREATE INDEX ON st (lie(x))".to_owned()),
        (through_the_query, none.to_owned()),
        (through_the_query, trigger.to_owned()),
    ] {
        session.create("st", query);
        session.run(&more);
        for change in ["INSERT INTO t VALUES (1, 1)", "INSERT INTO t VALUES (2, 80)"] {
            session.run(change);
            match session.try_run("SELECT pgstream.refresh_stream_table('st')") {
                Ok(()) => assert_right(&mut session, "st", totals),
                Err(error) => assert_eq!(error.code, "42809", "{more}: {error}"),
            }
        }
        session.run("DELETE FROM t WHERE id = 2; UPDATE t SET x = 60");
        session.refresh("st");
        assert_right(&mut session, "st", totals);
        session.run("SELECT pgstream.drop_stream_table('st'); DROP FUNCTION IF EXISTS nothing(); DELETE FROM t");
    }
}

#[test]
fn functions_of_ours_survive_any_arguments() {
    let mut place = Place::new();
    let alice = place.role("alice");
    let mut session = place.session(&alice);
    for call in [
        "pgstream.row_id()",
        "pgstream.row_id(NULL::text, 1, '{}'::json, ROW(1, NULL)::record)",
        "pgstream.row_id(VARIADIC ARRAY[1, 2])",
        "pgstream.key_id(NULL::text, 1)",
        "pgstream.key_id('{}'::json)",
        "pgstream.key_id(VARIADIC ARRAY[1, 2])",
        "pgstream.key_id('unknown')",
        "pgstream.add_scale_counts(NULL, NULL)",
        "pgstream.add_scale_counts('{}', '{NULL,1}')",
        "pgstream.add_scale_counts('{{1,2},{3,4}}', '{9223372036854775807}')",
        "pgstream.add_scale_counts('[5:6]={1,9223372036854775807}', '{1,1,1}')",
        "pgstream.max_scale('{NULL,NULL}')",
        "pgstream.max_scale('{{1,2},{3,4}}')",
        "pgstream.max_scale('{}')",
        "(SELECT pgstream.scale_counts(x, 9223372036854775807) FROM (VALUES (1.5), (1.25), (NULL), ('NaN'), ('Infinity')) AS q(x))",
        "(SELECT pgstream.scale_counts(1.5, NULL))",
        "pgstream.is_single(-1)",
        "pgstream.is_single(9223372036854775807)",
        "pgstream.parse_duration_seconds('99999999999999999999w')",
        "pgstream.parse_duration_seconds('9223372036854775807s1s')",
        "pgstream.explain_plan('')",
        "pgstream.explain_plan('SELECT 1; SELECT 2')",
        "pgstream.stream_table_id('pg_class')",
        "pgstream.stream_table_id('')",
        "pgstream.get_staleness('a.b.c.d')",
        "pgstream.capture()",
        "pgstream.scale_count(NULL, 1.0, 1)",
    ] {
        let pid = session.pid();
        let _any = session.try_rows(&format!("SELECT {call}"));
        assert_eq!(session.pid(), pid, "{call}");
    }
}

#[test]
fn a_trigger_that_only_has_a_name_of_ours_is_none_of_ours() {
    let mut place = Place::new();
    place.admin.run(TABLE);
    place.admin.create("st", "SELECT g, v FROM t");
    let bob = place.role("bob");
    let oid = place.admin.value("SELECT 't'::regclass::oid");
    let mut other = place.session(&bob);
    other.run("CREATE TABLE mine (x int); CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'");
    for name in [format!("pg_stream_cdc_{oid}"), format!("pg_stream_cdc_truncate_{oid}")] {
        let _refused = other.try_run(&format!(
            "CREATE TRIGGER {name} AFTER INSERT ON mine FOR EACH STATEMENT EXECUTE FUNCTION nothing()"
        ));
        let _refused = other.try_run("ALTER TABLE mine ADD COLUMN y int");
        let _refused = other.try_run("ALTER TABLE mine DROP COLUMN y");
        let _refused = other.try_run(&format!("DROP TRIGGER {name} ON mine"));
    }
    other.run("DROP TABLE mine");
    assert_eq!(place.admin.value("SELECT needs_reinit FROM pgstream.pgs_stream_tables"), "f");
}

#[test]
fn a_capture_trigger_that_its_table_owner_renames_captures_once() {
    let mut place = Place::new();
    let alice = place.role("alice");
    let mut session = place.session(&alice);
    session.run("CREATE TABLE s (id int PRIMARY KEY, v int); INSERT INTO s VALUES (1, 1), (2, 2)");
    let watched = Watched::create(
        &mut session,
        "st",
        "SELECT v, count(*) AS n FROM s GROUP BY v",
        Comparison::Text,
    );
    let name = session.value("SELECT format('pg_stream_cdc_%s', 's'::regclass::oid)");
    let renamed = session.try_run(&format!("ALTER TRIGGER {name} ON s RENAME TO harmless"));
    session.run("INSERT INTO s VALUES (3, 1), (4, 9)");
    session.refresh("st");
    watched.compare(&mut session, "a renamed trigger");
    session.run("INSERT INTO s VALUES (5, 1), (6, 9); DELETE FROM s WHERE id = 3");
    session.refresh("st");
    watched.compare(&mut session, "a renamed trigger, again");
    assert!(renamed.is_err() || session.value("SELECT count(*) FROM pg_trigger WHERE tgrelid = 's'::regclass AND tgfoid = 'pgstream.capture()'::regprocedure") == "5");
}

#[test]
fn the_guard_of_a_stream_table_stays() {
    let mut place = Place::new();
    let alice = place.role("alice");
    let mut session = place.session(&alice);
    session.run("CREATE TABLE s (id int PRIMARY KEY); INSERT INTO s VALUES (1), (2)");
    let watched = Watched::create(&mut session, "st", "SELECT id FROM s", Comparison::Text);
    for statement in [
        "ALTER TABLE st DISABLE TRIGGER pg_stream_guard",
        "ALTER TABLE st DISABLE TRIGGER ALL",
        "DROP TRIGGER pg_stream_guard ON st",
        "ALTER TRIGGER pg_stream_guard ON st RENAME TO x",
        "ALTER TABLE st ENABLE REPLICA TRIGGER pg_stream_guard",
    ] {
        // Refused, or without effect on who may write.
        let _refused = session.try_run(statement);
        assert!(session.try_run("DELETE FROM st").is_err(), "{statement}");
    }
    session.run("INSERT INTO s VALUES (3)");
    session.refresh("st");
    watched.compare(&mut session, "attacks on the guard");
}

#[test]
fn row_security_of_a_source_applies_as_to_the_owner() {
    let mut place = Place::new();
    place.admin.run(TABLE);
    let (alice, all_seeing) = (place.role("alice"), place.role("seeing"));
    place.admin.run(&format!(
        "ALTER ROLE {all_seeing} BYPASSRLS; GRANT SELECT ON t TO {alice}, {all_seeing};
         ALTER TABLE t ENABLE ROW LEVEL SECURITY;
         CREATE POLICY odd ON t FOR SELECT TO {alice} USING (v % 2 = 1);
         CREATE TABLE u (id int PRIMARY KEY, v int); INSERT INTO u SELECT i, i FROM generate_series(1, 30) AS i;
         GRANT SELECT ON u TO {alice}, {all_seeing}"
    ));
    let queries = [
        "SELECT id, g, v FROM public.t",
        "SELECT g, count(*) AS n, sum(v) AS s, max(v) AS m FROM public.t GROUP BY g",
        "SELECT u.id, t.g FROM public.u LEFT JOIN public.t ON u.v = t.v",
        "SELECT u.id FROM public.u WHERE NOT EXISTS (SELECT FROM public.t WHERE t.v = u.v)",
        "SELECT a.id, b.v FROM public.t AS a JOIN public.t AS b ON a.g = b.g",
        "SELECT v, row_number() OVER (PARTITION BY g ORDER BY v) AS r FROM public.t",
        "SELECT g, array_agg(v ORDER BY v) AS a FROM public.t GROUP BY g",
        "SELECT DISTINCT g FROM public.t UNION ALL SELECT v FROM public.u WHERE v IN (SELECT v FROM public.t)",
    ];
    let mut sessions = [place.session(&alice), place.session(&all_seeing)];
    for session in &mut sessions {
        for (number, query) in queries.iter().enumerate() {
            session.create(&format!("st_{number}"), query);
        }
    }
    let changes = [
        "INSERT INTO t VALUES (50, 1, 51), (51, 1, 52), (52, 7, 53)",
        "UPDATE t SET v = v + 1 WHERE id % 3 = 0",
        "UPDATE t SET g = g + 1 WHERE v % 2 = 0; DELETE FROM t WHERE id IN (2, 3, 51)",
        "INSERT INTO u VALUES (60, 52), (61, 51); DELETE FROM u WHERE v < 5",
    ];
    for change in changes {
        place.admin.run(change);
        for session in &mut sessions {
            for (number, query) in queries.iter().enumerate() {
                session.refresh(&format!("st_{number}"));
                assert_eq!(last_action(session), "DIFFERENTIAL", "{change} {query}");
                assert_right(session, &format!("st_{number}"), query);
            }
        }
    }
    // Whoever refreshes.
    place.admin.run("INSERT INTO t VALUES (70, 1, 71), (71, 1, 72); SET row_security = off");
    place.admin.refresh(&format!("{alice}.st_0"));
    assert_right(&mut sessions[0], "st_0", queries[0]);
    // A superuser sees all.
    place.admin.run("RESET row_security");
    place.admin.create("st", queries[0]);
    assert_right(&mut place.admin, "st", queries[0]);
}

#[test]
fn changes_of_policies_and_of_who_they_apply_to_are_met_by_a_rebuild() {
    let mut place = Place::new();
    place.admin.run(TABLE);
    let (alice, team) = (place.role("alice"), place.role("team"));
    place.admin.run(&format!("GRANT SELECT ON t TO {alice}"));
    let mut session = place.session(&alice);
    let query = "SELECT g, count(*) AS n FROM public.t GROUP BY g";
    session.create("st", query);
    let changes = [
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY".to_owned(),
        format!("CREATE POLICY p ON t TO {team} USING (v < 9)"),
        format!("GRANT {team} TO {alice}"),
        "ALTER POLICY p ON t USING (v > 4)".to_owned(),
        format!("CREATE POLICY q ON t AS RESTRICTIVE TO {alice} USING (g <> 1)"),
        format!("REVOKE {team} FROM {alice}"),
        format!("GRANT {team} TO {alice}"),
        "DROP POLICY q ON t".to_owned(),
        format!("ALTER ROLE {alice} BYPASSRLS"),
        format!("ALTER ROLE {alice} NOBYPASSRLS"),
        format!("ALTER POLICY p ON t TO {alice}"),
        "ALTER TABLE t DISABLE ROW LEVEL SECURITY".to_owned(),
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY".to_owned(),
        format!("ALTER TABLE t OWNER TO {alice}"),
        "ALTER TABLE t FORCE ROW LEVEL SECURITY".to_owned(),
        "ALTER TABLE t NO FORCE ROW LEVEL SECURITY".to_owned(),
    ];
    for (number, change) in changes.iter().enumerate() {
        place.admin.run(change);
        session.refresh("st");
        assert_right(&mut session, "st", query);
        let id = 100 + 2 * number;
        place.admin.run(&format!("INSERT INTO t VALUES ({id}, {number} % 4, 3), ({id} + 1, {number} % 3, 30); DELETE FROM t WHERE id = {number}"));
        session.refresh("st");
        assert_eq!(last_action(&mut session), "DIFFERENTIAL", "after {change}");
        assert_right(&mut session, "st", query);
    }
}

#[test]
fn policies_about_the_user_are_kept_by_changes_and_follow_a_rename() {
    let mut place = Place::new();
    let alice = place.role("alice");
    place.admin.run(&format!(
        "CREATE TABLE doc (id int PRIMARY KEY, who name, v int); GRANT SELECT ON doc TO {alice};
         INSERT INTO doc VALUES (1, '{alice}', 1), (2, 'nobody', 2);
         ALTER TABLE doc ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON doc USING (who = current_user)"
    ));
    let mut session = place.session(&alice);
    session.create("st", "SELECT id, v FROM public.doc");
    assert_eq!(session.rows("SELECT id FROM st"), ["1"]);
    place.admin.run(&format!(
        "INSERT INTO doc VALUES (3, '{alice}', 3), (4, 'postgres', 4), (5, '{alice}_renamed', 5)"
    ));
    place.admin.refresh(&format!("{alice}.st"));
    assert_eq!(last_action(&mut session), "DIFFERENTIAL");
    assert_eq!(session.rows("SELECT id FROM st ORDER BY 1"), ["1", "3"]);
    place.admin.run(&format!("ALTER ROLE {alice} RENAME TO {alice}_renamed"));
    place.admin.refresh(&format!("{alice}.st"));
    assert_eq!(session.rows("SELECT id FROM st ORDER BY 1"), ["5"]);
    place.admin.run(&format!("ALTER ROLE {alice}_renamed RENAME TO {alice}"));
}

/// While a refresh evaluates the query, its owner is who has logged in, whoever refreshes.
#[test]
fn policies_and_functions_about_the_session_show_the_owner_no_more() {
    let mut place = Place::new();
    let (alice, bob) = (place.role("alice"), place.role("bob"));
    place.admin.run(&format!(
        "CREATE TABLE by_name (id int PRIMARY KEY, who name); CREATE TABLE by_right (id int PRIMARY KEY);
         INSERT INTO by_name VALUES (1, '{alice}'), (2, 'postgres'), (3, '{bob}');
         INSERT INTO by_right VALUES (1); GRANT SELECT ON by_name, by_right TO {alice}; GRANT {alice} TO {bob};
         ALTER TABLE by_name ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON by_name USING (who = session_user);
         ALTER TABLE by_right ENABLE ROW LEVEL SECURITY;
         CREATE POLICY p ON by_right USING (current_setting('is_superuser') = 'on');
         CREATE FUNCTION asks() RETURNS name LANGUAGE plpgsql STABLE SECURITY DEFINER AS 'BEGIN RETURN session_user; END'"
    ));
    let mut session = place.session(&alice);
    let query = "SELECT id, who, public.asks() AS f FROM public.by_name";
    session.create("named", query);
    session.create("rights", "SELECT id FROM public.by_right");
    for (enter, current) in [
        ("SELECT 1".to_owned(), "postgres|postgres|on".to_owned()),
        (format!("SET ROLE {alice}"), format!("postgres|{alice}|off")),
        (format!("RESET ROLE; SET SESSION AUTHORIZATION {bob}"), format!("{bob}|{bob}|off")),
    ] {
        place.admin.run(&enter);
        for table in ["named", "rights"] {
            place.admin.run(&format!("SELECT pgstream.refresh_stream_table('{alice}.{table}')"));
            let _error = place
                .admin
                .error(&format!("SELECT pgstream.refresh_stream_table('{alice}.{table}'), 1 / 0"));
        }
        assert_right(&mut session, "named", query);
        assert_eq!(session.rows("SELECT id FROM named"), ["1"], "{enter}");
        assert_eq!(session.rows("SELECT id FROM rights"), [""; 0], "{enter}");
        let now = "SELECT session_user, current_user, current_setting('is_superuser')";
        assert_eq!(place.admin.value(now), current, "{enter}");
    }
    // Also when the query fails.
    place.admin.run("RESET SESSION AUTHORIZATION; CREATE OR REPLACE FUNCTION asks() RETURNS name LANGUAGE plpgsql STABLE AS 'BEGIN RAISE division_by_zero; END'");
    assert_eq!(
        place.admin.error(&format!("SELECT pgstream.refresh_stream_table('{alice}.named')")).code,
        "22012"
    );
    assert_eq!(
        place.admin.value("SELECT session_user, current_user, current_setting('is_superuser')"),
        "postgres|postgres|on"
    );
}

#[test]
fn policies_with_sub_queries_are_evaluated_as_a_whole_and_follow_their_tables() {
    let mut place = Place::new();
    place.admin.run(TABLE);
    let alice = place.role("alice");
    place.admin.run(&format!(
        "CREATE TABLE allowed (g int, who name); GRANT SELECT ON t, allowed TO {alice};
         INSERT INTO allowed VALUES (1, '{alice}'), (2, 'nobody');
         ALTER TABLE t ENABLE ROW LEVEL SECURITY;
         CREATE POLICY p ON t USING (g IN (SELECT a.g FROM public.allowed AS a WHERE a.who = current_user))"
    ));
    let mut session = place.session(&alice);
    let query = "SELECT g, sum(v) AS s FROM public.t GROUP BY g";
    // Does not read what the policy reads.
    let ids = "SELECT id FROM public.t";
    session.create("ids", ids);
    session.create("st", query);
    for change in [
        "INSERT INTO t VALUES (50, 1, 50), (51, 2, 51)".to_owned(),
        format!("INSERT INTO allowed VALUES (0, '{alice}')"),
        "DELETE FROM allowed WHERE g = 1".to_owned(),
        "UPDATE t SET g = 0 WHERE id = 51".to_owned(),
    ] {
        place.admin.run(&change);
        session.refresh("st");
        assert_eq!(last_action(&mut session), "DIFFERENTIAL", "{change}");
        assert_right(&mut session, "st", query);
        session.refresh("ids");
        assert_right(&mut session, "ids", ids);
    }
    place.admin.run("ALTER POLICY p ON t USING (g NOT IN (SELECT a.g FROM public.allowed AS a))");
    session.refresh("st");
    assert_right(&mut session, "st", query);
}

#[test]
fn functions_of_the_query_never_see_rows_that_a_policy_hides() {
    let mut place = Place::new();
    place.admin.run(TABLE);
    let alice = place.role("alice");
    place.admin.run(&format!(
        "GRANT SELECT ON t TO {alice}; ALTER TABLE t ENABLE ROW LEVEL SECURITY;
         CREATE POLICY small ON t USING (v < 100)"
    ));
    let mut session = place.session(&alice);
    session.run(
        "CREATE FUNCTION leak(int) RETURNS bool LANGUAGE plpgsql IMMUTABLE COST 0.0001 AS
           $$BEGIN IF $1 >= 100 THEN RAISE EXCEPTION 'leaked %', $1; END IF; RETURN true; END$$",
    );
    let queries = [
        "SELECT id FROM public.t WHERE leak(v)",
        "SELECT id, leak(v) AS l FROM public.t",
        "SELECT count(*) AS n FROM public.t WHERE leak(v)",
        "SELECT g, bool_and(leak(v)) AS l FROM public.t GROUP BY g",
        "SELECT a.id FROM public.t AS a JOIN public.t AS b ON a.g = b.g AND leak(a.v) AND leak(b.v)",
        "SELECT a.id FROM public.t AS a LEFT JOIN public.t AS b ON a.id = b.id AND leak(b.v)",
        "SELECT a.id FROM public.t AS a WHERE EXISTS (SELECT FROM public.t AS b WHERE b.id = a.id AND leak(b.v))",
    ];
    for (number, query) in queries.iter().enumerate() {
        session.create(&format!("st_{number}"), query);
    }
    for change in [
        "INSERT INTO t VALUES (200, 1, 200), (201, 1, 7), (202, 77, 300)",
        "UPDATE t SET v = v + 1000 WHERE id < 4",
        "UPDATE t SET v = v - 1000 WHERE id = 2; DELETE FROM t WHERE id = 200",
    ] {
        place.admin.run(change);
        for (number, query) in queries.iter().enumerate() {
            session.refresh(&format!("st_{number}"));
            assert_eq!(last_action(&mut session), "DIFFERENTIAL", "{change} {query}");
            assert_right(&mut session, &format!("st_{number}"), query);
        }
    }
}

#[test]
fn row_security_through_views_is_that_of_the_view_owner() {
    let mut place = Place::new();
    place.admin.run(TABLE);
    let (alice, bob) = (place.role("alice"), place.role("bob"));
    place.admin.run(&format!(
        "GRANT SELECT ON t TO {alice}, {bob}; GRANT USAGE ON SCHEMA {bob} TO {alice};
         ALTER TABLE t ENABLE ROW LEVEL SECURITY;
         CREATE POLICY a ON t TO {alice} USING (g = 0); CREATE POLICY b ON t TO {bob} USING (g = 1)"
    ));
    let mut owner = place.session(&bob);
    owner.run(&format!(
        "CREATE VIEW v AS SELECT id, g, v FROM public.t; GRANT SELECT ON v TO {alice}"
    ));
    let mut session = place.session(&alice);
    let query = format!("SELECT id, g FROM {bob}.v");
    session.create("st", &query);
    place.admin.run("INSERT INTO t VALUES (50, 1, 50), (51, 0, 51)");
    session.refresh("st");
    assert_eq!(last_action(&mut session), "DIFFERENTIAL");
    assert_right(&mut session, "st", &query);
    // As two roles, to whom it shows different rows.
    let both = format!("SELECT x.id FROM {bob}.v AS x JOIN public.t AS y ON x.v = y.v + 1");
    let aggregate =
        format!("SELECT (SELECT count(*) FROM {bob}.v) AS v, count(*) AS t FROM public.t");
    session.create("pairs", &both);
    session.create("counts", &aggregate);
    for change in [
        "INSERT INTO t VALUES (60, 1, 52), (61, 0, 51), (62, 2, 51)",
        "UPDATE t SET g = 1 - g WHERE g < 2 AND id % 2 = 0",
        "DELETE FROM t WHERE id > 60",
    ] {
        place.admin.run(change);
        for (name, query) in [("pairs", &both), ("counts", &aggregate)] {
            session.refresh(name);
            assert_right(&mut session, name, query);
            let action = format!("SELECT action FROM pgstream.get_refresh_history('{name}', 1)");
            assert_eq!(session.value(&action), "DIFFERENTIAL", "{change}");
        }
    }
    place.admin.run(&format!(
        "ALTER POLICY a ON t TO {alice} USING (g = 2); INSERT INTO t VALUES (80, 2, 1)"
    ));
    session.refresh("counts");
    assert_right(&mut session, "counts", &aggregate);
}

#[test]
fn row_security_that_an_owner_puts_on_the_stream_table_is_for_its_readers() {
    let mut place = Place::new();
    place.admin.run(TABLE);
    let (alice, reader) = (place.role("alice"), place.role("reader"));
    place
        .admin
        .run(&format!("GRANT SELECT ON t TO {alice}; GRANT USAGE ON SCHEMA {alice} TO {reader}"));
    let mut session = place.session(&alice);
    let query = "SELECT g, count(*) AS n FROM public.t GROUP BY g";
    session.create("st", query);
    session.create("plain", "SELECT id, v FROM public.t");
    session.run(&format!(
        "ALTER TABLE st ENABLE ROW LEVEL SECURITY; ALTER TABLE st FORCE ROW LEVEL SECURITY;
         CREATE POLICY p ON st TO {reader} USING (g = 1); GRANT SELECT ON st TO {reader};
         ALTER TABLE plain ENABLE ROW LEVEL SECURITY; ALTER TABLE plain FORCE ROW LEVEL SECURITY"
    ));
    for change in [
        "INSERT INTO t VALUES (50, 1, 50), (51, 5, 1)",
        "DELETE FROM t WHERE g = 0; UPDATE t SET v = 0 WHERE id < 9",
    ] {
        place.admin.run(change);
        for table in ["st", "plain"] {
            session.refresh(table);
            assert_eq!(last_action(&mut session), "DIFFERENTIAL");
        }
        assert_right(&mut place.admin, &format!("{alice}.st"), query);
        assert_right(&mut place.admin, &format!("{alice}.plain"), "SELECT id, v FROM public.t");
    }
    let mut other = place.session(&reader);
    assert_eq!(other.rows(&format!("SELECT g FROM {alice}.st")), ["1"]);
    place.admin.run(&format!("SELECT pgstream.alter_stream_table('{alice}.st', refresh_mode => 'FULL'); INSERT INTO t VALUES (60, 6, 6)"));
    session.refresh("st");
    assert_right(&mut place.admin, &format!("{alice}.st"), query);
}

#[test]
fn whoever_owns_the_database_but_is_no_superuser_cannot_take_the_extension_over() {
    let database = Database::new();
    let roles = Roles { names: vec![format!("boss_{}", database.name())] };
    let boss = roles.names[0].clone();
    let mut admin = database.session();
    admin.run(&format!(
        "CREATE ROLE {boss} CREATEROLE; ALTER DATABASE {} OWNER TO {boss}; {TABLE} ALTER TABLE t OWNER TO {boss}",
        database.name()
    ));
    let mut session = database.session();
    session.run(&format!("SET SESSION AUTHORIZATION {boss}"));
    session.create("st", "SELECT g, count(*) AS n FROM t GROUP BY g");
    for statement in [
        "DROP SCHEMA pgstream CASCADE",
        "DROP SCHEMA pgstream_changes CASCADE",
        "ALTER SCHEMA pgstream RENAME TO x",
        "ALTER SCHEMA pgstream_state OWNER TO CURRENT_USER",
        "CREATE TABLE pgstream_state.x (i int)",
        "DROP EVENT TRIGGER pgstream_on_drop",
        "ALTER EVENT TRIGGER pgstream_on_ddl_end DISABLE",
        "ALTER EXTENSION pg_stream DROP FUNCTION pgstream.capture()",
        "DROP EXTENSION pg_stream CASCADE",
        "CREATE EVENT TRIGGER x ON sql_drop EXECUTE FUNCTION pgstream.on_sql_drop()",
        "SET event_triggers = off",
        "SET session_replication_role = replica",
        &format!("ALTER DATABASE {} SET session_replication_role = replica", database.name()),
        &format!("ALTER DATABASE {} SET event_triggers = off", database.name()),
        &format!("ALTER DATABASE {} SET pg_stream.enabled = off", database.name()),
        "CREATE OR REPLACE FUNCTION pgstream.is_single(rows bigint) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        "ALTER FUNCTION pgstream.capture() SET search_path = evil",
    ] {
        assert_eq!(session.error(statement).code, DENIED, "{statement}");
    }
    // What this role may do to its database does not reach our superuser's statements.
    session.run(&format!(
        "CREATE SCHEMA evil;
         CREATE FUNCTION evil.wrong(int, int) RETURNS bool LANGUAGE plpgsql AS
           $$BEGIN RAISE EXCEPTION 'hijacked by %', current_user USING ERRCODE = 'ZZ003'; END$$;
         CREATE OPERATOR evil.= (FUNCTION = evil.wrong, LEFTARG = int, RIGHTARG = int);
         CREATE FUNCTION evil.wrong(bigint, bigint) RETURNS bool LANGUAGE plpgsql AS
           $$BEGIN RAISE EXCEPTION 'hijacked by %', current_user USING ERRCODE = 'ZZ003'; END$$;
         CREATE OPERATOR evil.= (FUNCTION = evil.wrong, LEFTARG = bigint, RIGHTARG = bigint);
         CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE plpgsql AS
           $$BEGIN RAISE EXCEPTION 'hijacked by %', current_user USING ERRCODE = 'ZZ003'; END$$;
         ALTER DATABASE {} SET search_path = evil, pg_catalog, public",
        database.name()
    ));
    let mut fresh = database.session();
    fresh.run("INSERT INTO public.t VALUES (50, 1, 50)");
    fresh.run("SELECT pgstream.refresh_stream_table('public.st')");
    for report in [
        "pgstream.pgs_status()",
        "pgstream.st_refresh_stats()",
        "pgstream.get_refresh_history('public.st')",
        "pgstream.check_cdc_health()",
        "pgstream.slot_health()",
        "pgstream.pg_stat_stream_tables",
        "pgstream.stream_tables_info",
        "pgstream.explain_st('public.st')",
        "pgstream.verify_stream_table('public.st')",
    ] {
        fresh.run(&format!("SELECT * FROM {report}"));
    }
    fresh.run("SET search_path = public");
    assert_right(&mut fresh, "st", "SELECT g, count(*) AS n FROM t GROUP BY g");
}

#[test]
fn what_was_planted_before_the_extension_came_is_not_used_by_it() {
    let mut place = Place::new();
    place.admin.run(&format!(
        "DROP EXTENSION pg_stream CASCADE;
         CREATE FUNCTION public.wrong(numeric, int) RETURNS numeric LANGUAGE plpgsql AS
           $$BEGIN RAISE EXCEPTION 'hijacked' USING ERRCODE = 'ZZ003'; END$$;
         CREATE OPERATOR public.* (FUNCTION = public.wrong, LEFTARG = numeric, RIGHTARG = int);
         CREATE FUNCTION public.starts_with(text, text, int DEFAULT 0) RETURNS bool LANGUAGE sql AS 'SELECT true';
         CREATE EXTENSION pg_stream; {TABLE}"
    ));
    place.admin.create("st", "SELECT g FROM t");
    place.admin.refresh("st");
    for report in [
        "pgstream.st_refresh_stats()",
        "pgstream.get_refresh_history('st')",
        "pgstream.pg_stat_stream_tables",
        "pgstream.check_cdc_health()",
    ] {
        place.admin.run(&format!("SELECT * FROM {report}"));
    }
}

/// Two roles, each with a schema; the second one has a stream table with an inner stage. Its stage.
fn with_stage() -> (Place, [String; 2], String) {
    let mut place = Place::new();
    let (vic, mal) = (place.role("vic"), place.role("mal"));
    let mut session = place.session(&vic);
    session.run(&format!(
        "CREATE TABLE t (id int PRIMARY KEY, g int); INSERT INTO t SELECT i, i % 3 FROM generate_series(1, 9) i;
         GRANT USAGE ON SCHEMA {vic} TO {mal}; GRANT SELECT ON t TO {mal}"
    ));
    let mut session = place.session(&mal);
    let query = format!("SELECT count(*) FROM (SELECT DISTINCT g FROM {vic}.t) AS x");
    session.create("st", &query);
    let stage = place.admin.value(
        "SELECT oid::regclass FROM pg_class
         WHERE relnamespace = 'pgstream_state'::regnamespace AND relkind = 'r'",
    );
    (place, [vic, mal], stage)
}

const EXTENSION: &str = "SELECT count(*) FROM pg_extension WHERE extname = 'pg_stream'";

/// What belongs to the extension takes it along when it is dropped.
#[test]
fn hidden_tables_come_to_depend_on_nothing_of_a_user() {
    let (mut place, [_, mal], stage) = with_stage();
    let buffer =
        place.admin.value("SELECT buffer_relid::regclass FROM pgstream.pgs_change_tracking");
    place.admin.run(&format!(
        "DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO {mal}', current_database()); END $$"
    ));
    let mut session = place.session(&mal);
    session.run(&format!(
        "CREATE TABLE heir (LIKE {stage}); CREATE TABLE part (LIKE {stage}) PARTITION BY RANGE (__pgs_row_id);
         CREATE TYPE row_type AS (a int); CREATE TABLE ref (a bigint PRIMARY KEY); INSERT INTO ref SELECT __pgs_row_id FROM {stage};
         CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
    ));
    let shape = session.value(&format!(
        "SELECT string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum)
         FROM pg_attribute WHERE attrelid = '{stage}'::regclass AND attnum > 0"
    ));
    session.run(&format!("CREATE TYPE shape AS ({shape})"));
    for ddl in [
        format!("ALTER TABLE {stage} SET SCHEMA {mal}"),
        format!("ALTER TABLE {stage} RENAME COLUMN c0 TO x"),
        format!("ALTER TABLE {stage} INHERIT heir"),
        format!("ALTER TABLE heir INHERIT {stage}"),
        format!("CREATE TABLE child () INHERITS ({stage})"),
        format!("CREATE SCHEMA {mal}_more CREATE TABLE child () INHERITS ({stage})"),
        format!("ALTER TABLE part ATTACH PARTITION {stage} DEFAULT"),
        format!("ALTER TABLE {stage} OF shape"),
        format!("ALTER TABLE {stage} ADD COLUMN x row_type"),
        format!("ALTER TABLE {stage} ADD FOREIGN KEY (__pgs_row_id) REFERENCES ref"),
        format!("ALTER TABLE {stage} ADD CHECK (true)"),
        format!("ALTER TABLE {stage} SET UNLOGGED"),
        format!("ALTER TABLE {stage} DISABLE TRIGGER ALL"),
        format!("ALTER TABLE {stage} OWNER TO CURRENT_USER, ALTER c0 SET DEFAULT 1"),
        format!(
            "CREATE TRIGGER mine BEFORE INSERT ON {stage} FOR EACH ROW EXECUTE FUNCTION nothing()"
        ),
        format!("CREATE RULE mine AS ON INSERT TO {stage} DO INSTEAD NOTHING"),
        format!("DROP TABLE {stage}"),
        format!("DROP TABLE {stage} CASCADE"),
        format!(
            "SET search_path = ''; SET check_function_bodies = off; ALTER TABLE {stage} SET SCHEMA {mal}"
        ),
    ] {
        let error = session.error(&ddl);
        assert_eq!(error.code, "2BP01", "{ddl}: {error}");
        session.run(&format!("RESET check_function_bodies; SET search_path = {mal}"));
    }
    // Nor that of superusers, who can switch event triggers off.
    for ddl in [
        format!("ALTER TABLE {buffer} SET SCHEMA {mal}"),
        format!("ALTER TABLE {stage} SET SCHEMA {mal}"),
    ] {
        assert_eq!(place.admin.error(&ddl).code, "2BP01", "{ddl}");
    }
    place.admin.run(&format!("DROP SCHEMA {mal} CASCADE"));
    assert_eq!(place.admin.value(EXTENSION), "1");
}

/// Functions of the query run while the extension lays tables out.
#[test]
fn what_a_query_calls_while_it_is_created_alters_no_hidden_table() {
    for mode in ["FULL", "DIFFERENTIAL"] {
        let (mut place, [vic, mal], stage) = with_stage();
        let mut session = place.session(&mal);
        session.run(&format!(
            "CREATE FUNCTION alter() RETURNS void LANGUAGE plpgsql AS $$
             BEGIN EXECUTE 'ALTER TABLE {stage} SET SCHEMA {mal}'; END $$;
             CREATE FUNCTION trick(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
             BEGIN PERFORM {mal}.alter(); RETURN $1; END $$"
        ));
        let create = format!(
            "SELECT pgstream.create_stream_table('tricked', 'SELECT {mal}.trick(g) FROM {vic}.t', '1d', '{mode}')"
        );
        assert_eq!(session.error(&create).code, "2BP01", "{mode}");
    }
}

/// Whatever comes to depend on something of another's.
#[test]
fn nobody_but_its_owner_drops_the_extension_on_the_way() {
    let (mut place, [_, mal], stage) = with_stage();
    place.admin.run(&format!("SET event_triggers = off; ALTER TABLE {stage} SET SCHEMA {mal}"));
    let mut session = place.session(&mal);
    assert_eq!(session.error(&format!("DROP SCHEMA {mal} CASCADE")).code, DENIED);
    assert_eq!(place.admin.value(EXTENSION), "1");
    place.admin.run(&format!(
        "ALTER TABLE {mal}.{} SET SCHEMA pgstream_state",
        stage.replace("pgstream_state.", "")
    ));
    session.run(&format!("DROP SCHEMA {mal} CASCADE"));
    assert_eq!(place.admin.value("SELECT count(*) FROM pgstream.pgs_stream_tables"), "0");
}

/// It would have the state of a stream table for its rows.
#[test]
fn hidden_state_becomes_no_stream_table() {
    let (mut place, [_, mal], stage) = with_stage();
    let label = place.admin.value("SELECT label FROM pg_seclabel WHERE provider = 'pg_stream'");
    let mut session = place.session(&mal);
    let ddl =
        format!("SECURITY LABEL FOR pg_stream ON TABLE {stage} IS '{}'", label.replace('\'', "''"));
    assert_eq!(session.error(&ddl).code, "22023");
}

#[test]
fn what_depends_on_hidden_state_stands_in_nobodys_way() {
    for (ddl, is_dropped) in [
        ("DROP TABLE {vic}.t CASCADE", false),
        ("DROP OWNED BY {vic} CASCADE", false),
        ("DROP TABLE {mal}.st", true),
        ("SELECT pgstream.drop_stream_table('{mal}.st')", true),
    ] {
        let (mut place, [vic, mal], stage) = with_stage();
        let mut session = place.session(&mal);
        session.run(&format!(
            "CREATE VIEW vv AS SELECT * FROM {stage}; CREATE TABLE held (x {stage})"
        ));
        let role = if is_dropped { &mal } else { &vic };
        let mut session = place.session(role);
        session.run(&ddl.replace("{vic}", &vic).replace("{mal}", &mal));
        let status = place.admin.rows("SELECT status FROM pgstream.pgs_stream_tables");
        assert_eq!(status, if is_dropped { &[][..] } else { &["ERROR"] }, "{ddl}");
        assert_eq!(place.admin.value("SELECT count(*) FROM pg_class WHERE relname = 'vv'"), "0");
        place.admin.run(&format!("DROP OWNED BY {mal}, {vic} CASCADE"));
    }
}

#[test]
fn a_stream_table_with_a_column_of_anothers_type_stands_in_nobodys_way() {
    for ddl in [
        "DROP TYPE e CASCADE",
        "DROP SCHEMA {vic} CASCADE",
        "DROP OWNED BY {vic} CASCADE",
        "DROP DOMAIN dom CASCADE",
    ] {
        for query in [
            "SELECT id, e, dom FROM {vic}.u",
            "SELECT e, dom, count(*) AS n FROM (SELECT DISTINCT e, dom, g FROM {vic}.u) AS q GROUP BY e, dom",
        ] {
            let mut place = Place::new();
            let (vic, mal) = (place.role("vic"), place.role("mal"));
            let mut owner = place.session(&vic);
            owner.run(&format!(
                "CREATE TYPE e AS ENUM ('a', 'b'); CREATE DOMAIN dom AS int; CREATE TABLE u (id int PRIMARY KEY, e e, dom dom, g int);
                 INSERT INTO u VALUES (1, 'a', 1, 1), (2, 'b', 2, 1); GRANT USAGE ON SCHEMA {vic} TO {mal}; GRANT SELECT ON u TO {mal}"
            ));
            let mut session = place.session(&mal);
            session.create("st", &query.replace("{vic}", &vic));
            session.create("upon", "SELECT e, count(*) FROM st GROUP BY e");
            let ddl = ddl.replace("{vic}", &vic);
            assert_eq!(owner.error(&ddl.replace("CASCADE", "RESTRICT")).code, "2BP01", "{ddl}");
            owner.run(&ddl);
            let status =
                "SELECT DISTINCT status FROM pgstream.pgs_stream_tables WHERE pgs_name = 'st'";
            assert_eq!(place.admin.rows(status), ["ERROR"], "{ddl}");
            assert_eq!(session.value("SELECT count(*) FROM st"), "2");
            assert_eq!(session.error("SELECT pgstream.refresh_stream_table('st')").code, "55000");
            session.run("DROP TABLE upon; SELECT pgstream.drop_stream_table('st')");
            assert_eq!(orphans(&mut place.admin).expect("readable"), [""; 0]);
        }
    }
}

#[test]
fn objects_of_a_role_are_dropped_beside_those_of_another() {
    let (mut place, [vic, mal], _) = with_stage();
    let nobody = place.role("nobody");
    let mut session = place.session(&mal);
    for open in
        [format!("DROP OWNED BY {mal}"), "SELECT pgstream.drop_stream_table('st')".to_owned()]
    {
        session.run(&format!("BEGIN; {open}"));
        let mut other = place.session(&nobody);
        other.run(&format!(
            "SET lock_timeout = '2s'; DROP OWNED BY {nobody} CASCADE; RESET lock_timeout"
        ));
        session.run("ROLLBACK");
        assert_eq!(session.value("SELECT count(*) FROM st"), "1");
    }
    let mut s = Sessions::new(&place.database, &["a", "b"]);
    s.run("a", &format!("BEGIN; SET ROLE {mal}; SELECT pgstream.drop_stream_table('{mal}.st')"));
    s.blocks("b", &format!("DROP OWNED BY {mal}"));
    s.run("a", "COMMIT");
    assert_eq!(s.finish("b"), Ok(()));
    drop(s);
    assert_eq!(place.admin.value("SELECT count(*) FROM pgstream.pgs_stream_tables"), "0");
    place.admin.run(&format!("DROP OWNED BY {mal}, {vic}, {nobody} CASCADE"));
    assert_eq!(orphans(&mut place.admin).expect("readable"), [""; 0]);
}

/// It calls what a user made for his type, and a buffer is not his.
#[test]
fn nothing_of_a_user_runs_as_the_superuser_when_a_buffer_is_analyzed() {
    let mut place = Place::new();
    let alice = place.role("alice");
    let mut session = place.session(&alice);
    session.run(SPY);
    session.run(&format!(
        "CREATE FUNCTION distance(int, int) RETURNS float8 LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN {alice}.spy($1 - $2); END';
         CREATE TYPE span AS RANGE (SUBTYPE = int4, SUBTYPE_DIFF = distance);
         CREATE TABLE spans (id int PRIMARY KEY, x span)"
    ));
    session.create("st", "SELECT id, x FROM spans");
    session.create(
        "nested",
        "SELECT x, count(*) AS n FROM (SELECT DISTINCT id, x FROM spans) AS q GROUP BY x",
    );
    session.run("INSERT INTO spans SELECT i, span(i, i + 5) FROM generate_series(1, 300) AS i");
    place.admin.run("ANALYZE");
    session.refresh("st");
    session.refresh("nested");
    place.admin.run("ANALYZE");
}
