//! What can go wrong in a call to the extension, and how the client is told.
//!
//! Messages follow PostgreSQL's style guide: the primary message is a lower-case fragment; detail
//! and hint are sentences. A variant exists where a caller acts on it or the user needs another
//! hint. Errors that PostgreSQL raises in our statements pass through as they are.

use pgrx::{
    PgLogLevel, PgSqlErrorCode, PgTryBuilder,
    pg_sys::panic::{CaughtError, ErrorReport},
};
use pgstream_core::{name::QualifiedName, schedule::BadSchedule};

use crate::{
    lower::Refusal,
    pg::{relation, subtransaction::Failure},
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("stream table \"{0}\" does not exist")]
    Undefined(String),
    #[error("relation \"{0}\" already exists")]
    Exists(QualifiedName),
    #[error("schema \"{0}\" is not for stream tables")]
    Reserved(String),
    #[error("must be owner of stream table {0}")]
    NotOwner(QualifiedName),
    #[error("{0} must not be NULL")]
    MissingArgument(&'static str),
    #[error("invalid schedule \"{text}\"")]
    BadSchedule { text: String, why: BadSchedule },
    #[error("schedule \"{text}\" is shorter than the minimum of {minimum} seconds")]
    TooFrequent { text: String, minimum: i32 },
    #[error("invalid refresh mode \"{0}\"")]
    BadMode(String),
    #[error("invalid status \"{0}\"")]
    BadStatus(String),
    #[error("stream table \"{0}\" is suspended")]
    Suspended(QualifiedName),
    #[error("stream table \"{name}\" is in error: {reason}")]
    InError { name: QualifiedName, reason: String, is_query_lost: bool },
    #[error("refresh skipped: stream table \"{0}\" is being refreshed by another session")]
    Busy(QualifiedName),
    #[error("cannot drop stream table {name} because other stream tables depend on it")]
    HasReaders { name: QualifiedName, readers: Vec<QualifiedName> },
    #[error("cycle detected: stream table \"{name}\" would depend on itself")]
    Cyclic { name: String, path: String },
    /// Something that the defining query reads was dropped.
    #[error("the defining query of stream table \"{0}\" is gone")]
    QueryLost(String),
    /// A table that was restored from a dump.
    #[error("table \"{name}\" is not as its query demands: {problem}")]
    Misfit { name: String, problem: String },
    /// Whether it is the value or what it names that has gone.
    #[error("stream table {table} follows {setting} = '{value}', which is not a valid value here")]
    SettingLost { table: String, setting: String, value: String },
    #[error("stream table {0} is not populated")]
    NotPopulated(String),
    #[error("cannot refresh a stream table while a statement is changing \"{0}\"")]
    StatementRunning(String),
    #[error(
        "cannot refresh a stream table in a transaction that has changed \"{0}\", which is captured \
         from the write-ahead log"
    )]
    NotDecodedYet(String),
    #[error(
        "could not refresh because \"{0}\" was truncated or rewritten after the transaction began"
    )]
    TruncatedConcurrently(String),
    #[error("could not refresh a stream table that was refreshed after the transaction began")]
    RefreshedConcurrently,
    #[error("could not refresh a stream table that was created after the transaction began")]
    CreatedConcurrently,
    #[error("stream table \"{0}\" has BEFORE row triggers and is read by other stream tables")]
    AlteredSource(String),
    #[error("stream table {table} does not hold what it should: {what}")]
    Broken { table: String, what: String },
    /// The query is fine for PostgreSQL but not for a stream table.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Error {
    /// An invariant does not hold; the table must be rebuilt.
    pub fn broken(table: &str, what: &str) -> Self {
        Self::Broken { table: table.to_owned(), what: what.to_owned() }
    }

    /// The catalog does not show a stream table of this number.
    pub fn unknown(pgs_id: i64) -> Self {
        if relation::is_strict_transaction() {
            Self::CreatedConcurrently
        } else {
            Self::Undefined(format!("number {pgs_id}"))
        }
    }

    pub fn sqlstate(&self) -> PgSqlErrorCode {
        match self {
            Self::Undefined(_) => PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            Self::Exists(_) => PgSqlErrorCode::ERRCODE_DUPLICATE_TABLE,
            Self::Reserved(_) => PgSqlErrorCode::ERRCODE_RESERVED_NAME,
            Self::NotOwner(_) => PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            Self::MissingArgument(_) => PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            Self::BadSchedule { .. }
            | Self::TooFrequent { .. }
            | Self::BadMode(_)
            | Self::BadStatus(_)
            | Self::SettingLost { .. } => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            Self::Suspended(_)
            | Self::InError { .. }
            | Self::QueryLost(_)
            | Self::Misfit { .. }
            | Self::NotPopulated(_) => PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            Self::Busy(_) => PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
            Self::HasReaders { .. } => PgSqlErrorCode::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
            Self::Cyclic { .. } => PgSqlErrorCode::ERRCODE_INVALID_OBJECT_DEFINITION,
            Self::TruncatedConcurrently(_)
            | Self::RefreshedConcurrently
            | Self::CreatedConcurrently => PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
            Self::StatementRunning(_) | Self::NotDecodedYet(_) => {
                PgSqlErrorCode::ERRCODE_OBJECT_IN_USE
            }
            Self::AlteredSource(_) => PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            Self::Broken { .. } => PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
            Self::Refused(_) => PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::HasReaders { name, readers } => {
                let lines: Vec<String> = readers
                    .iter()
                    .map(|it| format!("stream table {it} depends on stream table {name}"))
                    .collect();
                Some(lines.join("\n"))
            }
            Self::Cyclic { path, .. } => Some(format!("The path is {path}.")),
            _ => None,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::BadSchedule { why, .. } => match why {
                BadSchedule::Unreadable => {
                    "Use a duration such as '30s' or '1h30m', a cron pattern such as '*/5 * * * *' \
                     or '@daily', or 'CALCULATED'."
                }
                BadSchedule::TooLong => "Use a duration of at most a hundred years.",
                BadSchedule::NeverFires => {
                    "The cron pattern never fires. Use one that fits a date."
                }
            },
            Self::Reserved(_) => "Choose another schema.",
            Self::TooFrequent { .. } => {
                "Choose a longer schedule, or lower pg_stream.min_schedule_seconds."
            }
            Self::BadMode(_) => "Use FULL or DIFFERENTIAL.",
            Self::BadStatus(_) => "Use ACTIVE or SUSPENDED.",
            Self::Suspended(_) => "Call pgstream.resume_stream_table first.",
            Self::InError { is_query_lost: false, .. } => {
                "Repair its sources and call pgstream.resume_stream_table, or drop it."
            }
            Self::NotPopulated(_) => "Refresh it first.",
            Self::SettingLost { .. } => {
                "Create what it names, or call pgstream.repair_stream_table, which takes the \
                 setting of its session instead and computes everything anew."
            }
            Self::HasReaders { .. } => "Drop those first.",
            Self::InError { .. } | Self::QueryLost(_) => {
                "Drop the stream table, or create it again with another query."
            }
            Self::TruncatedConcurrently(_) | Self::RefreshedConcurrently => {
                "Try the transaction again."
            }
            Self::AlteredSource(_) => "Use AFTER triggers instead.",
            Self::StatementRunning(_) => {
                "Refresh after the statement, not from its triggers. A cursor that is open over a \
                 table which the transaction has changed counts as one: close it."
            }
            Self::NotDecodedYet(_) => "Refresh after the transaction was committed.",
            Self::Broken { .. } => {
                "Somebody changed the stream table behind the extension's back, or this is a bug; \
                 call pgstream.repair_stream_table."
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// SQL functions return `Result<_, ErrorReport>`, which pgrx reports with code, detail and hint.
impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        if let Error::Refused(refusal) = error {
            return refusal.into();
        }
        let mut report = Self::new(error.sqlstate(), error.to_string(), "");
        if let Some(detail) = error.detail() {
            report = report.set_detail(detail);
        }
        if let Some(hint) = error.hint() {
            report = report.set_hint(hint);
        }
        report
    }
}

/// Runs `work`. An error in it is raised with its own code and the words that `rephrase` finds. What has
/// nothing to do with `work` passes through as it is: locks of others, cancels, a lack of resources.
pub fn rephrased<T>(
    work: impl FnOnce() -> T,
    rephrase: impl Fn(&Failure) -> ErrorReport + std::panic::RefUnwindSafe,
) -> T {
    PgTryBuilder::new(std::panic::AssertUnwindSafe(work))
        .catch_others(|error| {
            let failure = Failure::from(&error);
            let passes = [
                PgSqlErrorCode::ERRCODE_TRANSACTION_ROLLBACK,
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                PgSqlErrorCode::ERRCODE_OPERATOR_INTERVENTION,
            ];
            if passes.into_iter().any(|it| failure.is_like(it))
                || matches!(error, CaughtError::RustPanic { .. })
            {
                error.rethrow()
            }
            rephrase(&failure).report(PgLogLevel::ERROR);
            unreachable!("an error was raised")
        })
        .execute()
}
