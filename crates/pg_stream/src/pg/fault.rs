//! Ways to stop a process, for tests.

use pgrx::{IntoDatum, pg_sys};

/// The advisory lock that a stopped process waits for.
const LOCK: i64 = 7077;

/// A number of the current transaction that differs from the one before it.
pub fn transaction() -> u32 {
    // SAFETY: every process that runs a transaction has an entry.
    unsafe { (*pg_sys::MyProc).vxid.lxid }
}

/// As `kill -9` of this process: the server ends all others and recovers.
pub fn crash() {
    unsafe extern "C" {
        fn kill(pid: i32, signal: i32) -> i32;
    }
    const SIGKILL: i32 = 9;
    // SAFETY: a signal to this process, which ends by it at once.
    unsafe { kill(pg_sys::MyProcPid, SIGKILL) };
}

/// Waits until nobody holds the lock; it can be cancelled.
pub fn wait() {
    // SAFETY: the function takes a bigint and returns nothing.
    unsafe {
        pgrx::direct_function_call::<()>(
            pg_sys::pg_advisory_xact_lock_shared_int8,
            &[LOCK.into_datum()],
        );
    }
}
