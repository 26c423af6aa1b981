-- The server, this database and the role we are: one row. Readable by any role.
SELECT
  current_setting('server_version_num')::int AS version_num,
  split_part(current_setting('server_version'), ' ', 1) AS version,
  current_database()::text AS database,
  current_setting('wal_level') AS wal_level,
  (SELECT g.pending_restart FROM pg_catalog.pg_settings g WHERE g.name = 'wal_level')
    AS wal_level_pending_restart,
  pg_is_in_recovery() AS in_recovery,
  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END
    AS current_lsn,
  current_setting('max_replication_slots')::int AS slots_max,
  (SELECT count(*)::int FROM pg_catalog.pg_replication_slots) AS slots_used,
  current_setting('max_wal_senders')::int AS wal_senders_max,
  (SELECT count(*)::int FROM pg_catalog.pg_stat_replication) AS wal_senders_used,
  (SELECT c.system_identifier::text FROM pg_catalog.pg_control_system() c) AS system_identifier,
  session_user::text AS role,
  r.rolsuper AS superuser,
  r.rolreplication AS replication,
  -- Amazon RDS and Aurora grant replication through a role instead of the attribute.
  EXISTS (
    SELECT FROM pg_catalog.pg_roles g
    WHERE g.rolname = 'rds_replication' AND pg_has_role(r.oid, g.oid, 'MEMBER')
  ) AS rds_replication,
  nullif(current_setting('idle_replication_slot_timeout', true), '0') AS idle_slot_timeout,
  -- By name: 17 has added an argument.
  EXISTS (
    SELECT FROM pg_catalog.pg_proc p
    WHERE p.proname = 'pg_logical_emit_message' AND has_function_privilege('public', p.oid, 'EXECUTE')
  ) AS anybody_emits,
  schema.owned IS NOT NULL AS schema_installed,
  coalesce(schema.owned, false) AS schema_owned
FROM pg_catalog.pg_roles r
-- Not to_regclass, which fails without USAGE on the schema.
LEFT JOIN LATERAL (
  SELECT pg_has_role(r.oid, c.relowner, 'USAGE') AS owned
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname = 'outbox' AND c.relname = 'schema_version'
) schema ON true
WHERE r.rolname = session_user
