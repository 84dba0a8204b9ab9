//! Tables that belong to the extension as if its script had created them: change buffers and hidden
//! state. So no dump has them, and nobody drops them by mistake.
//!
//! Such a table must not depend on anything that is dropped by itself: PostgreSQL would want to drop
//! the extension with it. Names are quoted.

use pgrx::pg_sys::{self, Oid};

use super::{event::OwnCommands, name, source::command_done, spi};

/// Makes a table belong to the extension.
pub fn adopt(table: &str) {
    let _own = OwnCommands::begin();
    spi::run(&format!("ALTER EXTENSION pg_stream ADD TABLE {table}"), &[], |_| {});
    command_done();
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
