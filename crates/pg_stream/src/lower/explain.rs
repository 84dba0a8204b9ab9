//! `pgstream.explain_plan`: the operator tree of a query, without creating anything.

use pgrx::prelude::*;

/// The operators that a query is lowered to, one a line.
#[pg_extern(sql = false)]
fn explain_plan(query: &str) -> String {
    match super::lower_text(query) {
        Ok(lowered) => lowered.plan.to_string(),
        Err(refusal) => refusal.raise(),
    }
}
