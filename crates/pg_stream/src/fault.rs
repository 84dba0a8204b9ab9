//! Stopping at a chosen step, to test that nothing breaks wherever a refresh ends.
//!
//! `SET pg_stream.inject_fault` names the step, or `every` one; the first `pg_stream.inject_fault_skip`
//! such steps of each transaction are passed over. What happens there is
//! `pg_stream.inject_fault_action`. Only superusers may set them. A step costs reading a variable.
//!
//! `SELECT enumvals FROM pg_settings WHERE name = 'pg_stream.inject_fault'` lists the steps.

use std::cell::Cell;

use pgrx::{PgSqlErrorCode, ereport, guc::PostgresGucEnum};

use crate::{pg::fault, settings};

/// A place where creating, refreshing, altering or dropping a stream table can be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum Step {
    #[name = c"none"]
    None,
    /// Whichever comes.
    #[name = c"every"]
    Every,
    #[name = c"stream-table-locked"]
    StreamTableLocked,
    #[name = c"sources-locked"]
    SourcesLocked,
    #[name = c"snapshot-taken"]
    SnapshotTaken,
    #[name = c"state-read"]
    StateRead,
    #[name = c"changes-read"]
    ChangesRead,
    #[name = c"stage-started"]
    StageStarted,
    #[name = c"rows-deleted"]
    RowsDeleted,
    #[name = c"rows-updated"]
    RowsUpdated,
    #[name = c"rows-inserted"]
    RowsInserted,
    #[name = c"stage-filled"]
    StageFilled,
    #[name = c"table-filled"]
    TableFilled,
    #[name = c"handed-on"]
    HandedOn,
    #[name = c"frontier-stored"]
    FrontierStored,
    #[name = c"history-written"]
    HistoryWritten,
    #[name = c"buffer-truncated"]
    BufferTruncated,
    #[name = c"buffer-cleaned"]
    BufferCleaned,
    #[name = c"rebuild-begun"]
    RebuildBegun,
    #[name = c"stages-dropped"]
    StagesDropped,
    #[name = c"stages-created"]
    StagesCreated,
    #[name = c"buffer-created"]
    BufferCreated,
    #[name = c"source-tracked"]
    SourceTracked,
    #[name = c"query-stored"]
    QueryStored,
    #[name = c"table-created"]
    TableCreated,
    #[name = c"indexes-created"]
    IndexesCreated,
    #[name = c"source-released"]
    SourceReleased,
    #[name = c"state-dropped"]
    StateDropped,
    #[name = c"status-changed"]
    StatusChanged,
    /// The last step before the commit.
    #[name = c"finished"]
    Finished,
}

/// What happens where a fault is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum Action {
    /// An error is raised.
    #[name = c"error"]
    Error,
    /// The process kills itself, as by `kill -9`.
    #[name = c"crash"]
    Crash,
    /// The process waits for the advisory lock 7077, which somebody else holds.
    #[name = c"wait"]
    Wait,
}

thread_local! {
    /// The transaction, and how many of its steps were passed over.
    static PASSED: Cell<(u32, i32)> = const { Cell::new((0, 0)) };
}

/// Tells that a step has been reached.
pub fn point(step: Step) {
    let wanted = settings::inject_fault();
    if wanted != Step::None {
        reached(step, wanted);
    }
}

#[cold]
fn reached(step: Step, wanted: Step) {
    if wanted != Step::Every && wanted != step {
        return;
    }
    let transaction = fault::transaction();
    let (last, count) = PASSED.get();
    let passed = if last == transaction { count } else { 0 };
    PASSED.set((transaction, passed.saturating_add(1)));
    if passed != settings::inject_fault_skip() {
        return;
    }
    match settings::inject_fault_action() {
        Action::Error => {
            ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
                format!("fault injected at step {step:?}")
            );
        }
        Action::Crash => fault::crash(),
        Action::Wait => fault::wait(),
    }
}
