//! Stream tables refresh themselves: one launcher in the server, one scheduler in each database
//! that has the extension, and workers of each scheduler, which refresh.

mod ages;
mod database;
mod decoder;
mod launcher;
mod memory;
mod pool;
mod refresher;
mod unit;
mod watch;

use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys::panic::ErrorReport};

use crate::{
    pg::{dump, hook, shmem, wake, worker as process},
    settings,
};

/// To be called while `shared_preload_libraries` are loaded.
pub fn install() {
    shmem::reserve();
    hook::install();
    // pg_upgrade wants to be alone.
    if !dump::is_binary_upgrade() {
        process::register_launcher("pg_stream launcher", "pg_stream_launcher_main");
    }
}

/// Without shared memory there is no launcher.
pub fn warn_of_missing_preload() {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_WARNING,
        "pg_stream is not in shared_preload_libraries: stream tables are refreshed only on request",
        "_PG_init",
    )
    .set_hint("Add it to shared_preload_libraries and restart the server.")
    .report(PgLogLevel::WARNING);
}

/// At the end of CREATE EXTENSION.
#[pgrx::pg_extern(sql = false)]
fn announce_extension() {
    wake::launcher_at_commit();
    wake::scheduler_at_commit();
}

/// The trigger `pgstream_on_change` of the catalog's tables.
#[pgrx::pg_trigger(sql = false)]
fn on_catalog_change<'a>(
    _trigger: &'a pgrx::PgTrigger<'a>,
) -> Result<Option<pgrx::heap_tuple::PgHeapTuple<'a, impl pgrx::WhoAllocated>>, pgrx::PgTriggerError>
{
    wake::scheduler_at_commit();
    Ok(None::<pgrx::heap_tuple::PgHeapTuple<'a, pgrx::AllocatedByRust>>)
}

/// How long to wait when nothing asks for an earlier look, in milliseconds.
const LONGEST_SLEEP: i64 = 60_000;

fn shortest_sleep() -> i64 {
    i64::from(settings::scheduler_interval_ms())
}
