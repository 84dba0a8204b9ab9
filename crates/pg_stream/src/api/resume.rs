//! `pgstream.resume_stream_table`.

use pgrx::{pg_sys::panic::ErrorReport, prelude::*};
use pgstream_core::status::Status;

use crate::{
    api::options,
    catalog::{self, StreamTable},
    error::Error,
    pg::text::Argument,
    pg::{security::Identity, wake},
    restore,
};

#[pg_extern(sql = false)]
fn resume_stream_table(name: Option<Argument>) -> Result<(), ErrorReport> {
    let table = catalog::lock_owned(options::required(name.as_deref(), "name")?)
        .map_err(ErrorReport::from)?;
    Ok(resume(table)?)
}

/// Lets a suspended stream table run again, and one in error if its query is still there.
pub fn resume(table: StreamTable) -> Result<(), Error> {
    let _superuser = Identity::superuser();
    if table.status == Status::Error {
        restore::recover_query(&table)?;
    }
    if matches!(table.status, Status::Suspended | Status::Error) {
        let now = catalog::locked(table.id)?;
        if now.status == Status::Error && table.status != Status::Error {
            return Err(now.in_error());
        }
        catalog::activate(&now);
        wake::scheduler_at_commit();
    }
    Ok(())
}
