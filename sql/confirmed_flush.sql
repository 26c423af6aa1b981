SELECT slots.confirmed_flush_lsn, stats.total_txns > 0
  FROM pg_catalog.pg_replication_slots AS slots
  LEFT JOIN pg_catalog.pg_stat_replication_slots AS stats USING (slot_name)
 WHERE slots.slot_name = $1
