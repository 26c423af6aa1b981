-- How far the partitions of outbox.events reach, whether a row of tomorrow would have one, about how
-- many rows have none, and whether we may turn them: one row; NULL without partitions that end, or
-- without the functions. Rows are those of the server's statistics, which every role may read.
SELECT
  max(p.until)::text AS until,
  max(p.until) < now() + interval '1 day' AS short,
  coalesce(sum(p.live) FILTER (WHERE p.until IS NULL), 0)::bigint AS default_rows,
  (SELECT bool_and(has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(f.oid, 'EXECUTE'))
   FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
   WHERE n.nspname = 'outbox' AND f.proname IN ('ensure_partitions', 'expire_partitions')
  ) AS may_turn
FROM (
  SELECT
    substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''([^'']+)''\)')::timestamptz AS until,
    pg_stat_get_live_tuples(c.oid) AS live
  FROM pg_catalog.pg_inherits i
  JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
  JOIN pg_catalog.pg_class r ON r.oid = i.inhparent
  JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
  WHERE n.nspname = 'outbox' AND r.relname = 'events'
) p
