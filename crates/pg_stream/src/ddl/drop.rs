//! After DROP: what was dropped may be a stream table, its query, or its source.

use pgrx::{
    pg_sys::{Oid, panic::ErrorReport},
    prelude::*,
};
use pgstream_core::status::Status;
use pgstream_ivm::sql::quote_qualified;

use crate::{
    capture, catalog,
    fault::{self, Step},
    pg::{dump, member, security::Identity, spi, wake},
};

/// Something of ours that was dropped.
enum Dropped {
    StreamTable { id: i64 },
    Query { id: i64, reason: String },
    Source { relation: Oid, reader: i64 },
}

/// The event trigger `pgstream_on_drop`.
#[pg_extern(sql = false)]
fn on_sql_drop() -> Result<(), ErrorReport> {
    let is_replaced = dump::is_restoring();
    let _superuser = Identity::superuser();
    // A dump that replaces a stream table takes it apart first.
    let unguarded = match is_replaced {
        true => None,
        false => spi::get_one::<String>(include_str!("dropped_guard.sql"), &[]),
    };
    if let Some(table) = unguarded {
        let report = ErrorReport::new(
            PgSqlErrorCode::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
            format!("cannot drop the trigger that protects \"{table}\""),
            "on_sql_drop",
        );
        return Err(report.set_hint("Drop the stream table instead."));
    }
    let mut dropped = Vec::new();
    spi::run(include_str!("dropped.sql"), &[], |row| {
        let id = row.get::<i64>(1);
        let relation = row.get::<Oid>(2);
        dropped.extend(match (row.get::<String>(0).as_deref(), id, relation) {
            (Some("table"), Some(id), _) => Some(Dropped::StreamTable { id }),
            (Some("query"), Some(id), _) => {
                Some(Dropped::Query { id, reason: row.get(3).unwrap_or_default() })
            }
            (Some("source"), Some(reader), Some(relation)) => {
                Some(Dropped::Source { relation, reader })
            }
            _ => None,
        });
    });
    spi::run(include_str!("dropped_capture.sql"), &[], |_| {});
    for it in &dropped {
        match it {
            Dropped::StreamTable { id } => forget(*id, is_replaced),
            Dropped::Query { id, reason } => {
                catalog::set_status(*id, Status::Error, Some(reason));
                // Without its query it will never be refreshed again.
                untrack_all(*id);
            }
            Dropped::Source { relation, reader } => capture::untrack(*relation, *reader),
        }
    }
    if !dropped.is_empty() {
        wake::scheduler_at_commit();
    }
    Ok(())
}

/// Removes what belonged to a stream table that is gone. A dump that replaces it drops its view too.
fn forget(id: i64, is_replaced: bool) {
    untrack_all(id);
    catalog::delete(id);
    let view = quote_qualified("pgstream_state", &format!("query_{id}"));
    if !is_replaced {
        spi::run("SET LOCAL client_min_messages = warning", &[], |_| {});
        spi::run(&format!("DROP VIEW IF EXISTS {view}"), &[], |_| {});
    }
    drop_stages(id);
}

fn untrack_all(id: i64) {
    for source in catalog::tracked_sources(id) {
        capture::untrack(source, id);
    }
}

/// Drops the hidden state of inner stages.
pub fn drop_stages(id: i64) {
    let mut tables = Vec::new();
    spi::run(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = 'pgstream_state' AND c.relkind = 'r' AND c.relname ~ $1",
        &[format!("^stage_{id}_[0-9]+$").into()],
        |row| tables.extend(row.get::<String>(0)),
    );
    for table in tables {
        member::drop_table(&table);
    }
    fault::point(Step::StateDropped);
}
