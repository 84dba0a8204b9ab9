//! The stream of events: of every fifty one is a person, three are auctions, the others bids.
//!
//! All values follow from the event's number, so that every run makes the same events. Auctions
//! are open for a while after they begin; bids go to recent auctions, most of them to a few hot
//! ones, as in the benchmark. Events are a hundredth of a second apart.

use postgres::Client;

use crate::Result;

pub const TABLES: &str = include_str!("tables.sql");

/// `$n` is the event's number; ids are dense.
const PERSONS: &str = "INSERT INTO person
    SELECT n / 50, 'person ' || n / 50, 'p' || n / 50 || '@example.com',
           lpad((hashint8(n) & 2147483647)::text, 16, '4'),
           (ARRAY['Phoenix', 'Boise', 'Portland', 'Bend', 'Redmond', 'Seattle', 'Kent'])[1 + (hashint8(n) & 65535) % 7],
           (ARRAY['AZ', 'CA', 'ID', 'OR', 'WA', 'WY'])[1 + (hashint8(n + 1) & 65535) % 6],
           timestamp '2024-01-01' + n * interval '10 ms', repeat('p', (n % 40)::int)
    FROM generate_series($1::bigint, $2::bigint) AS n WHERE n % 50 = 0";

const AUCTIONS: &str = "INSERT INTO auction
    SELECT n / 50 * 3 + n % 50 - 1, 'item ' || n % 97, 'what item ' || n % 97 || ' is',
           1 + (hashint8(n) & 65535) % 1000, 1000 + (hashint8(n) & 65535) % 5000,
           timestamp '2024-01-01' + n * interval '10 ms',
           timestamp '2024-01-01' + n * interval '10 ms' + interval '1 s' * (1 + (hashint8(n + 2) & 65535) % 30),
           greatest(0, n / 50 - (hashint8(n + 3) & 65535) % 20),
           10 + (hashint8(n + 4) & 65535) % 5, repeat('a', (n % 30)::int)
    FROM generate_series($1::bigint, $2::bigint) AS n WHERE n % 50 BETWEEN 1 AND 3";

const BIDS: &str = "INSERT INTO bid
    SELECT CASE WHEN hashint8(n) & 1 = 0 THEN n / 500 * 30
                ELSE greatest(0, n / 50 * 3 - (hashint8(n + 5) & 65535) % 100) END,
           CASE WHEN hashint8(n) & 6 = 0 THEN n / 500 * 10
                ELSE greatest(0, n / 50 - (hashint8(n + 6) & 65535) % 50) END,
           100 + (hashint8(n + 7) & 16777215),
           CASE (hashint8(n + 8) & 65535) % 6 WHEN 0 THEN 'Google' WHEN 1 THEN 'Facebook'
                WHEN 2 THEN 'Baidu' WHEN 3 THEN 'Apple' ELSE 'channel-' || n % 100 END,
           'https://www.nexmark.com/' || n % 7 || '/' || n % 11 || '/item.htm?query=1'
               || CASE WHEN n % 3 = 0 THEN '&channel_id=' || (n * 7919) % 1000 ELSE '' END,
           timestamp '2024-01-01' + n * interval '10 ms', repeat('cba', (n % 12)::int)
    FROM generate_series($1::bigint, $2::bigint) AS n WHERE n % 50 > 3";

/// What the benchmark does not have: bids that are withdrawn or raised, auctions that are
/// extended, people who move. `$1` and `$2` limit it to the newest events.
const CORRECTIONS: [&str; 4] = [
    "DELETE FROM bid WHERE date_time >= timestamp '2024-01-01' + $1::bigint * interval '10 ms'
        AND date_time <= timestamp '2024-01-01' + $2::bigint * interval '10 ms' AND hashint8(price) & 31 = 0",
    "UPDATE bid SET price = price + 1000000
     WHERE date_time >= timestamp '2024-01-01' + $1::bigint * interval '10 ms'
        AND date_time <= timestamp '2024-01-01' + $2::bigint * interval '10 ms' AND hashint8(price) & 31 = 1",
    "UPDATE auction SET expires = expires + interval '5 s', category = 10
     WHERE id BETWEEN $1::bigint / 50 * 3 AND $2::bigint / 50 * 3 AND id % 10 = 0",
    "UPDATE person SET state = 'OR' WHERE id BETWEEN $1::bigint / 50 AND $2::bigint / 50 AND id % 10 = 0",
];

/// Inserts the events of these numbers, the last included, in one transaction.
pub fn insert(client: &mut Client, first: i64, last: i64) -> Result<()> {
    run(client, &[PERSONS, AUCTIONS, BIDS], first, last)
}

/// Corrects a part of the events of these numbers, in one transaction.
pub fn correct(client: &mut Client, first: i64, last: i64) -> Result<()> {
    run(client, &CORRECTIONS, first, last)
}

fn run(client: &mut Client, statements: &[&str], first: i64, last: i64) -> Result<()> {
    let mut transaction = client.transaction()?;
    for statement in statements {
        transaction.execute(*statement, &[&first, &last])?;
    }
    Ok(transaction.commit()?)
}
