//! Connections, and the few questions that both programs ask of a stream table.

use std::time::{Duration, Instant};

use postgres::{Client, Config, NoTls};

use crate::Result;

/// Where `make bench` and `make demo` say that the server is.
const URL_VARIABLE: &str = "PGSTREAM_TEST_URL";

fn config() -> Result<Config> {
    let url = std::env::var(URL_VARIABLE).map_err(|_| {
        format!("{URL_VARIABLE} is not set: run `make bench` or `make demo`, or name a server")
    })?;
    Ok(url.parse()?)
}

/// A session in `database`. What the server sends at level NOTICE goes to standard error.
pub fn connect(database: &str) -> Result<Client> {
    let mut config = config()?;
    config.dbname(database).notice_callback(|notice| {
        if notice.severity() != "DEBUG" {
            eprintln!("{}: {}", notice.severity(), notice.message());
        }
    });
    let mut client = config.connect(NoTls)?;
    // Commits that wait for the disk would hide the work that is to be compared: an fsync takes
    // as long as dozens of small refreshes. Where durability is the point, it is set to on.
    client.batch_execute("SET synchronous_commit = off; SET client_min_messages = warning")?;
    Ok(client)
}

/// A new database with the extension, in place of an old one of that name.
pub fn create_database(name: &str) -> Result<Client> {
    let mut maintenance = config()?.connect(NoTls)?;
    maintenance.execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"), &[])?;
    maintenance.execute(&format!("CREATE DATABASE {name}"), &[])?;
    let mut client = connect(name)?;
    client.batch_execute("CREATE EXTENSION pg_stream")?;
    Ok(client)
}

/// Runs `work` and says how long it took.
pub fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let start = Instant::now();
    let value = work()?;
    Ok((start.elapsed(), value))
}

pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

pub fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "a median of nothing");
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// The message of a server's error with its SQLSTATE, hints left out; of any other, its text.
pub fn error_text(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => error.to_string(),
    }
}

/// What a stream table's history says about its newest refresh.
#[derive(Debug, Clone, Default)]
pub struct HistoryRow {
    pub refresh_id: i64,
    pub action: String,
    pub changed_rows: i64,
}

/// The newest row of the history, if there is one. `name` is the table's name without schema.
pub fn last_refresh(client: &mut Client, name: &str) -> Result<Option<HistoryRow>> {
    let row = client.query_opt(
        "SELECT h.refresh_id, h.action,
                coalesce(h.rows_inserted, 0) + coalesce(h.rows_updated, 0)
                    + coalesce(h.rows_deleted, 0)
         FROM pgstream.pgs_refresh_history h JOIN pgstream.pgs_stream_tables s USING (pgs_id)
         WHERE s.pgs_name = $1 ORDER BY h.refresh_id DESC LIMIT 1",
        &[&name],
    )?;
    Ok(row.map(|row| HistoryRow {
        refresh_id: row.get(0),
        action: row.get(1),
        changed_rows: row.get(2),
    }))
}

/// The number of rows by which `table`, reduced to the columns of `expected`, differs from
/// `expected` as a multiset: rows that are missing plus rows that are too many. Rows are compared
/// as text, so that 1.0 and 1.00 differ.
pub fn difference(client: &mut Client, table: &str, expected: &str) -> Result<i64> {
    let columns: String = client
        .query_one(
            "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
             WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped",
            &[&expected],
        )?
        .get(0);
    let (found, wanted) = (
        format!("SELECT t::text FROM (SELECT {columns} FROM {table}) t"),
        format!("SELECT t::text FROM {expected} t"),
    );
    let row = client.query_one(
        &format!(
            "SELECT count(*) FROM (({found} EXCEPT ALL {wanted})
                 UNION ALL ({wanted} EXCEPT ALL {found})) d"
        ),
        &[],
    )?;
    Ok(row.get(0))
}
