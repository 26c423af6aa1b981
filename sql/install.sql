-- The schema "outbox": the table that applications insert their events into, and the functions
-- around it. Needs Postgres 14 or newer and CREATE on the database. Running it again, or twice at
-- once, changes nothing. `outjet setup` runs it; so does `psql -v ON_ERROR_STOP=1 -f install.sql`.
--
-- Writers need no more than
--   GRANT USAGE ON SCHEMA outbox TO app; GRANT INSERT ON outbox.events TO app;
-- consumers that use first_time()
--   GRANT USAGE ON SCHEMA outbox TO app; GRANT INSERT ON outbox.processed_messages TO app;
-- outjet, to turn the partitions while it leads
--   GRANT USAGE ON SCHEMA outbox TO outjet;
--   GRANT EXECUTE ON FUNCTION outbox.ensure_partitions, outbox.expire_partitions TO outjet;
--
-- The publication is not made here, as it depends on the tables that are configured.

BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;

-- One lock for all that changes the schema: this file, ensure_partitions and expire_partitions.
SELECT pg_advisory_xact_lock(hashtextextended('outbox', 0));

DO $install$
DECLARE
  version_found int;
  version_known CONSTANT int := 3;
BEGIN
  IF to_regclass('outbox.schema_version') IS NOT NULL THEN
    EXECUTE 'SELECT max(version) FROM outbox.schema_version' INTO version_found;
    IF version_found > version_known THEN
      RAISE EXCEPTION 'schema "outbox" is at version %, this file installs version %',
          version_found, version_known
        USING HINT = 'Use the outjet that installed it, or a newer one.';
    END IF;
    IF version_found < 3 THEN
      ALTER TABLE outbox.events ADD COLUMN deliver_at timestamptz, ADD COLUMN expires_at timestamptz;
      -- With more parameters each would become a second function of its name.
      DROP FUNCTION outbox.emit(text, text, text, jsonb, text, jsonb, uuid, text, bytea, text, text,
        text, text);
      -- Version 1 has no second one.
      DROP FUNCTION IF EXISTS outbox.emit_wal(text, text, text, jsonb, text, jsonb, uuid, text,
        bytea, text, text, text, text);
    END IF;
    RETURN;
  END IF;

  IF to_regclass('outbox.events') IS NOT NULL THEN
    RAISE EXCEPTION 'a table outbox.events exists that outjet did not make'
      USING ERRCODE = 'duplicate_table',
        HINT = 'Map its columns in the configuration instead of installing this, or rename it.';
  END IF;

  -- Not CREATE SCHEMA IF NOT EXISTS: that wants CREATE on the database even if it exists.
  IF to_regnamespace('outbox') IS NULL THEN
    CREATE SCHEMA outbox;
  END IF;

  CREATE TABLE outbox.schema_version (
    version    int         PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
  );

  -- Ids that sort by time where the server can make them (18).
  EXECUTE format(
    'CREATE FUNCTION outbox.new_id() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS %L',
    CASE WHEN current_setting('server_version_num')::int >= 180000
      THEN 'SELECT pg_catalog.uuidv7()' ELSE 'SELECT pg_catalog.gen_random_uuid()' END);

  -- No CHECK constraints, no triggers: they would cost the writer half again as much per row, and
  -- a bad event is outjet's to reject, not a reason to fail a business transaction. No status
  -- columns: the slot's confirmed_flush_lsn says what is published. The defaults of tenant_id,
  -- correlation_id and traceparent take what the application has SET for its session or
  -- transaction: SET LOCAL outbox.tenant_id = '...'.
  EXECUTE format($create$
    CREATE TABLE outbox.events (
      id             uuid        NOT NULL DEFAULT %s,
      created_at     timestamptz NOT NULL DEFAULT now(),
      aggregatetype  text        NOT NULL,
      aggregateid    text        NOT NULL,
      type           text        NOT NULL,
      payload        jsonb,
      payload_raw    bytea,
      content_type   text,
      topic          text,
      headers        jsonb,
      tenant_id      text DEFAULT nullif(current_setting('outbox.tenant_id', true), ''),
      correlation_id text DEFAULT nullif(current_setting('outbox.correlation_id', true), ''),
      traceparent    text DEFAULT nullif(current_setting('outbox.traceparent', true), ''),
      dedup_key      text,
      deliver_at     timestamptz,
      expires_at     timestamptz,
      PRIMARY KEY (id, created_at)
    ) PARTITION BY RANGE (created_at)$create$,
    CASE WHEN current_setting('server_version_num')::int >= 180000
      THEN 'uuidv7()' ELSE 'gen_random_uuid()' END);

  -- An insert must never fail for want of a partition.
  CREATE TABLE outbox.events_default PARTITION OF outbox.events DEFAULT;

  CREATE TABLE outbox.processed_messages (
    consumer     text        NOT NULL,
    message_id   text        NOT NULL,
    processed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, message_id)
  );
END
$install$;

COMMENT ON SCHEMA outbox IS 'Transactional outbox, published by outjet.';
COMMENT ON TABLE outbox.events IS
  'One row per event; outjet publishes it when the inserting transaction has committed.';
COMMENT ON COLUMN outbox.events.created_at IS
  'When it happened; chooses the partition (days of UTC).';
COMMENT ON COLUMN outbox.events.payload_raw IS
  'Instead of payload: bytes that are sent untouched.';
COMMENT ON COLUMN outbox.events.topic IS
  'The subject; without it the subject comes from aggregatetype and type.';
COMMENT ON COLUMN outbox.events.deliver_at IS
  'Consumers get it then and not before, on the subject delayed.<subject>.';
COMMENT ON COLUMN outbox.events.expires_at IS
  'The stream drops it then.';

-- Inserts one event and returns its id. Context that is not given comes from the settings
-- outbox.tenant_id, outbox.correlation_id and outbox.traceparent.
--
-- Not INSERT ... RETURNING, which needs SELECT on the table. Names are qualified instead of a
-- SET search_path clause, which would cost every call.
CREATE OR REPLACE FUNCTION outbox.emit(
  aggregatetype  text,
  aggregateid    text,
  type           text,
  payload        jsonb       DEFAULT NULL,
  topic          text        DEFAULT NULL,
  headers        jsonb       DEFAULT NULL,
  id             uuid        DEFAULT NULL,
  dedup_key      text        DEFAULT NULL,
  payload_raw    bytea       DEFAULT NULL,
  content_type   text        DEFAULT NULL,
  tenant_id      text        DEFAULT NULL,
  correlation_id text        DEFAULT NULL,
  traceparent    text        DEFAULT NULL,
  deliver_at     timestamptz DEFAULT NULL,
  expires_at     timestamptz DEFAULT NULL
) RETURNS uuid LANGUAGE plpgsql VOLATILE AS $function$
DECLARE
  event_id CONSTANT uuid := coalesce(emit.id, outbox.new_id());
BEGIN
  INSERT INTO outbox.events (
    id, aggregatetype, aggregateid, type, payload, topic, headers, dedup_key,
    payload_raw, content_type, tenant_id, correlation_id, traceparent, deliver_at, expires_at
  ) VALUES (
    event_id, emit.aggregatetype, emit.aggregateid, emit.type, emit.payload, emit.topic,
    emit.headers, emit.dedup_key, emit.payload_raw, emit.content_type,
    coalesce(emit.tenant_id,
      nullif(pg_catalog.current_setting('outbox.tenant_id', true), '')),
    coalesce(emit.correlation_id,
      nullif(pg_catalog.current_setting('outbox.correlation_id', true), '')),
    coalesce(emit.traceparent,
      nullif(pg_catalog.current_setting('outbox.traceparent', true), '')),
    emit.deliver_at, emit.expires_at
  );
  RETURN event_id;
END
$function$;

-- The same event without a row: a logical message, which stands in the write-ahead log alone. It
-- needs no privilege on any table, and cannot be looked up, replayed or recovered later.
CREATE OR REPLACE FUNCTION outbox.emit_wal(
  aggregatetype  text,
  aggregateid    text,
  type           text,
  payload        jsonb       DEFAULT NULL,
  topic          text        DEFAULT NULL,
  headers        jsonb       DEFAULT NULL,
  id             uuid        DEFAULT NULL,
  dedup_key      text        DEFAULT NULL,
  payload_raw    bytea       DEFAULT NULL,
  content_type   text        DEFAULT NULL,
  tenant_id      text        DEFAULT NULL,
  correlation_id text        DEFAULT NULL,
  traceparent    text        DEFAULT NULL,
  deliver_at     timestamptz DEFAULT NULL,
  expires_at     timestamptz DEFAULT NULL
) RETURNS uuid LANGUAGE plpgsql VOLATILE AS $function$
DECLARE
  event_id CONSTANT uuid := coalesce(emit_wal.id, outbox.new_id());
BEGIN
  -- Messages are sent as they are, where rows are sent in the client's encoding.
  PERFORM pg_catalog.pg_logical_emit_message(true, 'outbox', pg_catalog.convert_to(
    pg_catalog.json_build_object(
    'id', event_id, 'aggregatetype', emit_wal.aggregatetype, 'aggregateid', emit_wal.aggregateid,
    'type', emit_wal.type, 'payload', emit_wal.payload, 'topic', emit_wal.topic,
    'headers', emit_wal.headers, 'dedup_key', emit_wal.dedup_key,
    'payload_raw', pg_catalog.encode(emit_wal.payload_raw, 'base64'),
    'content_type', emit_wal.content_type,
    'deliver_at', emit_wal.deliver_at, 'expires_at', emit_wal.expires_at,
    'tenant_id', coalesce(emit_wal.tenant_id,
      nullif(pg_catalog.current_setting('outbox.tenant_id', true), '')),
    'correlation_id', coalesce(emit_wal.correlation_id,
      nullif(pg_catalog.current_setting('outbox.correlation_id', true), '')),
    'traceparent', coalesce(emit_wal.traceparent,
      nullif(pg_catalog.current_setting('outbox.traceparent', true), '')))::text, 'UTF8'));
  RETURN event_id;
END
$function$;

-- Creates the partitions of today (UTC) and of the days ahead, and returns how many it created.
-- A day that cannot have its partition now is skipped with a warning: its rows go to the DEFAULT
-- partition and are published all the same. DEFAULT is locked, and looked through, for each one that
-- is made; with an argument that rises call by call, no lock is held for more than one of them.
--
-- This and expire_partitions() act as the owner of the tables, for those who were granted EXECUTE.
CREATE OR REPLACE FUNCTION outbox.ensure_partitions(ahead int DEFAULT 7) RETURNS int
LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s'
AS $function$
DECLARE
  today   CONSTANT date := (now() AT TIME ZONE 'UTC')::date;
  day     date;
  lower   text;
  upper   text;
  part    text;
  in_default boolean;
  created int := 0;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('outbox', 0));
  -- From here on writers may have to queue behind us: those whose rows go to DEFAULT.
  PERFORM set_config('lock_timeout', '200ms', true);
  FOR i IN 0..ahead LOOP
    day := today + i;
    part := 'events_' || to_char(day, 'YYYYMMDD');
    lower := to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00';
    upper := to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00';
    CONTINUE WHEN EXISTS (
      SELECT FROM pg_inherits
      WHERE inhparent = 'outbox.events'::regclass AND inhrelid = to_regclass('outbox.' || part));

    -- Postgres refuses a partition whose rows stand in DEFAULT. They stay there: moving them would
    -- be an insert, and an insert into the outbox is an event.
    in_default := EXISTS (
      SELECT FROM outbox.events_default
      WHERE created_at >= lower::timestamptz AND created_at < upper::timestamptz);
    IF in_default THEN
      RAISE WARNING 'no partition for %: rows of that day are in outbox.events_default', day
        USING HINT = 'They are published from there, and expire_partitions() deletes them in time.';
      CONTINUE;
    END IF;

    -- LIKE and ATTACH, as CREATE TABLE ... PARTITION OF waits for every open writer of the outbox,
    -- and every later writer waits behind it. ATTACH locks DEFAULT alone.
    BEGIN
      EXECUTE format(
        'CREATE TABLE outbox.%I (LIKE outbox.events INCLUDING ALL)
         WITH (autovacuum_vacuum_insert_threshold = -1)',
        part);
      EXECUTE format(
        'ALTER TABLE outbox.events ATTACH PARTITION outbox.%I FOR VALUES FROM (%L) TO (%L)',
        part, lower, upper);
      created := created + 1;
    EXCEPTION
      WHEN check_violation OR lock_not_available OR duplicate_table
        OR invalid_object_definition THEN
        RAISE WARNING 'no partition for %: %', day, SQLERRM;
    END;
  END LOOP;
  RETURN created;
END
$function$;

-- Drops the partitions that ended more than `keep` ago, and returns how many it dropped; rows of
-- that age in the DEFAULT partition are deleted. What the slot has not confirmed stays: it is what
-- `outjet recover` restores events from. Call it in a transaction of its own.
--
-- How it knows: transactions before the slot's catalog_xmin had ended at an LSN that the slot has
-- confirmed (Postgres moves it only then: LogicalIncreaseXminForSlot). A row whose xmin is older
-- was committed before; of any other row nothing is known, and it stays. An xmin wraps after two
-- thousand million transactions, which makes a row look young: it stays longer, at worst.
CREATE OR REPLACE FUNCTION outbox.expire_partitions(
  keep interval DEFAULT '7 days',
  slot name     DEFAULT 'outjet'
) RETURNS int
LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '200ms'  -- for so long may writers have to queue behind us
SET "TimeZone" = 'UTC'
SET "DateStyle" = 'ISO'
AS $function$
DECLARE
  cutoff CONSTANT timestamptz := now() - keep;
  confirmed  xid;
  partition  regclass;
  emptied    regclass[] := '{}';
  unconfirmed boolean;
  dropped    int := 0;
BEGIN
  -- A snapshot older than our locks would not show the rows that came in between.
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'expire_partitions() in a % transaction',
        current_setting('transaction_isolation')
      USING ERRCODE = 'active_sql_transaction', HINT = 'Call it in a READ COMMITTED transaction.';
  END IF;
  PERFORM pg_advisory_xact_lock(hashtextextended('outbox', 0));
  SELECT s.catalog_xmin INTO confirmed FROM pg_replication_slots s
    WHERE s.slot_name = expire_partitions.slot AND s.database = current_database()
      AND s.wal_status IS DISTINCT FROM 'lost';
  IF confirmed IS NULL THEN
    RAISE EXCEPTION 'slot "%" does not exist in this database, or is lost: nothing is expired', slot
      USING ERRCODE = 'object_not_in_prerequisite_state',
        HINT = 'Run: outjet check';
  END IF;

  -- First empty them all, under locks of their own: a drop locks the whole outbox until we commit.
  FOR partition IN
    SELECT i.inhrelid::regclass
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'outbox.events'::regclass AND c.relkind = 'r'
      AND substring(pg_get_expr(c.relpartbound, c.oid)
        FROM $bound$TO \('([^']+)'\)$bound$)::timestamptz <= cutoff
    ORDER BY 1
  LOOP
    BEGIN
      EXECUTE format('LOCK TABLE ONLY %s IN SHARE MODE', partition);
      EXECUTE format('SELECT EXISTS (SELECT FROM ONLY %s WHERE age(xmin) <= age($1))', partition)
        INTO unconfirmed USING confirmed;
      IF unconfirmed THEN
        RAISE WARNING '% stays: slot "%" has not confirmed all of it', partition, slot;
      ELSE
        EXECUTE format('TRUNCATE ONLY %s', partition);
        emptied := emptied || partition;
      END IF;
    EXCEPTION WHEN lock_not_available THEN
      RAISE NOTICE '% is in use: left for the next time', partition;
    END;
  END LOOP;

  -- Bounded, so that one call does not become one huge transaction.
  DELETE FROM ONLY outbox.events_default d
    WHERE d.ctid = ANY (ARRAY(
      SELECT e.ctid FROM ONLY outbox.events_default e
      WHERE e.created_at <= cutoff AND age(e.xmin) > age(confirmed) LIMIT 100000));

  FOREACH partition IN ARRAY emptied LOOP
    BEGIN
      EXECUTE format('DROP TABLE %s', partition);
      dropped := dropped + 1;
    EXCEPTION WHEN lock_not_available THEN
      RAISE NOTICE '% is empty, and dropped the next time: the outbox is in use', partition;
      EXIT;  -- each attempt makes all writers wait
    END;
  END LOOP;
  RETURN dropped;
END
$function$;

REVOKE EXECUTE ON FUNCTION outbox.ensure_partitions(int), outbox.expire_partitions(interval, name)
  FROM PUBLIC;

-- Waits until every event that is visible to the caller is stored in JetStream. False: not within
-- the timeout. It cannot wait for events of the transaction that calls it: commit them first.
CREATE OR REPLACE FUNCTION outbox.wait_published(
  timeout interval DEFAULT '10 s',
  slot    name     DEFAULT 'outjet'
) RETURNS boolean
LANGUAGE plpgsql VOLATILE STRICT
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
  started  CONSTANT timestamptz := clock_timestamp();
  -- When an asynchronous commit that is visible at the start has reached the disk at the latest
  -- (documentation of wal_writer_delay). What is not flushed then is no commit.
  flushed  CONSTANT timestamptz := started + 3 * current_setting('wal_writer_delay')::interval;
  deadline CONSTANT timestamptz := started + timeout;
  target   pg_lsn;
  confirmed pg_lsn;
  status   text;
BEGIN
  IF pg_is_in_recovery() THEN
    RAISE EXCEPTION 'wait_published() works on the primary, this server is a standby'
      USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
  IF pg_current_xact_id_if_assigned() IS NOT NULL THEN
    RAISE EXCEPTION 'wait_published() in a transaction that has written something'
      USING ERRCODE = 'active_sql_transaction',
        HINT = 'Its own events are published after COMMIT: commit, then call wait_published().';
  END IF;
  target := pg_current_wal_insert_lsn();
  LOOP
    SELECT s.confirmed_flush_lsn, s.wal_status INTO confirmed, status
      FROM pg_replication_slots s
      WHERE s.slot_name = wait_published.slot AND s.database = current_database();
    IF NOT FOUND THEN
      RAISE EXCEPTION 'replication slot "%" does not exist in this database', slot
        USING ERRCODE = 'undefined_object', HINT = 'Run: outjet setup';
    END IF;
    IF confirmed >= target THEN
      RETURN true;
    END IF;
    IF status = 'lost' THEN
      RAISE EXCEPTION 'replication slot "%" is lost: nothing is published any more', slot
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Run: outjet check';
    END IF;
    IF clock_timestamp() >= deadline THEN
      RETURN false;
    END IF;
    -- The end of the WAL may hold records that nothing flushes for a while, such as those of a
    -- transaction still open, and a slot confirms only what is flushed.
    IF clock_timestamp() >= flushed THEN
      target := least(target, pg_current_wal_flush_lsn());
    END IF;
    PERFORM pg_sleep(least(0.02, extract(epoch FROM deadline - clock_timestamp())));
  END LOOP;
END
$function$;

-- Whether this consumer sees this message for the first time; true once for each pair. Call it in
-- the transaction that does the consumer's work: if that rolls back, it was not seen.
CREATE OR REPLACE FUNCTION outbox.first_time(consumer text, message_id text) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $function$
BEGIN
  -- Without a conflict target, which would need SELECT on the table.
  INSERT INTO outbox.processed_messages (consumer, message_id)
    VALUES (first_time.consumer, first_time.message_id)
    ON CONFLICT DO NOTHING;
  RETURN FOUND;
END
$function$;

-- Forgets what first_time() has seen longer than `keep` ago, and returns how many messages.
CREATE OR REPLACE FUNCTION outbox.forget_processed(keep interval DEFAULT '30 days') RETURNS bigint
LANGUAGE plpgsql VOLATILE STRICT
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
  forgotten bigint;
BEGIN
  DELETE FROM outbox.processed_messages WHERE processed_at < now() - keep;
  GET DIAGNOSTICS forgotten = ROW_COUNT;
  RETURN forgotten;
END
$function$;

-- The logical slots of this database. Bytes: how far the confirmed position is behind, how much
-- WAL the slot keeps, and how much more it may keep before it is lost (NULL: no limit).
CREATE OR REPLACE VIEW outbox.slot_status AS
SELECT
  s.slot_name,
  s.active,
  s.active_pid,
  s.wal_status,
  s.restart_lsn,
  s.confirmed_flush_lsn,
  pg_wal_lsn_diff(wal.lsn, s.confirmed_flush_lsn) AS lag_bytes,
  pg_wal_lsn_diff(wal.lsn, s.restart_lsn) AS retained_wal_bytes,
  s.safe_wal_size
FROM pg_replication_slots s
CROSS JOIN LATERAL (
  SELECT CASE WHEN pg_is_in_recovery()
    THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn
) wal
WHERE s.slot_type = 'logical' AND s.database = current_database();

INSERT INTO outbox.schema_version (version) VALUES (3) ON CONFLICT DO NOTHING;
SELECT outbox.ensure_partitions();
COMMIT;
