//! Looking after stream tables that nobody refreshes: they become stale, and the changes of their
//! sources pile up. And after what happened to them while event triggers were off.
//!
//! Changes beyond a limit are given up: what has not consumed them is marked to be rebuilt, and a
//! stream table that is going to be rebuilt needs no changes.
//!
//! What was told is noted in the catalog, in the same transaction, and so is told once, whichever
//! process is the scheduler. Where somebody else writes that row just now, it is told later.

use pgrx::pg_sys::{Oid, panic::ErrorReportable};
use pgstream_core::schedule::{Micros, SECOND};

use crate::{
    capture, catalog,
    ddl::missed,
    monitor::alert,
    pg::{notify, relation, spi, time, worker},
    refresh::{self, Reader},
    scheduler::{ages, shortest_sleep},
    settings,
};

/// How many of the shortest pauses of the scheduler lie between two looks at everything.
const PAUSES: i64 = 30;
/// Looks at ages take at most this part of the time, however many stream tables there are.
const MOST_TIME: i64 = 300;

/// See the module.
#[derive(Default)]
pub struct Watch {
    next: Micros,
    /// The catalog of which `ages_at` is true.
    generation: Option<u64>,
    /// When data becomes stale unless it is refreshed before.
    ages_at: Micros,
    ages_not_before: Micros,
}

impl Watch {
    /// Looks at everything unless it did so just before, and at ages when data may have become stale;
    /// returns when to look again.
    pub fn pass(&mut self, generation: u64, now: Micros) -> Micros {
        if self.generation.replace(generation) != Some(generation) {
            self.ages_at = now;
        }
        let looks_around = now >= self.next;
        if looks_around || now >= self.ages_at.max(self.ages_not_before) {
            let work = || look_at_ages(now);
            let stale = worker::transaction(c"pg_stream: looking for stale data", work);
            let stale = stale.unwrap_or_else(|failure| complain(&failure.message));
            self.ages_at = stale.unwrap_or(Micros::MAX);
            let rest = (time::since_epoch() - now) * MOST_TIME;
            self.ages_not_before = now + rest.max(shortest_sleep() * 1000);
        }
        if looks_around {
            self.next = now + shortest_sleep() * PAUSES * 1000;
            look_around();
        }
        self.next.min(self.ages_at.max(self.ages_not_before))
    }
}

/// Makes up for what was missed, and looks at the buffers.
fn look_around() {
    let missed = worker::transaction(c"pg_stream: looking for missed commands", missed::find);
    for missed in missed.unwrap_or_else(|failure| complain(&failure.message)) {
        let work = || missed::make_up(&missed).unwrap_or_report();
        if let Err(failure) = worker::transaction(c"pg_stream: making up for missed commands", work)
        {
            complain::<()>(&failure.message);
        }
    }
    let buffers = worker::transaction(c"pg_stream: looking at change buffers", large_buffers);
    let buffers = buffers.unwrap_or_else(|failure| complain(&failure.message));
    for source in &buffers {
        let work = || look_at_buffer(*source);
        if let Err(failure) = worker::transaction(c"pg_stream: looking at change buffers", work) {
            complain::<()>(&failure.message);
        }
    }
}

/// Tells of data that should have been refreshed twice. Returns when that is true of more.
fn look_at_ages(now: Micros) -> Option<Micros> {
    if !notify::has_room() {
        return None;
    }
    let mut next = None;
    for age in ages::all() {
        let stale = age.due.and_then(|it| age.schedule.next_after(it));
        let missed = stale.filter(|it| *it <= now);
        if missed.is_none() {
            next = next.into_iter().chain(stale).min();
        }
        let period = missed.and_then(|_| age.schedule.period(age.data));
        if period.is_some() == age.told_stale || !note_stale(age.id, period.is_some()) {
            continue;
        }
        if let Some(period) = period {
            alert::stale(age.name, (now - age.data) as f64 / SECOND as f64, period);
        }
    }
    next
}

/// False if that cannot be noted just now.
fn note_stale(id: i64, is_stale: bool) -> bool {
    let noted = spi::run(
        "UPDATE pgstream.pgs_stream_tables SET told_stale = $2 \
         WHERE pgs_id = (SELECT pgs_id FROM pgstream.pgs_stream_tables WHERE pgs_id = $1 \
                         FOR NO KEY UPDATE SKIP LOCKED)",
        &[id.into(), is_stale.into()],
        |_| {},
    );
    noted > 0
}

/// Tells of readers that leave many changes unconsumed, and stops waiting for them in the end.
fn look_at_buffer(source: Oid) {
    let too_many = |bytes: u64, megabytes: i32| megabytes > 0 && bytes >> 20 >= megabytes as u64;
    let mut growing = Vec::new();
    for reader in refresh::readers(source).iter().filter(|it| !it.needs_reinit) {
        let (rows, bytes) = capture::pending(source, reader.frontier.as_ref());
        if too_many(bytes, settings::buffer_warning_mb()) {
            growing.push((reader.id, rows));
        }
        if too_many(bytes, settings::buffer_limit_mb()) {
            give_up(source, reader);
        }
    }
    if notify::has_room() {
        tell_growing(source, &growing);
    }
    refresh::clean_buffer(source);
}

/// Tells of the readers, given with how many changes they leave unconsumed, that are new among them.
fn tell_growing(source: Oid, growing: &[(i64, u64)]) {
    let mut ids: Vec<i64> = growing.iter().map(|it| it.0).collect();
    ids.sort_unstable();
    let mut told: Vec<i64> = Vec::new();
    let noted = spi::run(include_str!("growing.sql"), &[source.into(), ids.into()], |row| {
        told = row.get(0).unwrap_or_default()
    });
    if noted == 0 {
        return;
    }
    for (id, rows) in growing.iter().filter(|it| !told.contains(&it.0)) {
        let Some(table) = catalog::by_id(*id) else { continue };
        let name = (table.name.schema, table.name.name);
        pgrx::log!(
            "pg_stream: stream table \"{}.{}\" leaves {rows} changes of \"{}\" unconsumed",
            name.0,
            name.1,
            relation::display_name(source)
        );
        alert::buffer_growth(name, source, *rows);
    }
}

/// Has the reader rebuilt, unless it is being refreshed just now.
fn give_up(source: Oid, reader: &Reader) {
    if relation::try_lock_stream_table(reader.id) {
        let source = relation::display_name(source);
        let reason =
            format!("unconsumed changes of {source} have exceeded pg_stream.buffer_limit_mb");
        let name = catalog::display_name(reader.id);
        pgrx::log!("pg_stream: stream table \"{name}\" will be rebuilt: {reason}");
        catalog::mark_for_rebuild(reader.id, &reason);
    }
}

/// The sources with buffers that are large enough to be looked at, or were.
fn large_buffers() -> Vec<Oid> {
    let limits = [settings::buffer_warning_mb(), settings::buffer_limit_mb()];
    let Some(least) = limits.into_iter().filter(|it| *it > 0).min() else { return Vec::new() };
    let mut sources = Vec::new();
    spi::run(
        "SELECT source_relid FROM pgstream.pgs_change_tracking \
         WHERE pg_catalog.pg_relation_size(buffer_relid) >= $1::bigint << 20 \
         OR told_growing <> '{}'",
        &[least.into()],
        |row| sources.extend(row.get::<Oid>(0)),
    );
    sources
}

fn complain<T: Default>(message: &str) -> T {
    pgrx::log!("pg_stream scheduler looks after stream tables later: {message}");
    T::default()
}
