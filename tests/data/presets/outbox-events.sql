-- The Redis Streams sample that outjet replaces: outbox_events with published_at, and an index on
-- what is unpublished.
CREATE TABLE users (id serial PRIMARY KEY, name text NOT NULL, email text NOT NULL UNIQUE);

CREATE TABLE outbox_events (
  id           bigserial    PRIMARY KEY,
  aggregate_id varchar(255) NOT NULL,
  event_type   varchar(255) NOT NULL,
  payload      jsonb        NOT NULL,
  created_at   timestamptz  NOT NULL DEFAULT now(),
  published_at timestamptz
);

CREATE INDEX idx_outbox_events_unpublished ON outbox_events (created_at) WHERE published_at IS NULL;
