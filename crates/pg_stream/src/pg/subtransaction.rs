//! Work that may be undone: a subtransaction around it.

use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe};

use pgrx::{PgSqlErrorCode, PgTryBuilder, pg_sys, pg_sys::panic::CaughtError};

/// The error that undid a piece of work.
#[derive(Clone, Debug)]
pub struct Failure {
    pub code: PgSqlErrorCode,
    pub message: String,
}

impl From<&CaughtError> for Failure {
    fn from(error: &CaughtError) -> Self {
        let (CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic { ereport: report, .. }) = error;
        Self { code: report.sql_error_code(), message: report.message().to_owned() }
    }
}

impl Failure {
    /// Whether the error is of the same class (the first two characters) as `code`.
    pub fn is_like(&self, code: PgSqlErrorCode) -> bool {
        // Five characters of six bits, the class first.
        let class = |code: PgSqlErrorCode| code as i32 & 0xfff;
        class(self.code) == class(code)
    }
}

/// Runs `work` in a subtransaction, which an error undoes.
pub fn attempt<T>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    within(work, |_| true).map_err(|error| Failure::from(&error))
}

/// How work can fail so that another way may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Avoidable {
    /// SQLSTATE class 22, or several rows of a scalar sub-query.
    Data,
    /// A unique index or an exclusion constraint was in the way.
    Conflict,
}

/// Runs `work` in a subtransaction. An avoidable failure undoes all of it, and so does a result that
/// is an error, which is given back; other errors pass through.
pub fn unless_avoidable<T, E>(
    work: impl FnOnce() -> Result<T, E>,
) -> Result<Result<T, E>, Avoidable> {
    within(work, Result::is_ok).map_err(|error| {
        let failure = Failure::from(&error);
        match failure.code {
            PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION
            | PgSqlErrorCode::ERRCODE_EXCLUSION_VIOLATION => Avoidable::Conflict,
            PgSqlErrorCode::ERRCODE_CARDINALITY_VIOLATION => Avoidable::Data,
            _ if failure.is_like(PgSqlErrorCode::ERRCODE_DATA_EXCEPTION) => Avoidable::Data,
            _ => error.rethrow(),
        }
    })
}

/// Runs `work` in a subtransaction. `None` when it did not get a lock in time; other errors pass
/// through.
pub fn unless_locked<T>(work: impl FnOnce() -> T) -> Option<T> {
    match within(work, |_| true) {
        Ok(result) => Some(result),
        Err(error) => match Failure::from(&error).code {
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE => None,
            _ => error.rethrow(),
        },
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
