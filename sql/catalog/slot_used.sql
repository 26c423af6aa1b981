SELECT total_txns > 0 FROM pg_catalog.pg_stat_replication_slots WHERE slot_name = $1
