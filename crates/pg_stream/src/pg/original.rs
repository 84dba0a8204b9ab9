//! Errors that PostgreSQL raises, as it raised them.
//!
//! pgrx carries an error across Rust, and raises it again on leaving the extension, without its
//! context and the names of what it is about, and with the code XX000 instead of one that PostgreSQL
//! itself does not use, such as a code of the user's own. So a callback on PostgreSQL's error context
//! stack keeps a copy of each error when it is raised, and completes it when it is raised again.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
};

use pgrx::{PgLogLevel, PgSqlErrorCode, pg_guard, pg_sys};

unsafe extern "C-unwind" {
    // pgrx keeps these to itself.
    fn errcode(code: c_int) -> c_int;
    fn errcontext_msg(format: *const c_char, ...) -> c_int;
}

/// What a code becomes that pgrx does not know.
const UNKNOWN: c_int = PgSqlErrorCode::ERRCODE_INTERNAL_ERROR as c_int;

/// While it lives, errors that leave the extension are what they were.
pub struct OriginalErrors {
    /// In PostgreSQL's memory, where the next error finds it after this is gone.
    watch: *mut Watch,
}

struct Watch {
    entry: pg_sys::ErrorContextCallback,
    /// The latest error.
    copy: *mut pg_sys::ErrorData,
    /// Whether it is about to be raised again, outside of everything that gave it its context.
    is_leaving: bool,
}

impl OriginalErrors {
    pub fn keep() -> Self {
        // SAFETY: memory of the current context outlives the call of the function in it.
        unsafe {
            let watch = pg_sys::palloc(size_of::<Watch>()).cast::<Watch>();
            let entry = pg_sys::ErrorContextCallback {
                previous: pg_sys::error_context_stack,
                callback: Some(raised),
                arg: watch.cast(),
            };
            watch.write(Watch { entry, copy: ptr::null_mut(), is_leaving: false });
            pg_sys::error_context_stack = &raw mut (*watch).entry;
            Self { watch }
        }
    }
}

impl Drop for OriginalErrors {
    fn drop(&mut self) {
        // SAFETY: the entry is in the stack, maybe below one that adds a position. One that stays
        // there is dropped by PostgreSQL when it has caught the error.
        unsafe {
            if std::thread::panicking() {
                (*self.watch).is_leaving = true;
                return;
            }
            take_away(&raw mut (*self.watch).entry);
            discard((*self.watch).copy);
            pg_sys::pfree(self.watch.cast());
        }
    }
}

/// Takes an entry out of PostgreSQL's error context stack, wherever in it.
///
/// # Safety
///
/// The stack holds no entry that is gone.
pub(super) unsafe fn take_away(entry: *mut pg_sys::ErrorContextCallback) {
    // SAFETY: as promised; only this process, which has one thread, uses the stack.
    unsafe {
        let mut link = &raw mut pg_sys::error_context_stack;
        while !(*link).is_null() {
            if *link == entry {
                *link = (*entry).previous;
                return;
            }
            link = &raw mut (**link).previous;
        }
    }
}

/// PostgreSQL is raising an error, or sending a notice.
#[pg_guard]
unsafe extern "C-unwind" fn raised(watch: *mut c_void) {
    // SAFETY: `watch` is what `keep` made; PostgreSQL's error is complete but for its context.
    unsafe {
        let watch = watch.cast::<Watch>();
        let error = copy_into(pg_sys::GetMemoryChunkContext(watch.cast()));
        if (*error).elevel < PgLogLevel::ERROR as i32 {
            discard(error);
            return;
        }
        let original = (*watch).copy;
        if original.is_null() || !is_same(original, error) {
            discard(original);
            (*watch).copy = error;
            return;
        }
        // Here, or on its way out of something that PostgreSQL called within the extension.
        complete(original, error);
        if (*watch).is_leaving && !(*original).context.is_null() {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                errcontext_msg(c"%s".as_ptr(), (*original).context)
            });
        }
        discard(error);
    }
}

/// Whether `other` may be what became of `one`: what does not get lost is the same.
unsafe fn is_same(one: *const pg_sys::ErrorData, other: *const pg_sys::ErrorData) -> bool {
    let is_equal = |one: *const c_char, other: *const c_char| {
        // SAFETY: the texts of an error end with NUL, or are missing.
        let text = |it: *const c_char| (!it.is_null()).then(|| unsafe { CStr::from_ptr(it) });
        text(one) == text(other)
    };
    // SAFETY: both are copies of errors.
    let (one, other) = unsafe { (&*one, &*other) };
    [one.sqlerrcode, UNKNOWN].contains(&other.sqlerrcode)
        && one.lineno == other.lineno
        && is_equal(one.filename, other.filename)
        && is_equal(one.message, other.message)
        && is_equal(one.detail, other.detail)
        && is_equal(one.hint, other.hint)
}

/// Completes the error that is being raised, which is `error` so far.
unsafe fn complete(original: *const pg_sys::ErrorData, error: *const pg_sys::ErrorData) {
    // SAFETY: both are copies of errors; PostgreSQL copies what it is given.
    unsafe {
        let (original, error) = (&*original, &*error);
        if error.sqlerrcode == UNKNOWN {
            pg_sys::ffi::pg_guard_ffi_boundary(|| errcode(original.sqlerrcode));
        }
        let names = [
            (pg_sys::PG_DIAG_SCHEMA_NAME, original.schema_name, error.schema_name),
            (pg_sys::PG_DIAG_TABLE_NAME, original.table_name, error.table_name),
            (pg_sys::PG_DIAG_COLUMN_NAME, original.column_name, error.column_name),
            (pg_sys::PG_DIAG_DATATYPE_NAME, original.datatype_name, error.datatype_name),
            (pg_sys::PG_DIAG_CONSTRAINT_NAME, original.constraint_name, error.constraint_name),
        ];
        for (field, name, known) in names {
            if known.is_null() && !name.is_null() {
                pg_sys::err_generic_string(c_int::from(field), name);
            }
        }
    }
}

unsafe fn copy_into(context: pg_sys::MemoryContext) -> *mut pg_sys::ErrorData {
    // SAFETY: called while PostgreSQL is raising an error.
    unsafe {
        let previous = pg_sys::MemoryContextSwitchTo(context);
        let copy = pg_sys::CopyErrorData();
        pg_sys::MemoryContextSwitchTo(previous);
        copy
    }
}

unsafe fn discard(copy: *mut pg_sys::ErrorData) {
    if !copy.is_null() {
        // SAFETY: a copy that nobody else has.
        unsafe { pg_sys::FreeErrorData(copy) };
    }
}
