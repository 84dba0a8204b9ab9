SELECT s_suppkey, s_name, s_address, s_phone, total_revenue
FROM supplier, revenue0, (SELECT max(total_revenue) AS best FROM revenue0) AS top
WHERE s_suppkey = supplier_no AND total_revenue = best
