-- github.com/senku-tech/pg-outbox, sql/schema.sql: table, indexes, the trigger that is meant to make
-- partitions, and the partitions of two months.
CREATE TABLE outboxes (
  id           uuid         NOT NULL DEFAULT gen_random_uuid(),
  seq          bigserial    NOT NULL,
  created_at   timestamptz  NOT NULL DEFAULT now(),
  topic        varchar(255) NOT NULL,
  metadata     jsonb,
  payload      jsonb        NOT NULL,
  published_at timestamptz,
  attempts     integer      NOT NULL DEFAULT 0,
  last_error   text,
  PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);

CREATE INDEX idx_outboxes_seq ON outboxes (seq) WHERE published_at IS NULL;
CREATE INDEX idx_outboxes_published_at ON outboxes (published_at);
CREATE INDEX idx_outboxes_topic ON outboxes (topic);
CREATE INDEX idx_outboxes_attempts ON outboxes (attempts) WHERE published_at IS NULL;

CREATE FUNCTION create_outbox_partition() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  first date := date_trunc('month', NEW.created_at);
  name text := 'outboxes_' || to_char(first, 'YYYY_MM');
BEGIN
  IF NOT EXISTS (SELECT FROM pg_class WHERE relname = name) THEN
    EXECUTE format('CREATE TABLE IF NOT EXISTS %I PARTITION OF outboxes FOR VALUES FROM (%L) TO (%L)',
      name, first, first + interval '1 month');
  END IF;
  RETURN NEW;
END $$;

CREATE TRIGGER trigger_create_outbox_partition BEFORE INSERT ON outboxes
  FOR EACH ROW EXECUTE FUNCTION create_outbox_partition();

DO $$
DECLARE
  first date := date_trunc('month', current_date);
BEGIN
  FOR n IN 0..1 LOOP
    EXECUTE format('CREATE TABLE outboxes_%s PARTITION OF outboxes FOR VALUES FROM (%L) TO (%L)',
      to_char(first + n * interval '1 month', 'YYYY_MM'),
      first + n * interval '1 month', first + (n + 1) * interval '1 month');
  END LOOP;
END $$;
