//! The scheduler of one database: reads the states, asks `pgstream_core::decide`, refreshes what
//! is due in the order of dependencies, and sleeps until the next time or the next commit.
//!
//! Each refresh is a transaction of its own, so a stream table that fails is recorded and holds up
//! nobody else.

use pgrx::{pg_sys, pg_sys::panic::ErrorReport, prelude::PgLogLevel};
use pgstream_core::{
    decide::{Decision, decide},
    schedule::{Micros, SECOND},
    status::Status,
};

use crate::{
    catalog,
    error::Error,
    pg::{
        shmem::{self, Slot, State},
        spi, time,
        worker::{self, Failure},
    },
    refresh::{self, Action, InitiatedBy},
    scheduler::{
        LONGEST_SLEEP,
        memory::{self, Memory},
        shortest_sleep,
    },
    settings,
};

/// How often old history is removed.
const PRUNE_INTERVAL: Micros = 3600 * SECOND;

#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_stream_scheduler_main(argument: pg_sys::Datum) {
    let slot = shmem::slot(argument.value());
    worker::at_exit(Some(on_exit), argument.value());
    worker::begin(Some(slot.database()));
    slot.enter();
    if slot.held_until() > time::now() {
        slot.detach(State::Ended);
        worker::end();
    }
    slot.start_looking();
    match worker::transaction(c"looking for the extension", worker::has_extension) {
        Ok(true) => {
            slot.set_state(State::Running);
            // It starts one scheduler at a time.
            shmem::wake_launcher();
        }
        Ok(false) => retire(slot),
        Err(_) => worker::end(),
    }
    let mut scheduler = Scheduler { slot, memory: Memory::default(), pruned_at: 0 };
    scheduler.recover();
    loop {
        let milliseconds = if settings::enabled() { scheduler.pass() } else { LONGEST_SLEEP };
        worker::sleep(milliseconds);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: std::ffi::c_int, argument: pg_sys::Datum) {
    let slot = shmem::slot(argument.value());
    // One that could not even connect is left as it is, for the launcher to tell.
    if slot.state() == State::Running {
        slot.detach(State::Ended);
    }
}

/// Ends where the extension does not exist, until somebody creates it.
fn retire(slot: &Slot) -> ! {
    slot.detach(State::Unneeded);
    worker::end();
}

struct Scheduler {
    slot: &'static Slot,
    memory: Memory,
    pruned_at: Micros,
}

impl Scheduler {
    /// One look at all stream tables; returns for how many milliseconds to sleep.
    fn pass(&mut self) -> i64 {
        let now = time::since_epoch();
        self.slot.arm(false);
        let commits = self.slot.commits();
        let read = worker::transaction(c"reading the catalog", || {
            worker::has_extension().then(memory::entries)
        });
        let entries = match read {
            Ok(Some(entries)) => entries,
            Ok(None) => retire(self.slot),
            Err(failure) => {
                pgrx::warning!("pg_stream scheduler cannot read its catalog: {}", failure.message);
                return LONGEST_SLEEP;
            }
        };
        let tables = self.memory.tables(entries, commits);
        let decision = decide(&tables, now);
        for id in &decision.due {
            let had_changes = refresh_one(*id);
            self.memory.note(*id, now, commits, had_changes);
        }
        if now - self.pruned_at > PRUNE_INTERVAL {
            self.pruned_at = now;
            prune();
        }
        self.sleep_after(&decision, now, commits)
    }

    fn sleep_after(&self, decision: &Decision, now: Micros, commits: u64) -> i64 {
        if !decision.due.is_empty() {
            // What was refreshed has a new due time; look again to find it.
            return shortest_sleep();
        }
        self.slot.arm(decision.wake_on_commit);
        if decision.wake_on_commit && self.slot.commits() != commits {
            return shortest_sleep();
        }
        let until = decision.wake_at.map_or(LONGEST_SLEEP, |it| (it - now) / 1000 + 1);
        until.clamp(1, LONGEST_SLEEP)
    }

    /// After a crash, refreshes that were running are known to have failed.
    fn recover(&self) {
        let result = worker::transaction(c"recovering", || {
            spi::run(
                "UPDATE pgstream.pgs_refresh_history SET status = 'FAILED', \
                 end_time = clock_timestamp(), error_message = 'interrupted by a restart' \
                 WHERE status = 'RUNNING'",
                &[],
                |_| {},
            )
        });
        if let Err(failure) = result {
            pgrx::warning!("pg_stream scheduler cannot recover: {}", failure.message);
        }
    }
}

/// Whether there were changes, or nobody knows.
fn refresh_one(id: i64) -> bool {
    let started = time::current();
    let mut must_stop = false;
    let result =
        worker::transaction(c"refreshing", || match refresh::run(id, InitiatedBy::Scheduler) {
            Ok(outcome) if outcome.action == Action::NoData => false,
            Ok(_) => true,
            Err(error) => {
                must_stop = is_lasting(&error);
                ErrorReport::from(error).report(PgLogLevel::ERROR);
                unreachable!("an error was raised")
            }
        });
    result.unwrap_or_else(|failure| {
        record(id, started, &failure, must_stop);
        true
    })
}

/// Whether trying again is useless until somebody changes a definition.
fn is_lasting(error: &Error) -> bool {
    matches!(error, Error::Refused(_) | Error::QueryLost(_) | Error::Cyclic { .. })
}

fn record(
    id: i64,
    started: pgrx::datum::TimestampWithTimeZone,
    failure: &Failure,
    must_stop: bool,
) {
    pgrx::log!("pg_stream: refresh of stream table number {id} failed: {}", failure.message);
    let limit = settings::max_consecutive_errors();
    let recorded = worker::transaction(c"recording a failure", || {
        spi::run(
            include_str!("failed.sql"),
            &[id.into(), failure.message.clone().into(), limit.into(), started.into()],
            |_| {},
        );
        if must_stop {
            catalog::set_status(id, Status::Error, Some(&failure.message));
        }
    });
    if let Err(failure) = recorded {
        pgrx::warning!("pg_stream scheduler cannot record a failure: {}", failure.message);
    }
}

fn prune() {
    let days = settings::history_retention_days();
    let result = worker::transaction(c"pruning the history", || {
        spi::run(
            "DELETE FROM pgstream.pgs_refresh_history \
             WHERE start_time < clock_timestamp() - make_interval(days => $1)",
            &[days.into()],
            |_| {},
        )
    });
    if let Err(failure) = result {
        pgrx::warning!("pg_stream scheduler cannot prune the history: {}", failure.message);
    }
}
