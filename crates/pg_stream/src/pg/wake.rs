//! Telling schedulers and the launcher at commit that there may be work for them.

use std::cell::Cell;

use pgrx::pg_sys::{self, Oid};

use super::{
    decode::Lsn,
    shmem::{self, Slot},
    time,
    worker::Wait,
};

#[derive(Clone, Copy, Default)]
struct Pending {
    scheduler: bool,
    launcher: bool,
}

thread_local! {
    static PENDING: Cell<Pending> = Cell::default();
    static IS_REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// When this transaction commits, the scheduler of this database reads the catalog again.
pub fn scheduler_at_commit() {
    note(|pending| pending.scheduler = true);
}

/// When this transaction commits, the launcher makes sure that this database has a scheduler.
pub fn launcher_at_commit() {
    note(|pending| pending.launcher = true);
}

/// To be called while a transaction commits that wrote into these change buffers.
pub fn changes_committed(buffers: &[Oid]) {
    if let Some(slot) = own_slot() {
        slot.note_changes(buffers);
    }
}

/// To be called while a transaction is prepared that wrote into change buffers: its commit, in
/// another session perhaps, will not tell what it changed.
pub fn changes_prepared() {
    if let Some(slot) = own_slot() {
        slot.note_prepared(false);
    }
}

/// To be called after COMMIT PREPARED, which may have created the extension.
pub fn prepared_committed() {
    if let Some(slot) = own_slot().filter(|it| it.is_unsettled()) {
        slot.note_commit_prepared();
        shmem::want(slot.database());
        shmem::wake_launcher();
    }
}

/// Why decoded changes do not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDecoded {
    /// There is no decoder.
    NoDecoder,
    /// It cannot write into the buffers.
    Stuck,
    /// They are lost.
    Lost,
}

/// How long to wait for a decoder that does not get on, in microseconds.
const PATIENCE: i64 = 10_000_000;
/// How long to wait for what one can do without.
const SHORT_PATIENCE: i64 = 1_000_000;
/// How often it may come or go meanwhile.
const MOST_CHANGES: u32 = 6;
/// In that time it has tried again.
const RETRY: i64 = 2_000_000;

/// Waits until all changes that were committed before `lsn`, and are decoded, are in the buffers.
pub fn wait_for_decoder(lsn: Lsn) -> Result<(), NotDecoded> {
    wait_until_decoded(lsn, i64::MAX)
}

/// As [`wait_for_decoder`], for somebody who can do without: not when the decoder does not get on, and not for
/// long, since others wait for him.
pub fn let_decoder_finish(lsn: Lsn) {
    let gets_on =
        |it: &Slot| it.decoder_pid().is_some() && it.stuck_since().is_none() && !it.is_lost();
    if own_slot().is_some_and(gets_on) {
        _ = wait_until_decoded(lsn, SHORT_PATIENCE);
    }
}

/// Gives up after so many microseconds, if not before.
fn wait_until_decoded(lsn: Lsn, longest: i64) -> Result<(), NotDecoded> {
    let Some(slot) = own_slot() else { return Err(NotDecoded::NoDecoder) };
    let wait = Wait::new(c"PgStreamDecoding");
    let began = time::now();
    let (mut decoded, mut process, mut changes) = (slot.decoded(), slot.decoder_pid(), 0);
    let mut since = began;
    while slot.decoded() < lsn {
        let now = time::now();
        if slot.decoded() > decoded {
            (decoded, changes) = (slot.decoded(), 0);
        }
        if slot.decoder_pid() != process {
            (process, since) = (slot.decoder_pid(), now);
            changes += 1;
        }
        let is_absent = process.is_none() && now - since > PATIENCE;
        // It starts and ends, and gets nothing done.
        let is_vain = changes > MOST_CHANGES && now - began > PATIENCE;
        if is_absent || is_vain {
            return Err(NotDecoded::NoDecoder);
        }
        if slot.is_lost() {
            return Err(NotDecoded::Lost);
        }
        let is_stuck = slot.stuck_since().is_some_and(|it| now - it > PATIENCE);
        if is_stuck && now - began > RETRY || now - began > longest {
            return Err(NotDecoded::Stuck);
        }
        slot.ask_to_decode(lsn);
        wait.nap();
    }
    Ok(())
}

/// The slot of this database, if it has one.
fn own_slot() -> Option<&'static Slot> {
    thread_local! {
        static SLOT: Cell<Option<&'static Slot>> = const { Cell::new(None) };
    }
    // SAFETY: reads a variable of this process.
    let database = unsafe { pg_sys::MyDatabaseId };
    let known = SLOT.get().filter(|it| it.database() == database);
    let slot = known.or_else(|| shmem::slot_of(database));
    SLOT.set(slot);
    slot
}

fn note(set: impl FnOnce(&mut Pending)) {
    if !shmem::is_available() {
        return;
    }
    if !IS_REGISTERED.replace(true) {
        // SAFETY: registered once in this process; the callback only touches atomics.
        unsafe { pg_sys::RegisterXactCallback(Some(at_end), std::ptr::null_mut()) };
    }
    let mut pending = PENDING.get();
    set(&mut pending);
    PENDING.set(pending);
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn at_end(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_COMMIT => tell(PENDING.take()),
        pg_sys::XactEvent::XACT_EVENT_PREPARE => {
            let pending = PENDING.take();
            if pending.scheduler {
                // SAFETY: reads a variable of this process.
                shmem::want(unsafe { pg_sys::MyDatabaseId });
                own_slot().into_iter().for_each(|it| it.note_prepared(true));
            }
        }
        pg_sys::XactEvent::XACT_EVENT_ABORT => {
            PENDING.take();
        }
        _ => {}
    }
}

fn tell(pending: Pending) {
    if pending.launcher {
        // SAFETY: reads a variable of this process.
        shmem::want(unsafe { pg_sys::MyDatabaseId });
        shmem::wake_launcher();
    }
    if pending.scheduler
        && let Some(slot) = own_slot()
    {
        slot.note_catalog();
    }
}
