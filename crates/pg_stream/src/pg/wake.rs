//! Telling schedulers and the launcher at commit that there may be work for them.

use std::cell::Cell;

use pgrx::pg_sys;

use super::shmem;

#[derive(Clone, Copy, Default)]
struct Pending {
    scheduler: bool,
    launcher: bool,
    change: bool,
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

/// When this transaction commits, something that stream tables read has changed.
pub fn change_at_commit() {
    note(|pending| pending.change = true);
}

/// To be called while this transaction commits: something that stream tables read has changed.
pub fn change_committed() {
    // SAFETY: reads a variable of this process.
    if let Some(slot) = shmem::slot_of(unsafe { pg_sys::MyDatabaseId }) {
        slot.note_commit();
    }
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
        pg_sys::XactEvent::XACT_EVENT_ABORT | pg_sys::XactEvent::XACT_EVENT_PREPARE => {
            PENDING.take();
        }
        _ => {}
    }
}

fn tell(pending: Pending) {
    // SAFETY: reads a variable of this process.
    let database = unsafe { pg_sys::MyDatabaseId };
    if pending.launcher {
        shmem::want(database);
        shmem::wake_launcher();
    }
    if pending.change {
        change_committed();
    }
    if pending.scheduler
        && let Some(slot) = shmem::slot_of(database)
    {
        slot.note_commit();
        slot.wake();
    }
}
