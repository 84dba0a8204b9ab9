//! Window functions.
//!
//! They are computed after grouping: their arguments and what their windows are made of are
//! expressions over the grouped rows. Those of PARTITION BY become columns; calls over the same
//! partitions are one operator, and there is one operator above the other for each way to
//! partition. The select list is over the calls' results.

use std::collections::BTreeSet;

use pgstream_ivm::lex;
use pgstream_ivm::plan::{Column, Plan, Ranking};
use pgstream_ivm::scalar::Scalar;

use super::expression::scalar;
use super::refusal::{Refusal, check_expression};
use super::select::{Select, check_equality};
use super::{Lowering, open};
use crate::pg::node::{Kind, Node, Query, SortGroup, Step, Target, input};
use crate::pg::types;
use crate::pg::window::{self, Window, WindowCall};

/// A call to be added to a plan, over the plan's columns.
pub struct Call<'a> {
    pub call: WindowCall<'a>,
    pub window: Window<'a>,
    pub name: String,
    /// What to call it if its result depends on the order of rows that ORDER BY leaves open; `None`
    /// when it does not.
    pub by_position: Option<String>,
}

/// What the windows of a query refer to, over the plan's columns.
pub type Values<'a> = Vec<(u32, Node<'a>)>;

/// The targets that the windows of calls in `targets` refer to.
pub fn referenced<'a>(
    query: Query<'a>,
    targets: &[Target<'a>],
    all: &[Target<'a>],
) -> Vec<Target<'a>> {
    let calls = calls_in(targets.iter().map(|it| it.expression));
    let windows = calls.iter().filter_map(|it| it.window(query));
    let references: BTreeSet<u32> = windows.flat_map(items).map(|it| it.reference).collect();
    all.iter().filter(|it| references.contains(&it.reference)).cloned().collect()
}

fn items(window: Window<'_>) -> Vec<SortGroup> {
    window.partition().into_iter().chain(window.order()).collect()
}

/// The different calls.
fn calls_in<'a>(expressions: impl Iterator<Item = Node<'a>>) -> Vec<WindowCall<'a>> {
    let mut calls: Vec<WindowCall<'a>> = Vec::new();
    for expression in expressions {
        expression.visit(&mut |node| match node.kind() {
            Kind::Window(call) => {
                if !calls.iter().any(|it| it.node().equals(node)) {
                    calls.push(call);
                }
                Step::Over
            }
            _ => Step::Into,
        });
    }
    calls
}

/// Adds the window functions in the targets of `select`, which are `expressions` over the columns
/// of `plan`. Gives what is shown, over the columns of the new plan. Rows that differ in the columns
/// of `domain` are never in one partition.
pub fn lower<'a>(
    lowering: &mut Lowering,
    select: &Select<'a>,
    plan: Plan,
    mut expressions: Vec<Node<'a>>,
    domain: &[usize],
) -> Result<(Plan, Vec<Node<'a>>), Refusal> {
    let references = select.targets.iter().map(|it| it.reference);
    let values: Values<'a> =
        references.zip(expressions.iter().copied()).filter(|it| it.0 != 0).collect();
    expressions.truncate(select.shown);
    let found = calls_in(expressions.iter().copied());
    if found.is_empty() {
        return Ok((plan, expressions));
    }
    let named = expressions.iter().zip(&select.targets);
    let name = |call: WindowCall<'a>| {
        let shown = named.clone().find(|(it, _)| it.equals(call.node()));
        shown.map_or_else(
            || types::plain_function_name(call.function()),
            |(_, target)| target.name.clone(),
        )
    };
    let mut calls = Vec::new();
    for call in &found {
        let window = call.window(select.query);
        let window = window.ok_or_else(|| Refusal::without_rule("this window function"))?;
        let by_position = open::is_by_position(call.function(), window.has_row_frame())
            .then(|| format!("{}() OVER", types::plain_function_name(call.function())));
        calls.push(Call { call: *call, window, name: name(*call), by_position });
    }
    let (plan, places) = add(lowering, plan, &calls, &values, domain)?;
    let over_calls = |expression: Node<'a>| {
        expression.with_inputs(&mut |node, _| match node.kind() {
            Kind::Window(_) => {
                let call = found.iter().position(|it| it.node().equals(node))?;
                Some(places[call])
            }
            _ => None,
        })
    };
    Ok((plan, expressions.into_iter().map(over_calls).collect()))
}

/// `plan` with the results of the calls among its columns, and where they stand.
pub fn add<'a>(
    lowering: &mut Lowering,
    plan: Plan,
    calls: &[Call<'a>],
    values: &Values<'a>,
    domain: &[usize],
) -> Result<(Plan, Vec<usize>), Refusal> {
    let mut input = Input::new(&plan, values);
    // Calls by the columns of their partitions; without PARTITION BY last, since what is computed
    // over all rows changes in many of them.
    for call in calls {
        let Some(construct) = &call.by_position else { continue };
        let items = call.window.order().into_iter().chain(call.window.partition());
        let value = |item: SortGroup| values.iter().find(|it| it.0 == item.reference);
        let order = items.filter_map(value).map(|it| it.1);
        open::note(lowering, construct, &plan, order, domain.iter().copied());
    }
    let mut operators: Vec<(BTreeSet<usize>, Vec<_>)> = Vec::new();
    for (index, call) in calls.iter().enumerate() {
        call.window.frame_offsets().into_iter().try_for_each(check_offset)?;
        let items = call.window.partition();
        let partition = items.iter().map(|it| input.partition_column(it));
        let mut partition = partition.collect::<Result<BTreeSet<usize>, Refusal>>()?;
        partition.extend(domain);
        let call = (index, input.scalar(call, domain));
        match operators.iter_mut().find(|it| it.0 == partition) {
            Some((_, calls)) => calls.push(call),
            None => operators.push((partition, vec![call])),
        }
    }
    operators.sort_by_key(|(partition, _)| partition.is_empty());
    let values = input.values.clone();
    let mut plan = input.over(plan);
    let mut width = plan.schema().len();
    let mut places = vec![0; calls.len()];
    for (partition, members) in operators {
        let partition = partition.into_iter().collect();
        let ranking = ranking(members.iter().map(|it| &calls[it.0]), &values);
        let mut named = Vec::new();
        for (index, scalar) in members {
            places[index] = width;
            width += 1;
            named.push((scalar, calls[index].name.clone()));
        }
        let input = Box::new(plan);
        plan = Plan::Window { input, partition, calls: named, ranking, filter: None };
    }
    Ok((plan, places))
}

/// The order in which calls number the rows, if they all do, and in the same one.
fn ranking<'a>(
    calls: impl Iterator<Item = &'a Call<'a>> + Clone,
    values: &Values<'_>,
) -> Option<Ranking> {
    let has_ties = |call: &Call<'_>| match types::builtin_function(call.call.function())?.as_str() {
        "row_number" => Some(false),
        "rank" => Some(true),
        _ => None,
    };
    let has_ties = calls.clone().map(has_ties).collect::<Option<Vec<bool>>>()?;
    let mut orders = calls.map(|it| window::order_text(it.window, values));
    let order = orders.next()??;
    if !orders.all(|it| it.as_ref() == Some(&order)) {
        return None;
    }
    let ty = types::describe(types::BIGINT, -1, types::NO_COLLATION);
    let order = Scalar { segments: lex::segments(&order), ty, nullable: true, scale: None };
    Some(Ranking { order, has_ties })
}

fn check_offset(offset: Node<'_>) -> Result<(), Refusal> {
    check_expression(offset)?;
    if !offset.free_columns().is_empty() {
        return Err(Refusal::without_rule("a frame that depends on a row").at(offset.location()));
    }
    Ok(())
}

/// The columns below the windows.
struct Input<'a> {
    schema: Vec<Column>,
    values: Values<'a>,
    /// Columns that follow those of the plan.
    computed: Vec<(Node<'a>, Scalar)>,
}

impl<'a> Input<'a> {
    fn new(plan: &Plan, values: &Values<'a>) -> Self {
        Self { schema: plan.schema(), values: values.clone(), computed: Vec::new() }
    }

    fn value(&mut self, reference: u32) -> Result<&mut Node<'a>, Refusal> {
        let value = self.values.iter_mut().find(|it| it.0 == reference).map(|it| &mut it.1);
        value.ok_or_else(|| Refusal::without_rule("this window"))
    }

    /// The position of what `item` of PARTITION BY refers to.
    fn partition_column(&mut self, item: &SortGroup) -> Result<usize, Refusal> {
        let value = *self.value(item.reference)?;
        check_equality(value, item)?;
        if let Kind::Input(position) = value.kind() {
            return Ok(position);
        }
        let first = self.schema.len();
        let found = self.computed.iter().position(|(it, _)| it.equals(value));
        let position = first + found.unwrap_or(self.computed.len());
        if found.is_none() {
            self.computed.push((value, scalar(value, &self.schema)));
        }
        let (ty, typmod, collation) = (value.type_oid(), value.typmod(), value.collation());
        *self.value(item.reference)? = input(position, ty, typmod, collation);
        Ok(position)
    }

    fn scalar(&self, call: &Call<'_>, domain: &[usize]) -> Scalar {
        let node = call.call.node();
        let column = |it: &usize| {
            let ty = &self.schema[*it].ty;
            input(*it, ty.oid.into(), ty.typmod, ty.collation.into())
        };
        let domain: Vec<Node<'_>> = domain.iter().map(column).collect();
        let text = window::call_text(call.call, call.window, &self.values, &domain);
        Scalar {
            segments: lex::segments(&text),
            ty: types::describe(node.type_oid(), node.typmod(), node.collation()),
            nullable: !is_never_null(call.call),
            scale: None,
        }
    }

    /// `plan` with the computed columns.
    fn over(self, plan: Plan) -> Plan {
        if self.computed.is_empty() {
            return plan;
        }
        let shown = self.schema.iter().enumerate();
        let shown = shown.map(|(at, it)| (Scalar::column(at, it), it.name.clone()));
        let computed = self.computed.into_iter().enumerate();
        let computed = computed.map(|(at, (_, it))| (it, format!("partition{}", at + 1)));
        Plan::Project { columns: shown.chain(computed).collect(), input: Box::new(plan) }
    }
}

fn is_never_null(call: WindowCall<'_>) -> bool {
    const NAMES: [&str; 6] =
        ["row_number", "rank", "dense_rank", "percent_rank", "cume_dist", "count"];
    types::builtin_function(call.function()).is_some_and(|name| NAMES.contains(&name.as_str()))
}
