-- Physical standbys that have a slot here, and copies of outjet that stand by: one row. Roles without
-- pg_read_all_stats see only their own sessions. synchronized_standby_slots came with 17.
SELECT
  ARRAY(
    SELECT s.slot_name::text FROM pg_catalog.pg_replication_slots s
    WHERE s.slot_type = 'physical' AND NOT s.temporary
    ORDER BY 1
  ) AS slots,
  ARRAY(
    SELECT s.slot_name::text FROM pg_catalog.pg_replication_slots s
    WHERE s.slot_type = 'physical' AND NOT s.temporary AND NOT s.active
    ORDER BY 1
  ) AS inactive,
  coalesce(current_setting('synchronized_standby_slots', true), '') AS synchronized,
  (SELECT count(*)::int FROM pg_catalog.pg_stat_activity a
   WHERE a.backend_type = 'walsender' AND starts_with(a.application_name, $2::text)
     AND a.datname = current_database()
     AND NOT EXISTS (
       SELECT FROM pg_catalog.pg_replication_slots s WHERE s.active_pid = a.pid
     )
     AND EXISTS (
       SELECT FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1::text AND s.active
     )) AS copies
