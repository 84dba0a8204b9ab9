//! After DROP: what was dropped may be a stream table, its query, its source, or a part of what
//! maintains it.
//!
//! PostgreSQL itself drops the hidden view of a stream table with it, because `pg_depend` says that it
//! belongs to it. Stages and buffers belong to the extension: see [`crate::pg::member`].

use pgrx::{
    pg_sys::{Oid, panic::ErrorReport},
    prelude::*,
};
use pgstream_core::{name::QualifiedName, status::Status};
use pgstream_ivm::sql::quote_qualified;

use crate::{
    capture, catalog,
    ddl::{outdate, stream_table},
    fault::{self, Step},
    pg::{
        event::{Class, Dropped},
        lock::{self, Lock},
        member, relation, spi, wake,
    },
    settings,
};

/// A dump that replaces a stream table drops its triggers before it, and its hidden view itself.
pub fn dropped(dropped: &[Dropped], is_restoring: bool) -> Result<(), ErrorReport> {
    let relations = dropped.iter().filter(|it| it.class == Class::Relation && it.part == 0);
    let id = |it: &Dropped| {
        catalog::by_relation(it.object).or_else(|| catalog::by_view(it.object)).map(|it| it.id)
    };
    lock_all(&relations.clone().filter_map(id).collect::<Vec<_>>());
    let mut gone = false;
    for it in relations.clone() {
        if let Some(stream_table) = catalog::by_relation(it.object) {
            forget(stream_table.id, is_restoring);
            gone = true;
        }
    }
    for it in relations {
        gone |= relation_dropped(it, dropped, is_restoring)?;
    }
    for it in dropped {
        match it.class {
            Class::Relation if it.part > 0 => column_dropped(it)?,
            Class::Trigger if !is_restoring => trigger_dropped(it)?,
            _ => {}
        }
    }
    if gone {
        wake::scheduler_at_commit();
    }
    Ok(())
}

/// Whether it concerned a stream table.
fn relation_dropped(
    relation: &Dropped,
    all: &[Dropped],
    is_restoring: bool,
) -> Result<bool, ErrorReport> {
    if let Some(stream_table) = catalog::by_view(relation.object) {
        if relation.is_original && !is_restoring {
            return Err(stream_table::refusal(&stream_table, "query"));
        }
        if relation.is_original {
            // A dump of another database may mean one of its own. The label still has the query.
            catalog::forget_view(stream_table.id);
            outdate::outdate(stream_table.id, "a dump has dropped its query")?;
            return Ok(true);
        }
        query_dropped(stream_table.id, all)?;
        return Ok(true);
    }
    if let Some(id) = catalog::id_of_stage(&relation.names) {
        outdate::outdate(id, &format!("{} was dropped", relation.identity))?;
        return Ok(true);
    }
    if let Some(source) = catalog::source_of_buffer(relation.object) {
        // Its source may be gone, too; otherwise capture starts anew with the rebuild.
        let consumers = capture::consumers(source);
        consumers.iter().for_each(|it| capture::untrack(source, *it));
        if relation::exists(source) {
            outdate::outdate_all(&consumers, &format!("{} was dropped", relation.identity))?;
        }
        return Ok(true);
    }
    let consumers = capture::consumers(relation.object);
    consumers.iter().for_each(|it| capture::untrack(relation.object, *it));
    Ok(!consumers.is_empty())
}

/// Without its query a stream table keeps its contents, and is never refreshed again.
fn query_dropped(id: i64, all: &[Dropped]) -> Result<(), ErrorReport> {
    let originals: Vec<&str> =
        all.iter().filter(|it| it.is_original).map(|it| it.identity.as_str()).collect();
    let reason = match originals.as_slice() {
        [one] => format!("{one} was dropped"),
        several => format!("{} were dropped", several.join(", ")),
    };
    if settings::block_source_ddl() {
        let name = catalog::by_id(id).map(|it| relation::display_name(it.relation));
        return Err(outdate::blocked(&name.unwrap_or_default(), &reason));
    }
    lose_query(id, &reason);
    Ok(())
}

/// Notes that the query is gone.
pub fn lose_query(id: i64, reason: &str) {
    lock_all(&[id]);
    catalog::set_status(id, Status::Error, Some(reason));
    untrack_all(id);
    drop_stages(id);
}

/// Forgets a stream table of that name whose table was dropped while event triggers were off, or left out of
/// a dump. Whether there was one.
pub fn forget_missing(name: &QualifiedName) -> bool {
    let missing = catalog::missing(name);
    missing.into_iter().for_each(|id| forget(id, false));
    missing.is_some()
}

fn column_dropped(column: &Dropped) -> Result<(), ErrorReport> {
    match catalog::by_relation(column.object) {
        // With its type, say, the query has gone as well.
        Some(found) if found.view.is_some_and(relation::exists) => {
            Err(stream_table::refusal(&found, "columns"))
        }
        _ => Ok(()),
    }
}

fn trigger_dropped(trigger: &Dropped) -> Result<(), ErrorReport> {
    let [schema, table, name] = trigger.names.as_slice() else { return Ok(()) };
    if !name.starts_with("pg_stream_") {
        return Ok(());
    }
    let is_protected = || {
        let stream_table = relation::find(schema, table).and_then(catalog::by_relation);
        schema == "pgstream_state" || stream_table.is_some()
    };
    if name == "pg_stream_guard" && trigger.is_original && is_protected() {
        let report = ErrorReport::new(
            PgSqlErrorCode::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
            format!("cannot drop the trigger that protects \"{schema}.{table}\""),
            "on_sql_drop",
        );
        return Err(report.set_hint("Drop the stream table instead."));
    }
    if let Some(source) = source_of_trigger(name) {
        return outdate::outdate_all(
            &capture::consumers(source),
            &format!("{} was dropped", trigger.identity),
        );
    }
    Ok(())
}

/// The source whose changes a trigger of this name captures.
fn source_of_trigger(name: &str) -> Option<Oid> {
    let rest = name.strip_prefix("pg_stream_cdc_")?;
    let rest = rest.strip_prefix("truncate_").unwrap_or(rest);
    let digits = rest.find(|it: char| !it.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse::<u32>().ok().map(Oid::from)
}

/// Removes what belonged to a stream table that is gone.
pub fn forget(id: i64, is_restoring: bool) {
    lock_all(&[id]);
    untrack_all(id);
    catalog::delete(id);
    if !is_restoring {
        // After pg_upgrade, which does not keep what `pg_depend` says of it, it is still there.
        catalog::drop_view(id);
    }
    drop_stages(id);
}

/// Locks sources that nobody will read any more, then what is noted of their last readers.
fn lock_all(ids: &[i64]) {
    lock_sources(ids);
    catalog::lock(ids);
}

/// Locks the sources that nobody will read any more when these stream tables do not.
pub fn lock_sources(ids: &[i64]) {
    for source in ids.iter().flat_map(|it| catalog::tracked_sources(*it)) {
        capture::prepare_to_untrack(source, ids);
    }
}

pub fn untrack_all(id: i64) {
    for source in catalog::tracked_sources(id) {
        capture::untrack(source, id);
    }
}

/// Drops the hidden state of inner stages.
pub fn drop_stages(id: i64) {
    for stage in catalog::stages(id) {
        member::drop_table(&stage);
    }
    fault::point(Step::StateDropped);
}

/// Before DROP OWNED: what belongs to the extension could not be dropped. Who drops the same waits.
pub fn release_stages(owners: &[Oid]) {
    let mut stages = Vec::new();
    spi::ask(
        "SELECT oid FROM pg_catalog.pg_class WHERE relkind = 'r' AND relowner = ANY ($1) \
         AND relnamespace = 'pgstream_state'::pg_catalog.regnamespace ORDER BY oid",
        &[owners.to_vec().into()],
        |row| stages.extend(row.get::<Oid>(0)),
    );
    for stage in stages {
        lock::relation(stage, Lock::ShareUpdateExclusive);
        if relation::exists(stage) {
            let (schema, name) = relation::name(stage);
            member::release(&quote_qualified(&schema, &name));
        }
    }
}
