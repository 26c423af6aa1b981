-- The Vertikon outbox that outjet replaces: a row for each event with tenant, version, privacy and
-- scheduling.
CREATE TABLE outbox (
  id              uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id       text        NOT NULL,
  aggregate_id    text        NOT NULL,
  aggregate_type  text        NOT NULL,
  event_type      text        NOT NULL,
  event_version   integer     NOT NULL DEFAULT 1,
  payload         jsonb       NOT NULL,
  metadata        jsonb,
  idempotency_key text        NOT NULL UNIQUE,
  trace_id        text,
  correlation_id  text,
  created_at      timestamptz NOT NULL DEFAULT now(),
  processed_at    timestamptz,
  published_at    timestamptz,
  retry_count     integer     NOT NULL DEFAULT 0,
  last_error      text,
  scheduled_for   timestamptz,
  pii             boolean     NOT NULL DEFAULT false,
  pii_fields      text[],
  consent         text,
  producer        text        NOT NULL
);
