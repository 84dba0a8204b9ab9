//! What happened to stream tables while event triggers were off. The scheduler looks for it now and
//! then, and does what the event triggers would have done.

use pgrx::pg_sys::panic::ErrorReport;

use crate::{
    catalog,
    ddl::{drop, stream_table},
    pg::{relation, spi, wake},
};

/// What of a stream table is gone or has changed: its table, its query, or its name or owner.
pub struct Missed {
    id: i64,
    what: String,
}

/// Looks for what no event trigger told of.
pub fn find() -> Vec<Missed> {
    let mut missed = Vec::new();
    spi::run(include_str!("missed.sql"), &[], |row| {
        missed.extend(row.get(0).zip(row.get(1)).map(|(id, what)| Missed { id, what }));
    });
    missed
}

/// Makes up for it, unless somebody uses the stream table just now.
pub fn make_up(missed: &Missed) -> Result<(), ErrorReport> {
    if !relation::try_lock_stream_table(missed.id) {
        return Ok(());
    }
    match missed.what.as_str() {
        "table" => drop::forget(missed.id, false),
        "query" => drop::lose_query(missed.id, "something that it reads was dropped"),
        _ => {
            if let Some(stream_table) = catalog::by_id(missed.id) {
                stream_table::follow(&stream_table)?;
            }
        }
    }
    wake::scheduler_at_commit();
    Ok(())
}
