//! Cutting a plan into stages.
//!
//! A stage is a stateless body under at most one stateful head, whose stored output is the old
//! state that the head needs. A stage reads sources and the stored output of earlier stages, so
//! nested aggregates become a pipeline. Equal sub-plans become one stage.

use crate::{
    aggregate,
    plan::{AggregateCall, Plan, Scan, Schema, Source, Version},
};

/// The stateful operator on top of a stage: GROUP BY over the body's columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Positions of the grouping columns in the body.
    pub keys: Vec<usize>,
    /// The aggregates, over the body's columns.
    pub calls: Vec<AggregateCall>,
}

/// One step of a refresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Stateless: no aggregates; leaves are tables and earlier stages.
    pub body: Plan,
    /// `None` only in the last stage.
    pub head: Option<Head>,
    /// What the stage puts out: the body's columns, or the keys and aggregates of the head.
    pub output: Schema,
}

/// The stages of a plan in the order in which they run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipeline {
    /// At least one. The output of the last is stored in the stream table.
    pub stages: Vec<Stage>,
    /// For each column of the stream table its position in the last stage's output.
    pub visible: Vec<usize>,
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

    /// Positions in the output that never change while a group exists: the keys, unless equal keys
    /// can look different.
    pub fn fixed(&self) -> Vec<usize> {
        let keys = self.head.as_ref().map_or(0, |head| head.keys.len());
        (0..keys).filter(|key| self.output[*key].is_exact()).collect()
    }

    /// Positions in the output that identify a row, if there are any.
    pub fn key(&self) -> Option<Vec<usize>> {
        match &self.head {
            Some(head) => Some((0..head.keys.len()).collect()),
            None => self.body.key(),
        }
    }
}

/// Cuts `plan` at its stateful operators.
pub fn stage(plan: Plan) -> Pipeline {
    let mut stages = Vec::new();
    let rest = cut(plan, &mut stages);
    if let Some(visible) = permutation_of_last(&rest, &stages) {
        return Pipeline { stages, visible };
    }
    let output = rest.schema();
    let visible = (0..output.len()).collect();
    stages.push(Stage { body: rest, head: None, output });
    Pipeline { stages, visible }
}

fn cut(plan: Plan, stages: &mut Vec<Stage>) -> Plan {
    let output = plan.schema();
    match plan.map_inputs(|input| cut(input, stages)) {
        Plan::Aggregate { input, keys, calls } => {
            let key = (0..keys.len()).collect();
            let stage = Stage {
                body: *input,
                head: Some(Head { keys, calls }),
                output: output.clone(),
            };
            let index = stages.iter().position(|it| *it == stage).unwrap_or_else(|| {
                stages.push(stage);
                stages.len() - 1
            });
            Plan::Scan(Scan {
                source: Source::Stage(index),
                attributes: (0..output.len()).collect(),
                columns: output,
                key: Some(key),
                version: Version::New,
            })
        }
        plan => plan,
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
    let head = stages[last].head.as_ref()?;
    let has_state = head.calls.iter().any(|call| !aggregate::state(call).is_empty());
    let reads_last = scan.source == Source::Stage(last);
    (reads_last && is_permutation && !has_state).then_some(visible)
}
