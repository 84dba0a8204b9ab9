//! The catalog tables: what stream tables exist and what they read.

use std::{collections::BTreeSet, ffi::CStr};

use pgrx::pg_sys::Oid;
use pgstream_core::{dag::Dag, mode::RefreshMode, name::QualifiedName, status::Status};
use pgstream_ivm::sql::quote_qualified;

use crate::{
    error::Error,
    fault::{self, Step},
    lower::{Refusal, Relation, RelationKind},
    pg::{
        deparse::PortableSettings,
        dump,
        event::OwnCommands,
        lock::Lock,
        name,
        node::Arena,
        own::{self, OwnRow, OwnTable, Value},
        query, relation,
        security::Identity,
        snapshot::Snapshot,
        spi, text, view, wake,
    },
    restore,
};

/// A stream table as the catalog knows it.
#[derive(Clone, Debug)]
pub struct StreamTable {
    pub id: i64,
    pub relation: Oid,
    pub name: QualifiedName,
    pub status: Status,
    pub mode: RefreshMode,
    pub schedule: Option<String>,
    pub view: Option<Oid>,
    pub is_populated: bool,
    pub error: Option<String>,
}

impl StreamTable {
    /// Says why it is in error.
    pub fn in_error(self) -> Error {
        let is_query_lost = self.view.is_some_and(|it| !relation::exists(it));
        Error::InError { name: self.name, reason: self.error.unwrap_or_default(), is_query_lost }
    }
}

fn from_row(row: &OwnRow) -> StreamTable {
    let text = |column| row.get::<String>(column).expect("NOT NULL in the catalog");
    StreamTable {
        id: row.get("pgs_id").expect("the primary key"),
        relation: row.get("pgs_relid").unwrap_or(Oid::INVALID),
        name: QualifiedName { schema: text("pgs_schema"), name: text("pgs_name") },
        status: text("status").parse().expect("checked by the catalog"),
        mode: text("refresh_mode").parse().expect("checked by the catalog"),
        schedule: row.get("schedule"),
        view: row.get("view_relid"),
        is_populated: row.get("is_populated").unwrap_or(false),
        error: row.get("error_message"),
    }
}

/// The stream table that `text` names, as `regclass` reads it.
pub fn find(text: &str) -> Result<StreamTable, Error> {
    let relation = name::resolve(text).ok_or_else(|| Error::Undefined(text.to_owned()))?;
    let found = by_relation(relation).or_else(|| {
        // Nobody has looked since it was restored from a dump.
        restore::attach(relation);
        by_relation(relation)
    });
    found.ok_or_else(|| Error::Undefined(text.to_owned()))
}

/// Like [`find`], for callers that change it: they must own it. Waits for whoever refreshes, alters or
/// drops it, and keeps others from that until the end of the transaction.
pub fn lock_owned(text: &str) -> Result<StreamTable, Error> {
    dump::refuse_if_read_only();
    let mut table = find_owned(text)?;
    loop {
        relation::lock_stream_table(table.id);
        // As those have left it who were waited for: the name may be another one's now, or have another owner.
        let current = find_owned(text)?;
        if current.id == table.id {
            return Ok(current);
        }
        relation::unlock_stream_table(table.id);
        table = current;
    }
}

fn find_owned(text: &str) -> Result<StreamTable, Error> {
    let table = find(text)?;
    if name::is_owned_by(table.relation, name::current_role()) {
        Ok(table)
    } else {
        Err(Error::NotOwner(table.name))
    }
}

const TABLES: &CStr = c"pgs_stream_tables";
const BY_ID: &CStr = c"pgs_stream_tables_pkey";
const BY_RELATION: &CStr = c"pgs_stream_tables_pgs_relid_key";
const BY_VIEW: &CStr = c"pgs_stream_tables_view_relid_key";

/// The stream table that is stored in the relation.
pub fn by_relation(relation: Oid) -> Option<StreamTable> {
    let mut found = None;
    OwnTable::open(TABLES, Lock::AccessShare).find(
        BY_RELATION,
        ("pgs_relid", relation),
        &Snapshot::latest(),
        |row| found = Some(from_row(row)),
    );
    found
}

/// `schema.name` of a stream table for messages; the number when it is gone.
pub fn display_name(id: i64) -> String {
    by_id(id).map_or_else(|| id.to_string(), |it| it.name.to_string())
}

/// The stream table of that number.
pub fn by_id(id: i64) -> Option<StreamTable> {
    let mut found = None;
    OwnTable::open(c"pgs_stream_tables", Lock::AccessShare).find(
        c"pgs_stream_tables_pkey",
        ("pgs_id", id),
        &Snapshot::latest(),
        |row| found = Some(from_row(row)),
    );
    found
}

/// The stream table whose query the hidden view holds.
pub fn by_view(view: Oid) -> Option<StreamTable> {
    let mut found = None;
    OwnTable::open(TABLES, Lock::AccessShare).find(
        BY_VIEW,
        ("view_relid", view),
        &Snapshot::latest(),
        |row| found = Some(from_row(row)),
    );
    found
}

/// All that have a table.
pub fn all() -> Vec<StreamTable> {
    let mut ids = Vec::new();
    spi::ask(
        "SELECT pgs_id FROM pgstream.pgs_stream_tables WHERE pgs_relid IS NOT NULL",
        &[],
        |row| ids.extend(row.get::<i64>(0)),
    );
    ids.into_iter().filter_map(by_id).collect()
}

/// The stream table of that name whose table is gone without the catalog having been told, or has not come
/// with the dump that the row is from. One that is just being created has no table, either.
pub fn missing(name: &QualifiedName) -> Option<i64> {
    spi::get_one(
        "SELECT pgs_id FROM pgstream.pgs_stream_tables \
         WHERE pgs_schema = $1 AND pgs_name = $2 AND (pgs_relid IS NOT NULL OR needs_reinit) \
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = pgs_relid)",
        &[name.schema.clone().into(), name.name.clone().into()],
    )
}

/// What a stream table reads, as noted when it was made or rebuilt.
pub fn sources(id: i64) -> Vec<Oid> {
    let mut sources = Vec::new();
    OwnTable::open(c"pgs_dependencies", Lock::AccessShare).find(
        c"pgs_dependencies_pkey",
        ("pgs_id", id),
        &Snapshot::latest(),
        |row| sources.extend(row.get::<Oid>("source_relid")),
    );
    sources
}

/// Notes how a stream table is called now.
pub fn note_name(stream_table: &StreamTable) {
    let (schema, name) = relation::name(stream_table.relation);
    if stream_table.name.schema == schema && stream_table.name.name == name {
        return;
    }
    // By SQL, so that the triggers which look at the name fire.
    spi::run(
        "UPDATE pgstream.pgs_stream_tables SET pgs_schema = $2, pgs_name = $3 WHERE pgs_id = $1",
        &[stream_table.id.into(), schema.into(), name.into()],
        |_| {},
    );
    wake::scheduler_at_commit();
}

/// Notes that a column has another name.
pub fn note_column_name(relation: Oid, number: i32) {
    spi::run(include_str!("catalog/rename_column.sql"), &[relation.into(), number.into()], |_| {});
}

/// The text search configuration that a setting names.
pub fn text_search_config(name: String) -> Option<Oid> {
    let mut config = None;
    spi::ask(
        "SELECT c.oid FROM pg_catalog.pg_ts_config AS c \
         JOIN pg_catalog.pg_namespace AS n ON n.oid = c.cfgnamespace \
         WHERE $1 = quote_ident(nspname) || '.' || quote_ident(cfgname) \
            OR $1 = quote_ident(cfgname) AND nspname = 'pg_catalog'",
        &[name.into()],
        |row| config = row.get(0),
    );
    config
}

/// Notes what the text search configurations are called now that hidden views hold on to.
pub fn note_text_search_names() {
    spi::run(include_str!("catalog/rename_text_search.sql"), &[], |_| {});
}

/// What [`outdate`] found.
pub struct Outdated {
    pub relation: Oid,
    /// Whether it was up to date in this respect before.
    pub is_new: bool,
}

/// Locks what is noted of stream tables, in the order of their numbers. Tables are locked before, and what is
/// noted of sources after that.
pub fn lock(ids: &[i64]) {
    let tables = OwnTable::open(TABLES, Lock::RowExclusive);
    for id in BTreeSet::from_iter(ids) {
        tables.lock_newest(BY_ID, ("pgs_id", *id));
    }
}

/// As [`lock`], and gives the stream table as it is then.
pub fn locked(id: i64) -> Result<StreamTable, Error> {
    let tables = OwnTable::open(TABLES, Lock::RowExclusive);
    let row = tables.lock_newest(BY_ID, ("pgs_id", id));
    row.as_ref().map(from_row).ok_or_else(|| Error::unknown(id))
}

/// Notes that a stream table has to be rebuilt; the first reason stays. Locks its row even where that
/// is noted already: a rebuild that is under way takes the note away when it is done.
pub fn outdate(id: i64, reason: &str) -> Option<Outdated> {
    let tables = OwnTable::open(TABLES, Lock::RowExclusive);
    let row = tables.lock_newest(BY_ID, ("pgs_id", id))?;
    let is_new = row.get("needs_reinit") != Some(true);
    let mut values = vec![Value::new("needs_reinit", true)];
    if is_new {
        values.push(Value::new("reinit_reason", text::shown(reason)));
    }
    tables.update(&row, &values);
    let relation = row.get("pgs_relid").unwrap_or(Oid::INVALID);
    relation::exists(relation).then_some(Outdated { relation, is_new })
}

/// The hidden tables of the inner stages, quoted.
pub fn stages(id: i64) -> Vec<String> {
    let mut stages = Vec::new();
    spi::run(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = 'pgstream_state' AND c.relkind = 'r' AND c.relname ~ $1",
        &[format!("^stage_{id}_[0-9]+$").into()],
        |row| stages.extend(row.get::<String>(0)),
    );
    stages
}

/// The stream table to which a relation of this name belongs as a stage.
pub fn id_of_stage(names: &[String]) -> Option<i64> {
    let [schema, name] = names else { return None };
    let (id, _) = name.strip_prefix("stage_")?.split_once('_')?;
    (schema == STATE_SCHEMA).then(|| id.parse().ok()).flatten()
}

/// The source whose changes go to this table.
pub fn source_of_buffer(buffer: Oid) -> Option<Oid> {
    let mut source = None;
    spi::ask(
        "SELECT source_relid FROM pgstream.pgs_change_tracking WHERE buffer_relid = $1",
        &[buffer.into()],
        |row| source = row.get(0),
    );
    source
}

const STATE_SCHEMA: &str = "pgstream_state";

/// The hidden view keeps the query, follows renames, and holds on to what it uses. What it uses can be
/// temporary: it would go with that, unnoticed.
pub fn create_view(id: i64, sql: &str, owner: Oid) -> Result<Oid, Error> {
    let view = view::create(STATE_SCHEMA, &format!("query_{id}"), sql, owner);
    match spi::get_one::<String>(include_str!("catalog/temporary.sql"), &[view.into()]) {
        Some(object) => Err(Refusal::always(object, "it is visible to one session only").into()),
        None => {
            hold_joined_columns(view);
            Ok(view)
        }
    }
}

/// PostgreSQL does not note which columns are in the row of a join that a query reads as a whole.
pub fn hold_joined_columns(view: Oid) {
    let arena = Arena::enter();
    let query = query::of_view(&arena, view);
    for (table, column) in query.map(query::columns_of_joined_rows).unwrap_or_default() {
        relation::hold_column(view, table, column);
    }
}

/// The view that has the name of the hidden view of this stream table, whatever the catalog knows.
pub fn hidden_view(id: i64) -> Option<Oid> {
    relation::find(STATE_SCHEMA, &format!("query_{id}"))
}

/// The text of a hidden view: every name qualified.
pub fn query_text(view: Oid) -> Option<String> {
    let _settings = PortableSettings::enter();
    spi::get_one("SELECT pg_catalog.pg_get_viewdef($1)", &[view.into()])
}

/// Drops the hidden view of a stream table that is gone, or does not know it.
pub fn drop_view(id: i64) {
    if hidden_view(id).is_some() {
        let _own = OwnCommands::begin();
        let name = quote_qualified(STATE_SCHEMA, &format!("query_{id}"));
        spi::run(&format!("DROP VIEW {name}"), &[], |_| {});
    }
}

/// What is known of a stream table before it has a table.
pub struct New<'a> {
    pub name: &'a QualifiedName,
    pub query: &'a str,
    pub schedule: Option<&'a str>,
    pub mode: RefreshMode,
}

/// Waits for whoever is about to take the same name.
pub fn insert(new: &New<'_>) -> Result<i64, Error> {
    let id = spi::get_one(
        "INSERT INTO pgstream.pgs_stream_tables \
         (pgs_id, pgs_schema, pgs_name, defining_query, schedule, refresh_mode) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (pgs_schema, pgs_name) DO NOTHING RETURNING pgs_id",
        &[
            next_id().into(),
            new.name.schema.clone().into(),
            new.name.name.clone().into(),
            new.query.to_owned().into(),
            new.schedule.map(str::to_owned).into(),
            new.mode.as_str().to_owned().into(),
        ],
    );
    id.ok_or_else(|| Error::Exists(new.name.clone()))
}

/// A number that no stream table has, whatever a dump has made of the sequence.
fn next_id() -> i64 {
    loop {
        let id = own::next_value(c"pgs_stream_tables_pgs_id_seq");
        if by_id(id).is_none() {
            return id;
        }
    }
}

/// The next refresh makes it again, from the label.
pub fn forget_view(id: i64) {
    spi::run(
        "UPDATE pgstream.pgs_stream_tables SET view_relid = NULL WHERE pgs_id = $1",
        &[id.into()],
        |_| {},
    );
}

pub fn set_view(id: i64, view: Oid) {
    spi::run(
        "UPDATE pgstream.pgs_stream_tables SET view_relid = $2 WHERE pgs_id = $1",
        &[id.into(), view.into()],
        |_| {},
    );
}

pub fn set_functions(id: i64, functions_used: &[String]) {
    spi::run(
        "UPDATE pgstream.pgs_stream_tables SET functions_used = $2 WHERE pgs_id = $1",
        &[id.into(), functions_used.to_vec().into()],
        |_| {},
    );
}

/// Replaces what is recorded about the sources of a stream table.
pub fn set_dependencies(id: i64, relations: &[Relation]) {
    spi::run("DELETE FROM pgstream.pgs_dependencies WHERE pgs_id = $1", &[id.into()], |_| {});
    for relation in relations {
        let kind = match relation.kind {
            RelationKind::Table if by_relation(relation.oid).is_some() => "STREAM_TABLE",
            RelationKind::Table | RelationKind::Other => "TABLE",
            RelationKind::View => "VIEW",
            RelationKind::MaterializedView => "MATVIEW",
            RelationKind::ForeignTable => "FOREIGN_TABLE",
        };
        let columns: Vec<String> = relation.columns.iter().map(|it| it.1.clone()).collect();
        spi::run(
            include_str!("catalog/insert_dependency.sql"),
            &[id.into(), relation.oid.into(), kind.to_owned().into(), columns.into()],
            |_| {},
        );
    }
}

/// Refuses a stream table that reads itself, which a changed view can bring about.
pub fn check_acyclic(relation: Oid, view: Oid) -> Result<(), Error> {
    let mut dag = Dag::new();
    let mut open = vec![(relation, view)];
    let mut seen = BTreeSet::from([relation.to_u32()]);
    while let Some((reader, view)) = open.pop() {
        for source in relation::tables_below(view) {
            let Some(upstream) = by_relation(source) else { continue };
            dag.add_edge(reader.to_u32(), source.to_u32());
            if let Some(view) = upstream.view.filter(|_| seen.insert(source.to_u32())) {
                open.push((source, view));
            }
        }
    }
    dag.order().map(|_| ()).map_err(|cycle| {
        let path: Vec<String> =
            cycle.path.iter().map(|it| relation::display_name(Oid::from(*it))).collect();
        Error::Cyclic { name: relation::display_name(relation), path: path.join(" -> ") }
    })
}

/// The tables that are captured for a stream table.
pub fn tracked_sources(id: i64) -> Vec<Oid> {
    let mut sources = Vec::new();
    spi::ask(
        "SELECT source_relid FROM pgstream.pgs_change_tracking WHERE $1 = ANY (tracked_by_pgs_ids) \
         ORDER BY source_relid",
        &[id.into()],
        |row| sources.extend(row.get::<Oid>(0)),
    );
    sources
}

/// The other stream tables that read this one.
pub fn readers(table: &StreamTable) -> Vec<QualifiedName> {
    let _superuser = Identity::superuser();
    let mut readers = Vec::new();
    spi::ask(
        "SELECT pgs_schema, pgs_name FROM pgstream.pgs_dependencies \
         JOIN pgstream.pgs_stream_tables USING (pgs_id) \
         WHERE source_relid = $1 AND pgs_id <> $2 AND status <> 'ERROR' ORDER BY pgs_id",
        &[table.relation.into(), table.id.into()],
        |row| {
            let (Some(schema), Some(name)) = (row.get(0), row.get(1)) else { return };
            readers.push(QualifiedName { schema, name });
        },
    );
    readers
}

pub fn delete(id: i64) {
    spi::run("DELETE FROM pgstream.pgs_stream_tables WHERE pgs_id = $1", &[id.into()], |_| {});
}

/// Moves to another status; a reason goes with ERROR and SUSPENDED.
pub fn set_status(id: i64, status: Status, reason: Option<&str>) {
    spi::run(
        "UPDATE pgstream.pgs_stream_tables \
         SET status = $2, error_message = $3, updated_at = clock_timestamp() WHERE pgs_id = $1",
        &[id.into(), status.as_str().to_owned().into(), reason.map(text::shown).into()],
        |_| {},
    );
    fault::point(Step::StatusChanged);
}

/// The next refresh rebuilds. Whoever listens is told by a trigger on the catalog.
pub fn mark_for_rebuild(id: i64, reason: &str) {
    spi::run(
        "UPDATE pgstream.pgs_stream_tables SET needs_reinit = true, reinit_reason = $2 \
         WHERE pgs_id = $1 AND NOT needs_reinit",
        &[id.into(), text::shown(reason).into()],
        |_| {},
    );
}

/// Makes a suspended or new stream table run again.
pub fn activate(table: &StreamTable) {
    let status = if table.is_populated { Status::Active } else { Status::Initializing };
    set_status(table.id, status, None);
    spi::run(
        "UPDATE pgstream.pgs_stream_tables SET consecutive_errors = 0 WHERE pgs_id = $1",
        &[table.id.into()],
        |_| {},
    );
}

pub fn set_schedule(id: i64, schedule: Option<&str>) {
    spi::run(
        "UPDATE pgstream.pgs_stream_tables \
         SET schedule = $2, scheduled_at = clock_timestamp(), updated_at = clock_timestamp() \
         WHERE pgs_id = $1",
        &[id.into(), schedule.map(str::to_owned).into()],
        |_| {},
    );
}

/// The next refresh rebuilds, since what is stored was laid out for the other mode.
pub fn set_mode(id: i64, mode: RefreshMode) {
    spi::run(
        "UPDATE pgstream.pgs_stream_tables \
         SET refresh_mode = $2, needs_reinit = true, \
             reinit_reason = 'the refresh mode was changed', fingerprint = NULL, consumed = NULL, \
             updated_at = clock_timestamp() WHERE pgs_id = $1",
        &[id.into(), mode.as_str().to_owned().into()],
        |_| {},
    );
}
