//! WITH RECURSIVE, with one recursive reference among filters, projections, set-returning items and
//! inner joins, or on the left side of outer joins and of what sub-queries become. Other recursions are
//! evaluated as a whole.
//!
//! Rows of UNION are told apart by their images, so its columns must be of types whose equal values have
//! equal images: of 1.0 and 1.00 PostgreSQL goes on with the one that it meets first.

use pgstream_ivm::plan::{Column, Plan, Scan, Version};
use pgstream_ivm::recursion::{ITSELF, recurse};

use super::refusal::Refusal;
use super::select::{check_fit, columns_of, output_names};
use super::{Lowering, Recursive, Scope, limit, set_operation};
use crate::pg::node::{CommonTable, Query, SetKind, SetOperation, SetTree};
use crate::pg::types;

/// Refuses a LIMIT that could be all that ends a recursion in FROM.
pub fn check_limit(query: Query<'_>) -> Result<(), Refusal> {
    let reads_all =
        query.has_aggregation() || !query.order().is_empty() || !query.distinct().is_empty();
    if query.limit().is_some() && !reads_all {
        return Err(Refusal::without_rule("LIMIT over WITH RECURSIVE without ORDER BY"));
    }
    Ok(())
}

/// Lowers a WITH item that refers to itself, with its own columns at least as far as they are needed.
pub fn lower<'a>(
    lowering: &mut Lowering,
    item: &CommonTable<'a>,
    home: &Scope<'_, 'a>,
    needed: &[usize],
) -> Result<Plan, Refusal> {
    let query = item.query;
    let refused = || Refusal::without_rule("WITH RECURSIVE here");
    check_fit(query)?;
    // Inside of another recursion it might refer to that; beside it, it does not.
    let is_inside = lowering.recursive.as_ref().is_some_and(|it| home.depth() > it.depth);
    if home.domain.is_some() || limit::is_in(query)? || is_inside {
        return Err(refused());
    }
    let operation = match query.set_operations().and_then(|it| it.as_set_tree()) {
        Some(SetTree::Operation(it)) if it.kind == SetKind::Union => it,
        _ => return Err(refused()),
    };
    // The order that SEARCH adds, behind the columns of the operation, is made of records, from the order
    // before and the columns that it names; nothing else is made of it. UNION would tell rows apart by it.
    let columns = &operation.columns;
    let needs_order = needed.iter().any(|it| *it >= columns.len()) || !operation.all;
    if item.has_cycle || (item.has_search && needs_order) {
        return Err(Refusal::without_rule("SEARCH or CYCLE"));
    }
    if !columns.iter().all(|(ty, ..)| types::is_storable(*ty)) {
        return Err(Refusal::without_rule("WITH RECURSIVE over anonymous rows"));
    }
    let around = lowering.recursive.take();
    let plan = lower_union(lowering, query, &operation, home);
    lowering.recursive = around;
    plan
}

fn lower_union<'a>(
    lowering: &mut Lowering,
    query: Query<'a>,
    operation: &SetOperation<'a>,
    home: &Scope<'_, 'a>,
) -> Result<Plan, Refusal> {
    let types = operation.columns.iter();
    let types = types.map(|(ty, typmod, collation)| types::describe(*ty, *typmod, *collation));
    let columns: Vec<Column> = output_names(query)
        .into_iter()
        .zip(types)
        .map(|(name, ty)| Column { name, ty, nullable: true, scale: None })
        .collect();
    let is_set = !operation.all;
    let has_scale = |it: &Column| {
        types::is_numeric(it.ty.oid.into()) && types::numeric_scale(it.ty.typmod).is_some()
    };
    let is_image = |it: &Column| it.ty.equality.is_some() && (it.ty.exact || has_scale(it));
    if is_set && (columns.is_empty() || !columns.iter().all(is_image)) {
        let words = "WITH RECURSIVE with UNION over values that can be equal and look different";
        return Err(Refusal::without_rule(words));
    }
    let scope = Scope { query, outer: Some(home), domain: None };
    let all: Vec<usize> = (0..columns.len()).collect();
    let base = set_operation::lower_tree(lowering, &scope, operation.left, Some(&all))?;
    let base = set_operation::cast(base, &operation.columns);
    lowering.recursive = Some(Recursive { columns, depth: home.depth() });
    let step = set_operation::lower_tree(lowering, &scope, operation.right, Some(&all))?;
    let step = set_operation::cast(step, &operation.columns);
    let depth = types::describe(types::BIGINT, -1, types::NO_COLLATION);
    let plan = recurse(base, step, &depth, is_set)
        .ok_or_else(|| Refusal::without_rule("a recursive part that is not linear"))?;
    Ok(columns_of(plan, Some(&all)))
}

/// The recursive reference, with the needed columns.
pub fn reference(lowering: &Lowering, needed: &[usize]) -> Result<Plan, Refusal> {
    let recursive = lowering.recursive.as_ref();
    let recursive = recursive.ok_or_else(|| Refusal::without_rule("WITH RECURSIVE here"))?;
    Ok(Plan::Scan(Scan {
        source: ITSELF,
        columns: needed.iter().map(|it| recursive.columns[*it].clone()).collect(),
        attributes: needed.to_vec(),
        key: None,
        version: Version::New,
        policy: None,
    }))
}
