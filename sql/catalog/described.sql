-- The columns of a table as pgoutput describes them: a domain counts as itself, not as what it is
-- made of (logicalrep_write_attrs, proto.c).
SELECT a.attname::text AS name, a.atttypid AS type_oid
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1::text AND c.relname = $2::text AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
