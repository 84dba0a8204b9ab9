//! Changes to `fact`: which rows, and the same change in the hand-made change table.

use postgres::Client;

use crate::Result;

/// The keys in `fact`, and a generator of pseudo-random choices: each run of the program makes
/// the same changes.
pub struct Keys {
    live: Vec<i64>,
    next: i64,
    state: u64,
}

impl Keys {
    pub fn new(rows: usize) -> Keys {
        let rows = i64::try_from(rows).expect("not that many rows");
        Keys { live: (1..=rows).collect(), next: rows + 1, state: 0x9E37_79B9_7F4A_7C15 }
    }

    fn random(&mut self, below: usize) -> usize {
        // xorshift64
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) as usize % below
    }

    /// Moves `count` random keys to the end and returns them.
    fn pick(&mut self, count: usize) -> &mut [i64] {
        let first = self.live.len() - count;
        for place in (first..self.live.len()).rev() {
            let chosen = self.random(place + 1);
            self.live.swap(chosen, place);
        }
        &mut self.live[first..]
    }
}

/// Changes `count` rows of `fact`: 70 % updates, 15 % deletes, 15 % inserts (one row: an update),
/// in one transaction. An update changes the amount; every other one, and the only one, also
/// moves the row to another customer, region and status.
///
/// The change is first put into `hand_change`, for the SQL by hand, which may plan with its
/// statistics: the floor shall be as low as it can be.
pub fn change(client: &mut Client, keys: &mut Keys, count: usize) -> Result<()> {
    let few = count * 15 / 100;
    let picked = keys.pick(count - few).to_vec();
    let (deleted, updated) = picked.split_at(few);
    let (deleted, updated) = (deleted.to_vec(), updated.to_vec());
    let inserted: Vec<i64> = (keys.next..).take(few).collect();
    keys.next += few as i64;
    for (at, key) in inserted.iter().enumerate() {
        // `pick` left the picked keys at the end, the deleted ones first.
        let place = keys.live.len() - picked.len() + at;
        keys.live[place] = *key;
    }

    client.batch_execute("TRUNCATE hand_change")?;
    client.execute(
        "INSERT INTO hand_change
         SELECT 'U', id, region, customer_id, product_id, status, amount, note,
                CASE WHEN move THEN (region + 1) % 10 ELSE region END,
                CASE WHEN move THEN 1 + customer_id % (SELECT count(*)::int FROM customer)
                     ELSE customer_id END,
                product_id, CASE WHEN move THEN (status + 1) % 3 ELSE status END,
                CASE WHEN amount < 1000 THEN amount + 7 ELSE amount - 900 END, note
         FROM fact JOIN unnest($1::bigint[]) WITH ORDINALITY k (key, n) ON id = key,
             LATERAL (SELECT n % 2 = 1) m (move)",
        &[&updated],
    )?;
    client.execute(
        "INSERT INTO hand_change
         SELECT 'D', id, region, customer_id, product_id, status, amount, note
         FROM fact WHERE id = ANY ($1)",
        &[&deleted],
    )?;
    client.execute(
        "INSERT INTO hand_change (op, id, new_region, new_customer_id, new_product_id, new_status,
                                  new_amount, new_note)
         SELECT 'I', i, i % 10, 1 + i * 7919 % (SELECT count(*) FROM customer), 1 + i % 1000,
                i % 3, (i * 31 % 100000)::numeric / 100, 'note ' || i
         FROM unnest($1::bigint[]) i",
        &[&inserted],
    )?;
    client.batch_execute("VACUUM ANALYZE hand_change")?;

    let mut transaction = client.transaction()?;
    transaction.execute(
        "UPDATE fact SET region = new_region, customer_id = new_customer_id, status = new_status,
                amount = new_amount
         FROM hand_change c WHERE c.op = 'U' AND fact.id = c.id",
        &[],
    )?;
    if few > 0 {
        transaction.batch_execute(
            "DELETE FROM fact USING hand_change c WHERE c.op = 'D' AND fact.id = c.id;
             INSERT INTO fact SELECT id, new_region, new_customer_id, new_product_id, new_status,
                    new_amount, new_note
             FROM hand_change WHERE op = 'I'",
        )?;
    }
    transaction.commit()?;
    Ok(())
}
