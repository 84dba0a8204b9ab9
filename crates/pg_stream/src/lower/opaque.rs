//! Queries for whose change there is no rule: evaluated as a whole, and the difference taken.
//!
//! This is the universal rule: Δ = Q' − Q, with Q being what is stored. It is exact for whatever
//! PostgreSQL can evaluate, and its cost follows the size of what the query reads; it reads nothing
//! while none of that has changed. The smallest query that refers to nothing outside of it is taken,
//! so that what stands around it keeps its own rules. One without tables never changes.

use std::collections::{BTreeMap, BTreeSet};

use pgstream_ivm::plan::{Column, Plan};

use super::Lowering;
use super::from::{self, NamedTable};
use super::lateral;
use super::refusal::{Refusal, has_equal_keys};
use crate::pg::node::{ColumnRef, Entry, EntryKind, Kind, Query, Step};
use crate::pg::types::{self, Oid};
use crate::pg::{deparse, query as analysis, table};

/// The plan of a query that is evaluated as a whole because of `refusal`, which is given back when
/// that is not possible either.
pub fn lower(lowering: &mut Lowering, query: Query<'_>, refusal: Refusal) -> Result<Plan, Refusal> {
    let whole = analysis::with_views(query);
    if shows_join(whole) || !analysis::is_closed(query) {
        return Err(refusal);
    }
    evaluated(lowering, query, refusal, || deparse::query(whole))
}

/// The plan of the query of a stream table, for which [`lower`] had no text that would stay the same: the
/// hidden view that holds it is evaluated, once there is one.
pub fn lower_view(
    lowering: &mut Lowering,
    query: Query<'_>,
    view: Option<Oid>,
    refusal: Refusal,
) -> Result<Plan, Refusal> {
    let from_view = |it| format!("SELECT * FROM {}", table::name(it));
    evaluated(lowering, query, refusal, || {
        view.map_or_else(|| deparse::query(analysis::with_views(query)), from_view)
    })
}

fn evaluated(
    lowering: &mut Lowering,
    query: Query<'_>,
    refusal: Refusal,
    sql: impl FnOnce() -> String,
) -> Result<Plan, Refusal> {
    let whole = analysis::with_views(query);
    if !refusal.is_evaluable || has_equal_keys(whole) || follows_records(whole) {
        return Err(refusal);
    }
    let reads = reads(lowering, query)?;
    let targets = query.targets().into_iter().filter(|it| !it.junk);
    let schema = targets
        .map(|it| {
            let value = it.expression;
            let ty = types::describe(value.type_oid(), value.typmod(), value.collation());
            Column { name: it.name, ty, nullable: true, scale: None }
        })
        .collect();
    if reads.is_empty() {
        return Ok(lateral::closed(query, schema));
    }
    Ok(Plan::Opaque { sql: sql(), reads, schema, reason: refusal.construct })
}

/// Whether the row of a join with a name may be used as a whole. A query keeps the names and the columns that
/// it had, but a text takes those that its tables have now.
fn shows_join(query: Query<'_>) -> bool {
    let (mut names_join, mut uses_row) = (false, false);
    query.node().visit(&mut |node| {
        match node.kind() {
            Kind::Query(query) => {
                let is_named =
                    |it: &Entry<'_>| matches!(it.kind(), EntryKind::Join) && it.has_own_name();
                names_join |= query.entries().iter().any(is_named);
            }
            Kind::Column(ColumnRef { attribute: 0, .. }) => {
                uses_row |= types::is_record(node.type_oid());
            }
            _ => {}
        }
        Step::Into
    });
    names_join && uses_row
}

/// Whether a recursion reads fields of rows that it made before, as a view does for SEARCH BREADTH
/// FIRST. A text cannot name these; the view itself can be named.
fn follows_records(query: Query<'_>) -> bool {
    let mut found = false;
    query.node().visit(&mut |node| {
        if let Kind::Query(query) = node.kind() {
            // The rewriter puts the recursive part into a sub-query of its own.
            let is_wrapped = |it: EntryKind<'_>| match it {
                EntryKind::SubQuery(inner) => refers_to_itself(inner),
                _ => false,
            };
            let is_recursive = query.entries().into_iter().any(|it| is_wrapped(it.kind()));
            found |= is_recursive && reads_record_field(query);
        }
        Step::Into
    });
    found
}

fn refers_to_itself(query: Query<'_>) -> bool {
    let is_self = |it: EntryKind<'_>| matches!(it, EntryKind::CommonTable { recursive: true, .. });
    query.entries().into_iter().any(|it| is_self(it.kind()))
}

fn reads_record_field(query: Query<'_>) -> bool {
    let mut found = false;
    query.node().visit(&mut |node| {
        found |= matches!(
            node.kind(),
            Kind::Field(row) if matches!(row.kind(), Kind::Column(_))
                && types::is_record(row.type_oid())
        );
        Step::Into
    });
    found
}

/// A scan of each table in the query, with the columns that are read anywhere in it.
fn reads(lowering: &mut Lowering, query: Query<'_>) -> Result<Vec<Plan>, Refusal> {
    let mut tables = Vec::new();
    let mut columns: BTreeMap<u32, BTreeSet<i16>> = BTreeMap::new();
    query.node().visit(&mut |node| {
        if let Kind::Query(query) = node.kind() {
            for (oid, read) in query.columns_read() {
                columns.entry(oid.to_u32()).or_default().extend(read);
            }
            for entry in query.entries() {
                if let EntryKind::Relation { oid, children, .. } = entry.kind() {
                    tables.push((entry, oid, children));
                }
            }
        }
        Step::Into
    });
    let mut plans = Vec::new();
    for (entry, oid, children) in tables {
        let read = columns.get(&oid.to_u32()).cloned().unwrap_or_default();
        let attributes = with_implied(lowering, oid, &read)?;
        let table = NamedTable { entry, oid, children, is_evaluated: true };
        let plan = from::lower_table(lowering, &table, 0, &attributes)?.plan;
        let scans = plan.scans().into_iter().map(|it| Plan::Scan(it.clone()));
        plans.extend(scans.filter(|it| !plans.contains(it)).collect::<Vec<_>>());
    }
    Ok(plans)
}

/// The columns to capture for columns that are read: the whole row is all of them, a virtual column can be
/// made of any, and any can decide in which partition a row is.
fn with_implied(
    lowering: &mut Lowering,
    oid: Oid,
    read: &BTreeSet<i16>,
) -> Result<BTreeSet<i16>, Refusal> {
    let table = table::look(oid);
    let reads_table = read.iter().any(|it| *it < 0);
    if reads_table && table.has_children {
        lowering.parts.insert(oid.to_u32());
    }
    let is_virtual =
        |number: &i16| table.columns.iter().any(|it| it.number == *number && it.is_virtual);
    let is_any = read.contains(&0) || read.iter().any(is_virtual);
    let needs_all = is_any || (reads_table && table.is_partitioned);
    if !needs_all {
        return Ok(read.clone());
    }
    if table.is_stream_table {
        let words = format!("a whole-row reference to the stream table {}", table.sql);
        return Err(Refusal::differential(words));
    }
    Ok(table.columns.iter().filter(|it| !it.is_virtual).map(|it| it.number).collect())
}
