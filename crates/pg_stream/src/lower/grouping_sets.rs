//! GROUPING SETS, CUBE and ROLLUP, written out.
//!
//! A query with grouping sets is the sum of one aggregate for each set, with NULL in place of the
//! grouping columns that are not in the set, and GROUPING(…) a constant in each. So its cost is the
//! sum of theirs.
//!
//! Source: ISO/IEC 9075-2, `<group by clause>`; PostgreSQL's `expand_grouping_sets`.

use std::collections::BTreeSet;

use super::refusal::Refusal;
use crate::pg::node::{GroupingSet, Query};

/// More sets than this are not maintained one by one.
const MAX_SETS: usize = 64;

/// Positions of the grouping columns that are in a set.
pub type Set = BTreeSet<usize>;

/// The grouping sets of a query; `None` when it has plain GROUP BY or none.
pub fn of(query: Query<'_>) -> Result<Option<Vec<Set>>, Refusal> {
    if !query.has_grouping_sets() {
        return Ok(None);
    }
    let too_many = || Refusal::without_rule(format!("more than {MAX_SETS} grouping sets"));
    let mut sets: Vec<BTreeSet<u32>> = vec![BTreeSet::new()];
    for item in query.grouping_sets() {
        let more = expanded(&item).filter(|it| it.len() * sets.len() <= MAX_SETS);
        let more = more.ok_or_else(too_many)?;
        let pairs = sets.iter().flat_map(|set| more.iter().map(move |other| set | other));
        sets = pairs.collect();
    }
    if query.groups_by_distinct_sets() {
        let mut seen = BTreeSet::new();
        sets.retain(|it| seen.insert(it.clone()));
    }
    let items = query.group_by();
    let place = |reference: u32| items.iter().position(|it| it.reference == reference);
    Ok(Some(sets.iter().map(|set| set.iter().filter_map(|it| place(*it)).collect()).collect()))
}

/// The sets that one item of GROUP BY stands for; `None` for too many.
fn expanded(item: &GroupingSet) -> Option<Vec<BTreeSet<u32>>> {
    let union = |parts: &[&Vec<u32>]| parts.iter().flat_map(|it| it.iter().copied()).collect();
    match item {
        GroupingSet::Simple(references) => Some(vec![references.iter().copied().collect()]),
        GroupingSet::Rollup(parts) => {
            let prefix = |length: usize| union(&parts[..length].iter().collect::<Vec<_>>());
            Some((0..=parts.len()).rev().map(prefix).collect())
        }
        GroupingSet::Cube(parts) => {
            let count = 1_usize.checked_shl(u32::try_from(parts.len()).ok()?)?;
            if count > MAX_SETS {
                return None;
            }
            let chosen = |choice: usize| {
                let of_choice = parts.iter().enumerate().filter(|(at, _)| choice >> at & 1 == 1);
                union(&of_choice.map(|it| it.1).collect::<Vec<_>>())
            };
            Some((0..count).rev().map(chosen).collect())
        }
        GroupingSet::Sets(items) => {
            let sets: Option<Vec<_>> = items.iter().map(expanded).collect();
            Some(sets?.into_iter().flatten().collect())
        }
    }
}
