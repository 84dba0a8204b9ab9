//! Changes of sources that capture does not see as changes of rows: partitions that come and go,
//! rewrites, and capture triggers that are switched off.

use pgrx::pg_sys::{Oid, panic::ErrorReport};

use crate::{
    capture, catalog,
    ddl::outdate,
    pg::{event::Command, lock::Lock, relation, source},
    refresh, settings,
};

/// After a command about a table or one of its triggers. The capture triggers of it and of what it
/// belongs to are made right again within the command, which holds a lock against writers: nothing
/// can have been lost meanwhile. Rows that came or went with a table ask for a rebuild.
pub fn changed(table: Oid, command: &Command) -> Result<(), ErrorReport> {
    let mut sources = source::with_ancestors(table);
    // What has left a tree still has its triggers. What has joined one is changed through it.
    let below = source::members(table, Lock::None);
    for source in capture::captured_through(table).into_iter().chain(below) {
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    let is_captured = |it: &Oid| capture::is_tracked(*it) && relation::exists(*it);
    for source in sources.into_iter().filter(is_captured) {
        // A stream table is captured by its refreshes, not by triggers.
        if catalog::by_relation(source).is_some() {
            continue;
        }
        let mut found = capture::refit(source);
        // A new table has no rows yet.
        if command.tag == "CREATE TABLE" {
            found.moved.retain(|it| *it != table);
        }
        let name = relation::display_name(source);
        let reason = match found.moved.first() {
            Some(moved) => {
                format!("table {} joined or left {name}", relation::display_name(*moved))
            }
            // Nothing was lost, but whoever finds other triggers than before cannot know.
            None if found.has_changed => format!("the triggers that capture {name} were changed"),
            None => {
                refuse_rebuilds(source)?;
                continue;
            }
        };
        outdate::outdate_all(&capture::consumers(source), &reason)?;
    }
    Ok(())
}

/// With `block_source_ddl`: a change of keys or columns for which what is stored would have to be laid
/// out differently.
fn refuse_rebuilds(source: Oid) -> Result<(), ErrorReport> {
    if !settings::block_source_ddl() {
        return Ok(());
    }
    for id in capture::consumers(source) {
        if let Some(stream_table) = refresh::must_be_rebuilt(id)? {
            let reason = format!("table {} was changed", relation::display_name(source));
            return Err(outdate::blocked(&stream_table, &reason));
        }
    }
    Ok(())
}

/// A table is about to be rewritten: for an older snapshot it would be empty, as after TRUNCATE.
pub fn rewritten(table: Oid) -> Result<(), ErrorReport> {
    for source in source::with_ancestors(table) {
        if capture::is_tracked(source) {
            let reason = format!("table {} was rewritten", relation::display_name(table));
            outdate::outdate_all(&capture::consumers(source), &reason)?;
            capture::buffer::mark_rewritten(source);
        }
    }
    Ok(())
}
