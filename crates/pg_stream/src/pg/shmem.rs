//! Shared memory: a slot for each database, through which the launcher, the schedulers and
//! committing sessions talk, and the jobs that schedulers give to their workers (`pg/job.rs`).
//! Everything in it is atomic, so nobody ever waits for it.

use std::{
    ptr,
    sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering::SeqCst},
};

use pgrx::pg_sys::{self, Oid};

use super::{
    job::{self, JOBS, Job},
    time,
};

/// For how long processes are reserved for whoever could not be started, in microseconds: longer than
/// until the next try, for which a scheduler that refreshes by itself may take its time.
const RESERVATION: i64 = 15_000_000;
/// The most databases that can have a scheduler.
const SLOTS: usize = 256;
/// Change buffers share this many counters of commits.
const COUNTERS: usize = 512;

#[repr(C)]
struct Shared {
    /// Where the launcher's latch is.
    launcher: AtomicI32,
    /// Until when processes that become free are for schedulers and decoders.
    reserved_until: AtomicI64,
    slots: [Slot; SLOTS],
    jobs: [Job; JOBS],
}

/// What is known about one database. A slot is free while `database` is 0.
#[repr(C)]
pub struct Slot {
    database: AtomicU32,
    state: AtomicU32,
    /// Where the scheduler's latch is.
    worker: AtomicI32,
    worker_pid: AtomicI32,
    /// Counts commits that changed the catalog of stream tables.
    generation: AtomicU64,
    /// Count commits that wrote into change buffers.
    changes: [AtomicU64; COUNTERS],
    /// Whether the scheduler wants to be woken by the next of them.
    armed: [AtomicBool; COUNTERS],
    /// Counts transactions that were prepared and will change what a scheduler looks at.
    prepared: AtomicU64,
    /// How many of them have ended for sure.
    settled: AtomicU64,
    /// The last of them that has changed the catalog of stream tables.
    prepared_catalog: AtomicU64,
    /// Where the decoder's latch is.
    decoder: AtomicI32,
    decoder_pid: AtomicI32,
    /// All changes that were committed before this position in the write-ahead log, and are decoded,
    /// are in the buffers. 0 as long as nobody knows.
    decoded: AtomicU64,
    /// All that were committed before this moment.
    decoded_at: AtomicI64,
    /// Up to where somebody waits for them.
    to_decode: AtomicU64,
    /// Since when changes cannot be written into the buffers, or 0.
    stuck_since: AtomicI64,
    /// How many times in a row decoding has begun and not ended.
    decoding_attempts: AtomicU32,
    /// Changes that were to be decoded are lost; what reads their sources is going to be rebuilt.
    is_lost: AtomicBool,
    /// No scheduler is started before this time.
    held_until: AtomicI64,
    /// Somebody asked for a scheduler since the last one started.
    asked: AtomicBool,
}

/// How a database stands with its scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// To be started as soon as possible.
    Wanted,
    /// Was asked for and has not connected yet.
    Starting,
    Running,
    /// The database does not have the extension.
    Unneeded,
    /// Ended; to be started again after a pause.
    Ended,
}

const STATES: [State; 5] =
    [State::Wanted, State::Starting, State::Running, State::Unneeded, State::Ended];

pub(in crate::pg) const NO_PROCESS: i32 = -1;

static mut SHARED: *const Shared = ptr::null();
static mut NEXT_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut NEXT_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// Reserves the memory; to be called while `shared_preload_libraries` are loaded.
pub fn reserve() {
    // SAFETY: the postmaster loads libraries one after the other, in one thread.
    unsafe {
        NEXT_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        NEXT_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: called by the postmaster, which then calls the next library's hook.
    unsafe {
        if let Some(next) = NEXT_REQUEST {
            next();
        }
        pg_sys::RequestAddinShmemSpace(size_of::<Shared>());
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn startup() {
    // SAFETY: called by the postmaster alone; the memory is as large as was requested, and zeros
    // are valid for every field.
    unsafe {
        if let Some(next) = NEXT_STARTUP {
            next();
        }
        let mut found = false;
        let memory =
            pg_sys::ShmemInitStruct(c"pg_stream".as_ptr(), size_of::<Shared>(), &raw mut found)
                .cast::<Shared>();
        if !found {
            ptr::write_bytes(memory, 0, 1);
            (*memory).launcher.store(NO_PROCESS, SeqCst);
        }
        SHARED = memory;
    }
}

/// `None` when the library was not preloaded.
fn shared() -> Option<&'static Shared> {
    // SAFETY: set once before any process is forked; the memory lives as long as the server.
    unsafe { SHARED.as_ref() }
}

/// Whether the library was preloaded.
pub fn is_available() -> bool {
    shared().is_some()
}

pub fn slot(index: usize) -> &'static Slot {
    &shared().expect("only workers ask, and they exist only with shared memory").slots[index]
}

/// The slots in use, with their indexes.
pub fn slots() -> impl Iterator<Item = (usize, &'static Slot)> {
    let all = shared().into_iter().flat_map(|it| it.slots.iter().enumerate());
    all.filter(|(_, slot)| slot.database() != Oid::INVALID)
}

pub fn slot_of(database: Oid) -> Option<&'static Slot> {
    slots().map(|it| it.1).find(|it| it.database() == database)
}

/// All jobs, whether in use or not.
pub fn jobs() -> &'static [Job] {
    shared().map_or(&[], |it| &it.jobs)
}

/// Asks for a scheduler in the database, unless it has one.
pub fn want(database: Oid) {
    let Some(shared) = shared() else { return };
    let slot = slot_of(database).or_else(|| {
        shared
            .slots
            .iter()
            .find(|it| it.database.compare_exchange(0, database.to_u32(), SeqCst, SeqCst).is_ok())
    });
    if let Some(slot) = slot {
        slot.asked.store(true, SeqCst);
    }
}

/// The launcher tells where its latch is.
pub fn announce_launcher() {
    if let Some(shared) = shared() {
        // SAFETY: reads a variable of this process.
        shared.launcher.store(unsafe { pg_sys::MyProcNumber }, SeqCst);
    }
}

pub fn wake_launcher() {
    if let Some(shared) = shared() {
        set_latch(shared.launcher.load(SeqCst));
    }
}

/// A scheduler or a decoder could not be started, and will be tried again soon: refresh workers end when
/// they are idle, and no others are started.
pub fn reserve_processes() {
    if let Some(shared) = shared() {
        shared.reserved_until.store(time::now() + RESERVATION, SeqCst);
        job::wake_workers();
    }
}

/// There was a process for it. Whoever else lacks one will say so again.
pub fn release_processes() {
    if let Some(shared) = shared() {
        shared.reserved_until.store(0, SeqCst);
    }
}

/// Whether refresh workers leave processes to others.
pub fn are_processes_reserved() -> bool {
    shared().is_some_and(|it| it.reserved_until.load(SeqCst) > time::now())
}

impl Slot {
    pub fn database(&self) -> Oid {
        Oid::from(self.database.load(SeqCst))
    }

    pub fn state(&self) -> State {
        STATES[self.state.load(SeqCst) as usize]
    }

    pub fn set_state(&self, state: State) {
        self.state.store(state as u32, SeqCst);
    }

    /// Gives the slot back; its database is gone.
    pub fn free(&self) {
        self.detach(State::Wanted);
        self.leave_decoder();
        self.decoded.store(0, SeqCst);
        self.decoded_at.store(0, SeqCst);
        self.to_decode.store(0, SeqCst);
        self.forget_decoding_attempts();
        self.held_until.store(0, SeqCst);
        self.database.store(0, SeqCst);
    }

    /// Whether somebody asked for a scheduler since the last one looked for the extension.
    pub fn is_asked_again(&self) -> bool {
        self.asked.load(SeqCst)
    }

    /// The scheduler looks for the extension now.
    pub fn start_looking(&self) {
        self.asked.store(false, SeqCst);
    }

    /// This process is connected to the slot's database. Whoever holds the database either sees
    /// this process from now on, or is seen by its look at [`Slot::held_until`] that must follow.
    pub fn enter(&self) {
        // SAFETY: reads variables of this process.
        unsafe {
            self.worker.store(pg_sys::MyProcNumber, SeqCst);
            self.worker_pid.store(pg_sys::MyProcPid, SeqCst);
        }
    }

    /// The scheduler ends.
    pub fn detach(&self, state: State) {
        self.disarm();
        self.worker.store(NO_PROCESS, SeqCst);
        self.worker_pid.store(0, SeqCst);
        self.set_state(state);
    }

    /// The process of the scheduler, if it runs.
    pub fn worker_pid(&self) -> Option<i32> {
        Some(self.worker_pid.load(SeqCst)).filter(|it| *it > 0)
    }

    /// This process is the decoder.
    pub fn enter_decoder(&self) {
        // SAFETY: reads variables of this process.
        unsafe {
            self.decoder.store(pg_sys::MyProcNumber, SeqCst);
            self.decoder_pid.store(pg_sys::MyProcPid, SeqCst);
        }
    }

    /// The decoder ends.
    pub fn leave_decoder(&self) {
        self.decoder_pid.store(0, SeqCst);
        self.decoder.store(NO_PROCESS, SeqCst);
        self.stuck_since.store(0, SeqCst);
        self.set_lost(false);
    }

    /// The process of the decoder, if it runs.
    pub fn decoder_pid(&self) -> Option<i32> {
        Some(self.decoder_pid.load(SeqCst)).filter(|it| *it > 0)
    }

    pub fn wake_decoder(&self) {
        if self.decoder_pid().is_some() {
            set_latch(self.decoder.load(SeqCst));
        }
    }

    /// Up to where changes were decoded and are in the buffers.
    pub fn decoded(&self) -> u64 {
        self.decoded.load(SeqCst)
    }

    /// The moment before which all changes that were committed are in the buffers.
    pub fn decoded_at(&self) -> i64 {
        self.decoded_at.load(SeqCst)
    }

    pub fn set_decoded(&self, lsn: u64, time: i64) {
        self.stuck_since.store(0, SeqCst);
        self.decoded_at.store(time, SeqCst);
        self.decoded.store(lsn, SeqCst);
    }

    /// Changes cannot be written just now.
    pub fn set_stuck(&self, time: i64) {
        _ = self.stuck_since.compare_exchange(0, time, SeqCst, SeqCst);
    }

    /// Since when changes cannot be written, if so.
    pub fn stuck_since(&self) -> Option<i64> {
        Some(self.stuck_since.load(SeqCst)).filter(|it| *it != 0)
    }

    /// Decoding begins. What is counted stays if the process does not survive that.
    pub fn begin_decoding(&self) {
        self.decoding_attempts.fetch_add(1, SeqCst);
    }

    /// Decoding has ended for a reason that has nothing to do with what is decoded.
    pub fn discount_decoding(&self) {
        let less = |it: u32| Some(it.saturating_sub(1));
        _ = self.decoding_attempts.fetch_update(SeqCst, SeqCst, less);
    }

    /// Decoding has ended well, or begins with another replication slot.
    pub fn forget_decoding_attempts(&self) {
        self.decoding_attempts.store(0, SeqCst);
    }

    /// How many times in a row decoding has begun and not ended.
    pub fn decoding_attempts(&self) -> u32 {
        self.decoding_attempts.load(SeqCst)
    }

    pub fn set_lost(&self, is_lost: bool) {
        self.is_lost.store(is_lost, SeqCst);
    }

    /// Whether changes are lost that somebody may wait for.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(SeqCst)
    }

    /// Asks for everything up to this position.
    pub fn ask_to_decode(&self, lsn: u64) {
        if self.to_decode.fetch_max(lsn, SeqCst) < lsn {
            self.wake_decoder();
        }
    }

    pub fn hold_until(&self, time: i64) {
        self.held_until.store(time, SeqCst);
    }

    pub fn held_until(&self) -> i64 {
        self.held_until.load(SeqCst)
    }

    /// Another number after each commit that changed the catalog.
    pub fn generation(&self) -> u64 {
        self.generation.load(SeqCst)
    }

    /// Another number after each commit that wrote into one of the buffers, and perhaps after
    /// others.
    pub fn changes(&self, buffers: &[Oid]) -> u64 {
        let counts = buffers.iter().map(|it| self.changes[counter(*it)].load(SeqCst));
        counts.fold(0, u64::wrapping_add)
    }

    /// Asks to be woken by the next commit that writes into one of the buffers.
    pub fn arm(&self, buffers: &[Oid]) {
        for buffer in buffers {
            self.armed[counter(*buffer)].store(true, SeqCst);
        }
    }

    /// Asks no longer to be woken by commits that write into buffers.
    pub fn disarm(&self) {
        self.armed.iter().for_each(|it| it.store(false, SeqCst));
    }

    /// Counts a commit and wakes the scheduler if it waits for one like it.
    pub fn note_changes(&self, buffers: &[Oid]) {
        let mut is_awaited = false;
        for buffer in buffers {
            self.changes[counter(*buffer)].fetch_add(1, SeqCst);
            is_awaited |= self.armed[counter(*buffer)].swap(false, SeqCst);
        }
        if is_awaited {
            self.wake();
        }
    }

    /// Counts a commit for all buffers, and wakes the scheduler if it waits for any.
    pub fn note_unknown_changes(&self) {
        self.changes.iter().for_each(|it| _ = it.fetch_add(1, SeqCst));
        let is_awaited = |any, it: &AtomicBool| it.swap(false, SeqCst) || any;
        if self.armed.iter().fold(false, is_awaited) {
            self.wake();
        }
    }

    /// Counts a commit that changed the catalog, and wakes the scheduler and the decoder.
    pub fn note_catalog(&self) {
        self.generation.fetch_add(1, SeqCst);
        self.wake();
        self.wake_decoder();
    }

    /// Counts a transaction that is being prepared, or some that may have been.
    pub fn note_prepared(&self, has_changed_catalog: bool) {
        let number = self.prepared.fetch_add(1, SeqCst) + 1;
        if has_changed_catalog {
            self.prepared_catalog.fetch_max(number, SeqCst);
        }
    }

    /// Counts for everything that a prepared transaction may have changed, which has just committed.
    pub fn note_commit_prepared(&self) {
        if !self.is_unsettled() {
            return;
        }
        self.note_unknown_changes();
        if self.prepared_catalog.load(SeqCst) > self.settled.load(SeqCst) {
            self.note_catalog();
        }
    }

    /// A number that stays the same until another transaction is prepared.
    pub fn prepared(&self) -> u64 {
        self.prepared.load(SeqCst)
    }

    /// Whether changes may become visible that no counter tells of.
    pub fn is_unsettled(&self) -> bool {
        self.prepared() != self.settled.load(SeqCst)
    }

    /// All transactions that were prepared until [`Slot::prepared`] was asked have ended.
    pub fn settle(&self, prepared: u64) {
        self.note_commit_prepared();
        self.settled.store(prepared, SeqCst);
    }

    pub fn wake(&self) {
        if self.state() == State::Running {
            set_latch(self.worker.load(SeqCst));
        }
    }
}

fn counter(buffer: Oid) -> usize {
    // OIDs are given out one after the other: neighbours get counters of their own.
    buffer.to_u32() as usize % COUNTERS
}

/// Setting the latch of a process that took the place of another one is harmless: it only looks
/// around once more.
pub(in crate::pg) fn set_latch(process: i32) {
    let Ok(index) = usize::try_from(process) else { return };
    // SAFETY: the number came from a process of this server, so it is an index into this array.
    unsafe {
        let process = (*pg_sys::ProcGlobal).allProcs.add(index);
        pg_sys::SetLatch(&raw mut (*process).procLatch);
    }
}
