//! Our own tables, read by an index and written without any SQL: the executor's preparations for a
//! statement cost more than all that a refresh has to look up and to note.
//!
//! Columns go by name, so they may be added in any order. Triggers do not fire, and there are no defaults
//! that are needed here and no CHECK constraints; indexes are kept by PostgreSQL's own routine for
//! catalogs.

use std::ffi::CStr;

use pgrx::{
    datum::IntoDatum,
    pg_sys::{self, Datum},
};

use super::{
    lock::{self, Lock},
    relation,
    snapshot::Snapshot,
    text,
    tuple::attribute,
};

/// A table of the schema `pgstream`, open until dropped; its lock stays until the transaction ends.
pub struct OwnTable {
    relation: pg_sys::Relation,
}

/// A row of such a table.
pub struct OwnRow {
    descriptor: pg_sys::TupleDesc,
    tuple: pg_sys::HeapTuple,
}

/// A value to write: the column, and the datum unless NULL.
#[derive(Clone, Copy)]
pub struct Value {
    column: &'static str,
    datum: Option<Datum>,
}

impl Value {
    pub fn new<T: IntoDatum>(column: &'static str, value: T) -> Self {
        Self { column, datum: value.into_datum() }
    }

    /// A `jsonb` from its text.
    pub fn json(column: &'static str, text: &CStr) -> Self {
        // SAFETY: the input function of the type reads a C string.
        let datum = unsafe {
            pgrx::direct_function_call_as_datum(
                pg_sys::jsonb_in,
                &[Some(Datum::from(text.as_ptr()))],
            )
        };
        Self { column, datum }
    }
}

/// Whether a row could be locked, and the row.
type Locked = (pg_sys::TM_Result::Type, pg_sys::HeapTuple);

impl OwnTable {
    pub fn open(name: &CStr, lock: Lock) -> Self {
        // SAFETY: an ERROR when it does not exist; closed by `drop`.
        Self { relation: unsafe { pg_sys::table_open(relation::own(name), lock.mode()) } }
    }

    /// Hands over the rows that `snapshot` and this transaction's own changes let us see with this
    /// value of the column, which is the first one of the index.
    pub fn find<T: IntoDatum + Copy>(
        &self,
        index: &CStr,
        (column, key): (&str, T),
        snapshot: &Snapshot,
        mut each: impl FnMut(&OwnRow),
    ) {
        // SAFETY: the relation is open and the active snapshot outlives the scan; a row is used
        // before the next one is asked for.
        snapshot.with_own_changes(|| unsafe {
            let descriptor = (*self.relation).rd_att;
            let equals =
                if T::type_oid() == pg_sys::OIDOID { pg_sys::F_OIDEQ } else { pg_sys::F_INT8EQ };
            let mut scan_key = pg_sys::ScanKeyData::default();
            pg_sys::ScanKeyInit(
                &raw mut scan_key,
                (*attribute(descriptor, position(descriptor, column))).attnum,
                pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
                equals.into(),
                key.into_datum().expect("a key is not NULL"),
            );
            let scan = pg_sys::systable_beginscan(
                self.relation,
                relation::own(index),
                true,
                pg_sys::GetActiveSnapshot(),
                1,
                &raw mut scan_key,
            );
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                each(&OwnRow { descriptor, tuple });
            }
            pg_sys::systable_endscan(scan);
        });
    }

    /// Locks the row with this key as an UPDATE would, and gives its newest version. As in an
    /// UPDATE, a row that somebody else changed after `snapshot` is an error in the stricter
    /// isolation levels. Whoever locks it and waits for something that this transaction has locked
    /// goes on: this one gives in.
    pub fn lock<T: IntoDatum + Copy>(
        &self,
        index: &CStr,
        key: (&str, T),
        snapshot: &Snapshot,
    ) -> Option<OwnRow> {
        let latest = (!relation::is_strict_transaction()).then(Snapshot::latest);
        self.lock_from(index, key, (snapshot, latest), |tuple| {
            let locked = self.lock_tuple(tuple, pg_sys::LockWaitPolicy::LockWaitSkip);
            if locked.0 == pg_sys::TM_Result::TM_WouldBlock {
                lock::giving_in(|| self.lock_tuple(tuple, pg_sys::LockWaitPolicy::LockWaitBlock))
            } else {
                locked
            }
        })
    }

    /// As [`Self::lock`], but gives the newest version in every isolation level: for what goes with
    /// changes of definitions, which PostgreSQL does not isolate either.
    pub fn lock_newest<T: IntoDatum + Copy>(&self, index: &CStr, key: (&str, T)) -> Option<OwnRow> {
        let latest = Snapshot::latest();
        self.lock_from(index, key, (&latest, Some(Snapshot::latest())), |tuple| {
            self.lock_tuple(tuple, pg_sys::LockWaitPolicy::LockWaitBlock)
        })
    }

    fn lock_from<T: IntoDatum + Copy>(
        &self,
        index: &CStr,
        key: (&str, T),
        (snapshot, mut latest): (&Snapshot, Option<Snapshot>),
        lock: impl Fn(pg_sys::HeapTuple) -> Locked,
    ) -> Option<OwnRow> {
        loop {
            let mut found = None;
            self.find(index, key, latest.as_ref().unwrap_or(snapshot), |row| {
                // SAFETY: the copy lives in the current memory context.
                found = Some(unsafe { pg_sys::heap_copytuple(row.tuple) });
            });
            let (result, tuple) = lock(found?);
            match result {
                pg_sys::TM_Result::TM_Ok => {
                    // SAFETY: the relation is open.
                    return Some(OwnRow { descriptor: unsafe { (*self.relation).rd_att }, tuple });
                }
                _ if latest.is_some() => latest = Some(Snapshot::latest()),
                _ => {
                    pgrx::ereport!(
                        ERROR,
                        pgrx::PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                        "could not serialize access due to concurrent update"
                    );
                }
            }
        }
    }

    /// The tuple says which row it is a copy of; the row as it is after that is given back.
    fn lock_tuple(&self, tuple: pg_sys::HeapTuple, policy: pg_sys::LockWaitPolicy::Type) -> Locked {
        let mut buffer = 0;
        let mut failure = pg_sys::TM_FailureData::default();
        // SAFETY: the relation is open. What the tuple points to afterwards is in the buffer, which is
        // pinned until the row is copied.
        unsafe {
            let mut tuple = *tuple;
            let result = pg_sys::heap_lock_tuple(
                self.relation,
                &raw mut tuple,
                pg_sys::GetCurrentCommandId(true),
                pg_sys::LockTupleMode::LockTupleNoKeyExclusive,
                policy,
                false,
                &raw mut buffer,
                &raw mut failure,
            );
            let copy = pg_sys::heap_copytuple(&raw mut tuple);
            pg_sys::ReleaseBuffer(buffer);
            (result, copy)
        }
    }

    /// Changes some columns of a row that [`Self::lock`] gave.
    pub fn update(&self, row: &OwnRow, values: &[Value]) {
        // SAFETY: the arrays are as long as the descriptor; the tuple says where the row is.
        unsafe {
            let descriptor = (*self.relation).rd_att;
            let (datums, nulls, replaced) = arrays(descriptor, values);
            let changed = pg_sys::heap_modify_tuple(
                row.tuple,
                descriptor,
                datums.as_ptr(),
                nulls.as_ptr(),
                replaced.as_ptr(),
            );
            pg_sys::CatalogTupleUpdate(self.relation, &raw mut (*row.tuple).t_self, changed);
        }
    }

    /// Deletes a row that [`Self::lock`] gave.
    pub fn delete(&self, row: &OwnRow) {
        // SAFETY: the relation is open; the tuple says where the row is.
        unsafe { pg_sys::CatalogTupleDelete(self.relation, &raw mut (*row.tuple).t_self) };
    }

    /// Adds a row; columns that are not given are NULL.
    pub fn insert(&self, values: &[Value]) {
        // SAFETY: the arrays are as long as the descriptor.
        unsafe {
            let descriptor = (*self.relation).rd_att;
            let (datums, nulls, _) = arrays(descriptor, values);
            let tuple = pg_sys::heap_form_tuple(descriptor, datums.as_ptr(), nulls.as_ptr());
            pg_sys::CatalogTupleInsert(self.relation, tuple);
        }
    }
}

impl Drop for OwnTable {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened by `open`.
            unsafe { pg_sys::table_close(self.relation, pg_sys::NoLock as i32) };
        }
    }
}

impl OwnRow {
    /// The value of a column, or `None` when it is NULL. Panics when the type does not fit.
    pub fn get<T: text::Value>(&self, column: &str) -> Option<T> {
        let mut is_null = false;
        // SAFETY: the tuple is one of the descriptor, and the column one of its attributes.
        unsafe {
            let index = position(self.descriptor, column);
            let number = i32::from((*attribute(self.descriptor, index)).attnum);
            let datum = pg_sys::heap_getattr(self.tuple, number, self.descriptor, &mut is_null);
            T::read(datum, is_null)
        }
    }
}

/// The next value of a sequence of the schema `pgstream`.
pub fn next_value(sequence: &CStr) -> i64 {
    // SAFETY: the function takes the OID of a sequence and returns a bigint, never NULL.
    unsafe {
        pgrx::direct_function_call(pg_sys::nextval_oid, &[relation::own(sequence).into_datum()])
            .expect("a sequence has a next value")
    }
}

/// # Safety
///
/// `descriptor` must be live.
unsafe fn position(descriptor: pg_sys::TupleDesc, column: &str) -> usize {
    // SAFETY: a descriptor has as many attributes as it says, with NUL-terminated names.
    unsafe {
        let count = usize::try_from((*descriptor).natts).expect("a count");
        let has_name = |index: &usize| {
            let attribute = attribute(descriptor, *index);
            let name = &(*attribute).attname.data;
            let is_equal = |(left, right): (&std::ffi::c_char, &u8)| left.cast_unsigned() == *right;
            name[column.len()] == 0
                && name.iter().zip(column.as_bytes()).all(is_equal)
                && !(*attribute).attisdropped
        };
        (0..count).find(has_name).unwrap_or_else(|| panic!("our table has a column {column}"))
    }
}

/// Values, NULLs and which columns are given.
///
/// # Safety
///
/// `descriptor` must be live.
unsafe fn arrays(
    descriptor: pg_sys::TupleDesc,
    values: &[Value],
) -> (Vec<Datum>, Vec<bool>, Vec<bool>) {
    // SAFETY: as promised.
    let count = usize::try_from(unsafe { (*descriptor).natts }).expect("a count");
    let mut arrays = (vec![Datum::from(0); count], vec![true; count], vec![false; count]);
    for value in values {
        // SAFETY: as promised.
        let index = unsafe { position(descriptor, value.column) };
        arrays.0[index] = value.datum.unwrap_or(Datum::from(0));
        arrays.1[index] = value.datum.is_none();
        arrays.2[index] = true;
    }
    arrays
}
