//! Deriving the delta of a stateless plan.
//!
//! # Rules
//!
//! Write `A` for old content, `ΔA` for its change, `A' = A + ΔA` for new content. Filter, project,
//! UNION ALL, negation and LATERAL without tables (see [`Plan::Expand`]) are linear: they apply to
//! the change as they do to content. A join is bilinear, so
//!
//! ```text
//! Δ(A ⋈ B)  =  A' ⋈ B' - A ⋈ B  =  (ΔA ⋈ B') + (A ⋈ ΔB)
//! ```
//!
//! with no case by shape. Over a tree of joins this unfolds to one term for each leaf, each of which
//! starts from a change and looks up the other leaves by key. Joins distribute over sums, so that
//! every term is one flat join, which PostgreSQL may order as it likes.
//!
//! Old content is `A' - ΔA`. Where few leaves of `A` changed, that is distributed too: the look-up
//! by key is then into the table alone, and the change, which has no index, is joined to the other
//! change by hashing. With more it stays one leaf, for the number of terms doubles with each.
//!
//! A match is a pair for which the condition of an outer join or a mark is true. Of a row `l` let
//! `n'` be the number of its matches in `R'`, and `d` the sum of the weights of those in `ΔR`: it
//! had `n' - d` before. `L ⟕ R` (outer join) and `L ? R` (mark) are linear in `L`, so
//!
//! ```text
//! Δ(L ? R)  =  (ΔL ? R') + M    with  M  =  L ? R' - L ? R
//! Δ(L ⟕ R)  =  (ΔL ⟕ R') + (L ⋈ ΔR) + N
//! ```
//!
//! `M` ([`Plan::MarkChange`]) holds the rows of `L` for which `n' > 0` and `n' - d > 0` differ, twice:
//! `(l, n' > 0)` and `-(l, n' - d > 0)`. Only rows that match something in `ΔR` can be among them.
//! `N` is the change of the rows without a match: those of `M` whose mark is false, with NULLs.
//!
//! # Cost
//!
//! Every term starts from a change. `M` finds the rows of `L` that `ΔR` touches, and counts the
//! matches of those; where an index finds these, no more than `max(d, 0) + 1`, which tells both
//! `n' > 0` and, as neither `n'` nor `n' - d` is negative, `n' - d > 0`. Staging sees to it that the operands of outer joins and marks are leaves, so
//! that the text stays linear in a chain of them.
//!
//! Source: Budiu et al., *DBSP: Automatic Incremental View Maintenance for Rich Query Languages*,
//! PVLDB 16(7), 2023.
//!
//! A leaf that did not change has an empty delta, and its old content is its new content. Terms
//! that are empty for that reason are left out, so the derivation takes the set of leaves that
//! changed; it is exact for every superset of them.

use crate::{
    plan::{Column, Plan, Scan, Source, Version},
    scalar::Scalar,
};

/// Up to so many changed leaves, old content is taken apart into new content and change.
const TAKEN_APART: usize = 2;

/// And where there are so many leaves at most: each branch of a UNION ALL becomes a term.
const FEW_LEAVES: usize = 16;

/// The change of `plan`, when only the sources for which `changed` holds may have changed.
///
/// Panics on an aggregate: staging has replaced those by leaves.
pub fn delta(plan: &Plan, changed: &dyn Fn(&Source) -> bool) -> Plan {
    sum(terms(plan, changed)).unwrap_or_else(|| Plan::Empty(plan.schema()))
}

fn sum(mut terms: Vec<Plan>) -> Option<Plan> {
    match terms.len() {
        0 | 1 => terms.pop(),
        _ => Some(Plan::Sum { inputs: terms }),
    }
}

/// The terms of the change, none of which is empty or a sum of others.
fn terms(plan: &Plan, changed: &dyn Fn(&Source) -> bool) -> Vec<Plan> {
    match plan {
        Plan::Unit | Plan::Empty(_) => Vec::new(),
        Plan::Scan(scan) if changed(&scan.source) => vec![version(scan, Version::Delta)],
        Plan::Scan(_) => Vec::new(),
        Plan::InnerJoin { left, right, .. } => {
            let new_right = at(right, Version::New, changed);
            let from_left = terms(left, changed);
            let mut terms_of_join: Vec<Plan> =
                from_left.into_iter().map(|term| join(plan, term, new_right.clone())).collect();
            let from_right = terms(right, changed);
            if !from_right.is_empty() {
                for old_left in old(left, changed) {
                    let joined =
                        from_right.iter().map(|term| join(plan, old_left.clone(), term.clone()));
                    terms_of_join.extend(joined);
                }
            }
            terms_of_join
        }
        Plan::LeftJoin { left, right, on } => {
            let new_right = at(right, Version::New, changed);
            let from_left = terms(left, changed);
            let mut all: Vec<Plan> =
                from_left.into_iter().map(|term| join(plan, term, new_right.clone())).collect();
            let from_right = terms(right, changed);
            for old_left in old(left, changed) {
                all.extend(from_right.iter().map(|term| Plan::InnerJoin {
                    left: Box::new(old_left.clone()),
                    right: Box::new(term.clone()),
                    on: on.clone(),
                }));
            }
            let marks = mark_change((left, right), on.as_ref(), &Column::mark(), changed);
            all.extend(marks.map(|marks| {
                let width = left.schema().len();
                let predicate = Scalar::is_marked(width, false);
                let unmatched = Plan::Filter { input: Box::new(marks), predicate };
                unmatched.columns(0..width).with_nulls_for(right.schema())
            }));
            all
        }
        Plan::Mark { left, right, on, mark } => {
            let new_right = at(right, Version::New, changed);
            let from_left = terms(left, changed);
            let mut all: Vec<Plan> =
                from_left.into_iter().map(|term| join(plan, term, new_right.clone())).collect();
            all.extend(mark_change((left, right), on.as_ref(), mark, changed));
            all
        }
        Plan::Sum { inputs } => inputs.iter().flat_map(|input| terms(input, changed)).collect(),
        Plan::Filter { input, .. }
        | Plan::Project { input, .. }
        | Plan::Expand { input, .. }
        | Plan::Negate(input) => {
            let above = |term: Plan| plan.clone().map_inputs(|_| term.clone());
            terms(input, changed).into_iter().map(above).collect()
        }
        // Only a marker: the head evaluates the whole.
        Plan::Opaque { reads, .. } => {
            let is_changed = reads.iter().any(|read| !terms(read, changed).is_empty());
            if is_changed { vec![plan.clone()] } else { Vec::new() }
        }
        Plan::MarkChange { .. } => panic!("it is a change itself"),
        Plan::Aggregate { .. } | Plan::Window { .. } | Plan::Recurse { .. } => {
            panic!("it is the head of a stage, not part of a body")
        }
    }
}

/// `M` of the rules; `None` when `right` did not change.
fn mark_change(
    (left, right): (&Plan, &Plan),
    on: Option<&Scalar>,
    mark: &Column,
    changed: &dyn Fn(&Source) -> bool,
) -> Option<Plan> {
    Some(Plan::MarkChange {
        change: Box::new(sum(terms(right, changed))?),
        left: Box::new(sum(old(left, changed)).expect("content has terms")),
        right: Box::new(at(right, Version::New, changed)),
        on: on.cloned(),
        mark: mark.clone(),
        is_indexed: false,
    })
}

/// Terms whose sum is the old content of `plan`.
fn old(plan: &Plan, changed: &dyn Fn(&Source) -> bool) -> Vec<Plan> {
    match changed_leaves(plan, changed) {
        1..=TAKEN_APART if plan.scans().len() <= FEW_LEAVES => taken_apart(plan, changed),
        _ => vec![at(plan, Version::Old, changed)],
    }
}

/// The old content of `plan` with `A' - ΔA` for each `A` that changed, distributed over all above.
fn taken_apart(plan: &Plan, changed: &dyn Fn(&Source) -> bool) -> Vec<Plan> {
    if changed_leaves(plan, changed) == 0 {
        return vec![plan.clone()];
    }
    match plan {
        Plan::Scan(scan) => {
            vec![version(scan, Version::New), Plan::Negate(Box::new(version(scan, Version::Delta)))]
        }
        Plan::InnerJoin { left, right, .. } => {
            let rights = taken_apart(right, changed);
            let lefts = taken_apart(left, changed);
            let pairs = lefts.iter().flat_map(|left| rights.iter().map(move |right| (left, right)));
            pairs.map(|(left, right)| join(plan, left.clone(), right.clone())).collect()
        }
        Plan::LeftJoin { left, right, .. } | Plan::Mark { left, right, .. } => {
            if changed_leaves(right, changed) > 0 {
                return new_without_change(plan, changed);
            }
            let joined = |left| join(plan, left, right.as_ref().clone());
            taken_apart(left, changed).into_iter().map(joined).collect()
        }
        Plan::Sum { inputs } => {
            inputs.iter().flat_map(|input| taken_apart(input, changed)).collect()
        }
        _ => {
            let input = plan.inputs()[0];
            let above = |term: Plan| plan.clone().map_inputs(|_| term.clone());
            taken_apart(input, changed).into_iter().map(above).collect()
        }
    }
}

/// `A' - ΔA`.
fn new_without_change(plan: &Plan, changed: &dyn Fn(&Source) -> bool) -> Vec<Plan> {
    let change = terms(plan, changed).into_iter().map(|it| Plan::Negate(Box::new(it)));
    std::iter::once(at(plan, Version::New, changed)).chain(change).collect()
}

fn changed_leaves(plan: &Plan, changed: &dyn Fn(&Source) -> bool) -> usize {
    match plan {
        Plan::Scan(scan) => usize::from(changed(&scan.source)),
        _ => plan.inputs().iter().map(|input| changed_leaves(input, changed)).sum(),
    }
}

fn version(scan: &Scan, version: Version) -> Plan {
    Plan::Scan(Scan { version, ..scan.clone() })
}

/// `like`, a join, with other inputs.
fn join(like: &Plan, left: Plan, right: Plan) -> Plan {
    let mut inputs = [left, right].into_iter();
    like.clone().map_inputs(|_| inputs.next().expect("a join has two inputs"))
}

/// `plan` over old or new content. The old content of a leaf that did not change is its new one.
pub fn at(plan: &Plan, version: Version, changed: &dyn Fn(&Source) -> bool) -> Plan {
    match plan {
        Plan::Scan(scan) => {
            let version = if changed(&scan.source) { version } else { Version::New };
            Plan::Scan(Scan { version, ..scan.clone() })
        }
        // The matches of a row are counted in content, not in a difference of contents.
        Plan::LeftJoin { right, .. } | Plan::Mark { right, .. }
            if version == Version::Old && changed_leaves(right, changed) > 0 =>
        {
            sum(new_without_change(plan, changed)).expect("content has terms")
        }
        _ => plan.clone().map_inputs(|input| at(&input, version, changed)),
    }
}

#[cfg(test)]
mod tests {
    use super::delta;
    use crate::{
        plan::{Plan, Source},
        testing::{filter, join, project, scan, union_all},
    };

    fn delta_of(plan: &Plan, tables: &[u32]) -> String {
        let changed =
            |source: &Source| matches!(source, Source::Table { oid, .. } if tables.contains(oid));
        delta(plan, &changed).to_string()
    }

    #[test]
    fn linear_operators_apply_to_the_change() {
        let plan = project(filter(union_all([scan("a"), scan("a")]), "#0 = 1"), &["#1"]);
        insta::assert_snapshot!(delta_of(&plan, &[1]), @r"
        Sum
          Project [#1]
            Filter #0 = 1
              Scan public.a, delta [w, k0]
          Project [#1]
            Filter #0 = 1
              Scan public.a, delta [w, k0]
        ");
    }

    #[test]
    fn a_join_starts_from_each_leaf_that_changed() {
        let plan = join(join(scan("a"), scan("b"), "#0 = #2"), scan("c"), "#1 = #4");
        insta::assert_snapshot!(delta_of(&plan, &[1, 3]), @r"
        Sum
          InnerJoin #1 = #4
            InnerJoin #0 = #2
              Scan public.a, delta [w, k0]
              Scan public.b [c0, n]
            Scan public.c [id, s]
          InnerJoin #1 = #4
            InnerJoin #0 = #2
              Scan public.a [w, k0]
              Scan public.b [c0, n]
            Scan public.c, delta [id, s]
          InnerJoin #1 = #4
            InnerJoin #0 = #2
              Negate
                Scan public.a, delta [w, k0]
              Scan public.b [c0, n]
            Scan public.c, delta [id, s]
        ");
        insta::assert_snapshot!(delta_of(&plan, &[2]), @r"
        InnerJoin #1 = #4
          InnerJoin #0 = #2
            Scan public.a [w, k0]
            Scan public.b, delta [c0, n]
          Scan public.c [id, s]
        ");
    }

    #[test]
    fn a_self_join_starts_from_both_leaves() {
        insta::assert_snapshot!(delta_of(&join(scan("a"), scan("a"), "#0 = #3"), &[1]), @r"
        Sum
          InnerJoin #0 = #3
            Scan public.a, delta [w, k0]
            Scan public.a [w, k0]
          InnerJoin #0 = #3
            Scan public.a [w, k0]
            Scan public.a, delta [w, k0]
          InnerJoin #0 = #3
            Negate
              Scan public.a, delta [w, k0]
            Scan public.a, delta [w, k0]
        ");
    }

    #[test]
    fn what_did_not_change_has_no_delta() {
        let plan = union_all([filter(scan("a"), "#0 = 1"), filter(scan("d"), "#0 = 1")]);
        insta::assert_snapshot!(delta_of(&plan, &[1]), @r"
        Filter #0 = 1
          Scan public.a, delta [w, k0]
        ");
        insta::assert_snapshot!(delta_of(&plan, &[2]), @"Empty (2 columns)");
        insta::assert_snapshot!(delta_of(&join(plan, scan("c"), "#0 = #2"), &[]), @"Empty (4 columns)");
    }
}
