//! A source of choices that shrinks well: smaller bytes and shorter tapes mean simpler things.

use proptest::{collection::vec, prelude::*};

/// A source of choices.
pub struct Tape<'a>(std::slice::Iter<'a, u8>);

impl<'a> Tape<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes.iter())
    }

    /// Below `end`; 0 when the tape has run out.
    pub fn pick(&mut self, end: usize) -> usize {
        self.0.next().map_or(0, |it| usize::from(*it) % end)
    }

    pub fn choose<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.pick(choices.len())].clone()
    }
}

/// Random tapes.
pub fn tape(length: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..length)
}

/// `cases` cases; `LAW_TEST_FACTOR=100 cargo test --test property_tests` runs 100 times as many.
pub fn config(cases: u32) -> ProptestConfig {
    let factor = std::env::var("LAW_TEST_FACTOR").map_or(1, |it| it.parse().expect("a number"));
    ProptestConfig { cases: cases * factor, failure_persistence: None, ..Default::default() }
}
