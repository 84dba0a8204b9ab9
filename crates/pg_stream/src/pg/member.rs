//! Tables that belong to the extension as if its script had created them: change buffers and hidden
//! state. So no dump has them, and nobody drops them by mistake.
//!
//! Such a table must not depend on anything that is dropped by itself: PostgreSQL would want to drop
//! the extension with it. Names are quoted.

use std::ffi::{c_int, c_void};

use pgrx::pg_sys::{self, Oid};

use super::{event::OwnCommands, name, source::command_done, spi};

/// Makes a table belong to the extension. Nobody but its owner has privileges on it, whatever default privileges
/// say.
pub fn adopt(table: &str) {
    let _own = OwnCommands::begin();
    revoke_default_privileges(name::resolve(table));
    spi::run(&format!("ALTER EXTENSION pg_stream ADD TABLE {table}"), &[], |_| {});
    command_done();
}

/// At the end of CREATE EXTENSION.
#[pgrx::pg_extern(sql = false)]
fn protect_catalog() {
    revoke_default_privileges(None);
}

/// Takes away what default privileges have given to others than the owner.
pub fn revoke_default_privileges(relation: Option<Oid>) {
    let mut commands: Vec<String> = Vec::new();
    spi::run(include_str!("default_privileges.sql"), &[relation.into()], |row| {
        commands.extend(row.get::<String>(0));
    });
    commands.iter().for_each(|it| _ = spi::run(it, &[], |_| {}));
}

/// Makes a table that belongs to the extension one that can be dropped.
pub fn release(table: &str) {
    let _own = OwnCommands::begin();
    if !is_member(table) {
        return;
    }
    spi::run(&format!("ALTER EXTENSION pg_stream DROP TABLE {table}"), &[], |_| {});
    command_done();
}

/// Drops a table that belongs to the extension. A view that somebody has made on it goes, too: else he
/// could keep others from dropping what is theirs.
pub fn drop_table(table: &str) {
    let _own = OwnCommands::begin();
    release(table);
    spi::run(&format!("DROP TABLE {table} CASCADE"), &[], |_| {});
    command_done();
}

fn is_member(table: &str) -> bool {
    name::resolve(table).is_some_and(is_own)
}

/// Whether a table belongs to the extension.
pub fn is_own(table: Oid) -> bool {
    // SAFETY: a look-up by OID.
    let owner = unsafe { pg_sys::getExtensionOfObject(pg_sys::RelationRelationId, table) };
    extension().is_some_and(|it| it == owner)
}

/// The extension, if the database has it, and not only the server its library. In a transaction.
pub fn extension() -> Option<Oid> {
    // SAFETY: a look-up in a catalog.
    let found = unsafe { pg_sys::get_extension_oid(c"pg_stream".as_ptr(), true) };
    (found != Oid::INVALID).then_some(found)
}

static mut NEXT: pg_sys::object_access_hook_type = None;

/// Whatever comes to be dropped: the extension with all stream tables is not, on the way, by others
/// than its owner. To be called once, when the library is loaded.
pub fn protect_extension() {
    // SAFETY: libraries are loaded while the process has one thread.
    unsafe {
        NEXT = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(object_accessed);
    }
}

/// Holds nothing that would have to be dropped when an error jumps over it.
unsafe extern "C-unwind" fn object_accessed(
    access: pg_sys::ObjectAccessType::Type,
    class: Oid,
    object: Oid,
    part: c_int,
    argument: *mut c_void,
) {
    // SAFETY: the arguments are passed on as they came.
    unsafe {
        if let Some(next) = NEXT {
            next(access, class, object, part, argument);
        }
    }
    if access == pg_sys::ObjectAccessType::OAT_DROP && class == pg_sys::ExtensionRelationId {
        before_drop(object);
    }
}

#[pgrx::pg_guard]
extern "C-unwind" fn before_drop(dropped: Oid) {
    // SAFETY: a look-up by OID, and the error that PostgreSQL raises for DROP EXTENSION.
    unsafe {
        if extension() == Some(dropped)
            && !pg_sys::object_ownercheck(pg_sys::ExtensionRelationId, dropped, pg_sys::GetUserId())
        {
            pg_sys::aclcheck_error(
                pg_sys::AclResult::ACLCHECK_NOT_OWNER,
                pg_sys::ObjectType::OBJECT_EXTENSION,
                c"pg_stream".as_ptr(),
            );
        }
    }
}
