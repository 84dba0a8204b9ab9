//! One case: how it is made from a seed, how it runs, and how it is written as a script.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{
    construct::{Construct, Constructs, half},
    definition,
    query::{Generated, Source, query_without},
    random::Random,
    runner::Runner,
    schema::{Computed, OTHER_SCHEMA, Table},
    security::{READER, Security},
    syntax::{Body, Query},
};
use crate::{
    database::Database,
    oracle::{self, Comparison},
    session::SqlError,
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
    /// Whether errors of cardinality may come, which depends on what is evaluated.
    pub may_fail: bool,
    pub constructs: Constructs,
    /// A trigger that sees each row that is written, and changes nothing.
    pub trigger: Option<&'static str>,
    /// Whether it is refreshed while the search path is another.
    pub is_qualified: bool,
    /// A setting of whoever refreshes it, who did not create it.
    pub foreign: Option<&'static str>,
}

/// Triggers of users on a stream table, by what is written between CREATE TRIGGER … and ON.
const TRIGGERS: [&str; 4] = [
    "BEFORE INSERT OR UPDATE OR DELETE",
    "BEFORE UPDATE",
    "AFTER INSERT OR UPDATE OR DELETE",
    "AFTER DELETE",
];

/// Aggregates that are made where a query calls them.
const AGGREGATES: [(&str, &str); 2] = [
    ("total(", "CREATE AGGREGATE total (int) (SFUNC = int4pl, STYPE = int, INITCOND = '0')"),
    ("longest(", "CREATE AGGREGATE longest (text) (SFUNC = text_larger, STYPE = text)"),
];

/// One step of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A statement, in a savepoint of its own if it may violate a key inside a transaction.
    Sql(String),
    /// A change of definition, in a savepoint likewise.
    Define(String),
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

    /// The statement that changes something.
    pub fn change(&self) -> Option<&str> {
        match self {
            Self::Sql(sql) | Self::Define(sql) => Some(sql),
            Self::Other(step) => step.change(),
            Self::Control(_) | Self::Refresh(_) => None,
        }
    }

    /// For psql.
    fn script(&self) -> String {
        match self {
            Self::Sql(sql) | Self::Define(sql) | Self::Control(sql) => format!("{sql};"),
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
    /// Row-level security; without it, all belongs to a superuser.
    pub security: Option<Security>,
    /// Whether the changes are made in other batches and another order too, which must end in the
    /// same tables.
    pub metamorphic: bool,
}

/// What went wrong, where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// `wrong rows`, `not differential`, `crash`, or the SQLSTATE of an unexpected error.
    pub kind: String,
    pub stream_table: String,
    pub message: String,
}

impl Failure {
    /// Whether a statement took too long or too much disk, which says nothing about its result.
    pub fn is_timeout(&self) -> bool {
        ["error 57014", "error 53400"].contains(&self.kind.as_str())
    }
}

#[derive(Debug, Default)]
pub struct Outcome {
    pub created: u64,
    /// The messages of refusals.
    pub refused: Vec<String>,
    /// Why queries were of no use: the SQLSTATEs of PostgreSQL's own errors.
    pub unusable: Vec<String>,
    pub refreshes: u64,
    pub query_errors: u64,
    /// At the end, a stream table could not be refreshed: what it holds is of before.
    pub is_stale: bool,
    /// Of each stream table created, its constructs, and why parts are evaluated as a whole.
    pub queries: Vec<(Constructs, Vec<String>)>,
    pub failure: Option<Failure>,
}

impl Case {
    pub fn random(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let random = &mut random;
        let mut tables: Vec<_> =
            (1..=random.between(1, 4)).map(|number| Table::random(number, random)).collect();
        let metamorphic = random.chance(10);
        if metamorphic {
            // Which row gets which number depends on the order of the changes.
            let is_identity = |it: &Table| matches!(&it.computed, Some((Computed::Identity, ..)));
            tables.iter_mut().filter(|it| is_identity(it)).for_each(|it| it.computed = None);
        }
        let without = if random.chance(50) { half(random) } else { Constructs::new() };
        let mut sources: Vec<_> = tables.iter().flat_map(Table::sources).collect();
        let mut views = Vec::new();
        let (mut view_is_open, mut view_may_fail) = (false, false);
        if random.chance(15) {
            let view = query_without(&without, &sources, random);
            (view_is_open, view_may_fail) = (view.is_open, view.may_fail);
            let mut constructs = view.constructs;
            constructs.insert(Construct::View);
            let name = "v1".to_owned();
            sources.push(Source { name, columns: view.columns, is_table: false, constructs });
            views.push(View { name: "v1".to_owned(), query: view.query });
        }
        let mut stream_tables = Vec::new();
        for number in 1..=random.between(1, 3) {
            let mut generated = query_without(&without, &sources, random);
            rename_outputs(&mut generated, random);
            let name = match random.below(10) {
                0 => format!("\"St {number}\""),
                1 => format!("\"{}ß{number}\"", "s".repeat(60)),
                _ => format!("st{number}"),
            };
            sources.push(Source {
                name: name.clone(),
                columns: generated.columns,
                is_table: false,
                constructs: [Construct::StreamTable].into(),
            });
            let is_open = generated.is_open || view_is_open;
            let comparison = if is_open { Comparison::Value } else { Comparison::Text };
            let round = if metamorphic || random.chance(80) { 0 } else { random.below(2) };
            let may_fail = generated.may_fail || view_may_fail;
            let Generated { query, constructs, .. } = generated;
            let trigger = random.chance(10).then(|| *random.pick(&TRIGGERS));
            let is_qualified = random.chance(25);
            let foreign = random.chance(20).then(|| *random.pick(&definition::FOREIGN));
            stream_tables.push(StreamTable {
                name,
                query,
                comparison,
                round,
                may_fail,
                constructs,
                trigger,
                is_qualified,
                foreign,
            });
        }
        // Who reads a stream table must be handed what is stored in it.
        for at in 0..stream_tables.len() {
            let name = format!("{} AS ", stream_tables[at].name);
            if stream_tables.iter().any(|it| it.query.to_string().contains(&name)) {
                stream_tables[at].trigger = None;
            }
        }
        let rounds = 0..random.between(2, 5);
        let mut rounds: Vec<_> = if metamorphic {
            rounds.map(|_| determined_round(&tables, &stream_tables, random)).collect()
        } else {
            rounds.map(|_| random_round(&tables, &stream_tables, random)).collect()
        };
        if !metamorphic && random.chance(30) {
            add_second_session(&tables, &stream_tables, random, &mut rounds);
        }
        let security = random.chance(15).then(|| Security::random(&tables, &views, random));
        for _ in 0..if metamorphic || random.chance(75) { 0 } else { random.between(1, 3) } {
            let changes = definition::change(&tables, &views, security.as_ref(), random);
            add_in_order(changes.into_iter().map(Step::Define), random, &mut rounds);
        }
        if let (Some(security), false) = (&security, metamorphic)
            && random.chance(30)
        {
            let change = security.change(&tables, random).map(Step::Sql);
            let round = random.below(rounds.len());
            rounds[round].splice(0..0, change);
        }
        Self { tables, views, stream_tables, rounds, security, metamorphic }
    }

    /// Runs it in schemas of its own, which are dropped afterwards.
    pub fn run(&self, database: &Database, oracle: Oracle) -> Outcome {
        let mut outcome = Outcome::default();
        let mut schemas = vec![next_schema()];
        outcome.failure = self.run_in(&schemas[0], database, oracle, &mut outcome).err();
        if self.metamorphic && outcome.failure.is_none() && !outcome.is_stale {
            for (name, variant) in self.variants() {
                schemas.push(next_schema());
                let schemas = (schemas[0].as_str(), schemas[schemas.len() - 1].as_str());
                let mut otherwise = Outcome::default();
                let mut result = variant.run_in(schemas.1, database, oracle, &mut otherwise);
                if result.is_ok() && !otherwise.is_stale {
                    result = self.compare_schemas(schemas, name, database);
                }
                outcome.failure = result.err();
                if outcome.failure.is_some() {
                    break;
                }
            }
        }
        if outcome.failure.as_ref().is_none_or(|failure| failure.kind != "crash")
            && let Ok(mut session) = database.try_session()
        {
            let dropped = session.try_run(&format!(
                "SET client_min_messages = error; SET statement_timeout = '60s'; DROP SCHEMA IF EXISTS {0}, {1} CASCADE",
                schemas.join(", "),
                schemas.iter().map(|it| other_schema(it)).collect::<Vec<_>>().join(", ")
            ));
            if let (Err(error), None) = (dropped, &outcome.failure) {
                outcome.failure = Some(unexpected(&error, "", "DROP SCHEMA ... CASCADE"));
            }
        }
        outcome
    }

    fn run_in(
        &self,
        schema: &str,
        database: &Database,
        oracle: Oracle,
        outcome: &mut Outcome,
    ) -> Result<(), Failure> {
        let sessions = database.try_session().and_then(|it| Ok((it, database.try_session()?)));
        let sessions = sessions.map_err(|error| unexpected(&error, "", "connecting"))?;
        Runner::new(sessions, (self, schema), oracle, outcome).run()
    }

    /// The same changes, otherwise.
    fn variants(&self) -> Vec<(&'static str, Self)> {
        let changes = self.rounds.iter().flatten().filter(|it| matches!(it, Step::Sql(_)));
        let with = |rounds: Vec<Vec<Step>>| Self { rounds, ..self.clone() };
        let control = |sql: &str| Step::Control(sql.to_owned());
        let changes: Vec<_> = changes.cloned().collect();
        let mut at_once = vec![control("BEGIN")];
        at_once.extend(changes.iter().cloned());
        at_once.push(control("COMMIT"));
        let refreshes: Vec<_> =
            self.stream_tables.iter().map(|it| Step::Refresh(it.name.clone())).collect();
        let one_by_one = changes
            .iter()
            .map(|change| [std::slice::from_ref(change), &refreshes[..]].concat())
            .collect();
        // Statements about different tables commute.
        let by_table = self.tables.iter().rev().map(|table| {
            let of_table =
                |step: &&Step| matches!(step, Step::Sql(sql) if table.is_mentioned_in(sql));
            changes.iter().filter(of_table).cloned().chain(refreshes.first().cloned()).collect()
        });
        vec![
            ("all changes at once", with(vec![at_once])),
            ("a refresh after each change", with(one_by_one)),
            ("the changes table by table", with(by_table.collect())),
        ]
    }

    fn compare_schemas(
        &self,
        (one, other): (&str, &str),
        variant: &str,
        database: &Database,
    ) -> Result<(), Failure> {
        let mut session =
            database.try_session().map_err(|error| unexpected(&error, "", "connecting"))?;
        for it in &self.stream_tables {
            let (one, other) = (format!("{one}.{}", it.name), format!("{other}.{}", it.name));
            let both = [&one, &other].map(|name| oracle::columns_of(&mut session, name));
            // Refused, or of no use.
            let [Ok(columns), Ok(_)] = both else { continue };
            let query = format!("SELECT {columns} FROM {one}");
            let difference = match oracle::difference(&mut session, &other, &query, it.comparison) {
                Ok(difference) => difference,
                // Types of the one schema are not those of the other.
                Err(error) if matches!(error.code.as_str(), "42846" | "42804") => continue,
                Err(error) => return Err(unexpected(&error, &it.name, variant)),
            };
            if let Some(difference) = difference {
                return Err(Failure {
                    kind: "wrong rows".to_owned(),
                    stream_table: it.name.clone(),
                    message: format!("{} differs with {variant}\n{difference}", it.name),
                });
            }
        }
        Ok(())
    }

    /// The statements that set the case up, without the stream tables.
    pub(super) fn set_up(&self, schema: &str) -> Vec<String> {
        let mut statements: Vec<String> = Vec::new();
        for need in self.tables.iter().flat_map(Table::needs) {
            if !statements.iter().any(|it| it == need) {
                statements.push(need.to_owned());
            }
        }
        let queries = self.stream_tables.iter().map(|it| it.query.to_string());
        let queries = queries.chain(self.views.iter().map(|it| it.query.to_string()));
        let queries: String = queries.collect();
        let called = AGGREGATES.iter().filter(|it| queries.contains(it.0));
        statements.extend(called.map(|it| it.1.to_owned()));
        statements.extend(self.tables.iter().flat_map(Table::create));
        if self.stream_tables.iter().any(|it| it.trigger.is_some()) {
            statements.push(TRIGGER_FUNCTION.to_owned());
        }
        statements.extend(
            self.views.iter().map(|view| format!("CREATE VIEW {} AS {}", view.name, view.query)),
        );
        if let Some(security) = &self.security {
            statements.extend(Security::roles(schema));
            statements.extend(security.statements.iter().cloned());
        }
        statements
    }

    /// The case for psql, with the failure as a comment.
    pub fn script(&self, failure: &Failure) -> String {
        let mut lines = vec![format!("-- {}", failure.kind)];
        lines.extend(failure.message.lines().map(|line| format!("--   {line}")));
        if self.security.is_some() || self.tables.iter().any(|it| it.is_elsewhere) {
            lines.push(format!("CREATE SCHEMA {OTHER_SCHEMA};"));
        }
        lines.extend(self.set_up("public").into_iter().map(|sql| sql + ";"));
        let as_reader = |line: String| match self.security {
            Some(_) => format!("SET ROLE {READER}; {line} RESET ROLE;"),
            None => line,
        };
        for round in 0..=self.rounds.len() {
            for one in self.stream_tables.iter().filter(|one| one.round == round) {
                lines.push(as_reader(format!(
                    "SELECT pgstream.create_stream_table('{}', $q${}$q$, '1d');",
                    one.name, one.query
                )));
                lines.extend(one.create_trigger().map(|it| it + ";"));
            }
            lines.extend(self.rounds.get(round).into_iter().flatten().map(Step::script));
        }
        if let Some(one) = self.stream_tables.iter().find(|one| one.name == failure.stream_table) {
            lines.push(format!("SELECT * FROM {} ORDER BY 1;", one.name));
            lines.push(as_reader(format!("{};", one.query)));
        }
        in_schema(&(lines.join("\n") + "\n"), "public")
    }
}

impl StreamTable {
    pub fn create_trigger(&self) -> Option<String> {
        let trigger = self.trigger?;
        Some(format!(
            "CREATE TRIGGER pgs_look {trigger} ON {} FOR EACH ROW EXECUTE FUNCTION pgs_look()",
            self.name
        ))
    }
}

const TRIGGER_FUNCTION: &str = "CREATE FUNCTION pgs_look() RETURNS trigger LANGUAGE plpgsql AS $f$
  BEGIN IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW; END $f$";

/// The second schema of a case that runs in `schema`.
pub fn other_schema(schema: &str) -> String {
    format!("{schema}_other")
}

/// A text of the case as it runs in `schema`.
pub fn in_schema(sql: &str, schema: &str) -> String {
    sql.replace(OTHER_SCHEMA, &other_schema(schema))
}

/// Gives some of the columns names that need care.
fn rename_outputs(generated: &mut Generated, random: &mut Random) {
    const NAMES: [&str; 10] = [
        "w",
        "n",
        "rid",
        "k0",
        "\"select\"",
        "\"Up Low\"",
        "\"q\"\"t\"",
        "\"ü.1\"",
        "s0_sum",
        "ctid_",
    ];
    let Body::Select(select) = &mut generated.query.body else { return };
    if !random.chance(20) {
        return;
    }
    let first = random.below(NAMES.len());
    let named = select.items.iter_mut().zip(&mut generated.columns).enumerate();
    for (at, (item, column)) in named.take(NAMES.len()) {
        if random.chance(60) {
            let name = NAMES[(first + at) % NAMES.len()];
            name.clone_into(&mut item.1);
            name.clone_into(&mut column.0);
        }
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

/// Changes whose result does not depend on where rows are stored.
fn determined_round(
    tables: &[Table],
    stream_tables: &[StreamTable],
    random: &mut Random,
) -> Vec<Step> {
    let mut steps: Vec<_> = (0..random.between(1, 4))
        .map(|_| Step::Sql(random.pick(tables).determined_change(random)))
        .collect();
    steps.extend(stream_tables.iter().map(|it| Step::Refresh(it.name.clone())));
    steps
}

fn next_schema() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("f{}", NEXT.fetch_add(1, Ordering::Relaxed))
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
    let begin = *random.pick(&["BEGIN", "BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ"]);
    let mut steps = vec![control(begin)];
    for _ in 0..random.between(1, 3) {
        let step = if random.chance(15) {
            Step::Refresh(random.pick(stream_tables).name.clone())
        } else {
            Step::Sql(random.pick(tables).change(random))
        };
        steps.push(step.other());
    }
    let end = if random.chance(20) { "ROLLBACK" } else { "COMMIT" };
    steps.push(control(end));
    add_in_order(steps, random, rounds);
}

/// Puts steps among the others, one after the other.
fn add_in_order(
    steps: impl IntoIterator<Item = Step>,
    random: &mut Random,
    rounds: &mut [Vec<Step>],
) {
    let mut place = (random.below(rounds.len()), 0);
    for step in steps {
        if place.0 + 1 < rounds.len() && random.chance(25) {
            place = (place.0 + 1, 0);
        }
        let round = &mut rounds[place.0];
        place.1 = random.between(place.1.min(round.len()), round.len());
        round.insert(place.1, step);
        place.1 += 1;
    }
}

pub(super) fn unexpected(error: &SqlError, stream_table: &str, doing: &str) -> Failure {
    let lost = error.code == "08006" || error.code.starts_with("57P");
    Failure {
        kind: if lost { "crash".to_owned() } else { format!("error {}", error.code) },
        stream_table: stream_table.to_owned(),
        message: format!("{doing}\n{error}"),
    }
}
