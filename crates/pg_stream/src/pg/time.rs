//! The clock, read at the start and the end of a refresh.

use pgrx::{datum::TimestampWithTimeZone, pg_sys};

/// Remembers when it was started.
pub struct Stopwatch {
    start: pg_sys::TimestampTz,
}

impl Stopwatch {
    pub fn start() -> Self {
        Self { start: now() }
    }

    /// In microseconds since 2000-01-01 00:00 UTC.
    pub fn started(&self) -> i64 {
        self.start
    }

    pub fn started_at(&self) -> TimestampWithTimeZone {
        timestamp(self.start)
    }

    /// Since the start.
    pub fn milliseconds(&self) -> f64 {
        (now() - self.start) as f64 / 1000.0
    }
}

pub fn current() -> TimestampWithTimeZone {
    timestamp(now())
}

/// Microseconds since 2000-01-01 00:00 UTC.
pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// Microseconds since 1970-01-01 00:00 UTC.
pub fn since_epoch() -> i64 {
    now() + EPOCH_DIFFERENCE
}

/// A timestamp in microseconds since 1970-01-01 00:00 UTC.
pub fn to_epoch(value: TimestampWithTimeZone) -> i64 {
    pg_sys::TimestampTz::from(value).saturating_add(EPOCH_DIFFERENCE)
}

/// The timestamp of so many microseconds since 1970-01-01 00:00 UTC.
pub fn from_epoch(micros: i64) -> TimestampWithTimeZone {
    timestamp(micros - EPOCH_DIFFERENCE)
}

pub fn milliseconds_between(start: TimestampWithTimeZone, end: TimestampWithTimeZone) -> f64 {
    (to_epoch(end) - to_epoch(start)) as f64 / 1000.0
}

/// From 1970 to 2000.
const EPOCH_DIFFERENCE: i64 = 946_684_800_000_000;

/// When this transaction began.
pub fn of_transaction() -> TimestampWithTimeZone {
    // SAFETY: a plain call inside a transaction.
    timestamp(unsafe { pg_sys::GetCurrentTransactionStartTimestamp() })
}

pub fn timestamp(value: pg_sys::TimestampTz) -> TimestampWithTimeZone {
    value.try_into().expect("the clock is within PostgreSQL's range")
}
