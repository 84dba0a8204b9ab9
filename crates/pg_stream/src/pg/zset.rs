//! Summing the weights of identical rows.
//!
//! Rows are the same when their binary images are: `1.0` and `1.00` differ, and `json` needs no
//! equality operator. The image is a minimal tuple of the detoasted values, whose bytes PostgreSQL
//! makes the same for the same values.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use pgrx::pg_sys::{self, Datum};

use super::store::{StoreColumn, descriptor};

/// Passes on a value that is a hash already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only used for u64");
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

const END: u32 = u32::MAX;

struct Entry {
    tuple: pg_sys::MinimalTuple,
    weight: i64,
    /// The next entry with the same hash.
    next: u32,
}

/// Collects weighted rows; rows whose weights sum to zero vanish.
pub struct Consolidator {
    context: pg_sys::MemoryContext,
    scratch: pg_sys::MemoryContext,
    descriptor: pg_sys::TupleDesc,
    /// Positions of columns whose values may be toasted.
    varlena: Vec<usize>,
    entries: Vec<Entry>,
    /// Hash → the entry added last.
    index: HashMap<u64, u32, BuildHasherDefault<Identity>>,
    values: Vec<Datum>,
}

impl Consolidator {
    /// For rows with these columns. Its memory is a child of the current memory context.
    pub fn new(columns: &[StoreColumn]) -> Self {
        // SAFETY: the contexts are children of the current one, so an error frees them.
        unsafe {
            let context = new_context(pg_sys::CurrentMemoryContext);
            let scratch = new_context(context);
            let previous = pg_sys::MemoryContextSwitchTo(context);
            let descriptor = descriptor(columns);
            pg_sys::MemoryContextSwitchTo(previous);
            let varlena = (0..columns.len())
                .filter(|it| pg_sys::get_typlen(columns[*it].ty) == -1)
                .collect();
            Self {
                context,
                scratch,
                descriptor,
                varlena,
                entries: Vec::new(),
                index: HashMap::default(),
                values: vec![Datum::from(0); columns.len()],
            }
        }
    }

    /// Adds `weight` copies of a row.
    pub fn add(&mut self, values: &[Datum], nulls: &[bool], weight: i64) {
        assert_eq!(values.len(), self.values.len(), "one value for each column");
        self.values.copy_from_slice(values);
        // SAFETY: the values fit the descriptor; tuples are allocated in our own context.
        unsafe {
            let previous = pg_sys::MemoryContextSwitchTo(self.scratch);
            for column in &self.varlena {
                if !nulls[*column] {
                    let value: *mut pg_sys::varlena = self.values[*column].cast_mut_ptr();
                    self.values[*column] =
                        Datum::from(pg_sys::pg_detoast_datum_packed(value));
                }
            }
            pg_sys::MemoryContextSwitchTo(self.context);
            let tuple = pg_sys::heap_form_minimal_tuple(
                self.descriptor,
                self.values.as_mut_ptr(),
                nulls.as_ptr().cast_mut(),
                0,
            );
            pg_sys::MemoryContextSwitchTo(previous);
            if !self.varlena.is_empty() {
                pg_sys::MemoryContextReset(self.scratch);
            }
            self.add_tuple(tuple, weight);
        }
    }

    /// # Safety
    ///
    /// `tuple` is a minimal tuple allocated in our context.
    unsafe fn add_tuple(&mut self, tuple: pg_sys::MinimalTuple, weight: i64) {
        // SAFETY: as promised by the caller and kept by `entries`.
        unsafe {
            let image = image(tuple);
            let hash = xxhash_rust::xxh3::xxh3_64(image);
            let first = self.index.get(&hash).copied().unwrap_or(END);
            let mut next = first;
            while next != END {
                let entry = &mut self.entries[next as usize];
                if self::image(entry.tuple) == image {
                    entry.weight += weight;
                    pg_sys::pfree(tuple.cast());
                    return;
                }
                next = entry.next;
            }
            let position = u32::try_from(self.entries.len()).expect("fewer than 2^32 rows");
            self.entries.push(Entry { tuple, weight, next: first });
            self.index.insert(hash, position);
        }
    }

    /// The rows whose weight is not zero.
    pub fn finish(mut self) -> Net {
        self.index = HashMap::default();
        self.entries.retain(|entry| entry.weight != 0);
        Net { rows: self }
    }
}

impl Drop for Consolidator {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: made by `new`; nothing outside points into it. After an error the parent
            // context frees it.
            unsafe { pg_sys::MemoryContextDelete(self.context) };
        }
    }
}

/// Rows with their net weights.
pub struct Net {
    rows: Consolidator,
}

impl Net {
    pub fn len(&self) -> usize {
        self.rows.entries.len()
    }

    pub fn weight(&self, index: usize) -> i64 {
        self.rows.entries[index].weight
    }

    /// The row's values and NULLs; they live as long as `self`.
    pub fn row(&self, index: usize) -> (Vec<Datum>, Vec<bool>) {
        let width = self.rows.values.len();
        let (mut values, mut nulls) = (vec![Datum::from(0); width], vec![false; width]);
        self.row_into(index, &mut values, &mut nulls);
        (values, nulls)
    }

    /// As [`Self::row`], into existing room for as many columns.
    pub fn row_into(&self, index: usize, values: &mut [Datum], nulls: &mut [bool]) {
        assert!(values.len() >= self.rows.values.len() && nulls.len() >= self.rows.values.len());
        // SAFETY: a minimal tuple is a heap tuple without its first bytes, which deforming does
        // not read.
        unsafe {
            let tuple = self.rows.entries[index].tuple;
            let offset = std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_infomask2)
                - std::mem::offset_of!(pg_sys::MinimalTupleData, t_infomask2);
            let mut heap = pg_sys::HeapTupleData {
                t_len: (*tuple).t_len + u32::try_from(offset).expect("a small constant"),
                t_data: tuple.cast::<u8>().sub(offset).cast(),
                ..Default::default()
            };
            pg_sys::heap_deform_tuple(
                &raw mut heap,
                self.rows.descriptor,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
        }
    }

    /// The first column of a row, when that is a bigint that is never NULL.
    pub fn row_id(&self, index: usize) -> i64 {
        let (values, nulls) = self.row(index);
        assert!(!nulls[0], "a row id is never NULL");
        values[0].value() as i64
    }
}

/// # Safety
///
/// `tuple` must be a live minimal tuple.
unsafe fn image<'a>(tuple: pg_sys::MinimalTuple) -> &'a [u8] {
    // SAFETY: the tuple's first word is its length.
    unsafe { std::slice::from_raw_parts(tuple.cast::<u8>(), (*tuple).t_len as usize) }
}

/// # Safety
///
/// `parent` must be a live memory context.
unsafe fn new_context(parent: pg_sys::MemoryContext) -> pg_sys::MemoryContext {
    // SAFETY: the name is a constant, as PostgreSQL demands.
    unsafe {
        pg_sys::AllocSetContextCreateInternal(
            parent,
            c"pg_stream consolidation".as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        )
    }
}
