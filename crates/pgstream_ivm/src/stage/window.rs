//! Filters over window functions, put into the window.
//!
//! # Rule
//!
//! σ(W(A)) is kept by the same stage as W(A): what is stored of a partition is compared with what
//! there should be, rows that the filter drops being neither here nor there. So "the first three
//! of each group" stores three rows a group.
//!
//! A window that occurs several times stays as it is: each occurrence must show the same order of
//! rows that ORDER BY leaves open, so all read one stage.

use crate::{plan::Plan, scalar::Scalar};

/// `plan` with filters moved below projections into the windows there.
pub(super) fn with_filters(plan: Plan) -> Plan {
    let mut windows = Vec::new();
    collect(&plan, &mut windows);
    fuse(plan, &windows)
}

fn collect(plan: &Plan, windows: &mut Vec<Plan>) {
    if matches!(plan, Plan::Window { .. }) {
        windows.push(plan.clone());
    }
    plan.inputs().into_iter().for_each(|input| collect(input, windows));
}

fn fuse(plan: Plan, windows: &[Plan]) -> Plan {
    let plan = match plan {
        Plan::Filter { input, predicate } => pushed(*input, predicate, windows),
        plan => plan,
    };
    plan.map_inputs(|input| fuse(input, windows))
}

/// `input` under a filter.
fn pushed(input: Plan, predicate: Scalar, windows: &[Plan]) -> Plan {
    match input {
        Plan::Project { input, columns }
            if stands_on_window(&input, windows)
                && predicate.columns().iter().all(|it| columns[*it].0.as_column().is_some()) =>
        {
            let below = |it: usize| columns[it].0.as_column().expect("just looked at");
            let predicate = predicate.remapped(below);
            Plan::Project { input: Box::new(pushed(*input, predicate, windows)), columns }
        }
        plan @ Plan::Window { filter: None, .. } if stands_on_window(&plan, windows) => {
            let Plan::Window { input, partition, calls, .. } = plan else {
                unreachable!("a window")
            };
            Plan::Window { input, partition, calls, filter: Some(predicate) }
        }
        input => Plan::Filter { input: Box::new(input), predicate },
    }
}

/// Whether this is a window without filter that occurs once, or a projection of one.
fn stands_on_window(plan: &Plan, windows: &[Plan]) -> bool {
    match plan {
        Plan::Window { filter: None, .. } => windows.iter().filter(|it| *it == plan).count() == 1,
        Plan::Project { input, .. } => stands_on_window(input, windows),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        plan::Plan,
        stage::stage,
        testing::{filter, join, project, scan, union_all, window},
    };

    fn ranks() -> Plan {
        window(scan("a"), &[0], &["rank() OVER (PARTITION BY #0 ORDER BY #1)"], None)
    }

    /// The filters in the windows of a plan's stages.
    fn filters(plan: Plan) -> Vec<Option<String>> {
        let stages = stage(plan).stages;
        let windows = stages.iter().filter_map(|it| it.window());
        windows.map(|it| it.filter.as_ref().map(ToString::to_string)).collect()
    }

    #[test]
    fn a_filter_goes_through_projections_into_the_window() {
        let first = || Some("#2 = 1".to_owned());
        assert_eq!(filters(ranks()), [None]);
        assert_eq!(filters(filter(ranks(), "#2 = 1")), [first()]);
        assert_eq!(filters(filter(project(ranks(), &["#2", "#0"]), "#0 = 1")), [first()]);
        let renamed = project(project(ranks(), &["#0", "#2", "#1 + 1"]), &["#2", "#1"]);
        assert_eq!(filters(filter(renamed.clone(), "#1 = 1")), [first()]);
        assert_eq!(filters(filter(renamed, "#0 = 1")), [None]);
    }

    #[test]
    fn a_window_that_is_used_twice_is_one_stage() {
        let (few, all) = (filter(ranks(), "#2 = 1"), ranks());
        assert_eq!(filters(join(few.clone(), all, "#0 = #3")), [None]);
        let rest = filter(ranks(), "#2 > 1");
        assert_eq!(filters(union_all([few, rest])), [None]);
    }
}
