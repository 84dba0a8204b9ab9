//! WITH RECURSIVE … UNION ALL.
//!
//! # Rule
//!
//! Each row carries its depth: 0 for a row of the base `B`, one more than that of the row it comes
//! from for a row of the step `S`. With `R_d` the rows at depth `d`,
//!
//! ```text
//! R_0 = B        R_(d+1) = S(R_d)
//! ΔR_0 = ΔB      ΔR_(d+1) = (ΔS)(R_d) + S'(ΔR_d)
//! ```
//!
//! where `(ΔS)(R_d)` is the change of the step's tables over the old rows, and `S'` the step over
//! the tables as they are now. The first terms of all depths are one query: the change of `B + S`
//! with the stored rows for the recursive reference, which did not change yet. The second terms
//! are semi-naive evaluation, depth by depth, with rows that come and rows that go at once. Each
//! `ΔR_d` is exact, so the evaluation ends where both the old and the new recursion have ended,
//! and cycles cannot keep rows alive.
//!
//! Source: Budiu et al., *DBSP: Automatic Incremental View Maintenance for Rich Query Languages*,
//! PVLDB 16(7), 2023: recursion as a stream of iterations.
//!
//! # Cost
//!
//! Follows the change of the result, with one query for each depth that it reaches, and indexes on
//! the columns that the step joins by.

use crate::{
    plan::{Column, Plan, Scan, Source},
    scalar::{Scalar, Segment, Type},
};

/// The recursive reference, until staging gives it a number.
pub const ITSELF: Source = Source::Stage(usize::MAX);

/// The plan of `base UNION ALL step`, in which a scan of [`ITSELF`] is the recursive reference;
/// its output is the columns of both, then the depth. `None` when the step is not linear in it.
pub fn recurse(base: Plan, step: Plan, depth: &Type) -> Option<Plan> {
    if counts_matches(&step) {
        return None;
    }
    let width = base.schema().len();
    let (step, place) = carry(&step, width, depth)?;
    let number = |segments: Vec<Segment>| Scalar {
        segments,
        ty: depth.clone(),
        nullable: false,
        scale: None,
    };
    let zero = number(vec![Segment::Text("0::bigint".to_owned())]);
    let next = number(vec![
        Segment::Text("(".to_owned()),
        Segment::Column(place),
        Segment::Text(" + 1::bigint)".to_owned()),
    ]);
    Some(Plan::Recurse {
        base: Box::new(with_last(base, width, zero)),
        step: Box::new(with_last(step, width, next)),
    })
}

/// The first columns of `plan`, and one more.
fn with_last(plan: Plan, width: usize, last: Scalar) -> Plan {
    let schema = plan.schema();
    let first = (0..width).map(|it| (Scalar::column(it, &schema[it]), schema[it].name.clone()));
    let columns = first.chain([(last, "depth".to_owned())]).collect();
    Plan::Project { input: Box::new(plan), columns }
}

fn counts_matches(plan: &Plan) -> bool {
    matches!(plan, Plan::LeftJoin { .. } | Plan::Mark { .. })
        || plan.inputs().into_iter().any(counts_matches)
}

fn reads_itself(plan: &Plan) -> bool {
    plan.scans().iter().any(|it| it.source == ITSELF)
}

/// `plan` with the depth of the recursive reference as one more column, the last; and where it is.
/// The depth stands behind the `width` columns of the stored rows.
fn carry(plan: &Plan, width: usize, depth: &Type) -> Option<(Plan, usize)> {
    let place = plan.schema().len();
    let boxed = |input: &Plan| Some(Box::new(carry(input, width, depth)?.0));
    let plan = match plan {
        Plan::Scan(scan) if scan.source == ITSELF => {
            let mut scan: Scan = scan.clone();
            let (name, ty) = ("depth".to_owned(), depth.clone());
            scan.columns.push(Column { name, ty, nullable: false, scale: None });
            scan.attributes.push(width);
            Plan::Scan(scan)
        }
        Plan::Filter { input, predicate } => {
            Plan::Filter { input: boxed(input)?, predicate: predicate.clone() }
        }
        Plan::Project { input, columns } => {
            let (input, inner) = carry(input, width, depth)?;
            let mut columns = columns.clone();
            let column = Scalar::column(inner, &input.schema()[inner]);
            columns.push((column, "depth".to_owned()));
            Plan::Project { input: Box::new(input), columns }
        }
        Plan::InnerJoin { left, right, on } => match (reads_itself(left), reads_itself(right)) {
            (false, true) => {
                Plan::InnerJoin { left: left.clone(), right: boxed(right)?, on: on.clone() }
            }
            (true, false) => {
                let (left, inner) = carry(left, width, depth)?;
                let moved = |it: usize| if it < inner { it } else { it + 1 };
                let on = on.as_ref().map(|on| on.remapped(moved));
                let join = Plan::InnerJoin { left: Box::new(left), right: right.clone(), on };
                let schema = join.schema();
                let column = |it| (Scalar::column(it, &schema[it]), schema[it].name.clone());
                let columns = (0..place).map(moved).chain([inner]).map(column).collect();
                Plan::Project { input: Box::new(join), columns }
            }
            _ => return None,
        },
        _ => return None,
    };
    Some((plan, place))
}

/// `plan` with the recursive reference being the output of a stage.
#[must_use]
pub fn numbered(plan: Plan, stage: usize) -> Plan {
    match plan {
        Plan::Scan(scan) if scan.source == ITSELF => {
            Plan::Scan(Scan { source: Source::Stage(stage), ..scan })
        }
        plan => plan.map_inputs(|input| numbered(input, stage)),
    }
}
