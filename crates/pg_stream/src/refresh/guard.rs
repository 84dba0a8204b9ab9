//! Keeping everybody but a refresh from writing to a stream table.

use std::cell::RefCell;

use pgrx::{pg_sys::Oid, prelude::*};

use crate::{pg::access::Roles, refresh::definition::Definition, restore};

thread_local! {
    /// The tables that this backend's refresh is writing to.
    static WRITING: RefCell<Vec<Oid>> = const { RefCell::new(Vec::new()) };
}

/// Allows writing to one stream table and its hidden state while it lives.
pub struct Writing {
    previous: Vec<Oid>,
    _roles: Roles,
}

pub fn writing(definition: &Definition) -> Writing {
    Writing {
        previous: WRITING.replace(definition.tables()),
        _roles: Roles::enter(definition.roles()),
    }
}

impl Drop for Writing {
    // Also runs when an error unwinds.
    fn drop(&mut self) {
        WRITING.set(std::mem::take(&mut self.previous));
    }
}

/// The trigger `pg_stream_guard` of every stream table and of every inner stage.
#[pg_trigger(sql = false)]
fn guard_stream_table<'a>(
    trigger: &'a pgrx::PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, pgrx::PgTriggerError> {
    let relation = trigger.relid()?;
    if !WRITING.with_borrow(|it| it.contains(&relation))
        && !restore::accepts_write(relation, trigger.op()?)
    {
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
