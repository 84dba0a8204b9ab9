//! WITH RECURSIVE … UNION ALL, with one recursive reference among inner joins, filters and
//! projections. Other recursions are evaluated as a whole.

use pgstream_ivm::plan::{Column, Plan, Scan, Version};
use pgstream_ivm::recursion::{ITSELF, recurse};

use super::refusal::Refusal;
use super::select::{check_fit, columns_of, output_names};
use super::{Lowering, Scope, limit, set_operation};
use crate::pg::node::{Query, SetKind, SetTree};
use crate::pg::types;

/// Lowers a WITH item that refers to itself.
pub fn lower<'a>(
    lowering: &mut Lowering,
    query: Query<'a>,
    home: &Scope<'_, 'a>,
) -> Result<Plan, Refusal> {
    let refused = || Refusal::without_rule("WITH RECURSIVE");
    check_fit(query)?;
    if home.domain.is_some() || limit::is_in(query)? || lowering.recursive.is_some() {
        return Err(refused());
    }
    let operation = match query.set_operations().and_then(|it| it.as_set_tree()) {
        Some(SetTree::Operation(it)) if it.all && it.kind == SetKind::Union => it,
        _ => return Err(Refusal::without_rule("WITH RECURSIVE with UNION")),
    };
    if !operation.columns.iter().all(|(ty, ..)| types::is_storable(*ty)) {
        return Err(Refusal::without_rule("WITH RECURSIVE over anonymous rows"));
    }
    let scope = Scope { query, outer: Some(home), domain: None };
    let base = set_operation::lower_tree(lowering, &scope, operation.left, None)?;
    let base = set_operation::cast(base, &operation.columns);
    let types = operation.columns.iter();
    let types = types.map(|(ty, typmod, collation)| types::describe(*ty, *typmod, *collation));
    let columns: Vec<Column> = output_names(query)
        .into_iter()
        .zip(types)
        .map(|(name, ty)| Column { name, ty, nullable: true, scale: None })
        .collect();
    let width = columns.len();
    lowering.recursive = Some(columns);
    let step = set_operation::lower_tree(lowering, &scope, operation.right, None);
    lowering.recursive = None;
    let step = set_operation::cast(step?, &operation.columns);
    let depth = types::describe(types::BIGINT, -1, types::NO_COLLATION);
    let plan = recurse(base, step, &depth).ok_or_else(refused)?;
    let all: Vec<usize> = (0..width).collect();
    Ok(columns_of(plan, Some(&all)))
}

/// The recursive reference, with the needed columns.
pub fn reference(lowering: &Lowering, needed: &[usize]) -> Result<Plan, Refusal> {
    let columns = lowering.recursive.as_ref();
    let columns = columns.ok_or_else(|| Refusal::without_rule("WITH RECURSIVE"))?;
    Ok(Plan::Scan(Scan {
        source: ITSELF,
        columns: needed.iter().map(|it| columns[*it].clone()).collect(),
        attributes: needed.to_vec(),
        key: None,
        version: Version::New,
    }))
}
