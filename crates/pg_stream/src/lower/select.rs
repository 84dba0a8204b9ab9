//! One query: FROM and WHERE, then grouping, then the select list, then DISTINCT.

use pgstream_ivm::plan::{Column, Plan};
use pgstream_ivm::scalar::Scalar;

use super::expression::{place, scalar};
use super::from::From;
use super::refusal::{Refusal, check_clauses, check_expression};
use super::{Lowering, Scope, from, group, opaque, set_operation};
use crate::pg::node::{EntryKind, Node, Query, SortGroup, Target};
use crate::pg::{query as analysis, types};

/// Lowers a query to a plan with those of its output columns that are `needed`, in that order;
/// all of them for `None`.
pub fn lower<'a>(
    lowering: &mut Lowering,
    query: Query<'a>,
    outer: Option<&Scope<'_, 'a>>,
    needed: Option<&[usize]>,
) -> Result<Plan, Refusal> {
    match lower_by_rules(lowering, query, outer, needed) {
        Err(refusal) => Ok(columns_of(opaque::lower(lowering, query, refusal)?, needed)),
        lowered => lowered,
    }
}

fn lower_by_rules<'a>(
    lowering: &mut Lowering,
    query: Query<'a>,
    outer: Option<&Scope<'_, 'a>>,
    needed: Option<&[usize]>,
) -> Result<Plan, Refusal> {
    analysis::check_depth();
    check_clauses(query)?;
    let scope = Scope { query, outer };
    if let Some(tree) = query.set_operations() {
        return set_operation::lower(lowering, &scope, tree, needed, &output_names(query));
    }
    if query.distinct().is_empty() {
        return lower_rows(lowering, &scope, needed);
    }
    check_distinct(query)?;
    let distinct = lower_rows(lowering, &scope, None)?.distinct();
    Ok(columns_of(distinct, needed))
}

/// Names of the output columns.
pub fn output_names(query: Query<'_>) -> Vec<String> {
    query.targets().into_iter().filter(|it| !it.junk).map(|it| it.name).collect()
}

/// The columns at these positions.
pub fn columns_of(plan: Plan, needed: Option<&[usize]>) -> Plan {
    let Some(needed) = needed else { return plan };
    let schema = plan.schema();
    if needed.iter().copied().eq(0..schema.len()) {
        return plan;
    }
    let columns = needed
        .iter()
        .map(|it| {
            let column = &schema[*it];
            (Scalar::column(*it, column), column.name.clone())
        })
        .collect();
    Plan::Project { input: Box::new(plan), columns }
}

/// The rows before DISTINCT.
fn lower_rows<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    needed: Option<&[usize]>,
) -> Result<Plan, Refusal> {
    let select = Select::new(scope.query, needed)?;
    let from = from::lower(lowering, scope, &select)?;
    let (input, expressions) = if scope.query.has_aggregation() {
        let grouped = group::lower(from, &select)?;
        (grouped.plan, grouped.targets)
    } else {
        let From { plan, places } = from;
        let targets = select.targets.iter().map(|it| place(it.expression, &places));
        (plan, targets.collect::<Result<Vec<_>, _>>()?)
    };
    let schema = input.schema();
    let columns: Vec<_> = expressions
        .into_iter()
        .zip(&select.targets)
        .map(|(expression, target)| (scalar(expression, &schema), target.name.clone()))
        .collect();
    if is_identity(&columns, &schema) {
        return Ok(input);
    }
    Ok(Plan::Project { input: Box::new(input), columns })
}

/// Whether projecting to these columns would change nothing.
fn is_identity(columns: &[(Scalar, String)], schema: &[Column]) -> bool {
    let same = |(position, (scalar, name)): (usize, &(Scalar, String))| {
        scalar.as_column() == Some(position)
            && scalar.ty == schema[position].ty
            && *name == schema[position].name
    };
    columns.len() == schema.len() && columns.iter().enumerate().all(same)
}

/// The expressions of a query, over the columns of its tables and sub-queries only: those of
/// joins and virtual generated columns are replaced by what they stand for.
pub struct Select<'a> {
    pub targets: Vec<Target<'a>>,
    pub having: Option<Node<'a>>,
    /// Position of the grouping entry in the range table.
    pub group_entry: Option<usize>,
    /// What is grouped by; column `n` of the grouping entry is the `n`-th from 1.
    pub keys: Vec<Node<'a>>,
    /// The tables and sub-queries, in the order of FROM, with the conditions of WHERE and of the
    /// joins, taken apart.
    pub from: from::Side<'a>,
}

impl<'a> Select<'a> {
    fn new(query: Query<'a>, needed: Option<&[usize]>) -> Result<Self, Refusal> {
        let query = analysis::without_join_aliases(query);
        let mut all: Vec<_> = query.targets().into_iter().filter(|it| !it.junk).collect();
        if let Some(needed) = needed {
            all = needed.iter().map(|it| all[*it].clone()).collect();
        }
        let mut select = Self {
            targets: all,
            having: query.having(),
            group_entry: None,
            keys: Vec::new(),
            from: from::Side::default(),
        };
        for (index, entry) in query.entries().into_iter().enumerate() {
            if let EntryKind::Group(keys) = entry.kind() {
                check_group_by(query, &keys)?;
                select.group_entry = Some(index + 1);
                select.keys = keys;
            }
        }
        if let Some(tree) = query.from() {
            select.from.gather(tree)?;
        }
        let expand = from::VirtualColumns::of(query);
        let optional = select.from.optional_entries();
        expand.check(select.expressions().into_iter(), &optional)?;
        select.map_expressions(|it| expand.expanded(it));
        select.expressions().into_iter().try_for_each(check_expression)?;
        Ok(select)
    }

    fn map_expressions(&mut self, f: impl Fn(Node<'a>) -> Node<'a>) {
        for target in &mut self.targets {
            target.expression = f(target.expression);
        }
        for expression in self.keys.iter_mut().chain(&mut self.having) {
            *expression = f(*expression);
        }
        self.from.map_conditions(&f);
    }

    /// Every expression in it.
    pub fn expressions(&self) -> Vec<Node<'a>> {
        let targets = self.targets.iter().map(|it| it.expression);
        let rest = self.keys.iter().chain(&self.having).copied();
        targets.chain(rest).chain(self.from.all_conditions()).collect()
    }
}

fn check_group_by(query: Query<'_>, keys: &[Node<'_>]) -> Result<(), Refusal> {
    let items = query.group_by();
    keys.iter().zip(&items).try_for_each(|(key, item)| check_equality(*key, item))
}

fn check_distinct(query: Query<'_>) -> Result<(), Refusal> {
    let targets = query.targets();
    query.distinct().iter().try_for_each(|item| {
        match targets.iter().find(|it| it.reference == item.reference) {
            Some(target) => check_equality(target.expression, item),
            None => Ok(()),
        }
    })
}

/// Grouping must go by the type's own equality; `ORDER BY … USING` can bring another one.
fn check_equality(expression: Node<'_>, item: &SortGroup) -> Result<(), Refusal> {
    if types::equality(expression.type_oid()) == Some(item.equality) {
        return Ok(());
    }
    let words = "grouping by an equality other than the type's own";
    Err(Refusal::without_rule(words).at(expression.location()))
}
