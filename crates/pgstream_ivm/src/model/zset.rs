//! Z-sets.

use std::collections::BTreeMap;

use crate::model::{Row, value::Value};

/// Rows with integer weights. Rows are the same when their images are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ZSet(BTreeMap<Row, i64>);

impl ZSet {
    /// Adds `weight` copies of `row`; drops it when none is left.
    pub fn add(&mut self, row: Row, weight: i64) {
        let entry = self.0.entry(row.clone()).or_default();
        *entry += weight;
        if *entry == 0 {
            self.0.remove(&row);
        }
    }

    /// Each row with its weight, which is not 0.
    pub fn iter(&self) -> impl Iterator<Item = (&Row, i64)> {
        self.0.iter().map(|(row, weight)| (row, *weight))
    }

    /// The sum.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.iter().chain(other.iter()).map(|(row, weight)| (row.clone(), weight)).collect()
    }

    /// The same rows with the opposite weights.
    #[must_use]
    pub fn negated(&self) -> Self {
        self.iter().map(|(row, weight)| (row.clone(), -weight)).collect()
    }

    /// Each row as often as it occurs. Panics when the weights do not count rows.
    pub fn rows(&self) -> Vec<&Row> {
        let mut rows = Vec::new();
        for (row, weight) in self.iter() {
            assert!(weight > 0, "{row:?} occurs {weight} times");
            rows.extend((0..weight).map(|_| row));
        }
        rows
    }

    /// Whether no two rows agree in the columns of `key`, by the types' equality.
    pub fn is_unique(&self, key: &[usize]) -> bool {
        let mut keys: Vec<Row> = self
            .rows()
            .iter()
            .map(|row| key.iter().map(|it| row[*it].canonical()).collect())
            .collect();
        let total = keys.len();
        keys.sort();
        keys.dedup();
        keys.len() == total
    }

    /// The same rows up to the types' equality.
    #[must_use]
    pub fn canonical(&self) -> Self {
        self.iter()
            .map(|(row, weight)| (row.iter().map(Value::canonical).collect(), weight))
            .collect()
    }
}

impl FromIterator<(Row, i64)> for ZSet {
    fn from_iter<T: IntoIterator<Item = (Row, i64)>>(rows: T) -> Self {
        let mut all = Self::default();
        for (row, weight) in rows {
            all.add(row, weight);
        }
        all
    }
}

impl FromIterator<Row> for ZSet {
    fn from_iter<T: IntoIterator<Item = Row>>(rows: T) -> Self {
        rows.into_iter().map(|row| (row, 1)).collect()
    }
}
