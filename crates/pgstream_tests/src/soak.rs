//! The soak: many writers, stream tables on several levels, the real scheduler, and everything that
//! goes wrong in a long life, at random. At checkpoints and at the end every stream table must equal
//! its query, the workers' memory must be flat, and the change buffers drained.
//!
//! A seed repeats what each thread does, not how the threads meet.

mod check;
mod disturb;
mod watch;
mod world;
mod write;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    database::Database,
    fuzz::Random,
    server::Server,
    session::{Session, SqlError},
};

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub seed: u64,
    pub duration: Duration,
    pub writers: usize,
    /// Whether changes are captured from the write-ahead log, on and off.
    pub wal: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// How often each kind of thing was done.
    pub done: BTreeMap<String, u64>,
    /// Errors that are a matter of course here, by code.
    pub errors: BTreeMap<String, u64>,
    /// Lines about memory and buffers.
    pub notes: Vec<String>,
    pub failures: Vec<String>,
}

/// What the threads share.
struct Soak {
    database: Database,
    options: Options,
    report: Mutex<Report>,
    /// Held for reading while something is done, for writing while nothing may be.
    activity: RwLock<()>,
    over: AtomicBool,
    /// Counts crashes that were caused on purpose.
    crashes: AtomicU64,
}

impl Soak {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Permission to do something, until the guard is dropped.
    fn active(&self) -> RwLockReadGuard<'_, ()> {
        self.activity.read().expect("no thread panics with the lock")
    }

    fn report<T>(&self, change: impl FnOnce(&mut Report) -> T) -> T {
        change(&mut self.report.lock().expect("no thread panics with the lock"))
    }

    fn done(&self, what: &str) {
        self.report(|it| *it.done.entry(what.to_owned()).or_default() += 1);
    }

    fn fail(&self, message: String) {
        eprintln!("FAILED: {message}");
        self.report(|it| it.failures.push(message));
    }

    /// Notes the result of a statement. An error that neither cancels, deadlocks nor crashes explain
    /// is a failure.
    fn note(&self, what: &str, sql: &str, result: &Result<(), SqlError>, expected: &[&str]) {
        /// Serialization, deadlock, cancel or time-out, lock time-out, skipped or suspended,
        /// termination, crash, not accepting, loss of the connection, in a failed transaction.
        const ORDINARY: [&str; 11] = [
            "40001", "40P01", "57014", "55P03", "57P01", "57P02", "57P03", "08006", "25P02",
            "55006", "25P04",
        ];
        match result {
            Ok(()) => self.done(what),
            Err(error)
                if ORDINARY.contains(&error.code.as_str())
                    || expected.contains(&error.code.as_str()) =>
            {
                self.report(|it| *it.errors.entry(error.code.clone()).or_default() += 1);
            }
            Err(error) => self.fail(format!("{what}: {error}\n{sql}")),
        }
    }
}

/// A session that is replaced when it was lost.
struct Lasting<'a> {
    soak: &'a Soak,
    session: Option<Session>,
}

impl<'a> Lasting<'a> {
    fn new(soak: &'a Soak) -> Self {
        Self { soak, session: None }
    }

    fn session(&mut self) -> &mut Session {
        self.session.get_or_insert_with(|| {
            let mut session = self.soak.database.session_after_crash();
            // What a prepared transaction holds that a cancel has left open stays locked until the
            // next checkpoint.
            let _ignored = session.try_run("SET lock_timeout = '3s'");
            session
        })
    }

    /// Runs statements; after an error no transaction is left open.
    fn run(&mut self, sql: &str) -> Result<(), SqlError> {
        let result = self.session().try_run(sql);
        if let Err(error) = &result
            && (is_lost(error) || self.session().try_run("ROLLBACK").is_err())
        {
            self.session = None;
        }
        result
    }
}

fn is_lost(error: &SqlError) -> bool {
    matches!(error.code.as_str(), "08006" | "57P01" | "57P02" | "57P03" | "25P04")
}

/// Runs the soak on a server of its own.
pub fn run(options: Options) -> Report {
    let wal = ["wal_level=logical", "output_plugin_libraries=pg_stream", "pg_stream.cdc_mode=auto"];
    let settings = [
        "fsync=off",
        "log_min_messages=warning",
        "deadlock_timeout=200ms",
        "pg_stream.scheduler_interval_ms=100",
        "pg_stream.min_schedule_seconds=1",
        "pg_stream.max_consecutive_errors=100",
        // So that the one that sleeps is given up.
        "pg_stream.buffer_warning_mb=1",
        "pg_stream.buffer_limit_mb=1",
    ];
    let server = Server::start(&[&settings[..], if options.wal { &wal } else { &[] }].concat());
    let soak = Soak {
        database: Database::on(server),
        options,
        report: Mutex::default(),
        activity: RwLock::new(()),
        over: AtomicBool::new(false),
        crashes: AtomicU64::new(0),
    };
    world::create(&mut soak.database.session(), options.wal);
    let end = Instant::now() + options.duration;
    thread::scope(|scope| {
        let soak = &soak;
        for number in 0..options.writers {
            scope.spawn(move || write::run(soak, number));
        }
        scope.spawn(|| disturb::definitions(soak));
        if options.wal {
            scope.spawn(|| disturb::capture(soak));
        }
        scope.spawn(|| disturb::refreshes(soak));
        scope.spawn(|| disturb::sessions(soak, end));
        let watch = scope.spawn(|| watch::run(soak));
        check::at_checkpoints(soak, end);
        soak.over.store(true, Ordering::Relaxed);
        watch.join().expect("watching does not panic");
    });
    check::at_the_end(&soak);
    let Soak { report, .. } = soak;
    report.into_inner().expect("no thread panicked")
}

/// A source of choices for one thread.
fn random(soak: &Soak, thread: u64) -> Random {
    Random::new(soak.options.seed.wrapping_mul(1000).wrapping_add(thread))
}

fn pause(milliseconds: usize) {
    thread::park_timeout(Duration::from_millis(milliseconds as u64));
}
