SELECT c_name, c_custkey, o_orderkey, o_orderdate, o_totalprice, sum(l_quantity) AS quantity
FROM customer, orders, lineitem,
    (SELECT l_orderkey AS large_orderkey FROM lineitem
     GROUP BY l_orderkey HAVING sum(l_quantity) > 300) AS large
WHERE o_orderkey = large_orderkey AND c_custkey = o_custkey AND o_orderkey = l_orderkey
GROUP BY c_name, c_custkey, o_orderkey, o_orderdate, o_totalprice
