//! The outbox tables of other systems, as they document them: which column is which field, and
//! which columns they have for a poller's own use.

use super::Field::{self, *};
use super::{Inside, Mapping, Marker, Origin, Syntax};

/// A known layout of an outbox table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// `outbox.events` as `outjet setup` makes it.
    Native,
    /// Debezium's outbox event router, and Quarkus's extension for it.
    Debezium,
    /// `outboxes`: a topic, metadata, a payload, and a poller's state.
    PgOutbox,
    /// `outbox_events` with `published_at`.
    OutboxEvents,
    /// The same with a trace carrier, a status and an attempt count.
    RelayEvents,
    /// Tenant, versions, privacy and scheduling.
    Envelope,
    /// Open Outbox Relay.
    OpenOutbox,
    /// Watermill's SQL Pub/Sub; one table a topic.
    Watermill,
    /// Eventuate Tram's `message`.
    Eventuate,
    /// The npm package pg-transactional-outbox.
    PgTransactionalOutbox,
}

/// How a preset reads a field.
enum Reading {
    /// In this column.
    Column(&'static str),
    /// In this column, where the table has it.
    Maybe(&'static str),
    /// In the JSON object in a column, at `column.key`; NULL where there is no such key.
    Json(&'static str),
    /// In the text of Java properties in a column, where the table has it; at `column.key`.
    Properties(&'static str),
    /// The same for every row.
    Value(&'static str),
}

use Reading::{Column, Json, Maybe, Properties, Value};

type Fields = &'static [(Field, Reading)];

/// `sql/install.sql`.
const NATIVE: Fields = &[
    (Id, Column("id")),
    (Topic, Column("topic")),
    (AggregateType, Column("aggregatetype")),
    (AggregateId, Column("aggregateid")),
    (Type, Column("type")),
    (Payload, Column("payload")),
    (PayloadRaw, Column("payload_raw")),
    (ContentType, Column("content_type")),
    (Headers, Column("headers")),
    (TenantId, Column("tenant_id")),
    (CorrelationId, Column("correlation_id")),
    (Traceparent, Column("traceparent")),
    (CreatedAt, Column("created_at")),
    (DedupKey, Column("dedup_key")),
    // Since version 3 of the schema.
    (DeliverAt, Maybe("deliver_at")),
    (ExpiresAt, Maybe("expires_at")),
];

/// Debezium documentation, "Outbox Event Router" and "Outbox Quarkus Extension".
const DEBEZIUM: Fields = &[
    (Id, Column("id")),
    (AggregateType, Column("aggregatetype")),
    (AggregateId, Column("aggregateid")),
    (Type, Column("type")),
    (Payload, Column("payload")),
    (CreatedAt, Maybe("timestamp")),
    (Traceparent, Properties("tracingspancontext.traceparent")),
    (Tracestate, Properties("tracingspancontext.tracestate")),
    (Baggage, Properties("tracingspancontext.baggage")),
];

/// github.com/senku-tech/pg-outbox, `sql/schema.sql`.
const PG_OUTBOX: Fields = &[
    (Id, Column("id")),
    (Topic, Column("topic")),
    (Type, Column("topic")),
    (Headers, Column("metadata")),
    (Payload, Column("payload")),
    (CreatedAt, Column("created_at")),
];

const OUTBOX_EVENTS: Fields = &[
    (Id, Column("id")),
    (AggregateId, Column("aggregate_id")),
    (Type, Column("event_type")),
    (Payload, Column("payload")),
    (CreatedAt, Column("created_at")),
];

/// The carrier is what OpenTelemetry's propagators write into a map.
const RELAY_EVENTS: Fields = &[
    (Id, Column("id")),
    (AggregateId, Column("aggregate_id")),
    (Type, Column("event_type")),
    (Payload, Column("payload")),
    (CreatedAt, Column("created_at")),
    (Traceparent, Json("carrier.traceparent")),
    (Tracestate, Json("carrier.tracestate")),
    (Baggage, Json("carrier.baggage")),
];

const ENVELOPE: Fields = &[
    (Id, Column("id")),
    (TenantId, Column("tenant_id")),
    (AggregateId, Column("aggregate_id")),
    (AggregateType, Column("aggregate_type")),
    (Type, Column("event_type")),
    (SchemaVersion, Column("event_version")),
    (Payload, Column("payload")),
    (Metadata, Column("metadata")),
    (DedupKey, Column("idempotency_key")),
    (TraceId, Column("trace_id")),
    (CorrelationId, Column("correlation_id")),
    (CreatedAt, Column("created_at")),
    (DeliverAt, Maybe("scheduled_for")),
    (Pii, Column("pii")),
    (PiiFields, Column("pii_fields")),
    (Consent, Column("consent")),
    (Producer, Column("producer")),
];

/// github.com/open-outbox/relay, "Table Schema"; its NATS publisher takes the type as the subject.
const OPEN_OUTBOX: Fields = &[
    (Id, Column("event_id")),
    (Topic, Column("event_type")),
    (Type, Column("event_type")),
    (AggregateId, Column("partition_key")),
    (Payload, Column("payload")),
    (Headers, Column("headers")),
    (CreatedAt, Column("created_at")),
];

/// github.com/ThreeDotsLabs/watermill-sql, `DefaultPostgreSQLSchema`. The topic is in the table's
/// name.
const WATERMILL: Fields = &[
    (Id, Column("uuid")),
    (Payload, Column("payload")),
    (Headers, Column("metadata")),
    (CreatedAt, Column("created_at")),
];

/// github.com/eventuate-foundation/eventuate-common, `postgres/2.initialize-database.sql`; the
/// names of the headers are those of Tram's `EventMessageHeaders`.
const EVENTUATE: Fields = &[
    (Id, Column("id")),
    (Topic, Column("destination")),
    (Type, Json("headers.event-type")),
    (AggregateType, Json("headers.event-aggregate-type")),
    (AggregateId, Json("headers.event-aggregate-id")),
    (Payload, Column("payload")),
    (Headers, Column("headers")),
    (ContentType, Value("application/json")),
];

/// github.com/Zehelein/pg-transactional-outbox, `example-create-polling-outbox.sql`.
const PG_TRANSACTIONAL_OUTBOX: Fields = &[
    (Id, Column("id")),
    (AggregateType, Column("aggregate_type")),
    (AggregateId, Column("aggregate_id")),
    (Type, Column("message_type")),
    (Payload, Column("payload")),
    (Headers, Column("metadata")),
    (CreatedAt, Column("created_at")),
];

impl Preset {
    /// Every preset with the word that it has in the configuration.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::Native, "native"),
        (Self::Debezium, "debezium"),
        (Self::PgOutbox, "pg-outbox"),
        (Self::OutboxEvents, "outbox-events"),
        (Self::RelayEvents, "relay-events"),
        (Self::Envelope, "envelope"),
        (Self::OpenOutbox, "open-outbox"),
        (Self::Watermill, "watermill"),
        (Self::Eventuate, "eventuate"),
        (Self::PgTransactionalOutbox, "pg-transactional-outbox"),
    ];

    /// The preset with this word.
    pub fn named(word: &str) -> Option<Self> {
        let mut all = Self::ALL.iter();
        all.find(|(_, known)| *known == word)
            .map(|(found, _)| *found)
    }

    /// The word that it has in the configuration.
    pub fn word(self) -> &'static str {
        let mut all = Self::ALL.iter();
        all.find(|(known, _)| *known == self)
            .map_or("", |(_, word)| word)
    }

    /// The mapping of a table with this layout.
    pub fn mapping(self, schema: impl Into<String>, table: impl Into<String>) -> Mapping {
        let mut mapping = Mapping::new(schema, table);
        for (field, from) in self.fields() {
            mapping.set(*field, from.origin());
            if matches!(from, Maybe(_) | Properties(_)) {
                mapping.dispensable.push(*field);
            }
        }
        let published = self.published().iter();
        let published = published.map(|(column, value)| Marker::expected(column, *value));
        mapping.published = published.collect();
        mapping
    }

    /// The columns by which a table of this layout is known: those that are read, and those that
    /// the system has for itself.
    pub fn columns(self) -> impl Iterator<Item = &'static str> {
        let needed = self.fields().iter().filter_map(|(_, from)| match from {
            Column(name) => Some(*name),
            Json(path) => path.split('.').next(),
            Maybe(_) | Properties(_) | Value(_) => None,
        });
        needed.chain(self.own().iter().copied())
    }

    fn fields(self) -> Fields {
        match self {
            Self::Native => NATIVE,
            Self::Debezium => DEBEZIUM,
            Self::PgOutbox => PG_OUTBOX,
            Self::OutboxEvents => OUTBOX_EVENTS,
            Self::RelayEvents => RELAY_EVENTS,
            Self::Envelope => ENVELOPE,
            Self::OpenOutbox => OPEN_OUTBOX,
            Self::Watermill => WATERMILL,
            Self::Eventuate => EVENTUATE,
            Self::PgTransactionalOutbox => PG_TRANSACTIONAL_OUTBOX,
        }
    }

    /// What its poller writes into a row that it has published: something into this column, or this
    /// text. Any of these counts.
    fn published(self) -> &'static [(&'static str, Option<&'static str>)] {
        match self {
            // The systems themselves mark nothing; somebody's own poller may.
            Self::Native | Self::Debezium | Self::Watermill => &[("published_at", None)],
            Self::PgOutbox | Self::OutboxEvents => &[("published_at", None)],
            // A row that is to be sent again is PENDING again, and keeps its time.
            Self::RelayEvents => &[("status", Some("PUBLISHED"))],
            Self::Envelope => &[("published_at", None), ("processed_at", None)],
            // DEAD rows were given up, not published; so were abandoned ones.
            Self::OpenOutbox => &[("status", Some("DELIVERED"))],
            Self::Eventuate => &[("published", None)],
            Self::PgTransactionalOutbox => &[("processed_at", None)],
        }
    }

    /// What a poller notes beside each event. Nothing of it is needed.
    fn own(self) -> &'static [&'static str] {
        match self {
            Self::Native | Self::Debezium => &[],
            Self::PgOutbox => &["seq", "published_at", "attempts", "last_error"],
            Self::OutboxEvents => &["published_at"],
            Self::RelayEvents => &["published_at", "status", "attempt_count"],
            Self::Envelope => &[
                "processed_at",
                "published_at",
                "retry_count",
                "last_error",
                "scheduled_for",
            ],
            Self::OpenOutbox => &[
                "status",
                "attempts",
                "last_error",
                "available_at",
                "locked_by",
                "locked_at",
                "delivered_at",
                "updated_at",
            ],
            Self::Watermill => &["offset", "transaction_id"],
            Self::Eventuate => &["published", "creation_time"],
            Self::PgTransactionalOutbox => &["segment", "concurrency", "locked_until"],
        }
    }
}

impl Reading {
    fn origin(&self) -> Origin {
        let inside = |path: &str, syntax| Origin::Inside(Inside::new(path, syntax, true));
        match *self {
            Column(name) | Maybe(name) => Origin::Column(name.to_owned()),
            Json(path) => inside(path, Syntax::Json),
            Properties(path) => inside(path, Syntax::Properties),
            Value(text) => Origin::Constant(text.to_owned()),
        }
    }
}
