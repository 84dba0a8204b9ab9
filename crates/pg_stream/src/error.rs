//! What can go wrong in a call to the extension, and how the client is told.
//!
//! Messages follow PostgreSQL's style guide: the primary message is a lower-case fragment; detail
//! and hint are sentences. A variant exists where a caller acts on it or the user needs another
//! hint. Nothing matches on message text.

use pgrx::pg_sys::{errcodes::PgSqlErrorCode, panic::ErrorReport};

use crate::lower::Refusal;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("stream table {0} does not exist")]
    Undefined(String),
    /// Something that the defining query reads was dropped.
    #[error("the defining query of stream table \"{0}\" is gone")]
    QueryLost(String),
    #[error("cannot refresh a stream table while a statement is changing \"{0}\"")]
    StatementRunning(String),
    #[error("stream table {table} does not hold what it should: {what}")]
    Broken { table: String, what: String },
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Error {
    /// An invariant does not hold; the table must be rebuilt.
    pub fn broken(table: &str, what: &str) -> Self {
        Self::Broken { table: table.to_owned(), what: what.to_owned() }
    }

    pub fn sqlstate(&self) -> PgSqlErrorCode {
        match self {
            Self::Undefined(_) => PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            Self::QueryLost(_) => PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            Self::StatementRunning(_) => PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            Self::Broken { .. } => PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
            Self::Refused(_) => PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::QueryLost(_) => {
                Some("Drop the stream table, or create it again with another query.".to_owned())
            }
            Self::StatementRunning(_) => {
                Some("Refresh after the statement, not from its triggers.".to_owned())
            }
            Self::Broken { .. } => Some(
                "Somebody changed the stream table behind the extension's back, or this is a bug; \
                 drop and create the stream table again."
                    .to_owned(),
            ),
            Self::Refused(_) | Self::Undefined(_) => None,
        }
    }
}

/// `#[pg_extern]` functions return `Result<_, ErrorReport>`: pgrx reports any other error type as
/// `data_exception` and drops detail and hint.
impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        if let Error::Refused(refusal) = error {
            return refusal.into();
        }
        let report = Self::new(error.sqlstate(), error.to_string(), "");
        match error.hint() {
            Some(hint) => report.set_hint(hint),
            None => report,
        }
    }
}
