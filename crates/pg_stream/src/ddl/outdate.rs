//! Asking for a rebuild, where a change of definition has made what is stored doubtful.

use pgrx::{pg_sys::panic::ErrorReport, prelude::*};

use crate::{
    catalog,
    monitor::alert,
    pg::{name, relation, wake},
    settings,
};

/// The next refresh of this stream table rebuilds it, for `reason`.
pub fn outdate(id: i64, reason: &str) -> Result<(), ErrorReport> {
    let Some(outdated) = catalog::outdate(id, reason) else { return Ok(()) };
    if settings::block_source_ddl() {
        return Err(blocked(&relation::display_name(outdated.relation), reason));
    }
    // What sessions have cached of it was made from the old definition.
    name::invalidate(outdated.relation);
    wake::scheduler_at_commit();
    if outdated.is_new {
        alert::reinitialize_needed(relation::name(outdated.relation), reason);
    }
    Ok(())
}

pub fn outdate_all(ids: &[i64], reason: &str) -> Result<(), ErrorReport> {
    catalog::lock(ids);
    ids.iter().try_for_each(|it| outdate(*it, reason))
}

/// The setting `block_source_ddl` forbids a command.
pub fn blocked(stream_table: &str, reason: &str) -> ErrorReport {
    let report = ErrorReport::new(
        PgSqlErrorCode::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
        format!("cannot change what stream table \"{stream_table}\" is made from"),
        "block_source_ddl",
    );
    report
        .set_detail(format!("It would have to be rebuilt, because {reason}."))
        .set_hint("Set pg_stream.block_source_ddl to off to allow that.")
}
