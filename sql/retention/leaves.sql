-- The tables that hold the rows of a table: its partitions, or itself.
SELECT n.nspname::text AS schema, c.relname::text AS name
FROM (
  SELECT t.relid FROM pg_partition_tree($1::text::regclass) t
  UNION
  SELECT $1::text::regclass
) leaf
JOIN pg_class c ON c.oid = leaf.relid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r'
ORDER BY 1, 2
