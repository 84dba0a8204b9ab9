//! The run: events in batches, every stream table refreshed and compared after each.

use std::time::Duration;

use postgres::Client;

use super::{events, queries::QUERIES};
use crate::Result;
use crate::server::{self, error_text, timed};
use crate::table::{Table, ms};

const DATABASE: &str = "pgstream_nexmark";

/// Batches of new events; after every second some of the newest are corrected.
const BATCHES: i64 = 6;

/// A query's stream table, and what its refreshes have taken.
struct Watched {
    name: String,
    sql: &'static str,
    rows: i64,
    refreshing: Duration,
    computing: Duration,
    is_whole: bool,
}

/// Runs all of it, with so many events before the batches and a hundredth in each; false if a
/// stream table was wrong or a refresh not incremental.
pub fn run(events: i64) -> Result<bool> {
    let mut client = server::create_database(DATABASE)?;
    client.batch_execute(events::TABLES)?;
    events::insert(&mut client, 0, events - 1)?;
    client.batch_execute("VACUUM ANALYZE")?;
    let mut complaints = Vec::new();
    let mut watched = Vec::new();
    for (number, sql) in QUERIES {
        match create(&mut client, number, sql) {
            Ok(it) => watched.push(it),
            Err(error) => complaints.push(format!("q{number}: {}", error_text(&error))),
        }
    }
    let size = (events / 100).max(50);
    for batch in 0..BATCHES {
        let (first, last) = (events + batch * size, events + (batch + 1) * size - 1);
        events::insert(&mut client, first, last)?;
        if batch % 2 == 1 {
            events::correct(&mut client, first - size, last)?;
        }
        for one in &mut watched {
            one.refresh_and_compare(&mut client, &mut complaints)?;
        }
    }
    println!(
        "Nexmark: {} queries over {events} events, then {BATCHES} batches of {size}, half of them with \
         corrections\n",
        watched.len()
    );
    println!("{}", table(&watched, size).plain());
    for complaint in &complaints {
        println!("WRONG: {complaint}");
    }
    if complaints.is_empty() {
        println!("All equal their queries after each batch; every refresh was incremental.");
    }
    Ok(complaints.is_empty())
}

fn create(
    client: &mut Client,
    number: u32,
    sql: &'static str,
) -> std::result::Result<Watched, postgres::Error> {
    let name = format!("q{number}");
    client
        .execute("SELECT pgstream.create_stream_table($1, $2, schedule => '1d')", &[&name, &sql])?;
    let is_whole = client
        .query_one(
            "SELECT count(*) > 0 FROM pgstream.explain_st($1)
             WHERE property LIKE '%strategy' AND value LIKE 'evaluated as a whole%'",
            &[&name],
        )?
        .get(0);
    let (refreshing, computing) = (Duration::ZERO, Duration::ZERO);
    Ok(Watched { name, sql, rows: 0, refreshing, computing, is_whole })
}

impl Watched {
    fn refresh_and_compare(
        &mut self,
        client: &mut Client,
        complaints: &mut Vec<String>,
    ) -> Result<()> {
        let before = server::last_refresh(client, &self.name)?.map_or(0, |row| row.refresh_id);
        let refresh = format!("SELECT pgstream.refresh_stream_table('{}')", self.name);
        self.refreshing += timed(|| Ok(client.simple_query(&refresh)?))?.0;
        let history = server::last_refresh(client, &self.name)?;
        if let Some(row) = history.filter(|row| row.refresh_id > before)
            && !["NO_DATA", "DIFFERENTIAL"].contains(&row.action.as_str())
        {
            complaints.push(format!("{}: the refresh ran {}", self.name, row.action));
        }
        let compute = format!("CREATE TEMP TABLE expected AS {}", self.sql);
        let (took, rows) = timed(|| Ok(client.execute(&compute, &[])?))?;
        self.computing += took;
        self.rows = rows as i64;
        let wrong = server::difference(client, &self.name, "expected")?;
        if wrong != 0 {
            complaints.push(format!("{}: differs from its query in {wrong} rows", self.name));
        }
        Ok(client.batch_execute("DROP TABLE expected")?)
    }
}

/// Times are of one batch, on average.
fn table(watched: &[Watched], size: i64) -> Table {
    let headings = ["query", "rows", "query ms", "refresh ms", "events/s", "whole"];
    let mut table = Table::new(&headings);
    let batches = BATCHES as f64;
    for one in watched {
        let seconds = one.refreshing.as_secs_f64();
        table.push(vec![
            one.name.to_uppercase(),
            one.rows.to_string(),
            ms(one.computing.as_secs_f64() * 1e3 / batches),
            ms(seconds * 1e3 / batches),
            format!("{:.0}", size as f64 * batches / seconds),
            if one.is_whole { "yes".to_owned() } else { String::new() },
        ]);
    }
    table
}
