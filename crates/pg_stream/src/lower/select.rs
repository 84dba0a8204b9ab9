//! One query: FROM and WHERE, then grouping, then window functions, then the select list, then
//! DISTINCT, then LIMIT.

use std::collections::BTreeSet;

use pgstream_ivm::plan::{Column, Plan};
use pgstream_ivm::scalar::Scalar;

use super::expression::{place, scalar};
use super::from::From;
use super::lateral::{self, Laterals};
use super::refusal::{Refusal, check_clauses, check_expression};
use super::sub_link::{self, Attaching, Domain};
use super::{
    Lowering, Scope, from, group, grouping_sets, limit, opaque, open, set_operation, window,
};
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
    match lower_for(lowering, query, outer, None, needed) {
        // The whole of a sub-query in a view that hides something is more than it shows.
        Err(refusal) if !lowering.is_hidden => {
            Ok(columns_of(opaque::lower(lowering, query, refusal)?, needed))
        }
        lowered => lowered,
    }
}

/// Lowers a query that refers to columns of those around it: its result for each row of the domain,
/// whose columns come first.
pub fn lower_for<'a>(
    lowering: &mut Lowering,
    query: Query<'a>,
    outer: Option<&Scope<'_, 'a>>,
    domain: Option<&Domain<'a>>,
    needed: Option<&[usize]>,
) -> Result<Plan, Refusal> {
    check_fit(query)?;
    let scope = Scope { query, outer, domain };
    let plan = lower_in(lowering, &scope, needed)?;
    check_size(&plan, 1)?;
    Ok(plan)
}

fn lower_in<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    needed: Option<&[usize]>,
) -> Result<Plan, Refusal> {
    let query = scope.query;
    if scope.domain.is_some() {
        sub_link::check_for_domain(query)?;
    }
    if limit::is_in(query)? {
        return limit::lower(lowering, scope, needed);
    }
    if let Some(tree) = query.set_operations() {
        return set_operation::lower(lowering, scope, tree, needed, &output_names(query));
    }
    if query.distinct().is_empty() {
        return lower_rows(lowering, scope, needed);
    }
    let distinct = lower_distinct(lowering, scope)?;
    let Some(needed) = needed else { return Ok(distinct) };
    Ok(columns_of(distinct, Some(&scope.after_domain(needed))))
}

/// SELECT DISTINCT with all of its columns.
pub fn lower_distinct<'a>(lowering: &mut Lowering, scope: &Scope<'_, 'a>) -> Result<Plan, Refusal> {
    check_distinct(scope.query)?;
    let rows = lower_rows(lowering, scope, None)?;
    check_group_width(rows.schema().len())?;
    Ok(rows.distinct())
}

/// Refuses groups with so many values that an old row and a new one have no room beside each other.
pub fn check_group_width(values: usize) -> Result<(), Refusal> {
    const MOST: usize = 800;
    if values > MOST {
        return Err(Refusal::without_rule(format!("groups of more than {MOST} columns")));
    }
    Ok(())
}

/// Refuses so many copies of a plan, as some constructs make, before there is no memory for them.
pub fn check_size(plan: &Plan, copies: usize) -> Result<(), Refusal> {
    const MOST: usize = 250_000;
    analysis::check_for_interrupts();
    if plan.size().saturating_mul(copies) > MOST {
        return Err(Refusal::without_rule("a query of this complexity"));
    }
    Ok(())
}

/// Refuses clauses without a rule.
pub fn check_fit(query: Query<'_>) -> Result<(), Refusal> {
    analysis::check_for_interrupts();
    analysis::check_depth();
    check_clauses(query)
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

/// The rows before DISTINCT and LIMIT: the domain's columns, then the needed ones, which can be junk.
pub fn lower_rows<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    needed: Option<&[usize]>,
) -> Result<Plan, Refusal> {
    let mut select = Select::new(scope.query, needed)?;
    select.prefix = scope.domain_nodes().to_vec();
    let from = from::lower(lowering, scope, &select)?;
    finish(lowering, scope, select, from)
}

/// What stands above FROM: conditions with sub-queries, grouping, the select list. The columns of
/// the prefix come first.
pub fn finish<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    mut select: Select<'a>,
    from: From,
) -> Result<Plan, Refusal> {
    let outputs = select.targets.iter().map(|it| it.expression).chain(select.having);
    open::check_order(lowering, scope.query, outputs)?;
    let mut attaching = Attaching::new(lowering, scope, from);
    attaching.filter(&std::mem::take(&mut select.late))?;
    let prefix = select.prefix.len();
    let from = if scope.query.has_aggregation() {
        attaching.inside_aggregates(&mut select)?;
        let below = attaching.into_from();
        let mut from = group::lower(lowering, below, &mut select)?;
        // The prefix is grouped by, and stands first.
        select.prefix = Vec::new();
        let mut attaching = Attaching::new(lowering, scope, from);
        if let Some(having) = select.having.take() {
            attaching.filter(&having.conjuncts())?;
        }
        attaching.targets(&mut select)?;
        from = attaching.into_from();
        from
    } else {
        attaching.targets(&mut select)?;
        attaching.into_from()
    };
    let schema = from.plan.schema();
    let mut outside = Vec::new();
    for position in 0..prefix {
        outside.push(match select.prefix.get(position) {
            Some(node) => scalar(place(*node, &from.places)?, &schema),
            None => Scalar::column(position, &schema[position]),
        });
    }
    let expressions = select.targets.iter().map(|it| place(it.expression, &from.places));
    let expressions = expressions.collect::<Result<Vec<_>, _>>()?;
    let domain: Vec<usize> = outside.iter().filter_map(Scalar::as_column).collect();
    let (input, expressions) = window::lower(lowering, &select, from.plan, expressions, &domain)?;
    let names = select.targets.iter().map(|it| it.name.clone());
    let mut targets: Vec<_> = expressions.into_iter().zip(names).collect();
    let (input, sets) = lateral::lower_sets(input, &targets);
    let schema = input.schema();
    targets.truncate(select.shown - select.multipliers);
    let shown = targets.into_iter().enumerate().map(|(index, (expression, name))| {
        let scalar = match sets.get(&index) {
            Some(position) => Scalar::column(*position, &schema[*position]),
            None => scalar(expression, &schema),
        };
        (scalar, name)
    });
    let outside = outside.into_iter().enumerate();
    let outside = outside.map(|(position, it)| (it, format!("outer{}", position + 1)));
    let columns: Vec<_> = outside.chain(shown).collect();
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
/// joins are replaced by what they stand for.
pub struct Select<'a> {
    pub query: Query<'a>,
    /// What is shown, then set-returning functions that are not, but multiply the rows, then what
    /// else the windows refer to.
    pub targets: Vec<Target<'a>>,
    /// How many of them the rows above the windows have.
    pub shown: usize,
    /// How many of those only multiply the rows.
    pub multipliers: usize,
    pub having: Option<Node<'a>>,
    /// Position of the grouping entry in the range table.
    pub group_entry: Option<usize>,
    /// What is grouped by; column `n` of the grouping entry is the `n`-th from 1.
    pub keys: Vec<Node<'a>>,
    /// GROUP BY's items, in the order of `keys`.
    pub grouping: Vec<SortGroup>,
    /// Which of the keys are in each grouping set; `None` without grouping sets.
    pub sets: Option<Vec<grouping_sets::Set>>,
    /// The tables and sub-queries, in the order of FROM, with the conditions of WHERE and of the
    /// joins, taken apart.
    pub from: from::Side<'a>,
    /// The items of FROM that are LATERAL without tables.
    pub laterals: Laterals<'a>,
    /// Those of them with sub-queries, which are looked at when all rows are joined.
    pub late: Vec<Node<'a>>,
    /// Expressions that come out first, and that are grouped by before all others.
    pub prefix: Vec<Node<'a>>,
}

impl<'a> Select<'a> {
    pub fn new(query: Query<'a>, needed: Option<&[usize]>) -> Result<Self, Refusal> {
        let query = analysis::without_join_aliases(query);
        let all = query.targets();
        let mut targets: Vec<_> = match needed {
            Some(needed) => needed.iter().map(|it| all[*it].clone()).collect(),
            None => all.iter().filter(|it| !it.junk).cloned().collect(),
        };
        let is_taken = |at: usize| match needed {
            Some(needed) => needed.contains(&at),
            None => !all[at].junk,
        };
        let hidden = (0..all.len()).filter(|at| !is_taken(*at)).map(|at| all[at].clone());
        let multipliers: Vec<_> = hidden.filter(|it| it.expression.returns_set()).collect();
        check_sets(query, &all)?;
        let multiplier_count = multipliers.len();
        targets.extend(multipliers);
        let shown = targets.len();
        targets.extend(window::referenced(query, &targets, &all));
        let mut select = Self {
            query,
            targets,
            shown,
            multipliers: multiplier_count,
            having: query.having(),
            group_entry: None,
            keys: Vec::new(),
            grouping: query.group_by(),
            sets: grouping_sets::of(query)?,
            laterals: Laterals::new(),
            from: from::Side::default(),
            late: Vec::new(),
            prefix: Vec::new(),
        };
        for (index, entry) in query.entries().into_iter().enumerate() {
            if let EntryKind::Group(keys) = entry.kind() {
                check_group_by(query, &keys)?;
                select.group_entry = Some(index + 1);
                select.keys = keys;
            }
        }
        if let Some(tree) = query.from() {
            select.from.gather(query, tree)?;
            select.from.reduce(&BTreeSet::new());
        }
        for (entry, outer) in select.from.leaves() {
            if let Some(item) = lateral::of(query, entry, outer)? {
                select.laterals.insert(entry, item);
            }
        }
        select.expressions().into_iter().try_for_each(check_expression)?;
        select.late = select.from.take_late();
        Ok(select)
    }

    /// Every expression in it.
    pub fn expressions(&self) -> Vec<Node<'a>> {
        let targets = self.targets.iter().map(|it| it.expression);
        let rest = self.keys.iter().chain(&self.late).chain(&self.having).chain(&self.prefix);
        targets.chain(rest.copied()).chain(self.from.all_conditions()).collect()
    }
}

/// Windows over what set-returning functions return have no rule.
fn check_sets(query: Query<'_>, targets: &[Target<'_>]) -> Result<(), Refusal> {
    let is_referenced = |it: &&Target<'_>| it.reference != 0 && it.expression.returns_set();
    match targets.iter().find(is_referenced).filter(|_| query.has_windows()) {
        Some(target) => {
            let words = "a window over a set-returning function";
            Err(Refusal::without_rule(words).at(target.expression.location()))
        }
        None => Ok(()),
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
pub fn check_equality(expression: Node<'_>, item: &SortGroup) -> Result<(), Refusal> {
    if types::equality(expression.type_oid()) == Some(item.equality) {
        return Ok(());
    }
    let words = "grouping by an equality other than the type's own";
    Err(Refusal::without_rule(words).at(expression.location()))
}
