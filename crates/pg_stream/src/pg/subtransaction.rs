//! Trying something that may fail.

use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe};

use pgrx::{PgTryBuilder, pg_sys, pg_sys::panic::CaughtError};

/// Runs `work` in a subtransaction. A data exception (SQLSTATE class 22) undoes all of it and gives
/// `None`; other errors pass through.
pub fn unless_data_exception<T>(work: impl FnOnce() -> T) -> Option<T> {
    // SAFETY: begun and ended in pairs, as PL/pgSQL does for a block with exceptions.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let work = Unwinding(work);
        let result =
            PgTryBuilder::new(AssertUnwindSafe(move || Ok(work.run()))).catch_others(Err).execute();
        if result.is_ok() {
            pg_sys::ReleaseCurrentSubTransaction();
        } else {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        match result {
            Ok(value) => Some(value),
            Err(error) if is_data_exception(&error) => None,
            Err(error) => error.rethrow(),
        }
    }
}

/// What `work` leaves half done is undone by the subtransaction.
struct Unwinding<F>(F);

impl<F> UnwindSafe for Unwinding<F> {}
impl<F> RefUnwindSafe for Unwinding<F> {}

impl<F: FnOnce() -> T, T> Unwinding<F> {
    fn run(self) -> T {
        (self.0)()
    }
}

fn is_data_exception(error: &CaughtError) -> bool {
    let code = match error {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => {
            report.sql_error_code()
        }
        CaughtError::RustPanic { ereport, .. } => ereport.sql_error_code(),
    };
    // Five characters of six bits, the class first.
    let class = |code: i32| code & 0xfff;
    class(code as i32) == class(pgrx::PgSqlErrorCode::ERRCODE_DATA_EXCEPTION as i32)
}
