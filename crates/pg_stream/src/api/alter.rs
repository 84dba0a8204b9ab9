//! `pgstream.alter_stream_table`.

use pgrx::{pg_sys::panic::ErrorReport, prelude::*};
use pgstream_core::{mode::RefreshMode, status::Status};

use crate::{
    api::{create, options, resume},
    catalog::{self, StreamTable},
    ddl::drop::{drop_stages, lock_sources, untrack_all},
    error::Error,
    lower,
    pg::text::Argument,
    pg::{access, name, original::OriginalErrors, relation, security::Identity, wake},
    restore,
};

#[pg_extern(sql = false)]
fn alter_stream_table(
    name: Option<Argument>,
    schedule: Option<Argument>,
    refresh_mode: Option<Argument>,
    status: Option<Argument>,
) -> Result<(), ErrorReport> {
    let _errors = OriginalErrors::keep();
    Ok(alter(
        options::required(name.as_deref(), "name")?,
        schedule.as_deref(),
        refresh_mode.as_deref(),
        status.as_deref(),
    )?)
}

/// Checks everything before it changes anything; `None` leaves alone.
fn alter(
    name: &str,
    schedule: Option<&str>,
    mode: Option<&str>,
    status: Option<&str>,
) -> Result<(), Error> {
    let table = catalog::lock_owned(name)?;
    let schedule = schedule.map(|it| options::schedule(Some(it))).transpose()?;
    let mode = mode.map(options::mode).transpose()?;
    let status = status.map(requested_status).transpose()?;
    let _superuser = Identity::superuser();
    // Before what is noted of it.
    match mode.filter(|it| *it != table.mode) {
        Some(RefreshMode::Full) => lock_sources(&[table.id]),
        Some(RefreshMode::Differential) => {
            catalog::sources(table.id).into_iter().for_each(relation::lock_for_reading);
        }
        None => {}
    }
    if let Some(schedule) = schedule {
        catalog::set_schedule(table.id, schedule);
    }
    if let Some(mode) = mode.filter(|it| *it != table.mode) {
        switch_mode(&table, mode)?;
    }
    match status {
        Some(Status::Suspended) => suspend(table.id)?,
        Some(_) => resume::resume(table)?,
        None => {}
    }
    wake::scheduler_at_commit();
    Ok(())
}

/// Why a table is in error must not be forgotten.
fn suspend(id: i64) -> Result<(), Error> {
    let table = catalog::locked(id)?;
    if table.status == Status::Error {
        return Err(table.in_error());
    }
    catalog::set_status(id, Status::Suspended, None);
    Ok(())
}

fn requested_status(text: &str) -> Result<Status, Error> {
    match text.parse() {
        Ok(status @ (Status::Active | Status::Suspended)) => Ok(status),
        _ => Err(Error::BadStatus(text.to_owned())),
    }
}

/// The next refresh rebuilds the storage for the new mode.
fn switch_mode(table: &StreamTable, mode: RefreshMode) -> Result<(), Error> {
    let view = restore::recover_query(table)?;
    catalog::check_acyclic(table.relation, view)?;
    catalog::set_mode(table.id, mode);
    name::invalidate(table.relation);
    match mode {
        RefreshMode::Differential => {
            let lowered = lower::lower_view(view)?;
            access::check(&lowered.permissions, relation::owner(table.relation));
            create::warn(&lowered);
            catalog::set_dependencies(table.id, &lowered.dependencies);
        }
        RefreshMode::Full => {
            drop_stages(table.id);
            untrack_all(table.id);
        }
    }
    Ok(())
}
