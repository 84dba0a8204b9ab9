//! Work that may be undone: a subtransaction around it.

use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe};

use pgrx::{PgTryBuilder, pg_sys, pg_sys::panic::CaughtError};

/// Runs `work` in a subtransaction. A data exception (SQLSTATE class 22) undoes all of it and gives
/// `None`, and so does a result that is an error, which is given back; other errors pass through.
pub fn unless_data_exception<T, E>(work: impl FnOnce() -> Result<T, E>) -> Option<Result<T, E>> {
    match within(work, Result::is_ok) {
        Ok(result) => Some(result),
        Err(error) if is_data_exception(&error) => None,
        Err(error) => error.rethrow(),
    }
}

/// Runs `work` in a subtransaction, which a result that is an error undoes.
pub fn undone_if_error<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    within(work, Result::is_ok).unwrap_or_else(|error| error.rethrow())
}

/// Runs `work` and undoes what it did to the database. The result must own what it holds.
pub fn undone<T>(work: impl FnOnce() -> T) -> T {
    within(work, |_| false).unwrap_or_else(|error| error.rethrow())
}

/// Runs `work` in a subtransaction, which lasts unless there is an error or `keep` says no.
fn within<T>(work: impl FnOnce() -> T, keep: impl FnOnce(&T) -> bool) -> Result<T, CaughtError> {
    // SAFETY: begun and ended in pairs, as PL/pgSQL does for a block with exceptions.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let work = Unwinding(work);
        let result =
            PgTryBuilder::new(AssertUnwindSafe(move || Ok(work.run()))).catch_others(Err).execute();
        if result.as_ref().is_ok_and(keep) {
            pg_sys::ReleaseCurrentSubTransaction();
        } else {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        result
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
