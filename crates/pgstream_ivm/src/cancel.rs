//! Leaving out of a change what cancels before anything is looked up.
//!
//! A condition that reads few columns of a row does not notice when the others change: what it reads
//! goes and comes back. In [`Plan::MarkChange`] a row has `n'` matches and had `n' - d`, where `d` is the
//! sum of the weights of those in `ΔR`. Rows of `ΔR` that agree in the columns that the condition and
//! the operators below read match the same rows. So where the weights of such rows add up to 0, `d` is 0
//! for every row, no mark has changed, and the operator is empty.

use crate::{
    plan::{Plan, Scan, Source, Version},
    scalar::Scalar,
};

/// `change`, as it comes from [`crate::derive::delta`], without the changes of marks that cancel: those
/// that read a source's change in columns for which `cancels` holds, namely that the weights of the
/// rows with the same image in these columns add up to 0. Columns are numbered as in
/// [`Scan::attributes`].
#[must_use]
pub fn without_cancelled(change: Plan, cancels: &mut dyn FnMut(&Source, &[usize]) -> bool) -> Plan {
    let plan = change.map_inputs(|it| without_cancelled(it, cancels));
    let is_empty = match &plan {
        Plan::MarkChange { left, change, on, .. } => {
            is_empty(left) || is_empty(change) || {
                let width = left.schema().len();
                let read = on.iter().flat_map(Scalar::columns);
                let read = read.filter_map(|it| it.checked_sub(width)).collect();
                read_of_change(change, read).is_some_and(|it| cancels(&it.0, &it.1))
            }
        }
        Plan::InnerJoin { left, right, .. } => is_empty(left) || is_empty(right),
        Plan::LeftJoin { left: input, .. }
        | Plan::Mark { left: input, .. }
        | Plan::Filter { input, .. }
        | Plan::Project { input, .. }
        | Plan::Expand { input, .. }
        | Plan::Negate(input) => is_empty(input),
        Plan::Sum { inputs } => inputs.iter().all(is_empty),
        _ => false,
    };
    match plan {
        plan if is_empty => Plan::Empty(plan.schema()),
        Plan::Sum { mut inputs } => {
            inputs.retain(|it| !self::is_empty(it));
            if inputs.len() == 1 { inputs.remove(0) } else { Plan::Sum { inputs } }
        }
        plan => plan,
    }
}

fn is_empty(plan: &Plan) -> bool {
    matches!(plan, Plan::Empty(_))
}

/// What the rows of `plan` depend on, as far as their columns `read` go, if that is the change of one
/// source: which, and the columns of it.
fn read_of_change(plan: &Plan, mut read: Vec<usize>) -> Option<(Source, Vec<usize>)> {
    match plan {
        Plan::Scan(Scan { source, attributes, version: Version::Delta, policy: None, .. }) => {
            let mut read: Vec<usize> = read.into_iter().map(|it| attributes[it]).collect();
            read.sort_unstable();
            read.dedup();
            Some((source.clone(), read))
        }
        Plan::Filter { input, predicate } => {
            read.extend(predicate.columns());
            read_of_change(input, read)
        }
        Plan::Project { input, columns } => {
            let read = read.into_iter().flat_map(|it| columns[it].0.columns()).collect();
            read_of_change(input, read)
        }
        Plan::Negate(input) => read_of_change(input, read),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::without_cancelled;
    use crate::{
        derive::delta,
        plan::{Plan, Source},
        testing::{filter, join, left_join, mark, project, scan, union_all},
    };

    fn is_of_b(source: &Source) -> bool {
        matches!(source, Source::Table { oid: 2, .. })
    }

    #[test]
    fn only_the_columns_that_decide_on_a_match_are_compared() {
        let asked = |plan: Plan| {
            let mut asked = Vec::new();
            let change = delta(&plan, &|source| is_of_b(source));
            let _ = without_cancelled(change, &mut |_, read| {
                asked.push(read.to_vec());
                true
            });
            asked
        };
        assert_eq!(asked(mark(scan("a"), scan("b"), "#0 = #2")), [[1]]);
        assert_eq!(asked(mark(scan("a"), scan("b"), "#0 = #2 AND #3 > #1")), [[1, 2]]);
        assert_eq!(asked(mark(scan("a"), filter(scan("b"), "#1 > 1"), "#0 = #2")), [[1, 2]]);
        let computed = project(filter(scan("b"), "#1 > 1"), &["#0 + 1", "#1"]);
        assert_eq!(asked(mark(scan("a"), computed.clone(), "#0 = #3")), [[2]]);
        assert_eq!(asked(mark(scan("a"), computed, "#0 = #2")), [[1, 2]]);
        assert_eq!(asked(mark(scan("a"), scan("b"), "#0 = 1")), [[0_usize; 0]]);
        for right in [join(scan("b"), scan("b"), "#0 = #2"), union_all([scan("b"), scan("b")])] {
            assert!(asked(mark(scan("a"), right, "#0 = #2")).is_empty());
        }
    }

    #[test]
    fn what_is_joined_with_nothing_goes_as_well() {
        let outer = left_join(scan("a"), scan("b"), "#0 = #2");
        let plan = join(filter(outer, "#3 IS NULL"), scan("d"), "#0 = #4");
        let change = delta(&plan, &|source| is_of_b(source));
        assert_eq!(without_cancelled(change.clone(), &mut |_, _| false), change);
        insta::assert_snapshot!(without_cancelled(change, &mut |_, _| true), @r"
        InnerJoin #0 = #4
          Filter #3 IS NULL
            InnerJoin #0 = #2
              Scan public.a [w, k0]
              Scan public.b, delta [c0, n]
          Scan public.d [x, p]
        ");
        let marked = filter(mark(scan("a"), scan("b"), "#0 = #2"), "#2");
        let change = without_cancelled(delta(&marked, &|it| is_of_b(it)), &mut |_, _| true);
        insta::assert_snapshot!(change, @"Empty (3 columns)");
    }
}
