SELECT ps_partkey, value
FROM (SELECT ps_partkey, sum(ps_supplycost * ps_availqty) AS value
      FROM partsupp, supplier, nation
      WHERE ps_suppkey = s_suppkey AND s_nationkey = n_nationkey AND n_name = 'GERMANY'
      GROUP BY ps_partkey) AS stock,
     (SELECT sum(ps_supplycost * ps_availqty) * :2 AS threshold
      FROM partsupp, supplier, nation
      WHERE ps_suppkey = s_suppkey AND s_nationkey = n_nationkey AND n_name = 'GERMANY') AS total
WHERE value > threshold
