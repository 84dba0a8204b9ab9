//! Texts between PostgreSQL and Rust, as bytes. Where a database's encoding is not UTF8, a text may
//! hold what Rust cannot: U+FFFD stands for that. Such a text can be shown to people; used for
//! anything else it would mean something different, so it never gets into a statement.

use std::ffi::CString;

use pgrx::{
    PgSqlErrorCode,
    callconv::{Arg, ArgAbi},
    datum::{FromDatum, TimestampWithTimeZone},
    pg_sys::{self, Datum, Oid, panic::ErrorReport},
    pgrx_sql_entity_graph::metadata::{
        ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
    },
};

/// What a row can hold. As pgrx's `FromDatum`, which refuses texts that are not UTF-8.
pub trait Value: Sized {
    /// # Safety
    ///
    /// The datum must be of the type.
    unsafe fn read(datum: Datum, is_null: bool) -> Option<Self>;
}

macro_rules! read_by_pgrx {
    ($($ty:ty),*) => {$(
        impl Value for $ty {
            unsafe fn read(datum: Datum, is_null: bool) -> Option<Self> {
                // SAFETY: by the caller's promise.
                unsafe { Self::from_datum(datum, is_null) }
            }
        }
    )*};
}

read_by_pgrx!(bool, i16, i32, i64, f64, Oid, Vec<i16>, Vec<i64>, Vec<Oid>, TimestampWithTimeZone);

impl Value for String {
    unsafe fn read(datum: Datum, is_null: bool) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: by the caller's promise it is a varlena; the bytes are copied.
        unsafe {
            let text = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
            let bytes = pgrx::varlena::varlena_to_byte_slice(text);
            Some(Self::from_utf8_lossy(bytes).into_owned())
        }
    }
}

/// Panics when an element is NULL.
impl Value for Vec<String> {
    unsafe fn read(datum: Datum, is_null: bool) -> Option<Self> {
        if is_null {
            return None;
        }
        let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        // SAFETY: by the caller's promise it is an array of texts; as many values as counted are
        // allocated.
        unsafe {
            pg_sys::deconstruct_array_builtin(
                pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast(),
                pg_sys::TEXTOID,
                &raw mut values,
                &raw mut nulls,
                &raw mut count,
            );
            let count = usize::try_from(count).expect("a count");
            let element = |it| String::read(*values.add(it), *nulls.add(it));
            Some((0..count).map(|it| element(it).expect("no NULL in an array of names")).collect())
        }
    }
}

/// A statement for PostgreSQL to parse.
pub fn statement(sql: &str) -> CString {
    refuse_if_mangled(sql);
    CString::new(sql).expect("SQL text has no NUL")
}

/// A text for people to read, as it can be stored in any database.
pub fn shown(text: &str) -> String {
    if is_utf8() {
        return text.to_owned();
    }
    text.chars().map(|it| if it.is_ascii() { it } else { '?' }).collect()
}

/// Whether the database can hold every text that Rust can, and no other.
fn is_utf8() -> bool {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::GetDatabaseEncoding() == pg_sys::pg_enc::PG_UTF8 as i32 }
}

fn refuse_if_mangled(text: &str) {
    if !is_utf8() && text.contains(char::REPLACEMENT_CHARACTER) {
        ErrorReport::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "pg_stream cannot use names or texts that are not in ASCII in a database whose encoding is not UTF8",
            "statement",
        )
        .set_detail("The values that are stored in tables may be anything.")
        .set_hint("Give the names in ASCII, and the texts as values of a table, or use a database whose encoding is UTF8.")
        .report(pgrx::PgLogLevel::ERROR);
    }
}

/// A text that a user has given to one of our functions.
pub struct Argument(String);

impl std::ops::Deref for Argument {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

// SAFETY: a text is asked for, and what is read is one.
unsafe impl<'fcx> ArgAbi<'fcx> for Argument {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: PostgreSQL passes what the function was declared with.
        let text = unsafe { arg.unbox_arg_using_from_datum::<Self>() };
        text.expect("functions that take no NULL are strict")
    }
}

impl FromDatum for Argument {
    unsafe fn from_polymorphic_datum(datum: Datum, is_null: bool, _type: Oid) -> Option<Self> {
        // SAFETY: by the caller's promise.
        let text = unsafe { String::read(datum, is_null) }?;
        refuse_if_mangled(&text);
        Some(Self(text))
    }
}

// SAFETY: it is PostgreSQL's text.
unsafe impl SqlTranslatable for Argument {
    const TYPE_IDENT: &'static str = String::TYPE_IDENT;
    const TYPE_ORIGIN: TypeOrigin = String::TYPE_ORIGIN;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = String::ARGUMENT_SQL;
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> = String::RETURN_SQL;
}
