//! Functions, views, types and other things that a query uses, and that are given another meaning.

use pgrx::pg_sys::panic::ErrorReport;

use crate::{
    ddl::outdate,
    pg::{event::Command, spi},
};

/// Whatever reads `command`'s object, through views, operators, aggregates or types, is rebuilt.
pub fn changed(command: &Command) -> Result<(), ErrorReport> {
    let mut readers = Vec::new();
    spi::ask(
        include_str!("readers.sql"),
        &[command.class.oid().into(), command.object.into()],
        |row| readers.extend(row.get::<i64>(0)),
    );
    outdate::outdate_all(&readers, &format!("{} was changed", command.identity))
}
