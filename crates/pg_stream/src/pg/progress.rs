//! How far the refreshes of all sessions are, in shared memory, as `pg_stat_progress_*` does it for
//! PostgreSQL's own commands.

use std::{
    ptr,
    sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed},
};

use pgrx::pg_sys::{self, Oid};

/// What a refresh does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    /// Waiting for locks on the stream table and its sources.
    Locking,
    ReadingChanges,
    /// Computing and applying the change of a stage.
    Applying,
    /// Evaluating the whole query and writing the difference.
    Evaluating,
    /// Storing the frontier and the history, handing on, cleaning up.
    Finishing,
}

const PHASES: [(Phase, &str); 5] = [
    (Phase::Locking, "waiting for locks"),
    (Phase::ReadingChanges, "reading changes"),
    (Phase::Applying, "applying changes"),
    (Phase::Evaluating, "evaluating the query"),
    (Phase::Finishing, "finishing"),
];

/// One session's entry; free while `pid` is 0.
#[repr(C)]
struct Entry {
    pid: AtomicI32,
    database: AtomicU32,
    stream_table: AtomicI64,
    started: AtomicI64,
    phase: AtomicU32,
    stages: AtomicU32,
    stages_done: AtomicU32,
    changes: AtomicU64,
}

/// What one session does.
pub struct Report {
    pub pid: i32,
    pub stream_table: i64,
    pub started: i64,
    pub phase: &'static str,
    pub stages: u32,
    pub stages_done: u32,
    pub changes: u64,
}

/// All entries, one for each process that can have a transaction.
fn entries() -> &'static [Entry] {
    static mut ENTRIES: (*const Entry, usize) = (ptr::null(), 0);
    // SAFETY: one thread. The segment stays mapped as long as the process lives; it is zeroed by its
    // creator before anybody else gets it, and zeros are valid for every field.
    unsafe {
        if ENTRIES.0.is_null() {
            let count = usize::try_from(pg_sys::MaxBackends).expect("a count");
            let size = count * size_of::<Entry>();
            let mut found = false;
            let memory = pg_sys::GetNamedDSMSegment(
                c"pg_stream progress".as_ptr(),
                size,
                Some(clear),
                &raw mut found,
            );
            ENTRIES = (memory.cast(), count);
        }
        std::slice::from_raw_parts(ENTRIES.0, ENTRIES.1)
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn clear(memory: *mut std::ffi::c_void) {
    // SAFETY: called once, with memory of the size that `entries` asks for.
    unsafe {
        let count = usize::try_from(pg_sys::MaxBackends).expect("a count");
        ptr::write_bytes(memory.cast::<Entry>(), 0, count);
    }
}

fn own() -> Option<&'static Entry> {
    // SAFETY: reads a variable of this process.
    let number = unsafe { pg_sys::MyProcNumber };
    entries().get(usize::try_from(number).ok()?)
}

/// Reports the refresh of a stream table until it is dropped.
pub struct Progress {
    entry: Option<&'static Entry>,
}

impl Progress {
    pub fn start(stream_table: i64, started: i64) -> Self {
        let entry = own();
        if let Some(entry) = entry {
            entry.stream_table.store(stream_table, Relaxed);
            entry.started.store(started, Relaxed);
            entry.phase.store(Phase::Locking as u32, Relaxed);
            entry.stages.store(0, Relaxed);
            entry.stages_done.store(0, Relaxed);
            entry.changes.store(0, Relaxed);
            // SAFETY: reads variables of this process.
            unsafe {
                entry.database.store(pg_sys::MyDatabaseId.to_u32(), Relaxed);
                entry.pid.store(pg_sys::MyProcPid, Relaxed);
            }
        }
        Self { entry }
    }

    pub fn enter(&self, phase: Phase) {
        if let Some(entry) = self.entry {
            entry.phase.store(phase as u32, Relaxed);
        }
    }

    /// How many rows of the sources appeared or disappeared.
    pub fn set_changes(&self, rows: u64) {
        if let Some(entry) = self.entry {
            entry.changes.store(rows, Relaxed);
        }
    }

    pub fn set_stage(&self, done: usize, all: usize) {
        if let Some(entry) = self.entry {
            entry.stages_done.store(u32::try_from(done).unwrap_or(u32::MAX), Relaxed);
            entry.stages.store(u32::try_from(all).unwrap_or(u32::MAX), Relaxed);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(entry) = self.entry {
            entry.pid.store(0, Relaxed);
        }
    }
}

/// The refreshes of this database. One whose session was terminated stays until another takes its
/// place: the caller asks whether the process still runs that transaction.
pub fn reports() -> Vec<Report> {
    // SAFETY: reads a variable of this process.
    let database: Oid = unsafe { pg_sys::MyDatabaseId };
    let of_database =
        |it: &&Entry| it.pid.load(Relaxed) != 0 && it.database.load(Relaxed) == database.to_u32();
    entries()
        .iter()
        .filter(of_database)
        .map(|it| Report {
            pid: it.pid.load(Relaxed),
            stream_table: it.stream_table.load(Relaxed),
            started: it.started.load(Relaxed),
            phase: PHASES.get(it.phase.load(Relaxed) as usize).map_or("", |it| it.1),
            stages: it.stages.load(Relaxed),
            stages_done: it.stages_done.load(Relaxed),
            changes: it.changes.load(Relaxed),
        })
        .collect()
}
