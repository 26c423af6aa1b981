-- Transactions that have written and are still open: a slot is created when these have ended.
SELECT a.pid, a.application_name, a.state, a.xact_start::text AS since
FROM pg_catalog.pg_stat_activity a
WHERE a.backend_xid IS NOT NULL AND a.pid <> pg_backend_pid()
ORDER BY a.xact_start
LIMIT 10
