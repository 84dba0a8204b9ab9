//! What running by itself costs: how long a commit takes to be visible in a stream table, and what
//! the scheduler does when there is nothing to do.
//!
//! `docs/SCHEDULING.md` has the numbers and how they were measured.

use std::{
    thread,
    time::{Duration, Instant},
};

use postgres::Client;

use crate::{Result, server, table::Table};

const DATABASE: &str = "pgstream_scheduling";
const IDLE_TABLES: usize = 1000;
/// How long to watch the scheduler.
const WATCH: Duration = Duration::from_secs(30);

/// Measures and prints. Changes settings of the server.
pub fn run() -> Result<()> {
    let mut client = server::create_database(DATABASE)?;
    client.batch_execute("ALTER SYSTEM SET pg_stream.min_schedule_seconds = 1")?;
    client.batch_execute("SELECT pg_reload_conf()")?;
    drop(client);
    println!("{}", latency()?.plain());
    println!("{}", idle()?.plain());
    Ok(())
}

/// From COMMIT to the row in the stream table with schedule 1s, in milliseconds.
fn latency() -> Result<Table> {
    let mut client = server::connect(DATABASE)?;
    client.batch_execute(
        "CREATE TABLE t (id int PRIMARY KEY, g int, v int);
         INSERT INTO t SELECT i, i % 100, i FROM generate_series(1, 100000) i;
         SELECT pgstream.create_stream_table('st', 'SELECT g, count(*) AS n, max(id) AS last FROM t GROUP BY g', '1s')",
    )?;
    let mut table = Table::new(&["commits", "number", "median ms", "worst ms"]);
    for (name, pause, number) in [
        ("further apart than the schedule", 1700, 30),
        ("3 a second", 333, 60),
        ("100 a second", 10, 500),
    ] {
        let mut waits = commits(&mut client, Duration::from_millis(pause), number)?;
        waits.sort_by(f64::total_cmp);
        let worst = waits.last().copied().unwrap_or_default();
        table.push(vec![
            name.to_owned(),
            number.to_string(),
            format!("{:.0}", server::median(waits)),
            format!("{worst:.0}"),
        ]);
    }
    client.batch_execute("SELECT pgstream.drop_stream_table('st')")?;
    Ok(table)
}

/// Commits rows one after the other, and says how long each took to be visible.
fn commits(client: &mut Client, pause: Duration, number: i32) -> Result<Vec<f64>> {
    let first: i32 = client.query_one("SELECT max(id) + 1 FROM t", &[])?.get(0);
    let mut writer = server::connect(DATABASE)?;
    let writing = thread::spawn(move || {
        let mut times = Vec::new();
        for id in first..first + number {
            writer
                .execute("INSERT INTO t VALUES ($1, 1, 1)", &[&id])
                .map_err(|it| it.to_string())?;
            times.push(Instant::now());
            thread::sleep(pause);
        }
        Ok::<_, String>(times)
    });
    let mut seen = Vec::new();
    while seen.len() < usize::try_from(number)? {
        let last: i32 = client.query_one("SELECT max(last) FROM st", &[])?.get(0);
        let now = Instant::now();
        while first + i32::try_from(seen.len())? <= last {
            seen.push(now);
        }
        thread::sleep(Duration::from_millis(1));
    }
    let times = writing.join().map_err(|_| "the writer failed")??;
    let wait = |(seen, time): (&Instant, &Instant)| seen.saturating_duration_since(*time);
    Ok(seen.iter().zip(&times).map(wait).map(server::milliseconds).collect())
}

/// What the processes of the scheduler use, in milliseconds of CPU a second.
fn idle() -> Result<Table> {
    let mut client = server::connect(DATABASE)?;
    for number in 0..IDLE_TABLES {
        client.batch_execute(&format!(
            "CREATE TABLE s{number} (id int PRIMARY KEY, g int);
             SELECT pgstream.create_stream_table('i{number}', 'SELECT g, count(*) AS n FROM s{number} GROUP BY g', '1m')"
        ))?;
    }
    client.batch_execute("CREATE TABLE busy (id int)")?;
    let mut table = Table::new(&[
        "1000 idle stream tables",
        "scheduler, ms CPU/s",
        "workers, ms CPU/s",
        "WAL, kB/s",
    ]);
    // Each is refreshed once before it is trusted to have nothing to do.
    thread::sleep(Duration::from_secs(70));
    table.push(watch(&mut client, "schedule 1m", || Ok(()))?);
    let mut writer = server::connect(DATABASE)?;
    let busy = || {
        writer.batch_execute(
            "INSERT INTO s0 VALUES ((SELECT coalesce(max(id), 0) + 1 FROM s0), 1)",
        )?;
        Ok(())
    };
    table.push(watch(&mut client, "schedule 1m, 100 commits a second to one source", busy)?);
    client.batch_execute(
        "SELECT pgstream.alter_stream_table(format('%s.%s', pgs_schema, pgs_name), schedule => '1s')
         FROM pgstream.pgs_stream_tables",
    )?;
    thread::sleep(Duration::from_secs(10));
    table.push(watch(&mut client, "schedule 1s", || Ok(()))?);
    Ok(table)
}

fn watch(
    client: &mut Client,
    name: &str,
    mut meanwhile: impl FnMut() -> Result<()>,
) -> Result<Vec<String>> {
    let before = (used(client, "scheduler")?, used(client, "refresh worker")?, wal(client)?);
    let start = Instant::now();
    while start.elapsed() < WATCH {
        meanwhile()?;
        thread::sleep(Duration::from_millis(10));
    }
    let after = (used(client, "scheduler")?, used(client, "refresh worker")?, wal(client)?);
    let rate = |it: f64| format!("{:.1}", it / start.elapsed().as_secs_f64());
    Ok(vec![
        name.to_owned(),
        rate(after.0 - before.0),
        rate((after.1 - before.1).max(0.0)),
        rate(after.2 - before.2),
    ])
}

/// The CPU time of the processes of that kind in this database, in milliseconds.
fn used(client: &mut Client, kind: &str) -> Result<f64> {
    let mut ticks = 0.0;
    let sql = "SELECT pid FROM pg_stat_activity
               WHERE backend_type = 'pg_stream ' || $1 AND datname = current_database()";
    for row in client.query(sql, &[&kind])? {
        let pid: i32 = row.get(0);
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit_once(')').map_or("", |it| it.1).split_whitespace();
        let times = fields.skip(11).take(2).map(str::parse::<f64>);
        ticks += times.sum::<std::result::Result<f64, _>>()?;
    }
    // The clock that /proc counts in ticks a hundred times a second on Linux.
    Ok(ticks * 10.0)
}

/// Kilobytes of WAL written so far.
fn wal(client: &mut Client) -> Result<f64> {
    let sql = "SELECT ((pg_current_wal_insert_lsn() - '0/0') / 1024)::float8";
    Ok(client.query_one(sql, &[])?.get(0))
}
