-- Debezium documentation, "Outbox Event Router" (basic outbox table), with the two columns that
-- "Outbox Quarkus Extension" adds: timestamp, and the trace context as Java properties.
CREATE TABLE outboxevent (
  id                 uuid         NOT NULL PRIMARY KEY,
  aggregatetype      varchar(255) NOT NULL,
  aggregateid        varchar(255) NOT NULL,
  type               varchar(255) NOT NULL,
  timestamp          timestamptz  NOT NULL,
  payload            jsonb,
  tracingspancontext varchar(256)
);
