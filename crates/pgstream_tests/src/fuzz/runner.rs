//! How a case runs.

use super::{
    case::{
        Case, Failure, Oracle, Outcome, Step, StreamTable, in_schema, other_schema, unexpected,
    },
    security,
};
use crate::{
    oracle,
    session::{Session, SqlError},
};

/// More rows than this make a case slow and prove nothing more.
const MOST_ROWS: &str = "2000";

/// What a query may take before it is made a stream table.
const MOST_TIME: &str = "1500ms";

/// Violations that a random change may run into.
const OF_THE_CHANGE: &[&str] = &["23505", "23514", "23502", "21000", "40001", "54000"];

/// The same of a change of definition: what depends on a column or stands in the way, rows that do not
/// go with a key, changes of the transaction that have triggers to run, and what is there already or
/// not, since a change before was rolled back.
const OF_THE_DEFINITION: &[&str] = &[
    "0A000", "2BP01", "55006", "23505", "23514", "23502", "42P16", "42P17", "42809", "42P07",
    "42P01", "40001",
];

/// Several rows of a scalar sub-query.
const SEVERAL_ROWS: &str = "21000";

/// An array_agg of arrays that do not fit together, or of NULLs among them.
const UNFIT_ARRAYS: [&str; 2] = ["2202E", "22004"];

/// Texts whose collations differ, raised where two are compared.
const UNKNOWN_COLLATION: &str = "42P22";

/// No function, which comparing two composites looks for once it has come to a field.
const NO_COMPARISON: (&str, &str) = ("42883", "could not identify an equality operator for type");

/// Whether the error may come although PostgreSQL evaluates the query: it leaves out sub-queries whose
/// value no row needs, and compares nothing where one side of a join is empty.
fn is_raised_early(error: &SqlError, one: &StreamTable) -> bool {
    let code = error.code.as_str();
    UNFIT_ARRAYS.contains(&code)
        || code == UNKNOWN_COLLATION
        || code == NO_COMPARISON.0 && error.message.starts_with(NO_COMPARISON.1)
        || code == SEVERAL_ROWS && one.may_fail
}

/// A transaction that has changed a table whose changes are decoded, or is just going to change over.
const IN_USE: &str = "55006";

/// A right is missing.
const DENIED: &str = "42501";

/// A lock that the other session holds: whoever meets it gives up.
const LOCKED: &str = "55P03";

pub(super) struct Runner<'a> {
    session: Session,
    /// The second session.
    other: Session,
    case: &'a Case,
    schema: String,
    oracle: Oracle,
    outcome: &'a mut Outcome,
    /// The stream tables that were created.
    present: Vec<&'a StreamTable>,
    /// Those whose next refresh may be full, because something was truncated or defined otherwise.
    truncated: Vec<String>,
    /// The second session truncated something: nobody knows when that will be visible.
    may_be_full: bool,
    /// The server captures changes from the write-ahead log.
    is_decoded: bool,
}

impl<'a> Runner<'a> {
    pub fn new(
        (session, other): (Session, Session),
        (case, schema): (&'a Case, &str),
        oracle: Oracle,
        outcome: &'a mut Outcome,
    ) -> Self {
        Self {
            session,
            other,
            case,
            schema: schema.to_owned(),
            oracle,
            outcome,
            present: Vec::new(),
            truncated: Vec::new(),
            may_be_full: false,
            is_decoded: false,
        }
    }

    pub fn run(&mut self) -> Result<(), Failure> {
        let schema = self.schema.clone();
        // PostgreSQL 18 may take a grouped column, NULL in some of the grouping sets, for one of the
        // table that it has removed.
        let settings = format!(
            "SET enable_self_join_elimination = off; SET search_path = {schema}, public; SET statement_timeout = '60s'; SET temp_file_limit = '2GB'; SET lock_timeout = '300ms'; SET client_min_messages = error"
        );
        let other = other_schema(&schema);
        let set = format!("CREATE SCHEMA {schema}; CREATE SCHEMA {other}; {settings}");
        self.other.try_run(&settings).map_err(|error| unexpected(&error, "", &settings))?;
        for sql in std::iter::once(set).chain(self.case.set_up(&schema)) {
            if let Err(error) = self.session.try_run(&in_schema(&sql, &schema)) {
                if error.code == "08006" {
                    return Err(unexpected(&error, "", &sql));
                }
                // The generator's mistake: nothing to test.
                self.outcome.unusable.push(error.code);
                return Ok(());
            }
        }
        self.log_whole_rows()?;
        self.set_role(security::READER)?;
        std::mem::swap(&mut self.session, &mut self.other);
        self.set_role(security::READER)?;
        for round in 0..=self.case.rounds.len() {
            for one in self.case.stream_tables.iter().filter(|one| one.round == round) {
                self.create(one)?;
            }
            for step in self.case.rounds.get(round).into_iter().flatten() {
                self.step(step)?;
            }
            // After shrinking a transaction may be left open.
            self.session.try_run("COMMIT").map_err(|error| unexpected(&error, "", "COMMIT"))?;
        }
        self.other.try_run("COMMIT").map_err(|error| unexpected(&error, "", "COMMIT"))?;
        self.outcome.is_stale = false;
        for one in self.present.clone() {
            self.refresh(one)?;
        }
        Ok(())
    }

    /// Where changes are captured from the write-ahead log, has it hold all that this needs.
    fn log_whole_rows(&mut self) -> Result<(), Failure> {
        let mode = "SELECT current_setting('pg_stream.cdc_mode') <> 'trigger'";
        self.is_decoded = self.session.value(mode) == "t";
        if !self.is_decoded {
            return Ok(());
        }
        let sql = format!(
            "DO $$ DECLARE it regclass; BEGIN
               FOR it IN SELECT oid FROM pg_class WHERE relkind = 'r' AND relpersistence = 'p'
                         AND relnamespace IN ('{}'::regnamespace, '{}'::regnamespace)
               LOOP EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', it); END LOOP; END $$",
            self.schema,
            other_schema(&self.schema)
        );
        self.session.try_run(&sql).map_err(|error| unexpected(&error, "", &sql))
    }

    /// Gives tables time to change over, every other time.
    fn wait_for_decoder(&mut self) {
        if !self.is_decoded || self.outcome.created.is_multiple_of(2) {
            return;
        }
        let waiting = "SELECT count(*) FROM pgstream.pgs_change_tracking
            WHERE cdc_mode = 'TRANSITIONING'";
        for _ in 0..50 {
            match self.session.try_rows(waiting) {
                Ok(rows) if rows != ["0"] => {
                    std::thread::sleep(std::time::Duration::from_millis(10))
                }
                _ => return,
            }
        }
    }

    /// Makes the first session that of a role, if the case has roles.
    fn set_role(&mut self, role: &str) -> Result<(), Failure> {
        if self.case.security.is_none() {
            return Ok(());
        }
        let sql = format!("SET ROLE {role}");
        self.session.try_run(&sql).map_err(|error| unexpected(&error, "", &sql))
    }

    fn create(&mut self, one: &'a StreamTable) -> Result<(), Failure> {
        let query = self.query_of(one);
        if let Some(reason) = self.unusable(&query)? {
            self.outcome.unusable.push(reason);
            return Ok(());
        }
        match self.session.try_create(&one.name, &query) {
            Ok(()) => {
                self.outcome.created += 1;
                self.present.push(one);
                self.note(one)?;
                self.compare(one, "creation")?;
                self.wait_for_decoder();
                match one.create_trigger() {
                    Some(sql) => {
                        let done = self.session.try_run(&sql);
                        done.map_err(|error| unexpected(&error, &one.name, &sql))
                    }
                    None => Ok(()),
                }
            }
            Err(error) if error.code == "0A000" => {
                self.outcome.refused.push(error.message);
                Ok(())
            }
            Err(error) if error.code == LOCKED || self.is_too_early(&error) => Ok(()),
            // PostgreSQL did not look at the rights to what it had left out of the plan.
            Err(error) if error.code == DENIED && self.case.security.is_some() => {
                self.outcome.unusable.push(error.code);
                Ok(())
            }
            Err(error) if is_raised_early(&error, one) => {
                self.outcome.query_errors += 1;
                Ok(())
            }
            // The other session holds a table that a stream table below was to be made of.
            Err(error) if error.code == "42P01" && one.round > 0 => Ok(()),
            Err(error) => Err(unexpected(&error, &one.name, "create_stream_table")),
        }
    }

    fn is_too_early(&self, error: &SqlError) -> bool {
        self.is_decoded && error.code == IN_USE && error.message.contains("write-ahead log")
    }

    fn query_of(&self, one: &StreamTable) -> String {
        in_schema(&one.query.to_string(), &self.schema)
    }

    fn step(&mut self, step: &Step) -> Result<(), Failure> {
        match step {
            Step::Control(sql) => {
                // "no such savepoint" and the like: only after shrinking.
                if let Err(error) = self.session.try_run(sql)
                    && error.code == "08006"
                {
                    return Err(unexpected(&error, "", sql));
                }
                Ok(())
            }
            Step::Sql(sql) => self.change(sql, OF_THE_CHANGE),
            Step::Define(sql) => {
                self.truncated = self.present.iter().map(|one| one.name.clone()).collect();
                self.change(sql, OF_THE_DEFINITION)
            }
            Step::Other(step) => {
                self.may_be_full |=
                    matches!(&**step, Step::Sql(sql) if sql.starts_with("TRUNCATE"));
                std::mem::swap(&mut self.session, &mut self.other);
                let result = self.step(step);
                std::mem::swap(&mut self.session, &mut self.other);
                result
            }
            Step::Refresh(name) => match self.present.iter().find(|one| one.name == *name) {
                Some(one) => self.refresh(one),
                None => Ok(()),
            },
        }
    }

    fn change(&mut self, sql: &str, allowed: &[&str]) -> Result<(), Failure> {
        if sql.starts_with("TRUNCATE") || sql.starts_with(security::CHANGE) {
            self.truncated = self.present.iter().map(|one| one.name.clone()).collect();
        }
        // A statement that fails takes its transaction along, unless it has a savepoint.
        let in_transaction = self.session.try_run("SAVEPOINT pgs_statement").is_ok();
        self.set_role("NONE")?;
        let done = self.session.try_run(&in_schema(sql, &self.schema));
        if in_transaction {
            let end =
                if done.is_ok() { "RELEASE pgs_statement" } else { "ROLLBACK TO pgs_statement" };
            self.session.try_run(end).map_err(|error| unexpected(&error, "", sql))?;
        }
        self.set_role(security::READER)?;
        match done {
            Err(error) if error.code != LOCKED && !allowed.contains(&error.code.as_str()) => {
                Err(unexpected(&error, "", sql))
            }
            _ => Ok(()),
        }
    }

    fn refresh(&mut self, one: &'a StreamTable) -> Result<(), Failure> {
        let failed = |error: &SqlError| unexpected(error, &one.name, "refresh_stream_table");
        self.outcome.refreshes += 1;
        let before =
            oracle::last_refresh_id(&mut self.session, &one.name).map_err(|it| failed(&it))?;
        let sql = match one.is_qualified {
            true => format!("SELECT pgstream.refresh_stream_table('{}.{}')", self.schema, one.name),
            false => format!("SELECT pgstream.refresh_stream_table('{}')", one.name),
        };
        // In a transaction, an error must leave the changes in place.
        let in_transaction = self.session.try_run("SAVEPOINT pgs_refresh").is_ok();
        // What is set while it is refreshed, and afterwards.
        let mut settings: Vec<[String; 2]> = Vec::new();
        if one.is_qualified {
            let path = |it: &str| format!("SET search_path = {it}");
            let schema = &self.schema;
            settings.push([path(&other_schema(schema)), path(&format!("{schema}, public"))]);
        }
        if let Some(setting) = one.foreign {
            let name = setting.split(' ').next().expect("a name");
            settings.push([format!("SET {setting}"), format!("RESET {name}")]);
        }
        for [set, _] in &settings {
            self.session.try_run(set).map_err(|error| failed(&error))?;
        }
        let done = self.session.try_run(&sql);
        if done.is_ok() || !in_transaction {
            for [_, reset] in &settings {
                self.session.try_run(reset).map_err(|error| failed(&error))?;
            }
        }
        if in_transaction {
            let end = if done.is_ok() { "RELEASE pgs_refresh" } else { "ROLLBACK TO pgs_refresh" };
            self.session.try_run(end).map_err(|error| failed(&error))?;
        }
        if let Err(error) = done {
            self.outcome.is_stale = true;
            // Somebody else refreshed, or holds a lock.
            if matches!(error.code.as_str(), LOCKED | "40001") || self.is_too_early(&error) {
                return Ok(());
            }
            let failure = failed(&error);
            // One that took too long ends the case: what was not refreshed cannot be compared.
            let is_final = error.code == "08006" || failure.is_timeout();
            if !is_final && (is_raised_early(&error, one) || self.query_fails(one)) {
                self.outcome.query_errors += 1;
                return Ok(());
            }
            return Err(failure);
        }
        self.compare(one, "refresh")?;
        let history = oracle::history_since(&mut self.session, &one.name, before)
            .map_err(|it| failed(&it))?;
        // A pair of an old row and a new one may have an error that the query has not.
        let may_be_full = self.may_be_full || one.may_fail || self.truncated.contains(&one.name);
        // A refresh in a transaction may be rolled back, and then the truncation is met again.
        if !in_transaction {
            self.truncated.retain(|name| *name != one.name);
        }
        for row in history {
            let is_full = matches!(row.action.as_str(), "FULL" | "REINITIALIZE");
            let is_differential = matches!(row.action.as_str(), "DIFFERENTIAL" | "NO_DATA");
            if row.status != "COMPLETED" || !(is_differential || (is_full && may_be_full)) {
                return Err(Failure {
                    kind: "not differential".to_owned(),
                    stream_table: one.name.clone(),
                    message: format!("{row:?}"),
                });
            }
        }
        Ok(())
    }

    /// Why the query is of no use, if PostgreSQL rejects it or it is large.
    fn unusable(&mut self, query: &str) -> Result<Option<String>, Failure> {
        let size = format!(
            "SELECT count(pgs_text) < {MOST_ROWS} FROM
               (SELECT pgs_all::text AS pgs_text FROM ({query}) AS pgs_all LIMIT {MOST_ROWS}) AS pgs_limited"
        );
        let set = |it: &mut Self, time: &str| {
            let sql = format!("SET statement_timeout = '{time}'");
            it.session.try_run(&sql).map_err(|error| unexpected(&error, "", &sql))
        };
        set(self, MOST_TIME)?;
        let reason = match self.session.try_rows(&size) {
            Ok(rows) if rows == ["t"] => None,
            Ok(_) => Some("too many rows".to_owned()),
            Err(error) if error.code == "08006" => return Err(unexpected(&error, "", query)),
            Err(error) => Some(error.code),
        };
        set(self, "60s")?;
        Ok(reason)
    }

    /// Notes what the stream table is made of.
    fn note(&mut self, one: &StreamTable) -> Result<(), Failure> {
        let sql = format!(
            "SELECT substring(value FROM 'evaluated as a whole, for (.*), and the difference')
             FROM pgstream.explain_st('{}') WHERE property LIKE '%strategy'
               AND value LIKE 'evaluated as a whole%'",
            one.name
        );
        let reasons =
            self.session.try_rows(&sql).map_err(|error| unexpected(&error, &one.name, &sql))?;
        self.outcome.queries.push((one.constructs.clone(), reasons));
        Ok(())
    }

    /// Whether the query itself raises an error on what the tables hold now.
    fn query_fails(&mut self, one: &StreamTable) -> bool {
        let _ = self.session.try_run("SAVEPOINT pgs_query");
        let fails = self.session.try_rows(&self.query_of(one)).is_err();
        let _ = self.session.try_run("ROLLBACK TO pgs_query");
        fails
    }

    fn compare(&mut self, one: &StreamTable, after: &str) -> Result<(), Failure> {
        let query = match self.oracle {
            Oracle::Query => self.query_of(one),
            Oracle::Wrong => {
                format!("SELECT * FROM ({}) AS pgs_wrong OFFSET 1", self.query_of(one))
            }
        };
        let in_transaction = self.session.try_run("SAVEPOINT pgs_compare").is_ok();
        let difference = oracle::difference(&mut self.session, &one.name, &query, one.comparison);
        if in_transaction && difference.is_err() {
            let _ = self.session.try_run("ROLLBACK TO pgs_compare");
        }
        match difference {
            Ok(None) => Ok(()),
            Ok(Some(difference)) => Err(Failure {
                kind: "wrong rows".to_owned(),
                stream_table: one.name.clone(),
                message: format!("{} after {after}\n{difference}", one.name),
            }),
            Err(error) if error.code == "08006" => Err(unexpected(&error, &one.name, "comparing")),
            // Overflow and the like in the query itself.
            Err(_) => {
                self.outcome.query_errors += 1;
                Ok(())
            }
        }
    }
}
