SELECT sum(l_extendedprice) / 7.0 AS avg_yearly
FROM lineitem, part,
    (SELECT l_partkey AS average_partkey, 0.2 * avg(l_quantity) AS few
     FROM lineitem GROUP BY l_partkey) AS average
WHERE p_partkey = l_partkey AND p_brand = 'Brand#23' AND p_container = 'MED BOX'
    AND average_partkey = p_partkey AND l_quantity < few
