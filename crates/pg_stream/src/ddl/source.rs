//! Changes of sources that capture does not see as changes of rows: partitions that come and go,
//! rewrites, and capture triggers that are switched off.

use pgrx::pg_sys::{Oid, panic::ErrorReport};

use crate::{
    capture::{self, Refit},
    catalog,
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
    // A stream table is captured by its refreshes, not by triggers.
    let is_table = |it: &Oid| catalog::by_relation(*it).is_none();
    sources.retain(|it| is_captured(it) && is_table(it));
    // A new table has no rows yet.
    let new = (command.tag == "CREATE TABLE").then_some(table);
    let mut outdated = Vec::new();
    for source in sources.iter().copied() {
        if reason(source, new, &capture::examine(source)).is_some() {
            outdated.extend(capture::consumers(source));
        }
    }
    catalog::lock(&outdated);
    for source in sources {
        match reason(source, new, &capture::refit(source)) {
            Some(reason) => outdate::outdate_all(&capture::consumers(source), &reason)?,
            None => refuse_rebuilds(source)?,
        }
    }
    Ok(())
}

/// Why what reads `source` has to be rebuilt, if it has to.
fn reason(source: Oid, new: Option<Oid>, found: &Refit) -> Option<String> {
    let name = relation::display_name(source);
    match found.moved.iter().find(|it| new != Some(**it)) {
        Some(moved) => {
            Some(format!("table {} joined or left {name}", relation::display_name(*moved)))
        }
        // Nothing was lost, but whoever finds other triggers than before cannot know.
        None => found.has_changed.then(|| format!("the triggers that capture {name} were changed")),
    }
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
