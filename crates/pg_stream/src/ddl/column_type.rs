//! Other types for columns that queries use.
//!
//! PostgreSQL refuses that for a column which a view reads, and the queries of stream tables are
//! hidden views. So the hidden views are taken away before the command and made again, from their
//! text, after it; the columns of the stream tables follow. Where a query does not work with the new
//! types, or something of a user's depends on the old ones, the command is refused.

use std::cell::RefCell;

use pgrx::pg_sys::{Oid, panic::ErrorReport};
use pgstream_core::{dag::Dag, mode::RefreshMode};
use pgstream_ivm::sql::{quote, quote_qualified};

use crate::{
    catalog::{self, StreamTable},
    ddl::outdate,
    error::{Error, rephrased},
    lower,
    pg::{
        event::{OwnCommands, TypeChange},
        lock::{self, Lock},
        relation,
        security::Identity,
        source, spi,
    },
};

/// A hidden view that was taken away.
struct Removed {
    stream_table: StreamTable,
    view: Oid,
    text: String,
}

thread_local! {
    /// Each after those that it reads. What an aborted command left here is there again.
    static REMOVED: RefCell<Vec<Removed>> = const { RefCell::new(Vec::new()) };
}

/// Before the command: takes away the hidden views that read the columns.
pub fn before(change: TypeChange) -> Result<(), ErrorReport> {
    REMOVED.take();
    let _superuser = Identity::superuser();
    let members = source::members(change.table, Lock::None);
    let mut affected = Vec::new();
    spi::ask(include_str!("column_readers.sql"), &[members.into(), change.columns.into()], |row| {
        affected.extend(row.get::<i64>(0))
    });
    if affected.is_empty() {
        return Ok(());
    }
    // As a refresh does it: first what is read, then the query.
    lock::relation(change.table, Lock::AccessExclusive);
    let mut removed = Vec::new();
    for stream_table in with_readers(&affected)? {
        let Some(view) = stream_table.view.filter(|it| relation::exists(*it)) else { continue };
        let text = catalog::query_text(view).expect("a view has a query");
        removed.push(Removed { stream_table, view, text });
    }
    let _own = OwnCommands::begin();
    for it in removed.iter().rev() {
        let (schema, name) = relation::name(it.view);
        spi::run(&format!("DROP VIEW {}", quote_qualified(&schema, &name)), &[], |_| {});
    }
    REMOVED.replace(removed);
    Ok(())
}

/// These stream tables and all that read them, each after those that it reads.
fn with_readers(ids: &[i64]) -> Result<Vec<StreamTable>, ErrorReport> {
    let mut dag: Dag<i64> = Dag::new();
    let mut open = ids.to_vec();
    let mut known = Vec::new();
    while let Some(id) = open.pop() {
        if known.contains(&id) {
            continue;
        }
        known.push(id);
        dag.add(id);
        spi::ask(include_str!("direct_readers.sql"), &[id.into()], |row| {
            if let Some(reader) = row.get::<i64>(0) {
                dag.add_edge(reader, id);
                open.push(reader);
            }
        });
    }
    let order = dag.order().map_err(|_| Error::Undefined("a cycle of stream tables".to_owned()))?;
    Ok(order.into_iter().filter_map(catalog::by_id).collect())
}

/// After the command: makes the hidden views again.
pub fn finish() -> Result<(), ErrorReport> {
    let removed = REMOVED.take();
    // After an abort they are there.
    for it in removed.into_iter().filter(|it| !relation::exists(it.view)) {
        let still_lacks_it = catalog::by_id(it.stream_table.id)
            .is_some_and(|now| now.view == Some(it.view) && relation::exists(now.relation));
        if still_lacks_it {
            restore(&it)?;
        }
    }
    Ok(())
}

fn restore(removed: &Removed) -> Result<(), ErrorReport> {
    let StreamTable { id, relation, .. } = removed.stream_table;
    let name = relation::display_name(relation);
    let view = {
        let _own = OwnCommands::begin();
        let (owner, (schema, _)) = (relation::owner(relation), relation::name(relation));
        let view = or_refuse(&name, || catalog::create_view(id, &removed.text, owner, &schema))?;
        relation::belongs_to(view, relation);
        catalog::set_view(id, view);
        or_refuse(&name, || follow_types(relation, view));
        view
    };
    if removed.stream_table.mode == RefreshMode::Differential {
        lower::lower_view(view).map_err(Error::from)?;
    }
    outdate::outdate(id, "the type of a column was changed")
}

/// Gives the columns of a stream table the types of its query.
fn follow_types(table: Oid, view: Oid) {
    let mut changes = Vec::new();
    spi::ask(include_str!("new_types.sql"), &[table.into(), view.into()], |row| {
        let (Some(column), Some(ty)) = (row.get::<String>(0), row.get::<String>(1)) else { return };
        let collation = relation::collation_clause(row.get(2).unwrap_or(Oid::INVALID));
        let column = quote(&column);
        changes.push(format!("ALTER COLUMN {column} TYPE {ty}{collation} USING {column}::{ty}"));
    });
    if !changes.is_empty() {
        let (schema, name) = relation::name(table);
        let table = quote_qualified(&schema, &name);
        spi::run(&format!("ALTER TABLE {table} {}", changes.join(", ")), &[], |_| {});
    }
}

/// Says whose query stands in the way when `work` fails.
fn or_refuse<T>(stream_table: &str, work: impl FnOnce() -> T) -> T {
    rephrased(work, |code, message| {
        let text = format!("cannot alter type of a column used by stream table \"{stream_table}\"");
        ErrorReport::new(code, text, "column_type")
            .set_detail(format!("Its query does not go with the new type: {message}."))
    })
}
