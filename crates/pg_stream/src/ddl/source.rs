//! Changes of sources that capture does not see as changes of rows: partitions that come and go,
//! rewrites, and capture triggers that are switched off.
//!
//! The same goes for functions, views and types that a query uses. What reads such a source is rebuilt at its next refresh.

use pgrx::{
    pg_sys::{Oid, panic::ErrorReport},
    prelude::*,
};

use crate::{
    capture,
    pg::{security::Identity, spi},
};

/// The event trigger `pgstream_on_source_change`, after CREATE TABLE and ALTER TABLE.
#[pg_extern(sql = false)]
fn on_source_change() -> Result<(), ErrorReport> {
    let _superuser = Identity::superuser();
    let mut disabled = None;
    let mut captured = Vec::new();
    spi::run(include_str!("changed_sources.sql"), &[], |row| {
        disabled = disabled.take().or(row.get::<String>(0));
        captured.extend(row.get::<Oid>(1));
    });
    if let Some(name) = disabled {
        let report = ErrorReport::new(
            PgSqlErrorCode::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
            format!("cannot disable the triggers that capture changes of \"{name}\""),
            "on_source_change",
        );
        return Err(report
            .set_detail("Stream tables depend on them.")
            .set_hint("Name the triggers to disable one by one."));
    }
    for source in captured {
        capture::refit_triggers(source);
    }
    Ok(())
}

/// The event trigger `pgstream_on_trigger`, after CREATE TRIGGER and ALTER TRIGGER. When a trigger is
/// dropped, its name is all that tells what it was, so nobody else may use ours.
#[pg_extern(sql = false)]
fn on_trigger() -> Result<(), ErrorReport> {
    let _superuser = Identity::superuser();
    let Some(name) = spi::get_one::<String>(include_str!("misnamed_trigger.sql"), &[]) else {
        return Ok(());
    };
    Err(ErrorReport::new(
        PgSqlErrorCode::ERRCODE_RESERVED_NAME,
        format!("unacceptable trigger name \"{name}\""),
        "on_trigger",
    )
    .set_detail("Names that begin with \"pg_stream_\" are those of the triggers of pg_stream."))
}

/// The event trigger `pgstream_on_rewrite`.
#[pg_extern(sql = false)]
fn on_table_rewrite() {
    let _superuser = Identity::superuser();
    let mut rewritten = Vec::new();
    spi::run(include_str!("rewritten_source.sql"), &[], |row| rewritten.extend(row.get::<Oid>(0)));
    // An older snapshot would see an empty table, as after TRUNCATE.
    for source in rewritten {
        capture::buffer::mark_rewritten(source);
    }
}

/// The event trigger `pgstream_on_replacement`, after changes of functions, views and types.
#[pg_extern(sql = false)]
fn on_replacement() {
    let _superuser = Identity::superuser();
    spi::run(include_str!("changed_dependencies.sql"), &[], |_| {});
}
