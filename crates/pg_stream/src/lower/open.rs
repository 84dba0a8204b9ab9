//! What a query leaves open: whose result depends on an order of rows that nothing determines.
//!
//! Such a result is one of those that PostgreSQL could give, and may be another one after the next
//! refresh, so creation warns. Nothing here affects results.

use std::collections::BTreeSet;

use pgstream_ivm::determined::tells_apart;
use pgstream_ivm::plan::Plan;

use super::Lowering;
use crate::pg::node::{Aggregate, Kind, Node};
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

fn inputs<'a>(expressions: impl Iterator<Item = Node<'a>>) -> impl Iterator<Item = usize> {
    expressions.filter_map(|it| match it.kind() {
        Kind::Input(position) => Some(position),
        _ => None,
    })
}
