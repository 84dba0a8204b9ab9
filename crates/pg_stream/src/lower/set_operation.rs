//! UNION, INTERSECT and EXCEPT, each with and without ALL.
//!
//! UNION ALL adds up its sides, UNION makes the sum distinct. INTERSECT and EXCEPT group the sum by
//! all columns and count the rows of each side, `l` and `r`. A group comes out `f(l, r)` times:
//!
//! ```text
//! INTERSECT      l > 0 and r > 0           INTERSECT ALL  min(l, r)
//! EXCEPT         l > 0 and r = 0           EXCEPT ALL     max(l − r, 0)
//! ```
//!
//! so their cost is that of an aggregate, which follows the change. Of equal values that look
//! different PostgreSQL shows one of the left side in EXCEPT, and one of either in INTERSECT.

use pgstream_ivm::plan::{AggregateCall, AggregateFunction, Column, Plan};
use pgstream_ivm::scalar::{Scalar, Segment, Type};

use super::expression::scalar;
use super::refusal::Refusal;
use super::select::{self, columns_of};
use super::{Lowering, Scope, sub_link};
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
    let outside = scope.domain_columns().into_iter().map(|it| it.name);
    let shown = needed.unwrap_or(&all).iter().map(|it| names[*it].clone());
    let names: Vec<_> = outside.chain(shown).collect();
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
        Some(SetTree::Operation(operation)) if is_sum(&operation) => {
            return lower_sum(lowering, scope, &operation, needed);
        }
        Some(SetTree::Operation(operation)) => {
            check_equalities(&operation)?;
            let plan = match operation.kind {
                SetKind::Union => lower_sum(lowering, scope, &operation, None)?.distinct(),
                SetKind::Intersect | SetKind::Except => lower_counted(lowering, scope, &operation)?,
            };
            let needed = needed.map(|it| scope.after_domain(it));
            return Ok(columns_of(plan, needed.as_deref()));
        }
        None => return Err(Refusal::without_rule("this set operation")),
    };
    match scope.query.entry(entry).map(|it| it.kind()) {
        Some(EntryKind::SubQuery(query)) => match scope.domain {
            Some(domain) => sub_link::lower_branch(lowering, query, scope, domain, needed),
            None => select::lower(lowering, query, Some(scope), needed),
        },
        _ => Err(Refusal::without_rule("this set operation")),
    }
}

fn lower_sum<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    operation: &SetOperation<'a>,
    needed: Option<&[usize]>,
) -> Result<Plan, Refusal> {
    let all: Vec<usize> = (0..operation.columns.len()).collect();
    let columns = column_types(scope, operation, needed.unwrap_or(&all));
    let mut inputs = Vec::new();
    for side in [operation.left, operation.right] {
        match cast(lower_tree(lowering, scope, side, needed)?, &columns) {
            Plan::Sum { inputs: more } => inputs.extend(more),
            plan => inputs.push(plan),
        }
    }
    Ok(Plan::Sum { inputs })
}

/// The types of the domain's columns and of those of the operation that are needed.
fn column_types(
    scope: &Scope<'_, '_>,
    operation: &SetOperation<'_>,
    needed: &[usize],
) -> Vec<(Oid, i32, Oid)> {
    let outside = scope.domain_columns().into_iter().map(|it| it.ty);
    let outside = outside.map(|it| (it.oid.into(), it.typmod, it.collation.into()));
    outside.chain(needed.iter().map(|it| operation.columns[*it])).collect()
}

fn is_sum(operation: &SetOperation<'_>) -> bool {
    operation.all && operation.kind == SetKind::Union
}

/// INTERSECT or EXCEPT; see the module.
fn lower_counted<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    operation: &SetOperation<'a>,
) -> Result<Plan, Refusal> {
    let all: Vec<usize> = (0..operation.columns.len()).collect();
    let types = column_types(scope, operation, &all);
    let mut side = |tree: Node<'a>, tags: [&str; 2]| {
        let plan = cast(lower_tree(lowering, scope, tree, None)?, &types);
        let schema = plan.schema();
        let columns = columns(&schema).chain(tags.map(|it| (literal(it), "side".to_owned())));
        Ok(Plan::Project { columns: columns.collect(), input: Box::new(plan) })
    };
    let sides = vec![side(operation.left, ["1", "0"])?, side(operation.right, ["0", "1"])?];
    let both = Plan::Sum { inputs: sides };
    let schema = both.schema();
    let width = schema.len() - 2;
    let (keys, tags) = schema.split_at(width);
    let mut calls: Vec<AggregateCall> =
        tags.iter().enumerate().map(|(index, tag)| total(width + index, tag)).collect();
    // With ALL, a group can have rows of both sides, and must show one of the left.
    let is_shown =
        |it: &usize| operation.kind == SetKind::Except && operation.all && !keys[*it].is_exact();
    let mut shown: Vec<usize> = (0..width).collect();
    for key in (0..width).filter(is_shown) {
        shown[key] = width + calls.len();
        calls.push(any_of_left(key, &keys[key], width));
    }
    let groups = Plan::Aggregate { input: Box::new(both), keys: (0..width).collect(), calls };
    let chosen = chosen(groups, operation, [width, width + 1]);
    Ok(columns_of(chosen, Some(&shown)))
}

/// The groups that come out, as often as they do. `counts` are the columns with `l` and `r`.
fn chosen(groups: Plan, operation: &SetOperation<'_>, counts: [usize; 2]) -> Plan {
    let [left, right] = counts.map(Segment::Column);
    let text = |it: &str| Segment::Text(it.to_owned());
    let (first, between, last) = match (operation.kind, operation.all) {
        (SetKind::Intersect, false) => ("(", " > 0) AND (", " > 0)"),
        (SetKind::Intersect, true) => ("LEAST(", ", ", ")"),
        (_, false) => ("(", " > 0) AND (", " = 0)"),
        (_, true) => ("(", " - ", ")"),
    };
    let mut segments = vec![text(first), left, text(between), right, text(last)];
    if !operation.all {
        let predicate = scalar_of(segments, types::BOOLEAN);
        return Plan::Filter { input: Box::new(groups), predicate };
    }
    segments.insert(0, text("SELECT FROM generate_series(1::int8, "));
    segments.push(text(")"));
    let item = scalar_of(segments, types::BIGINT);
    Plan::Expand { input: Box::new(groups), item, columns: Vec::new(), outer: false }
}

/// `sum` of a column of zeros and ones.
fn total(position: usize, column: &Column) -> AggregateCall {
    let argument = Scalar::column(position, column);
    let call = scalar_of(around("sum(", position, ")"), types::BIGINT);
    let function = AggregateFunction::Sum { argument };
    AggregateCall { call, function, filter: None, name: "rows".to_owned() }
}

/// A value of a column as a row of the left side has it; `tag` is 1 for those.
fn any_of_left(position: usize, column: &Column, tag: usize) -> AggregateCall {
    let mut segments = around("any_value(", position, ") FILTER (WHERE (");
    segments.extend(around("", tag, " = 1))"));
    let call = Scalar { segments, ..Scalar::column(position, column) };
    let function = AggregateFunction::Rescan;
    AggregateCall { call, function, filter: None, name: column.name.clone() }
}

fn around(before: &str, position: usize, after: &str) -> Vec<Segment> {
    let text = |it: &str| Segment::Text(it.to_owned());
    vec![text(before), Segment::Column(position), text(after)]
}

fn literal(text: &str) -> Scalar {
    scalar_of(vec![Segment::Text(text.to_owned())], types::INTEGER)
}

/// A scalar that is never NULL.
fn scalar_of(segments: Vec<Segment>, ty: Oid) -> Scalar {
    let ty = types::describe(ty, -1, types::NO_COLLATION);
    Scalar { segments, ty, nullable: false, scale: None }
}

/// Set operations must go by the types' own equality. Rows without columns have none to go by.
fn check_equalities(operation: &SetOperation<'_>) -> Result<(), Refusal> {
    // Two columns count the rows of the sides.
    select::check_group_width(operation.columns.len() + 2)?;
    if operation.columns.is_empty() {
        return Err(Refusal::without_rule("a set operation on rows without columns"));
    }
    let mut columns = operation.columns.iter().zip(&operation.equalities);
    if columns.all(|((ty, ..), equality)| types::equality(*ty) == Some(*equality)) {
        return Ok(());
    }
    Err(Refusal::without_rule("a set operation by an equality other than the type's own"))
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
    let columns = columns(&schema).zip(names).map(|((it, _), name)| (it, name.clone())).collect();
    Plan::Project { input: Box::new(plan), columns }
}

/// Every column as it is.
fn columns(schema: &[Column]) -> impl Iterator<Item = (Scalar, String)> {
    let column = |(at, it): (usize, &Column)| (Scalar::column(at, it), it.name.clone());
    schema.iter().enumerate().map(column)
}
