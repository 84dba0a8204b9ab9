//! Functions, views, types and other things that a query uses, and that are given another meaning.

use pgrx::pg_sys::{Oid, panic::ErrorReport};

use crate::{
    ddl::outdate,
    pg::{
        event::{Class, Command},
        lock::Lock,
        source, spi, types,
    },
};

/// Whatever reads `command`'s object, through views, operators, aggregates or types, is rebuilt.
pub fn changed(command: &Command) -> Result<(), ErrorReport> {
    outdate_all(&readers(command.class, &[command.object]), command)
}

/// After a command about a table: when it was about columns, the value of a row is another one. That of
/// a column is not, so whoever reads only columns goes on.
pub fn columns_changed(table: Oid, command: &Command) -> Result<(), ErrorReport> {
    let members = source::members(table, Lock::None);
    let mut row_types = Vec::new();
    spi::ask(include_str!("changed_row_types.sql"), &[members.clone().into()], |row| {
        row_types.extend(row.get::<Oid>(0));
    });
    if row_types.is_empty() {
        return Ok(());
    }
    outdate_all(&readers(Class::of(types::CATALOG), &row_types), command)?;
    let mut rules = Vec::new();
    spi::ask(include_str!("whole_row_rules.sql"), &[members.into(), row_types.into()], |row| {
        rules.extend(row.get::<Oid>(0))
    });
    outdate_all(&readers(Class::Rule, &rules), command)
}

fn readers(class: Class, objects: &[Oid]) -> Vec<i64> {
    let mut readers = Vec::new();
    spi::ask(include_str!("readers.sql"), &[class.oid().into(), objects.to_vec().into()], |row| {
        readers.extend(row.get::<i64>(0))
    });
    readers
}

fn outdate_all(readers: &[i64], command: &Command) -> Result<(), ErrorReport> {
    outdate::outdate_all(readers, &format!("{} was changed", command.identity))
}
