//! Other types for columns that queries use.
//!
//! PostgreSQL refuses that for a column which a view reads, and the queries of stream tables are
//! hidden views. So the hidden views are taken away before the command and made again, from their
//! text, after it; the columns of the stream tables follow. Where a query does not work with the new
//! types, or something of a user's depends on the old ones, the command is refused.
//!
//! PostgreSQL's reason is that a query must go on to mean what its owner made it mean: the names in a text
//! can stand for other functions now, which run as the owner of the stream table. So those are refused, and
//! types, which can have code, too, that belong to somebody who could not run anything as that owner before.

use std::cell::RefCell;

use pgrx::{
    PgSqlErrorCode,
    pg_sys::{Oid, panic::ErrorReport},
};
use pgstream_core::{dag::Dag, mode::RefreshMode};
use pgstream_ivm::sql::{quote, quote_qualified};

use crate::{
    catalog::{self, StreamTable},
    ddl::{outdate, replaced},
    error::{Error, rephrased},
    lower,
    pg::{
        alter,
        event::{Command as Altered, OwnCommands, TypeChange},
        lock::{self, Lock},
        name, relation,
        security::Identity,
        source, spi,
        subtransaction::Failure,
    },
};

/// A hidden view that was taken away.
struct Removed {
    stream_table: StreamTable,
    view: Oid,
    text: String,
    uses: Uses,
    /// It is held as well.
    text_search: Option<Oid>,
}

/// What `uses.sql` finds, column by column.
#[derive(Default)]
struct Uses {
    catalogs: Vec<Oid>,
    objects: Vec<Oid>,
    tables: Vec<Oid>,
    columns: Vec<i32>,
}

impl Uses {
    fn of(view: Oid, table: Oid) -> Self {
        let mut uses = Self::default();
        spi::ask(include_str!("uses.sql"), &[view.into(), table.into()], |row| {
            uses.catalogs.extend(row.get::<Oid>(0));
            uses.objects.extend(row.get::<Oid>(1));
            uses.tables.extend(row.get::<Oid>(2));
            uses.columns.extend(row.get::<i32>(3));
        });
        uses
    }
}

/// The hidden views that were taken away for a command, each after those that it reads.
struct Command {
    table: Oid,
    removed: Vec<Removed>,
}

thread_local! {
    /// Several when what computes the new values alters other tables. The views of an aborted command
    /// are there again.
    static COMMANDS: RefCell<Vec<Command>> = const { RefCell::new(Vec::new()) };
}

/// Before the command: takes away the hidden views that read the columns.
pub fn before(change: TypeChange) -> Result<(), ErrorReport> {
    let _superuser = Identity::superuser();
    let in_progress = |it: &Command| it.removed.iter().any(|it| !relation::exists(it.view));
    COMMANDS.with_borrow_mut(|commands| commands.retain(in_progress));
    let tables = typed_tables(change.table);
    let members: Vec<Oid> =
        tables.iter().flat_map(|table| source::members(*table, Lock::None)).collect();
    let affected = readers(&members, change.columns, Effect::OtherType);
    if affected.is_empty() {
        return Ok(());
    }
    // As a refresh does it: first what is read, then the query.
    tables.iter().for_each(|table| lock::relation(*table, Lock::AccessExclusive));
    // PostgreSQL refuses to drop what these read, or drops the views as well, before it looks at types.
    let losers = readers(&members, change.dropped, Effect::Dropped { from: &tables });
    let mut removed = Vec::new();
    for stream_table in with_readers(&affected)?.into_iter().filter(|it| !losers.contains(&it.id)) {
        let Some(view) = stream_table.view.filter(|it| relation::exists(*it)) else { continue };
        let text = catalog::query_text(view).expect("a view has a query");
        let uses = Uses::of(view, stream_table.relation);
        let text_search = relation::held_text_search(view);
        removed.push(Removed { stream_table, view, text, uses, text_search });
    }
    let _own = OwnCommands::begin();
    for it in removed.iter().rev() {
        let (schema, name) = relation::name(it.view);
        spi::run(&format!("DROP VIEW {}", quote_qualified(&schema, &name)), &[], |_| {});
    }
    let command = Command { table: change.table, removed };
    COMMANDS.with_borrow_mut(|commands| commands.push(command));
    Ok(())
}

/// What happens to columns.
enum Effect<'a> {
    /// A row that is used as a whole counts as all of them.
    OtherType,
    /// A child keeps what it has of its own, or from another parent.
    Dropped { from: &'a [Oid] },
}

/// The stream tables whose queries read columns of these names of these tables.
fn readers(tables: &[Oid], columns: Vec<String>, effect: Effect<'_>) -> Vec<i64> {
    let dropped_from = match effect {
        Effect::OtherType => None,
        Effect::Dropped { from } => Some(from.to_vec()),
    };
    let mut readers = Vec::new();
    let arguments = [tables.to_vec().into(), columns.into(), dropped_from.into()];
    spi::ask(include_str!("column_readers.sql"), &arguments, |row| {
        readers.extend(row.get::<i64>(0))
    });
    readers
}

/// The tables whose columns a command about this one alters: of a composite type those that have it.
fn typed_tables(table: Oid) -> Vec<Oid> {
    let mut tables = Vec::new();
    spi::ask(
        "SELECT t.oid FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_class AS t \
         ON t.oid = c.oid AND c.relkind <> 'c' OR t.reloftype = c.reltype AND c.relkind = 'c' \
         WHERE c.oid = $1 ORDER BY t.oid",
        &[table.into()],
        |row| tables.extend(row.get::<Oid>(0)),
    );
    tables
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

/// After a command about `tables`: makes the hidden views again.
pub fn finish(tables: &[Oid]) -> Result<(), ErrorReport> {
    let is_finished = |it: &mut Command| tables.contains(&it.table);
    let finished: Vec<Command> =
        COMMANDS.with_borrow_mut(|commands| commands.extract_if(.., is_finished).collect());
    let removed = finished.into_iter().flat_map(|it| it.removed);
    // After an abort they are there.
    for it in removed.filter(|it| !relation::exists(it.view)) {
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
        let owner = relation::owner(relation);
        // Before, too, for to analyze a query is to evaluate parts of it.
        refuse_foreign_uses(removed, None)?;
        let view = or_refuse(&name, || catalog::create_view(id, &removed.text, owner))?;
        refuse_foreign_uses(removed, Some(view))?;
        relation::belongs_to(view, relation);
        relation::hold_text_search(view, removed.text_search);
        catalog::set_view(id, view);
        if or_refuse_rows(&name, || follow_types(relation, view, owner)) {
            let command = Altered::of_table(relation, format!("stream table {name}"));
            replaced::columns_changed(relation, &command)?;
        }
        view
    };
    if removed.stream_table.mode == RefreshMode::Differential {
        lower::lower_view(view).map_err(Error::from)?;
    }
    outdate::outdate(id, "the type of a column was changed")
}

/// Refuses what would run code of somebody as the owner of the stream table who could not do that before: with
/// a view, what its query uses now; without one, what it could come to use.
fn refuse_foreign_uses(removed: &Removed, view: Option<Oid>) -> Result<(), ErrorReport> {
    let StreamTable { relation, .. } = removed.stream_table;
    let Uses { catalogs, objects, tables, columns } = &removed.uses;
    let owner = relation::owner(relation);
    let mut found = None;
    spi::ask(
        include_str!("foreign_use.sql"),
        &[
            catalogs.clone().into(),
            objects.clone().into(),
            tables.clone().into(),
            columns.clone().into(),
            relation.into(),
            view.into(),
            owner.into(),
        ],
        |row| found = row.get::<String>(0).zip(row.get::<String>(1)),
    );
    let Some((object, role)) = found else { return Ok(()) };
    let owner = name::of_role(owner);
    let detail =
        format!("It could come to use {object} of role \"{role}\" as its owner, role \"{owner}\".");
    Err(refusal(&relation::display_name(relation), PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED)
        .set_detail(detail)
        .set_hint(CREATE_AGAIN))
}

/// Gives the columns of a stream table the types of its query. Conditions and indexes of the owner's are
/// evaluated for that. Whether anything was to be done.
fn follow_types(table: Oid, view: Oid, owner: Oid) -> bool {
    let mut changes = Vec::new();
    spi::ask(include_str!("new_types.sql"), &[table.into(), view.into()], |row| {
        let (Some(column), Some(ty)) = (row.get::<String>(0), row.get::<String>(1)) else { return };
        let collation = relation::collation_clause(row.get(2).unwrap_or(Oid::INVALID));
        let column = quote(&column);
        changes.push(format!("ALTER COLUMN {column} TYPE {ty}{collation} USING {column}::{ty}"));
    });
    if !changes.is_empty() {
        let _owner = Identity::restricted(owner);
        alter::table(table, &changes.join(", "));
    }
    !changes.is_empty()
}

/// Says whose query stands in the way when `work` fails.
fn or_refuse<T>(stream_table: &str, work: impl FnOnce() -> T) -> T {
    rephrased(work, |failure| unfit(stream_table, failure))
}

/// The same where `work` reads rows of the stream table, which who alters what it reads need not be
/// allowed to see: messages that can show their values are left out.
fn or_refuse_rows<T>(stream_table: &str, work: impl FnOnce() -> T) -> T {
    rephrased(work, |failure| {
        // Others of these classes come also from what reads values of types such as regclass.
        let tells_no_values = matches!(
            failure.code,
            PgSqlErrorCode::ERRCODE_CANNOT_COERCE
                | PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH
                | PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE
                | PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED
                | PgSqlErrorCode::ERRCODE_INVALID_OBJECT_DEFINITION
        );
        if tells_no_values {
            return unfit(stream_table, failure);
        }
        refusal(stream_table, failure.code)
            .set_detail("One of its rows cannot be converted to the new type.")
            .set_hint(CREATE_AGAIN)
    })
}

fn unfit(stream_table: &str, Failure { code, message }: &Failure) -> ErrorReport {
    let problem = match *code {
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE => "Its owner lacks a right",
        _ => "Its query does not go with the new type",
    };
    refusal(stream_table, *code).set_detail(format!("{problem}: {message}."))
}

fn refusal(stream_table: &str, code: PgSqlErrorCode) -> ErrorReport {
    let text = format!("cannot alter type of a column used by stream table \"{stream_table}\"");
    ErrorReport::new(code, text, "column_type")
}

const CREATE_AGAIN: &str = "Drop the stream table, and create it again after that.";
