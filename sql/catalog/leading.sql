SELECT confirmed_flush_lsn AS confirmed,
       pg_catalog.pg_is_in_recovery() AS standby,
       (CASE WHEN pg_catalog.pg_is_in_recovery()
             THEN pg_catalog.pg_last_wal_replay_lsn()
             ELSE pg_catalog.pg_current_wal_flush_lsn() END) AS flushed,
       pg_catalog.current_setting('synchronous_standby_names') <> '' AS synchronous
  FROM pg_catalog.pg_replication_slots
 WHERE slot_name = $1 AND active
