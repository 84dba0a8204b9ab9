//! `pgstream.refresh_stream_table`.

use pgrx::{pg_sys::panic::ErrorReport, prelude::*};
use pgstream_core::status::Status;

use crate::{
    api::options,
    catalog,
    error::Error,
    pg::original::OriginalErrors,
    pg::text::Argument,
    refresh::{self, InitiatedBy},
};

#[pg_extern(sql = false)]
fn refresh_stream_table(name: Option<Argument>) -> Result<(), ErrorReport> {
    let _errors = OriginalErrors::keep();
    Ok(refresh(options::required(name.as_deref(), "name")?)?)
}

fn refresh(name: &str) -> Result<(), Error> {
    let table = catalog::lock_owned(name)?;
    match table.status {
        Status::Suspended => Err(Error::Suspended(table.name)),
        Status::Error => Err(table.in_error()),
        Status::Active | Status::Initializing => {
            refresh::run(table.id, InitiatedBy::Manual)?;
            Ok(())
        }
    }
}
