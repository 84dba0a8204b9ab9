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

    pub fn started_at(&self) -> TimestampWithTimeZone {
        timestamp(self.start)
    }
}

pub fn current() -> TimestampWithTimeZone {
    timestamp(now())
}

fn now() -> pg_sys::TimestampTz {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

fn timestamp(value: pg_sys::TimestampTz) -> TimestampWithTimeZone {
    value.try_into().expect("the clock is within PostgreSQL's range")
}
