//! The shapes of queries, each with the hand-written SQL that maintains the same result.

/// A shape: its defining query, and its summary table by hand.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub name: &'static str,
    /// The defining query; its columns are those of `HAND_TABLE` that users see.
    pub query: &'static str,
    /// What fills the hand-made table: the query, with a count where groups can vanish.
    pub by_hand: &'static str,
    /// The key of the hand-made table.
    pub key: &'static str,
    /// Applies the changes in `hand_change` to the hand-made table `hand`.
    pub apply: &'static str,
}

/// The source tables. `$ROWS` is the number of rows of `fact`; a tenth as many customers.
pub const SOURCES: &str = "
    CREATE TABLE customer (
        id integer PRIMARY KEY, name text NOT NULL, segment text NOT NULL);
    CREATE TABLE product (
        id integer PRIMARY KEY, name text NOT NULL, category text NOT NULL);
    CREATE TABLE fact (
        id bigint PRIMARY KEY, region integer NOT NULL, customer_id integer NOT NULL,
        product_id integer NOT NULL, status integer NOT NULL, amount numeric(12, 2) NOT NULL,
        note text NOT NULL) WITH (autovacuum_enabled = off);
    INSERT INTO customer
        SELECT i, 'customer ' || i, 'segment ' || i % 10 FROM generate_series(1, $ROWS / 10) i;
    INSERT INTO product
        SELECT i, 'product ' || i, 'category ' || i % 20 FROM generate_series(1, 1000) i;
    INSERT INTO fact
        SELECT i, i % 10, 1 + i * 7919 % ($ROWS / 10), 1 + i * 104729 % 1000, i % 3,
               (i * 31 % 100000)::numeric / 100, 'note ' || i
        FROM generate_series(1, $ROWS::bigint) i;
    CREATE INDEX ON fact (customer_id);
    CREATE INDEX ON fact (product_id);";

/// Old and new image of each changed row, as a capture by hand would have them.
pub const HAND_CHANGE: &str = "
    CREATE TABLE hand_change (
        op char(1) NOT NULL, id bigint NOT NULL,
        old_region integer, old_customer_id integer, old_product_id integer, old_status integer,
        old_amount numeric(12, 2), old_note text,
        new_region integer, new_customer_id integer, new_product_id integer, new_status integer,
        new_amount numeric(12, 2), new_note text) WITH (autovacuum_enabled = off);";

pub const SHAPES: [Shape; 8] = [
    Shape {
        name: "scan",
        query: "SELECT id, region, customer_id, status, amount, note FROM fact",
        by_hand: "SELECT id, region, customer_id, status, amount, note FROM fact",
        key: "id",
        apply: "
            MERGE INTO hand h USING hand_change c ON h.id = c.id
            WHEN MATCHED AND c.op = 'D' THEN DELETE
            WHEN MATCHED THEN UPDATE SET region = new_region, customer_id = new_customer_id,
                status = new_status, amount = new_amount, note = new_note
            WHEN NOT MATCHED AND c.op <> 'D' THEN INSERT
                VALUES (c.id, new_region, new_customer_id, new_status, new_amount, new_note)",
    },
    Shape {
        name: "filter",
        query: "SELECT id, customer_id, amount FROM fact WHERE amount > 500",
        by_hand: "SELECT id, customer_id, amount FROM fact WHERE amount > 500",
        key: "id",
        apply: "
            MERGE INTO hand h
            USING (SELECT * FROM hand_change WHERE old_amount > 500 OR new_amount > 500) c
                ON h.id = c.id
            WHEN MATCHED AND (new_amount > 500) IS NOT TRUE THEN DELETE
            WHEN MATCHED THEN UPDATE SET customer_id = new_customer_id, amount = new_amount
            WHEN NOT MATCHED AND new_amount > 500 THEN INSERT
                VALUES (c.id, new_customer_id, new_amount)",
    },
    Shape {
        name: "few groups",
        query: "SELECT region, count(*) AS n, sum(amount) AS total FROM fact GROUP BY region",
        by_hand: "SELECT region, count(*) AS n, sum(amount) AS total FROM fact GROUP BY region",
        key: "region",
        apply: "
            MERGE INTO hand h
            USING (SELECT region, sum(w) AS n, sum(amount) AS total
                   FROM (SELECT old_region AS region, -1 AS w, -old_amount AS amount
                         FROM hand_change WHERE op <> 'I'
                         UNION ALL
                         SELECT new_region, 1, new_amount FROM hand_change WHERE op <> 'D') d
                   GROUP BY region) d ON h.region = d.region
            WHEN MATCHED AND h.n + d.n = 0 THEN DELETE
            WHEN MATCHED THEN UPDATE SET n = h.n + d.n, total = h.total + d.total
            WHEN NOT MATCHED THEN INSERT VALUES (d.region, d.n, d.total)",
    },
    Shape {
        name: "many groups",
        query: "SELECT customer_id, count(*) AS n, sum(amount) AS total
                FROM fact GROUP BY customer_id",
        by_hand: "SELECT customer_id, count(*) AS n, sum(amount) AS total
                  FROM fact GROUP BY customer_id",
        key: "customer_id",
        apply: "
            MERGE INTO hand h
            USING (SELECT customer_id, sum(w) AS n, sum(amount) AS total
                   FROM (SELECT old_customer_id AS customer_id, -1 AS w, -old_amount AS amount
                         FROM hand_change WHERE op <> 'I'
                         UNION ALL
                         SELECT new_customer_id, 1, new_amount
                         FROM hand_change WHERE op <> 'D') d
                   GROUP BY customer_id HAVING sum(w) <> 0 OR sum(amount) <> 0) d
                ON h.customer_id = d.customer_id
            WHEN MATCHED AND h.n + d.n = 0 THEN DELETE
            WHEN MATCHED THEN UPDATE SET n = h.n + d.n, total = h.total + d.total
            WHEN NOT MATCHED THEN INSERT VALUES (d.customer_id, d.n, d.total)",
    },
    Shape {
        name: "join",
        query: "SELECT f.id, f.amount, c.name, c.segment
                FROM fact f JOIN customer c ON c.id = f.customer_id",
        by_hand: "SELECT f.id, f.amount, c.name, c.segment
                  FROM fact f JOIN customer c ON c.id = f.customer_id",
        key: "id",
        apply: "
            MERGE INTO hand h
            USING (SELECT d.id, d.new_amount, c.name, c.segment
                   FROM hand_change d LEFT JOIN customer c ON c.id = d.new_customer_id) d
                ON h.id = d.id
            WHEN MATCHED AND d.name IS NULL THEN DELETE
            WHEN MATCHED THEN UPDATE
                SET amount = d.new_amount, name = d.name, segment = d.segment
            WHEN NOT MATCHED AND d.name IS NOT NULL THEN INSERT
                VALUES (d.id, d.new_amount, d.name, d.segment)",
    },
    Shape {
        name: "join + aggregate",
        query: "SELECT c.segment, count(*) AS n, sum(f.amount) AS total
                FROM fact f JOIN customer c ON c.id = f.customer_id GROUP BY c.segment",
        by_hand: "SELECT c.segment, count(*) AS n, sum(f.amount) AS total
                  FROM fact f JOIN customer c ON c.id = f.customer_id GROUP BY c.segment",
        key: "segment",
        apply: "
            MERGE INTO hand h
            USING (SELECT c.segment, sum(w) AS n, sum(amount) AS total
                   FROM (SELECT old_customer_id AS customer_id, -1 AS w, -old_amount AS amount
                         FROM hand_change WHERE op <> 'I'
                         UNION ALL
                         SELECT new_customer_id, 1, new_amount
                         FROM hand_change WHERE op <> 'D') d
                       JOIN customer c ON c.id = d.customer_id
                   GROUP BY c.segment) d ON h.segment = d.segment
            WHEN MATCHED AND h.n + d.n = 0 THEN DELETE
            WHEN MATCHED THEN UPDATE SET n = h.n + d.n, total = h.total + d.total
            WHEN NOT MATCHED THEN INSERT VALUES (d.segment, d.n, d.total)",
    },
    Shape {
        name: "3-way join + aggregate",
        query: "SELECT c.segment, p.category, count(*) AS n, sum(f.amount) AS total
                FROM fact f JOIN customer c ON c.id = f.customer_id
                    JOIN product p ON p.id = f.product_id GROUP BY c.segment, p.category",
        by_hand: "SELECT c.segment, p.category, count(*) AS n, sum(f.amount) AS total
                  FROM fact f JOIN customer c ON c.id = f.customer_id
                      JOIN product p ON p.id = f.product_id GROUP BY c.segment, p.category",
        key: "segment, category",
        apply: "
            MERGE INTO hand h
            USING (SELECT c.segment, p.category, sum(w) AS n, sum(amount) AS total
                   FROM (SELECT old_customer_id AS customer_id, old_product_id AS product_id,
                                -1 AS w, -old_amount AS amount
                         FROM hand_change WHERE op <> 'I'
                         UNION ALL
                         SELECT new_customer_id, new_product_id, 1, new_amount
                         FROM hand_change WHERE op <> 'D') d
                       JOIN customer c ON c.id = d.customer_id
                       JOIN product p ON p.id = d.product_id
                   GROUP BY c.segment, p.category) d
                ON h.segment = d.segment AND h.category = d.category
            WHEN MATCHED AND h.n + d.n = 0 THEN DELETE
            WHEN MATCHED THEN UPDATE SET n = h.n + d.n, total = h.total + d.total
            WHEN NOT MATCHED THEN INSERT VALUES (d.segment, d.category, d.n, d.total)",
    },
    Shape {
        name: "distinct",
        query: "SELECT DISTINCT customer_id, status FROM fact",
        by_hand: "SELECT customer_id, status, count(*) AS n FROM fact GROUP BY customer_id, status",
        key: "customer_id, status",
        apply: "
            MERGE INTO hand h
            USING (SELECT customer_id, status, sum(w) AS n
                   FROM (SELECT old_customer_id AS customer_id, old_status AS status, -1 AS w
                         FROM hand_change WHERE op <> 'I'
                         UNION ALL
                         SELECT new_customer_id, new_status, 1
                         FROM hand_change WHERE op <> 'D') d
                   GROUP BY customer_id, status HAVING sum(w) <> 0) d
                ON h.customer_id = d.customer_id AND h.status = d.status
            WHEN MATCHED AND h.n + d.n = 0 THEN DELETE
            WHEN MATCHED THEN UPDATE SET n = h.n + d.n
            WHEN NOT MATCHED THEN INSERT VALUES (d.customer_id, d.status, d.n)",
    },
];
