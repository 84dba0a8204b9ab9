//! Change buffers: how the changes of a source get there, are read, and go again.
//!
//! What a statement changes is in the buffer as soon as the statement is done, written by a trigger
//! on the source, or, for a stream table that others read, by its refresh; or some time after its
//! commit, where it is decoded from the write-ahead log ([`decoding`]). Everything visible in
//! the source at a snapshot is in the buffer, or was there before tracking began, and the reverse.

pub mod buffer;
mod cleanup;
pub mod decoding;
pub mod delta;
mod track;

pub use self::{
    cleanup::{cleanup, truncated_after},
    track::{
        Refit, captured_through, consumers, examine, has_other_members, prepare,
        prepare_stream_table, prepare_to_untrack, refit, track, track_stream_table, untrack,
    },
};

use pgrx::pg_sys::Oid;
use pgstream_core::frontier::Frontier;

use crate::pg::{buffer::Buffer, lock::Lock, snapshot::Snapshot};

/// The changes in the buffer of `source` that `frontier` has not consumed, or all of them: how many,
/// and how many bytes they take.
pub fn pending(source: Oid, frontier: Option<&Frontier>) -> (u64, u64) {
    let (mut rows, mut bytes) = (0, 0);
    if let Some(buffer) = Buffer::open(source, Lock::AccessShare) {
        buffer.scan(&Snapshot::latest(), |row| {
            if frontier.is_none_or(|it| !it.consumed(row.xid(), row.ordinal())) {
                rows += 1;
                bytes += row.bytes();
            }
        });
    }
    (rows, bytes)
}

/// Whether somebody reads the changes of `source`.
pub fn is_tracked(source: Oid) -> bool {
    crate::pg::buffer::of_source(source) != Oid::INVALID
}
