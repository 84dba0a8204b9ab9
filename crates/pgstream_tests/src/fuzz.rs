//! The random tester: tables, stream tables and changes from a seed, compared with the queries
//! after each refresh. A failure is shrunk to a short SQL script.

mod case;
mod construct;
mod definition;
mod expression;
mod query;
mod random;
mod relation;
mod runner;
mod schema;
mod security;
mod select;
mod shrink;
mod smaller;
mod sub_query;
mod syntax;
mod types;
mod value;
mod window;

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::database::Database;

pub use case::Oracle;
use case::{Case, Failure, Outcome};
use construct::Coverage;
pub use random::Random;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The seed of the first case; the next has the next.
    pub seed: u64,
    pub duration: Duration,
    /// No more cases than this.
    pub cases: u64,
    pub workers: usize,
    /// Stop after so many failures.
    pub failures: usize,
    pub oracle: Oracle,
    /// Where scripts of failures are written.
    pub directory: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    pub cases: u64,
    pub stream_tables: u64,
    /// Stream tables that were refused with 0A000.
    pub refused: u64,
    /// Queries that PostgreSQL itself rejects, or that return too many rows.
    pub unusable: BTreeMap<String, u64>,
    pub refreshes: u64,
    /// Refreshes after which the query itself raised an error.
    pub query_errors: u64,
    /// The reasons of refusals and how often they came, for the generator's keeper.
    pub refusals: BTreeMap<String, u64>,
    /// Why stream tables are evaluated as a whole, and how often.
    pub whole: BTreeMap<String, u64>,
    pub coverage: Coverage,
    /// Seeds of cases that were left when a statement had taken a minute: over tables of ten rows there
    /// are queries that PostgreSQL cuts short and that have millions of rows inside.
    pub slow: Vec<u64>,
    /// Seed, and the script that shows the failure.
    pub failures: Vec<(u64, String)>,
}

impl Report {
    fn add(&mut self, outcome: &Outcome) {
        self.cases += 1;
        self.stream_tables += outcome.created + outcome.refused.len() as u64;
        self.refused += outcome.refused.len() as u64;
        for reason in &outcome.unusable {
            *self.unusable.entry(reason.clone()).or_default() += 1;
        }
        self.refreshes += outcome.refreshes;
        self.query_errors += outcome.query_errors;
        for reason in &outcome.refused {
            // Without the number of the case's schema.
            let words: Vec<_> = reason.split(' ').map(without_schema).collect();
            *self.refusals.entry(words.join(" ")).or_default() += 1;
        }
        for (constructs, reasons) in &outcome.queries {
            self.coverage.add(constructs, !reasons.is_empty());
            for reason in reasons {
                *self.whole.entry(reason.clone()).or_default() += 1;
            }
        }
    }
}

fn without_schema(word: &str) -> &str {
    match word.strip_prefix('f').and_then(|it| it.split_once('.')) {
        Some((number, name)) if number.bytes().all(|it| it.is_ascii_digit()) => name,
        _ => word,
    }
}

/// Runs cases until the time is over or enough have failed.
pub fn run(options: &Options) -> Report {
    let report = Mutex::new(Report::default());
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let deadline = Instant::now() + options.duration;
    thread::scope(|scope| {
        for _ in 0..options.workers {
            scope.spawn(|| work(options, deadline, &next, &stop, &report));
        }
    });
    report.into_inner().expect("no worker panicked")
}

fn work(
    options: &Options,
    deadline: Instant,
    next: &AtomicU64,
    stop: &AtomicBool,
    report: &Mutex<Report>,
) {
    let mut database = Database::new();
    let mut in_this_database = 0;
    while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= options.cases {
            return;
        }
        let (seed, case) = choose(options, number, report);
        let outcome = case.run(&database, options.oracle);
        report.lock().expect("no worker panicked").add(&outcome);
        in_this_database += 1;
        let failure = outcome.failure.as_ref();
        if failure.is_some_and(Failure::is_timeout) {
            report.lock().expect("no worker panicked").slow.push(seed);
        } else if let Some(failure) = failure {
            database.wait_until_up();
            let (small, failure) = shrink::shrink(&case, failure, &database, options.oracle);
            let script = small.script(&failure);
            save(options, seed, &script);
            let mut report = report.lock().expect("no worker panicked");
            report.failures.push((seed, script));
            if report.failures.len() >= options.failures {
                stop.store(true, Ordering::Relaxed);
            }
        }
        if outcome.failure.is_some() || in_this_database >= 200 {
            database = Database::new();
            in_this_database = 0;
        }
    }
}

/// Of a few cases the one with the most new pairs of constructs; half of the time the first, for
/// these are large. A number of cases that is given means these very cases.
fn choose(options: &Options, number: u64, report: &Mutex<Report>) -> (u64, Case) {
    const CHOICES: u64 = 12;
    let choices = if options.cases == u64::MAX && number % 2 == 1 { CHOICES } else { 1 };
    let first = options.seed.wrapping_add(if options.cases == u64::MAX {
        number * CHOICES
    } else {
        number
    });
    let cases: Vec<_> = (first..first + choices).map(|seed| (seed, Case::random(seed))).collect();
    let report = report.lock().expect("no worker panicked");
    let news = |case: &Case| -> usize {
        case.stream_tables.iter().map(|it| report.coverage.news(&it.constructs)).sum()
    };
    let best = cases.into_iter().max_by_key(|(_, case)| news(case));
    best.expect("a choice at least")
}

fn save(options: &Options, seed: u64, script: &str) {
    if let Some(directory) = &options.directory {
        fs::create_dir_all(directory).expect("the directory for failures can be made");
        fs::write(directory.join(format!("{seed}.sql")), script).expect("a script can be written");
    }
}
