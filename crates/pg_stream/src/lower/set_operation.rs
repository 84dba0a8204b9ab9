//! UNION and UNION ALL.

use pgstream_ivm::plan::Plan;
use pgstream_ivm::scalar::{Scalar, Type};

use super::expression::scalar;
use super::refusal::Refusal;
use super::select::{self, columns_of};
use super::{Lowering, Scope};
use crate::pg::node::{EntryKind, Node, SetKind, SetOperation, SetTree, coerced, input};
use crate::pg::query::check_depth;
use crate::pg::types::{self, Oid};

/// Lowers a tree of set operations to a plan with the needed columns.
pub fn lower<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    tree: Node<'a>,
    needed: Option<&[usize]>,
    names: &[String],
) -> Result<Plan, Refusal> {
    let types = match tree.as_set_tree() {
        Some(SetTree::Operation(operation)) => operation.columns,
        _ => return Err(Refusal::without_rule("this set operation")),
    };
    let all: Vec<usize> = (0..types.len()).collect();
    let names: Vec<_> = needed.unwrap_or(&all).iter().map(|it| names[*it].clone()).collect();
    let plan = lower_tree(lowering, scope, tree, needed)?;
    Ok(renamed(plan, &names))
}

pub fn lower_tree<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    tree: Node<'a>,
    needed: Option<&[usize]>,
) -> Result<Plan, Refusal> {
    check_depth();
    let entry = match tree.as_set_tree() {
        Some(SetTree::Entry(entry)) => entry,
        Some(SetTree::Operation(operation)) if operation.all => {
            return lower_sum(lowering, scope, &operation, needed);
        }
        Some(SetTree::Operation(operation)) => {
            check_equalities(&operation)?;
            let distinct = lower_sum(lowering, scope, &operation, None)?.distinct();
            return Ok(columns_of(distinct, needed));
        }
        None => return Err(Refusal::without_rule("this set operation")),
    };
    match scope.query.entry(entry).map(|it| it.kind()) {
        Some(EntryKind::SubQuery(query)) => select::lower(lowering, query, Some(scope), needed),
        _ => Err(Refusal::without_rule("this set operation")),
    }
}

fn lower_sum<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    operation: &SetOperation<'a>,
    needed: Option<&[usize]>,
) -> Result<Plan, Refusal> {
    match operation.kind {
        SetKind::Union => {}
        SetKind::Intersect => return Err(Refusal::without_rule("INTERSECT")),
        SetKind::Except => return Err(Refusal::without_rule("EXCEPT")),
    }
    let columns: Vec<_> = match needed {
        Some(needed) => needed.iter().map(|it| operation.columns[*it]).collect(),
        None => operation.columns.clone(),
    };
    let mut inputs = Vec::new();
    for side in [operation.left, operation.right] {
        match cast(lower_tree(lowering, scope, side, needed)?, &columns) {
            Plan::Sum { inputs: more } => inputs.extend(more),
            plan => inputs.push(plan),
        }
    }
    Ok(Plan::Sum { inputs })
}

/// UNION must go by the types' own equality.
fn check_equalities(operation: &SetOperation<'_>) -> Result<(), Refusal> {
    let mut columns = operation.columns.iter().zip(&operation.equalities);
    if columns.all(|((ty, ..), equality)| types::equality(*ty) == Some(*equality)) {
        return Ok(());
    }
    Err(Refusal::without_rule("UNION by an equality other than the type's own"))
}

/// The plan with its columns as the set operation has them.
pub fn cast(plan: Plan, columns: &[(Oid, i32, Oid)]) -> Plan {
    let schema = plan.schema();
    let types: Vec<Type> = columns
        .iter()
        .map(|(ty, typmod, collation)| types::describe(*ty, *typmod, *collation))
        .collect();
    if schema.iter().map(|it| &it.ty).eq(&types) {
        return plan;
    }
    let cast = |(position, ty): (usize, Type)| {
        let column = &schema[position];
        let own = &column.ty;
        let (oid, typmod, collation) = columns[position];
        let value = input(position, own.oid.into(), own.typmod, own.collation.into());
        let mut scalar = scalar(coerced(value, oid, typmod, collation), &schema);
        scalar.ty = ty;
        (scalar, column.name.clone())
    };
    let columns = types.into_iter().enumerate().map(cast).collect();
    Plan::Project { input: Box::new(plan), columns }
}

/// The plan with other column names.
fn renamed(plan: Plan, names: &[String]) -> Plan {
    let schema = plan.schema();
    if schema.iter().map(|it| &it.name).eq(names) {
        return plan;
    }
    let columns = schema
        .iter()
        .zip(names)
        .enumerate()
        .map(|(position, (column, name))| (Scalar::column(position, column), name.clone()))
        .collect();
    Plan::Project { input: Box::new(plan), columns }
}
