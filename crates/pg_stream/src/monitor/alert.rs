//! Notifications on the channel `pg_stream_alert`: JSON with the event, the stream table, and what
//! belongs to the event.

use pgrx::{pg_sys::Oid, prelude::*};
use serde_json::{Map, Value, json};

use crate::{
    pg::{notify, relation},
    refresh::Outcome,
};

const CHANNEL: &str = "pg_stream_alert";
const REINITIALIZE: &str = "reinitialize_needed";
/// A longer text is cut off, for a notification holds 8000 bytes, and JSON can write a byte as six.
const LONGEST_TEXT: usize = 800;

/// Tells at commit that a refresh changed a stream table.
pub fn completed(stream_table: Oid, outcome: &Outcome, milliseconds: f64) {
    send(
        "refresh_completed",
        relation::name(stream_table),
        json!({
            "action": outcome.action.as_str(),
            "rows_inserted": outcome.inserted,
            "rows_deleted": outcome.deleted,
            "duration_ms": milliseconds,
        }),
    );
}

/// Tells at commit that a stream table is computed anew, and why.
pub fn reinitialized(stream_table: Oid, reason: &str) {
    send(REINITIALIZE, relation::name(stream_table), json!({ "reason": reason }));
}

/// Tells at commit that the next refresh of a stream table computes it anew, and why. The commands that
/// bring that about are those of others, who may have them prepared.
pub fn reinitialize_needed(name: (String, String), reason: &str) {
    let message = message(REINITIALIZE, name, json!({ "reason": reason }));
    notify::send_unless_prepared(CHANNEL, message);
}

/// Tells at commit, on a channel of its own, that a refresh has changed a stream table as a whole,
/// for which its triggers do not fire.
pub fn refreshed_without_triggers(stream_table: Oid, outcome: &Outcome) {
    let (schema, name) = relation::name(stream_table);
    let message = json!({
        "st": format!("{schema}.{name}"),
        "pgs_schema": schema,
        "pgs_name": name,
        "action": outcome.action.as_str(),
        "rows_inserted": outcome.inserted,
        "rows_updated": outcome.updated,
        "rows_deleted": outcome.deleted,
    });
    notify::send("pgstream_refresh", &message.to_string());
}

/// The trigger `announce_reinitialize` of the catalog: a stream table is going to be rebuilt.
#[pg_trigger(sql = false)]
fn announce_reinitialize<'a>(
    trigger: &'a pgrx::PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, pgrx::spi::Error> {
    if let Some(row) = trigger.new() {
        let text = |column: &str| row.get_by_name::<String>(column).ok().flatten();
        let name = (text("pgs_schema").unwrap_or_default(), text("pgs_name").unwrap_or_default());
        let reason = text("reinit_reason")
            .unwrap_or_else(|| "the definition of something that it reads has changed".to_owned());
        reinitialize_needed(name, &reason);
    }
    Ok(None::<PgHeapTuple<'a, AllocatedByRust>>)
}

/// Tells at commit that a stream table was not refreshed for a long time.
pub fn stale(name: (String, String), staleness_seconds: f64, schedule_seconds: i64) {
    send(
        "stale_data",
        name,
        json!({
            "staleness_seconds": staleness_seconds,
            "schedule_seconds": schedule_seconds,
            "ratio": staleness_seconds / schedule_seconds.max(1) as f64,
        }),
    );
}

/// Tells at commit, on a channel of its own, that `source` is captured in another way from now on.
pub fn capture_changes(source: Oid, mode: &str) {
    let (schema, name) = relation::name(source);
    let message = json!({
        "event": "cdc_transition",
        "source": format!("{schema}.{name}"),
        "source_relid": source.to_u32(),
        "cdc_mode": mode,
    });
    notify::send("pg_stream_cdc_transition", &message.to_string());
}

/// Tells at commit that a stream table leaves many changes of `source` unconsumed.
pub fn buffer_growth(name: (String, String), source: Oid, pending_rows: u64) {
    let source = relation::display_name(source);
    send("buffer_growth_warning", name, json!({ "source": source, "pending_rows": pending_rows }));
}

/// Tells at commit what happened to a stream table, given by schema and name.
pub fn send(event: &str, name: (String, String), details: Value) {
    notify::send(CHANNEL, &message(event, name, details));
}

fn message(event: &str, (schema, name): (String, String), details: Value) -> String {
    let mut message = Map::new();
    message.insert("event".to_owned(), event.into());
    message.insert("st".to_owned(), format!("{schema}.{name}").into());
    message.insert("pgs_schema".to_owned(), schema.into());
    message.insert("pgs_name".to_owned(), name.into());
    if let Value::Object(details) = details {
        message.extend(details.into_iter().map(|(key, value)| (key, shortened(value))));
    }
    Value::Object(message).to_string()
}

fn shortened(value: Value) -> Value {
    match value {
        Value::String(text) if text.len() > LONGEST_TEXT => {
            let end = (0..=LONGEST_TEXT).rev().find(|it| text.is_char_boundary(*it)).unwrap_or(0);
            format!("{}…", &text[..end]).into()
        }
        other => other,
    }
}
