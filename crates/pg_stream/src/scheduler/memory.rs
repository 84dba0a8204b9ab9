//! What a scheduler remembers about stream tables between two passes.

use std::collections::HashMap;

use pgstream_core::{
    decide::Table,
    schedule::{Micros, Schedule},
    status::Status,
};

use crate::pg::{spi, time};

/// A stream table as the catalog shows it at the start of a pass.
pub struct Entry {
    id: i64,
    schedule: Schedule,
    status: Status,
    consecutive_errors: u32,
    reads: Vec<i64>,
    /// When it was last refreshed, or created.
    last: Micros,
}

/// Reads all stream tables; in a transaction.
pub fn entries() -> Vec<Entry> {
    let mut entries = Vec::new();
    spi::run(include_str!("tables.sql"), &[], |row| {
        let id: i64 = row.get(0).expect("the primary key");
        let schedule: Option<String> = row.get(1);
        let status: String = row.get(2).expect("NOT NULL");
        entries.push(Entry {
            id,
            // Checked when it was stored.
            schedule: schedule.and_then(|it| it.parse().ok()).unwrap_or(Schedule::Calculated),
            status: status.parse().expect("checked by the catalog"),
            consecutive_errors: row.get::<i32>(3).map_or(0, i32::unsigned_abs),
            reads: row.get(4).unwrap_or_default(),
            last: row.get::<pgrx::datum::TimestampWithTimeZone>(5).map_or(0, time::to_epoch),
        });
    });
    entries
}

#[derive(Clone, Copy)]
struct Seen {
    ran_at: Micros,
    checked_at: Micros,
    /// The commit counter at that time.
    commits: u64,
}

/// See the module.
#[derive(Default)]
pub struct Memory {
    seen: HashMap<i64, Seen>,
}

impl Memory {
    /// Puts catalog and memory together. `commits` is the commit counter before the catalog was
    /// read.
    pub fn tables(&mut self, entries: Vec<Entry>, commits: u64) -> Vec<Table> {
        let old = std::mem::take(&mut self.seen);
        entries
            .into_iter()
            .map(|entry| {
                // Nobody knows what happened before the first look.
                let first = Seen {
                    ran_at: entry.last,
                    checked_at: entry.last,
                    commits: commits.wrapping_sub(1),
                };
                let seen = old.get(&entry.id).copied().unwrap_or(first);
                self.seen.insert(entry.id, seen);
                Table {
                    id: entry.id,
                    schedule: entry.schedule,
                    status: entry.status,
                    consecutive_errors: entry.consecutive_errors,
                    reads: entry.reads,
                    ran_at: seen.ran_at,
                    checked_at: seen.checked_at,
                    may_have_changed: seen.commits != commits,
                }
            })
            .collect()
    }

    /// Notes that a table was refreshed in the pass that began at `now`, and whether it had any
    /// changes. One look in vain after a run is free: the table still counts as rested. The next
    /// one is not, or commits to other tables would make it look again and again.
    pub fn note(&mut self, id: i64, now: Micros, commits: u64, had_changes: bool) {
        let Some(seen) = self.seen.get_mut(&id) else { return };
        if had_changes || (seen.commits != commits && seen.checked_at != seen.ran_at) {
            seen.ran_at = now;
        }
        seen.checked_at = now;
        seen.commits = commits;
    }
}
