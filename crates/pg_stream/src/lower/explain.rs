//! `pgstream.explain_plan`: the operator tree of a query, without creating anything.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// The operators that a query is lowered to, one a line.
#[pg_extern(sql = false)]
fn explain_plan(query: &str) -> Result<String, ErrorReport> {
    Ok(super::lower_text(query)?.plan.to_string())
}
