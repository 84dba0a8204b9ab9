//! DISTINCT ON, and LIMIT and OFFSET of sub-queries, as filters over numbered rows.
//!
//! ```text
//! DISTINCT ON (k) … ORDER BY k, o       row_number() OVER (PARTITION BY k ORDER BY k, o) = 1
//! ORDER BY o OFFSET m LIMIT n           row_number() OVER (ORDER BY o) BETWEEN m + 1 AND m + n
//! … FETCH FIRST n ROWS WITH TIES        row_number() OVER w > m AND rank() OVER w <= m + n
//! ```
//!
//! What ORDER BY leaves open is decided anew with each evaluation of a partition.

use pgstream_ivm::plan::Plan;
use pgstream_ivm::scalar::{Scalar, Segment};

use super::refusal::Refusal;
use super::select::{self, columns_of, output_names};
use super::window::{self, Call, Values};
use super::{Lowering, Scope, set_operation};
use crate::pg::node::{Kind, Node, Query, input};
use crate::pg::query as analysis;
use crate::pg::types;
use crate::pg::window::{Ranking, Window};

/// How many rows are skipped, and how many taken.
#[derive(Clone, Copy)]
struct Limit {
    offset: i64,
    count: Option<i64>,
    has_ties: bool,
}

impl Limit {
    /// `None` when all rows are taken.
    fn of(query: Query<'_>) -> Result<Option<Self>, Refusal> {
        let offset = query.offset().map(|it| constant(it, "OFFSET")).transpose()?.flatten();
        let count = query.limit().map(|it| constant(it, "LIMIT")).transpose()?.flatten();
        let limit = Self { offset: offset.unwrap_or(0), count, has_ties: query.limit_has_ties() };
        Ok((limit.offset > 0 || limit.count.is_some()).then_some(limit))
    }
}

/// The value of a clause; `None` for NULL, which means that there is no limit.
fn constant(clause: Node<'_>, words: &str) -> Result<Option<i64>, Refusal> {
    let folded = analysis::folded(clause);
    if matches!(folded.kind(), Kind::Constant { null: true }) {
        return Ok(None);
    }
    let value = folded.constant_text().and_then(|it| it.parse().ok());
    match value {
        Some(value @ 0..) => Ok(Some(value)),
        // PostgreSQL's own error, when it is evaluated.
        Some(_) => Err(Refusal::without_rule(format!("a negative {words}"))),
        None => Err(Refusal::without_rule(format!("{words} that is not constant"))),
    }
    .map_err(|it| it.at(clause.location()))
}

/// Whether a clause takes all rows: LIMIT ALL, LIMIT NULL, OFFSET 0.
pub fn takes_all(clause: Node<'_>, words: &str) -> bool {
    match constant(clause, words) {
        Ok(value) => value.is_none_or(|it| it == 0 && words == "OFFSET"),
        Err(_) => false,
    }
}

/// Whether there is something to do here.
pub fn is_in(query: Query<'_>) -> Result<bool, Refusal> {
    Ok(query.has_distinct_on() || Limit::of(query)?.is_some())
}

/// Lowers a query with DISTINCT ON, LIMIT or OFFSET.
pub fn lower<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    needed: Option<&[usize]>,
) -> Result<Plan, Refusal> {
    let query = scope.query;
    let limit = Limit::of(query)?;
    let (mut plan, columns) = ordered_rows(lowering, scope, needed)?;
    if limit.is_some_and(|it| it.count == Some(0)) {
        // Nothing is evaluated, so nothing can fail.
        plan = Plan::Empty(plan.schema());
    }
    let targets = query.targets();
    let schema = plan.schema();
    let domain: Vec<usize> = (0..scope.domain_nodes().len()).collect();
    let values: Values<'a> = columns
        .iter()
        .enumerate()
        .map(|(at, target)| {
            let at = domain.len() + at;
            let ty = &schema[at].ty;
            let value = input(at, ty.oid.into(), ty.typmod, ty.collation.into());
            (targets[*target].reference, value)
        })
        .filter(|it| it.0 != 0)
        .collect();
    if query.has_distinct_on() {
        let what = (query.distinct_window(), "DISTINCT ON", false);
        plan = numbered(lowering, plan, what, (&values, &domain), |number, _| {
            vec![Segment::Column(number), Segment::Text(" = 1".to_owned())]
        })?;
    }
    if let Some(limit) = limit.filter(|it| it.count != Some(0)) {
        let condition = |number, rank| limit.condition(number, rank);
        let words = if limit.count.is_some() { "LIMIT" } else { "OFFSET" };
        let what = (query.order_window(), words, limit.has_ties);
        plan = numbered(lowering, plan, what, (&values, &domain), condition)?;
    }
    let place = |target: usize| columns.iter().position(|it| *it == target);
    let shown: Option<Vec<usize>> = match needed {
        Some(needed) => needed.iter().map(|it| place(*it)).collect(),
        None => (0..targets.len()).filter(|it| !targets[*it].junk).map(place).collect(),
    };
    let shown = shown.expect("they are among the columns");
    Ok(columns_of(plan, Some(&scope.after_domain(&shown))))
}

/// The rows to be numbered, and which targets their columns are.
fn ordered_rows<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    needed: Option<&[usize]>,
) -> Result<(Plan, Vec<usize>), Refusal> {
    let query = scope.query;
    let targets = query.targets();
    let is_shown = |it: &usize| !targets[*it].junk;
    if let Some(tree) = query.set_operations() {
        let all = (0..targets.len()).filter(is_shown).collect();
        let names = output_names(query);
        return Ok((set_operation::lower(lowering, scope, tree, None, &names)?, all));
    }
    if !query.distinct().is_empty() && !query.has_distinct_on() {
        let all = (0..targets.len()).filter(is_shown).collect();
        return Ok((select::lower_distinct(lowering, scope)?, all));
    }
    let mut items = query.order();
    items.extend(query.distinct());
    let is_referred_to =
        |it: &usize| items.iter().any(|item| item.reference == targets[*it].reference);
    let is_needed = |it: &usize| match needed {
        Some(needed) => needed.contains(it),
        None => is_shown(it),
    };
    let columns: Vec<usize> =
        (0..targets.len()).filter(|it| is_needed(it) || is_referred_to(it)).collect();
    Ok((select::lower_rows(lowering, scope, Some(&columns))?, columns))
}

/// `plan` with its rows numbered, those that fulfil the condition on number and rank.
fn numbered<'a>(
    lowering: &mut Lowering,
    plan: Plan,
    (window, construct, has_ties): (Window<'a>, &str, bool),
    (values, domain): (&Values<'a>, &[usize]),
    condition: impl Fn(usize, Option<usize>) -> Vec<Segment>,
) -> Result<Plan, Refusal> {
    let call = |ranking: Ranking, name: &str| Call {
        call: ranking.call(),
        window,
        name: name.to_owned(),
        by_position: (!has_ties).then(|| construct.to_owned()),
    };
    let mut calls = vec![call(Ranking::RowNumber, "row_number")];
    if has_ties {
        calls.push(call(Ranking::Rank, "rank"));
    }
    let (plan, places) = window::add(lowering, plan, &calls, values, domain)?;
    let condition = Scalar {
        segments: condition(places[0], places.get(1).copied()),
        ty: types::describe(types::BOOLEAN, -1, types::NO_COLLATION),
        nullable: false,
        scale: None,
    };
    match plan {
        Plan::Window { input, partition, calls, ranking, filter: None } => {
            Ok(Plan::Window { input, partition, calls, ranking, filter: Some(condition) })
        }
        _ => unreachable!("one window was added"),
    }
}

impl Limit {
    fn condition(self, number: usize, rank: Option<usize>) -> Vec<Segment> {
        let text = |it: String| Segment::Text(it);
        let mut segments =
            vec![Segment::Column(number), text(format!(" > {}::bigint", self.offset))];
        match self.count {
            None => {}
            Some(count) => {
                let last = self.offset.saturating_add(count);
                segments.push(text(" AND ".to_owned()));
                segments.push(Segment::Column(rank.unwrap_or(number)));
                segments.push(text(format!(" <= {last}::bigint")));
            }
        }
        segments
    }
}
