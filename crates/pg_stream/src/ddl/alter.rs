//! After ALTER: stream tables may be renamed and moved, but their columns belong to the query.

use pgrx::{pg_sys::panic::ErrorReport, prelude::*};

use crate::pg::{security::Identity, spi};

/// The event trigger `pgstream_on_alter`.
#[pg_extern(sql = false)]
fn on_alter() -> Result<(), ErrorReport> {
    let _superuser = Identity::superuser();
    let mut changed = None;
    spi::run(include_str!("altered_columns.sql"), &[], |row| changed = row.get::<String>(0));
    if let Some(name) = changed {
        let report = ErrorReport::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("cannot alter the columns of stream table \"{name}\""),
            "on_alter",
        );
        return Err(report
            .set_detail("Its columns are those of its defining query.")
            .set_hint("Drop it and create it with another query."));
    }
    spi::run(
        "UPDATE pgstream.pgs_stream_tables SET pgs_schema = nspname, pgs_name = relname \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.oid = pgs_relid AND (pgs_schema, pgs_name) <> (nspname, relname)",
        &[],
        |_| {},
    );
    Ok(())
}
