//! What writers pay for capture: the same writes to two tables of the same layout, one of which
//! has a stream table, in turns.

use std::time::{Duration, Instant};

use postgres::Client;

use super::Options;
use super::matrix::create_stream_table;
use super::report::Report;
use crate::Result;
use crate::server::{median, milliseconds, timed};
use crate::table::{ms, times};

const PLAIN: &str = "written_plain";
const CAPTURED: &str = "written_captured";
const BULK: usize = 200_000;
const BLOCKS: usize = 8;

pub fn run(client: &mut Client, options: &Options, report: &mut Report) -> Result<()> {
    for table in [PLAIN, CAPTURED] {
        client.batch_execute(&format!(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, region integer NOT NULL,
                 customer_id integer NOT NULL, amount numeric(12, 2) NOT NULL, note text NOT NULL)
             WITH (autovacuum_enabled = off)"
        ))?;
    }
    client.batch_execute(&format!(
        "CREATE TABLE written_rows AS
         SELECT i AS id, (i % 10)::integer AS region, (i * 7919 % 20000)::integer AS customer_id,
                (i % 100000)::numeric(12, 2) AS amount, 'note ' || i AS note
         FROM generate_series(1, {BULK}::bigint) i"
    ))?;
    client.batch_execute("VACUUM ANALYZE written_rows")?;
    // All five columns are captured.
    let query = format!("SELECT id, region, customer_id, amount, note FROM {CAPTURED}");
    create_stream_table(client, "st_written", &query)?;
    bulk(client, if options.quick { 3 } else { 7 }, report)?;
    let length = Duration::from_millis(if options.quick { 250 } else { 500 });
    client.batch_execute("SET synchronous_commit = on")?;
    single_rows(client, length, true, report)?;
    client.batch_execute("SET synchronous_commit = off")?;
    single_rows(client, length, false, report)?;
    Ok(())
}

/// The two tables, in an order that alternates.
fn in_turn(run: usize) -> [usize; 2] {
    if run.is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

fn bulk(client: &mut Client, runs: usize, report: &mut Report) -> Result<()> {
    let (mut inserts, mut updates) = ([vec![], vec![]], [vec![], vec![]]);
    for run in 0..=runs {
        for at in in_turn(run) {
            let table = [PLAIN, CAPTURED][at];
            client.batch_execute("CHECKPOINT")?;
            let insert = format!("INSERT INTO {table} SELECT * FROM written_rows");
            let (insert_took, _) = timed(|| Ok(client.execute(&insert, &[])?))?;
            let update = format!("UPDATE {table} SET amount = amount + 1");
            let (update_took, _) = timed(|| Ok(client.execute(&update, &[])?))?;
            if run > 0 {
                inserts[at].push(milliseconds(insert_took));
                updates[at].push(milliseconds(update_took));
            }
            empty(client, table)?;
        }
    }
    for (what, [plain, captured]) in [("INSERT", inserts), ("UPDATE", updates)] {
        let (plain, captured) = (median(plain), median(captured));
        let ratio = captured / plain;
        let shown = format!("{} x ({} / {} ms)", times(ratio), ms(captured), ms(plain));
        let what = format!("bulk {what} of {BULK} rows with capture");
        report.measure(&what, shown, "at most 1.3 x without", Some(ratio <= 1.3));
    }
    Ok(())
}

/// Takes the rows and their changes away.
fn empty(client: &mut Client, table: &str) -> Result<()> {
    client.batch_execute(&format!("DELETE FROM {table}"))?;
    client.execute("SELECT pgstream.refresh_stream_table('st_written')", &[])?;
    client.batch_execute(&format!("VACUUM {table}"))?;
    Ok(())
}

/// Throughput of statements that are transactions of their own, in blocks of `length` in turn.
fn single_rows(
    client: &mut Client,
    length: Duration,
    durable: bool,
    report: &mut Report,
) -> Result<()> {
    // The rows that are updated; new ones get keys beyond.
    for table in [PLAIN, CAPTURED] {
        client.batch_execute(&format!("INSERT INTO {table} SELECT * FROM written_rows"))?;
    }
    let insert = ("INSERT", "INSERT INTO $TABLE VALUES ($1, 1, 1, 1, 'note')", BULK + 1);
    let update = ("UPDATE", "UPDATE $TABLE SET amount = amount + 1 WHERE id = $1", 1);
    for (what, sql, first_key) in [insert, update] {
        let [plain, captured] = rates(client, sql, first_key as i64, length)?;
        let ratio = captured / plain;
        let shown = format!(
            "{} x ({captured:.0} / {plain:.0} a second, {:+.1} us each)",
            times(ratio),
            1e6 / captured - 1e6 / plain
        );
        let label = if durable { "durable" } else { "not durable" };
        let what = format!("single-row {what} with capture, {label}");
        let bar = if durable { "at least 0.95 x without" } else { "" };
        report.measure(&what, shown, bar, durable.then_some(ratio >= 0.95));
    }
    for table in [PLAIN, CAPTURED] {
        empty(client, table)?;
    }
    Ok(())
}

/// Statements a second, on the plain and on the captured table, for keys from `first_key` on.
fn rates(client: &mut Client, sql: &str, first_key: i64, length: Duration) -> Result<[f64; 2]> {
    let statements = [
        client.prepare(&sql.replace("$TABLE", PLAIN))?,
        client.prepare(&sql.replace("$TABLE", CAPTURED))?,
    ];
    let mut keys = [first_key; 2];
    let (mut counts, mut seconds) = ([0.0; 2], [0.0; 2]);
    // The first block is for warming up.
    for block in 0..=BLOCKS {
        for at in in_turn(block) {
            let start = Instant::now();
            let mut count = 0.0;
            while start.elapsed() < length {
                client.execute(&statements[at], &[&keys[at]])?;
                keys[at] += 1;
                count += 1.0;
            }
            if block > 0 {
                counts[at] += count;
                seconds[at] += start.elapsed().as_secs_f64();
            }
        }
        client.execute("SELECT pgstream.refresh_stream_table('st_written')", &[])?;
    }
    Ok([counts[0] / seconds[0], counts[1] / seconds[1]])
}
