SELECT o_orderpriority, count(*) AS order_count
FROM orders,
    (SELECT DISTINCT l_orderkey FROM lineitem WHERE l_commitdate < l_receiptdate) AS late
WHERE o_orderdate >= date '1993-07-01' AND o_orderdate < date '1993-07-01' + interval '3' month
    AND l_orderkey = o_orderkey
GROUP BY o_orderpriority
