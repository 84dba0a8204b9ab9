//! The statements that write a delta into a storage.
//!
//! Three statements, in an order that keeps the user's unique indexes satisfied: rows that go, rows
//! that change in place, rows that come. Each reads an ephemeral relation: `__pgs_removed`,
//! `__pgs_updated`, `__pgs_added`.

use crate::sql::{ROW_ID, Storage};

/// How a stored row is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Matching {
    /// By `ctid`: the row was read in this refresh.
    Ctid,
    /// By row id and binary content; there is at most one such row.
    Content,
    /// By row id and binary content; of several such rows as many as asked for are taken: one, or
    /// `n`.
    ContentCopies,
    /// By row id and the binary content of some columns, where triggers of the user may have
    /// changed the others.
    Key {
        /// Positions of those columns.
        columns: Vec<usize>,
        /// Whether there can be several, as in `ContentCopies`.
        copies: bool,
    },
}

/// SQL for one storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apply {
    /// Reads `ctid`, or `rid`, `o0`, … and, for copies, `n` (how many) and `ordinal` (of the row).
    pub delete: String,
    /// Reads `ctid` or `rid`, `o0`, …; and `v0`, …: the new values.
    pub update: String,
    /// Reads `rid`, `v0`, ….
    pub insert: String,
}

/// Writes the statements. The values are the output columns, the state columns, and the count.
/// `keys` says which values never change in an update.
pub fn apply(storage: &Storage, keys: &[usize], matching: &Matching) -> Apply {
    let mut names: Vec<String> = storage.columns.clone();
    names.extend(storage.state.iter().map(|it| it.0.clone()));
    if storage.counted {
        names.push(super::COUNT.to_owned());
    }
    let table = &storage.table;
    let same_content = |columns: &[usize]| {
        if columns.is_empty() {
            return format!("s.{ROW_ID} = d.rid");
        }
        let stored: Vec<String> =
            columns.iter().map(|it| format!("s.{}", storage.columns[*it])).collect();
        let old: Vec<String> = columns.iter().map(|it| format!("d.o{it}")).collect();
        format!(
            "s.{ROW_ID} = d.rid AND ROW({})::record *= ROW({})::record",
            stored.join(", "),
            old.join(", ")
        )
    };
    let all: Vec<usize> = (0..storage.columns.len()).collect();
    let (found, has_copies) = match matching {
        Matching::Ctid => ("s.ctid = d.ctid".to_owned(), false),
        Matching::Content => (same_content(&all), false),
        Matching::ContentCopies => (same_content(&all), true),
        Matching::Key { columns, copies } => (same_content(columns), *copies),
    };
    let delete = if has_copies {
        format!(
            "DELETE FROM {table} WHERE ctid IN (SELECT q.ctid FROM (SELECT s.ctid, d.n, \
             row_number() OVER (PARTITION BY d.ordinal) AS copy FROM __pgs_removed AS d \
             JOIN {table} AS s ON {found}) AS q WHERE q.copy <= q.n)"
        )
    } else {
        format!("DELETE FROM {table} AS s USING __pgs_removed AS d WHERE {found}")
    };
    let settings: Vec<String> = names
        .iter()
        .enumerate()
        .filter(|(index, _)| !keys.contains(index))
        .map(|(index, name)| format!("{name} = d.v{index}"))
        .collect();
    // A storage whose every value is a key has no updates; the statement is still well formed.
    let settings =
        if settings.is_empty() { format!("{ROW_ID} = {ROW_ID}") } else { settings.join(", ") };
    let update = if has_copies {
        format!(
            "UPDATE {table} AS t SET {settings} FROM __pgs_updated AS d, \
             LATERAL (SELECT s.ctid FROM {table} AS s WHERE {found} LIMIT 1) AS q \
             WHERE t.ctid = q.ctid"
        )
    } else {
        format!("UPDATE {table} AS s SET {settings} FROM __pgs_updated AS d WHERE {found}")
    };
    let values: String = (0..names.len()).map(|it| format!(", d.v{it}")).collect();
    let columns: String = names.iter().map(|name| format!(", {name}")).collect();
    let insert = format!(
        "INSERT INTO {table} ({ROW_ID}{columns}) SELECT d.rid{values} FROM __pgs_added AS d"
    );
    Apply { delete, update, insert }
}
