//! The change of one storage, as it is found out and as it is applied.

use pgrx::pg_sys::{BuiltinOid, Datum, Oid};
use pgstream_ivm::{
    sql::{self, Matching, Storage},
    stage::Stage,
};

use crate::{
    fault::{self, Step},
    pg::{
        name, relation,
        security::LocalSettings,
        snapshot::Snapshot,
        spi::{self, Session},
        store::{Store, StoreColumn},
        tuple::Consolidator,
        write::{Target, Work},
    },
    refresh::{
        guard,
        statements::{Kind, Statements, size_class},
    },
};

fn column(name: &str, ty: BuiltinOid) -> StoreColumn {
    StoreColumn {
        name: name.to_owned(),
        ty: spi::type_oid(ty),
        typmod: -1,
        collation: Oid::INVALID,
    }
}

fn prefixed(prefix: char, columns: &[StoreColumn]) -> impl Iterator<Item = StoreColumn> + '_ {
    columns
        .iter()
        .enumerate()
        .map(move |(i, it)| StoreColumn { name: format!("{prefix}{i}"), ..it.clone() })
}

/// Rows that go, change and come.
pub struct Change {
    pub removed: Store,
    pub updated: Store,
    pub added: Store,
    /// The change of the output as a Z-set, for whoever reads it next: columns and weight.
    pub output: Option<Store>,
    /// How many rows go: of several copies of a row, each counts.
    pub removed_rows: u64,
    output_width: usize,
}

impl Change {
    /// For a storage whose rows are found by `ctid`. `values` are output, state and count.
    pub fn by_ctid(values: &[StoreColumn], output_width: usize, wants_output: bool) -> Self {
        let ctid = column("ctid", BuiltinOid::TIDOID);
        let removed = Store::new(std::slice::from_ref(&ctid));
        let updated: Vec<_> = std::iter::once(ctid).chain(prefixed('v', values)).collect();
        Self::with(removed, &updated, values, output_width, wants_output)
    }

    /// For a storage whose rows are found by row id and content. `values` are output and state.
    pub fn by_content(values: &[StoreColumn], output_width: usize, wants_output: bool) -> Self {
        let rid = column("rid", BuiltinOid::INT8OID);
        let old: Vec<_> = std::iter::once(rid).chain(prefixed('o', values)).collect();
        let mut removed = old.clone();
        removed.push(column("n", BuiltinOid::INT8OID));
        removed.push(column("ordinal", BuiltinOid::INT8OID));
        let updated: Vec<_> = old.into_iter().chain(prefixed('v', values)).collect();
        Self::with(Store::new(&removed), &updated, values, output_width, wants_output)
    }

    fn with(
        removed: Store,
        updated: &[StoreColumn],
        values: &[StoreColumn],
        output_width: usize,
        wants_output: bool,
    ) -> Self {
        let rid = column("rid", BuiltinOid::INT8OID);
        let added: Vec<_> = std::iter::once(rid).chain(prefixed('v', values)).collect();
        let output = wants_output.then(|| {
            let mut columns: Vec<_> = prefixed('a', &values[..output_width]).collect();
            columns.push(column("w", BuiltinOid::INT8OID));
            Store::new(&columns)
        });
        Self {
            removed,
            updated: Store::new(updated),
            added: Store::new(&added),
            output,
            removed_rows: 0,
            output_width,
        }
    }

    /// Notes a row of the output's change.
    pub fn put_output(&mut self, values: &[Datum], nulls: &[bool], weight: i64) {
        let Some(output) = &mut self.output else { return };
        let mut row = values[..self.output_width].to_vec();
        let mut row_nulls = nulls[..self.output_width].to_vec();
        row.push(Datum::from(weight));
        row_nulls.push(false);
        output.put(&row, &row_nulls);
    }
}

/// Whether the weights of the rows of a source's change that have the same image in the columns `read`
/// add up to 0.
pub fn cancels(change: &Store, read: &[usize]) -> bool {
    let place = |name: &str| change.columns().iter().position(|it| it.name == name);
    let weight = place("w").expect("a change has weights");
    // No row is there twice.
    if read.len() == weight {
        return change.rows() == 0;
    }
    let mut sum = 0;
    change.each(|row, _| sum += row[weight].value() as i64);
    if sum != 0 {
        return false;
    }
    let read: Vec<usize> = read
        .iter()
        .map(|it| place(&sql::delta_column(*it)).expect("a column that is read was captured"))
        .collect();
    let columns: Vec<_> = read.iter().map(|it| change.columns()[*it].clone()).collect();
    let mut rows = Consolidator::new(&columns);
    change.each(|row, nulls| {
        rows.add_from(row[weight].value() as i64, |it| (row[read[it]], nulls[read[it]]));
    });
    rows.is_empty()
}

/// Whether looking up each row beats reading the whole table. The planner cannot know: it has no
/// statistics of what it joins the table with, and takes row ids to repeat there.
pub fn prefers_look_ups(table: Oid, rows: u64) -> bool {
    /// A look-up takes about as long as reading this part of a page in sequence.
    const LOOK_UPS_IN_A_PAGE: u64 = 10;
    rows < u64::from(relation::pages(table)) * LOOK_UPS_IN_A_PAGE
}

/// How many rows a refresh changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
}

/// Writes `change` into the storage of `stage`; counts the rows that were found and written. Rows
/// that are known by their place, and new ones, need no statement where the table allows it.
#[expect(clippy::too_many_arguments, reason = "what is written, where, and how it is found")]
pub fn apply(
    change: &Change,
    stage_index: usize,
    stage: &Stage,
    storage: &Storage,
    matching: &Matching,
    statements: &mut Statements,
    snapshot: &Snapshot,
    _session: &Session,
) -> Counts {
    let fixed = stage.fixed();
    let table = name::resolve(&storage.table).expect("the table of a storage exists");
    let mut run = |store: &Store, name: &str, kind: Kind, step: Step| {
        if store.rows() == 0 {
            return 0;
        }
        if let Some(written) = write(store, table, storage, &fixed, (kind, matching), snapshot) {
            fault::point(step);
            return written;
        }
        let _relation = store.register(name);
        let _settings = prefers_look_ups(table, store.rows()).then(LocalSettings::only_look_ups);
        let statement = statements.get((stage_index, kind, vec![size_class(store.rows())]), || {
            let all = sql::apply(storage, &fixed, matching);
            match kind {
                Kind::Delete => all.delete,
                Kind::Update => all.update,
                _ => all.insert,
            }
        });
        let written = guard::let_write(table, || statement.execute(&[], snapshot));
        fault::point(step);
        written
    };
    Counts {
        deleted: run(&change.removed, "__pgs_removed", Kind::Delete, Step::RowsDeleted),
        updated: run(&change.updated, "__pgs_updated", Kind::Update, Step::RowsUpdated),
        inserted: run(&change.added, "__pgs_added", Kind::Insert, Step::RowsInserted),
    }
}

/// As the statement of this kind, without one; `None` where it takes SQL.
#[expect(clippy::too_many_arguments, reason = "as apply")]
fn write(
    store: &Store,
    table: Oid,
    storage: &Storage,
    fixed: &[usize],
    (kind, matching): (Kind, &Matching),
    snapshot: &Snapshot,
) -> Option<u64> {
    // Where a row changed after the transaction began, the statement's error says to try again.
    let by_place = *matching == Matching::Ctid && !relation::is_strict_transaction();
    let work = match kind {
        Kind::Insert => Work::Insert,
        Kind::Update if by_place => Work::Update,
        Kind::Delete if by_place => Work::Delete,
        _ => return None,
    };
    let state = storage.state.iter().map(|it| it.0.as_str());
    let count = storage.counted.then_some(sql::COUNT);
    let values: Vec<&str> =
        storage.columns.iter().map(String::as_str).chain(state).chain(count).collect();
    // The stores begin with the row id or the place; then come the values.
    let column = |name: &str| {
        if name == sql::ROW_ID {
            return (work == Work::Insert).then_some(0);
        }
        let quoted = sql::quote(name);
        let value = values.iter().position(|it| *it == name || *it == quoted)?;
        (work == Work::Insert || work == Work::Update && !fixed.contains(&value))
            .then_some(value + 1)
    };
    let mut target = Target::open(table, work, store, column)?;
    let written = target.write(work, store, snapshot);
    target.close();
    Some(written)
}
