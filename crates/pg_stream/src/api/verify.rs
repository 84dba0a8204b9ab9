//! `pgstream.verify_stream_table` and `pgstream.repair_stream_table`.

use pgrx::{pg_sys::panic::ErrorReport, prelude::*};

use crate::{
    api::{options, resume},
    catalog,
    error::Error,
    pg::original::OriginalErrors,
    pg::text::Argument,
    refresh,
};

type Differences = TableIterator<
    'static,
    (
        name!(difference, &'static str),
        name!(copies, i64),
        // Declared in SQL as json, which is stored as its text, and as regclass, an OID.
        name!(row_data, String),
        name!(stored_in, pg_sys::Oid),
    ),
>;

#[pg_extern(sql = false)]
fn verify_stream_table(name: Option<Argument>) -> Result<Differences, ErrorReport> {
    let _errors = OriginalErrors::keep();
    let table = catalog::lock_owned(options::required(name.as_deref(), "name")?)
        .map_err(ErrorReport::from)?;
    let found = refresh::verify(table.id).map_err(ErrorReport::from)?;
    Ok(TableIterator::new(found.into_iter().map(|it| {
        let difference = if it.missing > 0 { "missing" } else { "unexpected" };
        (difference, it.missing.abs(), it.row, it.table)
    })))
}

#[pg_extern(sql = false)]
fn repair_stream_table(name: Option<Argument>) -> Result<(), ErrorReport> {
    let _errors = OriginalErrors::keep();
    Ok(repair(options::required(name.as_deref(), "name")?)?)
}

/// Computes it anew, and lets it run again if it was suspended or in error.
fn repair(name: &str) -> Result<(), Error> {
    let table = catalog::lock_owned(name)?;
    let id = table.id;
    resume::resume(table)?;
    refresh::repair(id)?;
    Ok(())
}
