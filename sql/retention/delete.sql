-- Deletes some rows that are older than $2 and that the slot $1 has confirmed. Why a row whose xmin
-- is older than the slot's catalog_xmin is confirmed: expire_partitions() in install.sql. Few at a
-- time, so that no transaction grows large; nobody waits for a delete but who wants these rows.
DELETE FROM ONLY {table} WHERE ctid = ANY (ARRAY(
  SELECT r.ctid FROM ONLY {table} r, pg_replication_slots s
  WHERE s.slot_name = $1::text::name AND s.database = current_database()
    AND s.wal_status IS DISTINCT FROM 'lost'
    AND r.{created_at} < now() - $2::text::interval
    AND age(r.xmin) > age(s.catalog_xmin)
  LIMIT 5000
))
