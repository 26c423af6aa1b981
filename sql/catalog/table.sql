-- A table by schema and name, with what publication $3 publishes of it: one row, or none.
-- Row filters and column lists came with 15; on 14 they are NULL, through to_jsonb.
SELECT
  c.oid,
  c.relkind::text AS kind,
  c.relpersistence::text AS persistence,
  ARRAY(
    SELECT p.relid::regclass::text
    FROM pg_partition_tree(c.oid) p JOIN pg_catalog.pg_class l ON l.oid = p.relid
    WHERE l.relpersistence = 'u'
    ORDER BY 1
  ) AS unlogged_partitions,
  NOT EXISTS (
    SELECT FROM (SELECT p.relid FROM pg_partition_tree(c.oid) p UNION SELECT c.oid) part
    JOIN pg_catalog.pg_class l ON l.oid = part.relid
    WHERE l.relkind = 'r' AND NOT (
      has_schema_privilege(l.relnamespace, 'USAGE') AND has_table_privilege(l.oid, 'SELECT')
      AND has_table_privilege(l.oid, 'DELETE'))
  ) AS may_delete,
  t.pubname IS NOT NULL AS published,
  EXISTS (
    SELECT FROM pg_partition_tree(c.oid) p
    JOIN pg_catalog.pg_class l ON l.oid = p.relid AND l.oid <> c.oid
    JOIN pg_catalog.pg_namespace ln ON ln.oid = l.relnamespace
    JOIN pg_catalog.pg_publication_tables lt
      ON lt.schemaname = ln.nspname AND lt.tablename = l.relname AND lt.pubname = $3::text
  ) AS published_by_partition,
  to_jsonb(t) ->> 'rowfilter' AS row_filter,
  CASE jsonb_typeof(to_jsonb(t) -> 'attnames')
    WHEN 'array' THEN ARRAY(SELECT jsonb_array_elements_text(to_jsonb(t) -> 'attnames'))
  END AS published_columns
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_publication_tables t
  ON t.schemaname = n.nspname AND t.tablename = c.relname AND t.pubname = $3::text
WHERE n.nspname = $1::text AND c.relname = $2::text
