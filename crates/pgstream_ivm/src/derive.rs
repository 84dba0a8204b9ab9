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
