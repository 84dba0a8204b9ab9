//! Security labels: what belongs to a table wherever a dump takes it, and only its owner can set.

use std::{
    ffi::{CStr, c_char},
    sync::OnceLock,
};

use pgrx::{
    PgSqlErrorCode,
    pg_sys::{self, Oid, panic::ErrorReport},
};

use super::{member, source::command_done, spi, text};

const PROVIDER: &CStr = c"pg_stream";

type Check = fn(Oid, Option<&str>) -> Result<(), ErrorReport>;

static CHECK: OnceLock<Check> = OnceLock::new();

/// Makes the labels of pg_stream known to this process; `check` is asked before somebody sets the one of
/// a relation, or removes it.
pub fn define(check: Check) {
    CHECK.get_or_init(|| check);
    // SAFETY: the name is static; the function has the signature that a provider's must have.
    unsafe { pg_sys::register_label_provider(PROVIDER.as_ptr(), Some(before_change)) };
}

/// PostgreSQL has checked that the user owns the object.
///
/// # Safety
///
/// PostgreSQL calls it with an object that exists, and a label or NULL.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn before_change(
    object: *const pg_sys::ObjectAddress,
    label: *const c_char,
) {
    // SAFETY: as promised.
    let (object, label) =
        unsafe { (&*object, (!label.is_null()).then(|| CStr::from_ptr(label).to_string_lossy())) };
    let is_relation = object.classId == pg_sys::RelationRelationId && object.objectSubId == 0;
    let result = if member::extension().is_none() {
        // It is just a text.
        Ok(())
    } else if is_relation {
        CHECK.get().map_or(Ok(()), |check| check(object.objectId, label.as_deref()))
    } else {
        Err(ErrorReport::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "pg_stream has labels for tables only",
            "before_change",
        ))
    };
    if let Err(report) = result {
        report.report(pgrx::PgLogLevel::ERROR);
    }
}

/// Writes the label of a relation, unchecked.
pub fn set(relation: Oid, text: &str) {
    let text = text::statement(text);
    let address = pg_sys::ObjectAddress {
        classId: pg_sys::RelationRelationId,
        objectId: relation,
        objectSubId: 0,
    };
    // SAFETY: the relation exists; the texts are copied.
    unsafe { pg_sys::SetSecurityLabel(&raw const address, PROVIDER.as_ptr(), text.as_ptr()) };
    command_done();
}

/// The label of a relation. Call it under the superuser's identity.
pub fn of(relation: Oid) -> Option<String> {
    let mut label = None;
    spi::ask(
        "SELECT label FROM pg_catalog.pg_seclabel \
         WHERE objoid = $1 AND classoid = 'pg_catalog.pg_class'::pg_catalog.regclass \
           AND objsubid = 0 AND provider = 'pg_stream'",
        &[relation.into()],
        |row| label = row.get(0),
    );
    label
}
