SELECT s_name, s_address
FROM supplier, nation,
    (SELECT DISTINCT ps_suppkey
     FROM partsupp, part,
         (SELECT l_partkey, l_suppkey, 0.5 * sum(l_quantity) AS half
          FROM lineitem
          WHERE l_shipdate >= date '1994-01-01'
              AND l_shipdate < date '1994-01-01' + interval '1' year
          GROUP BY l_partkey, l_suppkey) AS shipped
     WHERE ps_partkey = p_partkey AND p_name LIKE 'forest%'
         AND l_partkey = ps_partkey AND l_suppkey = ps_suppkey AND ps_availqty > half) AS excess
WHERE s_suppkey = ps_suppkey AND s_nationkey = n_nationkey AND n_name = 'CANADA'
