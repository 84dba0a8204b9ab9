//! `pgstream.explain_st`.

use pgrx::{pg_sys::panic::ErrorReport, prelude::*};

use crate::{catalog, pg::original::OriginalErrors, pg::text::Argument, refresh};

type Properties = TableIterator<'static, (name!(property, String), name!(value, String))>;

#[pg_extern(sql = false)]
fn explain_st(name: Argument) -> Result<Properties, ErrorReport> {
    let _errors = OriginalErrors::keep();
    let table = catalog::find(&name).map_err(ErrorReport::from)?;
    Ok(TableIterator::new(refresh::explain(table.id).map_err(ErrorReport::from)?))
}

/// The number of a stream table, by its name, for the reporting functions written in SQL.
#[pg_extern(sql = false)]
fn stream_table_id(name: Argument) -> Result<i64, ErrorReport> {
    Ok(catalog::find(&name).map_err(ErrorReport::from)?.id)
}
