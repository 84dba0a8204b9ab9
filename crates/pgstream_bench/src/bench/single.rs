//! Refreshes that are all fixed cost: nothing changed, a new session, a chain.

use postgres::Client;

use super::change::{Keys, change};
use super::matrix::{create_sources, create_stream_table};
use super::report::Report;
use super::shapes::SHAPES;
use super::{DATABASE, Options};
use crate::Result;
use crate::server::{connect, difference, median, milliseconds, timed};
use crate::table::ms;

const ROWS: usize = 100_000;

/// Ten stream tables, each on the one before.
const CHAIN: [&str; 10] = [
    "SELECT id, region, customer_id, status, amount FROM fact",
    "SELECT id, region, customer_id, amount * 2 AS amount FROM chain1 WHERE status >= 0",
    "SELECT id, region, customer_id, amount FROM chain2 WHERE amount >= 0",
    "SELECT f.id, f.region, f.amount, c.segment FROM chain3 f JOIN customer c ON c.id = customer_id",
    "SELECT id, region, segment, amount - 1 AS amount FROM chain4",
    "SELECT region, segment, count(*) AS n, sum(amount) AS total FROM chain5 GROUP BY region, segment",
    "SELECT region, segment, n, total, total / n AS mean FROM chain6",
    "SELECT segment, sum(n) AS n, sum(total) AS total FROM chain7 GROUP BY segment",
    "SELECT segment, n, total FROM chain8 WHERE n > 0",
    "SELECT count(*) AS segments, sum(n) AS n, sum(total) AS total FROM chain9",
];

pub fn run(client: &mut Client, options: &Options, report: &mut Report) -> Result<()> {
    create_sources(client, ROWS)?;
    let mut keys = Keys::new(ROWS);
    for name in ["scan", "join + aggregate", "3-way join + aggregate"] {
        let shape = SHAPES.iter().find(|shape| shape.name == name).expect("a shape");
        create_stream_table(client, "st_single", shape.query)?;
        no_changes(client, name, report)?;
        new_session(client, name, &mut keys, options, report)?;
        client.execute("SELECT pgstream.drop_stream_table('st_single')", &[])?;
    }
    chain(client, &mut keys, report)
}

fn no_changes(client: &mut Client, name: &str, report: &mut Report) -> Result<()> {
    let refresh = client.prepare("SELECT pgstream.refresh_stream_table('st_single')")?;
    let mut times = Vec::new();
    for _ in 0..300 {
        times.push(milliseconds(timed(|| Ok(client.execute(&refresh, &[])?))?.0));
    }
    let took = median(times);
    let what = format!("refresh without changes: {name}");
    report.measure(&what, format!("{} ms", ms(took)), "under 0.5 ms", Some(took < 0.5));
    Ok(())
}

fn new_session(
    client: &mut Client,
    name: &str,
    keys: &mut Keys,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..if options.quick { 7 } else { 15 } {
        change(client, keys, 1)?;
        let mut session = connect(DATABASE)?;
        let refresh = "SELECT pgstream.refresh_stream_table('st_single')";
        times.push(milliseconds(timed(|| Ok(session.simple_query(refresh)?))?.0));
    }
    let took = median(times);
    let what = format!("first refresh in a new session, 1 row: {name}");
    report.measure(&what, format!("{} ms", ms(took)), "under 10 ms", Some(took < 10.0));
    Ok(())
}

fn chain(client: &mut Client, keys: &mut Keys, report: &mut Report) -> Result<()> {
    let name = |at: usize| format!("chain{}", at + 1);
    for (at, query) in CHAIN.iter().enumerate() {
        create_stream_table(client, &name(at), query)?;
    }
    client.batch_execute("VACUUM ANALYZE")?;
    let refreshes = (0..CHAIN.len())
        .map(|at| {
            Ok(client.prepare(&format!("SELECT pgstream.refresh_stream_table('{}')", name(at)))?)
        })
        .collect::<Result<Vec<_>>>()?;
    let mut times = Vec::new();
    for run in 0..20 {
        change(client, keys, 1)?;
        let (took, ()) = timed(|| {
            for refresh in &refreshes {
                client.execute(refresh, &[])?;
            }
            Ok(())
        })?;
        if run >= 5 {
            times.push(milliseconds(took));
        }
    }
    let took = median(times);
    report.measure(
        "chain of 10 stream tables, 1 row changed",
        format!("{} ms", ms(took)),
        "under 15 ms",
        Some(took < 15.0),
    );
    for (at, query) in CHAIN.iter().enumerate() {
        client.batch_execute(&format!("CREATE TEMP TABLE expected AS {query}"))?;
        let wrong = difference(client, &name(at), "expected")?;
        client.batch_execute("DROP TABLE expected")?;
        if wrong != 0 {
            report.fail(format!("{} differs from its query in {wrong} rows", name(at)));
        }
    }
    for at in (0..CHAIN.len()).rev() {
        client.execute("SELECT pgstream.drop_stream_table($1)", &[&name(at)])?;
    }
    Ok(())
}
