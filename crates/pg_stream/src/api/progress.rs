//! What `pgstream.pg_stat_progress_refresh` shows.

use pgrx::{datum::TimestampWithTimeZone, prelude::*};

use crate::pg::{progress, time};

type Reports = TableIterator<
    'static,
    (
        name!(pid, i32),
        name!(pgs_id, i64),
        name!(started_at, TimestampWithTimeZone),
        name!(phase, String),
        name!(stages_total, i32),
        name!(stages_done, i32),
        name!(changes_read, i64),
    ),
>;

#[pg_extern(sql = false)]
fn refresh_progress() -> Reports {
    let small = |it: u32| i32::try_from(it).unwrap_or(i32::MAX);
    TableIterator::new(progress::reports().into_iter().map(move |it| {
        (
            it.pid,
            it.stream_table,
            time::timestamp(it.started),
            it.phase.to_owned(),
            small(it.stages),
            small(it.stages_done),
            i64::try_from(it.changes).unwrap_or(i64::MAX),
        )
    }))
}
