//! Stream tables refresh themselves: one launcher in the server, one scheduler in each database
//! that has the extension.

mod launcher;
mod memory;
mod worker;

use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys::panic::ErrorReport};

use crate::{
    pg::{hook, shmem, wake, worker as process},
    settings,
};

/// To be called while `shared_preload_libraries` are loaded.
pub fn install() {
    shmem::reserve();
    hook::install();
    process::register_launcher("pg_stream launcher", "pg_stream_launcher_main");
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
}

/// How long to wait when nothing asks for an earlier look, in milliseconds.
const LONGEST_SLEEP: i64 = 60_000;

fn shortest_sleep() -> i64 {
    i64::from(settings::scheduler_interval_ms())
}
