//! Looking for a deadlock more often than once a wait.

use std::ffi::{c_int, c_uint};

use pgrx::pg_sys;

use super::time;

/// While it lives, a wait of this process for a lock looks for a deadlock again and again, however long it
/// lasts. PostgreSQL looks once, so who begins to wait last would have to give in.
pub struct Watch {
    is_first: bool,
}

impl Watch {
    /// Looks in so many milliseconds for the first time, then every so many.
    pub fn start(first: i64, then: c_int) -> Self {
        let timer = TIMER.with(|it| *it);
        // SAFETY: the timer is registered. Its signals set a flag, which waits for locks ask for.
        unsafe {
            let is_first = !get_timeout_active(timer);
            if is_first {
                enable_timeout_every(timer, time::now() + first * 1000, then);
            }
            Self { is_first }
        }
    }
}

impl Drop for Watch {
    // Also runs when an error unwinds.
    fn drop(&mut self) {
        if self.is_first {
            // SAFETY: as in `start`.
            unsafe { disable_timeout(TIMER.with(|it| *it), false) };
        }
    }
}

thread_local! {
    // SAFETY: once in a process, which has its table of timers when it runs a transaction. Where the table is
    // full, it ends with an error that is caught at the boundary, over which nothing is owned.
    static TIMER: c_uint = unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| RegisterTimeout(USER_TIMEOUT, CheckDeadLockAlert))
    };
}

/// PostgreSQL gives the next one that is free.
const USER_TIMEOUT: c_uint = 13;

// As in `utils/timeout.h` and `storage/proc.h` of PostgreSQL 18.
unsafe extern "C-unwind" {
    fn RegisterTimeout(id: c_uint, handler: unsafe extern "C-unwind" fn()) -> c_uint;
    fn enable_timeout_every(id: c_uint, at: pg_sys::TimestampTz, every: c_int);
    fn disable_timeout(id: c_uint, keep_indicator: bool);
    fn get_timeout_active(id: c_uint) -> bool;
    /// What PostgreSQL's own timer for deadlocks does.
    fn CheckDeadLockAlert();
}
