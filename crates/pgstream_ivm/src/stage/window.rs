//! Filters over window functions, put into the window.
//!
//! # Rule
//!
//! σ(W(A)) is kept by the same stage as W(A): what is stored of a partition is compared with what
//! there should be, rows that the filter drops being neither here nor there. So "the first three
//! of each group" stores three rows a group.
//!
//! Where the filter asks for the first rows of a partition, that is noted ([`First`]): rows behind them
//! need not be read.
//!
//! A window that occurs several times stays as it is: each occurrence must show the same order of
//! rows that ORDER BY leaves open, so all read one stage.

use crate::{
    plan::{Plan, Ranking},
    scalar::Scalar,
    stage::First,
};

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
            let Plan::Window { input, partition, calls, ranking, .. } = plan else {
                unreachable!("a window")
            };
            Plan::Window { input, partition, calls, ranking, filter: Some(predicate) }
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

/// The first rows, when a filter over the output of a window keeps only some of those. The window's
/// calls are the columns from `width` on. A filter that is more than a conjunction of comparisons of
/// columns and numbers may ask for anything.
pub(super) fn first(ranking: Ranking, filter: &Scalar, width: usize) -> Option<First> {
    let text = filter.print(|it| format!("#{it}")).replace(['(', ')', '\n'], " ");
    let words: Vec<&str> = text.split_whitespace().collect();
    // Of each call: the numbers that are too low, and the highest.
    let mut limits = vec![(0_u64, None::<u64>); ranking.has_ties.len()];
    for comparison in words.chunks(4) {
        let [left, operator, right] = match comparison {
            [left, operator, right, "AND"] | [left, operator, right] => [left, operator, right],
            _ => return None,
        };
        if !["=", "<>", "<", "<=", ">", ">="].contains(operator) {
            return None;
        }
        let (column, number) = (column(left), number(right));
        if !(column.is_some() || self::number(left).is_some())
            || !(number.is_some() || self::column(right).is_some())
        {
            return None;
        }
        let call = column.and_then(|it| it.checked_sub(width));
        let (Some((low, high)), Some(number)) = (call.and_then(|it| limits.get_mut(it)), number)
        else {
            continue;
        };
        let highest = match *operator {
            "=" | "<=" => Some(number),
            "<" => Some(number.saturating_sub(1)),
            _ => None,
        };
        *high = high.map_or(highest, |it| Some(highest.map_or(it, |highest| highest.min(it))));
        *low = (*low).max(match *operator {
            "=" | ">=" => number.saturating_sub(1),
            ">" => number,
            _ => 0,
        });
    }
    let limits = limits.into_iter().zip(ranking.has_ties);
    let limits = limits.filter_map(|((low, high), has_ties)| Some((high?, low, has_ties)));
    let (count, low, has_ties) = limits.min()?;
    let kept = count.saturating_sub(low).max(1);
    let order = ranking.order;
    (count > 0).then_some(First { order, count, has_ties, kept, is_indexed: false })
}

fn column(word: &str) -> Option<usize> {
    word.strip_prefix('#')?.parse().ok()
}

/// The value of a literal such as `3` or `'3'::bigint`.
fn number(word: &str) -> Option<u64> {
    let literal = word.split_once("::").map_or(word, |(literal, _)| literal);
    u64::try_from(literal.trim_matches('\'').parse::<i64>().ok()?).ok()
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
    fn a_filter_on_the_number_of_a_row_asks_for_the_first_rows() {
        let numbers = |predicate: &str| {
            let calls =
                ["row_number() OVER (ORDER BY #1, #0 DESC)", "rank() OVER (ORDER BY #1, #0 DESC)"];
            let stages = stage(filter(window(scan("a"), &[], &calls, None), predicate)).stages;
            let first = stages[0].window().expect("a window").first.clone();
            first.map(|it| (it.order.to_string(), it.count, it.kept, it.has_ties))
        };
        let first = |count, kept, has_ties| Some(("#1, #0 DESC".to_owned(), count, kept, has_ties));
        assert_eq!(numbers("(#2 <= '3'::bigint)"), first(3, 3, false));
        assert_eq!(numbers("#2 < 3"), first(2, 2, false));
        assert_eq!(numbers("#2 = 3"), first(3, 1, false));
        assert_eq!(numbers("#2 > 2::bigint AND #3 <= 7::bigint"), first(7, 7, true));
        assert_eq!(numbers("((#2 > 2) AND (#2 <= 7)) AND #0 = #1"), first(7, 5, false));
        assert_eq!(numbers("#2 <= 3 AND #2 > 5"), first(3, 1, false));
        for all in
            ["#2 > 3", "#2 <= 3 OR #0 = 1", "#0 <= 3", "NOT #2 <= 3", "#2 + 1 <= 3", "#2 <= 0"]
        {
            assert_eq!(numbers(all), None, "{all}");
        }
    }

    #[test]
    fn a_window_that_is_used_twice_is_one_stage() {
        let (few, all) = (filter(ranks(), "#2 = 1"), ranks());
        assert_eq!(filters(join(few.clone(), all, "#0 = #3")), [None]);
        let rest = filter(ranks(), "#2 > 1");
        assert_eq!(filters(union_all([few, rest])), [None]);
    }
}
