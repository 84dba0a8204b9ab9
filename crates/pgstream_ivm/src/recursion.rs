//! WITH RECURSIVE: how a recursion becomes a plan, and the rule of UNION ALL. That of UNION is
//! [`crate::fixpoint`].
//!
//! The step must be linear in the recursive reference: what it makes of several rows is the sum of what
//! it makes of each. So the reference may stand below filters, projections, set-returning items, inner
//! joins, and on the left side of outer joins and marks, whose right side is about other tables.
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

/// The plan of `base UNION ALL step`, or of UNION if it `is_set`, in which a scan of [`ITSELF`] is the
/// recursive reference; its output is the columns of both, then the depth. `None` when the step is not
/// linear in it.
///
/// The columns of a set must be such that equal values have equal images.
pub fn recurse(base: Plan, step: Plan, depth: &Type, is_set: bool) -> Option<Plan> {
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
        is_set,
    })
}

/// The first columns of `plan`, and one more.
fn with_last(plan: Plan, width: usize, last: Scalar) -> Plan {
    let schema = plan.schema();
    let first = (0..width).map(|it| (Scalar::column(it, &schema[it]), schema[it].name.clone()));
    let columns = first.chain([(last, "depth".to_owned())]).collect();
    Plan::Project { input: Box::new(plan), columns }
}

/// Whether the recursive reference is in it. That of a recursion in it is another one.
pub fn reads_itself(plan: &Plan) -> bool {
    match plan {
        Plan::Scan(scan) => scan.source == ITSELF,
        Plan::Recurse { .. } => false,
        _ => plan.inputs().into_iter().any(reads_itself),
    }
}

/// `plan` with the column at `from` moved to the end.
fn with_column_last(plan: Plan, from: usize) -> Plan {
    let width = plan.schema().len();
    plan.columns((0..width).filter(|it| *it != from).chain([from]))
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
        Plan::Expand { input, item, columns, outer } => {
            let (input, inner) = carry(input, width, depth)?;
            let (item, columns) = (item.clone(), columns.clone());
            let plan = Plan::Expand { input: Box::new(input), item, columns, outer: *outer };
            with_column_last(plan, inner)
        }
        Plan::InnerJoin { left, right, on } if !reads_itself(left) => {
            Plan::InnerJoin { left: left.clone(), right: boxed(right)?, on: on.clone() }
        }
        Plan::InnerJoin { left, right, on }
        | Plan::LeftJoin { left, right, on }
        | Plan::Mark { left, right, on, .. } => {
            if reads_itself(right) {
                return None;
            }
            let (left, inner) = carry(left, width, depth)?;
            let on = on.as_ref().map(|on| on.remapped(|it| if it < inner { it } else { it + 1 }));
            let (left, right) = (Box::new(left), right.clone());
            let join = match plan {
                Plan::Mark { mark, .. } => Plan::Mark { left, right, on, mark: mark.clone() },
                Plan::LeftJoin { .. } => Plan::LeftJoin { left, right, on },
                _ => Plan::InnerJoin { left, right, on },
            };
            with_column_last(join, inner)
        }
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
