//! By which columns a refresh looks up rows.
//!
//! A join finds the partners of a changed row by the columns that its condition compares, and a head
//! reads the rows of an affected group or partition by its key. Where these columns have an index,
//! the cost follows the change. Nothing here affects results: what is not recognized is merely not
//! indexed.

use crate::{
    aggregate,
    plan::{AggregateCall, AggregateFunction, Plan, Scan, Source},
    scalar::{Scalar, Segment},
    stage::{Head, Pipeline, Stage, Window},
};

/// Columns by which rows of a source are looked up together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookUp {
    /// A table or a stored stage.
    pub source: Source,
    /// Attribute numbers of a table, positions in the output of a stage; ascending.
    pub attributes: Vec<usize>,
}

/// An order of the rows with equal keys, from which a head wants the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered {
    /// A table or a stored stage.
    pub source: Source,
    /// Attribute numbers of a table, positions in the output of a stage; ascending.
    pub keys: Vec<usize>,
    /// The same for the column that they are ordered by, or the first of several.
    pub by: usize,
}

/// The orders from which heads want the first rows of a group or partition, each once.
pub fn orders(pipeline: &Pipeline) -> Vec<Ordered> {
    let mut found = Vec::new();
    for stage in &pipeline.stages {
        for (_, order) in orders_of(stage, pipeline) {
            if !found.contains(&order) {
                found.push(order);
            }
        }
    }
    found
}

/// Notes in the heads which of their orders have an index.
pub fn indexed(pipeline: &mut Pipeline, has_index: &dyn Fn(&Ordered) -> bool) {
    for index in 0..pipeline.stages.len() {
        let orders = orders_of(&pipeline.stages[index], pipeline).into_iter();
        let indexed: Vec<usize> = orders.filter(|it| has_index(&it.1)).map(|it| it.0).collect();
        match &mut pipeline.stages[index].head {
            Some(Head::Group(group)) => group.indexed = indexed,
            Some(Head::Window(Window { first: Some(first), .. })) => {
                first.is_indexed = !indexed.is_empty();
            }
            _ => {}
        }
    }
}

/// Notes in a change which of its marks look up the matches of a row by an index that begins with the
/// columns that the condition compares: those for which `has_index` holds, given [`matches`] of it.
#[must_use]
pub fn with_indexes(
    change: Plan,
    pipeline: &Pipeline,
    has_index: &mut dyn FnMut(&[Ordered]) -> bool,
) -> Plan {
    match change.map_inputs(|it| with_indexes(it, pipeline, has_index)) {
        Plan::MarkChange { left, right, change, on, mark, .. } => {
            let orders = on.as_ref().map(|on| orders_of_matches(&left, &right, on, pipeline));
            let is_indexed = orders.is_some_and(|it| !it.is_empty() && has_index(&it));
            Plan::MarkChange { left, right, change, on, mark, is_indexed }
        }
        plan => plan,
    }
}

/// For each outer join and mark the orders that find the matches of a row, if there are any.
pub fn matches(pipeline: &Pipeline) -> Vec<Vec<Ordered>> {
    fn add(plan: &Plan, pipeline: &Pipeline, found: &mut Vec<Vec<Ordered>>) {
        if let Plan::LeftJoin { left, right, on: Some(on) }
        | Plan::Mark { left, right, on: Some(on), .. } = plan
        {
            let orders = orders_of_matches(left, right, on, pipeline);
            if !orders.is_empty() && !found.contains(&orders) {
                found.push(orders);
            }
        }
        plan.inputs().into_iter().for_each(|it| add(it, pipeline, found));
    }
    let mut found = Vec::new();
    pipeline.stages.iter().for_each(|it| add(&it.body, pipeline, &mut found));
    found
}

/// The orders in which the rows of `right` that match one of `left` stand together; none where they
/// are not those of a single table with equal values in some columns.
fn orders_of_matches(left: &Plan, right: &Plan, on: &Scalar, pipeline: &Pipeline) -> Vec<Ordered> {
    match right.scans().as_slice() {
        [Scan { source: Source::Stage(index), .. }] if pipeline.is_deferred(*index) => {
            return Vec::new();
        }
        // No index is used behind the barrier of a policy.
        [Scan { policy: None, .. }] => {}
        _ => return Vec::new(),
    }
    if !is_conjunction(on) {
        return Vec::new();
    }
    let width = left.schema().len();
    let origins = origins(right, pipeline);
    let of_right = |(a, b): (usize, usize)| match (a < width, b < width) {
        (true, false) => Some(b - width),
        (false, true) => Some(a - width),
        _ => None,
    };
    let columns = compared(on).into_iter().filter_map(of_right);
    let found = columns.map(|it| match origins[it].as_slice() {
        [only] => Some(only.clone()),
        _ => None,
    });
    let Some(mut found) = found.collect::<Option<Vec<_>>>() else { return Vec::new() };
    found.sort_by_key(|it| it.1);
    found.dedup();
    let order = |(source, by): &(Source, usize)| Ordered {
        source: source.clone(),
        keys: found.iter().map(|it| it.1).filter(|it| it != by).collect(),
        by: *by,
    };
    found.iter().map(order).collect()
}

/// Whether all comparisons of a condition must hold, as far as that can be told.
pub(crate) fn is_conjunction(condition: &Scalar) -> bool {
    let text = condition.print(|_| "#".to_owned());
    !text.split([' ', '(', ')']).any(|it| matches!(it, "OR" | "NOT" | "CASE"))
}

/// The orders that a stage's head wants of one leaf, with the numbers of their calls: with several
/// leaves no index has them all.
fn orders_of(stage: &Stage, pipeline: &Pipeline) -> Vec<(usize, Ordered)> {
    match stage.body.scans().as_slice() {
        [Scan { source: Source::Stage(index), .. }] if pipeline.is_deferred(*index) => {
            return Vec::new();
        }
        [_] => {}
        _ => return Vec::new(),
    }
    let origins = origins(&stage.body, pipeline);
    let origin = |column: usize| match origins[column].as_slice() {
        [only] => Some(only.clone()),
        _ => None,
    };
    let order = |keys: &[usize], by: usize| {
        let (source, by) = origin(by)?;
        let keys = keys.iter().map(|it| Some(origin(*it)?.1)).collect::<Option<Vec<usize>>>();
        let mut keys = keys?;
        keys.sort_unstable();
        keys.dedup();
        Some(Ordered { source, keys, by })
    };
    match &stage.head {
        Some(Head::Group(group)) => {
            let calls = group.calls.iter().enumerate();
            let of_call = |(index, call): (usize, &AggregateCall)| match &call.function {
                AggregateFunction::Extremum { argument, .. } => {
                    Some((index, order(&group.keys, argument.as_column()?)?))
                }
                _ => None,
            };
            calls.filter_map(of_call).collect()
        }
        Some(Head::Window(Window { first: Some(first), partition, .. })) => {
            let Some(Segment::Column(by)) = first.order.segments.first() else {
                return Vec::new();
            };
            order(partition, *by).map(|it| (0, it)).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// The columns of leaves that an output column shows: one for each branch of a UNION ALL.
type Origins = Vec<(Source, usize)>;

/// All look-ups of a pipeline, each once.
pub fn look_ups(pipeline: &Pipeline) -> Vec<LookUp> {
    let mut found = Vec::new();
    for stage in &pipeline.stages {
        conditions(&stage.body, pipeline, &mut found);
        let keys = match &stage.head {
            Some(Head::Group(group)) => {
                let schema = stage.body.schema();
                let is_read_again = |call: &_| {
                    aggregate::is_rescanned(call) || aggregate::needs_consolidation(call)
                };
                let is_inexact = |key: &usize| !schema[*key].is_exact();
                (group.calls.iter().any(is_read_again) || group.keys.iter().any(is_inexact))
                    .then_some(&group.keys)
            }
            Some(Head::Window(window)) => Some(&window.partition),
            _ => None,
        };
        if let Some(keys) = keys {
            let origins = origins(&stage.body, pipeline);
            note(keys.iter().map(|it| &origins[*it]), &mut found);
        }
    }
    found
}

/// Notes the columns that stand together in one condition or key, for each source apart.
fn note<'a>(columns: impl Iterator<Item = &'a Origins>, found: &mut Vec<LookUp>) {
    let mut together: Vec<LookUp> = Vec::new();
    for (source, attribute) in columns.flatten() {
        let known = together.iter().position(|it| it.source == *source);
        let index = known.unwrap_or_else(|| {
            together.push(LookUp { source: source.clone(), attributes: Vec::new() });
            together.len() - 1
        });
        let attributes = &mut together[index].attributes;
        if !attributes.contains(attribute) {
            attributes.push(*attribute);
            attributes.sort_unstable();
        }
    }
    for look_up in together {
        if !found.contains(&look_up) {
            found.push(look_up);
        }
    }
}

fn conditions(plan: &Plan, pipeline: &Pipeline, found: &mut Vec<LookUp>) {
    for input in plan.inputs() {
        conditions(input, pipeline, found);
    }
    let (on, joined) = match plan {
        Plan::InnerJoin { left, right, on }
        | Plan::LeftJoin { left, right, on }
        | Plan::Mark { left, right, on, .. } => {
            let mut joined = origins(left, pipeline);
            joined.extend(origins(right, pipeline));
            (on.as_ref(), joined)
        }
        Plan::Filter { input, predicate } => (Some(predicate), origins(input, pipeline)),
        _ => return,
    };
    let compared = on.map(compared).unwrap_or_default();
    note(compared.iter().flat_map(|(a, b)| [&joined[*a], &joined[*b]]), found);
}

/// The pairs of columns that a condition compares by equality.
pub(crate) fn compared(condition: &Scalar) -> Vec<(usize, usize)> {
    let is_equality = |text: &str| {
        let text = text.trim();
        text == "=" || (text.starts_with("OPERATOR(") && text.ends_with(".=)"))
    };
    let pair = |window: &[Segment]| match window {
        [Segment::Column(a), Segment::Text(text), Segment::Column(b)] if is_equality(text) => {
            Some((*a, *b))
        }
        _ => None,
    };
    condition.segments.windows(3).filter_map(pair).collect()
}

/// The equalities of a left and a right column that must hold for a join's condition to be true, when
/// it has other conjuncts too: as a condition of their own. `None` where the condition is more than a
/// conjunction of comparisons of columns and numbers, or is all equalities.
pub(crate) fn equalities_among_others(on: &Scalar, width: usize) -> Option<Scalar> {
    let text: String = on.print(|_| "1".to_owned());
    let mut comparisons = 0;
    let mut conjunctions = 0;
    for word in text.split([' ', '(', ')', '\n']).filter(|it| !it.is_empty()) {
        match word {
            "AND" => conjunctions += 1,
            "=" | "<>" | "<" | ">" | "<=" | ">=" => comparisons += 1,
            number if number.bytes().all(|it| it.is_ascii_digit()) => {}
            _ => return None,
        }
    }
    let is_across = |(a, b): &(usize, usize)| (*a < width) != (*b < width);
    let pairs: Vec<_> = compared(on).into_iter().filter(is_across).collect();
    if comparisons != conjunctions + 1 || pairs.is_empty() || pairs.len() == comparisons {
        return None;
    }
    let mut segments = Vec::new();
    for (a, b) in pairs {
        let before = if segments.is_empty() { "(" } else { " AND (" };
        segments.extend([
            Segment::Text(before.to_owned()),
            Segment::Column(a),
            Segment::Text(" = ".to_owned()),
            Segment::Column(b),
            Segment::Text(")".to_owned()),
        ]);
    }
    Some(Scalar { segments, ..on.clone() })
}

fn origins(plan: &Plan, pipeline: &Pipeline) -> Vec<Origins> {
    let none = |count: usize| vec![Origins::new(); count];
    match plan {
        Plan::Scan(scan) => match &scan.source {
            Source::Stage(stage) if pipeline.is_deferred(*stage) => {
                let below = origins(&pipeline.stages[*stage].body, pipeline);
                scan.attributes.iter().map(|it| below[*it].clone()).collect()
            }
            source => scan.attributes.iter().map(|it| vec![(source.clone(), *it)]).collect(),
        },
        Plan::Filter { input, .. } | Plan::Negate(input) => origins(input, pipeline),
        Plan::Project { input, columns } => {
            let below = origins(input, pipeline);
            let origin = |it: &Scalar| it.as_column().map(|at| below[at].clone());
            columns.iter().map(|(it, _)| origin(it).unwrap_or_default()).collect()
        }
        Plan::InnerJoin { left, right, .. } | Plan::LeftJoin { left, right, .. } => {
            let mut all = origins(left, pipeline);
            all.extend(origins(right, pipeline));
            all
        }
        Plan::Mark { left: input, .. } | Plan::Expand { input, .. } => {
            let mut all = origins(input, pipeline);
            all.resize(plan.schema().len(), Origins::new());
            all
        }
        Plan::Sum { inputs } => {
            let mut all = none(plan.schema().len());
            for input in inputs {
                for (column, more) in all.iter_mut().zip(origins(input, pipeline)) {
                    column.extend(more);
                }
            }
            all
        }
        _ => none(plan.schema().len()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Ordered, equalities_among_others, look_ups, matches, orders};
    use crate::{
        plan::{Plan, Source},
        stage::stage,
        testing::{aggregate, filter, join, left_join, mark, project, scan, union_all, window},
    };

    #[test]
    fn equalities_are_taken_from_plain_conjunctions_only() {
        let among = |on: &str| {
            let plan = join(scan("a"), scan("b"), on);
            let Plan::InnerJoin { on: Some(on), .. } = plan else { unreachable!("a join") };
            equalities_among_others(&on, 2).map(|it| it.to_string())
        };
        assert_eq!(among("((#0 = #2) AND (#1 <> #3))").as_deref(), Some("(#0 = #2)"));
        assert_eq!(
            among("(#0 = #2) AND ((#1 = #2) AND (#3 > 1))").as_deref(),
            Some("(#0 = #2) AND (#1 = #2)")
        );
        assert_eq!(among("(#0 = #2)"), None);
        assert_eq!(among("(#0 = #2) OR (#1 <> #3)"), None);
        assert_eq!(among("(NOT (#0 = #2)) AND (#1 <> #3)"), None);
        assert_eq!(among("(#0 = #1) AND (#1 <> #3)"), None);
    }

    fn found(plan: Plan) -> Vec<String> {
        let name = |source: &Source| match source {
            Source::Table { sql, .. } => sql.clone(),
            Source::Stage(stage) => format!("stage {stage}"),
        };
        let look_ups = look_ups(&stage(plan));
        look_ups.iter().map(|it| format!("{} {:?}", name(&it.source), it.attributes)).collect()
    }

    #[test]
    fn a_join_looks_up_both_sides() {
        let plan = join(project(scan("a"), &["#1", "#0"]), scan("b"), "(#0 = #2)");
        assert_eq!(found(plan), ["public.a [2]", "public.b [1]"]);
        let both = union_all([scan("a"), project(scan("b"), &["#0", "#0"])]);
        let plan = join(both, scan("c"), "(#0 = #2)");
        assert_eq!(found(plan), ["public.a [1]", "public.b [1]", "public.c [1]"]);
    }

    #[test]
    fn an_extremum_and_the_first_rows_want_an_order() {
        let wanted = |plan: Plan| {
            let orders = orders(&stage(plan)).into_iter();
            orders.map(|it| format!("{:?} {}", it.keys, it.by)).collect::<Vec<_>>()
        };
        assert_eq!(wanted(aggregate(scan("a"), &[1], &["max(#0)", "min(#1)"])), ["[2] 1", "[2] 2"]);
        assert_eq!(wanted(aggregate(filter(scan("a"), "#0 > 1"), &[], &["max(#0)"])), ["[] 1"]);
        assert!(wanted(aggregate(scan("a"), &[1], &["max(#0 + 1)", "sum(#0)"])).is_empty());
        let pairs = || join(scan("a"), scan("b"), "#0 = #2");
        assert!(wanted(aggregate(pairs(), &[1], &["max(#0)"])).is_empty());
        let best = |plan| window(plan, &[], &["row_number() OVER (ORDER BY #1)"], Some("#2 = 1"));
        assert!(wanted(best(project(pairs(), &["#0", "#3"]))).is_empty());
        assert_eq!(wanted(best(aggregate(pairs(), &[1], &["count(*)"]))), ["[] 1"]);
        let first = |filter| {
            window(
                scan("a"),
                &[0],
                &["row_number() OVER (PARTITION BY #0 ORDER BY #1 DESC)"],
                filter,
            )
        };
        assert_eq!(wanted(first(Some("#2 <= 3"))), ["[1] 2"]);
        assert!(wanted(first(None)).is_empty());
    }

    #[test]
    fn matches_stand_together_in_the_order_of_what_is_compared() {
        let found = |plan: Plan| {
            let found = matches(&stage(plan)).into_iter();
            let orders = |it: Vec<Ordered>| {
                it.iter().map(|it| format!("{:?} {}", it.keys, it.by)).collect::<Vec<_>>()
            };
            found.map(orders).collect::<Vec<_>>()
        };
        assert_eq!(found(left_join(scan("a"), scan("b"), "(#0 = #2)")), [["[] 1"]]);
        let both = "((#2 = #0) AND (#1 = #3) AND (#0 <> #1))";
        assert_eq!(found(mark(scan("a"), scan("b"), both)), [["[2] 1", "[1] 2"]]);
        let filtered = filter(project(scan("b"), &["#1", "#0 + 1"]), "#0 > 1");
        assert_eq!(found(mark(scan("a"), filtered.clone(), "(#0 = #2)")), [["[] 2"]]);
        for (right, on) in [
            (filtered, "(#0 = #3)"),
            (scan("b"), "((#0 = #2) OR (#1 = #3))"),
            (scan("b"), "(#0 < #2)"),
            (scan("b"), "(#0 = #1)"),
            (join(scan("b"), scan("c"), "#0 = #2"), "(#0 = #2)"),
            (union_all([scan("b"), scan("b")]), "(#0 = #2)"),
        ] {
            assert!(found(mark(scan("a"), right, on)).is_empty(), "{on}");
        }
    }

    #[test]
    fn a_group_is_read_again_by_its_key() {
        assert!(found(aggregate(scan("a"), &[0], &["count(*)"])).is_empty());
        assert_eq!(found(aggregate(scan("a"), &[1], &["max(#0)"])), ["public.a [2]"]);
        let counts = aggregate(scan("a"), &[0], &["count(*)"]);
        assert_eq!(found(aggregate(counts, &[1], &["max(#0)"])), ["stage 0 [1]"]);
    }
}
