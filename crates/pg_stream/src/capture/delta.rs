//! Reading what happened to a source between a frontier and a snapshot.

use pgrx::pg_sys::{Datum, Oid};
use pgstream_core::frontier::Frontier;

use crate::pg::{
    buffer::{Action, Buffer, OWN_COLUMNS, Row},
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
    /// The largest log position among the changes, or zero.
    pub lsn: u64,
    /// How many rows of the buffer were consumed.
    pub consumed: u64,
}

/// The change of the attributes `columns` of `source` that `snapshot` sees, this transaction's own
/// included, and `from` has not consumed.
pub fn read(source: Oid, columns: &[i16], snapshot: &Snapshot, from: &Frontier) -> Delta {
    let all = Source::open(source, Lock::AccessShare).columns();
    let types = columns.iter().map(|number| {
        let column = all.iter().find(|it| it.number == *number);
        let column = column.expect("a query reads only columns that exist");
        StoreColumn { name: format!("a{number}"), ..column.stored.clone() }
    });
    let mut rows = Consolidator::new(&types.collect::<Vec<_>>());
    let mut delta = Found { truncated: false, lsn: 0, consumed: 0 };
    let buffer = Buffer::open(source, Lock::AccessShare);
    let buffer = buffer.expect("the changes of a source are captured");
    if buffer.pages() > 0 {
        let positions: Option<Vec<usize>> =
            columns.iter().map(|number| position(&buffer, &all, *number)).collect();
        delta.scan(&buffer, positions.as_deref(), snapshot, from, &mut rows);
    }
    let Found { truncated, lsn, consumed } = delta;
    Delta { store: rows.into_store(), truncated, lsn, consumed }
}

/// Where the buffer has a column, unless its type does not fit any more.
fn position(buffer: &Buffer, all: &[crate::pg::source::Column], number: i16) -> Option<usize> {
    let position = buffer.columns().iter().position(|it| *it == number)?;
    let ty = all.iter().find(|it| it.number == number)?.base_type;
    (buffer.column_type(position) == Some(ty)).then_some(position)
}

struct Found {
    truncated: bool,
    lsn: u64,
    consumed: u64,
}

impl Found {
    fn scan(
        &mut self,
        buffer: &Buffer,
        positions: Option<&[usize]>,
        snapshot: &Snapshot,
        from: &Frontier,
        rows: &mut Consolidator,
    ) {
        let (mut values, mut nulls) = (Vec::new(), Vec::new());
        buffer.scan(snapshot, |row| {
            if from.consumed(row.xid(), row.ordinal()) {
                return;
            }
            self.consumed += 1;
            self.lsn = self.lsn.max(row.lsn());
            match (row.action(), positions) {
                // Without a place for every column, nobody knows what the change is.
                (Action::Truncate, _) | (_, None) => self.truncated = true,
                (action, Some(positions)) => {
                    row.deform(&mut values, &mut nulls);
                    add(rows, action, positions, (&values, &nulls));
                }
            }
        });
    }
}

fn add(
    rows: &mut Consolidator,
    action: Action,
    positions: &[usize],
    (values, nulls): (&[Datum], &[bool]),
) {
    let mut side = |offset: usize, weight: i64| {
        rows.add_from(weight, |index| {
            let column = OWN_COLUMNS + 2 * positions[index] + offset;
            (values[column], nulls[column])
        });
    };
    if action != Action::Insert {
        side(1, -1);
    }
    if action != Action::Delete {
        side(0, 1);
    }
}

/// Whether `row` is one that `frontiers` have all consumed.
pub(super) fn consumed_by_all(row: &Row, frontiers: &[Frontier]) -> bool {
    let (xid, ordinal) = (row.xid(), row.ordinal());
    frontiers.iter().all(|it| it.consumed(xid, ordinal))
}
