-- The player service's relay that outjet replaces: outbox_events with the trace context in a JSONB
-- carrier, a status and an attempt count.
CREATE TABLE players (id uuid PRIMARY KEY, name text NOT NULL);

CREATE TABLE outbox_events (
  id            uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
  aggregate_id  text        NOT NULL,
  event_type    text        NOT NULL,
  payload       jsonb       NOT NULL,
  carrier       jsonb       NOT NULL DEFAULT '{}',
  status        text        NOT NULL DEFAULT 'PENDING',
  attempt_count integer     NOT NULL DEFAULT 0,
  created_at    timestamptz NOT NULL DEFAULT now(),
  published_at  timestamptz
);
