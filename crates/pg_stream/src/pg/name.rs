//! Names as users write them, roles and ownership.

use pgrx::pg_sys::{self, Oid};

use crate::pg::{relation, spi, text};

/// Where a new relation would go.
pub struct Target {
    pub schema: String,
    pub name: String,
    /// Whether a relation of that name is there already.
    pub is_taken: bool,
}

/// Reads `text` as `regclass` does, for a relation to be created by the current role, which must
/// have the privilege to do so.
pub fn creation_target(text: &str) -> Target {
    let range = range_var(text);
    let mut existing = Oid::INVALID;
    // SAFETY: the range variable was just made; a missing schema or privilege is an ERROR.
    unsafe {
        let schema = pg_sys::RangeVarGetAndCheckCreationNamespace(
            range,
            pg_sys::NoLock as i32,
            &raw mut existing,
        );
        if pg_sys::isTempOrTempToastNamespace(schema) {
            pgrx::ereport!(
                ERROR,
                pgrx::PgSqlErrorCode::ERRCODE_INVALID_TABLE_DEFINITION,
                "stream tables cannot be temporary"
            );
        }
        Target {
            schema: relation::text(pg_sys::get_namespace_name(schema)),
            name: relation::text((*range).relname),
            is_taken: existing != Oid::INVALID,
        }
    }
}

/// The relation that `text` names, as `regclass` reads it.
pub fn resolve(text: &str) -> Option<Oid> {
    let range = range_var(text);
    // SAFETY: the range variable was just made.
    let found = unsafe {
        pg_sys::RangeVarGetRelidExtended(
            range,
            pg_sys::NoLock as i32,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            std::ptr::null_mut(),
        )
    };
    (found != Oid::INVALID).then_some(found)
}

/// The schema and the name of a relation that need not exist; without a schema, the current one.
pub fn parts(text: &str) -> (Option<String>, String) {
    let range = range_var(text);
    // SAFETY: the range variable was just made; its schema may be missing.
    let (schema, name) = unsafe {
        let schema = (*range).schemaname;
        ((!schema.is_null()).then(|| relation::text(schema)), relation::text((*range).relname))
    };
    (schema.or_else(|| spi::get_one("SELECT pg_catalog.current_schema()::text", &[])), name)
}

fn range_var(text: &str) -> *mut pg_sys::RangeVar {
    let text = text::statement(text);
    // SAFETY: both copy what they need; a malformed name is an ERROR.
    unsafe {
        let list = pg_sys::stringToQualifiedNameList(text.as_ptr(), std::ptr::null_mut());
        pg_sys::makeRangeVarFromNameList(list)
    }
}

/// The name of a role that exists, quoted.
pub fn role(role: Oid) -> String {
    // SAFETY: look-ups that give a string, or an ERROR.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, false);
        relation::text(pg_sys::quote_identifier(name))
    }
}

/// The role that privileges are checked for.
pub fn current_role() -> Oid {
    // SAFETY: reads a variable of this backend.
    unsafe { pg_sys::GetUserId() }
}

/// The name of a role that exists.
pub fn of_role(role: Oid) -> String {
    // SAFETY: a syscache look-up; an ERROR if there is no such role.
    unsafe { relation::text(pg_sys::GetUserNameFromId(role, false)) }
}

/// Whether the role owns the relation, by itself, by membership, or as a superuser.
pub fn is_owned_by(relation: Oid, role: Oid) -> bool {
    // SAFETY: a syscache look-up; the caller knows that the relation exists.
    unsafe { pg_sys::object_ownercheck(pg_sys::RelationRelationId, relation, role) }
}

/// Makes all sessions forget what they cached about the relation, from commit on.
pub fn invalidate(relation: Oid) {
    // SAFETY: queues a message; the relation exists.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) };
}
