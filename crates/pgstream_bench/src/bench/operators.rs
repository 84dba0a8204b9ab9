//! One query for each operator: refresh after a small change, against evaluating the query again and,
//! where it can be written, against SQL by hand.

use postgres::Client;

use super::change::{Keys, change};
use super::matrix::{BY_HAND, create_sources, create_stream_table};
use super::report::Report;
use super::{Options, report};
use crate::Result;
use crate::server::{difference, last_refresh, median, milliseconds, timed};

/// One query for an operator. Its rows are determined, so that they can be compared.
#[derive(Debug, Clone, Copy)]
struct Operator {
    name: &'static str,
    query: &'static str,
    /// An index that `explain_st` would name, beside those of the tables.
    index: Option<&'static str>,
    floor: Option<Floor>,
}

/// The same by hand, for changes of `fact`.
#[derive(Debug, Clone, Copy)]
struct Floor {
    /// The key of the hand-made table.
    key: &'static str,
    /// What fills it, where that is more than the query.
    by_hand: Option<&'static str>,
    /// Applies the changes in `hand_change` to the hand-made table `hand`.
    apply: &'static str,
}

const fn operator(name: &'static str, query: &'static str) -> Operator {
    Operator { name, query, index: None, floor: None }
}

impl Operator {
    const fn with_index(self, index: &'static str) -> Self {
        Self { index: Some(index), ..self }
    }

    const fn with_floor(
        self,
        key: &'static str,
        by_hand: Option<&'static str>,
        apply: &'static str,
    ) -> Self {
        Self { floor: Some(Floor { key, by_hand, apply }), ..self }
    }
}

const OPERATORS: [Operator; 32] = [
    operator(
        "LEFT JOIN",
        "SELECT f.id, f.amount, c.name FROM fact f LEFT JOIN customer c ON c.id = f.customer_id AND c.segment <> 'segment 3'",
    )
    .with_floor("id", None, "
            MERGE INTO hand h
            USING (SELECT f.*, c.name FROM hand_change f
                   LEFT JOIN customer c ON c.id = f.new_customer_id AND c.segment <> 'segment 3') f
                ON h.id = f.id
            WHEN MATCHED AND f.op = 'D' THEN DELETE
            WHEN MATCHED THEN UPDATE SET amount = new_amount, name = f.name
            WHEN NOT MATCHED AND f.op <> 'D' THEN INSERT VALUES (f.id, new_amount, f.name)"),
    operator(
        "FULL JOIN",
        "SELECT f.id, f.amount, c.id AS customer FROM fact f FULL JOIN customer c ON c.id = f.customer_id",
    ),
    operator(
        "LEFT JOIN + aggregate",
        "SELECT c.id, count(f.id) AS n, sum(f.amount) AS total FROM customer c LEFT JOIN fact f ON f.customer_id = c.id GROUP BY c.id",
    )
    .with_floor("id", None, "
            UPDATE hand h SET n = h.n + d.n,
                total = CASE WHEN h.n + d.n > 0 THEN coalesce(h.total, 0) + d.total END
            FROM (SELECT customer, sum(w) AS n, sum(amount) AS total
                  FROM (SELECT old_customer_id AS customer, -1 AS w, -old_amount AS amount
                        FROM hand_change WHERE op <> 'I'
                        UNION ALL
                        SELECT new_customer_id, 1, new_amount FROM hand_change WHERE op <> 'D') d
                  GROUP BY customer) d
            WHERE h.id = d.customer"),
    operator(
        "EXISTS",
        "SELECT c.id, c.name FROM customer c WHERE EXISTS (SELECT FROM fact f WHERE f.customer_id = c.id AND f.amount > 900)",
    )
    .with_floor("id", Some("SELECT c.id, c.name, count(*) AS n FROM customer c JOIN fact f ON f.customer_id = c.id AND f.amount > 900 GROUP BY c.id"), "
            MERGE INTO hand h
            USING (SELECT c.id, c.name, sum(w) AS n
                   FROM (SELECT old_customer_id AS customer, -1 AS w FROM hand_change
                         WHERE old_amount > 900
                         UNION ALL
                         SELECT new_customer_id, 1 FROM hand_change WHERE new_amount > 900) d
                   JOIN customer c ON c.id = d.customer GROUP BY c.id HAVING sum(w) <> 0) d
                ON h.id = d.id
            WHEN MATCHED AND h.n + d.n = 0 THEN DELETE
            WHEN MATCHED THEN UPDATE SET n = h.n + d.n
            WHEN NOT MATCHED THEN INSERT VALUES (d.id, d.name, d.n)"),
    operator(
        "NOT EXISTS",
        "SELECT c.id, c.name FROM customer c WHERE NOT EXISTS (SELECT FROM fact f WHERE f.customer_id = c.id AND f.amount > 900)",
    ),
    operator(
        "NOT IN",
        "SELECT c.id, c.name FROM customer c WHERE c.id NOT IN (SELECT f.customer_id FROM fact f WHERE f.amount > 900)",
    ),
    operator(
        "IN as a value",
        "SELECT f.id, f.customer_id IN (SELECT id FROM customer WHERE segment = 'segment 3') AS is_in FROM fact f",
    )
    .with_floor("id", None, "
            MERGE INTO hand h
            USING (SELECT f.*, EXISTS (SELECT FROM customer c WHERE c.id = f.new_customer_id
                                       AND c.segment = 'segment 3') AS is_in
                   FROM hand_change f) f ON h.id = f.id
            WHEN MATCHED AND f.op = 'D' THEN DELETE
            WHEN MATCHED THEN UPDATE SET is_in = f.is_in
            WHEN NOT MATCHED AND f.op <> 'D' THEN INSERT VALUES (f.id, f.is_in)"),
    operator(
        "scalar aggregate, correlated",
        "SELECT c.id, (SELECT sum(f.amount) FROM fact f WHERE f.customer_id = c.id) AS total FROM customer c",
    )
    .with_floor("id", Some("SELECT c.id, sum(f.amount) AS total, count(f.id) AS n FROM customer c LEFT JOIN fact f ON f.customer_id = c.id GROUP BY c.id"), "
            UPDATE hand h SET n = h.n + d.n,
                total = CASE WHEN h.n + d.n > 0 THEN coalesce(h.total, 0) + d.total END
            FROM (SELECT customer, sum(w) AS n, sum(amount) AS total
                  FROM (SELECT old_customer_id AS customer, -1 AS w, -old_amount AS amount
                        FROM hand_change WHERE op <> 'I'
                        UNION ALL
                        SELECT new_customer_id, 1, new_amount FROM hand_change WHERE op <> 'D') d
                  GROUP BY customer) d
            WHERE h.id = d.customer"),
    operator(
        "scalar look-up",
        "SELECT f.id, (SELECT c.name FROM customer c WHERE c.id = f.customer_id) AS name FROM fact f",
    )
    .with_floor("id", None, "
            MERGE INTO hand h
            USING (SELECT f.*, (SELECT c.name FROM customer c WHERE c.id = f.new_customer_id)
                   FROM hand_change f) f ON h.id = f.id
            WHEN MATCHED AND f.op = 'D' THEN DELETE
            WHEN MATCHED THEN UPDATE SET name = f.name
            WHEN NOT MATCHED AND f.op <> 'D' THEN INSERT VALUES (f.id, f.name)"),
    operator(
        "first of each, by LATERAL",
        "SELECT c.id, q.id AS fact FROM customer c LEFT JOIN LATERAL (SELECT f.id FROM fact f WHERE f.customer_id = c.id ORDER BY f.amount DESC, f.id LIMIT 1) q ON true",
    )
    .with_index("fact (customer_id, amount)"),
    operator(
        "set-returning function",
        "SELECT f.id, g FROM fact f, generate_series(1, f.status) g",
    )
    .with_floor("id, g", None, "
            MERGE INTO hand h
            USING (SELECT c.id, g, g <= coalesce(new_status, 0) AS is_there
                   FROM hand_change c, generate_series(1, greatest(old_status, new_status)) g) c
                ON h.id = c.id AND h.g = c.g
            WHEN MATCHED AND NOT is_there THEN DELETE
            WHEN NOT MATCHED AND is_there THEN INSERT VALUES (c.id, c.g)"),
    operator(
        "min and max",
        "SELECT customer_id, min(amount) AS least, max(amount) AS greatest FROM fact GROUP BY customer_id",
    )
    .with_index("fact (customer_id, amount)")
    .with_floor("customer_id", None, "
            MERGE INTO hand h
            USING (SELECT k.customer_id,
                          (SELECT min(f.amount) FROM fact f WHERE f.customer_id = k.customer_id) AS a,
                          (SELECT max(f.amount) FROM fact f WHERE f.customer_id = k.customer_id) AS z
                   FROM (SELECT old_customer_id AS customer_id FROM hand_change WHERE op <> 'I'
                         UNION
                         SELECT new_customer_id FROM hand_change WHERE op <> 'D') k) k ON h.customer_id = k.customer_id
            WHEN MATCHED AND a IS NULL THEN DELETE
            WHEN MATCHED THEN UPDATE SET least = a, greatest = z
            WHEN NOT MATCHED AND a IS NOT NULL THEN INSERT VALUES (k.customer_id, a, z)"),
    operator(
        "aggregate by group",
        "SELECT customer_id, string_agg(note, ',' ORDER BY id) AS notes FROM fact GROUP BY customer_id",
    )
    .with_floor("customer_id", None, "
            MERGE INTO hand h
            USING (SELECT k.customer_id,
                          (SELECT string_agg(f.note, ',' ORDER BY f.id) FROM fact f
                           WHERE f.customer_id = k.customer_id) AS notes
                   FROM (SELECT old_customer_id AS customer_id FROM hand_change WHERE op <> 'I'
                         UNION
                         SELECT new_customer_id FROM hand_change WHERE op <> 'D') k) k ON h.customer_id = k.customer_id
            WHEN MATCHED AND k.notes IS NULL THEN DELETE
            WHEN MATCHED THEN UPDATE SET notes = k.notes
            WHEN NOT MATCHED AND k.notes IS NOT NULL THEN INSERT VALUES (k.customer_id, k.notes)"),
    operator(
        "aggregate of aggregates",
        "SELECT n, count(*) AS customers FROM (SELECT customer_id, count(*) AS n FROM fact GROUP BY customer_id) q GROUP BY n",
    ),
    operator(
        "ROLLUP",
        "SELECT region, status, count(*) AS n, sum(amount) AS total FROM fact GROUP BY ROLLUP (region, status)",
    ),
    operator(
        "DISTINCT ON",
        "SELECT DISTINCT ON (customer_id) customer_id, id, amount FROM fact ORDER BY customer_id, amount DESC, id",
    )
    .with_index("fact (customer_id, amount)")
    .with_floor("customer_id", None, "
            MERGE INTO hand h
            USING (SELECT k.customer_id, f.id, f.amount
                   FROM (SELECT old_customer_id AS customer_id FROM hand_change WHERE op <> 'I'
                         UNION
                         SELECT new_customer_id FROM hand_change WHERE op <> 'D') k LEFT JOIN LATERAL
                        (SELECT f.id, f.amount FROM fact f WHERE f.customer_id = k.customer_id
                         ORDER BY f.amount DESC, f.id LIMIT 1) f ON true) k
                ON h.customer_id = k.customer_id
            WHEN MATCHED AND k.id IS NULL THEN DELETE
            WHEN MATCHED THEN UPDATE SET id = k.id, amount = k.amount
            WHEN NOT MATCHED AND k.id IS NOT NULL THEN INSERT VALUES (k.customer_id, k.id, k.amount)"),
    operator(
        "window",
        "SELECT id, customer_id, rank() OVER (PARTITION BY customer_id ORDER BY amount DESC) AS place, sum(amount) OVER (PARTITION BY customer_id) AS total FROM fact",
    ),
    operator(
        "UNION",
        "SELECT customer_id AS id FROM fact WHERE status = 1 UNION SELECT id FROM customer WHERE segment = 'segment 3'",
    ),
    operator(
        "INTERSECT",
        "SELECT customer_id AS id FROM fact WHERE status = 1 INTERSECT SELECT id FROM customer WHERE segment = 'segment 3'",
    ),
    operator(
        "EXCEPT ALL",
        "SELECT customer_id AS id FROM fact EXCEPT ALL SELECT id FROM customer",
    ),
    operator(
        "WITH RECURSIVE",
        "WITH RECURSIVE r AS (SELECT id, customer_id, 1 AS depth FROM fact WHERE status = 1 AND region = 3 UNION ALL SELECT c.id, c.id / 7, r.depth + 1 FROM r JOIN customer c ON c.id = r.customer_id / 7 WHERE r.depth < 4) SELECT id, customer_id, depth FROM r",
    ),
    operator(
        "WITH RECURSIVE, UNION",
        "WITH RECURSIVE r AS (SELECT id FROM customer WHERE segment = 'segment 3' UNION SELECT (f.id % 9973)::int FROM r JOIN fact f ON f.customer_id = r.id WHERE f.status = 1) SELECT id FROM r",
    ),
    operator(
        "LIMIT in a sub-query",
        "SELECT q.id, q.amount, c.name FROM (SELECT id, customer_id, amount FROM fact ORDER BY amount DESC, id LIMIT 100) q JOIN customer c ON c.id = q.customer_id",
    )
    .with_index("fact (amount)"),
    operator(
        "comparison JOIN",
        "SELECT f.id, p.id AS product FROM fact f JOIN product p ON p.id BETWEEN f.product_id AND f.product_id + f.status",
    ),
    operator(
        "op ALL",
        "SELECT c.id FROM customer c WHERE 900 > ALL (SELECT f.amount FROM fact f WHERE f.customer_id = c.id)",
    ),
    operator(
        "WITH, used twice",
        "WITH totals AS (SELECT customer_id, region, sum(amount) AS total FROM fact GROUP BY customer_id, region) SELECT a.customer_id, a.region, a.total - b.total AS more FROM totals a JOIN totals b ON b.customer_id = a.customer_id AND b.region = a.region + 1",
    ),
    operator(
        "distinct values of few groups",
        "SELECT region, count(DISTINCT customer_id) AS customers, count(DISTINCT product_id) FILTER (WHERE status = 1) AS products, sum(amount) AS total FROM fact GROUP BY region",
    ),
    operator(
        "extremum of few groups",
        "SELECT region, min(amount) AS least, max(amount) AS greatest FROM fact GROUP BY region",
    )
    .with_index("fact (region, amount)"),
    operator(
        "bool_and and bool_or",
        "SELECT region, bool_and(amount >= 0) AS is_positive, bool_or(status = 2) AS has_two FROM fact GROUP BY region",
    ),
    operator(
        "CUBE",
        "SELECT region, status, count(*) AS n FROM fact GROUP BY CUBE (region, status)",
    ),
    operator(
        "first rows of each",
        "SELECT region, id, amount FROM (SELECT region, id, amount, row_number() OVER (PARTITION BY region ORDER BY amount DESC, id) AS place FROM fact) q WHERE place <= 10",
    )
    .with_index("fact (region, amount)"),
    operator(
        "JSON_TABLE",
        "SELECT f.id, j.x FROM fact f, JSON_TABLE(('[' || f.status::text || ',' || f.region::text || ']')::jsonb, '$[*]' COLUMNS (x int PATH '$')) j",
    ),
];

/// One operator after one change, in milliseconds.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: &'static str,
    pub rows: usize,
    pub changed: usize,
    pub differential: f64,
    /// By hand, where that can be written.
    pub floor: Option<f64>,
    pub view: f64,
    /// Whether some part is evaluated as a whole.
    pub is_whole: bool,
}

pub fn run(client: &mut Client, options: &Options, report: &mut Report) -> Result<()> {
    for rows in options.sizes().into_iter().filter(|it| *it >= 100_000) {
        create_sources(client, rows)?;
        let mut keys = Keys::new(rows);
        for operator in &OPERATORS {
            if let Err(error) = measure(client, operator, rows, &mut keys, report) {
                report.fail(format!("{}, {rows} rows: {error}", operator.name));
                client.batch_execute("ROLLBACK")?;
            }
            drop_all(client)?;
        }
    }
    Ok(())
}

fn measure(
    client: &mut Client,
    operator: &Operator,
    rows: usize,
    keys: &mut Keys,
    report: &mut report::Report,
) -> Result<()> {
    let Operator { name, query, index, floor } = *operator;
    if let Some(index) = index {
        let (table, columns) = index.split_once(' ').expect("a table and its columns");
        client.batch_execute(&format!("CREATE INDEX operator_index ON {table} {columns}"))?;
    }
    create_stream_table(client, "st_operator", query)?;
    client.batch_execute(&format!("CREATE MATERIALIZED VIEW mat_view AS {query}"))?;
    if let Some(Floor { key, by_hand, apply }) = floor {
        client.batch_execute(&format!(
            "CREATE TABLE hand WITH (autovacuum_enabled = off) AS {};
             ALTER TABLE hand ADD PRIMARY KEY ({key});
             PREPARE by_hand AS {apply}; PREPARE consume AS DELETE FROM hand_change",
            by_hand.unwrap_or(query)
        ))?;
    }
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
        let mut by_hand = Vec::new();
        // The first run is for warming up.
        for run in 0..=runs {
            change(client, keys, changed)?;
            if floor.is_some() {
                // New statistics made the plan invalid: planned again, not timed.
                client.batch_execute("EXPLAIN EXECUTE by_hand; EXPLAIN EXECUTE consume")?;
            }
            // In turns: whoever comes second finds the caches warm.
            for is_by_hand in [run % 2 == 0, run % 2 == 1] {
                let times = if is_by_hand { &mut by_hand } else { &mut differential };
                let (took, ()) = match (is_by_hand, floor) {
                    (true, None) => continue,
                    (true, Some(_)) => timed(|| Ok(client.batch_execute(BY_HAND)?))?,
                    (false, _) => timed(|| Ok(client.execute(&refresh, &[]).map(|_| ())?))?,
                };
                if run > 0 {
                    times.push(milliseconds(took));
                }
            }
            if run == runs {
                let (took, _) = timed(|| Ok(client.execute(&view, &[])?))?;
                views.push(milliseconds(took));
            }
        }
        for table in ["st_operator"].into_iter().chain(floor.map(|_| "hand")) {
            let wrong = difference(client, table, "mat_view")?;
            if wrong != 0 {
                return Err(format!("{wrong} rows of {table} differ from the query").into());
            }
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
            floor: floor.map(|_| median(by_hand)),
            view: median(views),
            is_whole: tree.contains("Opaque"),
        };
        eprintln!(
            "{name}, {rows} rows, {changed} changed: {:.2} ms, by hand {:.2}, evaluated again {:.1} ms",
            row.differential,
            row.floor.unwrap_or(f64::NAN),
            row.view
        );
        report.operators.push(row);
    }
    Ok(())
}

fn drop_all(client: &mut Client) -> Result<()> {
    client.batch_execute(
        "DROP MATERIALIZED VIEW IF EXISTS mat_view; DROP TABLE IF EXISTS hand;
         DROP INDEX IF EXISTS operator_index",
    )?;
    let prepared = "SELECT FROM pg_prepared_statements WHERE name = 'by_hand'";
    if client.query_opt(prepared, &[])?.is_some() {
        client.batch_execute("DEALLOCATE by_hand; DEALLOCATE consume")?;
    }
    if client.query_opt("SELECT FROM pg_class WHERE relname = 'st_operator'", &[])?.is_some() {
        client.execute("SELECT pgstream.drop_stream_table('st_operator')", &[])?;
    }
    Ok(())
}
