//! Reactions to DDL, as event triggers.
//!
//! They run for every command of certain kinds in the database, so each asks one cheap question
//! first: does this concern a stream table? What they read is what is committed now, and what they
//! write is not isolated from others, in whatever isolation level the command runs: as PostgreSQL
//! does with its own catalog.
//!
//! [`source`] is about the tables that stream tables read, [`replaced`] about whatever else their
//! queries use, [`stream_table`] about the stream tables themselves, [`column_type`] about columns
//! that a query uses and that get another type, [`drop`] about all that goes,
//! and [`missed`] about what event triggers did not tell.

mod column_type;
pub mod drop;
pub mod missed;
mod outdate;
mod replaced;
mod source;
mod stream_table;

use pgrx::{
    pg_sys::{Oid, panic::ErrorReport},
    prelude::*,
};

pub use self::stream_table::misfit;
use crate::{
    catalog,
    pg::{
        dump,
        event::{self, Class, Command, Start},
        relation,
        security::Identity,
        spi, types,
    },
    restore,
};

/// Before a command for which something has to be out of the way.
pub fn before(start: Start) -> Result<(), ErrorReport> {
    match start {
        Start::TypeChange(change) => column_type::before(change),
        Start::DropOwned(roles) => {
            let _superuser = Identity::superuser();
            drop::release_stages(&roles);
            Ok(())
        }
        Start::ReassignOwned(roles) => {
            let _superuser = Identity::superuser();
            stream_table::owners_change(&roles)
        }
    }
}

/// The event trigger `pgstream_on_ddl_end`.
#[pg_extern(sql = false)]
fn on_ddl_end() -> Result<(), ErrorReport> {
    if event::is_own() {
        return Ok(());
    }
    // It shows by the search path.
    let is_restoring = dump::is_restoring();
    let _superuser = Identity::superuser();
    let commands = event::commands();
    let of_relations = commands.iter().filter(|it| it.class == Class::Relation);
    column_type::finish(&of_relations.map(|it| it.object).collect::<Vec<_>>())?;
    let mut seen: Vec<(Class, Oid)> = Vec::new();
    for command in commands {
        if !seen.contains(&(command.class, command.object)) {
            seen.push((command.class, command.object));
            react(&command, is_restoring)?;
        }
    }
    Ok(())
}

fn react(command: &Command, is_restoring: bool) -> Result<(), ErrorReport> {
    if command.class == Class::Relation && command.part > 0 {
        catalog::note_column_name(command.object, command.part);
    }
    if command.tag.starts_with("ALTER ") {
        restore::follow_names(command);
    }
    match command.class {
        Class::Relation => match relation::kind(command.object) {
            Some('v') => {
                query_changed(command.object, is_restoring)?;
                replaced::changed(command)
            }
            // A composite type.
            Some('c') => replaced::changed(command),
            _ => {
                relation_changed(command.object, command)?;
                replaced::columns_changed(command.object, command)
            }
        },
        Class::Trigger => match table_of_trigger(command.object) {
            Some(table) => relation_changed(table, command),
            None => Ok(()),
        },
        Class::Rule => {
            if let Some(table) = table_of_rule(command.object) {
                stream_table::check(table)?;
                query_changed(table, is_restoring)?;
            }
            replaced::changed(command)
        }
        // No statement was made with its name.
        Class::Schema if command.tag == "CREATE SCHEMA" => Ok(()),
        // Names that statements were made with may mean something else now.
        Class::Schema | Class::Extension => {
            catalog::note_text_search_names();
            stream_table::note_all_names();
            Ok(())
        }
        Class::Other(of) => {
            if of == types::TEXT_SEARCH_CONFIGURATIONS {
                catalog::note_text_search_names();
            }
            replaced::changed(command)
        }
    }
}

/// After a command about what may be a hidden view.
fn query_changed(view: Oid, is_restoring: bool) -> Result<(), ErrorReport> {
    if is_restoring && restore::is_same_query(view) {
        return Ok(());
    }
    stream_table::check_query(view)
}

fn relation_changed(table: Oid, command: &Command) -> Result<(), ErrorReport> {
    stream_table::check(table)?;
    source::changed(table, command)
}

/// The event trigger `pgstream_on_rewrite`.
#[pg_extern(sql = false)]
fn on_table_rewrite() -> Result<(), ErrorReport> {
    if event::is_own() {
        return Ok(());
    }
    let _superuser = Identity::superuser();
    event::rewritten().map_or(Ok(()), source::rewritten)
}

/// The event trigger `pgstream_on_drop`.
#[pg_extern(sql = false)]
fn on_sql_drop() -> Result<(), ErrorReport> {
    if event::is_own() {
        return Ok(());
    }
    let is_restoring = dump::is_restoring();
    let _superuser = Identity::superuser();
    drop::dropped(&event::dropped(), is_restoring)
}

/// The event trigger `pgstream_on_trigger`, after commands that make or alter triggers. When a trigger
/// is dropped, its name is all that tells what it was, so nobody else may use ours.
#[pg_extern(sql = false)]
fn on_trigger() -> Result<(), ErrorReport> {
    let _superuser = Identity::superuser();
    let Some(name) = spi::get_one::<String>(include_str!("ddl/misnamed_trigger.sql"), &[]) else {
        return Ok(());
    };
    Err(ErrorReport::new(
        PgSqlErrorCode::ERRCODE_RESERVED_NAME,
        format!("unacceptable trigger name \"{name}\""),
        "on_trigger",
    )
    .set_detail("Names that begin with \"pg_stream_\" are those of the triggers of pg_stream."))
}

fn table_of_trigger(trigger: Oid) -> Option<Oid> {
    let mut table = None;
    spi::ask(
        "SELECT tgrelid FROM pg_catalog.pg_trigger WHERE oid = $1",
        &[trigger.into()],
        |row| table = row.get(0),
    );
    table
}

fn table_of_rule(rule: Oid) -> Option<Oid> {
    let mut table = None;
    spi::ask("SELECT ev_class FROM pg_catalog.pg_rewrite WHERE oid = $1", &[rule.into()], |row| {
        table = row.get(0)
    });
    table
}
