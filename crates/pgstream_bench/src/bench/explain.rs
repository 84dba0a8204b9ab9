//! The plans of a refresh, by auto_explain in a session of its own.

use crate::{Result, server};

/// Refreshes a stream table and lets the server print the plan of each statement inside, with
/// times and buffers, as notices.
pub fn refresh(name: &str) -> Result<()> {
    let mut client = server::connect(super::DATABASE)?;
    client.batch_execute(
        "LOAD 'auto_explain';
         SET auto_explain.log_min_duration = 0;
         SET auto_explain.log_nested_statements = on;
         SET auto_explain.log_analyze = on;
         SET auto_explain.log_buffers = on;
         SET auto_explain.log_settings = on;
         SET auto_explain.log_level = notice;
         SET client_min_messages = notice",
    )?;
    client.execute(&format!("SELECT pgstream.refresh_stream_table('{name}')"), &[])?;
    Ok(())
}
