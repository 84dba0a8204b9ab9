//! Keeping everybody but a refresh from writing to a stream table.

use std::cell::RefCell;

use pgrx::{pg_sys::Oid, prelude::*};

use crate::{
    pg::{access::Roles, trigger},
    refresh::definition::Definition,
    restore,
};

/// What this backend's refresh is writing to.
#[derive(Default)]
struct Target {
    tables: Vec<Oid>,
    /// How many triggers deep the guard is when it fires for a statement of the refresh: what triggers of
    /// users do to the tables meanwhile is none.
    depth: i32,
}

thread_local! {
    static WRITING: RefCell<Target> = const { RefCell::new(Target { tables: Vec::new(), depth: 0 }) };
}

/// Allows writing to one stream table and its hidden state while it lives.
pub struct Writing {
    previous: Target,
    _roles: Roles,
}

pub fn writing(definition: &Definition) -> Writing {
    let target = Target { tables: definition.tables(), depth: trigger::depth() + 1 };
    Writing { previous: WRITING.replace(target), _roles: Roles::enter(definition.roles()) }
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
    fired: &'a pgrx::PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, pgrx::PgTriggerError> {
    let relation = fired.relid()?;
    let is_of_refresh = |it: &Target| it.tables.contains(&relation) && it.depth == trigger::depth();
    if !WRITING.with_borrow(is_of_refresh) && !restore::accepts_write(relation, fired.op()?) {
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
