//! One query: FROM and WHERE, then grouping, then the select list, then DISTINCT.

use std::collections::BTreeMap;

use pgstream_ivm::plan::{Column, Plan};
use pgstream_ivm::scalar::Scalar;

use super::expand::Item;
use super::expression::{place, scalar};
use super::from::{From, Gathered};
use super::refusal::{Refusal, check_clauses, check_expression};
use super::{Lowering, Scope, expand, from, group, grouping_sets, opaque, set_operation};
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
    let names = select.targets.iter().map(|it| it.name.clone());
    let mut targets: Vec<_> = expressions.into_iter().zip(names).collect();
    let (input, sets) = expanded(input, &targets);
    let schema = input.schema();
    targets.truncate(select.shown);
    let column = |(index, (expression, name)): (usize, (Node<'_>, String))| {
        let scalar = match sets.get(&index) {
            Some(position) => Scalar::column(*position, &schema[*position]),
            None => scalar(expression, &schema),
        };
        (scalar, name)
    };
    let columns: Vec<_> = targets.into_iter().enumerate().map(column).collect();
    if is_identity(&columns, &schema) {
        return Ok(input);
    }
    Ok(Plan::Project { input: Box::new(input), columns })
}

/// The rows of `input` with those of the set-returning targets, and where each of these is.
fn expanded(input: Plan, targets: &[(Node<'_>, String)]) -> (Plan, BTreeMap<usize, usize>) {
    let sets: Vec<usize> =
        (0..targets.len()).filter(|it| targets[*it].0.returns_set()).collect();
    if sets.is_empty() {
        return (input, BTreeMap::new());
    }
    let width = input.schema().len();
    let expressions: Vec<_> = sets.iter().map(|it| targets[*it].clone()).collect();
    let places = sets.iter().enumerate().map(|(index, it)| (*it, width + index)).collect();
    (expand::lower_expressions(input, &expressions), places)
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
    /// What is shown, then set-returning functions that are not, but multiply the rows.
    pub targets: Vec<Target<'a>>,
    /// How many targets are shown.
    pub shown: usize,
    pub having: Option<Node<'a>>,
    /// Position of the grouping entry in the range table.
    pub group_entry: Option<usize>,
    /// What is grouped by; column `n` of the grouping entry is the `n`-th from 1.
    pub keys: Vec<Node<'a>>,
    /// GROUP BY's items, in the order of `keys`.
    pub grouping: Vec<SortGroup>,
    /// Which of the keys are in each grouping set; `None` without grouping sets.
    pub sets: Option<Vec<grouping_sets::Set>>,
    /// The tables and sub-queries, in the order of FROM.
    pub leaves: Vec<usize>,
    /// Those that are LATERAL without tables.
    pub items: BTreeMap<usize, Item<'a>>,
    /// The conditions of WHERE and of the joins, taken apart.
    pub conditions: Vec<Node<'a>>,
}

impl<'a> Select<'a> {
    fn new(query: Query<'a>, needed: Option<&[usize]>) -> Result<Self, Refusal> {
        let query = analysis::without_join_aliases(query);
        let (junk, mut all): (Vec<_>, Vec<_>) = query.targets().into_iter().partition(|it| it.junk);
        let mut hidden = junk;
        if let Some(needed) = needed {
            let is_hidden = |at: &usize| !needed.contains(at);
            hidden.extend((0..all.len()).filter(is_hidden).map(|it| all[it].clone()));
            all = needed.iter().map(|it| all[*it].clone()).collect();
        }
        let shown = all.len();
        all.extend(hidden.into_iter().filter(|it| it.expression.returns_set()));
        let mut gathered = Gathered::default();
        if let Some(tree) = query.from() {
            from::gather(query, tree, &mut gathered)?;
        }
        let expand = from::VirtualColumns::of(query);
        let mut items = BTreeMap::new();
        for leaf in &gathered.leaves {
            if let Some(item) = expand::item(query, *leaf, &gathered.outer_items, &expand)? {
                items.insert(*leaf, item);
            }
        }
        let mut select = Self {
            targets: all,
            shown,
            having: query.having(),
            group_entry: None,
            keys: Vec::new(),
            grouping: query.group_by(),
            sets: grouping_sets::of(query)?,
            leaves: gathered.leaves,
            items,
            conditions: gathered.conditions,
        };
        for (index, entry) in query.entries().into_iter().enumerate() {
            if let EntryKind::Group(keys) = entry.kind() {
                check_group_by(query, &keys)?;
                select.group_entry = Some(index + 1);
                select.keys = keys;
            }
        }
        select.map_expressions(|it| expand.expanded(it));
        select.expressions().try_for_each(check_expression)?;
        Ok(select)
    }

    fn map_expressions(&mut self, f: impl Fn(Node<'a>) -> Node<'a>) {
        for target in &mut self.targets {
            target.expression = f(target.expression);
        }
        for expression in self.keys.iter_mut().chain(&mut self.conditions).chain(&mut self.having) {
            *expression = f(*expression);
        }
    }

    /// Every expression in it.
    pub fn expressions(&self) -> impl Iterator<Item = Node<'a>> {
        let targets = self.targets.iter().map(|it| it.expression);
        targets.chain(self.keys.iter().chain(&self.conditions).chain(&self.having).copied())
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
