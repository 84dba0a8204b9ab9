//! Reading what happened to a source between a frontier and a snapshot.

use pgrx::pg_sys::{Datum, Oid};
use pgstream_core::frontier::Frontier;

use super::decoding;
use crate::pg::{
    buffer::{Action, Buffer, Place, Row, Side},
    lock::Lock,
    snapshot::Snapshot,
    source::Source,
    store::{Store, StoreColumn},
    tuple::Consolidator,
};

/// The change of a source: columns `a<attribute number>` as the source has them, and the weight `w`.
pub struct Delta {
    /// Consolidated: no row twice, no weight zero.
    pub store: Store,
    /// Whether the source was emptied or rewritten; then `store` does not tell what happened.
    pub truncated: bool,
    /// How many rows of the buffer were consumed.
    pub consumed: u64,
    /// All rows of the buffer that the snapshot sees.
    pub seen: Vec<Seen>,
}

/// A row of a buffer: where it is, and which change it is.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub place: Place,
    xid: u64,
    ordinal: i64,
}

impl Seen {
    pub fn of(row: &Row) -> Self {
        Self { place: row.place(), xid: row.xid(), ordinal: row.ordinal() }
    }

    /// Whether all of `frontiers` have consumed the row.
    pub fn is_consumed_by_all(&self, frontiers: &[Frontier]) -> bool {
        frontiers.iter().all(|it| it.consumed(self.xid, self.ordinal))
    }
}

/// The change of the attributes `columns` of `source` that `snapshot` sees, this transaction's own
/// included, and `from` has not consumed. `None` when they are not captured.
pub fn read(source: Oid, columns: &[i16], snapshot: &Snapshot, from: &Frontier) -> Option<Delta> {
    let opened = Source::open(source, Lock::AccessShare);
    let stored: Vec<_> = columns.iter().map(|number| opened.stored(*number)).collect();
    let types = columns
        .iter()
        .zip(&stored)
        .map(|(number, (stored, _))| StoreColumn { name: format!("a{number}"), ..stored.clone() });
    let mut rows = Consolidator::new(&types.collect::<Vec<_>>());
    let mut found = Found { truncated: false, consumed: 0, seen: Vec::new() };
    let is_late = decoding::catch_up(source, snapshot);
    let buffer = Buffer::open(source, Lock::RowExclusive)?;
    if buffer.pages() > 0 {
        buffer.reclaim();
        // Where the buffer has each column, unless its type does not fit any more.
        let position = |(number, (_, ty)): (&i16, &(StoreColumn, Oid))| {
            let position = buffer.columns().iter().position(|it| it == number)?;
            (buffer.column_type(position) == Some(*ty)).then_some(position)
        };
        let positions: Option<Vec<usize>> = columns.iter().zip(&stored).map(position).collect();
        found.scan(&buffer, positions.as_deref(), (snapshot, is_late), from, &mut rows);
    }
    let Found { truncated, consumed, seen } = found;
    Some(Delta { store: rows.into_store(), truncated, consumed, seen })
}

/// Whether there is a change of `source` that `snapshot` sees and `from` has not consumed, or nobody
/// knows. What is not decoded yet does not count, and what is may be newer than the snapshot.
pub fn is_pending(source: Oid, snapshot: &Snapshot, from: &Frontier) -> bool {
    let is_late = decoding::Decoding::of(source).from.is_some();
    let latest = is_late.then(Snapshot::latest);
    let snapshot = latest.as_ref().unwrap_or(snapshot);
    let buffer = Buffer::open(source, Lock::AccessShare);
    buffer.is_none_or(|it| it.any(snapshot, |row| !from.consumed(row.xid(), row.ordinal())))
}

struct Found {
    truncated: bool,
    consumed: u64,
    seen: Vec<Seen>,
}

impl Found {
    #[expect(clippy::too_many_arguments, reason = "one call, of what read was given")]
    fn scan(
        &mut self,
        buffer: &Buffer,
        positions: Option<&[usize]>,
        (snapshot, is_late): (&Snapshot, bool),
        from: &Frontier,
        rows: &mut Consolidator,
    ) {
        let (mut values, mut nulls) = (Vec::new(), Vec::new());
        // What came in late belongs to the snapshot if that sees the transaction that made it.
        let until = is_late.then(|| snapshot.frontier());
        let latest = is_late.then(Snapshot::latest);
        buffer.scan(latest.as_ref().unwrap_or(snapshot), |row| {
            if until.as_ref().is_some_and(|it| !it.consumed(row.xid(), row.ordinal())) {
                return;
            }
            self.seen.push(Seen::of(row));
            if from.consumed(row.xid(), row.ordinal()) {
                return;
            }
            self.consumed += 1;
            match (row.action(), positions) {
                // Without a place for every column, nobody knows what the change is.
                (Action::Truncate, _) | (_, None) => self.truncated = true,
                (action, Some(positions)) => {
                    row.deform(&mut values, &mut nulls);
                    add(rows, action, (buffer, positions), (&values, &nulls));
                }
            }
        });
    }
}

fn add(
    rows: &mut Consolidator,
    action: Action,
    (buffer, positions): (&Buffer, &[usize]),
    (values, nulls): (&[Datum], &[bool]),
) {
    let mut image = |side: Side, weight: i64| {
        rows.add_from(weight, |index| {
            let column = buffer.place(positions[index], side);
            (values[column], nulls[column])
        });
    };
    if action != Action::Insert {
        image(Side::Old, -1);
    }
    if action != Action::Delete {
        image(Side::New, 1);
    }
}
