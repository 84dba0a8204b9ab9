//! The demonstration itself: load, create, change, refresh, compare, and say so in tables.

use postgres::Client;

use super::changes::{ROUNDS, Round};
use super::queries::{self, Query};
use crate::server::{self, error_text, milliseconds, timed};
use crate::table::{Table, ms, times};
use crate::{Result, tpch::data};

const DATABASE: &str = "pgstream_demo";

/// A query that became a stream table.
struct Created {
    name: String,
    sql: String,
}

/// What went wrong, if anything: the program fails when this is not empty.
type Complaints = Vec<String>;

/// Runs all of it; false if a stream table was wrong or a refresh not incremental.
pub fn run(scale: f64) -> Result<bool> {
    let mut client = server::create_database(DATABASE)?;
    let (took, rows) = timed(|| data::load(&mut client, scale))?;
    println!(
        "TPC-H at scale {scale}: {rows} rows in 8 tables, loaded in {:.1} s",
        took.as_secs_f64()
    );
    println!();

    let mut complaints = Complaints::new();
    let created = create_all(&mut client, scale, &mut complaints)?;
    for round in &ROUNDS {
        run_round(&mut client, round, scale, &created, &mut complaints)?;
    }
    println!("{LEGEND}");
    for complaint in &complaints {
        println!("WRONG: {complaint}");
    }
    if complaints.is_empty() {
        println!(
            "All {} stream tables equal their queries after each of {} rounds; every refresh was \
             incremental.",
            created.len(),
            ROUNDS.len()
        );
    }
    Ok(complaints.is_empty())
}

const LEGEND: &str = "\
query    the number of the TPC-H query
rows     rows of the result             changed  rows that the refresh inserted, updated or deleted
query ms computing the query again      refresh  keeping the stream table up to date
ratio    how much faster that is        equal    the same rows, compared both ways as text
";

fn create_all(
    client: &mut Client,
    scale: f64,
    complaints: &mut Complaints,
) -> Result<Vec<Created>> {
    let mut created = Vec::new();
    let (took, ()) = timed(|| {
        for query in queries::all(scale) {
            match create(client, &query)? {
                Ok(table) => created.push(table),
                Err(error) => complaints.push(format!("q{}: {}", query.number, error_text(&error))),
            }
        }
        Ok(())
    })?;
    client.batch_execute("VACUUM ANALYZE")?;
    let whole = client.query_one(
        "SELECT count(*), coalesce(string_agg(s.pgs_name, ', ' ORDER BY s.pgs_name), '')
         FROM pgstream.pgs_stream_tables s
         WHERE EXISTS (SELECT FROM pgstream.explain_st(s.pgs_name)
                       WHERE property LIKE '%strategy' AND value LIKE 'evaluated as a whole%')",
        &[],
    )?;
    let (many, names): (i64, String) = (whole.get(0), whole.get(1));
    println!(
        "{} of the 22 queries are stream tables in DIFFERENTIAL mode, created in {:.1} s;\n\
         {many} of them are evaluated as a whole, at least in part: {names}",
        created.len(),
        took.as_secs_f64()
    );
    println!();
    Ok(created)
}

/// The outer error ends the demonstration, the inner one is this query's.
fn create(
    client: &mut Client,
    query: &Query,
) -> Result<std::result::Result<Created, postgres::Error>> {
    if let Some(setup) = &query.setup {
        client.batch_execute(setup)?;
    }
    // Refreshed by hand below, never by the schedule.
    let attempt = client.execute(
        "SELECT pgstream.create_stream_table($1, $2, schedule => '1d')",
        &[&query.name(), &query.sql],
    );
    Ok(attempt.map(|_| Created { name: query.name(), sql: query.sql.clone() }))
}

/// Changes the tables, refreshes every stream table and compares it with its query.
fn run_round(
    client: &mut Client,
    round: &Round,
    scale: f64,
    created: &[Created],
    complaints: &mut Complaints,
) -> Result<()> {
    let (took, rows) = timed(|| round.run(client, scale))?;
    println!(
        "== {}: {}; {rows} rows changed in {:.0} ms",
        round.name,
        round.what,
        milliseconds(took)
    );
    let headings = ["query", "rows", "changed", "query ms", "refresh ms", "ratio", "equal"];
    let mut table = Table::new(&headings);
    for stream_table in created {
        match refresh_and_compare(client, stream_table) {
            Ok(outcome) => {
                complaints.extend(outcome.complaint(round, stream_table));
                table.push(outcome.cells(stream_table));
            }
            Err(error) => {
                let error = match error.downcast_ref::<postgres::Error>() {
                    Some(error) => error_text(error),
                    None => error.to_string(),
                };
                complaints.push(format!("{} {}: {error}", round.name, stream_table.name));
            }
        }
    }
    println!("{}", table.plain());
    Ok(())
}

struct Outcome {
    rows: i64,
    changed: i64,
    query_ms: f64,
    refresh_ms: f64,
    action: String,
    wrong_rows: i64,
}

fn refresh_and_compare(client: &mut Client, table: &Created) -> Result<Outcome> {
    let before = server::last_refresh(client, &table.name)?.map_or(0, |row| row.refresh_id);
    let refresh = format!("SELECT pgstream.refresh_stream_table('{}')", table.name);
    let (refresh_took, _) = timed(|| Ok(client.simple_query(&refresh)?))?;
    let history = server::last_refresh(client, &table.name)?.filter(|row| row.refresh_id > before);
    let compute = format!("CREATE TEMP TABLE expected AS {}", table.sql);
    let (query_took, rows) = timed(|| Ok(client.execute(&compute, &[])?))?;
    let wrong_rows = server::difference(client, &table.name, "expected")?;
    client.batch_execute("DROP TABLE expected")?;
    // Refreshes that found nothing to do need not be in the history.
    let history = history.unwrap_or_default();
    Ok(Outcome {
        rows: rows as i64,
        changed: history.changed_rows,
        query_ms: milliseconds(query_took),
        refresh_ms: milliseconds(refresh_took),
        action: history.action,
        wrong_rows,
    })
}

impl Outcome {
    fn cells(&self, table: &Created) -> Vec<String> {
        vec![
            table.name.to_uppercase(),
            self.rows.to_string(),
            self.changed.to_string(),
            ms(self.query_ms),
            ms(self.refresh_ms),
            times(self.query_ms / self.refresh_ms),
            if self.wrong_rows == 0 { "yes".to_owned() } else { "NO".to_owned() },
        ]
    }

    fn complaint(&self, round: &Round, table: &Created) -> Option<String> {
        let what = if self.wrong_rows != 0 {
            format!("differs from its query in {} rows", self.wrong_rows)
        } else if !["", "NO_DATA", "DIFFERENTIAL"].contains(&self.action.as_str()) {
            format!("the refresh ran {}", self.action)
        } else {
            return None;
        };
        Some(format!("{} {}: {what}", round.name, table.name))
    }
}
