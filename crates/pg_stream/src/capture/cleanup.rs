//! Removing what every reader of a buffer has consumed, without making a writer wait.

use pgrx::pg_sys::Oid;
use pgstream_core::frontier::Frontier;

use super::{decoding, delta::Seen};
use crate::{
    fault::{self, Step},
    pg::{
        buffer::{Action, Buffer, Place},
        lock::{self, Lock},
        snapshot::Snapshot,
        source, spi,
    },
    settings,
};

/// From this many consumed rows on, emptying the buffer is cheaper than deleting them. A commit that
/// has emptied a table waits for the disk, whatever `synchronous_commit` says.
const MANY_ROWS: usize = 50_000;
/// A buffer of so many pages is mostly dead rows, each of which costs every reader.
const MANY_PAGES: u32 = 1024;

/// Removes from the buffer of `source` what all `frontiers` have consumed: those of everybody who
/// reads it, none if nobody needs any. `seen` are the rows that the refresh saw, if it looked. An idle buffer is emptied at
/// once, under a lock that lasts until this transaction ends; so the caller must be about to commit.
pub fn cleanup(source: Oid, frontiers: &[Frontier], seen: Option<&[Seen]>) {
    let Some(buffer) = Buffer::open(source, Lock::RowExclusive) else { return };
    let pages = buffer.pages();
    if pages == 0 {
        return;
    }
    let consumed = seen.map(|seen| consumed(seen, frontiers));
    let is_large = pages >= MANY_PAGES
        || frontiers.is_empty()
        || consumed.as_ref().is_some_and(|it| it.len() >= MANY_ROWS);
    let may_truncate = settings::cleanup_use_truncate() && !lock::in_transaction_block();
    if is_large && may_truncate && is_drained(&buffer, frontiers) {
        let oid = buffer.oid();
        if lock::try_relation(oid, Lock::AccessExclusive) {
            // Nobody has the buffer open for writing now, so every row is committed or our own.
            if is_drained(&buffer, frontiers) {
                drop(buffer);
                truncate(oid);
                fault::point(Step::BufferTruncated);
                return;
            }
            lock::release(oid, Lock::AccessExclusive);
        }
    }
    match consumed {
        Some(places) => buffer.delete(&places),
        None => delete_consumed(&buffer, frontiers),
    }
    fault::point(Step::BufferCleaned);
}

fn consumed(rows: &[Seen], frontiers: &[Frontier]) -> Vec<Place> {
    let consumed = rows.iter().filter(|it| it.is_consumed_by_all(frontiers));
    consumed.map(|it| it.place).collect()
}

/// As many rows as are deleted at a time, so that a large buffer takes no large list.
const BATCH: usize = 10_000;

fn delete_consumed(buffer: &Buffer, frontiers: &[Frontier]) {
    let mut places = Vec::new();
    buffer.scan(&Snapshot::latest(), |row| {
        places.extend(consumed(&[Seen::of(row)], frontiers));
        if places.len() == BATCH {
            buffer.delete(&places);
            places.clear();
        }
    });
    buffer.delete(&places);
}

fn is_drained(buffer: &Buffer, frontiers: &[Frontier]) -> bool {
    let mut is_drained = true;
    buffer.scan(&Snapshot::latest(), |row| {
        is_drained &= Seen::of(row).is_consumed_by_all(frontiers);
    });
    is_drained
}

fn truncate(buffer: Oid) {
    let name = source::sql_name(buffer).expect("it is locked");
    spi::run(&format!("TRUNCATE ONLY {name}"), &[], |_| {});
}

/// Whether `source` was emptied or rewritten by a transaction that `snapshot` does not see. That is
/// not MVCC: the snapshot sees an empty table where it should see the old rows.
pub fn truncated_after(source: Oid, snapshot: &Snapshot) -> bool {
    decoding::catch_up(source, snapshot);
    let Some(buffer) = Buffer::open(source, Lock::AccessShare) else { return false };
    let seen = snapshot.frontier();
    let mut found = false;
    buffer.scan(&Snapshot::latest(), |row| {
        found |= row.action() == Action::Truncate && !seen.consumed(row.xid(), row.ordinal());
    });
    found
}
