-- A replication slot and who holds it: one row, or none. Columns that not every version has are
-- read through to_jsonb, where they are NULL if missing (failover, invalidation_reason,
-- inactive_since: 17).
SELECT
  s.plugin::text AS plugin,
  s.slot_type,
  s.database::text AS database,
  s.active,
  s.active_pid,
  a.application_name,
  -- NULL for a unix socket, and for roles without pg_read_all_stats.
  host(a.client_addr) AS client_addr,
  date_trunc('second', a.backend_start)::text AS holder_since,
  s.wal_status,
  to_jsonb(s) ->> 'invalidation_reason' AS invalidation_reason,
  s.two_phase,
  (to_jsonb(s) ->> 'failover')::bool AS failover,
  (to_jsonb(s) ->> 'inactive_since')::timestamptz AS inactive_since,
  d.spill_txns,
  d.spill_bytes,
  d.stream_txns,
  d.stream_bytes,
  s.restart_lsn,
  s.confirmed_flush_lsn,
  s.safe_wal_size
FROM pg_catalog.pg_replication_slots s
LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
LEFT JOIN pg_catalog.pg_stat_replication_slots d ON d.slot_name = s.slot_name
WHERE s.slot_name = $1::text
