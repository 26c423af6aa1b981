-- How far the partitions of outbox.events reach, and whether a row of tomorrow would have one: one
-- row; NULL without partitions that end.
SELECT max(p.until)::text AS until, max(p.until) < now() + interval '1 day' AS short
FROM (
  SELECT substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''([^'']+)''\)')::timestamptz
    AS until
  FROM pg_catalog.pg_inherits i
  JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
  JOIN pg_catalog.pg_class r ON r.oid = i.inhparent
  JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
  WHERE n.nspname = 'outbox' AND r.relname = 'events'
) p
