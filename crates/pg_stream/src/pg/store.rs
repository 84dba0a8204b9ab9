//! Tuple stores: rows that the executor can read by name, in memory or spilled to disk.

use std::{cell::OnceCell, ffi::CString};

use pgrx::pg_sys::{self, Datum, Oid};

use super::{composite, spi::Relation};

/// The type of a stored column.
#[derive(Clone, Debug)]
pub struct StoreColumn {
    pub name: String,
    pub ty: Oid,
    pub typmod: i32,
    pub collation: Oid,
}

/// A descriptor for rows with these columns, allocated in the current memory context.
pub fn descriptor(columns: &[StoreColumn]) -> pg_sys::TupleDesc {
    // SAFETY: the descriptor has room for every column that is initialized.
    unsafe {
        let width = i32::try_from(columns.len()).expect("few columns");
        let descriptor = pg_sys::CreateTemplateTupleDesc(width);
        for (number, column) in (1..).zip(columns) {
            let name = CString::new(column.name.as_str()).expect("a name has no NUL");
            pg_sys::TupleDescInitEntry(
                descriptor,
                number,
                name.as_ptr(),
                column.ty,
                column.typmod,
                0,
            );
            pg_sys::TupleDescInitEntryCollation(descriptor, number, column.collation);
        }
        descriptor
    }
}

/// Rows, written once and read by statements under a name.
pub struct Store {
    /// Made when it is first used: most stores of a small refresh stay empty.
    made: OnceCell<Made>,
    columns: Vec<StoreColumn>,
    /// Where it is made.
    context: pg_sys::MemoryContext,
    owner: pg_sys::ResourceOwner,
    rows: u64,
}

struct Made {
    store: *mut pg_sys::Tuplestorestate,
    descriptor: pg_sys::TupleDesc,
    /// Positions and types of the columns whose values are rows or hold rows.
    of_rows: Vec<(usize, Oid)>,
}

impl Made {
    fn new(store: *mut pg_sys::Tuplestorestate, columns: &[StoreColumn]) -> Self {
        let of_rows = rows_among(columns).collect();
        Self { store, descriptor: descriptor(columns), of_rows }
    }
}

fn rows_among(columns: &[StoreColumn]) -> impl Iterator<Item = (usize, Oid)> {
    let types = columns.iter().map(|it| it.ty).enumerate();
    // SAFETY: columns have types.
    types.filter(|it| unsafe { composite::holds_rows(it.1) })
}

/// Whether values of the columns can be equal and have different images, which putting them into a
/// store makes the same.
pub fn has_rows(columns: &[StoreColumn]) -> bool {
    rows_among(columns).next().is_some()
}

impl Store {
    /// An empty store in the current memory context, which must outlive it.
    pub fn new(columns: &[StoreColumn]) -> Self {
        // SAFETY: reads variables of this backend.
        let (context, owner) =
            unsafe { (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner) };
        Self { made: OnceCell::new(), columns: columns.to_vec(), context, owner, rows: 0 }
    }

    /// Takes over a store in the current memory context that somebody else filled.
    ///
    /// # Safety
    ///
    /// `store` holds `rows` tuples with these columns, and nobody else ends it.
    pub(in crate::pg) unsafe fn from_raw(
        store: *mut pg_sys::Tuplestorestate,
        columns: &[StoreColumn],
        rows: u64,
    ) -> Self {
        let mut taken = Self::new(columns);
        taken.made = OnceCell::from(Made::new(store, columns));
        taken.rows = rows;
        taken
    }

    fn made(&self) -> &Made {
        self.made.get_or_init(|| {
            // SAFETY: context and owner are those that `new` found, which outlive the store.
            unsafe {
                let context = pg_sys::MemoryContextSwitchTo(self.context);
                let owner = pg_sys::CurrentResourceOwner;
                pg_sys::CurrentResourceOwner = self.owner;
                let store = pg_sys::tuplestore_begin_heap(true, false, pg_sys::work_mem);
                let made = Made::new(store, &self.columns);
                pg_sys::CurrentResourceOwner = owner;
                pg_sys::MemoryContextSwitchTo(context);
                made
            }
        })
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub fn columns(&self) -> &[StoreColumn] {
        &self.columns
    }

    /// The types of the columns.
    pub(in crate::pg) fn layout(&self) -> pg_sys::TupleDesc {
        self.made().descriptor
    }

    /// Appends a row. There may be many more than what they were made of, so it can be interrupted.
    pub fn put(&mut self, values: &[Datum], nulls: &[bool]) {
        pgrx::check_for_interrupts!();
        assert_eq!(values.len(), self.columns.len());
        let Made { store, descriptor, of_rows } = self.made();
        // SAFETY: the caller passes a value for every column of the descriptor; the store copies.
        unsafe {
            if of_rows.is_empty() {
                pg_sys::tuplestore_putvalues(*store, *descriptor, values.as_ptr(), nulls.as_ptr());
            } else {
                let mut values = values.to_vec();
                let of_rows = || of_rows.iter().filter(|it| !nulls[it.0]);
                for (index, ty) in of_rows() {
                    values[*index] = composite::canonical(values[*index], *ty);
                }
                pg_sys::tuplestore_putvalues(*store, *descriptor, values.as_ptr(), nulls.as_ptr());
                of_rows().for_each(|it| pg_sys::pfree(values[it.0].cast_mut_ptr()));
            }
        }
        self.rows += 1;
    }

    /// Hands over every row.
    pub fn each(&self, mut work: impl FnMut(&[Datum], &[bool])) {
        let Made { store, descriptor, .. } = *self.made();
        // SAFETY: the slot is made for the store's descriptor and dropped after the last use.
        unsafe {
            let slot =
                pg_sys::MakeSingleTupleTableSlot(descriptor, &raw const pg_sys::TTSOpsMinimalTuple);
            let width = (*descriptor).natts;
            pg_sys::tuplestore_rescan(store);
            while pg_sys::tuplestore_gettupleslot(store, true, false, slot) {
                pg_sys::slot_getsomeattrs_int(slot, width);
                let width = usize::try_from(width).expect("a count");
                work(
                    std::slice::from_raw_parts((*slot).tts_values, width),
                    std::slice::from_raw_parts((*slot).tts_isnull, width),
                );
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
        }
    }

    /// Makes the rows readable as `name` in the current SPI session.
    pub fn register(&self, name: &str) -> Relation<'_> {
        let Made { store, descriptor, .. } = *self.made();
        // SAFETY: the guard borrows `self`, so store and descriptor outlive it.
        unsafe { Relation::register(name, descriptor, store, self.rows) }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(made) = self.made.get().filter(|_| !std::thread::panicking()) {
            // SAFETY: nobody else ends the store; after an error its memory context goes.
            unsafe { pg_sys::tuplestore_end(made.store) };
        }
    }
}

/// Whether two values of a column have the same binary image.
pub fn same_image(left: Option<Datum>, right: Option<Datum>, by_value: bool, length: i16) -> bool {
    match (left, right) {
        (None, None) => true,
        (Some(left), Some(right)) if by_value => left.value() == right.value(),
        // SAFETY: both are values of a type with this length.
        (Some(left), Some(right)) => unsafe { bytes(left, length) == bytes(right, length) },
        _ => false,
    }
}

/// The content of a value passed by reference, detoasted into the current memory context.
///
/// # Safety
///
/// `value` must be of a type with this length.
unsafe fn bytes<'a>(value: Datum, length: i16) -> &'a [u8] {
    // SAFETY: -1 is a varlena, -2 a C string, anything else a fixed length.
    unsafe {
        match length {
            -1 => {
                let packed = pg_sys::pg_detoast_datum_packed(value.cast_mut_ptr());
                pgrx::varlena_to_byte_slice(packed)
            }
            -2 => std::ffi::CStr::from_ptr(value.cast_mut_ptr()).to_bytes(),
            _ => std::slice::from_raw_parts(
                value.cast_mut_ptr::<u8>(),
                usize::try_from(length).expect("a fixed length is positive"),
            ),
        }
    }
}

/// Length and passing of a type.
pub fn type_length(ty: Oid) -> (bool, i16) {
    let (mut length, mut by_value) = (0, false);
    // SAFETY: the pointers are to live locals.
    unsafe { pg_sys::get_typlenbyval(ty, &raw mut length, &raw mut by_value) };
    (by_value, length)
}
