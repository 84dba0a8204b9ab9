//! Keeping everybody but a refresh from writing to a stream table.

use std::cell::Cell;

use pgrx::{pg_sys::Oid, prelude::*};

use crate::{pg::trigger, restore};

/// A statement of the refresh that has begun, and that the guard has not seen yet.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Expected {
    table: Oid,
    /// How many triggers deep the guard is when it fires for it.
    depth: i32,
}

thread_local! {
    static EXPECTED: Cell<Option<Expected>> = const { Cell::new(None) };
}

/// Runs a statement of a refresh that writes to `table`: once, before it touches any row. What triggers
/// and functions do to the table that it calls is none of the refresh.
pub fn let_write<T>(table: Oid, statement: impl FnOnce() -> T) -> T {
    let expected = Expected { table, depth: trigger::depth() + 1 };
    let _restored = Restored(EXPECTED.replace(Some(expected)));
    statement()
}

struct Restored(Option<Expected>);

impl Drop for Restored {
    // Also runs when an error unwinds.
    fn drop(&mut self) {
        EXPECTED.set(self.0);
    }
}

/// The trigger `pg_stream_guard` of every stream table and of every inner stage.
#[pg_trigger(sql = false)]
fn guard_stream_table<'a>(
    fired: &'a pgrx::PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, pgrx::PgTriggerError> {
    let relation = fired.relid()?;
    let fired_for = Expected { table: relation, depth: trigger::depth() };
    if EXPECTED.get() == Some(fired_for) {
        EXPECTED.set(None);
    } else if !restore::accepts_write(relation, fired.op()?) {
        let name = crate::pg::relation::display_name(relation);
        pgrx::pg_sys::panic::ErrorReport::new(
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!("cannot change stream table \"{name}\""),
            "guard_stream_table",
        )
        .set_detail("Its rows are computed from its defining query.")
        .set_hint("Change the tables that the query reads.")
        .report(PgLogLevel::ERROR);
    }
    Ok(None::<PgHeapTuple<'a, AllocatedByRust>>)
}
