//! NOTIFY.

use std::cell::{Cell, RefCell};

use pgrx::{IntoDatum, direct_function_call, pg_sys};

/// The longest payload, in bytes.
pub const LONGEST: usize = 7999;

/// The part of the server's queue that is left to others. When it is full, whoever notifies cannot commit.
const RESERVE: f64 = 0.1;

/// Sends `payload`, of at most [`LONGEST`] bytes, on `channel` when the transaction commits, if there is
/// room for it: to lose a notification is better than to lose what it is about.
pub fn send(channel: &str, payload: &str) {
    // What waits was told before, and the transaction cannot be prepared from now on.
    let level = level();
    let waiting = WAITING.with_borrow_mut(|waiting| {
        waiting.extract_if(.., |it| it.level == level).collect::<Vec<_>>()
    });
    waiting.iter().for_each(|it| send_now(it.channel, &it.payload));
    send_now(channel, payload);
}

fn send_now(channel: &str, payload: &str) {
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

/// What is sent when the transaction commits, unless its subtransaction is rolled back before.
struct Waiting {
    /// Of the subtransaction.
    level: i32,
    channel: &'static str,
    payload: String,
}

thread_local! {
    static WAITING: RefCell<Vec<Waiting>> = const { RefCell::new(Vec::new()) };
    static IS_REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// As [`send`], but lets the transaction be prepared, which PostgreSQL refuses after a NOTIFY. Then nothing
/// is sent.
pub fn send_unless_prepared(channel: &'static str, payload: String) {
    if !IS_REGISTERED.replace(true) {
        // SAFETY: registered once in this process, and never removed.
        unsafe {
            pg_sys::RegisterXactCallback(Some(at_end), std::ptr::null_mut());
            pg_sys::RegisterSubXactCallback(Some(at_end_of_part), std::ptr::null_mut());
        }
    }
    WAITING.with_borrow_mut(|it| it.push(Waiting { level: level(), channel, payload }));
}

/// How many subtransactions there are around what runs.
fn level() -> i32 {
    // SAFETY: reads the state of the transaction.
    unsafe { pg_sys::GetCurrentTransactionNestLevel() }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn at_end(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    match event {
        // PostgreSQL collects what is sent later than this.
        pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT => {
            let waiting = WAITING.take();
            waiting.iter().for_each(|it| send_now(it.channel, &it.payload));
        }
        pg_sys::XactEvent::XACT_EVENT_PREPARE | pg_sys::XactEvent::XACT_EVENT_ABORT => {
            WAITING.take();
        }
        _ => {}
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn at_end_of_part(
    event: pg_sys::SubXactEvent::Type,
    _own: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut std::ffi::c_void,
) {
    // This part is still the current one.
    let level = level();
    WAITING.with_borrow_mut(|waiting| match event {
        pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => {
            waiting.iter_mut().for_each(|it| it.level = it.level.min(level - 1));
        }
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => waiting.retain(|it| it.level < level),
        _ => {}
    });
}
