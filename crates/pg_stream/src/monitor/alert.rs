//! Notifications on the channel `pg_stream_alert`.

use crate::{pg::spi, refresh::Outcome};

/// Tells at commit that a refresh changed a stream table.
pub fn completed(id: i64, outcome: &Outcome) {
    let count = |it: u64| i64::try_from(it).unwrap_or(i64::MAX);
    spi::run(
        include_str!("completed.sql"),
        &[
            id.into(),
            outcome.action.as_str().to_owned().into(),
            count(outcome.inserted).into(),
            count(outcome.deleted).into(),
        ],
        |_| {},
    );
}
