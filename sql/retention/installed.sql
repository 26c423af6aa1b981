-- Whether the functions are there; asked of the catalog, which everybody may read.
SELECT EXISTS (
  SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
  WHERE n.nspname = 'outbox' AND p.proname = 'expire_partitions'
)
