//! What a dump brings back becomes stream tables again.
//!
//! A dump holds the stream tables as tables, their queries as the hidden views, our catalog and
//! history, and the triggers; it holds no change buffers and no hidden state. OIDs and snapshots
//! mean nothing in another database, so a row of the catalog comes in without them. It gets the new
//! OIDs, by name, as soon as the trigger that guards the stream table is there, which pg_restore
//! creates when all tables and their rows are. The next refresh rebuilds the rest: it begins to
//! capture, and computes the query anew, so what was written in between does not matter.
//!
//! A dump without data has no rows of the catalog. For it the comment of each hidden view says what
//! else there is to know of the stream table.
//!
//! pg_upgrade keeps the OIDs and copies all tables as files; only the triggers are new.

use std::collections::HashMap;

use pgrx::{datum::TimestampWithTimeZone, pg_sys::Oid, prelude::*};
use pgstream_core::{mode::RefreshMode, name::QualifiedName, schedule::Schedule};
use serde_json::Value;

use crate::{
    capture, catalog,
    pg::{
        dump,
        event::OwnCommands,
        lock::Lock,
        member, name, relation,
        security::Identity,
        source::{Source, command_done},
        spi, wake,
    },
};

/// The trigger `pg_stream_describe`, after a change of what a comment says.
#[pg_trigger(sql = false)]
fn describe_stream_table<'a>(
    trigger: &'a pgrx::PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, pgrx::datum::TryFromDatumError> {
    let _superuser = Identity::superuser();
    let id = trigger.new().and_then(|row| row.get_by_name::<i64>("pgs_id").ok().flatten());
    let mut comment = None;
    spi::run(include_str!("restore/describe.sql"), &[id.into()], |row| {
        comment = row.get::<Oid>(0).zip(row.get::<String>(1));
    });
    if let Some((view, text)) = comment {
        dump::comment(view, &text);
    }
    Ok(None::<PgHeapTuple<'a, AllocatedByRust>>)
}

/// What the comment of a hidden view says.
struct Description {
    schema: String,
    name: String,
    query: String,
    schedule: Option<String>,
    mode: RefreshMode,
    /// As in the catalog: names and values alternate.
    settings: Vec<String>,
}

impl Description {
    /// `None` for a comment that somebody else wrote: the view's owner can.
    fn parse(comment: &str) -> Option<Self> {
        let json: Value = serde_json::from_str(comment).ok()?;
        let text = |key: &str| json[key].as_str().map(str::to_owned);
        let schedule = text("schedule");
        if let Some(schedule) = &schedule {
            schedule.parse::<Schedule>().ok()?;
        }
        let settings = json["settings"].as_array()?.iter();
        Some(Self {
            schema: text("schema")?,
            name: text("name")?,
            query: text("query")?,
            schedule,
            mode: text("refresh_mode")?.parse().ok()?,
            settings: settings.filter_map(|it| it.as_str().map(str::to_owned)).collect(),
        })
    }
}

/// The trigger `pg_stream_restore`: a row of the catalog or the history comes in from a dump.
#[pg_trigger(sql = false)]
fn on_restored_row<'a>(
    trigger: &'a pgrx::PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, pgrx::datum::TryFromDatumError> {
    let _superuser = Identity::superuser();
    let Some(row) = trigger.new() else { return Ok(None) };
    let mut row = row.into_owned();
    if let Some(refresh) = row.get_by_name::<i64>("refresh_id").ok().flatten() {
        let is_new = spi::run(
            "SELECT FROM pgstream.pgs_refresh_history WHERE refresh_id = $1",
            &[refresh.into()],
            |_| {},
        ) == 0;
        return Ok(is_new.then_some(row));
    }
    let text = |column| row.get_by_name::<String>(column).ok().flatten();
    let name = QualifiedName {
        schema: text("pgs_schema").unwrap_or_default(),
        name: text("pgs_name").unwrap_or_default(),
    };
    let id = row.get_by_name::<i64>("pgs_id")?;
    let known = spi::get_one::<bool>(
        "SELECT (pgs_schema, pgs_name) = ($2, $3) FROM pgstream.pgs_stream_tables \
         WHERE pgs_id = $1 OR (pgs_schema, pgs_name) = ($2, $3) \
         ORDER BY (pgs_schema, pgs_name) = ($2, $3) DESC",
        &[id.into(), name.schema.clone().into(), name.name.clone().into()],
    );
    match known {
        None => {}
        Some(false) => {
            pgrx::ereport!(
                WARNING,
                PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
                format!("\"{name}\" is not restored as a stream table, only as a table"),
                "The database has other stream tables already, with the same numbers."
            );
            return Ok(None);
        }
        Some(true) => {
            // It came with the schema, or was there before.
            let time = |column| row.get_by_name::<TimestampWithTimeZone>(column).ok().flatten();
            spi::run(
                include_str!("restore/merge.sql"),
                &[
                    name.schema.into(),
                    name.name.into(),
                    text("status").into(),
                    text("error_message").into(),
                    row.get_by_name::<bool>("is_populated")?.into(),
                    time("data_timestamp").into(),
                    time("last_refresh_at").into(),
                    time("created_at").into(),
                ],
                |_| {},
            );
            return Ok(None);
        }
    }
    for column in ["pgs_relid", "view_relid"] {
        row.set_by_name(column, None::<Oid>)?;
    }
    for column in ["consumed", "fingerprint", "seal"] {
        row.set_by_name(column, None::<String>)?;
    }
    row.set_by_name("frontier", None::<pgrx::JsonB>)?;
    row.set_by_name("needs_reinit", true)?;
    row.set_by_name("reinit_reason", "it was restored from a dump".to_owned())?;
    Ok(Some(row))
}

/// The trigger `pg_stream_attach`: where several sessions restore, the table may be complete already.
#[pg_trigger(sql = false)]
fn after_restored_row<'a>(
    trigger: &'a pgrx::PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, pgrx::datum::TryFromDatumError> {
    let _superuser = Identity::superuser();
    let id = trigger.new().and_then(|row| row.get_by_name::<i64>("pgs_id").ok().flatten());
    let table = spi::get_one::<Oid>(
        "SELECT c.oid FROM pgstream.pgs_stream_tables AS s \
         JOIN pg_catalog.pg_namespace AS n ON n.nspname = s.pgs_schema \
         JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = s.pgs_name \
         WHERE s.pgs_id = $1 AND s.pgs_relid IS NULL",
        &[id.into()],
    );
    if let Some(table) = table.filter(|it| has_guard(*it)) {
        attach_by_name(table);
    }
    Ok(None::<PgHeapTuple<'a, AllocatedByRust>>)
}

/// The event trigger `pgstream_on_create_trigger`.
#[pg_extern(sql = false)]
fn on_create_trigger() {
    // There the catalog is empty until its files are copied.
    if dump::is_binary_upgrade() {
        return;
    }
    let mut guarded = Vec::new();
    {
        let _superuser = Identity::superuser();
        spi::run(include_str!("restore/guarded.sql"), &[], |row| guarded.extend(row.get::<Oid>(0)));
    }
    guarded.into_iter().for_each(attach);
}

/// Makes a table that was restored from a dump a stream table again, if it was one.
pub fn attach(table: Oid) {
    if dump::is_read_only() {
        return;
    }
    let _superuser = Identity::superuser();
    if has_guard(table) && !attach_by_name(table) {
        insert_described(table);
    }
}

/// Whether the table has the trigger that every stream table has.
fn has_guard(table: Oid) -> bool {
    let guard = "SELECT FROM pg_catalog.pg_trigger \
                 WHERE tgrelid = $1 AND tgfoid = 'pgstream.guard_stream_table'::pg_catalog.regproc";
    spi::run(guard, &[table.into()], |_| {}) > 0
}

/// Whether there was a row of that name without a table.
fn attach_by_name(table: Oid) -> bool {
    let mut found = None;
    spi::run(include_str!("restore/attach.sql"), &[table.into()], |row| {
        found = Some((row.get::<i64>(0).expect("the primary key"), row.get::<String>(1)));
    });
    let Some((id, give_view)) = found else { return false };
    if let Some(view) = catalog::by_id(id).and_then(|it| it.view) {
        relation::belongs_to(view, table);
    }
    if let Some(give_view) = give_view {
        // So that nobody gets to read with the privileges of another.
        let _own = OwnCommands::begin();
        spi::run(&give_view, &[], |_| {});
    }
    spi::run(
        "SELECT pg_catalog.setval('pgstream.pgs_stream_tables_pgs_id_seq', greatest(last_value, $1)) \
         FROM pgstream.pgs_stream_tables_pgs_id_seq",
        &[id.into()],
        |_| {},
    );
    name::invalidate(table);
    wake::scheduler_at_commit();
    true
}

/// Makes a row of what the comment of a hidden view says of this table, unless there is one by now.
/// The trigger on the row attaches the table.
fn insert_described(table: Oid) {
    // Rows may be coming from the dump in another session.
    spi::run("LOCK TABLE pgstream.pgs_stream_tables IN SHARE ROW EXCLUSIVE MODE", &[], |_| {});
    if attach_by_name(table) {
        return;
    }
    let (schema, name) = relation::name(table);
    let mut found = None;
    spi::run(include_str!("restore/described.sql"), &[table.into()], |row| {
        let (Some(id), Some(comment)) = (row.get::<i64>(0), row.get::<String>(1)) else { return };
        let description = Description::parse(&comment);
        let wanted = description.filter(|it| it.schema == schema && it.name == name);
        found = found.take().or(wanted.map(|it| (id, it)));
    });
    let Some((id, description)) = found else { return };
    let defaults = spi::get_one::<Vec<String>>(
        "INSERT INTO pgstream.pgs_stream_tables \
         (pgs_id, pgs_schema, pgs_name, defining_query, schedule, refresh_mode, needs_reinit) \
         VALUES ($1, $2, $3, $4, $5, $6, true) RETURNING settings",
        &[
            id.into(),
            schema.into(),
            name.into(),
            description.query.into(),
            description.schedule.into(),
            description.mode.as_str().to_owned().into(),
        ],
    );
    let settings = merged(defaults.unwrap_or_default(), &description.settings);
    spi::run(
        "UPDATE pgstream.pgs_stream_tables SET settings = $2 WHERE pgs_id = $1",
        &[id.into(), settings.into()],
        |_| {},
    );
}

/// `defaults` with the values that `described` has for the same names. Other names are of no concern,
/// and could do harm.
fn merged(defaults: Vec<String>, described: &[String]) -> Vec<String> {
    let values: HashMap<&String, &String> =
        described.chunks_exact(2).map(|it| (&it[0], &it[1])).collect();
    let pairs = defaults.chunks_exact(2);
    pairs.flat_map(|it| [it[0].clone(), (*values.get(&it[0]).unwrap_or(&&it[1])).clone()]).collect()
}

/// Whether a statement may write to a table that has the trigger of a stream table: it is none, but
/// was restored without its query; or it is being restored, where the rows that are there already do
/// not matter, for the next refresh replaces them.
pub fn accepts_write(table: Oid, operation: PgTriggerOperation) -> bool {
    let is_restored = dump::is_restoring() && matches!(operation, PgTriggerOperation::Insert);
    let Some(stream_table) = catalog::by_relation(table) else {
        return relation::name(table).0 != "pgstream_state";
    };
    if is_restored {
        let _superuser = Identity::superuser();
        catalog::mark_for_rebuild(stream_table.id, "rows were restored from a dump");
        capture::buffer::mark_rewritten(table);
    }
    is_restored
}

/// The event trigger `pgstream_keep_own_triggers`: those of our own tables always fire.
#[pg_extern(sql = false)]
fn keep_own_triggers() {
    if dump::is_binary_upgrade() {
        return;
    }
    let _superuser = Identity::superuser();
    let mut changed = Vec::new();
    spi::run(include_str!("restore/changed_triggers.sql"), &[], |row| {
        changed.extend(row.get::<Oid>(0).zip(row.get::<String>(1)));
    });
    for (table, trigger) in changed {
        Source::open(table, Lock::ShareRowExclusive).set_trigger(&trigger, b'A');
        command_done();
    }
}

/// The event trigger `pgstream_before_drop_owned`: what belongs to the extension could not be dropped.
#[pg_extern(sql = false)]
fn before_drop_owned() {
    let _superuser = Identity::superuser();
    hidden_state().iter().for_each(|it| member::release(it));
}

/// The event trigger `pgstream_after_drop_owned`.
#[pg_extern(sql = false)]
fn after_drop_owned() {
    let _superuser = Identity::superuser();
    hidden_state().iter().for_each(|it| member::adopt(it));
}

/// The tables of inner stages.
fn hidden_state() -> Vec<String> {
    let mut tables = Vec::new();
    spi::run(
        "SELECT oid::pg_catalog.regclass::text FROM pg_catalog.pg_class \
         WHERE relnamespace = 'pgstream_state'::pg_catalog.regnamespace AND relkind = 'r'",
        &[],
        |row| tables.extend(row.get::<String>(0)),
    );
    tables
}
