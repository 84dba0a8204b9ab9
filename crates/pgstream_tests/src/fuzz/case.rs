//! One case: how it is made from a seed, how it runs, and how it is written as a script.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{
    query::{Query, Source, random_query},
    random::Random,
    schema::Table,
};
use crate::{
    database::Database,
    oracle::{self, Comparison},
    session::{Session, SqlError},
};

/// What the stream tables are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oracle {
    /// Their queries.
    Query,
    /// Something else, so that a tester that finds nothing is found out.
    Wrong,
}

#[derive(Clone, Debug)]
pub struct View {
    pub name: String,
    pub query: Query,
}

#[derive(Clone, Debug)]
pub struct StreamTable {
    pub name: String,
    pub query: Query,
    pub comparison: Comparison,
    /// Created before this round.
    pub round: usize,
}

/// One step of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A statement, in a savepoint of its own if it may violate a key inside a transaction.
    Sql(String),
    /// BEGIN, COMMIT, ROLLBACK, SAVEPOINT ... as they are.
    Control(String),
    /// Refresh and compare the stream table of that name.
    Refresh(String),
    /// The step in a second session, whose transaction stays open meanwhile.
    Other(Box<Step>),
}

impl Step {
    fn other(self) -> Self {
        Self::Other(Box::new(self))
    }

    /// For psql.
    fn script(&self) -> String {
        match self {
            Self::Sql(sql) | Self::Control(sql) => format!("{sql};"),
            Self::Refresh(name) => format!("SELECT pgstream.refresh_stream_table('{name}');"),
            Self::Other(step) => format!("/* in a second session */ {}", step.script()),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Case {
    pub tables: Vec<Table>,
    pub views: Vec<View>,
    pub stream_tables: Vec<StreamTable>,
    /// Each round is a few transactions and refreshes.
    pub rounds: Vec<Vec<Step>>,
}

/// What went wrong, where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// `wrong rows`, `not differential`, `crash`, or the SQLSTATE of an unexpected error.
    pub kind: String,
    pub stream_table: String,
    pub message: String,
}

#[derive(Debug, Default)]
pub struct Outcome {
    pub created: u64,
    /// The messages of refusals.
    pub refused: Vec<String>,
    pub unusable: u64,
    pub refreshes: u64,
    pub query_errors: u64,
    pub failure: Option<Failure>,
}

/// More rows than this make a case slow and prove nothing more.
const MOST_ROWS: &str = "3000";

impl Case {
    pub fn random(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let random = &mut random;
        let tables: Vec<_> =
            (1..=random.between(1, 4)).map(|number| Table::random(number, random)).collect();
        let mut sources: Vec<_> = tables
            .iter()
            .map(|table| Source {
                name: table.name.clone(),
                columns: table.columns.clone(),
                is_table: true,
            })
            .collect();
        let mut views = Vec::new();
        let mut view_is_open = false;
        if random.chance(15) {
            let view = random_query(&sources, random);
            view_is_open = view.is_open;
            sources.push(Source { name: "v1".to_owned(), columns: view.columns, is_table: false });
            views.push(View { name: "v1".to_owned(), query: view.query });
        }
        let mut stream_tables = Vec::new();
        for number in 1..=random.between(1, 3) {
            let generated = random_query(&sources, random);
            let name = format!("st{number}");
            sources.push(Source {
                name: name.clone(),
                columns: generated.columns,
                is_table: false,
            });
            let is_open = generated.is_open || view_is_open;
            let comparison = if is_open { Comparison::Value } else { Comparison::Text };
            let round = if random.chance(80) { 0 } else { random.below(2) };
            stream_tables.push(StreamTable { name, query: generated.query, comparison, round });
        }
        let mut rounds: Vec<_> = (0..random.between(2, 5))
            .map(|_| random_round(&tables, &stream_tables, random))
            .collect();
        if random.chance(30) {
            add_second_session(&tables, &stream_tables, random, &mut rounds);
        }
        Self { tables, views, stream_tables, rounds }
    }

    /// Runs it in a schema of its own, which is dropped afterwards.
    pub fn run(&self, database: &Database, oracle: &Oracle) -> Outcome {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let schema = format!("f{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut outcome = Outcome::default();
        let sessions = database.try_session().and_then(|it| Ok((it, database.try_session()?)));
        let failure = match sessions {
            Ok((session, other)) => {
                let mut runner = Runner {
                    session,
                    other,
                    case: self,
                    oracle,
                    outcome: &mut outcome,
                    present: Vec::new(),
                    truncated: Vec::new(),
                    may_be_full: false,
                };
                runner.run(&schema).err()
            }
            Err(error) => Some(unexpected(&error, "", "connecting")),
        };
        outcome.failure = failure;
        if outcome.failure.as_ref().is_none_or(|failure| failure.kind != "crash")
            && let Ok(mut session) = database.try_session()
        {
            let dropped = session.try_run(&format!(
                "SET client_min_messages = error; SET statement_timeout = '20s'; DROP SCHEMA IF EXISTS {schema} CASCADE"
            ));
            if let (Err(error), None) = (dropped, &outcome.failure) {
                outcome.failure = Some(unexpected(&error, "", "DROP SCHEMA ... CASCADE"));
            }
        }
        outcome
    }

    /// The statements that set the case up, without the stream tables.
    fn set_up(&self) -> Vec<String> {
        let mut statements: Vec<_> = self.tables.iter().flat_map(Table::create).collect();
        statements.extend(
            self.views.iter().map(|view| format!("CREATE VIEW {} AS {}", view.name, view.query)),
        );
        statements
    }

    /// The case for psql, with the failure as a comment.
    pub fn script(&self, failure: &Failure) -> String {
        let mut lines = vec![format!("-- {}", failure.kind)];
        lines.extend(failure.message.lines().map(|line| format!("--   {line}")));
        lines.extend(self.set_up().into_iter().map(|sql| sql + ";"));
        for round in 0..=self.rounds.len() {
            for one in self.stream_tables.iter().filter(|one| one.round == round) {
                lines.push(format!(
                    "SELECT pgstream.create_stream_table('{}', $q${}$q$, '1d');",
                    one.name, one.query
                ));
            }
            lines.extend(self.rounds.get(round).into_iter().flatten().map(Step::script));
        }
        if let Some(one) = self.stream_tables.iter().find(|one| one.name == failure.stream_table) {
            lines.push(format!("SELECT * FROM {} ORDER BY 1;", one.name));
            lines.push(format!("{};", one.query));
        }
        lines.join("\n") + "\n"
    }
}

fn random_round(tables: &[Table], stream_tables: &[StreamTable], random: &mut Random) -> Vec<Step> {
    let mut steps = Vec::new();
    for _ in 0..random.between(1, 3) {
        random_transaction(tables, stream_tables, random, &mut steps);
    }
    if random.chance(10) {
        steps.clear(); // a refresh without changes
    }
    for one in stream_tables {
        if random.chance(85) {
            steps.push(Step::Refresh(one.name.clone()));
        }
    }
    steps
}

fn random_transaction(
    tables: &[Table],
    stream_tables: &[StreamTable],
    random: &mut Random,
    steps: &mut Vec<Step>,
) {
    let control = |sql: &str| Step::Control(sql.to_owned());
    let statement = |random: &mut Random| Step::Sql(random.pick(tables).change(random));
    if random.chance(40) {
        steps.push(statement(random));
        return;
    }
    let begin = random.pick(&[
        "BEGIN",
        "BEGIN",
        "BEGIN",
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
    ]);
    steps.push(control(begin));
    for _ in 0..random.between(1, 4) {
        if random.chance(15) {
            steps.push(control("SAVEPOINT s"));
            steps.push(statement(random));
            if random.chance(20) {
                steps.push(Step::Refresh(random.pick(stream_tables).name.clone()));
            }
            steps.push(control(if random.chance(60) { "ROLLBACK TO s" } else { "RELEASE s" }));
        } else if random.chance(10) {
            steps.push(Step::Refresh(random.pick(stream_tables).name.clone()));
        } else {
            steps.push(statement(random));
        }
    }
    steps.push(control(if random.chance(12) { "ROLLBACK" } else { "COMMIT" }));
}

/// A transaction in a second session, open over parts of one or more rounds.
fn add_second_session(
    tables: &[Table],
    stream_tables: &[StreamTable],
    random: &mut Random,
    rounds: &mut [Vec<Step>],
) {
    let control = |sql: &str| Step::Control(sql.to_owned()).other();
    let mut place = (random.below(rounds.len()), 0);
    let mut add = |step: Step, random: &mut Random| {
        if place.0 + 1 < rounds.len() && random.chance(25) {
            place = (place.0 + 1, 0);
        }
        let round = &mut rounds[place.0];
        place.1 = random.between(place.1.min(round.len()), round.len());
        round.insert(place.1, step);
        place.1 += 1;
    };
    let begin = *random.pick(&["BEGIN", "BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ"]);
    add(control(begin), random);
    for _ in 0..random.between(1, 3) {
        let step = if random.chance(15) {
            Step::Refresh(random.pick(stream_tables).name.clone())
        } else {
            Step::Sql(random.pick(tables).change(random))
        };
        add(step.other(), random);
    }
    let end = if random.chance(20) { "ROLLBACK" } else { "COMMIT" };
    add(control(end), random);
}

fn unexpected(error: &SqlError, stream_table: &str, doing: &str) -> Failure {
    let lost = error.code == "08006" || error.code.starts_with("57P");
    Failure {
        kind: if lost { "crash".to_owned() } else { format!("error {}", error.code) },
        stream_table: stream_table.to_owned(),
        message: format!("{doing}\n{error}"),
    }
}

/// Violations that a random change may run into.
const OF_THE_CHANGE: &[&str] = &["23505", "23514", "23502", "21000", "40001"];

/// A lock that the other session holds: whoever meets it gives up.
const LOCKED: &str = "55P03";

struct Runner<'a> {
    session: Session,
    /// The second session.
    other: Session,
    case: &'a Case,
    oracle: &'a Oracle,
    outcome: &'a mut Outcome,
    /// The stream tables that were created.
    present: Vec<&'a StreamTable>,
    /// Those whose next refresh may be full, because something was truncated.
    truncated: Vec<String>,
    /// The second session truncated something: nobody knows when that will be visible.
    may_be_full: bool,
}

impl<'a> Runner<'a> {
    fn run(&mut self, schema: &str) -> Result<(), Failure> {
        let settings = format!(
            "SET search_path = {schema}; SET statement_timeout = '20s'; SET lock_timeout = '300ms'; SET client_min_messages = error"
        );
        let set = format!("CREATE SCHEMA {schema}; {settings}");
        self.other.try_run(&settings).map_err(|error| unexpected(&error, "", &settings))?;
        for sql in std::iter::once(set).chain(self.case.set_up()) {
            if let Err(error) = self.session.try_run(&sql) {
                if error.code == "08006" {
                    return Err(unexpected(&error, "", &sql));
                }
                // The generator's mistake: nothing to test.
                self.outcome.unusable += 1;
                return Ok(());
            }
        }
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
        for one in self.present.clone() {
            self.refresh(one)?;
        }
        Ok(())
    }

    fn create(&mut self, one: &'a StreamTable) -> Result<(), Failure> {
        let query = one.query.to_string();
        let size = format!(
            "SELECT count(*) < {MOST_ROWS} FROM (SELECT FROM ({query}) AS pgs_size LIMIT {MOST_ROWS}) AS pgs_limited"
        );
        let usable = matches!(self.session.try_rows(&size).as_deref(), Ok([it]) if it == "t");
        let usable =
            usable && self.session.try_rows(&format!("SELECT * FROM ({query}) AS pgs_all")).is_ok();
        if !usable {
            self.outcome.unusable += 1;
            return Ok(());
        }
        match self.session.try_create(&one.name, &query) {
            Ok(()) => {
                self.outcome.created += 1;
                self.present.push(one);
                self.compare(one, "creation")
            }
            Err(error) if error.code == "0A000" => {
                self.outcome.refused.push(error.message);
                Ok(())
            }
            Err(error) if error.code == LOCKED => Ok(()),
            // The other session holds a table that a stream table below was to be made of.
            Err(error) if error.code == "42P01" && one.round > 0 => Ok(()),
            Err(error) => Err(unexpected(&error, &one.name, "create_stream_table")),
        }
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
            Step::Sql(sql) => self.change(sql),
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

    fn change(&mut self, sql: &str) -> Result<(), Failure> {
        if sql.starts_with("TRUNCATE") {
            self.truncated = self.present.iter().map(|one| one.name.clone()).collect();
        }
        // A statement that fails takes its transaction along, unless it has a savepoint.
        let in_transaction = self.session.try_run("SAVEPOINT pgs_statement").is_ok();
        let done = self.session.try_run(sql);
        if in_transaction {
            let end =
                if done.is_ok() { "RELEASE pgs_statement" } else { "ROLLBACK TO pgs_statement" };
            self.session.try_run(end).map_err(|error| unexpected(&error, "", sql))?;
        }
        match done {
            Err(error) if error.code != LOCKED && !OF_THE_CHANGE.contains(&error.code.as_str()) => {
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
        let sql = format!("SELECT pgstream.refresh_stream_table('{}')", one.name);
        // In a transaction, an error must leave the changes in place.
        let in_transaction = self.session.try_run("SAVEPOINT pgs_refresh").is_ok();
        let done = self.session.try_run(&sql);
        if in_transaction {
            let end = if done.is_ok() { "RELEASE pgs_refresh" } else { "ROLLBACK TO pgs_refresh" };
            self.session.try_run(end).map_err(|error| failed(&error))?;
        }
        if let Err(error) = done {
            // Somebody else refreshed, or holds a lock.
            if matches!(error.code.as_str(), LOCKED | "40001") {
                return Ok(());
            }
            if error.code != "08006" && self.query_fails(one) {
                self.outcome.query_errors += 1;
                return Ok(());
            }
            return Err(failed(&error));
        }
        self.compare(one, "refresh")?;
        let history = oracle::history_since(&mut self.session, &one.name, before)
            .map_err(|it| failed(&it))?;
        let may_be_full = self.may_be_full || self.truncated.contains(&one.name);
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

    /// Whether the query itself raises an error on what the tables hold now.
    fn query_fails(&mut self, one: &StreamTable) -> bool {
        let _ = self.session.try_run("SAVEPOINT pgs_query");
        let fails = self.session.try_rows(&one.query.to_string()).is_err();
        let _ = self.session.try_run("ROLLBACK TO pgs_query");
        fails
    }

    fn compare(&mut self, one: &StreamTable, after: &str) -> Result<(), Failure> {
        let query = match self.oracle {
            Oracle::Query => one.query.to_string(),
            Oracle::Wrong => format!("SELECT * FROM ({}) AS pgs_wrong OFFSET 1", one.query),
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
