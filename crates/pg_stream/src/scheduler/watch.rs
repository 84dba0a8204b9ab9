//! Looking after stream tables that nobody refreshes: they become stale, and the changes of their
//! sources pile up. And after what happened to them while event triggers were off.
//!
//! Changes beyond a limit are given up: what has not consumed them is marked to be rebuilt, and a
//! stream table that is going to be rebuilt needs no changes.

use std::collections::HashSet;

use pgrx::pg_sys::{Oid, panic::ErrorReportable};
use pgstream_core::schedule::{Micros, SECOND};

use crate::{
    capture, catalog,
    ddl::missed,
    monitor::alert,
    pg::{relation, spi, worker},
    refresh::{self, Reader},
    scheduler::{ages, shortest_sleep},
    settings,
};

/// How many of the shortest pauses of the scheduler lie between two looks.
const PAUSES: i64 = 30;

/// What was told already.
#[derive(Default)]
pub struct Watch {
    next: Micros,
    stale: HashSet<i64>,
    /// Source and reader.
    growing: HashSet<(Oid, i64)>,
}

impl Watch {
    /// Looks around unless it did so just before; returns when to look again.
    pub fn pass(&mut self, now: Micros) -> Micros {
        if now < self.next {
            return self.next;
        }
        self.next = now + shortest_sleep() * PAUSES * 1000;
        let work = || self.look_at_ages(now);
        if let Err(failure) = worker::transaction(c"pg_stream: looking for stale data", work) {
            complain::<()>(&failure.message);
        }
        let missed = worker::transaction(c"pg_stream: looking for missed commands", missed::find);
        for missed in missed.unwrap_or_else(|failure| complain(&failure.message)) {
            let work = || missed::make_up(&missed).unwrap_or_report();
            if let Err(failure) =
                worker::transaction(c"pg_stream: making up for missed commands", work)
            {
                complain::<()>(&failure.message);
            }
        }
        let buffers = worker::transaction(c"pg_stream: looking at change buffers", large_buffers);
        let buffers = buffers.unwrap_or_else(|failure| complain(&failure.message));
        self.growing.retain(|(source, _)| buffers.contains(source));
        for source in &buffers {
            let work = || self.look_at_buffer(*source);
            if let Err(failure) = worker::transaction(c"pg_stream: looking at change buffers", work)
            {
                complain::<()>(&failure.message);
            }
        }
        self.next
    }

    /// Tells of data that should have been refreshed twice.
    fn look_at_ages(&mut self, now: Micros) {
        let mut stale = HashSet::new();
        for age in ages::all() {
            let (Some(missed), Some(period)) =
                (age.due.and_then(|it| age.schedule.next_after(it)), age.schedule.period(age.data))
            else {
                continue;
            };
            if missed <= now && stale.insert(age.id) && !self.stale.contains(&age.id) {
                alert::stale(age.name, (now - age.data) as f64 / SECOND as f64, period);
            }
        }
        self.stale = stale;
    }

    /// Tells of readers that leave many changes unconsumed, and stops waiting for them in the end.
    fn look_at_buffer(&mut self, source: Oid) {
        let too_many =
            |bytes: u64, megabytes: i32| megabytes > 0 && bytes >> 20 >= megabytes as u64;
        for reader in refresh::readers(source) {
            let key = (source, reader.id);
            if reader.needs_reinit {
                self.growing.remove(&key);
                continue;
            }
            let (rows, bytes) = capture::pending(source, reader.frontier.as_ref());
            if !too_many(bytes, settings::buffer_warning_mb()) {
                self.growing.remove(&key);
            } else if self.growing.insert(key)
                && let Some(table) = catalog::by_id(reader.id)
            {
                let name = (table.name.schema, table.name.name);
                pgrx::log!(
                    "pg_stream: stream table \"{}.{}\" leaves {rows} changes of \"{}\" unconsumed",
                    name.0,
                    name.1,
                    relation::display_name(source)
                );
                alert::buffer_growth(name, source, rows);
            }
            if too_many(bytes, settings::buffer_limit_mb()) {
                give_up(source, &reader);
            }
        }
        refresh::clean_buffer(source);
    }
}

/// Has the reader rebuilt, unless it is being refreshed just now.
fn give_up(source: Oid, reader: &Reader) {
    if relation::try_lock_stream_table(reader.id) {
        let source = relation::display_name(source);
        let reason =
            format!("unconsumed changes of {source} have exceeded pg_stream.buffer_limit_mb");
        pgrx::log!("pg_stream: stream table number {} will be rebuilt: {reason}", reader.id);
        catalog::mark_for_rebuild(reader.id, &reason);
    }
}

/// The sources with buffers that are large enough to be looked at.
fn large_buffers() -> Vec<Oid> {
    let limits = [settings::buffer_warning_mb(), settings::buffer_limit_mb()];
    let Some(least) = limits.into_iter().filter(|it| *it > 0).min() else { return Vec::new() };
    let mut sources = Vec::new();
    spi::run(
        "SELECT source_relid FROM pgstream.pgs_change_tracking \
         WHERE pg_catalog.pg_relation_size(buffer_relid) >= $1::bigint << 20",
        &[least.into()],
        |row| sources.extend(row.get::<Oid>(0)),
    );
    sources
}

fn complain<T: Default>(message: &str) -> T {
    pgrx::warning!("pg_stream scheduler cannot look after stream tables: {message}");
    T::default()
}
