-- The columns of a table, in its own order. Domains count as what they are made of.
SELECT
  a.attname::text AS name,
  coalesce(nullif(t.typbasetype, 0), t.oid) AS type_oid,
  format_type(a.atttypid, a.atttypmod) AS type_name,
  a.attnotnull AS not_null,
  a.attgenerated <> '' AS generated
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
