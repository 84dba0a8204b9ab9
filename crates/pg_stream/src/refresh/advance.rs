//! The frontier and the history: what is read before a refresh and written after it.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    ffi::{CStr, CString},
};

use pgrx::{datum::TimestampWithTimeZone, pg_sys::Oid};
use pgstream_core::{
    frontier::Frontier,
    schedule::{Effective, Schedule},
};

use crate::{
    capture::{self, delta::Seen},
    error::Error,
    fault::{self, Step},
    pg::{
        lock::Lock,
        own::{self, OwnRow, OwnTable, Value},
        relation,
        snapshot::Snapshot,
        time::{self, Stopwatch},
        wake,
    },
    refresh::{Action, Cause, InitiatedBy, Occasion, Outcome, definition::Definition, seal},
};

/// The catalog's knowledge of a stream table, as the refresh's snapshot sees it.
pub struct State {
    pub frontier: Option<Frontier>,
    pub is_populated: bool,
    pub needs_reinit: bool,
    pub fingerprint: Option<String>,
    /// See [`super::seal`].
    pub seal: Option<String>,
}

const TABLES: &CStr = c"pgs_stream_tables";
const TABLES_KEY: &CStr = c"pgs_stream_tables_pkey";

impl State {
    pub fn read(pgs_id: i64, snapshot: &Snapshot) -> Result<Self, Error> {
        let mut state = None;
        let tables = OwnTable::open(TABLES, Lock::AccessShare);
        tables.find(TABLES_KEY, ("pgs_id", pgs_id), snapshot, |row| {
            state = Some(Self {
                // One from the future is of another cluster, or from before pg_resetwal.
                frontier: row
                    .get::<String>("consumed")
                    .map(|text| parse(&text))
                    .filter(|it| it.xmax <= crate::pg::frontier::next_xid()),
                is_populated: row.get("is_populated").unwrap_or(false),
                needs_reinit: row.get("needs_reinit").unwrap_or(false),
                fingerprint: row.get("fingerprint"),
                seal: row.get("seal"),
            });
        });
        let mut state = state.ok_or_else(|| Error::unknown(pgs_id))?;
        if relation::is_strict_transaction() {
            // It vouches for the triggers that there are now, which no snapshot isolates.
            let read = |row: &OwnRow| state.seal = row.get("seal");
            tables.find(TABLES_KEY, ("pgs_id", pgs_id), &Snapshot::latest(), read);
        }
        Ok(state)
    }

    /// Why what is stored cannot be gone on from, if it cannot.
    pub(super) fn cause_to_rebuild(&self, definition: &Definition) -> Option<Cause> {
        let differential = definition.differential.as_ref()?;
        if self.needs_reinit
            || differential.has_other_members
            || self.fingerprint.as_deref() != Some(&differential.fingerprint)
        {
            return Some(Cause::Definition);
        }
        if self.seal.as_deref().is_some_and(|it| !seal::is_native(it)) {
            return Some(Cause::Definition);
        }
        (self.is_populated && self.seal != differential.seal).then(|| {
            Cause::Damage("triggers that protect it or its sources were switched off".to_owned())
        })
    }
}

thread_local! {
    static ADVANCES: RefCell<HashMap<i64, u64>> = RefCell::default();
}

/// How often this process has refreshed the stream table.
pub fn advances(pgs_id: i64) -> u64 {
    ADVANCES.with_borrow(|it| it.get(&pgs_id).copied().unwrap_or(0))
}

fn parse(frontier: &str) -> Frontier {
    frontier.parse().expect("only advance writes frontiers")
}

/// Records a refresh: the frontier (unless nothing was consumed), times, and the history row, with a
/// note on why it was no ordinary one.
#[expect(clippy::too_many_arguments, reason = "one call, of what a refresh holds")]
pub fn store(
    definition: &Definition,
    outcome: &Outcome,
    frontier: &Frontier,
    (occasion, note): (&Occasion, Option<&str>),
    clock: &Stopwatch,
    snapshot: &Snapshot,
) {
    ADVANCES.with_borrow_mut(|it| *it.entry(definition.pgs_id).or_default() += 1);
    let tables = OwnTable::open(TABLES, Lock::RowExclusive);
    let row = tables.lock(TABLES_KEY, ("pgs_id", definition.pgs_id), snapshot);
    let row = row.expect("whoever drops a stream table locks it first");
    if row.get("consecutive_errors") != Some(0) {
        // The scheduler need not wait any longer.
        wake::scheduler_at_commit();
    }
    let times = Times {
        data: occasion.data_timestamp,
        started: clock.started_at(),
        ended: time::current(),
        schedule: row.get("schedule"),
    };
    let values = if outcome.has_consumed {
        advanced(definition, outcome, frontier, &times, &row)
    } else {
        vec![
            Value::new("data_timestamp", times.data),
            Value::new("last_refresh_at", times.data),
            Value::new("consecutive_errors", 0),
        ]
    };
    tables.update(&row, &values);
    fault::point(Step::FrontierStored);
    record(definition, outcome, (occasion, note), &times, snapshot);
    fault::point(Step::HistoryWritten);
}

struct Times {
    data: TimestampWithTimeZone,
    started: TimestampWithTimeZone,
    ended: TimestampWithTimeZone,
    schedule: Option<String>,
}

impl Times {
    /// When the next refresh is due by the stream table's own schedule.
    fn deadline(&self) -> Option<TimestampWithTimeZone> {
        let schedule: Schedule = self.schedule.as_ref()?.parse().ok()?;
        Effective::from(&schedule).next_after(time::to_epoch(self.data)).map(time::from_epoch)
    }
}

/// What a refresh that consumed changes leaves in the catalog.
fn advanced(
    definition: &Definition,
    outcome: &Outcome,
    frontier: &Frontier,
    times: &Times,
    row: &OwnRow,
) -> Vec<Value> {
    let fingerprint = definition.differential.as_ref().map(|it| it.fingerprint.clone());
    let mut values = vec![
        Value::new("consumed", frontier.to_string()),
        Value::json("frontier", &frontier_for_people(definition, frontier)),
        Value::new("fingerprint", fingerprint),
        Value::new("data_timestamp", times.data),
        Value::new("last_refresh_at", times.ended),
        Value::new("is_populated", true),
        Value::new("consecutive_errors", 0),
    ];
    // Whoever sets it while a refresh runs must find it set afterwards.
    let is_full = row.get::<String>("refresh_mode").as_deref() == Some("FULL");
    if outcome.action == Action::Reinitialize || is_full {
        values.push(Value::new("needs_reinit", false));
        values.push(Value::new("reinit_reason", None::<String>));
    }
    if !matches!(outcome.action, Action::Differential | Action::NoData) {
        values.push(Value::new(
            "last_full_ms",
            time::milliseconds_between(times.started, times.ended),
        ));
    }
    if row.get::<String>("status").as_deref() == Some("INITIALIZING") {
        values.push(Value::new("status", "ACTIVE"));
        values.push(Value::new("updated_at", times.ended));
    }
    values
}

const HISTORY: &CStr = c"pgs_refresh_history";
const HISTORY_KEY: &CStr = c"pgs_refresh_history_pkey";

/// Completes the row of the history that announced the refresh, or adds one. A refresh that found
/// nothing to do leaves no trace.
fn record(
    definition: &Definition,
    outcome: &Outcome,
    (occasion, note): (&Occasion, Option<&str>),
    times: &Times,
    snapshot: &Snapshot,
) {
    let is_empty = outcome.action == Action::NoData;
    if is_empty && occasion.announced.is_none() {
        return;
    }
    let history = OwnTable::open(HISTORY, Lock::RowExclusive);
    let announced =
        occasion.announced.and_then(|it| history.lock(HISTORY_KEY, ("refresh_id", it), snapshot));
    if is_empty {
        announced.iter().for_each(|row| history.delete(row));
        return;
    }
    let count = |it: u64| i64::try_from(it).expect("fewer than 2^63 rows");
    let mut values = vec![
        Value::new("data_timestamp", times.data),
        Value::new("start_time", times.started),
        Value::new("end_time", times.ended),
        Value::new("action", outcome.action.as_str()),
        Value::new("status", "COMPLETED"),
        Value::new("rows_inserted", count(outcome.inserted)),
        Value::new("rows_updated", count(outcome.updated)),
        Value::new("rows_deleted", count(outcome.deleted)),
        Value::new("error_message", note),
        Value::new("freshness_deadline", times.deadline()),
    ];
    match announced {
        Some(row) => history.update(&row, &values),
        None => {
            values.extend([
                Value::new("refresh_id", next_refresh_id()),
                Value::new("pgs_id", definition.pgs_id),
                Value::new("initiated_by", occasion.by.as_str()),
            ]);
            history.insert(&values);
        }
    }
}

/// Adds a row to the history for a scheduled refresh that is about to run; gives its number.
pub fn announce(pgs_id: i64, action: Action) -> i64 {
    let id = next_refresh_id();
    OwnTable::open(HISTORY, Lock::RowExclusive).insert(&[
        Value::new("refresh_id", id),
        Value::new("pgs_id", pgs_id),
        Value::new("start_time", time::current()),
        Value::new("action", action.as_str()),
        Value::new("status", "RUNNING"),
        Value::new("rows_inserted", 0i64),
        Value::new("rows_updated", 0i64),
        Value::new("rows_deleted", 0i64),
        Value::new("initiated_by", InitiatedBy::Scheduler.as_str()),
    ]);
    id
}

/// A number that no refresh has, whatever a dump has made of the sequence.
pub fn next_refresh_id() -> i64 {
    loop {
        let id = own::next_value(c"pgs_refresh_history_refresh_id_seq");
        if !is_numbered(id) {
            return id;
        }
    }
}

/// Whether a refresh in the history has this number.
pub fn is_numbered(id: i64) -> bool {
    let mut is_there = false;
    let history = OwnTable::open(HISTORY, Lock::AccessShare);
    history.find(HISTORY_KEY, ("refresh_id", id), &Snapshot::latest(), |_| is_there = true);
    is_there
}

/// The frontier as JSON: the snapshot, and for each source the position in the WAL.
fn frontier_for_people(definition: &Definition, frontier: &Frontier) -> CString {
    let lsn = crate::pg::frontier::current_lsn();
    let position = |it: &Oid| format!("\"{}\": \"{lsn}\"", it.to_u32());
    let sources: Vec<String> = definition.tracked_sources().iter().map(position).collect();
    let sources = sources.join(", ");
    let text =
        format!("{{\"snapshot\": \"{frontier}\", \"lsn\": \"{lsn}\", \"sources\": {{{sources}}}}}");
    CString::new(text).expect("numbers have no NUL")
}

/// Removes from the buffers what every reader has consumed. `seen` are the rows of each that the
/// refresh saw, as far as it looked.
pub fn clean_buffers(
    definition: &Definition,
    frontier: &Frontier,
    seen: &HashMap<Oid, Vec<Seen>>,
    cleaned: &mut HashSet<Oid>,
) {
    for source in definition.tracked_sources() {
        if cleaned.insert(source) {
            let seen = seen.get(&source).map(Vec::as_slice);
            clean(source, Some((definition.pgs_id, frontier)), seen);
        }
    }
}

/// Removes from the buffer of `source` what every reader has consumed.
pub fn clean_buffer(source: Oid) {
    clean(source, None, None);
}

fn clean(source: Oid, own: Option<(i64, &Frontier)>, seen: Option<&[Seen]>) {
    relation::unless_kept(source, || {
        let mut frontiers = Vec::from_iter(own.map(|it| it.1.clone()));
        for reader in readers(source) {
            if own.is_some_and(|it| it.0 == reader.id) || needs_nothing(&reader) {
                continue;
            }
            match reader.frontier {
                Some(frontier) => frontiers.push(frontier),
                // Its first refresh may be under way.
                None => return,
            }
        }
        capture::cleanup(source, &frontiers, seen);
    });
}

/// Whether the reader is going to be rebuilt, which needs no changes, and that has not begun. Then it
/// does not begin before this transaction has ended either.
fn needs_nothing(reader: &Reader) -> bool {
    reader.needs_reinit
        && relation::try_lock_stream_table(reader.id)
        && Reader::find(reader.id, &Snapshot::latest()).is_none_or(|it| it.needs_reinit)
}

/// A stream table in DIFFERENTIAL mode, as a reader of the changes of a source.
pub struct Reader {
    pub id: i64,
    pub frontier: Option<Frontier>,
    pub needs_reinit: bool,
}

impl Reader {
    fn find(id: i64, snapshot: &Snapshot) -> Option<Self> {
        let mut found = None;
        let tables = OwnTable::open(TABLES, Lock::AccessShare);
        tables.find(TABLES_KEY, ("pgs_id", id), snapshot, |row| {
            if row.get::<String>("refresh_mode").as_deref() == Some("DIFFERENTIAL") {
                found = Some(Self {
                    id,
                    frontier: row.get::<String>("consumed").map(|text| parse(&text)),
                    needs_reinit: row.get("needs_reinit").unwrap_or(false),
                });
            }
        });
        found
    }
}

/// All that read the changes of `source`.
pub fn readers(source: Oid) -> Vec<Reader> {
    let snapshot = Snapshot::latest();
    let mut ids: Vec<i64> = Vec::new();
    OwnTable::open(c"pgs_dependencies", Lock::AccessShare).find(
        c"pgs_dependencies_source_relid_idx",
        ("source_relid", source),
        &snapshot,
        |row| ids.extend(row.get::<i64>("pgs_id")),
    );
    ids.into_iter().filter_map(|id| Reader::find(id, &snapshot)).collect()
}
