//! The queries, by their numbers in the benchmark.

/// Number, and text.
pub const QUERIES: [(u32, &str); 21] = [
    (0, "SELECT auction, bidder, price, date_time, extra FROM bid"),
    (1, "SELECT auction, bidder, 0.908 * price AS price, date_time, extra FROM bid"),
    (2, "SELECT auction, price FROM bid WHERE auction % 123 = 0"),
    (
        3,
        "SELECT p.name, p.city, p.state, a.id
         FROM auction a JOIN person p ON a.seller = p.id
         WHERE a.category = 10 AND p.state IN ('OR', 'ID', 'CA')",
    ),
    (
        4,
        "SELECT q.category, avg(q.final)
         FROM (SELECT max(b.price) AS final, a.category
               FROM auction a, bid b
               WHERE a.id = b.auction AND b.date_time BETWEEN a.date_time AND a.expires
               GROUP BY a.id, a.category) q
         GROUP BY q.category",
    ),
    (
        5,
        "WITH counts AS (
             SELECT b.auction, w.starts, count(*) AS num
             FROM bid b, LATERAL generate_series(
                 date_bin('2 s', b.date_time, timestamp '2024-01-01') - interval '8 s',
                 b.date_time, interval '2 s') AS w (starts)
             GROUP BY b.auction, w.starts)
         SELECT c.auction, c.num, c.starts
         FROM counts c JOIN (SELECT max(num) AS most, starts FROM counts GROUP BY starts) m
           ON c.starts = m.starts AND c.num >= m.most",
    ),
    (
        6,
        "SELECT q.seller, q.id,
                avg(q.price) OVER (PARTITION BY q.seller ORDER BY q.date_time, q.id
                                   ROWS BETWEEN 10 PRECEDING AND CURRENT ROW) AS average
         FROM (SELECT a.id, a.seller, b.price, b.date_time,
                      row_number() OVER (PARTITION BY a.id
                                         ORDER BY b.price DESC, b.date_time) AS rank
               FROM auction a, bid b
               WHERE a.id = b.auction AND b.date_time BETWEEN a.date_time AND a.expires) q
         WHERE q.rank = 1",
    ),
    (
        7,
        "SELECT b.auction, b.price, b.bidder, b.date_time, b.extra
         FROM bid b
         JOIN (SELECT max(price) AS most, date_bin('10 s', date_time, timestamp '2024-01-01') AS starts
               FROM bid GROUP BY 2) w
           ON b.price = w.most
          AND date_bin('10 s', b.date_time, timestamp '2024-01-01') = w.starts",
    ),
    (
        8,
        "SELECT p.id, p.name, p.starts
         FROM (SELECT id, name, date_bin('10 s', date_time, timestamp '2024-01-01') AS starts
               FROM person GROUP BY 1, 2, 3) p
         JOIN (SELECT seller, date_bin('10 s', date_time, timestamp '2024-01-01') AS starts
               FROM auction GROUP BY 1, 2) a
           ON p.id = a.seller AND p.starts = a.starts",
    ),
    (
        9,
        "SELECT id, item_name, seller, category, auction, bidder, price, bid_at
         FROM (SELECT a.id, a.item_name, a.seller, a.category, b.auction, b.bidder, b.price,
                      b.date_time AS bid_at,
                      row_number() OVER (PARTITION BY a.id
                                         ORDER BY b.price DESC, b.date_time) AS rank
               FROM auction a, bid b
               WHERE a.id = b.auction AND b.date_time BETWEEN a.date_time AND a.expires) q
         WHERE rank <= 1",
    ),
    (
        12,
        "SELECT bidder, count(*) AS bids,
                date_bin('10 s', date_time, timestamp '2024-01-01') AS starts
         FROM bid GROUP BY bidder, date_bin('10 s', date_time, timestamp '2024-01-01')",
    ),
    (
        13,
        "SELECT b.auction, b.bidder, b.price, b.date_time, s.value
         FROM bid b JOIN side_input s ON b.auction % 100 = s.key",
    ),
    (
        14,
        "SELECT auction, bidder, 0.908 * price AS price,
                CASE WHEN extract(hour FROM date_time) BETWEEN 8 AND 18 THEN 'day'
                     WHEN extract(hour FROM date_time) <= 6
                       OR extract(hour FROM date_time) >= 20 THEN 'night'
                     ELSE 'other' END AS bid_time_type,
                date_time, extra, length(extra) - length(replace(extra, 'c', '')) AS c_counts
         FROM bid WHERE 0.908 * price > 1000000 AND 0.908 * price < 50000000",
    ),
    (
        15,
        "SELECT date_time::date AS day, count(*) AS total_bids,
                count(*) FILTER (WHERE price < 10000) AS rank1_bids,
                count(*) FILTER (WHERE price >= 10000 AND price < 1000000) AS rank2_bids,
                count(*) FILTER (WHERE price >= 1000000) AS rank3_bids,
                count(DISTINCT bidder) AS total_bidders,
                count(DISTINCT bidder) FILTER (WHERE price < 10000) AS rank1_bidders,
                count(DISTINCT bidder) FILTER (WHERE price >= 1000000) AS rank3_bidders,
                count(DISTINCT auction) AS total_auctions,
                count(DISTINCT auction) FILTER (WHERE price >= 1000000) AS rank3_auctions
         FROM bid GROUP BY date_time::date",
    ),
    (
        16,
        "SELECT channel, date_time::date AS day, max(date_time::time(0)) AS last,
                count(*) AS total_bids,
                count(*) FILTER (WHERE price >= 1000000) AS rank3_bids,
                count(DISTINCT bidder) AS total_bidders,
                count(DISTINCT auction) AS total_auctions,
                count(DISTINCT auction) FILTER (WHERE price < 10000) AS rank1_auctions
         FROM bid GROUP BY channel, date_time::date",
    ),
    (
        17,
        "SELECT auction, date_time::date AS day, count(*) AS total_bids,
                count(*) FILTER (WHERE price < 10000) AS rank1_bids,
                count(*) FILTER (WHERE price >= 1000000) AS rank3_bids,
                min(price) AS min_price, max(price) AS max_price, avg(price) AS avg_price,
                sum(price) AS sum_price
         FROM bid GROUP BY auction, date_time::date",
    ),
    (
        18,
        "SELECT auction, bidder, price, channel, url, date_time, extra
         FROM (SELECT *, row_number() OVER (PARTITION BY bidder, auction
                                            ORDER BY date_time DESC) AS rank
               FROM bid) q
         WHERE rank <= 1",
    ),
    (
        19,
        "SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY auction
                                                     ORDER BY price DESC, date_time) AS rank
                        FROM bid) q
         WHERE rank <= 10",
    ),
    (
        20,
        "SELECT b.auction, b.bidder, b.price, b.channel, b.url, b.date_time AS bid_at,
                a.item_name, a.description, a.initial_bid, a.reserve, a.date_time, a.expires,
                a.seller, a.category
         FROM bid b JOIN auction a ON b.auction = a.id WHERE a.category = 10",
    ),
    (
        21,
        "SELECT auction, bidder, price, channel,
                CASE WHEN lower(channel) = 'apple' THEN '0' WHEN lower(channel) = 'google' THEN '1'
                     WHEN lower(channel) = 'facebook' THEN '2' WHEN lower(channel) = 'baidu' THEN '3'
                     ELSE substring(url FROM '(?:&|^)channel_id=([^&]*)') END AS channel_id
         FROM bid
         WHERE substring(url FROM '(?:&|^)channel_id=([^&]*)') IS NOT NULL
            OR lower(channel) IN ('apple', 'google', 'facebook', 'baidu')",
    ),
    (
        22,
        "SELECT auction, bidder, price, channel, split_part(url, '/', 4) AS dir1,
                split_part(url, '/', 5) AS dir2, split_part(url, '/', 6) AS dir3
         FROM bid",
    ),
];
