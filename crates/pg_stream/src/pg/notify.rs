//! NOTIFY.

use std::cell::Cell;

use pgrx::{IntoDatum, direct_function_call, pg_sys};

/// The longest payload, in bytes.
pub const LONGEST: usize = 7999;

/// The part of the server's queue that is left to others. When it is full, whoever notifies cannot commit.
const RESERVE: f64 = 0.1;

/// Sends `payload`, of at most [`LONGEST`] bytes, on `channel` when the transaction commits, if there is
/// room for it: to lose a notification is better than to lose what it is about.
pub fn send(channel: &str, payload: &str) {
    if !has_room() {
        return;
    }
    // SAFETY: the function takes two texts, and copies them.
    unsafe {
        direct_function_call::<()>(
            pg_sys::pg_notify,
            &[channel.into_datum(), payload.into_datum()],
        );
    }
}

/// Whether the server's queue has room. Says so in the log when it has none any more.
pub fn has_room() -> bool {
    thread_local! {
        static HAD_ROOM: Cell<bool> = const { Cell::new(true) };
    }
    // SAFETY: the function takes nothing. It also removes from the queue what everybody has read.
    let usage: Option<f64> =
        unsafe { direct_function_call(pg_sys::pg_notification_queue_usage, &[]) };
    let has_room = usage.is_none_or(|it| it < 1.0 - RESERVE);
    if HAD_ROOM.replace(has_room) && !has_room {
        pgrx::ereport!(
            LOG,
            pgrx::PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            "pg_stream sends no alerts while the NOTIFY queue is nearly full",
            "A session that listens has not read its notifications, or has been in one transaction for long."
        );
    }
    has_room
}
