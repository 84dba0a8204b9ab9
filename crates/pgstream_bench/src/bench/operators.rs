//! One query for each operator: refresh after a small change, against evaluating the query again.

use postgres::Client;

use super::change::{Keys, change};
use super::matrix::{create_sources, create_stream_table};
use super::report::Report;
use super::{Options, report};
use crate::Result;
use crate::server::{difference, last_refresh, median, milliseconds, timed};

/// Names and queries. Their rows are determined, so that they can be compared.
const OPERATORS: [(&str, &str); 23] = [
    (
        "LEFT JOIN",
        "SELECT f.id, f.amount, c.name FROM fact f LEFT JOIN customer c ON c.id = f.customer_id AND c.segment <> 'segment 3'",
    ),
    (
        "FULL JOIN",
        "SELECT f.id, f.amount, c.id AS customer FROM fact f FULL JOIN customer c ON c.id = f.customer_id",
    ),
    (
        "LEFT JOIN + aggregate",
        "SELECT c.id, count(f.id) AS n, sum(f.amount) AS total FROM customer c LEFT JOIN fact f ON f.customer_id = c.id GROUP BY c.id",
    ),
    (
        "EXISTS",
        "SELECT c.id, c.name FROM customer c WHERE EXISTS (SELECT FROM fact f WHERE f.customer_id = c.id AND f.amount > 900)",
    ),
    (
        "NOT EXISTS",
        "SELECT c.id, c.name FROM customer c WHERE NOT EXISTS (SELECT FROM fact f WHERE f.customer_id = c.id AND f.amount > 900)",
    ),
    (
        "NOT IN",
        "SELECT c.id, c.name FROM customer c WHERE c.id NOT IN (SELECT f.customer_id FROM fact f WHERE f.amount > 900)",
    ),
    (
        "IN as a value",
        "SELECT f.id, f.customer_id IN (SELECT id FROM customer WHERE segment = 'segment 3') AS is_in FROM fact f",
    ),
    (
        "scalar aggregate, correlated",
        "SELECT c.id, (SELECT sum(f.amount) FROM fact f WHERE f.customer_id = c.id) AS total FROM customer c",
    ),
    (
        "scalar look-up",
        "SELECT f.id, (SELECT c.name FROM customer c WHERE c.id = f.customer_id) AS name FROM fact f",
    ),
    (
        "first of each, by LATERAL",
        "SELECT c.id, q.id AS fact FROM customer c LEFT JOIN LATERAL (SELECT f.id FROM fact f WHERE f.customer_id = c.id ORDER BY f.amount DESC, f.id LIMIT 1) q ON true",
    ),
    ("set-returning function", "SELECT f.id, g FROM fact f, generate_series(1, f.status) g"),
    (
        "min and max",
        "SELECT customer_id, min(amount) AS least, max(amount) AS greatest FROM fact GROUP BY customer_id",
    ),
    (
        "aggregate by group",
        "SELECT customer_id, string_agg(note, ',' ORDER BY id) AS notes FROM fact GROUP BY customer_id",
    ),
    (
        "aggregate of aggregates",
        "SELECT n, count(*) AS customers FROM (SELECT customer_id, count(*) AS n FROM fact GROUP BY customer_id) q GROUP BY n",
    ),
    (
        "ROLLUP",
        "SELECT region, status, count(*) AS n, sum(amount) AS total FROM fact GROUP BY ROLLUP (region, status)",
    ),
    (
        "DISTINCT ON",
        "SELECT DISTINCT ON (customer_id) customer_id, id, amount FROM fact ORDER BY customer_id, amount DESC, id",
    ),
    (
        "window",
        "SELECT id, customer_id, rank() OVER (PARTITION BY customer_id ORDER BY amount DESC) AS place, sum(amount) OVER (PARTITION BY customer_id) AS total FROM fact",
    ),
    (
        "UNION",
        "SELECT customer_id AS id FROM fact WHERE status = 1 UNION SELECT id FROM customer WHERE segment = 'segment 3'",
    ),
    (
        "INTERSECT",
        "SELECT customer_id AS id FROM fact WHERE status = 1 INTERSECT SELECT id FROM customer WHERE segment = 'segment 3'",
    ),
    ("EXCEPT ALL", "SELECT customer_id AS id FROM fact EXCEPT ALL SELECT id FROM customer"),
    (
        "WITH RECURSIVE",
        "WITH RECURSIVE r AS (SELECT id, customer_id, 1 AS depth FROM fact WHERE status = 1 AND region = 3 UNION ALL SELECT c.id, c.id / 7, r.depth + 1 FROM r JOIN customer c ON c.id = r.customer_id / 7 WHERE r.depth < 4) SELECT id, customer_id, depth FROM r",
    ),
    (
        "WITH RECURSIVE, UNION",
        "WITH RECURSIVE r AS (SELECT id FROM customer WHERE segment = 'segment 3' UNION SELECT (f.id % 9973)::int FROM r JOIN fact f ON f.customer_id = r.id WHERE f.status = 1) SELECT id FROM r",
    ),
    (
        "LIMIT in a sub-query",
        "SELECT q.id, q.amount, c.name FROM (SELECT id, customer_id, amount FROM fact ORDER BY amount DESC, id LIMIT 100) q JOIN customer c ON c.id = q.customer_id",
    ),
];

/// One operator after one change, in milliseconds.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: &'static str,
    pub rows: usize,
    pub changed: usize,
    pub differential: f64,
    pub view: f64,
    /// Whether some part is evaluated as a whole.
    pub is_whole: bool,
}

pub fn run(client: &mut Client, options: &Options, report: &mut Report) -> Result<()> {
    for rows in options.sizes().into_iter().filter(|it| *it >= 100_000) {
        create_sources(client, rows)?;
        let mut keys = Keys::new(rows);
        for (name, query) in OPERATORS {
            if let Err(error) = measure(client, (name, query), rows, &mut keys, report) {
                report.fail(format!("{name}, {rows} rows: {error}"));
                client.batch_execute("ROLLBACK")?;
            }
            drop_all(client)?;
        }
    }
    Ok(())
}

fn measure(
    client: &mut Client,
    (name, query): (&'static str, &str),
    rows: usize,
    keys: &mut Keys,
    report: &mut report::Report,
) -> Result<()> {
    create_stream_table(client, "st_operator", query)?;
    client.batch_execute(&format!("CREATE MATERIALIZED VIEW mat_view AS {query}"))?;
    // Its tables grew by the filling, and the planner should know.
    client.batch_execute("VACUUM ANALYZE")?;
    let tree: String = client
        .query_one(
            "SELECT value FROM pgstream.explain_st('st_operator') WHERE property = 'operator_tree'",
            &[],
        )?
        .get(0);
    let refresh = client.prepare("SELECT pgstream.refresh_stream_table('st_operator')")?;
    let view = client.prepare("REFRESH MATERIALIZED VIEW mat_view")?;
    for (changed, runs) in [(1, 9), (rows / 100, 3)] {
        let (mut differential, mut views) = (Vec::new(), Vec::new());
        // The first run is for warming up.
        for run in 0..=runs {
            change(client, keys, changed)?;
            let (took, _) = timed(|| Ok(client.execute(&refresh, &[])?))?;
            if run > 0 {
                differential.push(milliseconds(took));
            }
            if run == runs {
                let (took, _) = timed(|| Ok(client.execute(&view, &[])?))?;
                views.push(milliseconds(took));
            }
        }
        let wrong = difference(client, "st_operator", "mat_view")?;
        if wrong != 0 {
            return Err(format!("{wrong} rows differ from the query").into());
        }
        match last_refresh(client, "st_operator")? {
            Some(row) if row.action == "DIFFERENTIAL" => {}
            row => return Err(format!("the last refresh was not differential: {row:?}").into()),
        }
        let row = Row {
            name,
            rows,
            changed,
            differential: median(differential),
            view: median(views),
            is_whole: tree.contains("Opaque"),
        };
        eprintln!(
            "{name}, {rows} rows, {changed} changed: {:.2} ms, evaluated again {:.1} ms",
            row.differential, row.view
        );
        report.operators.push(row);
    }
    Ok(())
}

fn drop_all(client: &mut Client) -> Result<()> {
    client.batch_execute("DROP MATERIALIZED VIEW IF EXISTS mat_view")?;
    if client.query_opt("SELECT FROM pg_class WHERE relname = 'st_operator'", &[])?.is_some() {
        client.execute("SELECT pgstream.drop_stream_table('st_operator')", &[])?;
    }
    Ok(())
}
