//! From trees back to SQL text, in a form that means the same in any session.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;

use super::node::{Node, Query, text};

/// Settings that decide what a text means or how a literal is written.
const PORTABLE: [(&CStr, &CStr); 10] = [
    STANDARD_STRINGS,
    PLAIN_NAMES,
    ARRAY_NULLS,
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"extra_float_digits", c"3"),
    (c"DateStyle", c"ISO, YMD"),
    (c"TimeZone", c"UTC"),
    (c"IntervalStyle", c"postgres"),
    (c"bytea_output", c"hex"),
    (c"xmloption", c"content"),
];

const STANDARD_STRINGS: (&CStr, &CStr) = (c"standard_conforming_strings", c"on");
const PLAIN_NAMES: (&CStr, &CStr) = (c"quote_all_identifiers", c"off");
const ARRAY_NULLS: (&CStr, &CStr) = (c"array_nulls", c"on");

/// While this lives, settings are such that a text made now means the same in any session with the
/// same search path that has `standard_conforming_strings` on.
pub struct PortableSettings {
    level: i32,
}

impl PortableSettings {
    /// Sets them until the value is dropped.
    pub fn enter() -> Self {
        // SAFETY: the level is closed in `drop`; PostgreSQL closes it when the transaction ends
        // with an error.
        let guard = Self { level: unsafe { pg_sys::NewGUCNestLevel() } };
        PORTABLE.iter().for_each(set_locally);
        guard
    }
}

/// Whether NULL stands for a null value in the text of an array.
pub fn reads_nulls() -> bool {
    // SAFETY: reads a setting.
    unsafe { pg_sys::Array_nulls }
}

/// Views may be read: the hidden ones, and those that queries read.
const READABLE_VIEWS: (&CStr, &CStr) = (c"restrict_nonsystem_relation_kind", c"");

/// In the current nest level of settings, texts are read and written as ours are, and mean the same.
pub fn use_standard_texts() {
    // SAFETY: reads settings.
    let (is_standard, quotes_all, has_nulls, restricted) = unsafe {
        (
            pg_sys::standard_conforming_strings,
            pg_sys::quote_all_identifiers,
            pg_sys::Array_nulls,
            pg_sys::restrict_nonsystem_relation_kind,
        )
    };
    if restricted != 0 {
        set_locally(&READABLE_VIEWS);
    }
    if !is_standard {
        set_locally(&STANDARD_STRINGS);
    }
    if quotes_all {
        set_locally(&PLAIN_NAMES);
    }
    if !has_nulls {
        set_locally(&ARRAY_NULLS);
    }
}

fn set_locally((name, value): &(&CStr, &CStr)) {
    // SAFETY: both are C strings; the action is local to the current nest level.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
    }
}

impl Drop for PortableSettings {
    fn drop(&mut self) {
        // SAFETY: the level was opened by `set`, and levels are closed in order.
        unsafe { pg_sys::AtEOXact_GUC(true, self.level) };
    }
}

/// The text of an expression whose columns are inputs; see [`super::node::input`].
/// Call it under [`PortableSettings`].
pub fn expression(node: Node<'_>) -> String {
    // SAFETY: without Vars the deparser needs no context.
    unsafe {
        text(pg_sys::deparse_expression(node.as_ptr(), std::ptr::null_mut(), false, true))
            .unwrap_or_default()
    }
}

/// The text of a query, with every name qualified.
pub fn query(query: Query<'_>) -> String {
    let _settings = PortableSettings::enter();
    // SAFETY: the deparser may scribble on the tree, so it gets a copy.
    unsafe {
        let copy = pg_sys::copyObjectImpl(query.node().as_ptr());
        text(pg_sys::pg_get_querydef(copy.cast(), false)).unwrap_or_default()
    }
}

/// An identifier, quoted where it needs to be.
pub fn quote(name: &str) -> String {
    let name = CString::new(name).unwrap_or_default();
    // SAFETY: a C string in, a C string out.
    unsafe { text(pg_sys::quote_identifier(name.as_ptr())).unwrap_or_default() }
}
