-- Tables that table $1 refers to or inherits from, and which of the two.
SELECT confrelid, 'foreign key' FROM pg_catalog.pg_constraint WHERE conrelid = $1 AND contype = 'f'
UNION ALL
SELECT inhparent, 'inheritance' FROM pg_catalog.pg_inherits WHERE inhrelid = $1
UNION ALL
SELECT inhrelid, 'inheritance' FROM pg_catalog.pg_inherits WHERE inhparent = $1
