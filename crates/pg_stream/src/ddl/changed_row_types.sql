-- The row types of those tables of $1 of whose columns one was changed by this transaction.
SELECT c.reltype
FROM pg_catalog.pg_class AS c
WHERE c.oid = ANY ($1::oid[])
  AND EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND age(a.xmin) <= 0)
