//! What a query leaves open: whose result depends on an order of rows that nothing determines.
//!
//! Such a result is one of those that PostgreSQL could give, and may be another one after the next
//! refresh, so creation warns. Where PostgreSQL usually gives one of them, by the ORDER BY of a
//! sub-query, the query is evaluated as PostgreSQL does it.

use std::collections::BTreeSet;

use pgstream_ivm::determined::tells_apart;
use pgstream_ivm::plan::Plan;

use super::Lowering;
use super::refusal::Refusal;
use crate::pg::node::{Aggregate, EntryKind, From, Kind, Node, Query, Step};
use crate::pg::types;

/// Window functions that tell rows apart which are equal in ORDER BY.
const BY_POSITION: [&str; 7] =
    ["row_number", "ntile", "lag", "lead", "first_value", "last_value", "nth_value"];

/// Aggregates that keep the order in which they get their rows.
const ORDERED: [&str; 8] = [
    "array_agg",
    "string_agg",
    "json_agg",
    "json_agg_strict",
    "jsonb_agg",
    "jsonb_agg_strict",
    "xmlagg",
    "any_value",
];

/// Aggregates that keep one value of those with the same key, their first argument.
const BY_KEY: [&str; 8] = [
    "json_object_agg",
    "json_object_agg_strict",
    "json_object_agg_unique",
    "json_object_agg_unique_strict",
    "jsonb_object_agg",
    "jsonb_object_agg_strict",
    "jsonb_object_agg_unique",
    "jsonb_object_agg_unique_strict",
];

/// Whether a window function, over a frame of rows or not, depends on the order of peers.
pub fn is_by_position(function: types::Oid, has_row_frame: bool) -> bool {
    let name = types::builtin_function(function);
    has_row_frame
        || name
            .is_some_and(|it| BY_POSITION.contains(&it.as_str()) || ORDERED.contains(&it.as_str()))
}

/// Notes a construct for which rows of `plan` are ordered by these expressions over its columns, and
/// those in `known` are the same in all of them.
pub fn note<'a>(
    lowering: &mut Lowering,
    construct: &str,
    plan: &Plan,
    order: impl Iterator<Item = Node<'a>>,
    known: impl Iterator<Item = usize>,
) {
    let known: BTreeSet<usize> = inputs(order).chain(known).collect();
    if !tells_apart(plan, &known) {
        lowering.open.insert(construct.to_owned());
    }
}

/// Notes an aggregate over groups of `plan` by the columns `keys`, if it is open.
pub fn note_aggregate(
    lowering: &mut Lowering,
    plan: &Plan,
    keys: &[usize],
    aggregate: Aggregate<'_>,
) {
    let Some(name) = types::builtin_function(aggregate.function()) else { return };
    let arguments = aggregate.arguments();
    let mut order = aggregate.order();
    if BY_KEY.contains(&name.as_str()) {
        order.extend(arguments.first());
    } else if !ORDERED.contains(&name.as_str()) {
        return;
    }
    let read: Vec<usize> = arguments.iter().flat_map(|it| it.input_positions()).collect();
    let known: BTreeSet<usize> = inputs(order.into_iter()).chain(keys.iter().copied()).collect();
    let is_determined = read.iter().all(|it| known.contains(it)) || tells_apart(plan, &known);
    if !is_determined {
        lowering.open.insert(name);
    }
}

/// Refuses aggregates over a sub-query with ORDER BY that would show its order. PostgreSQL gives them
/// the rows so, though nothing promises it; no rule of change knows of that order.
pub fn check_order<'a>(
    lowering: &mut Lowering,
    query: Query<'a>,
    expressions: impl Iterator<Item = Node<'a>>,
) -> Result<(), Refusal> {
    if !reads_in_order(query) {
        return Ok(());
    }
    let mut shown = None;
    for expression in expressions {
        expression.visit(&mut |node| match node.kind() {
            Kind::Aggregate(call) if !call.is_ordered() && !call.is_distinct() => {
                let name = types::builtin_function(call.function());
                let shows = |it: &String| {
                    let is_in = |list: &[&str]| list.contains(&it.as_str());
                    it != "any_value" && (is_in(&ORDERED) || is_in(&BY_KEY))
                };
                let found = name.filter(shows).map(|it| (it, node.location()));
                shown = shown.take().or(found);
                Step::Over
            }
            Kind::Aggregate(_) => Step::Over,
            _ => Step::Into,
        });
    }
    let Some((name, location)) = shown else { return Ok(()) };
    let words = format!("{name} over a sub-query with ORDER BY");
    lowering.open.insert(name);
    Err(Refusal::without_rule(words).at(location))
}

/// Whether FROM is nothing but a sub-query with ORDER BY, or one that is so itself.
fn reads_in_order(query: Query<'_>) -> bool {
    let Some(From::Items { items, .. }) = query.from().and_then(Node::as_from) else {
        return false;
    };
    let [item] = items.as_slice() else { return false };
    let Some(From::Entry(entry)) = item.as_from() else { return false };
    let inner = match query.entry(entry).map(|it| it.kind()) {
        Some(EntryKind::SubQuery(inner)) => inner,
        Some(EntryKind::CommonTable { name, levels_up: 0, recursive: false, .. }) => {
            match query.common_table(&name) {
                Some(item) if !item.recursive => item.query,
                _ => return false,
            }
        }
        _ => return false,
    };
    let is_plain = inner.distinct().is_empty()
        && inner.set_operations().is_none()
        && !inner.has_aggregation()
        && !inner.has_windows();
    !inner.order().is_empty() || (is_plain && reads_in_order(inner))
}

fn inputs<'a>(expressions: impl Iterator<Item = Node<'a>>) -> impl Iterator<Item = usize> {
    expressions.filter_map(|it| match it.kind() {
        Kind::Input(position) => Some(position),
        _ => None,
    })
}
