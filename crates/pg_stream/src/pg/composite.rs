//! Values of row types, in the one form that equal values share.
//!
//! A value of a row type is a tuple, and equal ones may differ in it: in the place that it was copied
//! from, in hints about transactions, and in fields that are compressed or not, as the table had them.
//! `heap_form_tuple` gives equal fields one form.

use std::ffi::c_void;

use pgrx::pg_sys::{self, Datum, Oid};

use super::tuple::attribute;

/// Whether values of a type are rows, or arrays, ranges or multiranges with rows in them.
///
/// # Safety
///
/// `ty` must be a type.
pub(in crate::pg) unsafe fn holds_rows(ty: Oid) -> bool {
    // SAFETY: an entry of the type cache, one look-up, lives as long as the backend.
    unsafe {
        let entry = pg_sys::lookup_type_cache(ty, 0);
        let element = (*entry).typelem;
        match (*entry).typtype as u8 {
            _ if (*entry).typlen != -1 => false,
            b'c' => true,
            b'd' => holds_rows(pg_sys::getBaseType(ty)),
            b'r' => holds_rows(pg_sys::get_range_subtype(ty)),
            b'm' => holds_rows(pg_sys::get_multirange_range(ty)),
            _ => ty == pg_sys::RECORDOID || (element != pg_sys::InvalidOid && holds_rows(element)),
        }
    }
}

/// A new value in the current memory context: `value` with one form for all that equal it.
///
/// # Safety
///
/// `value` must be of type `ty`, which [`holds_rows`].
pub(in crate::pg) unsafe fn canonical(value: Datum, ty: Oid) -> Datum {
    // SAFETY: as promised; what is nothing else is an array.
    unsafe {
        let base = pg_sys::getBaseType(ty);
        let stored: *mut pg_sys::varlena = value.cast_mut_ptr();
        let plain = pg_sys::pg_detoast_datum(stored);
        let made = match pg_sys::get_typtype(base) as u8 {
            _ if pg_sys::type_is_rowtype(base) => row(plain.cast()),
            b'r' => range(plain.cast(), range_type(base)),
            b'm' => multirange(plain.cast(), base),
            _ => array(plain.cast(), pg_sys::get_element_type(base)),
        };
        if plain != stored {
            pg_sys::pfree(plain.cast());
        }
        made
    }
}

/// # Safety
///
/// `header` must be a row, neither compressed nor external.
unsafe fn row(header: pg_sys::HeapTupleHeader) -> Datum {
    // SAFETY: the header says what the row is; its type's descriptor is released after its last use.
    unsafe {
        let fields = (*header).t_choice.t_datum;
        let whole = pg_sys::lookup_rowtype_tupdesc(fields.datum_typeid, fields.datum_typmod);
        // Its type may have got more attributes since: what is stored is found again as it is.
        let width = u32::from((*header).t_infomask2) & pg_sys::HEAP_NATTS_MASK;
        let count = i32::try_from(width).expect("a count").min((*whole).natts);
        let descriptor = pg_sys::CreateTupleDescTruncatedCopy(whole, count);
        if (*whole).tdrefcount >= 0 {
            pg_sys::DecrTupleDescRefCount(whole);
        }
        let width = usize::try_from(count).expect("a count");
        let mut tuple = pg_sys::HeapTupleData {
            t_len: u32::try_from(pgrx::varlena::varsize_4b(header.cast())).expect("a length"),
            t_data: header,
            ..Default::default()
        };
        let (mut values, mut nulls) = (vec![Datum::from(0); width], vec![false; width]);
        pg_sys::heap_deform_tuple(
            &raw mut tuple,
            descriptor,
            values.as_mut_ptr(),
            nulls.as_mut_ptr(),
        );
        let mut owned = Vec::new();
        for index in 0..width {
            let field = attribute(descriptor, index);
            if nulls[index] || (*field).attlen != -1 {
                continue;
            }
            let stored = values[index];
            values[index] = if !(*field).attisdropped && holds_rows((*field).atttypid) {
                canonical(stored, (*field).atttypid)
            } else {
                Datum::from(pg_sys::pg_detoast_datum_packed(stored.cast_mut_ptr()))
            };
            if values[index].value() != stored.value() {
                owned.push(values[index]);
            }
        }
        let formed = pg_sys::heap_form_tuple(descriptor, values.as_ptr(), nulls.as_ptr());
        // In a chunk of its own, so that it can be freed.
        let made = pg_sys::heap_copy_tuple_as_datum(formed, descriptor);
        pg_sys::heap_freetuple(formed);
        owned.iter().for_each(|it| pg_sys::pfree(it.cast_mut_ptr()));
        pg_sys::FreeTupleDesc(descriptor);
        made
    }
}

/// # Safety
///
/// `array` must be an array of `element`, neither compressed nor external.
unsafe fn array(array: *mut pg_sys::ArrayType, element: Oid) -> Datum {
    // SAFETY: the array says its shape, whose numbers follow its header.
    unsafe {
        let (mut length, mut by_value, mut alignment) = (0, false, 0);
        pg_sys::get_typlenbyvalalign(
            element,
            &raw mut length,
            &raw mut by_value,
            &raw mut alignment,
        );
        let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        pg_sys::deconstruct_array(
            array,
            element,
            length.into(),
            by_value,
            alignment,
            &raw mut values,
            &raw mut nulls,
            &raw mut count,
        );
        let many = usize::try_from(count).expect("a count");
        let is_null = |index: usize| *nulls.add(index);
        for index in (0..many).filter(|it| !is_null(*it)) {
            *values.add(index) = canonical(*values.add(index), element);
        }
        let dimensions = (*array).ndim;
        let shape = array.add(1).cast::<i32>();
        let made = pg_sys::construct_md_array(
            values,
            nulls,
            dimensions,
            shape,
            shape.add(usize::try_from(dimensions).expect("a count")),
            element,
            length.into(),
            by_value,
            alignment,
        );
        for index in (0..many).filter(|it| !is_null(*it)) {
            pg_sys::pfree((*values.add(index)).cast_mut_ptr());
        }
        if !values.is_null() {
            pg_sys::pfree(values.cast());
            pg_sys::pfree(nulls.cast());
        }
        Datum::from(made)
    }
}

/// The entry of the type cache, which lives as long as the backend.
///
/// # Safety
///
/// `ty` must be a type of ranges.
unsafe fn range_type(ty: Oid) -> *mut pg_sys::TypeCacheEntry {
    // SAFETY: as promised.
    unsafe { pg_sys::lookup_type_cache(ty, pg_sys::TYPECACHE_RANGE_INFO as i32) }
}

/// # Safety
///
/// `range` must be a range of type `ty`, neither compressed nor external.
unsafe fn range(range: *const pg_sys::RangeType, ty: *mut pg_sys::TypeCacheEntry) -> Datum {
    // SAFETY: as promised; a bound that is not there is infinite, also where the range is empty.
    unsafe {
        let (mut lower, mut upper) = Default::default();
        let mut is_empty = false;
        pg_sys::range_deserialize(ty, range, &raw mut lower, &raw mut upper, &raw mut is_empty);
        let mut owned = Vec::new();
        for bound in [&mut lower, &mut upper] {
            if !is_empty && !bound.infinite {
                bound.val = canonical(bound.val, (*(*ty).rngelemtype).type_id);
                owned.push(bound.val);
            }
        }
        let no_context = std::ptr::null_mut();
        let made =
            pg_sys::range_serialize(ty, &raw mut lower, &raw mut upper, is_empty, no_context);
        owned.iter().for_each(|it| pg_sys::pfree(it.cast_mut_ptr()));
        Datum::from(made)
    }
}

/// # Safety
///
/// `multirange` must be a multirange of type `ty`, neither compressed nor external.
unsafe fn multirange(multirange: *const c_void, ty: Oid) -> Datum {
    // SAFETY: as promised. The functions have these signatures in PostgreSQL 18; their errors are caught
    // at the boundary. There is no array where there are no ranges.
    unsafe {
        let element = range_type(pg_sys::get_multirange_range(ty));
        let (mut count, mut stored) = (0, std::ptr::null_mut());
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            multirange_deserialize(element, multirange, &raw mut count, &raw mut stored);
        });
        let mut owned = Vec::new();
        for index in 0..usize::try_from(count).expect("a count") {
            let slot = stored.add(index);
            owned.push(slot.read());
            slot.write(range(slot.read(), element).cast_mut_ptr());
            owned.push(slot.read());
        }
        let made =
            pg_sys::ffi::pg_guard_ffi_boundary(|| make_multirange(ty, element, count, stored));
        owned.iter().for_each(|it| pg_sys::pfree(it.cast()));
        if !stored.is_null() {
            pg_sys::pfree(stored.cast());
        }
        Datum::from(made)
    }
}

unsafe extern "C-unwind" {
    fn multirange_deserialize(
        range_type: *mut pg_sys::TypeCacheEntry,
        multirange: *const c_void,
        count: *mut i32,
        ranges: *mut *mut *mut pg_sys::RangeType,
    );
    fn make_multirange(
        ty: Oid,
        range_type: *mut pg_sys::TypeCacheEntry,
        count: i32,
        ranges: *mut *mut pg_sys::RangeType,
    ) -> *mut c_void;
}
