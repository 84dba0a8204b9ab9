//! `pgstream.is_single`: a scalar sub-query has one row at most.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// True, or PostgreSQL's error for a scalar sub-query with several rows.
#[pg_extern(sql = false, immutable, strict, parallel_safe)]
fn is_single(rows: i64) -> Result<bool, ErrorReport> {
    if rows <= 1 {
        return Ok(true);
    }
    Err(ErrorReport::new(
        PgSqlErrorCode::ERRCODE_CARDINALITY_VIOLATION,
        "more than one row returned by a subquery used as an expression",
        "is_single",
    ))
}
