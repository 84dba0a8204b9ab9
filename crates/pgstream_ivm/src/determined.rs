//! Whether some columns of a row tell which row it is, so that ordering by them leaves nothing open.
//!
//! Nothing here affects results. What is not recognized is taken to leave something open; a condition
//! is taken for a conjunction of its equalities unless it has an OR, a NOT or a CASE.

use std::collections::BTreeSet;

use crate::{
    look_up::{compared, is_conjunction},
    plan::Plan,
    scalar::{Scalar, Segment},
};

/// Whether rows of `plan` that agree in the columns `known` are one row, or look the same.
pub fn tells_apart(plan: &Plan, known: &BTreeSet<usize>) -> bool {
    let width = plan.schema().len();
    if (0..width).all(|it| known.contains(&it)) {
        return true;
    }
    match plan {
        Plan::Unit | Plan::Empty(_) => true,
        Plan::Scan(scan) => {
            scan.key.as_ref().is_some_and(|key| key.iter().all(|it| known.contains(it)))
        }
        Plan::Filter { input, predicate } => {
            let mut known = known.clone();
            add_fixed(predicate, &mut known);
            tells_apart(input, &known)
        }
        Plan::Project { input, columns } => {
            let inner = |it: &usize| columns.get(*it)?.0.as_column();
            tells_apart(input, &known.iter().filter_map(inner).collect())
        }
        Plan::InnerJoin { left, right, on } => {
            let mut known = known.clone();
            on.iter().for_each(|on| add_fixed(on, &mut known));
            let from_left = side(left, right, &mut known.clone(), on.as_ref(), true);
            from_left || side(left, right, &mut known, on.as_ref(), false)
        }
        Plan::LeftJoin { left, right, on } => {
            side(left, right, &mut known.clone(), on.as_ref(), true)
        }
        Plan::Mark { left, .. } => tells_apart(left, known),
        Plan::Window { input, .. } => tells_apart(input, known),
        Plan::Expand { input, .. } => {
            let own = input.schema().len();
            (own..width).all(|it| known.contains(&it)) && tells_apart(input, known)
        }
        Plan::Aggregate { keys, .. } => (0..keys.len()).all(|it| known.contains(&it)),
        Plan::Sum { inputs } => match inputs.as_slice() {
            [only] => tells_apart(only, known),
            _ => false,
        },
        Plan::MarkChange { .. } | Plan::Recurse { .. } | Plan::Opaque { .. } | Plan::Negate(_) => {
            false
        }
    }
}

/// Whether the known columns tell rows of one side apart, and then, with what a join equates to the
/// columns of that side, those of the other one.
fn side(
    left: &Plan,
    right: &Plan,
    known: &mut BTreeSet<usize>,
    on: Option<&Scalar>,
    left_first: bool,
) -> bool {
    let width = left.schema().len();
    let of_left = |known: &BTreeSet<usize>| known.range(..width).copied().collect::<BTreeSet<_>>();
    let of_right = |known: &BTreeSet<usize>| {
        known.range(width..).map(|it| it - width).collect::<BTreeSet<_>>()
    };
    let all = width + right.schema().len();
    if left_first {
        if !tells_apart(left, &of_left(known)) {
            return false;
        }
        known.extend(0..width);
    } else {
        if !tells_apart(right, &of_right(known)) {
            return false;
        }
        known.extend(width..all);
    }
    on.iter().for_each(|on| add_fixed(on, known));
    if left_first {
        tells_apart(right, &of_right(known))
    } else {
        tells_apart(left, &of_left(known))
    }
}

/// Adds the columns that a condition equates to known ones and to constants.
fn add_fixed(condition: &Scalar, known: &mut BTreeSet<usize>) {
    if !is_conjunction(condition) {
        return;
    }
    for window in condition.segments.windows(2) {
        if let [Segment::Column(column), Segment::Text(text)] = window
            && let Some(rest) = text.strip_prefix(" = ")
            && rest.contains(|it: char| it.is_alphanumeric() || it == '\'')
        {
            known.insert(*column);
        }
    }
    let pairs = compared(condition);
    loop {
        let before = known.len();
        for (a, b) in &pairs {
            if known.contains(a) || known.contains(b) {
                known.extend([*a, *b]);
            }
        }
        if known.len() == before {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::tells_apart;
    use crate::{
        plan::Plan,
        testing::{aggregate, filter, join, left_join, project, scan, union_all},
    };

    fn told(plan: &Plan, known: &[usize]) -> bool {
        tells_apart(plan, &known.iter().copied().collect())
    }

    #[test]
    fn a_key_tells_rows_apart() {
        // The key of "c" is its first column; "b" has none.
        assert!(told(&scan("c"), &[0]));
        assert!(!told(&scan("c"), &[1]));
        assert!(!told(&scan("b"), &[0]));
        assert!(told(&scan("b"), &[0, 1]));
        assert!(told(&project(scan("c"), &["#1", "#0"]), &[1]));
        assert!(!told(&project(scan("c"), &["#1"]), &[]));
        assert!(told(&filter(scan("c"), "#0 = 1"), &[]));
        assert!(!told(&filter(scan("c"), "#0 = 1 OR #1 = 1"), &[]));
        assert!(told(&aggregate(scan("b"), &[0], &["count(*)"]), &[0]));
        assert!(!told(&union_all([scan("c"), scan("c")]), &[0]));
    }

    #[test]
    fn a_join_to_a_key_needs_no_key_of_its_own() {
        let plan = join(scan("c"), scan("c"), "(#1 = #2)");
        assert!(told(&plan, &[0]));
        assert!(!told(&plan, &[2]));
        assert!(told(&plan, &[0, 2]));
        assert!(told(&left_join(scan("c"), scan("c"), "(#1 = #2)"), &[0]));
        assert!(!told(&join(scan("c"), scan("b"), "(#0 = #2)"), &[0]));
    }
}
