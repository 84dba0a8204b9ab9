//! Cutting a plan into stages.
//!
//! A stage is a stateless body under at most one stateful head, whose stored output is the old
//! state that the head needs. A stage reads sources and the stored output of earlier stages, so
//! nested aggregates become a pipeline. Equal sub-plans become one stage.
//!
//! The rules of outer joins and marks name the change and the content of their operands several
//! times. An operand that is not just a leaf becomes a stage of its own, without head. Such a
//! stage is deferred: its change is computed once, but its content is stored nowhere. Who reads
//! that evaluates its body.

mod distinct;
mod window;

use crate::{
    aggregate,
    plan::{AggregateCall, Plan, Scan, Schema, Source, Version},
    recursion,
    scalar::Scalar,
};

/// The stateful operator on top of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// GROUP BY over the body's columns.
    Group(Group),
    /// Window functions over the body's columns.
    Window(Window),
    /// The body is the base and the step of a recursion, which reads what the stage stores.
    Recursion(Recursion),
    /// The body is evaluated as a whole, and compared with what is stored.
    Whole,
}

/// GROUP BY over a body's columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Positions of the grouping columns in the body.
    pub keys: Vec<usize>,
    /// The aggregates, over the body's columns.
    pub calls: Vec<AggregateCall>,
    /// Extrema among the calls that an index finds; see [`crate::look_up::indexed`].
    pub indexed: Vec<usize>,
}

/// Window functions over the partitions of a body's rows. The output is the body's columns, then
/// the calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Positions of the columns of PARTITION BY in the body; none for one partition of all rows.
    pub partition: Vec<usize>,
    /// The whole calls, over the body's columns.
    pub calls: Vec<Scalar>,
    /// Which rows are kept, over the output.
    pub filter: Option<Scalar>,
    /// When only the first rows of a partition can be kept: which.
    pub first: Option<Box<First>>,
}

/// The first rows of each partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct First {
    /// The list of ORDER BY, over the body's columns.
    pub order: Scalar,
    /// How many rows, those included that are not kept because they are too far in front.
    pub count: u64,
    /// Whether rows that are equal to the last of these are kept as well.
    pub has_ties: bool,
    /// When so many are kept, rows behind them are not.
    pub kept: u64,
    /// Whether an index has their order; see [`crate::look_up::indexed`].
    pub is_indexed: bool,
}

/// The two parts of a body that is a recursion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recursion {
    /// The rows that it starts from.
    pub base: Box<Plan>,
    /// What comes next, over a leaf that reads the stage itself.
    pub step: Box<Plan>,
    /// Whether equal rows are one; see [`crate::fixpoint`].
    pub is_set: bool,
}

/// One step of a refresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Stateless: no aggregates; leaves are tables and earlier stages.
    pub body: Plan,
    /// `None` in the last stage and in deferred ones.
    pub head: Option<Head>,
    /// What the stage puts out: the keys and aggregates of the head; without a head the body's
    /// columns, but for hidden ones at the end that only identify rows.
    pub output: Schema,
    /// Positions of columns that identify a row, if there are any: in the output of a head, in the
    /// body otherwise.
    pub key: Option<Vec<usize>>,
}

/// The stages of a plan in the order in which they run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipeline {
    /// At least one. The output of the last is stored in the stream table.
    pub stages: Vec<Stage>,
    /// For each column of the stream table its position in the last stage's output.
    pub visible: Vec<usize>,
}

impl Pipeline {
    /// Whether the output of a stage is stored nowhere.
    pub fn is_deferred(&self, stage: usize) -> bool {
        self.stages[stage].head.is_none() && stage + 1 < self.stages.len()
    }
}

impl Pipeline {
    /// The same without the names of tables and columns, which mean nothing to it: what was stored
    /// for a pipeline suits every other one that is equal in this form.
    #[must_use]
    pub fn without_names(&self) -> Self {
        let mut pipeline = self.clone();
        for stage in &mut pipeline.stages {
            stage.body = without_names(stage.body.clone());
            stage.output.iter_mut().for_each(|it| it.name.clear());
            if let Some(Head::Recursion(recursion)) = &mut stage.head {
                *recursion.base = without_names(recursion.base.as_ref().clone());
                *recursion.step = without_names(recursion.step.as_ref().clone());
            }
        }
        pipeline
    }
}

fn without_names(plan: Plan) -> Plan {
    match plan.map_inputs(without_names) {
        Plan::Scan(mut scan) => {
            if let Source::Table { sql, .. } = &mut scan.source {
                sql.clear();
            }
            scan.columns.iter_mut().for_each(|it| it.name.clear());
            Plan::Scan(scan)
        }
        Plan::Project { input, mut columns } => {
            columns.iter_mut().for_each(|it| it.1.clear());
            Plan::Project { input, columns }
        }
        plan => plan,
    }
}

impl Stage {
    /// The sources that the body reads.
    pub fn sources(&self) -> Vec<&Source> {
        let mut sources = Vec::new();
        for scan in self.body.scans() {
            if !sources.contains(&&scan.source) {
                sources.push(&scan.source);
            }
        }
        sources
    }

    /// GROUP BY, if that is the head.
    pub fn group(&self) -> Option<&Group> {
        match &self.head {
            Some(Head::Group(group)) => Some(group),
            _ => None,
        }
    }

    /// Window functions, if those are the head.
    pub fn window(&self) -> Option<&Window> {
        match &self.head {
            Some(Head::Window(window)) => Some(window),
            _ => None,
        }
    }

    /// Whether each stored row has a number of rows that it stands for.
    pub fn is_counted(&self) -> bool {
        match &self.head {
            Some(Head::Group(_)) => true,
            Some(Head::Recursion(head)) => head.is_set,
            _ => false,
        }
    }

    /// Names and types of the columns that the storage of a head other than GROUP BY has beside the
    /// output.
    pub fn own_state(&self) -> Vec<(String, String)> {
        let name = match &self.head {
            Some(Head::Window(_)) => "__pgs_partition",
            Some(Head::Recursion(head)) if head.is_set => "__pgs_support",
            _ => return Vec::new(),
        };
        vec![(name.to_owned(), "bigint".to_owned())]
    }

    /// Whether no two rows put out are the same. Their row ids may be the same all the same.
    pub fn shows_key(&self) -> bool {
        self.key.as_ref().is_some_and(|key| key.iter().all(|it| *it < self.output.len()))
    }

    /// Positions in the output that never change while a group exists: the keys, unless equal keys
    /// can look different. Of a row of a set, that is all but the rank.
    pub fn fixed(&self) -> Vec<usize> {
        let keys = match &self.head {
            Some(Head::Group(group)) => group.keys.len(),
            Some(Head::Recursion(head)) if head.is_set => self.output.len() - 1,
            _ => 0,
        };
        (0..keys).filter(|key| self.output[*key].is_exact()).collect()
    }
}

/// Cuts `plan` at its stateful operators.
pub fn stage(plan: Plan) -> Pipeline {
    let mut stages = Vec::new();
    let rest = cut(window::with_filters(plan), &mut stages);
    if let Some(visible) = permutation_of_last(&rest, &stages) {
        return Pipeline { stages, visible };
    }
    let output = rest.schema();
    let visible = (0..output.len()).collect();
    let (body, key) = match with_key(&rest) {
        Some((body, key)) => (body, Some(key)),
        None => (rest, None),
    };
    stages.push(Stage { body, head: None, output, key });
    Pipeline { stages, visible }
}

fn cut(plan: Plan, stages: &mut Vec<Stage>) -> Plan {
    let output = plan.schema();
    let needs_leaf = match plan {
        Plan::LeftJoin { ref right, .. } | Plan::Mark { ref right, .. }
            if !right.scans().is_empty() =>
        {
            |it: &Plan| it.scans().len() > 1
        }
        Plan::InnerJoin { .. } => counts_matches,
        _ => |_: &Plan| false,
    };
    let cut_input = |input| {
        let input = cut(input, stages);
        // A recursion's own rows are no earlier stage's.
        let needs_leaf = needs_leaf(&input) && !recursion::reads_itself(&input);
        if needs_leaf { defer(input, stages) } else { input }
    };
    match plan.map_inputs(cut_input) {
        Plan::Aggregate { input, keys, calls } if distinct::is_taken_apart(&calls) => {
            // Several stages read it.
            let input = if input.has_join() { defer(*input, stages) } else { *input };
            cut(distinct::taken_apart(&input, &keys, calls), stages)
        }
        Plan::Aggregate { input, keys, calls } => {
            let key = Some((0..keys.len()).collect());
            let head = Some(Head::Group(Group { keys, calls, indexed: Vec::new() }));
            add(Stage { body: *input, head, output, key }, stages)
        }
        Plan::Window { input, partition, calls, ranking, filter } => {
            let width = input.schema().len();
            let first = ranking.zip(filter.as_ref());
            let first = first
                .and_then(|(ranking, filter)| window::first(ranking, filter, width))
                .map(Box::new);
            // Its change is read more than once.
            let input =
                if first.is_some() && input.has_join() { defer(*input, stages) } else { *input };
            let key = input.key();
            let calls = calls.into_iter().map(|it| it.0).collect();
            let head = Some(Head::Window(Window { partition, calls, filter, first }));
            add(Stage { body: input, head, output, key }, stages)
        }
        Plan::Recurse { base, step, is_set } => {
            let key = is_set.then(|| (0..output.len() - 1).collect::<Vec<_>>());
            let made = |index: usize| {
                let step = recursion::numbered(*step.clone(), index);
                let body = Plan::Sum { inputs: vec![base.as_ref().clone(), step.clone()] };
                let (base, step) = (base.clone(), Box::new(step));
                let head = Some(Head::Recursion(Recursion { base, step, is_set }));
                Stage { body, head, output: output.clone(), key: key.clone() }
            };
            let index = (0..stages.len()).find(|it| stages[*it] == made(*it));
            add(made(index.unwrap_or(stages.len())), stages)
        }
        plan @ Plan::Opaque { .. } => {
            add(Stage { body: plan, head: Some(Head::Whole), output, key: None }, stages)
        }
        plan => plan,
    }
}

fn counts_matches(plan: &Plan) -> bool {
    matches!(plan, Plan::LeftJoin { .. } | Plan::Mark { .. })
        || plan.inputs().into_iter().any(counts_matches)
}

fn defer(plan: Plan, stages: &mut Vec<Stage>) -> Plan {
    let (output, key) = (plan.schema(), plan.key());
    add(Stage { body: plan, head: None, output, key }, stages)
}

/// Adds a stage, unless an equal one is there, and gives the leaf that reads its output.
fn add(stage: Stage, stages: &mut Vec<Stage>) -> Plan {
    let index = stages.iter().position(|it| *it == stage).unwrap_or_else(|| {
        stages.push(stage);
        stages.len() - 1
    });
    let Stage { output, key, .. } = &stages[index];
    Plan::Scan(Scan {
        source: Source::Stage(index),
        attributes: (0..output.len()).collect(),
        columns: output.clone(),
        key: key.clone(),
        version: Version::New,
        policy: None,
    })
}

/// `plan` with columns added at its end where its own do not identify a row, and the positions that
/// do; `None` when nothing does. A query that joins by keys and shows none of them still has rows
/// that keep their identity when they change.
fn with_key(plan: &Plan) -> Option<(Plan, Vec<usize>)> {
    if let Some(key) = plan.key() {
        return Some((plan.clone(), key));
    }
    match plan {
        Plan::Filter { input, predicate } => {
            let (input, key) = with_key(input)?;
            Some((Plan::Filter { input: Box::new(input), predicate: predicate.clone() }, key))
        }
        Plan::Project { input, columns } => {
            let (input, inner) = with_key(input)?;
            let schema = input.schema();
            let mut columns = columns.clone();
            let mut key = Vec::new();
            for position in inner {
                let shown = columns.iter().position(|(it, _)| it.as_column() == Some(position));
                key.push(shown.unwrap_or(columns.len()));
                if shown.is_none() {
                    let column = &schema[position];
                    columns.push((Scalar::column(position, column), column.name.clone()));
                }
            }
            Some((Plan::Project { input: Box::new(input), columns }, key))
        }
        Plan::Mark { left, right, on, mark } => {
            let width = left.schema().len();
            let (left, key) = with_key(left)?;
            let new_width = left.schema().len();
            // The mark comes after the columns that were added.
            let moved = |it: usize| if it < width { it } else { it + new_width - width };
            let (right, mark) = (right.clone(), mark.clone());
            let on = on.as_ref().map(|on| on.remapped(moved));
            let plan = Plan::Mark { left: Box::new(left), right, on, mark };
            let schema = plan.schema();
            let order = (0..width).chain([new_width]).chain(width..new_width);
            let column = |it: usize| (Scalar::column(it, &schema[it]), schema[it].name.clone());
            let columns = order.map(column).collect();
            let key = key.into_iter().map(|it| if it < width { it } else { it + 1 }).collect();
            Some((Plan::Project { input: Box::new(plan), columns }, key))
        }
        Plan::InnerJoin { left, right, on } | Plan::LeftJoin { left, right, on } => {
            let (old_left, old_right) = (left.schema().len(), right.schema().len());
            let (left, left_key) = with_key(left)?;
            let (right, right_key) = with_key(right)?;
            let width = left.schema().len();
            // Where a column of the join without added ones stands now.
            let moved = |it: usize| if it < old_left { it } else { width + it - old_left };
            let on = on.as_ref().map(|on| on.remapped(moved));
            let (left, right) = (Box::new(left), Box::new(right));
            let join = match plan {
                Plan::LeftJoin { .. } => Plan::LeftJoin { left, right, on },
                _ => Plan::InnerJoin { left, right, on },
            };
            let schema = join.schema();
            let shown = (0..old_left + old_right).map(moved);
            let mut order: Vec<usize> = shown.collect();
            let mut key = Vec::new();
            for position in left_key.into_iter().chain(right_key.iter().map(|it| width + it)) {
                let place = order.iter().position(|it| *it == position).unwrap_or(order.len());
                if place == order.len() {
                    order.push(position);
                }
                key.push(place);
            }
            let column = |it: &usize| (Scalar::column(*it, &schema[*it]), schema[*it].name.clone());
            let columns = order.iter().map(column).collect();
            Some((Plan::Project { input: Box::new(join), columns }, key))
        }
        _ => None,
    }
}

/// When `rest` only reorders the output of the last stage, and the stream table can hold all that
/// the stage's head must remember, the stream table is that stage's storage.
fn permutation_of_last(rest: &Plan, stages: &[Stage]) -> Option<Vec<usize>> {
    let last = stages.len().checked_sub(1)?;
    let (scan, visible) = match rest {
        Plan::Scan(scan) => (scan, (0..scan.columns.len()).collect()),
        Plan::Project { input, columns } => match input.as_ref() {
            Plan::Scan(scan) => {
                let visible: Option<Vec<usize>> =
                    columns.iter().map(|(column, _)| column.as_column()).collect();
                (scan, visible?)
            }
            _ => return None,
        },
        _ => return None,
    };
    let mut sorted = visible.clone();
    sorted.sort_unstable();
    let is_permutation = sorted.iter().copied().eq(0..scan.columns.len());
    let calls = stages[last].group().map_or(&[][..], |group| &group.calls);
    let has_state = calls.iter().any(|call| !aggregate::state(call).is_empty())
        || stages[last].window().is_some();
    let reads_last = scan.source == Source::Stage(last);
    (reads_last && is_permutation && !has_state).then_some(visible)
}

#[cfg(test)]
mod tests {
    use super::stage;
    use crate::{
        plan::Plan,
        testing::{aggregate, filter, join, left_join, mark, project, scan, union_all},
    };

    fn counts() -> Plan {
        aggregate(scan("a"), &[0], &["count(*)"])
    }

    /// How many stages, and which columns of the last one are visible.
    fn shape(plan: Plan) -> (usize, Vec<usize>) {
        let pipeline = stage(plan);
        (pipeline.stages.len(), pipeline.visible)
    }

    #[test]
    fn a_stateless_plan_is_one_stage() {
        assert_eq!(shape(join(scan("a"), scan("a"), "#0 = #2")), (1, vec![0, 1, 2, 3]));
    }

    #[test]
    fn the_stream_table_stores_the_last_head_when_it_holds_all_of_it() {
        assert_eq!(shape(counts()), (1, vec![0, 1]));
        assert_eq!(shape(project(counts(), &["#1", "#0"])), (1, vec![1, 0]));
        assert_eq!(shape(scan("a").distinct()), (1, vec![0, 1]));
    }

    #[test]
    fn otherwise_the_head_has_a_storage_of_its_own() {
        assert_eq!(shape(project(counts(), &["#1"])), (2, vec![0]));
        assert_eq!(shape(project(counts(), &["#1", "#0", "#1"])), (2, vec![0, 1, 2]));
        assert_eq!(shape(project(counts(), &["#0", "#1 + 1"])), (2, vec![0, 1]));
        assert_eq!(shape(filter(counts(), "#1 > 1")), (2, vec![0, 1]));
        // A nullable sum remembers the number of its inputs.
        assert_eq!(shape(aggregate(scan("a"), &[0], &["sum(#1)"])), (2, vec![0, 1]));
        assert_eq!(shape(aggregate(scan("d"), &[0], &["sum(#1)"])), (1, vec![0, 1]));
    }

    #[test]
    fn operands_of_outer_joins_and_marks_are_leaves() {
        let pair = || left_join(scan("a"), scan("b"), "#0 = #2");
        let deferred = |plan: Plan| {
            let pipeline = stage(plan);
            (0..pipeline.stages.len()).filter(|it| pipeline.is_deferred(*it)).collect::<Vec<_>>()
        };
        assert_eq!(deferred(pair()), []);
        assert_eq!(deferred(left_join(filter(scan("a"), "#0 = 1"), scan("b"), "#0 = #2")), []);
        assert_eq!(deferred(left_join(pair(), scan("c"), "#1 = #4")), [0]);
        assert_eq!(deferred(join(scan("c"), pair(), "#0 = #2")), [0]);
        assert_eq!(deferred(left_join(pair(), pair(), "#1 = #4")), [0]);
        assert_eq!(deferred(left_join(counts(), pair(), "#0 = #2")), [1]);
        assert_eq!(
            deferred(mark(join(scan("a"), scan("b"), "#0 = #2"), scan("c"), "#0 = #4")),
            [0]
        );
    }

    #[test]
    fn equal_sub_plans_are_one_stage() {
        assert_eq!(shape(join(counts(), counts(), "#0 = #2")).0, 2);
        assert_eq!(shape(union_all([counts(), counts(), filter(counts(), "#1 = 1")])).0, 2);
        let other = aggregate(scan("a"), &[1], &["count(*)"]);
        assert_eq!(shape(join(counts(), other, "#0 = #2")).0, 3);
        // Sharing is by stage: equal inputs are shared below heads that differ.
        let sums = |call: &str| aggregate(counts(), &[1], &[call]);
        assert_eq!(shape(join(sums("max(#0)"), sums("min(#0)"), "#0 = #2")).0, 4);
    }

    #[test]
    fn stages_stand_in_the_order_of_their_dependencies() {
        let plan = aggregate(join(counts().distinct(), counts(), "#0 = #2"), &[], &["count(*)"]);
        let pipeline = stage(plan);
        for (index, stage) in pipeline.stages.iter().enumerate() {
            for source in stage.sources() {
                if let crate::plan::Source::Stage(earlier) = source {
                    assert!(*earlier < index);
                }
            }
        }
    }
}
