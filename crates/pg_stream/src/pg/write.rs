//! Writing rows of a table by their place, as logical replication does: what the executor does for
//! each row (constraints, indexes, HOT), without planning and starting a statement.
//!
//! Statement triggers do not fire and defaults are not computed this way, so it is for tables that
//! have nothing of the kind; others are written by SQL.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum, Oid};

use super::{relation::text, snapshot::Snapshot, store::Store, table::GUARD, tuple::attribute};

/// An open table whose rows can be written like this; closed by [`Target::close`].
pub struct Target {
    relation: pg_sys::Relation,
    estate: *mut pg_sys::EState,
    result: *mut pg_sys::ResultRelInfo,
    /// Says where the row is that changes or goes.
    place: *mut pg_sys::TupleTableSlot,
    /// The row to be written.
    row: *mut pg_sys::TupleTableSlot,
    /// For each attribute of the table its column in the store.
    columns: Vec<Option<usize>>,
}

/// What to do with the rows of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Insert,
    /// The store's first column is the `ctid` of the row.
    Update,
    /// As for `Update`.
    Delete,
}

impl Target {
    /// Opens the table for writing what is in `store`; `column` says which of its columns goes into
    /// the attribute of a name. `None` where that takes SQL.
    pub fn open(
        table: Oid,
        work: Work,
        store: &Store,
        column: impl Fn(&str) -> Option<usize>,
    ) -> Option<Self> {
        // SAFETY: the table is open until `close`; it is closed here when it does not fit.
        unsafe {
            let lock = pg_sys::RowExclusiveLock as i32;
            let relation = pg_sys::table_open(table, lock);
            let columns = is_plain(relation)
                .then(|| columns(relation, store.layout(), column))
                .flatten()
                .filter(|it| work != Work::Insert || is_complete(relation, it));
            let Some(columns) = columns else {
                pg_sys::table_close(relation, lock);
                return None;
            };
            let estate = pg_sys::CreateExecutorState();
            let result = pg_sys::palloc0(size_of::<pg_sys::ResultRelInfo>()).cast();
            // Without a range table: no rights are checked.
            pg_sys::InitResultRelInfo(result, relation, 0, std::ptr::null_mut(), 0);
            pg_sys::ExecOpenIndices(result, false);
            let slot = || {
                pg_sys::MakeSingleTupleTableSlot(
                    (*relation).rd_att,
                    &raw const pg_sys::TTSOpsBufferHeapTuple,
                )
            };
            Some(Self { relation, estate, result, place: slot(), row: slot(), columns })
        }
    }

    /// Does the work for each row of `store`. Returns for how many a row was found.
    pub fn write(&mut self, work: Work, store: &Store, snapshot: &Snapshot) -> u64 {
        let mut written = 0;
        snapshot.with_own_changes(|| {
            store.each(|values, nulls| {
                // SAFETY: the row has the columns that `open` was told of.
                written += u64::from(unsafe {
                    match work {
                        Work::Insert => self.insert(values, nulls),
                        Work::Update => self.update(values, nulls),
                        Work::Delete => self.delete(values[0]),
                    }
                });
                // SAFETY: nothing of a row is used after it.
                unsafe {
                    let context = (*self.estate).es_per_tuple_exprcontext;
                    if !context.is_null() {
                        pg_sys::MemoryContextReset((*context).ecxt_per_tuple_memory);
                    }
                }
            });
        });
        written
    }

    pub fn close(self) {
        // SAFETY: made by `open`; the lock stays until the transaction ends.
        unsafe {
            pg_sys::ExecDropSingleTupleTableSlot(self.place);
            pg_sys::ExecDropSingleTupleTableSlot(self.row);
            pg_sys::ExecCloseIndices(self.result);
            pg_sys::FreeExecutorState(self.estate);
            pg_sys::table_close(self.relation, pg_sys::NoLock as i32);
            // What follows sees the rows, and so do later statements of this transaction.
            pg_sys::CommandCounterIncrement();
        }
    }

    /// # Safety
    ///
    /// The values must be those of a row of the store.
    unsafe fn insert(&mut self, values: &[Datum], nulls: &[bool]) -> bool {
        // SAFETY: the slot has as many columns as the table.
        unsafe {
            clear(self.row);
            for (index, column) in self.columns.iter().enumerate() {
                let (value, is_null) =
                    column.map_or((Datum::from(0), true), |it| (values[it], nulls[it]));
                *(*self.row).tts_values.add(index) = value;
                *(*self.row).tts_isnull.add(index) = is_null;
            }
            pg_sys::ExecStoreVirtualTuple(self.row);
            pg_sys::ExecSimpleRelationInsert(self.result, self.estate, self.row);
        }
        true
    }

    /// Columns that are not in the store stay as they are.
    ///
    /// # Safety
    ///
    /// As for [`Self::insert`].
    unsafe fn update(&mut self, values: &[Datum], nulls: &[bool]) -> bool {
        // SAFETY: the first value is a ctid. The old row is pinned as long as its values are used.
        unsafe {
            let mut old = pg_sys::HeapTupleData {
                t_self: *values[0].cast_mut_ptr::<pg_sys::ItemPointerData>(),
                ..Default::default()
            };
            let mut buffer = 0;
            let snapshot = pg_sys::GetActiveSnapshot();
            if !pg_sys::heap_fetch(self.relation, snapshot, &raw mut old, &raw mut buffer, false) {
                return false;
            }
            clear(self.row);
            pg_sys::heap_deform_tuple(
                &raw mut old,
                (*self.relation).rd_att,
                (*self.row).tts_values,
                (*self.row).tts_isnull,
            );
            for (index, column) in self.columns.iter().enumerate() {
                if let Some(column) = column {
                    *(*self.row).tts_values.add(index) = values[*column];
                    *(*self.row).tts_isnull.add(index) = nulls[*column];
                }
            }
            pg_sys::ExecStoreVirtualTuple(self.row);
            (*self.place).tts_tid = old.t_self;
            pg_sys::ExecSimpleRelationUpdate(
                self.result,
                self.estate,
                std::ptr::null_mut(),
                self.place,
                self.row,
            );
            pg_sys::ReleaseBuffer(buffer);
        }
        true
    }

    /// # Safety
    ///
    /// `ctid` must be one.
    unsafe fn delete(&mut self, ctid: Datum) -> bool {
        // SAFETY: as promised. A row that is not there any more is an ERROR.
        unsafe {
            (*self.place).tts_tid = *ctid.cast_mut_ptr::<pg_sys::ItemPointerData>();
            pg_sys::ExecSimpleRelationDelete(
                self.result,
                self.estate,
                std::ptr::null_mut(),
                self.place,
            );
        }
        true
    }
}

/// Takes the row out of a slot, and frees it.
///
/// # Safety
///
/// `slot` must be live.
unsafe fn clear(slot: *mut pg_sys::TupleTableSlot) {
    // SAFETY: every kind of slot has this operation, and it does not fail.
    unsafe {
        let operations = &*(*slot).tts_ops;
        operations.clear.expect("every slot can be cleared")(slot);
    }
}

/// Whether rows of the table can be written one by one, with nothing else to be done.
///
/// # Safety
///
/// `relation` must be open.
unsafe fn is_plain(relation: pg_sys::Relation) -> bool {
    // SAFETY: the descriptions in an open relation are NULL or complete.
    unsafe {
        let form = &*(*relation).rd_rel;
        let triggers = (*relation).trigdesc;
        let has_triggers = !triggers.is_null()
            && ((*triggers).numtriggers != 1
                || CStr::from_ptr((*(*triggers).triggers).tgname) != GUARD);
        let constraints = (*(*relation).rd_att).constr;
        let is_generated = !constraints.is_null() && (*constraints).has_generated_stored;
        u8::try_from(form.relkind) == Ok(pg_sys::RELKIND_RELATION)
            && form.relam == pg_sys::HEAP_TABLE_AM_OID
            && !form.relhassubclass
            && !form.relispartition
            && !form.relrowsecurity
            && (*relation).rd_rules.is_null()
            && !has_triggers
            && !is_generated
    }
}

/// For each attribute of the table its column in the store; `None` when a value would have to be
/// converted.
///
/// # Safety
///
/// `relation` must be open, and `layout` live.
unsafe fn columns(
    relation: pg_sys::Relation,
    layout: pg_sys::TupleDesc,
    column: impl Fn(&str) -> Option<usize>,
) -> Option<Vec<Option<usize>>> {
    // SAFETY: a descriptor has as many attributes as it says.
    unsafe {
        let descriptor = (*relation).rd_att;
        let count = usize::try_from((*descriptor).natts).expect("a count");
        let columns = (0..count).map(|index| {
            let target = &*attribute(descriptor, index);
            if target.attisdropped {
                return Some(None);
            }
            let Some(column) = column(&text(target.attname.data.as_ptr())) else {
                return Some(None);
            };
            let given = &*attribute(layout, column);
            let fits = target.atttypid == given.atttypid
                && (target.atttypmod == given.atttypmod || target.atttypmod == -1);
            fits.then_some(Some(column))
        });
        columns.collect()
    }
}

/// Whether every attribute of the table is given.
///
/// # Safety
///
/// `relation` must be open, and `columns` be made for it.
unsafe fn is_complete(relation: pg_sys::Relation, columns: &[Option<usize>]) -> bool {
    // SAFETY: as promised.
    let is_dropped = |index: usize| unsafe { (*attribute((*relation).rd_att, index)).attisdropped };
    columns.iter().enumerate().all(|(index, it)| it.is_some() || is_dropped(index))
}
