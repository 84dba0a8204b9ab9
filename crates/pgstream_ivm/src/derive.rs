//! Deriving the delta of a stateless plan.
//!
//! # Rules
//!
//! Write `A` for old content, `ΔA` for its change, `A' = A + ΔA` for new content. Filter, project,
//! UNION ALL and negation are linear: they apply to the change as they do to content. A join is
//! bilinear, so
//!
//! ```text
//! Δ(A ⋈ B)  =  A' ⋈ B' - A ⋈ B  =  (ΔA ⋈ B') + (A ⋈ ΔB)
//! ```
//!
//! with no correction term and no case by shape. Over a tree of joins this unfolds to one term for
//! each leaf, each of which starts from a change and looks up the other leaves by key.
//!
//! Source: Budiu et al., *DBSP: Automatic Incremental View Maintenance for Rich Query Languages*,
//! PVLDB 16(7), 2023.
//!
//! A leaf that did not change has an empty delta, and its old content is its new content. Terms
//! that are empty for that reason are left out, so the derivation takes the set of leaves that
//! changed; it is exact for every superset of them.

use crate::plan::{Plan, Scan, Source, Version};

/// The change of `plan`, when only the sources for which `changed` holds may have changed.
///
/// Panics on an aggregate: staging has replaced those by leaves.
pub fn delta(plan: &Plan, changed: &dyn Fn(&Source) -> bool) -> Plan {
    match plan {
        Plan::Unit | Plan::Empty(_) => Plan::Empty(plan.schema()),
        Plan::Scan(scan) if changed(&scan.source) => {
            Plan::Scan(Scan { version: Version::Delta, ..scan.clone() })
        }
        Plan::Scan(_) => Plan::Empty(plan.schema()),
        Plan::InnerJoin { left, right, on } => {
            let join = |left: Plan, right: Plan| Plan::InnerJoin {
                left: Box::new(left),
                right: Box::new(right),
                on: on.clone(),
            };
            sum(
                [
                    join(delta(left, changed), at(right, Version::New, changed)),
                    join(at(left, Version::Old, changed), delta(right, changed)),
                ],
                plan,
            )
        }
        Plan::Sum { inputs } => sum(inputs.iter().map(|input| delta(input, changed)), plan),
        Plan::Filter { .. } | Plan::Project { .. } | Plan::Negate(_) => {
            prune(plan.clone().map_inputs(|input| delta(&input, changed)))
        }
        Plan::Aggregate { .. } => panic!("an aggregate is the head of a stage, not part of a body"),
    }
}

/// `plan` over old or new content. The old content of a leaf that did not change is its new one.
pub fn at(plan: &Plan, version: Version, changed: &dyn Fn(&Source) -> bool) -> Plan {
    match plan {
        Plan::Scan(scan) => {
            let version = if changed(&scan.source) { version } else { Version::New };
            Plan::Scan(Scan { version, ..scan.clone() })
        }
        _ => plan.clone().map_inputs(|input| at(&input, version, changed)),
    }
}

/// The sum of `terms` without the empty ones; `like` gives the schema.
fn sum(terms: impl IntoIterator<Item = Plan>, like: &Plan) -> Plan {
    let mut inputs = Vec::new();
    for term in terms {
        match prune(term) {
            Plan::Empty(_) => {}
            Plan::Sum { inputs: nested } => inputs.extend(nested),
            term => inputs.push(term),
        }
    }
    match inputs.len() {
        0 => Plan::Empty(like.schema()),
        1 => inputs.remove(0),
        _ => Plan::Sum { inputs },
    }
}

/// Replaces an operator over an empty input by an empty plan.
fn prune(plan: Plan) -> Plan {
    let any_empty = plan.inputs().iter().any(|input| matches!(input, Plan::Empty(_)));
    match plan {
        Plan::Sum { .. } | Plan::Aggregate { .. } => plan,
        _ if any_empty => Plan::Empty(plan.schema()),
        _ => plan,
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
        Project [#1]
          Filter #0 = 1
            Sum
              Scan public.a, delta [w, k0]
              Scan public.a, delta [w, k0]
        ");
    }

    #[test]
    fn a_join_has_one_term_for_each_leaf_that_changed() {
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
              Scan public.a, old [w, k0]
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
    fn a_self_join_has_two_terms() {
        insta::assert_snapshot!(delta_of(&join(scan("a"), scan("a"), "#0 = #3"), &[1]), @r"
        Sum
          InnerJoin #0 = #3
            Scan public.a, delta [w, k0]
            Scan public.a [w, k0]
          InnerJoin #0 = #3
            Scan public.a, old [w, k0]
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
