//! Writing into a buffer without a trigger.

use pgrx::pg_sys::{Datum, Oid};

use crate::pg::{
    buffer::{Action, Buffer, Image, Writer},
    lock::Lock,
};

/// Appends the changes of a stream table to its buffer.
pub struct Appender {
    writer: Option<Writer>,
    map: Vec<Option<usize>>,
    /// A column has not the type that the buffer expects: only that something changed can be told.
    unfit: bool,
}

impl Appender {
    /// For the changes of `source`; when nobody reads them they go nowhere.
    pub fn open(source: Oid) -> Self {
        let buffer = Buffer::open(source, Lock::RowExclusive);
        let mut unfit = false;
        let mut index = |(position, number): (usize, &i16)| {
            unfit |= !buffer.as_ref()?.fits(position, source)?;
            usize::try_from(number - 1).ok()
        };
        let numbers = buffer.iter().flat_map(Buffer::columns).enumerate();
        let map = numbers.map(&mut index).collect();
        Self { writer: buffer.map(Writer::new), map, unfit }
    }

    /// Appends `weight` copies of a row: the values of the source's columns in the order of their
    /// attribute numbers, from 1.
    pub fn append(&mut self, values: &[Datum], nulls: &[bool], weight: i64) {
        let Some(writer) = &mut self.writer else { return };
        if self.unfit {
            if weight != 0 {
                writer.push(Action::Truncate, None, None);
            }
            return;
        }
        let image = Image { values, nulls, map: &self.map };
        for _ in 0..weight.unsigned_abs() {
            if weight > 0 {
                writer.push(Action::Insert, Some(image), None);
            } else {
                writer.push(Action::Delete, None, Some(image));
            }
        }
    }

    /// Writes what is left.
    pub fn finish(self) {
        if let Some(writer) = self.writer {
            writer.finish();
        }
    }
}

/// Notes that `source` was emptied or rewritten in a way that no single change tells.
pub fn mark_rewritten(source: Oid) {
    if let Some(buffer) = Buffer::open(source, Lock::RowExclusive) {
        let mut writer = Writer::new(buffer);
        writer.push(Action::Truncate, None, None);
        writer.finish();
    }
}
