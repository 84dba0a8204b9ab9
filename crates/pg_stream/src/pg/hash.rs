//! Identity of rows and keys, as hashes of their values: `pgstream.row_id` and `pgstream.key_id`.

use std::cell::RefCell;

use pgrx::{
    PgMemoryContexts,
    pg_sys::{self, Datum, Oid},
    varlena,
};
use xxhash_rust::xxh3::xxh3_64;

use super::composite;

/// How an argument's value becomes part of the hash.
#[derive(Clone, Copy)]
enum Part {
    /// By its image.
    Image { length: i16, by_value: bool },
    /// By the image of its canonical form, for values of this type, which are rows or hold rows.
    Rows(Oid),
    /// By the hash function of its type.
    Function { function: *mut pg_sys::FmgrInfo, collation: Oid },
    /// Its type says nothing about which values are equal, so all are alike.
    Constant,
}

thread_local! {
    /// What is hashed, kept to save its allocation.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_pg_stream_row_id() -> &'static pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_pg_stream_key_id() -> &'static pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// `pgstream.row_id(VARIADIC "any")`: a hash of the exact images of the arguments.
///
/// # Safety
///
/// PostgreSQL calls it with the fields that the calling convention promises.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn pg_stream_row_id(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: passed on.
    unsafe { hash(fcinfo, image_part) }
}

/// `pgstream.key_id(VARIADIC "any")`: a hash that is the same for arguments that are equal by the
/// `=` of their types.
///
/// # Safety
///
/// PostgreSQL calls it with the fields that the calling convention promises.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn pg_stream_key_id(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: passed on.
    unsafe { hash(fcinfo, key_part) }
}

/// # Safety
///
/// `fcinfo` must be that of a running call.
unsafe fn hash(fcinfo: pg_sys::FunctionCallInfo, part: unsafe fn(Oid, Oid) -> Part) -> Datum {
    // SAFETY: the arguments are as many as the call says, and their types those of its expression.
    unsafe {
        let parts = parts((*fcinfo).flinfo, part);
        let count = usize::try_from((*fcinfo).nargs).expect("a count");
        let arguments = std::slice::from_raw_parts((*fcinfo).args.as_ptr(), count);
        // Taken, not borrowed: the hash function of a type may be anybody's.
        let mut bytes = SCRATCH.take();
        bytes.clear();
        for (argument, part) in arguments.iter().zip(parts) {
            if argument.isnull {
                bytes.push(0);
            } else {
                bytes.push(1);
                append(&mut bytes, *part, argument.value);
            }
        }
        let hash = xxh3_64(&bytes);
        SCRATCH.set(bytes);
        Datum::from(hash)
    }
}

/// What is known of the arguments, looked up once for a place in a query.
///
/// # Safety
///
/// `function` must be that of a running call.
unsafe fn parts<'a>(
    function: *mut pg_sys::FmgrInfo,
    part: unsafe fn(Oid, Oid) -> Part,
) -> &'a [Part] {
    // SAFETY: `fn_extra` is ours, and lives as long as `fn_mcxt`. The call's expression is a
    // function call.
    unsafe {
        if (*function).fn_extra.is_null() {
            let call = (*function).fn_expr.cast::<pg_sys::FuncExpr>();
            if call.is_null()
                || (*call).xpr.type_ != pg_sys::NodeTag::T_FuncExpr
                || (*call).funcvariadic
            {
                pgrx::ereport!(
                    ERROR,
                    pgrx::PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                    "this function takes its arguments one by one"
                );
            }
            let list = (*call).args;
            let count = if list.is_null() { 0 } else { (*list).length };
            let count = usize::try_from(count).expect("a count");
            let parts: Vec<Part> = (0..count)
                .map(|index| {
                    let node = (*(*list).elements.add(index)).ptr_value.cast::<pg_sys::Node>();
                    part(pg_sys::exprType(node), pg_sys::exprCollation(node))
                })
                .collect();
            let kept = PgMemoryContexts::For((*function).fn_mcxt).leak_and_drop_on_delete(parts);
            (*function).fn_extra = kept.cast();
        }
        &*(*function).fn_extra.cast::<Vec<Part>>()
    }
}

/// # Safety
///
/// `ty` must be a type.
unsafe fn image_part(ty: Oid, _collation: Oid) -> Part {
    let (mut length, mut by_value) = (0, false);
    // SAFETY: the pointers are to live locals.
    unsafe {
        pg_sys::get_typlenbyval(ty, &raw mut length, &raw mut by_value);
        if length == -1 && composite::holds_rows(ty) {
            return Part::Rows(ty);
        }
    }
    Part::Image { length, by_value }
}

/// # Safety
///
/// `ty` must be a type.
unsafe fn key_part(ty: Oid, collation: Oid) -> Part {
    // SAFETY: entries of the type cache live as long as the backend.
    unsafe {
        // Asking for the operator too makes the cache check that the hash function belongs to it.
        let flags = pg_sys::TYPECACHE_EQ_OPR | pg_sys::TYPECACHE_HASH_EXTENDED_PROC_FINFO;
        let entry = pg_sys::lookup_type_cache(ty, flags as i32);
        if (*entry).hash_extended_proc_finfo.fn_oid != Oid::INVALID {
            let collation =
                if collation == Oid::INVALID { pg_sys::DEFAULT_COLLATION_OID } else { collation };
            let function = &raw mut (*entry).hash_extended_proc_finfo;
            return Part::Function { function, collation };
        }
        match pg_sys::getBaseType(ty) {
            base @ (pg_sys::MONEYOID | pg_sys::BITOID | pg_sys::VARBITOID) => {
                image_part(base, collation)
            }
            _ => Part::Constant,
        }
    }
}

/// # Safety
///
/// `value` must be of the type that `part` was made for.
unsafe fn append(bytes: &mut Vec<u8>, part: Part, value: Datum) {
    // SAFETY: as promised.
    unsafe {
        match part {
            Part::Constant => {}
            Part::Function { function, collation } => {
                let seed = Datum::from(0_i64);
                let hash = pg_sys::FunctionCall2Coll(function, collation, value, seed);
                bytes.extend_from_slice(&(hash.value() as u64).to_ne_bytes());
            }
            Part::Image { by_value: true, length } => {
                let length = usize::try_from(length).expect("a fixed length");
                bytes.extend_from_slice(&(value.value() as u64).to_le_bytes()[..length]);
            }
            Part::Image { length: -1, .. } => append_varlena(bytes, value),
            Part::Rows(ty) => {
                let canonical = composite::canonical(value, ty);
                if ty == pg_sys::RECORDOID {
                    // Each session numbers anonymous types in its own way.
                    let row: pg_sys::HeapTupleHeader = canonical.cast_mut_ptr();
                    (*row).t_choice.t_datum.datum_typmod = -1;
                }
                append_varlena(bytes, canonical);
                pg_sys::pfree(canonical.cast_mut_ptr());
            }
            Part::Image { length: -2, .. } => {
                let text = std::ffi::CStr::from_ptr(value.cast_mut_ptr());
                bytes.extend_from_slice(text.to_bytes_with_nul());
            }
            Part::Image { length, .. } => {
                let length = usize::try_from(length).expect("a fixed length");
                let start: *const u8 = value.cast_mut_ptr::<u8>();
                bytes.extend_from_slice(std::slice::from_raw_parts(start, length));
            }
        }
    }
}

/// # Safety
///
/// `value` must be a varlena.
unsafe fn append_varlena(bytes: &mut Vec<u8>, value: Datum) {
    let stored: *mut pg_sys::varlena = value.cast_mut_ptr();
    // SAFETY: as promised; a value that is neither compressed nor external is returned as it is.
    unsafe {
        let plain = pg_sys::pg_detoast_datum_packed(stored);
        let length = varlena::varsize_any_exhdr(plain);
        let start = varlena::vardata_any(plain).cast::<u8>();
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(std::slice::from_raw_parts(start, length));
        if plain != stored {
            pg_sys::pfree(plain.cast());
        }
    }
}
