//! The changes that the demonstration makes: the benchmark's refresh streams and updates.
//!
//! `tpchgen` does not generate the refresh streams. New rows are copies of existing ones under
//! new keys with changed values, chosen by key, so that every run makes the same changes.

use postgres::Client;

use crate::Result;

/// A group of changes, after which every stream table is refreshed and compared.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    pub name: &'static str,
    pub what: &'static str,
    /// Each statement picks one in how many keys, in large tables; see [`Round::run`].
    pub step: u32,
    pub statements: &'static [&'static str],
}

impl Round {
    /// Makes the changes, in one transaction; the number of rows changed. At a small scale the
    /// share is larger, so that each statement finds something to change.
    pub fn run(&self, client: &mut Client, scale: f64) -> Result<u64> {
        let step = if scale < 0.05 { 20 } else { self.step };
        let mut transaction = client.transaction()?;
        let mut rows = 0;
        for statement in self.statements {
            rows += transaction.execute(&statement.replace("$STEP", &step.to_string()), &[])?;
        }
        transaction.commit()?;
        Ok(rows)
    }
}

pub const ROUNDS: [Round; 4] = [
    Round {
        name: "RF1",
        what: "new orders with their lineitems",
        step: 1000,
        statements: &[
            // Order keys use 8 of every 32 numbers; new ones take numbers that are free.
            "INSERT INTO orders
             SELECT o_orderkey + 8, o_custkey, o_orderstatus, o_totalprice + 100,
                    o_orderdate + 3, o_orderpriority, o_clerk, o_shippriority, 'new: ' || left(o_comment, 60)
             FROM orders WHERE o_orderkey % 32 < 8 AND (hashint4(o_orderkey) & 65535) % $STEP = 0",
            "INSERT INTO lineitem
             SELECT l_orderkey + 8, l_partkey, l_suppkey, l_linenumber, l_quantity + 1,
                    l_extendedprice + 10, l_discount, l_tax, l_returnflag, l_linestatus,
                    l_shipdate + 3, l_commitdate + 3, l_receiptdate + 3, l_shipinstruct,
                    l_shipmode, left(l_comment, 40)
             FROM lineitem WHERE l_orderkey % 32 < 8 AND (hashint4(l_orderkey) & 65535) % $STEP = 0",
        ],
    },
    Round {
        name: "RF2",
        what: "old orders and their lineitems deleted",
        step: 1000,
        statements: &[
            "DELETE FROM lineitem WHERE (hashint4(l_orderkey) & 65535) % $STEP = 1",
            "DELETE FROM orders WHERE (hashint4(o_orderkey) & 65535) % $STEP = 1",
        ],
    },
    Round {
        name: "UPDATE",
        what: "lineitem, orders: prices, quantities, dates, customers",
        step: 1000,
        statements: &[
            "UPDATE lineitem SET l_quantity = 51 - l_quantity, l_discount = 0.10 - l_discount,
                    l_shipdate = l_shipdate + 30
             WHERE (hashint4(l_orderkey) & 65535) % $STEP = 2",
            "UPDATE lineitem SET (l_partkey, l_suppkey) =
                    (SELECT ps_partkey, ps_suppkey FROM partsupp
                     WHERE ps_partkey = (SELECT max(p_partkey) FROM part) + 1 - l_partkey
                     ORDER BY ps_suppkey LIMIT 1)
             WHERE (hashint4(l_orderkey) & 65535) % $STEP = 3",
            "UPDATE orders SET o_orderdate = o_orderdate + 90,
                    o_orderpriority = CASE o_orderpriority
                        WHEN '1-URGENT' THEN '5-LOW' ELSE '1-URGENT' END
             WHERE (hashint4(o_orderkey) & 65535) % $STEP = 4",
            "UPDATE orders SET o_custkey = (SELECT max(c_custkey) FROM customer) + 1 - o_custkey
             WHERE (hashint4(o_orderkey) & 65535) % $STEP = 5",
        ],
    },
    Round {
        name: "UPDATE 2",
        what: "customer, part, partsupp, supplier",
        step: 200,
        statements: &[
            "UPDATE customer SET c_mktsegment = 'BUILDING', c_acctbal = c_acctbal + 1000
             WHERE (hashint4(c_custkey) & 65535) % $STEP = 0",
            "UPDATE customer SET c_nationkey = (c_nationkey + 1) % 25
             WHERE (hashint4(c_custkey) & 65535) % $STEP = 1",
            "UPDATE part SET p_brand = 'Brand#23', p_container = 'MED BOX', p_size = 15
             WHERE (hashint4(p_partkey) & 65535) % $STEP = 0",
            "UPDATE part SET p_type = 'PROMO ANODIZED STEEL', p_name = 'forest green lime'
             WHERE (hashint4(p_partkey) & 65535) % $STEP = 1",
            "UPDATE partsupp SET ps_supplycost = ps_supplycost / 2, ps_availqty = ps_availqty + 7
             WHERE (hashint4(ps_partkey) & 65535) % $STEP = 2",
            "UPDATE supplier SET s_acctbal = s_acctbal + 5, s_nationkey = (s_nationkey + 7) % 25
             WHERE (hashint4(s_suppkey) & 65535) % $STEP = 3",
        ],
    },
];
