//! What a scheduler knows about stream tables: the catalog, read again only when it has changed,
//! and what it has seen of each since it started.

use std::collections::HashMap;

use pgrx::pg_sys::Oid;
use pgstream_core::{
    decide::{Decision, Schedules, State, Table},
    schedule::{Micros, SECOND, Schedule},
};

use crate::{
    pg::{relation, shmem::Slot, spi, time},
    scheduler::unit::{Report, Verdict},
};

/// For how long to trust that nothing has changed because no commit said so.
const LONGEST_TRUST: Micros = 600 * SECOND;

/// A stream table as the catalog shows it.
struct Entry {
    needs_reinit: bool,
    /// The change buffers that it reads.
    buffers: Vec<Oid>,
    /// Its own, which is the first, and those that its query reads.
    relations: Vec<Oid>,
    /// Until when it is known to be up to date.
    last: Micros,
    /// Whether changes of its sources are decoded, and so known some time after they were committed.
    is_decoded: bool,
    /// Whether its last refresh failed.
    has_failed: bool,
    /// How long it took to compute it anew: the most that a refresh is expected to take.
    full_took: Micros,
}

impl Entry {
    /// Whether what was seen still counts. Counters of other buffers say nothing; and an extension that
    /// is created again numbers its stream tables from the start.
    fn is_about_the_same_as(&self, other: &Self) -> bool {
        self.relations.first() == other.relations.first() && self.buffers == other.buffers
    }
}

/// Reads all stream tables; in a transaction.
fn read() -> (Vec<Table>, HashMap<i64, Entry>) {
    let (mut tables, mut entries) = (Vec::new(), HashMap::new());
    spi::run(include_str!("tables.sql"), &[], |row| {
        let id: i64 = row.get(0).expect("the primary key");
        let schedule: Option<String> = row.get(1);
        let status: String = row.get(3).expect("NOT NULL");
        let relations: Vec<Oid> = row.get(9).unwrap_or_default();
        tables.push(Table {
            id,
            // Checked when it was stored.
            schedule: schedule.and_then(|it| it.parse().ok()).unwrap_or(Schedule::Calculated),
            scheduled_at: row.get(2).map_or(0, time::to_epoch),
            status: status.parse().expect("checked by the catalog"),
            consecutive_errors: row.get::<i32>(4).map_or(0, i32::unsigned_abs),
            reads: row.get(6).unwrap_or_default(),
            sources: relations.iter().skip(1).map(|it| it.to_u32()).collect(),
        });
        let entry = Entry {
            needs_reinit: row.get(5).unwrap_or(true),
            buffers: row.get(7).unwrap_or_default(),
            last: row.get(8).map_or(0, time::to_epoch),
            relations,
            is_decoded: row.get(10).unwrap_or(false),
            has_failed: row.get::<i32>(4) > Some(0),
            full_took: row.get::<f64>(11).map_or(0, |it| (it * 1000.0) as Micros),
        };
        relation::watch(&entry.relations);
        entries.insert(id, entry);
    });
    (tables, entries)
}

/// When all stream tables are due, by the catalog; in a transaction.
pub fn schedules() -> Schedules {
    Schedules::new(read().0)
}

/// What was seen of a stream table.
#[derive(Clone, Copy)]
struct Seen {
    ran_at: Micros,
    checked_at: Micros,
    /// What the counters of its buffers said before it was last looked at. `None` when nobody knows
    /// what happened since.
    changes: Option<u64>,
    /// When a refresh last found that it follows its sources and nothing else.
    verified_at: Option<Micros>,
    detours: u32,
    took: Micros,
    running: Option<Run>,
}

/// The refresh that runs.
#[derive(Clone, Copy)]
struct Run {
    since: Micros,
    /// What the counters said when it began. `None` when what it finds may be out of date already.
    changes: Option<u64>,
}

impl Seen {
    /// Nothing yet. When a refresh failed before, the pause after it begins now: nobody knows when that
    /// was, and it may be what has just crashed the server.
    fn new(entry: &Entry, now: Micros) -> Self {
        Self {
            ran_at: entry.last,
            checked_at: if entry.has_failed { now } else { entry.last },
            changes: None,
            verified_at: None,
            detours: 0,
            took: entry.full_took,
            running: None,
        }
    }

    /// Whatever was found, or is being found now, may be out of date.
    fn doubt(&mut self) {
        self.verified_at = None;
        if let Some(run) = &mut self.running {
            run.changes = None;
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Memory {
    /// The generation of the catalog that was read.
    generation: Option<u64>,
    read_at: Micros,
    schedules: Schedules,
    entries: HashMap<i64, Entry>,
    seen: HashMap<i64, Seen>,
}

impl Memory {
    /// Whether the catalog has to be read again.
    pub fn is_outdated(&self, slot: &Slot, now: Micros, longest: Micros) -> bool {
        self.generation != Some(slot.generation()) || now - self.read_at >= longest
    }

    /// Reads the catalog, in a transaction that began after `generation` was asked for.
    pub fn read(&mut self, generation: u64, now: Micros) {
        let (tables, entries) = read();
        self.seen.retain(|id, it| entries.contains_key(id) || it.running.is_some());
        for (id, entry) in &entries {
            let seen = self.seen.entry(*id).or_insert_with(|| Seen::new(entry, now));
            if self.entries.get(id).is_some_and(|old| !old.is_about_the_same_as(entry)) {
                seen.doubt();
                *seen = Seen { running: seen.running, ..Seen::new(entry, now) };
            }
        }
        self.schedules = Schedules::new(tables);
        self.entries = entries;
        self.generation = Some(generation);
        self.read_at = now;
    }

    /// Forgets the catalog; it is read again before it is needed.
    pub fn forget_catalog(&mut self) {
        self.generation = None;
    }

    /// What to do now.
    pub fn decide(&self, slot: &Slot, now: Micros) -> Decision {
        let trusts = !slot.is_unsettled();
        let states: Vec<State> = self
            .schedules
            .tables()
            .iter()
            .map(|table| {
                let (entry, seen) = (&self.entries[&table.id], &self.seen[&table.id]);
                let may_have_changed = seen.changes != Some(slot.changes(&entry.buffers));
                let is_verified = seen.verified_at.is_some_and(|it| now - it < LONGEST_TRUST);
                State {
                    ran_at: seen.ran_at,
                    checked_at: seen.checked_at,
                    may_have_changed,
                    is_settled: trusts && is_verified && !may_have_changed && !entry.needs_reinit,
                    detours: seen.detours,
                    took: seen.running.map_or(seen.took, |it| seen.took.max(now - it.since)),
                    is_running: seen.running.is_some(),
                }
            })
            .collect();
        self.schedules.decide(&states, now)
    }

    /// The change buffers that a table reads.
    pub fn buffers(&self, id: i64) -> &[Oid] {
        self.entries.get(&id).map_or(&[], |it| &it.buffers)
    }

    /// Whether something was committed since the table was last looked at.
    pub fn may_have_changed(&self, slot: &Slot, id: i64) -> bool {
        let (Some(entry), Some(seen)) = (self.entries.get(&id), self.seen.get(&id)) else {
            return false;
        };
        seen.changes != Some(slot.changes(&entry.buffers))
    }

    /// The most detours that one of the tables has behind it.
    pub fn detours(&self, tables: &[i64]) -> u32 {
        tables.iter().filter_map(|id| Some(self.seen.get(id)?.detours)).max().unwrap_or(0)
    }

    /// A refresh of the tables begins.
    pub fn begin(&mut self, slot: &Slot, tables: &[i64], now: Micros) {
        for id in tables {
            let (Some(entry), Some(seen)) = (self.entries.get(id), self.seen.get_mut(id)) else {
                continue;
            };
            let changes = Some(slot.changes(&entry.buffers));
            seen.running = Some(Run { since: now, changes });
        }
    }

    /// The refresh did not begin after all.
    pub fn give_up(&mut self, tables: &[i64]) {
        for id in tables {
            if let Some(seen) = self.seen.get_mut(id) {
                seen.running = None;
            }
        }
    }

    /// The table is as good as refreshed: nothing has changed.
    fn note_idle(&mut self, id: i64, now: Micros) {
        if let Some(seen) = self.seen.get_mut(&id) {
            seen.checked_at = now;
        }
    }

    /// Whether changes of what a table reads are decoded.
    pub fn is_decoded(&self, id: i64) -> bool {
        self.entries.get(&id).is_some_and(|it| it.is_decoded)
    }

    /// Moves the data timestamp on of those of the tables that are still known to be up to date, and
    /// tells whether that is all of them; in a transaction, which learns of changes of definition
    /// when it begins.
    pub fn keep_fresh(&mut self, tables: &[i64], now: Micros) -> bool {
        self.notice_invalidations();
        let is_verified = |id: &i64| self.seen.get(id).is_some_and(|it| it.verified_at.is_some());
        let fresh: Vec<i64> = tables.iter().copied().filter(is_verified).collect();
        fresh.iter().for_each(|id| self.note_idle(*id, now));
        let is_all = fresh.len() == tables.len();
        spi::run(include_str!("idle.sql"), &[fresh.into(), time::from_epoch(now).into()], |_| {});
        is_all
    }

    /// Trusts no longer that nothing has changed for tables whose relations were altered.
    fn notice_invalidations(&mut self) {
        if !relation::take_invalidations() {
            return;
        }
        for (id, entry) in &self.entries {
            if relation::was_invalidated(&entry.relations)
                && let Some(seen) = self.seen.get_mut(id)
            {
                seen.doubt();
            }
        }
        relation::forget_invalidations();
    }

    /// Trusts nothing until all tables have been refreshed once more.
    pub fn distrust(&mut self) {
        self.seen.values_mut().for_each(Seen::doubt);
    }

    /// Notes what came of the refresh of a table. One look in vain after a run is free: the table
    /// still counts as rested. The next one is not, or commits that do not matter would make it look
    /// again and again.
    pub fn end(&mut self, id: i64, report: Report, now: Micros) {
        let Some(seen) = self.seen.get_mut(&id) else { return };
        let Some(run) = seen.running.take() else { return };
        match report.verdict {
            Verdict::Changed | Verdict::Unchanged => {
                let was_rested = seen.checked_at == seen.ran_at;
                let was_in_vain = report.verdict == Verdict::Unchanged
                    && (was_rested || (run.changes.is_some() && seen.changes == run.changes));
                if !was_in_vain {
                    seen.ran_at = run.since;
                }
                seen.checked_at = run.since;
                seen.changes = run.changes;
                seen.verified_at =
                    (report.follows_changes && run.changes.is_some()).then_some(run.since);
                seen.detours = 0;
                // One that finds nothing to do tells little.
                let least = if report.verdict == Verdict::Changed { 0 } else { seen.took };
                seen.took = report.took.max(least);
                // Unless the catalog was read meanwhile: what it says may be newer than the refresh.
                if let Some(entry) = self.entries.get_mut(&id).filter(|_| self.read_at <= run.since)
                {
                    entry.needs_reinit = false;
                }
            }
            Verdict::Failed => {
                // The catalog tells how often in a row, unless not even that could be written.
                seen.checked_at = now;
                seen.detours = seen.detours.max(1);
                seen.verified_at = None;
            }
            Verdict::InTheWay => {
                seen.checked_at = now;
                seen.detours = seen.detours.saturating_add(1);
            }
            // Still due; next time without the one that failed.
            Verdict::HeldUp => {}
        }
    }
}
