//! The workers of a scheduler. They are started when there is more to do than those can that there
//! are, keep what they know between two refreshes, and end when they have been idle for a while, or when
//! a scheduler or a decoder lacks a process: those come first.

use pgrx::pg_sys::Oid;
use pgstream_core::schedule::{Micros, SECOND};

use crate::{
    pg::{
        job::{self, Job, Phase},
        shmem,
        worker::{self, Started},
    },
    scheduler::{refresher, unit::Report},
};

/// After it was found that there are no processes left, how long not to ask again.
const PAUSE: Micros = 10 * SECOND;

struct Worker {
    job: &'static Job,
    process: Started,
    /// What it refreshes now, or did last.
    tables: Vec<i64>,
    /// For how many milliseconds it waits for locks.
    patience: u32,
    is_busy: bool,
}

/// A refresh that ended.
pub struct Finished {
    pub tables: Vec<i64>,
    /// For each table, unless the process was lost.
    pub reports: Option<Vec<Report>>,
    /// The position of the last one that it was at.
    pub current: usize,
}

/// What became of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dispatch {
    /// A worker has it.
    Begun,
    /// All workers that there may be are busy.
    Full,
    /// There is no worker, and none may or can be started.
    NoWorker,
}

/// See the module.
pub struct Pool {
    database: Oid,
    workers: Vec<Worker>,
    /// Until when not to ask for more processes.
    short_until: Micros,
    is_short: bool,
}

impl Pool {
    pub fn new(database: Oid) -> Self {
        Self { database, workers: Vec::new(), short_until: 0, is_short: false }
    }

    /// The refreshes that ended since the last call.
    pub fn collect(&mut self) -> Vec<Finished> {
        let mut finished = Vec::new();
        self.workers.retain_mut(|worker| {
            // In this order: a process that has ended changes nothing any more.
            let has_ended = worker.process.has_ended();
            let is_done = worker.job.phase() == Phase::Done;
            if worker.is_busy && (is_done || has_ended) {
                finished.push(worker.finish(is_done));
            }
            if has_ended {
                worker.process.forget();
                worker.job.free();
            } else if is_done {
                worker.job.take_back();
            }
            !has_ended
        });
        finished
    }

    /// Gives the tables to a worker: best the one that refreshed them last, which knows them.
    pub fn dispatch(&mut self, tables: &[i64], detours: u32, most: usize, now: Micros) -> Dispatch {
        let patience = self.patience(detours, most);
        let mut idle: Vec<usize> =
            (0..self.workers.len()).filter(|it| !self.workers[*it].is_busy).collect();
        idle.sort_by_key(|it| self.workers[*it].tables.first() != tables.first());
        if self.workers.len() - idle.len() >= most {
            return Dispatch::Full;
        }
        if !shmem::are_processes_reserved() {
            for index in idle {
                if self.workers[index].assign(tables, patience) {
                    return Dispatch::Begun;
                }
            }
            if self.workers.len() < most && now >= self.short_until {
                if self.start(tables, patience) {
                    self.is_short = false;
                    return Dispatch::Begun;
                }
                self.short_until = now + PAUSE;
                self.warn();
            }
        }
        if self.workers.iter().any(|it| it.is_busy) { Dispatch::Full } else { Dispatch::NoWorker }
    }

    /// For how long to wait for locks: the longer, the more often somebody was in the way. Who waits keeps
    /// a worker from others, so half of them never wait for long.
    fn patience(&self, detours: u32, most: usize) -> u32 {
        let is_patient = |it: &&Worker| it.is_busy && it.patience > worker::PATIENCE;
        let longest = if self.workers.iter().filter(is_patient).count() < most / 2 { 5 } else { 0 };
        worker::PATIENCE << detours.min(longest)
    }

    fn start(&mut self, tables: &[i64], patience: u32) -> bool {
        let Some((job, number)) = job::claim(self.database) else { return false };
        job.assign(tables, patience);
        let Some(process) = worker::start(refresher::NAME, "pg_stream_refresher_main", number)
        else {
            job.free();
            return false;
        };
        let tables = tables.to_vec();
        self.workers.push(Worker { job, process, tables, patience, is_busy: true });
        true
    }

    /// Once until there are enough again.
    fn warn(&mut self) {
        if std::mem::replace(&mut self.is_short, true) {
            return;
        }
        pgrx::ereport!(
            WARNING,
            pgrx::PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            format!(
                "pg_stream has only {} of the workers that pg_stream.max_concurrent_refreshes allows",
                self.workers.len()
            ),
            "All background worker processes are in use. Raise max_worker_processes, or lower \
             pg_stream.max_concurrent_refreshes."
        );
    }
}

impl Worker {
    fn assign(&mut self, tables: &[i64], patience: u32) -> bool {
        self.is_busy = self.job.assign(tables, patience);
        if self.is_busy {
            self.tables = tables.to_vec();
            self.patience = patience;
        }
        self.is_busy
    }

    fn finish(&mut self, is_done: bool) -> Finished {
        self.is_busy = false;
        let numbers = (0..self.tables.len()).map(|it| self.job.result(it));
        Finished {
            reports: is_done.then(|| numbers.filter_map(Report::from_number).collect()),
            tables: self.tables.clone(),
            current: self.job.current(),
        }
    }
}
