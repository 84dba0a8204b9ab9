//! The tables of the soak and its stream tables, on three levels.

use crate::session::Session;

const TABLES: &str = "
    CREATE TABLE customer (id int PRIMARY KEY, region int, name text, credit numeric(12, 2));
    CREATE TABLE product (id int PRIMARY KEY, category text, price numeric(10, 2));
    CREATE TABLE sale (id serial PRIMARY KEY, customer int, product int, quantity int, note text);
    CREATE INDEX ON sale (customer);
    CREATE INDEX ON sale (product);
    CREATE TABLE event (kind int, amount int, payload jsonb);
    CREATE TABLE edge (a int, b int, PRIMARY KEY (a, b));
    CREATE TABLE measure (region int NOT NULL, at int NOT NULL, value float8) PARTITION BY LIST (region);
    CREATE TABLE measure_0 PARTITION OF measure FOR VALUES IN (0, 1, 2);
    CREATE TABLE measure_1 PARTITION OF measure FOR VALUES IN (3, 4);
    CREATE TABLE measure_2 PARTITION OF measure DEFAULT;
    INSERT INTO customer SELECT i, i % 8, 'c' || i, i FROM generate_series(1, 200) i;
    INSERT INTO product SELECT i, 'cat' || i % 6, i FROM generate_series(1, 50) i;
    INSERT INTO sale (customer, product, quantity) SELECT i % 200 + 1, i % 50 + 1, i % 9 FROM generate_series(1, 1000) i;
    INSERT INTO event SELECT i % 5, i % 11, jsonb_build_object('k', i % 3) FROM generate_series(1, 300) i;
    INSERT INTO edge SELECT i, i + 1 FROM generate_series(1, 20) i;
    INSERT INTO measure SELECT i % 8, i, i FROM generate_series(1, 200) i;";

/// Name, schedule and query, each after those that it reads.
const STREAM_TABLES: [(&str, &str, &str); 20] = [
    (
        "sale_full",
        "1s",
        "SELECT s.id, c.region, p.category, s.quantity, s.quantity * p.price AS total
         FROM sale s JOIN customer c ON c.id = s.customer JOIN product p ON p.id = s.product",
    ),
    (
        "by_customer",
        "CALCULATED",
        "SELECT customer, count(*) AS n, sum(quantity) AS q, max(quantity) AS most FROM sale GROUP BY customer",
    ),
    (
        "by_product",
        "CALCULATED",
        "SELECT product, count(*) AS n, sum(quantity) AS q, avg(quantity) AS mean FROM sale GROUP BY product",
    ),
    ("kinds", "1s", "SELECT DISTINCT kind, payload -> 'k' AS k FROM event"),
    (
        "ranked",
        "2s",
        "SELECT id, customer, quantity, row_number() OVER (PARTITION BY customer ORDER BY quantity, id) AS r,
                sum(quantity) OVER (PARTITION BY customer ORDER BY id) AS running FROM sale",
    ),
    (
        "reach",
        "2s",
        "WITH RECURSIVE r(a, b) AS (SELECT a, b FROM edge UNION SELECT r.a, e.b FROM r JOIN edge e ON e.a = r.b)
         SELECT a, b FROM r",
    ),
    ("per_region", "1s", "SELECT region, count(*) AS n, min(at) AS first, max(at) AS last FROM measure GROUP BY region"),
    (
        "lonely",
        "1s",
        "SELECT c.id, c.name FROM customer c WHERE NOT EXISTS (SELECT FROM sale s WHERE s.customer = c.id)",
    ),
    (
        "outer_side",
        "3s",
        "SELECT c.id, s.quantity, p.category FROM customer c LEFT JOIN sale s ON s.customer = c.id AND s.quantity > 5
         LEFT JOIN product p ON p.id = s.product",
    ),
    (
        "either",
        "1s",
        "SELECT region AS x FROM customer UNION SELECT kind FROM event EXCEPT SELECT region FROM measure WHERE value > 1000",
    ),
    (
        "events",
        "1s",
        "SELECT kind, count(*) AS n, count(DISTINCT amount) AS d, string_agg(amount::text, ',' ORDER BY amount) AS all_of
         FROM event WHERE amount > 2 GROUP BY kind",
    ),
    (
        "top_each",
        "2s",
        "SELECT c.id, t.quantity FROM customer c
         CROSS JOIN LATERAL (SELECT quantity FROM sale WHERE customer = c.id ORDER BY quantity DESC, id LIMIT 2) t",
    ),
    // Level two.
    (
        "by_region",
        "1s",
        "SELECT region, category, sum(total) AS total, count(*) AS n FROM sale_full GROUP BY region, category",
    ),
    (
        "by_region_of_customer",
        "CALCULATED",
        "SELECT c.region, sum(b.q) AS q, sum(b.n) AS n FROM by_customer b JOIN customer c ON c.id = b.customer GROUP BY c.region",
    ),
    ("best", "1s", "SELECT customer, id FROM ranked WHERE r = 1"),
    ("degrees", "2s", "SELECT a, count(*) AS n FROM reach GROUP BY a"),
    ("all_customers", "CALCULATED", "SELECT sum(n) AS n, sum(q) AS q FROM by_customer"),
    ("all_products", "CALCULATED", "SELECT sum(n) AS n, sum(q) AS q FROM by_product"),
    // Level three; the second is the tip of a diamond.
    (
        "summary",
        "1s",
        "SELECT r.region, r.q, x.total, rank() OVER (ORDER BY r.q DESC NULLS LAST, r.region) AS place
         FROM by_region_of_customer r LEFT JOIN (SELECT region, sum(total) AS total FROM by_region GROUP BY region) x USING (region)",
    ),
    (
        "agreement",
        "1s",
        "SELECT c.n AS customers, p.n AS products, c.q - p.q AS difference FROM all_customers c, all_products p",
    ),
];

/// Where changes are captured from the write-ahead log, all but those of the partitioned table.
const WHOLE_ROWS: &str = "
    ALTER TABLE customer REPLICA IDENTITY FULL;
    ALTER TABLE product REPLICA IDENTITY FULL;
    ALTER TABLE sale REPLICA IDENTITY FULL;
    ALTER TABLE event REPLICA IDENTITY FULL;
    ALTER TABLE edge REPLICA IDENTITY FULL;";

pub fn create(session: &mut Session, wal: bool) {
    session.run(TABLES);
    if wal {
        session.run(WHOLE_ROWS);
    }
    for (name, schedule, query) in STREAM_TABLES {
        session.run(&format!(
            "SELECT pgstream.create_stream_table('{name}', $q${query}$q$, '{schedule}')"
        ));
    }
    session.run(&format!(
        "SELECT pgstream.create_stream_table('{SLEEPER}', $q${SLEEPERS_QUERY}$q$, '1s')"
    ));
    sleep(session);
    session.run("CREATE INDEX ON by_customer (customer); CREATE INDEX ON sale_full (region)");
}

/// It is suspended but for checkpoints.
pub const SLEEPER: &str = "sleeper";
const SLEEPERS_QUERY: &str = "SELECT s.customer, count(*) AS n, sum(quantity) AS q, max(note) AS note FROM sale s GROUP BY s.customer";

pub fn sleep(session: &mut Session) {
    session.run(&format!("SELECT pgstream.alter_stream_table('{SLEEPER}', status => 'SUSPENDED')"));
}

/// A diamond, which is never torn as long as the scheduler alone refreshes its sides and its tip.
const DIAMOND: [&str; 5] =
    ["by_customer", "by_product", "all_customers", "all_products", "agreement"];
pub const TORN: &str =
    "SELECT to_json(a) FROM agreement AS a WHERE customers <> products OR difference <> 0";

/// Those that may be refreshed by hand at any time.
pub fn names() -> Vec<&'static str> {
    STREAM_TABLES.iter().map(|it| it.0).filter(|it| !DIAMOND.contains(it)).collect()
}
