//! The statements of a stage whose head is a recursion; see [`crate::recursion`].

use crate::{
    derive,
    plan::{Column, Plan, Source},
    sql::{
        ROW_ID, Storage, identified_delta,
        select::{Printer, row_id},
    },
    stage::{Recursion, Stage},
};

/// The name of the recursive reference when everything is evaluated.
pub(super) const ITSELF: &str = "__pgs_recursive";

/// SQL for a stage with a recursion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecursionStatements {
    /// The changes of base and step over the stored rows: row id, output (the depth last), weight.
    pub changed: String,
    /// What the step makes of the stage's delta: likewise.
    pub step: String,
    /// All rows: row id, output.
    pub all: String,
}

/// Writes the statements of stage `index`. `delta` is the body's delta.
pub fn recursion(
    stage: &Stage,
    index: usize,
    head: &Recursion,
    delta: &Plan,
    storages: &[Storage],
) -> RecursionStatements {
    let width = stage.output.len();
    let step = derive::delta(&head.step, &|source| *source == Source::Stage(index));
    RecursionStatements {
        changed: identified_delta(delta, None, width, storages),
        step: identified_delta(&step, None, width, storages),
        all: all(stage, index, head, storages),
    }
}

fn all(stage: &Stage, index: usize, head: &Recursion, storages: &[Storage]) -> String {
    let mut storages = storages.to_vec();
    storages[index].table = ITSELF.to_owned();
    let names: Vec<String> = storages[index].columns.clone();
    let [base, step] = parts(stage, head, &storages, names.len());
    let renamed: Vec<String> =
        names.iter().enumerate().map(|(i, it)| format!("r.{it} AS c{i}")).collect();
    let values: String = (0..names.len()).map(|it| format!(", b.c{it}")).collect();
    format!(
        "WITH RECURSIVE {ITSELF}({}) AS ({base} UNION ALL {step}) SELECT {} AS {ROW_ID}{values} \
         FROM (SELECT {} FROM {ITSELF} AS r) AS b",
        names.join(", "),
        row_id(None, &stage.output, "b.c"),
        renamed.join(", "),
    )
}

/// Base and step as the two sides of a recursive query, their first `width` columns.
pub(super) fn parts(
    stage: &Stage,
    head: &Recursion,
    storages: &[Storage],
    width: usize,
) -> [String; 2] {
    let cast = |(position, column): (usize, &Column)| format!("b.c{position}::{}", column.ty.sql);
    let columns: Vec<String> = stage.output[..width].iter().enumerate().map(cast).collect();
    [&head.base, &head.step].map(|plan| {
        let body = Printer::new(storages).unweighted(plan);
        format!("SELECT {} FROM {body} AS b", columns.join(", "))
    })
}
