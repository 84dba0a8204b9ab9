//! NOTIFY.

use pgrx::{IntoDatum, direct_function_call, pg_sys};

/// The longest payload, in bytes.
pub const LONGEST: usize = 7999;

/// Sends `payload`, of at most [`LONGEST`] bytes, on `channel` when the transaction commits.
pub fn send(channel: &str, payload: &str) {
    // SAFETY: the function takes two texts, and copies them.
    unsafe {
        direct_function_call::<()>(
            pg_sys::pg_notify,
            &[channel.into_datum(), payload.into_datum()],
        );
    }
}
