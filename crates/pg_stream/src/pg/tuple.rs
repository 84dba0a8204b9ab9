//! Forming tuples, and summing the weights of identical rows.
//!
//! Both run for every row that a statement changes or a refresh reads, so they are written here
//! instead of calling `heap_form_tuple` for each row: no allocation for a row, and no error frame.
//! The layout is the one of `heap_fill_tuple`.

use pgrx::{
    pg_sys::{self, Datum, Oid},
    varlena,
};
use xxhash_rust::xxh3::xxh3_64;

use super::composite;
use super::store::{Store, StoreColumn, descriptor};

/// What the layout needs to know of a column.
#[derive(Clone, Copy, Debug)]
struct Attribute {
    length: i16,
    by_value: bool,
    align: usize,
    packable: bool,
    /// Its type, when its values are rows or hold rows.
    of_rows: Option<Oid>,
}

/// What becomes of values that are compressed or stored out of line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pg) enum Toasted {
    /// Pointers to values on disk stay, for a table's own toaster to resolve.
    Keep,
    /// Every value is expanded, so that equal values have equal images.
    Expand,
}

/// Forms the tuples of a descriptor.
#[derive(Debug)]
pub(in crate::pg) struct Encoder {
    attributes: Vec<Attribute>,
    toasted: Toasted,
}

/// Bytes between the start of a minimal tuple and its NULL bitmap.
const HEADER: usize = std::mem::offset_of!(pg_sys::MinimalTupleData, t_bits);
/// Words by which a heap tuple's header is longer than a minimal tuple's.
const HEAP_PREFIX: usize = 1;
const _: () = assert!(std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_bits) == HEADER + WORD);
const WORD: usize = size_of::<u64>();
/// PostgreSQL moves no value out of line that is shorter.
const LEAST_MOVED: usize = 24;

impl Encoder {
    /// # Safety
    ///
    /// `descriptor` must be a live tuple descriptor.
    pub(in crate::pg) unsafe fn new(descriptor: pg_sys::TupleDesc, toasted: Toasted) -> Self {
        // SAFETY: a descriptor holds as many attributes as it says.
        let attributes = unsafe { compact_attributes(descriptor) }.iter().enumerate();
        let attributes = attributes
            .map(|(index, it)| Attribute {
                length: it.attlen,
                by_value: it.attbyval,
                align: usize::from(it.attalignby),
                packable: it.attispackable,
                // SAFETY: the index is below the number of attributes; the type is one, unless the
                // column was dropped.
                of_rows: unsafe {
                    let ty = (*attribute(descriptor, index)).atttypid;
                    let is_varlena = it.attlen == -1 && !it.attisdropped;
                    (is_varlena && composite::holds_rows(ty)).then_some(ty)
                },
            })
            .collect();
        Self { attributes, toasted }
    }

    pub(in crate::pg) fn width(&self) -> usize {
        self.attributes.len()
    }

    /// Appends a minimal tuple to `arena`, `prefix` words after its end, and returns its length in
    /// bytes. Values that have to be expanded are replaced in `values` and put into `owned`.
    ///
    /// # Safety
    ///
    /// `values` and `nulls` must be values of the descriptor.
    #[expect(clippy::too_many_arguments, reason = "buffers that are used again for each row")]
    unsafe fn encode(
        &self,
        values: &mut [Datum],
        nulls: &[bool],
        arena: &mut Vec<u64>,
        prefix: usize,
        owned: &mut Vec<*mut pg_sys::varlena>,
    ) -> usize {
        let width = self.attributes.len();
        assert!(values.len() == width && nulls.len() == width);
        // SAFETY: the values fit the attributes, as the caller promises; the arena is made as
        // long as the size that was computed, and zeroed, before it is filled.
        unsafe {
            let mut size = 0;
            let mut has_null = false;
            for (index, attribute) in self.attributes.iter().enumerate() {
                if nulls[index] {
                    has_null = true;
                    continue;
                }
                if attribute.length == -1 {
                    values[index] = self.resolve(attribute, values[index], owned);
                }
                size = attribute.end(values[index], size);
            }
            let bitmap = if has_null { width.div_ceil(8) } else { 0 };
            let data_start = align(HEADER + bitmap, WORD);
            let length = data_start + size;
            let start = arena.len() + prefix;
            reserve(arena, prefix + length.div_ceil(WORD));
            arena.resize(start + length.div_ceil(WORD), 0);
            let tuple = arena.as_mut_ptr().add(start).cast::<u8>();

            let mut infomask = if has_null { pg_sys::HEAP_HASNULL as u16 } else { 0 };
            let data = tuple.add(data_start);
            let mut offset = 0;
            for (index, attribute) in self.attributes.iter().enumerate() {
                if nulls[index] {
                    continue;
                }
                if has_null {
                    *tuple.add(HEADER + index / 8) |= 1 << (index % 8);
                }
                offset = attribute.fill(values[index], data, offset, &mut infomask);
            }
            debug_assert_eq!(offset, size);
            let header = tuple.cast::<pg_sys::MinimalTupleData>();
            (*header).t_len = u32::try_from(length).expect("a tuple is below a gigabyte");
            (*header).t_infomask2 = u16::try_from(width).expect("few columns");
            (*header).t_infomask = infomask;
            (*header).t_hoff = u8::try_from(data_start + HEAP_PREFIX * WORD).expect("few columns");
            length
        }
    }

    /// The most bytes that a heap tuple takes with all that can be moved out of line there; `None`
    /// when there is no bound.
    pub(in crate::pg) fn most(&self) -> Option<usize> {
        let mut size = 0;
        for attribute in &self.attributes {
            size += match attribute.length {
                -1 if attribute.packable => LEAST_MOVED,
                length => usize::try_from(length).ok()? + attribute.align - 1,
            };
        }
        Some(self.header(true) + size)
    }

    /// The bytes that a heap tuple of these values takes at least, with all that can be moved out of
    /// line there.
    ///
    /// # Safety
    ///
    /// `values` and `nulls` must be values of the descriptor.
    pub(in crate::pg) unsafe fn least(&self, values: &[Datum], nulls: &[bool]) -> usize {
        let mut size = 0;
        for (index, attribute) in self.attributes.iter().enumerate().filter(|it| !nulls[it.0]) {
            // SAFETY: as promised.
            let end = unsafe { attribute.end(values[index], size) };
            let is_moved = attribute.packable && end - size > LEAST_MOVED;
            size = if is_moved { size + LEAST_MOVED } else { end };
        }
        self.header(true) + size
    }

    /// The bytes before the values of a heap tuple.
    fn header(&self, has_null: bool) -> usize {
        let bitmap = if has_null { self.attributes.len().div_ceil(8) } else { 0 };
        align(HEADER + HEAP_PREFIX * WORD + bitmap, WORD)
    }

    /// As [`Self::encode`], a heap tuple: appended at the end of `arena`, its length in bytes.
    ///
    /// # Safety
    ///
    /// As for [`Self::encode`].
    pub(in crate::pg) unsafe fn encode_heap(
        &self,
        values: &mut [Datum],
        nulls: &[bool],
        arena: &mut Vec<u64>,
        owned: &mut Vec<*mut pg_sys::varlena>,
    ) -> usize {
        // SAFETY: passed on.
        unsafe { self.encode(values, nulls, arena, HEAP_PREFIX, owned) + HEAP_PREFIX * WORD }
    }

    /// Whether two values have the same bytes, without looking behind pointers.
    ///
    /// # Safety
    ///
    /// Both must be values of the column at `index`.
    pub(in crate::pg) unsafe fn same(&self, index: usize, left: Datum, right: Datum) -> bool {
        let attribute = &self.attributes[index];
        if attribute.by_value {
            return left.value() == right.value();
        }
        // SAFETY: as promised; a varlena says how long it is.
        unsafe {
            let size = |value: Datum| match attribute.length {
                -1 => varlena::varsize_any(value.cast_mut_ptr()),
                _ => stored_size(attribute, value),
            };
            let bytes = |value: Datum| {
                std::slice::from_raw_parts(value.cast_mut_ptr::<u8>().cast_const(), size(value))
            };
            bytes(left) == bytes(right)
        }
    }

    /// # Safety
    ///
    /// `value` must be a varlena of the attribute's type.
    unsafe fn resolve(
        &self,
        attribute: &Attribute,
        value: Datum,
        owned: &mut Vec<*mut pg_sys::varlena>,
    ) -> Datum {
        if let (Some(ty), Toasted::Expand) = (attribute.of_rows, self.toasted) {
            // SAFETY: as promised.
            let made = unsafe { composite::canonical(value, ty) };
            owned.push(made.cast_mut_ptr());
            return made;
        }
        let pointer: *mut pg_sys::varlena = value.cast_mut_ptr();
        // SAFETY: the header says what the value is; detoasting returns a new value when it is
        // compressed or external.
        unsafe {
            let must_expand = if varlena::varatt_is_1b_e(pointer) {
                self.toasted == Toasted::Expand
                    || external_tag(pointer) != pg_sys::vartag_external::VARTAG_ONDISK
            } else {
                self.toasted == Toasted::Expand && varlena::varatt_is_4b_c(pointer)
            };
            if !must_expand {
                return value;
            }
            let expanded = pg_sys::detoast_attr(pointer);
            owned.push(expanded);
            Datum::from(expanded)
        }
    }
}

impl Attribute {
    /// The offset behind `value` when it is stored at `offset` or after.
    ///
    /// # Safety
    ///
    /// `value` must be of the attribute's type.
    unsafe fn end(&self, value: Datum, offset: usize) -> usize {
        // SAFETY: passed on.
        unsafe { self.start(value, offset) + stored_size(self, value) }
    }

    /// # Safety
    ///
    /// As for [`Self::end`].
    unsafe fn start(&self, value: Datum, offset: usize) -> usize {
        match self.length {
            -2 => offset,
            // SAFETY: the value is a varlena.
            -1 if unsafe { stored_unaligned(self, value) } => offset,
            _ => align(offset, self.align),
        }
    }

    /// Writes `value` behind `offset` and returns the new end.
    ///
    /// # Safety
    ///
    /// As for [`Self::end`], and `data` must have room for it.
    unsafe fn fill(&self, value: Datum, data: *mut u8, offset: usize, infomask: &mut u16) -> usize {
        // SAFETY: sizes are those that the caller allocated for.
        unsafe {
            let start = self.start(value, offset);
            let size = stored_size(self, value);
            let target = data.add(start);
            if self.by_value {
                match size {
                    1 => target.write(value.value() as u8),
                    2 => target.cast::<u16>().write(value.value() as u16),
                    4 => target.cast::<u32>().write(value.value() as u32),
                    _ => target.cast::<u64>().write(value.value() as u64),
                }
                return start + size;
            }
            let source: *const u8 = value.cast_mut_ptr::<u8>();
            if self.length < 0 {
                *infomask |= pg_sys::HEAP_HASVARWIDTH as u16;
            }
            if self.length == -1 {
                let pointer = source.cast::<pg_sys::varlena>();
                if varlena::varatt_is_1b_e(pointer) {
                    *infomask |= pg_sys::HEAP_HASEXTERNAL as u16;
                } else if !varlena::varatt_is_1b(pointer) && stored_unaligned(self, value) {
                    varlena::set_varsize_short(
                        target.cast(),
                        i32::try_from(size).expect("a short value"),
                    );
                    target.add(1).copy_from_nonoverlapping(source.add(4), size - 1);
                    return start + size;
                }
            }
            target.copy_from_nonoverlapping(source, size);
            start + size
        }
    }
}

/// Fails as PostgreSQL does, where growing the vector would end the process.
fn reserve(arena: &mut Vec<u64>, words: usize) {
    if arena.try_reserve(words).is_err() {
        pgrx::ereport!(
            ERROR,
            pgrx::PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
            format!("out of memory for {words} more words of changes")
        );
    }
}

const fn align(offset: usize, to: usize) -> usize {
    (offset + to - 1) & !(to - 1)
}

/// Whether a varlena is stored with a short header, or as a pointer, neither of which is aligned.
///
/// # Safety
///
/// `value` must be a varlena.
unsafe fn stored_unaligned(attribute: &Attribute, value: Datum) -> bool {
    let pointer: *const pg_sys::varlena = value.cast_mut_ptr();
    // SAFETY: as promised; the bit that marks a short header marks a pointer too.
    unsafe {
        varlena::varatt_is_1b(pointer)
            || (attribute.packable
                && !varlena::varatt_is_4b_c(pointer)
                && varlena::varsize_4b(pointer) - 4 < 0x7f)
    }
}

/// # Safety
///
/// `value` must be of the attribute's type, and not expanded.
unsafe fn stored_size(attribute: &Attribute, value: Datum) -> usize {
    // SAFETY: as promised.
    unsafe {
        match attribute.length {
            -2 => std::ffi::CStr::from_ptr(value.cast_mut_ptr()).count_bytes() + 1,
            -1 => {
                let pointer: *const pg_sys::varlena = value.cast_mut_ptr();
                if varlena::varatt_is_1b_e(pointer) {
                    // The only pointer that is ever kept: two bytes and the one to a disk page.
                    2 + size_of::<pg_sys::varatt_external>()
                } else if varlena::varatt_is_1b(pointer) {
                    varlena::varsize_1b(pointer)
                } else if stored_unaligned(attribute, value) {
                    varlena::varsize_4b(pointer) - 4 + 1
                } else {
                    varlena::varsize_4b(pointer)
                }
            }
            length => usize::try_from(length).expect("a fixed length"),
        }
    }
}

/// # Safety
///
/// `pointer` must be an external varlena.
unsafe fn external_tag(pointer: *const pg_sys::varlena) -> pg_sys::vartag_external::Type {
    // SAFETY: the second byte of a pointer is its tag.
    pg_sys::vartag_external::Type::from(unsafe { *pointer.cast::<u8>().add(1) })
}

/// # Safety
///
/// `descriptor` must be a live tuple descriptor.
unsafe fn compact_attributes<'a>(descriptor: pg_sys::TupleDesc) -> &'a [pg_sys::CompactAttribute] {
    // SAFETY: a descriptor is followed by as many compact attributes as it says.
    unsafe {
        let count = usize::try_from((*descriptor).natts).expect("a count");
        std::slice::from_raw_parts((&raw const (*descriptor).compact_attrs).cast(), count)
    }
}

/// The full attribute at a position from 0.
///
/// # Safety
///
/// `descriptor` must be a live tuple descriptor with more than `index` attributes.
pub(in crate::pg) unsafe fn attribute(
    descriptor: pg_sys::TupleDesc,
    index: usize,
) -> pg_sys::Form_pg_attribute {
    // SAFETY: full attributes follow the compact ones, as `TupleDescAttr` has it.
    unsafe {
        let compact = compact_attributes(descriptor);
        assert!(index < compact.len(), "column {index} of {}", compact.len());
        compact.as_ptr_range().end.cast::<pg_sys::FormData_pg_attribute>().add(index).cast_mut()
    }
}

/// Collects weighted rows; rows whose weights sum to zero vanish.
///
/// Rows are the same when their binary images are: `1.0` and `1.00` differ, and `json` needs no
/// equality operator.
#[derive(Debug)]
pub struct Consolidator {
    /// For the rows with their weight as the last column.
    encoder: Encoder,
    layout: pg_sys::TupleDesc,
    columns: Vec<StoreColumn>,
    /// Minimal tuples one after the other; the last word of each is its weight.
    arena: Vec<u64>,
    /// Open addressing. The upper half of a slot is a hash; the lower half is the place of a tuple
    /// in the arena, plus one, or zero when the slot is free.
    slots: Vec<u64>,
    entries: usize,
    values: Vec<Datum>,
    nulls: Vec<bool>,
    owned: Vec<*mut pg_sys::varlena>,
}

const WEIGHT: &str = "w";

impl Consolidator {
    /// For rows with these columns.
    pub fn new(columns: &[StoreColumn]) -> Self {
        let weight = StoreColumn {
            name: WEIGHT.to_owned(),
            ty: pg_sys::INT8OID,
            typmod: -1,
            collation: pg_sys::InvalidOid,
        };
        let columns: Vec<_> = columns.iter().cloned().chain([weight]).collect();
        let layout = descriptor(&columns);
        // SAFETY: the descriptor was just made; it lives in the current memory context.
        let encoder = unsafe { Encoder::new(layout, Toasted::Expand) };
        let width = columns.len();
        Self {
            encoder,
            layout,
            columns,
            arena: Vec::new(),
            slots: vec![0; 64],
            entries: 0,
            values: vec![Datum::from(0); width],
            nulls: vec![false; width],
            owned: Vec::new(),
        }
    }

    /// Adds `weight` copies of a row.
    pub fn add(&mut self, values: &[Datum], nulls: &[bool], weight: i64) {
        assert!(values.len() + 1 == self.values.len() && nulls.len() == values.len());
        self.add_from(weight, |index| (values[index], nulls[index]));
    }

    /// As [`Self::add`]; `column` says the value at a position, and whether it is NULL.
    pub fn add_from(&mut self, weight: i64, column: impl Fn(usize) -> (Datum, bool)) {
        self.put(weight, column);
    }

    /// Adds a row, and returns its place as in [`Self::net`].
    pub fn place(&mut self, values: &[Datum], nulls: &[bool]) -> usize {
        assert!(values.len() + 1 == self.values.len() && nulls.len() == values.len());
        self.put(1, |index| (values[index], nulls[index]))
    }

    fn put(&mut self, weight: i64, column: impl Fn(usize) -> (Datum, bool)) -> usize {
        let width = self.values.len() - 1;
        for index in 0..width {
            (self.values[index], self.nulls[index]) = column(index);
        }
        self.values[width] = Datum::from(weight);
        let start = self.arena.len();
        // SAFETY: the caller passes values of the columns that `new` was given.
        let length = unsafe {
            self.encoder.encode(&mut self.values, &self.nulls, &mut self.arena, 0, &mut self.owned)
        };
        for expanded in self.owned.drain(..) {
            // SAFETY: made by the encoder for this row only.
            unsafe { pg_sys::pfree(expanded.cast()) };
        }
        let (known, new) = self.arena.split_at_mut(start);
        // The weight is aligned, hence nothing is behind it.
        debug_assert_eq!(length, new.len() * WORD);
        let new = &new[..new.len() - 1];
        let hash = xxh3_64(bytes(new)) >> 32;
        let mask = self.slots.len() - 1;
        let mut position = hash as usize & mask;
        loop {
            let slot = self.slots[position];
            if slot == 0 {
                break;
            }
            if slot >> 32 == hash {
                let place = (slot & 0xffff_ffff) as usize - 1;
                let old = &mut known[place..];
                if old.len() > new.len() && &old[..new.len()] == new {
                    old[new.len()] = old[new.len()].wrapping_add_signed(weight);
                    self.arena.truncate(start);
                    return place;
                }
            }
            position = (position + 1) & mask;
        }
        let place = u32::try_from(start + 1).expect("a delta is below 32 gigabytes");
        self.slots[position] = hash << 32 | u64::from(place);
        self.entries += 1;
        if self.entries * 3 > self.slots.len() * 2 {
            self.grow();
        }
        start
    }

    fn grow(&mut self) {
        let mask = self.slots.len() * 4 - 1;
        let mut slots = vec![0_u64; mask + 1];
        for slot in self.slots.iter().filter(|it| **it != 0) {
            let mut position = (slot >> 32) as usize & mask;
            while slots[position] != 0 {
                position = (position + 1) & mask;
            }
            slots[position] = *slot;
        }
        self.slots = slots;
    }

    /// The places in the arena of the rows whose weight is not zero, in the order of arrival.
    fn places(&self) -> impl Iterator<Item = usize> {
        let mut next = 0;
        std::iter::from_fn(move || {
            while next < self.arena.len() {
                let place = next;
                next += self.words(place);
                if self.arena[next - 1] != 0 {
                    return Some(place);
                }
            }
            None
        })
    }

    fn words(&self, place: usize) -> usize {
        let head = self.arena[place].to_ne_bytes();
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]);
        length as usize / WORD
    }

    /// Whether all weights are zero.
    pub fn is_empty(&self) -> bool {
        self.places().next().is_none()
    }

    /// The places of the rows whose weight is not zero.
    pub fn net(&self) -> Vec<usize> {
        self.places().collect()
    }

    /// The weight of the row at a place of [`Self::net`].
    pub fn weight(&self, place: usize) -> i64 {
        self.arena[place + self.words(place) - 1].cast_signed()
    }

    /// The first value of the row at a place of [`Self::net`], which must be a bigint and not NULL.
    pub fn row_id(&self, place: usize) -> i64 {
        debug_assert!(self.columns[0].ty == pg_sys::INT8OID);
        // SAFETY: a minimal tuple begins there; it says where its data do, which are aligned.
        unsafe {
            let tuple = self.arena[place..].as_ptr();
            let offset = usize::from((*tuple.cast::<pg_sys::MinimalTupleData>()).t_hoff);
            tuple.byte_add(offset - HEAP_PREFIX * WORD).read().cast_signed()
        }
    }

    /// Reads the row at a place of [`Self::net`]: its values, then its weight as the last one.
    pub fn row(&self, place: usize, values: &mut [Datum], nulls: &mut [bool]) -> i64 {
        assert!(values.len() == self.values.len() && nulls.len() == self.values.len());
        let mut heap = self.heap_tuple(place);
        // SAFETY: the arena holds a tuple of this descriptor there.
        unsafe {
            pg_sys::heap_deform_tuple(
                &raw mut heap,
                self.layout,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
        }
        values[values.len() - 1].value() as i64
    }

    /// Hands over every row whose weight is not zero: values, NULLs and the weight.
    pub fn each(&self, mut work: impl FnMut(&[Datum], &[bool], i64)) {
        let width = self.values.len() - 1;
        let (mut values, mut nulls) = (vec![Datum::from(0); width + 1], vec![false; width + 1]);
        for place in self.places() {
            let weight = self.row(place, &mut values, &mut nulls);
            work(&values[..width], &nulls[..width], weight);
        }
    }

    /// The rows whose weight is not zero, with the weight as the last column `w`. The store lives
    /// in the current memory context.
    pub fn into_store(self) -> Store {
        // SAFETY: the tuples are tuples of the descriptor, and the store copies them.
        unsafe {
            let store = pg_sys::tuplestore_begin_heap(true, false, pg_sys::work_mem);
            let mut rows = 0;
            for place in self.places() {
                let mut heap = self.heap_tuple(place);
                pg_sys::tuplestore_puttuple(store, &raw mut heap);
                rows += 1;
            }
            Store::from_raw(store, &self.columns, rows)
        }
    }

    /// A view of a minimal tuple as a heap tuple, whose longer header readers of the data do not
    /// touch.
    fn heap_tuple(&self, place: usize) -> pg_sys::HeapTupleData {
        let length = (self.words(place) + HEAP_PREFIX) * WORD;
        pg_sys::HeapTupleData {
            t_len: u32::try_from(length).expect("a tuple is below a gigabyte"),
            t_data: self.arena[place..].as_ptr().wrapping_sub(HEAP_PREFIX).cast_mut().cast(),
            ..Default::default()
        }
    }
}

fn bytes(words: &[u64]) -> &[u8] {
    // SAFETY: words have no padding, and bytes no alignment.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}
