//! Keeping everybody but a refresh from writing to a stream table.

use std::cell::Cell;

use pgrx::{pg_sys::Oid, prelude::*};

thread_local! {
    /// The stream table that this backend's refresh is writing to.
    static WRITING: Cell<Oid> = const { Cell::new(Oid::INVALID) };
}

/// Allows writing to one stream table while it lives.
pub struct Writing {
    previous: Oid,
}

pub fn writing(relation: Oid) -> Writing {
    Writing { previous: WRITING.replace(relation) }
}

impl Drop for Writing {
    // Also runs when an error unwinds.
    fn drop(&mut self) {
        WRITING.set(self.previous);
    }
}

/// The trigger `pg_stream_guard` of every stream table.
#[pg_trigger(sql = false)]
fn guard_stream_table<'a>(
    trigger: &'a pgrx::PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, pgrx::PgTriggerError> {
    let relation = trigger.relid()?;
    if WRITING.get() != relation {
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
