//! WITH RECURSIVE … UNION: which rows are in the set, and why.
//!
//! # Rule
//!
//! The result is the least set `R` with `R = base ∪ step(R)`. The step is linear: each row that it
//! makes comes from one row of `R`. So a row has so many *derivations*, each from the base or from a
//! row of `R`, and their number changes by `Δbase + (Δstep)(R) + step'(ΔR)`. With `R` stands for each
//! row
//!
//! - its *rank*, a number,
//! - its *count*: how many derivations it has, and
//! - its *support*: how many of them come from the base or from rows of a lower rank.
//!
//! `R` is the result exactly when each row in it has support, and each row outside has no derivation:
//! by induction on the rank every row in it must be in the result, and a set that holds all that is
//! derived from it contains the least one. That is kept up in two phases, after the changes of base and
//! step have been added to counts and supports:
//!
//! 1. Rows whose support is gone leave, which takes derivations from others, until none is left that
//!    must leave. A cycle cannot keep itself: somewhere on it a rank does not rise.
//! 2. Rows outside that have derivations join, those that left before too, which adds derivations to
//!    others, until there is none. A row that joins gets a rank above those of all that it is derived
//!    from, and so all of its derivations are support.
//!
//! A row that was never there has all its derivations from this change, with the ranks of where they come
//! from. One that left and comes back may have others, so its rank is above every rank there is.
//!
//! # Source
//!
//! Delete and rederive: Gupta, Mumick, Subrahmanian, *Maintaining Views Incrementally*, SIGMOD 1993. What
//! is deleted there is all that derives from a deleted row; ranks, which are the levels of Even and
//! Shiloach (*An On-Line Edge-Deletion Problem*, JACM 28(1), 1981) without being exact, and counts make
//! it only what has lost all support, and find what comes back without evaluating the step backwards.
//!
//! # Cost
//!
//! The step is evaluated over rows that leave or join. Rows that stay cost nothing but an update of their
//! counts. A row that loses its support and has derivations of higher rank leaves and joins again, with
//! those that it alone supports.

/// What is stored of a row beside the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Above the ranks of the rows that support it.
    pub rank: i64,
    /// The number of its derivations.
    pub count: i64,
    /// The number of those from the base and from rows of a lower rank.
    pub support: i64,
}

/// A row that a change derives or touches.
#[derive(Clone, Debug)]
struct Member {
    before: Option<Standing>,
    now: Standing,
    is_in: bool,
    /// The greatest depth at which it was derived since.
    farthest: i64,
    is_queued: bool,
}

/// A row that left the set (weight −1) or joined it (weight 1), with the rank that it has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Its number.
    pub member: usize,
    /// Its rank.
    pub rank: i64,
    /// −1 or 1.
    pub weight: i64,
}

/// What happens to the rows that one change touches.
#[derive(Clone, Debug, Default)]
pub struct Fixpoint {
    members: Vec<Member>,
    /// Those whose numbers changed since they were looked at.
    queue: Vec<usize>,
    /// Whether the second phase has begun.
    is_growing: bool,
    /// The greatest rank of all, once it had to be known.
    highest: Option<i64>,
    /// The greatest rank given so far.
    highest_given: i64,
}

impl Fixpoint {
    /// A row that is met for the first time, as it is stored; its number is how many were met before.
    pub fn meet(&mut self, stored: Option<Standing>) -> usize {
        let now = stored.unwrap_or(Standing { rank: 0, count: 0, support: 0 });
        let is_in = stored.is_some();
        self.members.push(Member { before: stored, now, is_in, farthest: 0, is_queued: false });
        self.members.len() - 1
    }

    /// Adds `weight` derivations of a row. Their depth is 0 from the base, and one more than the rank
    /// of the row that they come from otherwise.
    pub fn derive(&mut self, member: usize, depth: i64, weight: i64) {
        let row = &mut self.members[member];
        row.now.count += weight;
        if row.is_in && depth <= row.now.rank {
            row.now.support += weight;
        }
        row.farthest = row.farthest.max(depth);
        if !row.is_queued {
            row.is_queued = true;
            self.queue.push(member);
        }
    }

    /// The rows that move next, when all derivations are added that followed from those before; none at
    /// the end. `highest_stored` tells the greatest rank that is stored.
    pub fn advance(&mut self, highest_stored: impl FnOnce() -> i64) -> Vec<Moved> {
        let mut touched = std::mem::take(&mut self.queue);
        for member in &touched {
            self.members[*member].is_queued = false;
        }
        if !self.is_growing {
            let leaving = self.leave(&touched);
            if !leaving.is_empty() {
                return leaving;
            }
            self.is_growing = true;
            touched = (0..self.members.len()).collect();
        }
        touched.retain(|it| !self.members[*it].is_in && self.members[*it].now.count > 0);
        self.join(&touched, highest_stored)
    }

    fn leave(&mut self, touched: &[usize]) -> Vec<Moved> {
        let mut moved = Vec::new();
        for &member in touched {
            let row = &mut self.members[member];
            if row.is_in && row.now.support <= 0 {
                row.is_in = false;
                moved.push(Moved { member, rank: row.now.rank, weight: -1 });
            }
        }
        moved
    }

    fn join(&mut self, joining: &[usize], highest_stored: impl FnOnce() -> i64) -> Vec<Moved> {
        let comes_back = joining.iter().any(|it| self.members[*it].before.is_some());
        if comes_back && self.highest.is_none() {
            self.highest = Some(highest_stored());
        }
        let above_all = self.highest.unwrap_or(0).max(self.highest_given) + 1;
        let mut moved = Vec::new();
        for &member in joining {
            let row = &mut self.members[member];
            let rank = if row.before.is_some() { above_all } else { row.farthest };
            row.now = Standing { rank, count: row.now.count, support: row.now.count };
            row.is_in = true;
            self.highest_given = self.highest_given.max(rank);
            moved.push(Moved { member, rank, weight: 1 });
        }
        moved
    }

    /// How a row stood before, and how it stands at the end.
    pub fn outcome(&self, member: usize) -> (Option<Standing>, Option<Standing>) {
        let row = &self.members[member];
        (row.before, row.is_in.then_some(row.now))
    }

    /// Whether each row that was met is in the set exactly when it is derived, which must be so at the end.
    pub fn is_sound(&self) -> bool {
        self.members.iter().all(|it| match it.is_in {
            true => it.now.support > 0 && it.now.count >= it.now.support,
            false => it.now.count == 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::{Fixpoint, Standing};

    type Edge = (usize, usize);

    /// A graph whose edges have multiplicities, and what can be reached from its roots, kept up.
    #[derive(Default)]
    struct Graph {
        roots: BTreeMap<usize, i64>,
        edges: BTreeMap<Edge, i64>,
        stored: BTreeMap<usize, Standing>,
        /// How many rows the step was evaluated for in the last change.
        followed: usize,
    }

    impl Graph {
        fn change(&mut self, roots: &[(usize, i64)], edges: &[(Edge, i64)]) {
            let mut fixpoint = Fixpoint::default();
            let mut nodes: Vec<usize> = Vec::new();
            let derive = |fixpoint: &mut Fixpoint, nodes: &mut Vec<usize>, node, depth, weight| {
                let met = nodes.iter().position(|it| *it == node);
                let member = met.unwrap_or_else(|| {
                    nodes.push(node);
                    fixpoint.meet(self.stored.get(&node).copied())
                });
                fixpoint.derive(member, depth, weight);
            };
            for (root, weight) in roots {
                derive(&mut fixpoint, &mut nodes, *root, 0, *weight);
                *self.roots.entry(*root).or_default() += weight;
            }
            for (edge, weight) in edges {
                if let Some(from) = self.stored.get(&edge.0) {
                    derive(&mut fixpoint, &mut nodes, edge.1, from.rank + 1, *weight);
                }
                *self.edges.entry(*edge).or_default() += weight;
            }
            let highest = self.stored.values().map(|it| it.rank).max();
            self.followed = 0;
            loop {
                let moved = fixpoint.advance(|| highest.expect("a stored row comes back"));
                if moved.is_empty() {
                    break;
                }
                self.followed += moved.len();
                for it in moved {
                    let from = nodes[it.member];
                    for ((_, to), times) in self.edges.iter().filter(|edge| edge.0.0 == from) {
                        derive(&mut fixpoint, &mut nodes, *to, it.rank + 1, it.weight * times);
                    }
                }
            }
            assert!(fixpoint.is_sound());
            for (member, node) in nodes.iter().enumerate() {
                let (before, after) = fixpoint.outcome(member);
                assert_eq!(before, self.stored.remove(node));
                self.stored.extend(after.map(|it| (*node, it)));
            }
        }

        fn check(&self) {
            let is_there = |it: &(_, &i64)| *it.1 > 0;
            let mut reached: BTreeSet<usize> =
                self.roots.iter().filter(|it| *it.1 > 0).map(|it| *it.0).collect();
            let mut waiting: Vec<usize> = reached.iter().copied().collect();
            while let Some(node) = waiting.pop() {
                let next = self.edges.iter().filter(is_there).filter(|it| it.0.0 == node);
                waiting.extend(next.map(|it| it.0.1).filter(|it| reached.insert(*it)));
            }
            assert_eq!(self.stored.keys().copied().collect::<BTreeSet<_>>(), reached);
            for (node, standing) in &self.stored {
                let root = self.roots.get(node).copied().unwrap_or(0);
                let into = self.edges.iter().filter(|it| it.0.1 == *node);
                let into = into.filter_map(|it| Some((self.stored.get(&it.0.0)?.rank, *it.1)));
                let into: Vec<(i64, i64)> = into.collect();
                let count = root + into.iter().map(|it| it.1).sum::<i64>();
                let lower = into.iter().filter(|it| it.0 < standing.rank);
                let support = root + lower.map(|it| it.1).sum::<i64>();
                assert!(support > 0);
                assert_eq!((standing.count, standing.support), (count, support), "{node}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_stored_is_what_can_be_reached(
            nodes in 2_usize..12,
            changes in prop::collection::vec(
                prop::collection::vec((0_u8..10, any::<usize>(), any::<usize>()), 1..12), 1..12,
            ),
        ) {
            let mut graph = Graph::default();
            for change in changes {
                let (mut roots, mut edges) = (BTreeMap::new(), BTreeMap::new());
                for (kind, a, b) in change {
                    let edge = (a % nodes, b % nodes);
                    let root = a % nodes;
                    match kind {
                        0 => *roots.entry(root).or_default() += 1,
                        1 => { roots.insert(root, -graph.roots.get(&root).copied().unwrap_or(0)); }
                        2..=5 => { edges.insert(edge, -graph.edges.get(&edge).copied().unwrap_or(0)); }
                        _ => *edges.entry(edge).or_default() += 1,
                    }
                }
                let roots: Vec<_> = roots.into_iter().collect();
                graph.change(&roots, &edges.into_iter().collect::<Vec<_>>());
                graph.check();
            }
        }
    }

    #[test]
    fn a_cycle_that_is_cut_off_goes_though_its_rows_derive_each_other() {
        let mut graph = Graph::default();
        let bridge = (0, 1);
        graph.change(&[(0, 1)], &[(bridge, 1), ((1, 2), 1), ((2, 3), 1), ((3, 1), 1), ((3, 3), 1)]);
        graph.check();
        graph.change(&[], &[(bridge, -1)]);
        graph.check();
        assert_eq!(graph.stored.len(), 1);
    }

    #[test]
    fn what_keeps_another_support_is_not_followed() {
        let mut graph = Graph::default();
        let line = (1..100).map(|it| ((it, it + 1), 1));
        let two_ways = [((0, 1), 2), ((0, 101), 1), ((101, 1), 1)];
        graph.change(&[(0, 1)], &two_ways.into_iter().chain(line).collect::<Vec<_>>());
        graph.change(&[], &[((0, 1), -1)]);
        assert_eq!(graph.followed, 0);
        graph.change(&[], &[((50, 102), 1), ((99, 20), 1)]);
        assert_eq!(graph.followed, 1);
        graph.change(&[], &[((50, 102), -1), ((99, 20), -1)]);
        assert_eq!(graph.followed, 1);
        graph.check();
    }
}
