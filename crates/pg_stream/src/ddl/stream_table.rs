//! What users may do to a stream table: rename, move and give it away, index it, put triggers and
//! policies on it. Its columns belong to its query, its rows to its refreshes.

use pgrx::{
    pg_sys::{Oid, panic::ErrorReport},
    prelude::*,
};
use pgstream_core::name::QualifiedName;
use pgstream_ivm::sql::quote_qualified;

use crate::{
    catalog::{self, StreamTable},
    ddl::{
        drop::{self, drop_stages},
        outdate,
    },
    pg::{
        event::OwnCommands,
        lock::{self, Lock},
        member, name, relation,
        source::Source,
        spi,
    },
};

const GUARD: &str = "pg_stream_guard";

/// After a command about a table or its triggers or rules: is a stream table still fit?
pub fn check(table: Oid) -> Result<(), ErrorReport> {
    if let Some(stream_table) = catalog::by_relation(table) {
        return check_stream_table(&stream_table);
    }
    if is_hidden(table) {
        let mut is_misfit = None;
        spi::ask(include_str!("hidden_misfit.sql"), &[table.into()], |row| is_misfit = row.get(0));
        return if is_misfit == Some(false) { Ok(()) } else { Err(refusal_of_hidden(table)) };
    }
    let mut related = Vec::new();
    spi::ask(include_str!("relatives.sql"), &[table.into()], |row| {
        related.extend(row.get::<Oid>(0).map(|it| (it, row.get::<String>(1))));
    });
    for (other, problem) in related {
        if is_hidden(other) {
            return Err(refusal_of_hidden(other));
        }
        if let Some(stream_table) = catalog::by_relation(other) {
            return Err(refusal(&stream_table, problem.as_deref().unwrap_or_default()));
        }
    }
    Ok(())
}

fn check_stream_table(stream_table: &StreamTable) -> Result<(), ErrorReport> {
    if let Some(problem) = misfit(stream_table.relation, stream_table.view) {
        return Err(refusal(stream_table, &problem));
    }
    let opened = Source::open(stream_table.relation, Lock::None);
    let is_off = opened.triggers().iter().any(|it| it.name == GUARD && it.enabled != b'A');
    if is_off {
        opened.set_trigger(GUARD, b'A');
    }
    drop(opened);
    if is_off {
        // Nothing was written meanwhile, but whoever finds another version of it cannot know.
        outdate::outdate(stream_table.id, "the trigger that guards it was changed")?;
    }
    follow(stream_table)
}

/// After it was renamed, moved or given away.
pub fn follow(stream_table: &StreamTable) -> Result<(), ErrorReport> {
    follow_owner(stream_table)?;
    note_name(stream_table);
    Ok(())
}

/// No other has a table of that name.
fn note_name(stream_table: &StreamTable) {
    let (schema, name) = relation::name(stream_table.relation);
    drop::forget_missing(&QualifiedName { schema, name });
    catalog::note_name(stream_table);
}

/// What is wrong with the table of a stream table, if anything is.
pub fn misfit(table: Oid, view: Option<Oid>) -> Option<String> {
    let mut problem = None;
    spi::ask(include_str!("misfit.sql"), &[table.into(), view.into()], |row| {
        problem = row.get::<String>(0);
    });
    problem
}

/// After a command about a view: the hidden views that hold the queries belong to us.
pub fn check_query(view: Oid) -> Result<(), ErrorReport> {
    let Some(stream_table) = catalog::by_view(view) else { return Ok(()) };
    Err(refusal(&stream_table, "query"))
}

/// The tables of inner stages and the change buffers belong to the extension, wherever they are now. It
/// would be dropped with whatever they come to depend on.
fn is_hidden(table: Oid) -> bool {
    // The others are the catalog, which dumps alter.
    member::is_own(table) && relation::name(table).0 != "pgstream"
}

fn refusal_of_hidden(table: Oid) -> ErrorReport {
    let name = relation::display_name(table);
    let report = ErrorReport::new(
        PgSqlErrorCode::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
        format!("cannot alter table {name} because extension pg_stream requires it"),
        "refusal_of_hidden",
    );
    report
        .set_detail("It holds hidden state of stream tables.")
        .set_hint("Use pgstream.alter_stream_table or pgstream.drop_stream_table instead.")
}

/// What belongs to a stream table goes to its new owner, with whose rights it is refreshed.
fn follow_owner(stream_table: &StreamTable) -> Result<(), ErrorReport> {
    let Some(view) = stream_table.view.filter(|it| relation::exists(*it)) else { return Ok(()) };
    let owner = relation::owner(stream_table.relation);
    if relation::owner(view) == owner {
        return Ok(());
    }
    let _own = OwnCommands::begin();
    let role = name::role(owner);
    let (schema, view) = relation::name(view);
    spi::run(
        &format!("ALTER VIEW {} OWNER TO {role}", quote_qualified(&schema, &view)),
        &[],
        |_| {},
    );
    give_away(stream_table.id)
}

/// Hidden state is made of what the former owner could read, and the stream table shows less of it.
fn give_away(id: i64) -> Result<(), ErrorReport> {
    drop_stages(id);
    outdate::outdate(id, "it has a new owner")
}

/// Before REASSIGN OWNED, which would give away the hidden tables themselves.
pub fn owners_change(owners: &[Oid]) -> Result<(), ErrorReport> {
    let mut ids = Vec::new();
    spi::ask(
        "SELECT s.pgs_id FROM pgstream.pgs_stream_tables AS s \
         JOIN pg_catalog.pg_class AS c ON c.oid = s.pgs_relid \
         WHERE c.relowner = ANY ($1) ORDER BY s.pgs_id",
        &[owners.to_vec().into()],
        |row| ids.extend(row.get::<i64>(0)),
    );
    for stream_table in ids.into_iter().filter_map(catalog::by_id) {
        lock::relation(stream_table.relation, Lock::AccessExclusive);
        give_away(stream_table.id)?;
    }
    Ok(())
}

/// After the renaming of a schema, and the like: the catalog follows, and nobody uses statements with
/// the old names any more.
pub fn note_all_names() {
    for stream_table in catalog::all() {
        if relation::exists(stream_table.relation) {
            note_name(&stream_table);
            name::invalidate(stream_table.relation);
        }
    }
}

/// The error for what cannot be done to a stream table.
pub fn refusal(stream_table: &StreamTable, problem: &str) -> ErrorReport {
    let (what, detail, hint) = match problem {
        "columns" => (
            "cannot alter the columns of",
            "Its columns are those of its defining query.",
            "Drop it and create it with another query.",
        ),
        "foreign key" => (
            "foreign keys are not supported on",
            "A refresh does not look at them.",
            "Put foreign keys on the tables that the query reads.",
        ),
        "inheritance" => (
            "inheritance and partitioning are not supported with",
            "Its rows would no longer be those of its defining query.",
            "Use a view with UNION ALL.",
        ),
        "unlogged" => (
            "cannot make an unlogged table of",
            "A crash would empty it, although it counts as up to date.",
            "",
        ),
        "rule" => (
            "rules are not supported on",
            "They would change what a refresh writes.",
            "Use triggers, or rules on a view.",
        ),
        "guard" => (
            "cannot remove the trigger that guards",
            "Without it the rows could be changed by others than its refreshes.",
            "",
        ),
        _ => (
            "cannot alter the hidden view of",
            "It holds the defining query.",
            "Drop the stream table and create it with another query.",
        ),
    };
    let report = ErrorReport::new(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        format!("{what} stream table \"{}\"", relation::display_name(stream_table.relation)),
        "refusal",
    );
    let report = report.set_detail(detail);
    if hint.is_empty() { report } else { report.set_hint(hint) }
}
