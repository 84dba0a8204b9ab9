//! Who reads whom, and the order that follows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// A directed graph of stream tables: an edge leads from a reader to what it reads.
#[derive(Clone, Debug, Default)]
pub struct Dag<T> {
    reads: BTreeMap<T, BTreeSet<T>>,
}

/// A path along edges that ends where it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cycle<T> {
    /// Each reads the next one; the first is repeated as the last.
    pub path: Vec<T>,
}

impl<T: fmt::Display> fmt::Display for Cycle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path: Vec<String> = self.path.iter().map(ToString::to_string).collect();
        f.write_str(&path.join(" -> "))
    }
}

impl<T: Ord + Copy> Dag<T> {
    /// Without any node.
    pub fn new() -> Self {
        Self { reads: BTreeMap::new() }
    }

    /// Adds a node.
    pub fn add(&mut self, node: T) {
        self.reads.entry(node).or_default();
    }

    /// Notes that `reader` reads `source`; both become nodes.
    pub fn add_edge(&mut self, reader: T, source: T) {
        self.add(source);
        self.reads.entry(reader).or_default().insert(source);
    }

    /// What `node` reads directly.
    pub fn sources(&self, node: T) -> impl Iterator<Item = T> {
        self.reads.get(&node).into_iter().flatten().copied()
    }

    /// All nodes, each after everything that it reads; or a cycle that prevents it.
    pub fn order(&self) -> Result<Vec<T>, Cycle<T>> {
        let mut walk = Walk { dag: self, done: BTreeSet::new(), order: Vec::new() };
        for node in self.reads.keys() {
            walk.visit(*node)?;
        }
        Ok(walk.order)
    }
}

struct Walk<'a, T> {
    dag: &'a Dag<T>,
    done: BTreeSet<T>,
    order: Vec<T>,
}

impl<T: Ord + Copy> Walk<'_, T> {
    /// Depth first with an explicit stack, since chains may be long.
    fn visit(&mut self, start: T) -> Result<(), Cycle<T>> {
        if self.done.contains(&start) {
            return Ok(());
        }
        let mut path: Vec<(T, Vec<T>)> = vec![(start, self.dag.sources(start).collect())];
        let mut on_path = BTreeSet::from([start]);
        while let Some((node, rest)) = path.last_mut() {
            let node = *node;
            match rest.pop() {
                Some(source) if on_path.contains(&source) => {
                    let mut cycle: Vec<T> =
                        path.iter().map(|(it, _)| *it).skip_while(|it| *it != source).collect();
                    cycle.push(source);
                    return Err(Cycle { path: cycle });
                }
                Some(source) if self.done.contains(&source) => {}
                Some(source) => {
                    on_path.insert(source);
                    path.push((source, self.dag.sources(source).collect()));
                }
                None => {
                    path.pop();
                    on_path.remove(&node);
                    self.done.insert(node);
                    self.order.push(node);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dag(edges: &[(u32, u32)]) -> Dag<u32> {
        let mut dag = Dag::new();
        for (reader, source) in edges {
            dag.add_edge(*reader, *source);
        }
        dag
    }

    #[test]
    fn a_diamond_is_ordered() {
        let order = dag(&[(4, 2), (4, 3), (2, 1), (3, 1)]).order().unwrap();
        let position = |node| order.iter().position(|it| *it == node).unwrap();
        assert!(position(1) < position(2) && position(1) < position(3));
        assert!(position(2) < position(4) && position(3) < position(4));
    }

    #[test]
    fn a_cycle_is_named_with_its_path() {
        let cycle = dag(&[(1, 2), (2, 3), (3, 2)]).order().unwrap_err();
        assert_eq!(cycle.path, [2, 3, 2]);
        assert_eq!(cycle.to_string(), "2 -> 3 -> 2");
        assert_eq!(dag(&[(7, 7)]).order().unwrap_err().path, [7, 7]);
    }

    #[test]
    fn a_long_chain_does_not_overflow_the_stack() {
        let edges: Vec<(u32, u32)> = (0..200_000).map(|it| (it, it + 1)).collect();
        assert_eq!(dag(&edges).order().unwrap().len(), 200_001);
    }

    proptest! {
        #[test]
        fn sources_come_first_or_there_is_a_cycle(
            edges in prop::collection::vec((0u32..12, 0u32..12), 0..30),
        ) {
            let dag = dag(&edges);
            match dag.order() {
                Ok(order) => {
                    let position = |node| order.iter().position(|it| *it == node).unwrap();
                    for (reader, source) in edges {
                        prop_assert!(position(source) < position(reader));
                    }
                }
                Err(cycle) => {
                    prop_assert_eq!(cycle.path.first(), cycle.path.last());
                    for pair in cycle.path.windows(2) {
                        prop_assert!(edges.contains(&(pair[0], pair[1])));
                    }
                }
            }
        }
    }
}
