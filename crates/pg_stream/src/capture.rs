//! Change buffers: how the changes of a source get there, are read, and go again.
//!
//! What a statement changes is in the buffer as soon as the statement is done, written by a trigger
//! on the source, or, for a stream table that others read, by its refresh. Everything visible in
//! the source at a snapshot is in the buffer, or was there before tracking began, and the reverse.

pub mod buffer;
mod cleanup;
pub mod delta;
mod track;

pub use self::{
    cleanup::{cleanup, truncated_after},
    track::{refit_triggers, track, track_stream_table, untrack},
};

use pgrx::pg_sys::Oid;

/// Whether somebody reads the changes of `source`.
pub fn is_tracked(source: Oid) -> bool {
    crate::pg::buffer::of_source(source) != Oid::INVALID
}
