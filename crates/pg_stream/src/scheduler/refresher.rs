//! A worker of a scheduler: refreshes the units that it is given.

use std::collections::HashSet;

use pgrx::pg_sys::{self, Oid};

use crate::{
    pg::{
        job::{self, Job, Phase},
        shmem, time,
        worker::{self, Wait},
    },
    scheduler::unit,
};

/// The name of the process.
pub const NAME: &str = "pg_stream refresh worker";

/// How long it stays when there is nothing to do, in milliseconds: longer than the default schedule.
const LONGEST_IDLE: i64 = 90_000;

#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_stream_refresher_main(argument: pg_sys::Datum) {
    let Some(job) = job::of_worker(argument.value()) else { worker::end() };
    let database = job.database();
    let Some(slot) = shmem::slot_of(database) else { worker::end() };
    job.enter();
    worker::at_exit(Some(on_exit), argument.value());
    worker::begin(Some(database), c"pg_stream refresh worker");
    let wait = Wait::new(c"PgStreamRefreshWorkerMain");
    // Whoever wants the database either sees this process or is seen here.
    let mut consumed = HashSet::new();
    while job.has_owner(slot) && slot.held_until() <= time::now() {
        if job.phase() == Phase::Assigned {
            work(job, &mut consumed);
            slot.wake();
        } else if !consumed.is_empty() {
            unit::clean(&std::mem::take(&mut consumed));
        } else if (shmem::are_processes_reserved() && job.end_if_idle())
            || (!worker::sleep(LONGEST_IDLE, wait) && job.end_if_idle())
        {
            break;
        }
    }
    worker::end();
}

fn work(job: &Job, consumed: &mut HashSet<Oid>) {
    let begins = |position| job.set_current(position);
    let reports = unit::refresh(&job.tables(), job.patience(), &begins, consumed);
    for (position, report) in reports.iter().enumerate() {
        job.set_result(position, report.to_number());
    }
    job.finish();
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: std::ffi::c_int, argument: pg_sys::Datum) {
    let Some(job) = job::of_worker(argument.value()) else { return };
    match shmem::slot_of(job.database()) {
        Some(slot) => job.leave(slot),
        None => job.free(),
    }
}
