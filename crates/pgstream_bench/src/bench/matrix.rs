//! Every shape, size and number of changes: refresh by each method.

use postgres::{Client, Statement};

use super::change::{Keys, change};
use super::report::{Cell, Report};
use super::shapes::{HAND_CHANGE, SHAPES, SOURCES, Shape};
use super::{Options, explain};
use crate::server::{difference, last_refresh, median, milliseconds, timed};
use crate::{Result, table::ms};

/// The methods' statements, prepared in the session that measures.
struct Methods {
    differential: Statement,
    full: Statement,
    view: Statement,
}

/// Applies the changes and consumes just those, in one round trip. A change that comes in between
/// must stay: hence the isolation level.
pub const BY_HAND: &str =
    "BEGIN ISOLATION LEVEL REPEATABLE READ; EXECUTE by_hand; EXECUTE consume; COMMIT";

pub fn run(client: &mut Client, options: &Options, report: &mut Report) -> Result<()> {
    let wanted = |shape: &&Shape| options.shape.as_deref().is_none_or(|name| name == shape.name);
    let shapes: Vec<&Shape> = SHAPES.iter().filter(wanted).collect();
    if shapes.is_empty() {
        let names: Vec<_> = SHAPES.iter().map(|shape| shape.name).collect();
        return Err(format!("the shapes are: {}", names.join(", ")).into());
    }
    for rows in options.sizes() {
        create_sources(client, rows)?;
        let mut keys = Keys::new(rows);
        for shape in &shapes {
            eprintln!("{}, {rows} rows", shape.name);
            if let Err(error) = measure(client, (shape, rows), &mut keys, options, report) {
                // The other shapes are still worth measuring.
                report.fail(format!("{}, {rows} rows: {error}", shape.name));
                client.batch_execute("ROLLBACK")?;
            }
            drop_all(client)?;
        }
    }
    Ok(())
}

/// The source tables at a size, in place of those of another.
pub fn create_sources(client: &mut Client, rows: usize) -> Result<()> {
    client.batch_execute("DROP TABLE IF EXISTS fact, customer, product, hand_change")?;
    client.batch_execute(&SOURCES.replace("$ROWS", &rows.to_string()))?;
    client.batch_execute(HAND_CHANGE)?;
    client.batch_execute("VACUUM ANALYZE")?;
    Ok(())
}

fn measure(
    client: &mut Client,
    (shape, rows): (&Shape, usize),
    keys: &mut Keys,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let methods = create_all(client, shape, rows, report)?;
    let mut counts = vec![1, 100, rows / 100, rows / 10];
    counts.dedup();
    for count in counts {
        client.batch_execute("VACUUM ANALYZE")?;
        client.batch_execute("CHECKPOINT")?;
        let cell = measure_cell(client, &methods, (shape, rows, count), keys, options)?;
        eprintln!(
            "  {count} changed: by hand {}, differential {}, full {}, view {} ms",
            ms(cell.by_hand),
            ms(cell.differential),
            ms(cell.full),
            ms(cell.view)
        );
        if options.explain && cell.verdict().is_some_and(|passed| !passed) {
            change(client, keys, count)?;
            println!("-- {}, {rows} rows, {count} changed", shape.name);
            explain::refresh("st_differential")?;
            client.batch_execute(BY_HAND)?;
        }
        report.cells.push(cell);
    }
    Ok(())
}

/// Creates the shape's tables, and prepares what maintains them.
fn create_all(
    client: &mut Client,
    shape: &Shape,
    rows: usize,
    report: &mut Report,
) -> Result<Methods> {
    let (create_took, _) = timed(|| create_stream_table(client, "st_differential", shape.query))?;
    let (table_took, ()) = timed(|| {
        Ok(client.batch_execute(&format!(
            "CREATE TABLE hand WITH (autovacuum_enabled = off) AS {};
             ALTER TABLE hand ADD PRIMARY KEY ({})",
            shape.by_hand, shape.key
        ))?)
    })?;
    report.creations.push((shape.name, rows, milliseconds(create_took), milliseconds(table_took)));
    client.execute(
        "SELECT pgstream.create_stream_table('st_full', $1, '1d', 'FULL')",
        &[&shape.query],
    )?;
    client.batch_execute(&format!("CREATE MATERIALIZED VIEW mat_view AS {}", shape.query))?;
    client.batch_execute(&format!(
        "PREPARE by_hand AS {}; PREPARE consume AS DELETE FROM hand_change",
        shape.apply
    ))?;
    Ok(Methods {
        differential: client.prepare("SELECT pgstream.refresh_stream_table('st_differential')")?,
        full: client.prepare("SELECT pgstream.refresh_stream_table('st_full')")?,
        view: client.prepare("REFRESH MATERIALIZED VIEW mat_view")?,
    })
}

/// A stream table that only this program refreshes.
pub fn create_stream_table(client: &mut Client, name: &str, query: &str) -> Result<()> {
    client.execute(
        "SELECT pgstream.create_stream_table($1, $2, schedule => '1d')",
        &[&name, &query],
    )?;
    Ok(())
}

fn drop_all(client: &mut Client) -> Result<()> {
    client.batch_execute(
        "DROP TABLE IF EXISTS hand, expected; DROP MATERIALIZED VIEW IF EXISTS mat_view",
    )?;
    let prepared = "SELECT FROM pg_prepared_statements WHERE name = 'by_hand'";
    if client.query_opt(prepared, &[])?.is_some() {
        client.batch_execute("DEALLOCATE by_hand; DEALLOCATE consume")?;
    }
    for name in ["st_differential", "st_full"] {
        let found = client.query_opt("SELECT FROM pg_class WHERE relname = $1", &[&name])?;
        if found.is_some() {
            client.execute("SELECT pgstream.drop_stream_table($1)", &[&name])?;
        }
    }
    Ok(())
}

/// Changes, and times each method on the change, several times; compares the results at the end.
fn measure_cell(
    client: &mut Client,
    methods: &Methods,
    (shape, rows, count): (&Shape, usize, usize),
    keys: &mut Keys,
    options: &Options,
) -> Result<Cell> {
    let (runs, slow_runs) = repetitions(rows, count, options.quick);
    let (mut by_hand, mut differential) = (Vec::new(), Vec::new());
    let (mut full, mut view) = (Vec::new(), Vec::new());
    // The first run is for warming up.
    for run in 0..=runs {
        change(client, keys, count)?;
        // New statistics made the plan of the SQL by hand invalid: planned again, not timed.
        client.batch_execute("EXPLAIN EXECUTE by_hand; EXPLAIN EXECUTE consume")?;
        // In turns: whoever comes second finds the caches warm.
        for is_by_hand in [run % 2 == 0, run % 2 == 1] {
            let (took, times) = if is_by_hand {
                (timed(|| Ok(client.batch_execute(BY_HAND)?))?.0, &mut by_hand)
            } else {
                let refresh = || Ok(client.execute(&methods.differential, &[])?);
                (timed(refresh)?.0, &mut differential)
            };
            if run > 0 {
                times.push(milliseconds(took));
            }
        }
        if run > 0 && run <= slow_runs {
            for (statement, times) in [(&methods.full, &mut full), (&methods.view, &mut view)] {
                let (took, _) = timed(|| Ok(client.execute(statement, &[])?))?;
                times.push(milliseconds(took));
            }
        }
    }
    check(client, shape)?;
    Ok(Cell {
        shape: shape.name,
        rows,
        changed: count,
        by_hand: median(by_hand),
        differential: median(differential),
        full: median(full),
        view: median(view),
    })
}

/// How often to run the fast methods, and the slow ones.
fn repetitions(rows: usize, count: usize, quick: bool) -> (usize, usize) {
    let fast = match count {
        0..=100 => 15,
        101..=10_000 => 7,
        _ => 3,
    };
    let slow = if rows >= 1_000_000 { 2 } else { 3 };
    if quick { (fast.min(7), 2) } else { (fast, slow) }
}

/// Fails unless the maintained tables equal the query, and the last refresh was incremental.
fn check(client: &mut Client, shape: &Shape) -> Result<()> {
    client.batch_execute(&format!("CREATE TEMP TABLE expected AS {}", shape.query))?;
    for table in ["st_differential", "hand"] {
        let wrong = difference(client, table, "expected")?;
        if wrong != 0 {
            return Err(format!("{table} differs from the query in {wrong} rows").into());
        }
    }
    client.batch_execute("DROP TABLE expected")?;
    match last_refresh(client, "st_differential")? {
        Some(row) if row.action == "DIFFERENTIAL" => Ok(()),
        row => Err(format!("the last refresh was not differential: {row:?}").into()),
    }
}
