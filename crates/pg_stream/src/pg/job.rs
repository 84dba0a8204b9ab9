//! Jobs in shared memory: what a scheduler asks of one of its workers, and what came of it.
//!
//! A job belongs to a scheduler from `claim` to `free`, and to the worker in between whenever its
//! phase is `Assigned`. The worker writes the results and then the phase, so the scheduler reads
//! them whole. A worker that lost its scheduler frees the job itself when it ends; a job whose worker
//! ended first, and then its scheduler before it looked, is there for the next one that claims.

use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering::SeqCst};

use pgrx::pg_sys::{self, Oid};

use pgstream_core::decide::MOST_TABLES;

use super::shmem::{self, NO_PROCESS, Slot};

/// The most workers that all schedulers of a server can have.
pub(in crate::pg) const JOBS: usize = 64;

/// See the module.
#[repr(C)]
pub struct Job {
    /// The scheduler that it belongs to; 0 while it is free.
    owner: AtomicI32,
    /// Tells a worker that it is the one that was started for this job.
    token: AtomicU32,
    database: AtomicU32,
    phase: AtomicU32,
    /// Where the worker's latch is.
    worker: AtomicI32,
    /// Its process; 0 before it starts.
    worker_pid: AtomicI32,
    /// How long the worker waits for a lock, in milliseconds.
    patience: AtomicU32,
    count: AtomicU32,
    /// The position of the stream table that is being refreshed.
    current: AtomicU32,
    tables: [AtomicI64; MOST_TABLES],
    results: [AtomicU64; MOST_TABLES],
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    /// The worker waits for something to do.
    Idle,
    /// The worker has it, or is about to take it.
    Assigned,
    /// The results are there.
    Done,
    /// The worker has ended.
    Ended,
}

/// Instead of the process of a worker that has ended.
const LEFT: i32 = -1;

const PHASES: [Phase; 4] = [Phase::Idle, Phase::Assigned, Phase::Done, Phase::Ended];

/// A job that nobody uses, for this process, which is the scheduler of `database`. Gives its number
/// for the worker.
pub fn claim(database: Oid) -> Option<(&'static Job, usize)> {
    // SAFETY: reads a variable of this process.
    let me = unsafe { pg_sys::MyProcPid };
    for (index, job) in shmem::jobs().iter().enumerate() {
        let owner = job.owner.load(SeqCst);
        let is_unused = owner == 0 || job.is_abandoned(owner);
        if is_unused && job.owner.compare_exchange(owner, me, SeqCst, SeqCst).is_ok() {
            let token = job.token.fetch_add(1, SeqCst).wrapping_add(1);
            job.database.store(database.to_u32(), SeqCst);
            job.worker.store(NO_PROCESS, SeqCst);
            job.worker_pid.store(0, SeqCst);
            job.phase.store(Phase::Idle as u32, SeqCst);
            return Some((job, (token as usize) << 32 | index));
        }
    }
    None
}

/// The job that a worker was started for, unless that is no longer wanted.
pub fn of_worker(number: usize) -> Option<&'static Job> {
    let job = shmem::jobs().get(number & 0xffff_ffff)?;
    (job.token.load(SeqCst) as usize == number >> 32).then_some(job)
}

/// The processes of all workers in a database.
pub fn processes(database: Oid) -> impl Iterator<Item = i32> {
    let in_database = move |it: &&Job| it.database() == database;
    let pids = shmem::jobs().iter().filter(in_database).map(|it| it.worker_pid.load(SeqCst));
    pids.filter(|it| *it > 0)
}

/// Lets the workers of this process, a scheduler that ends, look around: they end as well.
pub fn dismiss_workers() {
    // SAFETY: reads a variable of this process.
    let me = unsafe { pg_sys::MyProcPid };
    shmem::jobs().iter().filter(|it| it.owner.load(SeqCst) == me).for_each(Job::wake_worker);
}

/// Lets the workers of all schedulers look around.
pub(in crate::pg) fn wake_workers() {
    shmem::jobs().iter().filter(|it| it.owner.load(SeqCst) != 0).for_each(Job::wake_worker);
}

impl Job {
    pub fn database(&self) -> Oid {
        Oid::from(self.database.load(SeqCst))
    }

    pub fn phase(&self) -> Phase {
        PHASES[self.phase.load(SeqCst) as usize]
    }

    /// Gives the job back.
    pub fn free(&self) {
        self.database.store(0, SeqCst);
        self.owner.store(0, SeqCst);
    }

    /// Whether both the worker and its scheduler, which is `owner`, have ended.
    fn is_abandoned(&self, owner: i32) -> bool {
        self.worker_pid.load(SeqCst) == LEFT
            && shmem::slots().all(|(_, slot)| slot.worker_pid() != Some(owner))
    }

    /// The scheduler asks for a refresh of these stream tables; the worker must be idle. False when
    /// it has just ended.
    pub fn assign(&self, tables: &[i64], patience: u32) -> bool {
        for (index, table) in tables.iter().enumerate() {
            self.tables[index].store(*table, SeqCst);
            self.results[index].store(0, SeqCst);
        }
        self.count.store(u32::try_from(tables.len()).expect("at most 1024"), SeqCst);
        self.current.store(0, SeqCst);
        self.patience.store(patience, SeqCst);
        let (idle, assigned) = (Phase::Idle as u32, Phase::Assigned as u32);
        let is_idle = self.phase.compare_exchange(idle, assigned, SeqCst, SeqCst).is_ok();
        self.wake_worker();
        is_idle
    }

    /// The scheduler has read the results.
    pub fn take_back(&self) {
        self.phase.store(Phase::Idle as u32, SeqCst);
        if shmem::are_processes_reserved() {
            self.wake_worker();
        }
    }

    fn wake_worker(&self) {
        shmem::set_latch(self.worker.load(SeqCst));
    }

    /// This process is the worker.
    pub fn enter(&self) {
        // SAFETY: reads variables of this process.
        unsafe {
            self.worker.store(pg_sys::MyProcNumber, SeqCst);
            self.worker_pid.store(pg_sys::MyProcPid, SeqCst);
        }
    }

    /// The worker ends. What it was assigned stays so, for the scheduler to see.
    pub fn leave(&self, slot: &Slot) {
        self.end_if_idle();
        self.worker.store(NO_PROCESS, SeqCst);
        if self.has_owner(slot) {
            self.worker_pid.store(LEFT, SeqCst);
        } else {
            self.free();
        }
    }

    /// The worker ends unless it was just assigned something.
    pub fn end_if_idle(&self) -> bool {
        let (idle, ended) = (Phase::Idle as u32, Phase::Ended as u32);
        self.phase.compare_exchange(idle, ended, SeqCst, SeqCst).is_ok()
    }

    /// Whether the scheduler that claimed the job still runs.
    pub fn has_owner(&self, slot: &Slot) -> bool {
        slot.worker_pid() == Some(self.owner.load(SeqCst))
    }

    /// The worker's results are complete.
    pub fn finish(&self) {
        self.phase.store(Phase::Done as u32, SeqCst);
    }

    pub fn tables(&self) -> Vec<i64> {
        let count = self.count.load(SeqCst) as usize;
        self.tables[..count].iter().map(|it| it.load(SeqCst)).collect()
    }

    pub fn patience(&self) -> u32 {
        self.patience.load(SeqCst)
    }

    pub fn set_current(&self, position: usize) {
        self.current.store(u32::try_from(position).unwrap_or(u32::MAX), SeqCst);
    }

    pub fn current(&self) -> usize {
        self.current.load(SeqCst) as usize
    }

    /// A number that means something to scheduler and worker, for the table at `position`.
    pub fn set_result(&self, position: usize, result: u64) {
        self.results[position].store(result, SeqCst);
    }

    pub fn result(&self, position: usize) -> u64 {
        self.results[position].load(SeqCst)
    }
}
