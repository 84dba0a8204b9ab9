//! Prepared statements of a stream table, kept for each size of the change.
//!
//! The plan for one changed row is not the one for a million. A statement is therefore planned
//! anew for each order of magnitude of the relations that it reads, with their true sizes.

use std::{collections::HashMap, rc::Rc};

use crate::pg::spi::Prepared;

/// Which statement of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Changed,
    Stored,
    Rescan,
    RescanNull,
    Delete,
    Update,
    Insert,
}

/// The order of magnitude of a number of rows: 0 for none.
pub fn size_class(rows: u64) -> u8 {
    match rows.checked_ilog10() {
        None => 0,
        Some(magnitude) => u8::try_from(magnitude).expect("at most 19") + 1,
    }
}

/// A statement: the stage, which of its statements, and the sizes of what it reads.
type Key = (usize, Kind, Vec<u8>);

/// Everything that a backend has prepared for one stream table.
#[derive(Default)]
pub struct Statements {
    kept: HashMap<Key, Rc<Prepared>>,
}

/// Beyond this many, all are dropped and prepared again when needed.
const LIMIT: usize = 200;

impl Statements {
    /// The statement for `key`, prepared from `sql` when it is not there yet.
    pub fn get(&mut self, key: Key, sql: impl FnOnce() -> String) -> Rc<Prepared> {
        if self.kept.len() >= LIMIT && !self.kept.contains_key(&key) {
            self.kept.clear();
        }
        let statement = self.kept.entry(key).or_insert_with(|| Rc::new(Prepared::new(&sql(), &[])));
        Rc::clone(statement)
    }
}
