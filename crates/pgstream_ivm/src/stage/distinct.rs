//! DISTINCT inside aggregates, taken apart into stages.
//!
//! # Rule
//!
//! Write `k` for the grouping columns of an aggregate over `A`, `x` for the argument of one of its
//! calls with DISTINCT, `f` for its condition. The call is over the groups of `A` by `(k, x)` that
//! have a row for which `f` is true, `x` NULL left out. These are an aggregate of their own:
//!
//! ```text
//! D  =  γ k, x; count(*) FILTER (WHERE f) (A)
//! ```
//!
//! The aggregate is then one over the rows of `A` and those of each such `D` together, each call
//! being restricted to the rows that are meant for it:
//!
//! ```text
//! γ k; sum(y), count(DISTINCT x) (A)  =  γ k; sum(y), count(*) FILTER (WHERE is_x)
//!                                            (A with is_x NULL  ⊎  D with y NULL and is_x true)
//! ```
//!
//! A group is there as long as `A` has a row of it, and groups of `D` are where `A` has rows, so the
//! groups are the same. Calls with the same argument share one `D`, which has a count for each
//! condition.
//!
//! # Cost
//!
//! Follows the change: a changed row touches one group of each `D`, and a group of the aggregate.
//! Every `D` is stored, a row for each value in a group. This pays where no call has to read its
//! groups again; with one that has, nothing is taken apart.

use crate::{
    aggregate,
    plan::{AggregateCall, AggregateFunction, End, Plan},
    scalar::{Scalar, Segment, Type},
};

/// Whether calls can be maintained without reading their groups again, once taken apart.
pub(super) fn is_taken_apart(calls: &[AggregateCall]) -> bool {
    let is_distinct = |it: &AggregateCall| matches!(it.function, AggregateFunction::Distinct(_));
    calls.iter().any(is_distinct)
        && calls.iter().all(|it| is_distinct(it) || !aggregate::is_rescanned(it))
}

/// The aggregate of `input` by `keys`, without DISTINCT.
pub(super) fn taken_apart(input: &Plan, keys: &[usize], calls: Vec<AggregateCall>) -> Plan {
    let schema = input.schema();
    let key = |it: &usize| BodyColumn {
        scalar: Scalar::column(*it, &schema[*it]),
        values: None,
        name: schema[*it].name.clone(),
    };
    let mut body =
        Body { columns: keys.iter().map(key).collect(), keys: keys.len(), values: Vec::new() };
    let calls = calls.into_iter().map(|call| body.placed(call)).collect();
    let input = Box::new(body.plan(input));
    Plan::Aggregate { input, keys: (0..keys.len()).collect(), calls }
}

/// `D` of the rule.
struct Values {
    argument: Scalar,
    /// The different conditions, each of which it has a count for.
    conditions: Vec<Scalar>,
    /// Whether there is a call without condition.
    has_all: bool,
}

/// A column of the rows that the calls are over. It is NULL in rows that it is not meant for.
struct BodyColumn {
    scalar: Scalar,
    /// Whether it belongs to `D` with this number, and is over its output; the input otherwise.
    values: Option<usize>,
    name: String,
}

struct Body {
    /// The keys come first; they are in all rows.
    columns: Vec<BodyColumn>,
    keys: usize,
    values: Vec<Values>,
}

impl Body {
    /// The call over the columns of the body.
    fn placed(&mut self, call: AggregateCall) -> AggregateCall {
        let AggregateCall { call, function, filter, name } = call;
        let (name_in_sql, argument, filter, function) = match function {
            AggregateFunction::Distinct(function) => self.placed_values(*function, filter),
            AggregateFunction::CountRows => {
                let condition = filter.unwrap_or_else(|| truth("true"));
                ("count", None, Some(self.plain(condition)), AggregateFunction::CountRows)
            }
            AggregateFunction::Count { argument } => {
                let conditions = filter.into_iter().chain(is_not_null(&argument));
                let condition = all(conditions).unwrap_or_else(|| truth("true"));
                ("count", None, Some(self.plain(condition)), AggregateFunction::CountRows)
            }
            AggregateFunction::Sum { argument } => {
                let at = self.plain(guarded(argument, filter.as_ref()));
                let argument = self.column(at);
                ("sum", Some(at), self.condition(filter), AggregateFunction::Sum { argument })
            }
            AggregateFunction::Average { argument } => {
                let at = self.plain(guarded(argument, filter.as_ref()));
                let argument = self.column(at);
                ("avg", Some(at), self.condition(filter), AggregateFunction::Average { argument })
            }
            AggregateFunction::Extremum { argument, end } => {
                let at = self.plain(guarded(argument, filter.as_ref()));
                let argument = self.column(at);
                let name = match end {
                    End::Least => "min",
                    End::Greatest => "max",
                };
                let function = AggregateFunction::Extremum { argument, end };
                (name, Some(at), self.condition(filter), function)
            }
            AggregateFunction::Decided { argument, by } => {
                let at = self.plain(guarded(argument, filter.as_ref()));
                let argument = self.column(at);
                let name = if by { "bool_or" } else { "bool_and" };
                let function = AggregateFunction::Decided { argument, by };
                (name, Some(at), self.condition(filter), function)
            }
            AggregateFunction::Rescan => unreachable!("such calls are not taken apart"),
        };
        let argument = argument.map_or(Segment::Text("*".to_owned()), Segment::Column);
        let mut segments = vec![Segment::Text(format!("{name_in_sql}(")), argument];
        segments.push(Segment::Text(")".to_owned()));
        if let Some(filter) = filter {
            segments.push(Segment::Text(" FILTER (WHERE ".to_owned()));
            segments.push(Segment::Column(filter));
            segments.push(Segment::Text(")".to_owned()));
        }
        let filter = filter.map(|it| self.column(it));
        AggregateCall { call: Scalar { segments, ..call }, function, filter, name }
    }

    fn placed_values(
        &mut self,
        function: AggregateFunction,
        filter: Option<Scalar>,
    ) -> (&'static str, Option<usize>, Option<usize>, AggregateFunction) {
        let (AggregateFunction::Count { argument }
        | AggregateFunction::Sum { argument }
        | AggregateFunction::Average { argument }) = &function
        else {
            unreachable!("DISTINCT makes no difference to the others, or all of it");
        };
        let values = self.values_of(argument);
        let of_values = &mut self.values[values];
        let condition = match filter {
            None => {
                of_values.has_all = true;
                truth("true")
            }
            Some(filter) => {
                let known = of_values.conditions.iter().position(|it| *it == filter);
                let index = known.unwrap_or(of_values.conditions.len());
                if known.is_none() {
                    of_values.conditions.push(filter);
                }
                let count = Segment::Column(self.keys + 1 + index);
                let segments = vec![count, Segment::Text(" > 0".to_owned())];
                Scalar { segments, ..truth("") }
            }
        };
        let condition = Some(self.add(condition, Some(values)));
        let mut value = || {
            let value = Scalar { segments: vec![Segment::Column(self.keys)], ..argument.clone() };
            let at = self.add(value, Some(values));
            (at, self.column(at))
        };
        match &function {
            AggregateFunction::Sum { .. } => {
                let (at, argument) = value();
                ("sum", Some(at), condition, AggregateFunction::Sum { argument })
            }
            AggregateFunction::Average { .. } => {
                let (at, argument) = value();
                ("avg", Some(at), condition, AggregateFunction::Average { argument })
            }
            _ => ("count", None, condition, AggregateFunction::CountRows),
        }
    }

    /// The number of the `D` for an argument.
    fn values_of(&mut self, argument: &Scalar) -> usize {
        let known = self.values.iter().position(|it| it.argument == *argument);
        known.unwrap_or_else(|| {
            let argument = argument.clone();
            self.values.push(Values { argument, conditions: Vec::new(), has_all: false });
            self.values.len() - 1
        })
    }

    fn plain(&mut self, scalar: Scalar) -> usize {
        self.add(scalar, None)
    }

    fn condition(&mut self, filter: Option<Scalar>) -> Option<usize> {
        filter.map(|it| self.plain(it))
    }

    /// Where a column with these values is.
    fn add(&mut self, scalar: Scalar, values: Option<usize>) -> usize {
        let is_it = |it: &BodyColumn| it.values == values && it.scalar == scalar;
        let known = (self.keys..self.columns.len()).find(|it| is_it(&self.columns[*it]));
        known.unwrap_or_else(|| {
            let name = format!("x{}", self.columns.len() - self.keys);
            self.columns.push(BodyColumn { scalar, values, name });
            self.columns.len() - 1
        })
    }

    /// A column as a scalar over the body.
    fn column(&self, at: usize) -> Scalar {
        let scalar = &self.columns[at].scalar;
        Scalar { segments: vec![Segment::Column(at)], nullable: true, ..scalar.clone() }
    }

    /// The rows of the input, and those of each `D`.
    fn plan(&self, input: &Plan) -> Plan {
        let of_values = (0..self.values.len()).map(Some);
        let branch = |values: Option<usize>| {
            let column = |(at, column): (usize, &BodyColumn)| {
                let scalar = match values {
                    _ if column.values == values => column.scalar.clone(),
                    Some(_) if at < self.keys => {
                        Scalar { segments: vec![Segment::Column(at)], ..column.scalar.clone() }
                    }
                    _ => {
                        let null = Scalar::null(&column.scalar.ty);
                        Scalar { scale: column.scalar.scale, ..null }
                    }
                };
                (scalar, column.name.clone())
            };
            let columns = self.columns.iter().enumerate().map(column).collect();
            let rows = values.map_or_else(|| input.clone(), |it| self.values_plan(input, it));
            Plan::Project { input: Box::new(rows), columns }
        };
        Plan::Sum { inputs: std::iter::once(None).chain(of_values).map(branch).collect() }
    }

    /// `D`: the keys, the value, a count for each condition.
    fn values_plan(&self, input: &Plan, values: usize) -> Plan {
        let Values { argument, conditions, has_all } = &self.values[values];
        let counted = (!*has_all).then(|| any(conditions));
        let argument = guarded(argument.clone(), counted.as_ref());
        let rows = match all(is_not_null(&argument).into_iter().chain(counted)) {
            None => input.clone(),
            Some(predicate) => Plan::Filter { input: Box::new(input.clone()), predicate },
        };
        let keys = self.columns[..self.keys].iter();
        let mut columns: Vec<_> = keys.map(|it| (it.scalar.clone(), it.name.clone())).collect();
        columns.push((Scalar { nullable: false, ..argument }, "value".to_owned()));
        columns.extend(conditions.iter().map(|it| (it.clone(), "condition".to_owned())));
        let input = Box::new(Plan::Project { input: Box::new(rows), columns });
        let schema = input.schema();
        let count = |index: usize| {
            let at = self.keys + 1 + index;
            let text = |it: &str| Segment::Text(it.to_owned());
            let segments = vec![text("count(*) FILTER (WHERE "), Segment::Column(at), text(")")];
            AggregateCall {
                call: Scalar { segments, ty: Type::bigint(), nullable: false, scale: None },
                function: AggregateFunction::CountRows,
                filter: Some(Scalar::column(at, &schema[at])),
                name: "count".to_owned(),
            }
        };
        let calls = (0..conditions.len()).map(count).collect();
        Plan::Aggregate { input, keys: (0..=self.keys).collect(), calls }
    }
}

fn truth(text: &str) -> Scalar {
    let segments = vec![Segment::Text(text.to_owned())];
    Scalar { segments, ty: Type::boolean(), nullable: false, scale: None }
}

/// `None` for what is never NULL.
fn is_not_null(argument: &Scalar) -> Option<Scalar> {
    let text = |it: &str| Segment::Text(it.to_owned());
    // `IS NOT NULL` would look into a composite value.
    let mut segments = vec![text("num_nonnulls(")];
    segments.extend(argument.segments.iter().cloned());
    segments.push(text(") = 1"));
    argument.nullable.then(|| Scalar { segments, ..truth("") })
}

/// An argument that is evaluated only where the condition is true: elsewhere it may fail.
fn guarded(argument: Scalar, condition: Option<&Scalar>) -> Scalar {
    let Some(condition) = condition.filter(|_| argument.as_column().is_none()) else {
        return argument;
    };
    argument.only_if(condition.segments.iter().cloned())
}

/// All of the conditions; `None` for none.
fn all(conditions: impl IntoIterator<Item = Scalar>) -> Option<Scalar> {
    conditions.into_iter().reduce(|all, next| joined(&all, " AND ", &next))
}

fn any(conditions: &[Scalar]) -> Scalar {
    let any = conditions.iter().cloned().reduce(|any, next| joined(&any, " OR ", &next));
    any.unwrap_or_else(|| truth("false"))
}

fn joined(left: &Scalar, operator: &str, right: &Scalar) -> Scalar {
    let text = |it: &str| Segment::Text(it.to_owned());
    let mut segments = vec![text("((")];
    segments.extend(left.segments.iter().cloned());
    segments.push(text(&format!("){operator}(")));
    segments.extend(right.segments.iter().cloned());
    segments.push(text("))"));
    Scalar { segments, nullable: true, ..truth("") }
}

#[cfg(test)]
mod tests {
    use crate::{
        plan::Plan,
        stage::{Pipeline, stage},
        testing::{aggregate, join, scan},
    };

    fn heads(plan: Plan) -> Vec<String> {
        let Pipeline { stages, .. } = stage(plan);
        let head = |it: &crate::stage::Stage| {
            it.group().map(|group| {
                let calls: Vec<String> = group.calls.iter().map(|it| it.call.to_string()).collect();
                format!("{:?} {}", group.keys, calls.join(", "))
            })
        };
        stages.iter().map(|it| head(it).unwrap_or_default()).collect()
    }

    #[test]
    fn each_argument_has_a_stage_of_its_values() {
        let calls = ["count(*)", "count(DISTINCT #1)", "sum(DISTINCT #1)", "count(DISTINCT #0)"];
        assert_eq!(
            heads(aggregate(scan("a"), &[0], &calls)),
            [
                "[0, 1] ",
                "[0, 1] ",
                "[0] count(*) FILTER (WHERE #1), count(*) FILTER (WHERE #2), \
                 sum(#3) FILTER (WHERE #2), count(*) FILTER (WHERE #4)",
                ""
            ]
        );
    }

    #[test]
    fn conditions_are_counted_in_one_stage() {
        let calls = [
            "count(DISTINCT #1)",
            "count(DISTINCT #1) FILTER (WHERE #0 > 1)",
            "count(DISTINCT #1) FILTER (WHERE #0 = 1)",
        ];
        assert_eq!(
            heads(aggregate(scan("a"), &[], &calls)),
            [
                "[0] count(*) FILTER (WHERE #1), count(*) FILTER (WHERE #2)",
                "[] count(*) FILTER (WHERE #0), count(*) FILTER (WHERE #1), \
                 count(*) FILTER (WHERE #2)"
            ]
        );
    }

    #[test]
    fn a_group_that_is_read_again_anyway_is_not_taken_apart() {
        let calls = ["count(DISTINCT #1)", "any_value(#1)"];
        assert_eq!(
            heads(aggregate(scan("a"), &[0], &calls)),
            ["[0] count(DISTINCT #1), any_value(#1)"]
        );
    }

    #[test]
    fn a_join_is_computed_once() {
        let pairs = join(scan("a"), scan("b"), "#0 = #2");
        let stages = heads(aggregate(pairs, &[0], &["count(*)", "count(DISTINCT #1)"]));
        assert_eq!(stages.len(), 3);
        assert_eq!(stages[0], "");
    }
}
