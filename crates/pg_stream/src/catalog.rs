//! The catalog tables: what stream tables exist and what they read.

use std::collections::BTreeSet;

use pgrx::pg_sys::Oid;
use pgstream_core::{dag::Dag, mode::RefreshMode, name::QualifiedName, status::Status};

use crate::{
    error::Error,
    fault::{self, Step},
    lower::{Relation, RelationKind},
    pg::{
        dump,
        lock::Lock,
        name,
        own::{OwnRow, OwnTable},
        relation,
        security::Identity,
        snapshot::Snapshot,
        spi,
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

/// Like [`find`], for callers that change it: they must own it.
pub fn find_owned(text: &str) -> Result<StreamTable, Error> {
    dump::refuse_if_read_only();
    let table = find(text)?;
    if name::is_owned_by(table.relation, name::current_role()) {
        Ok(table)
    } else {
        Err(Error::NotOwner(table.name))
    }
}

/// The stream table that is stored in the relation.
pub fn by_relation(relation: Oid) -> Option<StreamTable> {
    let mut found = None;
    OwnTable::open(c"pgs_stream_tables", Lock::AccessShare).find(
        c"pgs_stream_tables_pgs_relid_key",
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

/// What is known of a stream table before it has a table.
pub struct New<'a> {
    pub name: &'a QualifiedName,
    pub query: &'a str,
    pub schedule: Option<&'a str>,
    pub mode: RefreshMode,
}

pub fn insert(new: &New<'_>) -> i64 {
    spi::get_one(
        "INSERT INTO pgstream.pgs_stream_tables \
         (pgs_schema, pgs_name, defining_query, schedule, refresh_mode) \
         VALUES ($1, $2, $3, $4, $5) RETURNING pgs_id",
        &[
            new.name.schema.clone().into(),
            new.name.name.clone().into(),
            new.query.to_owned().into(),
            new.schedule.map(str::to_owned).into(),
            new.mode.as_str().to_owned().into(),
        ],
    )
    .expect("the primary key")
}

pub fn set_view(id: i64, view: Oid, functions_used: &[String]) {
    spi::run(
        "UPDATE pgstream.pgs_stream_tables SET view_relid = $2, functions_used = $3 \
         WHERE pgs_id = $1",
        &[id.into(), view.into(), functions_used.to_vec().into()],
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
    spi::run(
        "SELECT source_relid FROM pgstream.pgs_change_tracking WHERE $1 = ANY (tracked_by_pgs_ids)",
        &[id.into()],
        |row| sources.extend(row.get::<Oid>(0)),
    );
    sources
}

/// The other stream tables that read this one.
pub fn readers(table: &StreamTable) -> Vec<QualifiedName> {
    let _superuser = Identity::superuser();
    let mut readers = Vec::new();
    spi::run(
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
        &[id.into(), status.as_str().to_owned().into(), reason.map(str::to_owned).into()],
        |_| {},
    );
    fault::point(Step::StatusChanged);
}

/// The next refresh rebuilds. Whoever listens is told by a trigger on the catalog.
pub fn mark_for_rebuild(id: i64, reason: &str) {
    spi::run(
        "UPDATE pgstream.pgs_stream_tables SET needs_reinit = true, reinit_reason = $2 \
         WHERE pgs_id = $1 AND NOT needs_reinit",
        &[id.into(), reason.to_owned().into()],
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
