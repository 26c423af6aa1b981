-- github.com/open-outbox/relay, documentation, "Table Schema".
CREATE TABLE openoutbox_events (
  event_id      uuid        PRIMARY KEY,
  event_type    text        NOT NULL,
  partition_key text,
  payload       bytea       NOT NULL,
  headers       jsonb       NOT NULL DEFAULT '{}',
  status        text        NOT NULL DEFAULT 'PENDING',
  attempts      int         NOT NULL DEFAULT 0,
  last_error    text,
  available_at  timestamptz NOT NULL DEFAULT now(),
  locked_by     text,
  locked_at     timestamptz,
  delivered_at  timestamptz,
  created_at    timestamptz NOT NULL DEFAULT now(),
  updated_at    timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT check_valid_status
    CHECK (status IN ('PENDING', 'DELIVERING', 'DELIVERED', 'DEAD'))
);

CREATE INDEX idx_openoutbox_processing_queue ON openoutbox_events (available_at, created_at)
  WHERE status = 'PENDING';
