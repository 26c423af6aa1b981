-- Removes the schema "outbox" with the events in it. Refuses while something still publishes them,
-- and never takes along what is not outjet's: other objects in the schema, views on its tables.

BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;
SELECT pg_advisory_xact_lock(hashtextextended('outbox', 0));

DO $uninstall$
DECLARE
  publication name;
BEGIN
  SELECT p.pubname INTO publication
    FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
    WHERE r.prrelid = to_regclass('outbox.events') LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'outbox.events is published by "%"', publication
      USING ERRCODE = 'object_in_use', HINT = 'Run first: outjet drop';
  END IF;
END
$uninstall$;

DROP VIEW IF EXISTS outbox.slot_status;
DROP FUNCTION IF EXISTS
  outbox.forget_processed(interval),
  outbox.first_time(text, text),
  outbox.wait_published(interval, name),
  outbox.expire_partitions(interval, name),
  outbox.ensure_partitions(int),
  outbox.emit_wal(text, text, text, jsonb, text, jsonb, uuid, text, bytea,
    text, text, text, text, timestamptz, timestamptz),
  outbox.emit(text, text, text, jsonb, text, jsonb, uuid, text, bytea,
    text, text, text, text, timestamptz, timestamptz),
  outbox.new_id();
DROP TABLE IF EXISTS outbox.processed_messages, outbox.events, outbox.schema_version;
DROP SCHEMA IF EXISTS outbox;
COMMIT;
