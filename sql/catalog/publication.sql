-- A publication with the tables it publishes, partitions given as their root: one row, or none.
SELECT
  p.puballtables AS all_tables,
  p.pubinsert AS insert,
  p.pubviaroot AS via_root,
  coalesce(t.schemas, '{}') AS schemas,
  coalesce(t.names, '{}') AS names
FROM pg_catalog.pg_publication p
CROSS JOIN LATERAL (
  SELECT array_agg(published.schema) AS schemas, array_agg(published.name) AS names
  FROM (
    SELECT DISTINCT n.nspname::text AS schema, r.relname::text AS name
    FROM pg_catalog.pg_publication_tables l
    JOIN pg_catalog.pg_namespace ln ON ln.nspname = l.schemaname
    JOIN pg_catalog.pg_class c ON c.relnamespace = ln.oid AND c.relname = l.tablename
    JOIN pg_catalog.pg_class r ON r.oid = coalesce(pg_partition_root(c.oid), c.oid)
    JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
    WHERE l.pubname = p.pubname
    ORDER BY 1, 2
  ) published
) t
WHERE p.pubname = $1::text
