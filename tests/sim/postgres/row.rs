//! A row of `outbox.events`, as sql/install.sql makes the table.

/// What a writer inserts. Values are the type's text form as the server prints it: `jsonb`
/// normalised, `bytea` in hex (`\x…`), `timestamptz` in UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// A uuid.
    pub(crate) id: String,
    /// `None`: when its transaction began.
    pub(crate) created_at: Option<String>,
    /// The first part of the subject, unless `topic` is given.
    pub(crate) aggregatetype: String,
    /// What it is about.
    pub(crate) aggregateid: String,
    /// The second part of the subject.
    pub(crate) kind: String,
    /// The body.
    pub(crate) payload: Option<String>,
    /// Instead of it: bytes, in hex.
    pub(crate) payload_raw: Option<String>,
    /// Of `payload_raw`.
    pub(crate) content_type: Option<String>,
    /// The subject.
    pub(crate) topic: Option<String>,
    /// An object of strings.
    pub(crate) headers: Option<String>,
    /// A header.
    pub(crate) tenant_id: Option<String>,
    /// A header.
    pub(crate) correlation_id: Option<String>,
    /// A header.
    pub(crate) traceparent: Option<String>,
    /// A header.
    pub(crate) dedup_key: Option<String>,
    /// Delayed until then.
    pub(crate) deliver_at: Option<String>,
    /// Gone from then on.
    pub(crate) expires_at: Option<String>,
}

impl Row {
    /// An event of type `created` of aggregate `order` 1, everything optional left out.
    pub(crate) fn new(id: impl Into<String>, payload: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            created_at: None,
            aggregatetype: "order".to_owned(),
            aggregateid: "1".to_owned(),
            kind: "created".to_owned(),
            payload: Some(payload.into()),
            payload_raw: None,
            content_type: None,
            topic: None,
            headers: None,
            tenant_id: None,
            correlation_id: None,
            traceparent: None,
            dedup_key: None,
            deliver_at: None,
            expires_at: None,
        }
    }

    /// In the order of [`COLUMNS`].
    pub(super) fn values(&self) -> [Option<&str>; 16] {
        [
            Some(self.id.as_str()),
            self.created_at.as_deref(),
            Some(self.aggregatetype.as_str()),
            Some(self.aggregateid.as_str()),
            Some(self.kind.as_str()),
            self.payload.as_deref(),
            self.payload_raw.as_deref(),
            self.content_type.as_deref(),
            self.topic.as_deref(),
            self.headers.as_deref(),
            self.tenant_id.as_deref(),
            self.correlation_id.as_deref(),
            self.traceparent.as_deref(),
            self.dedup_key.as_deref(),
            self.deliver_at.as_deref(),
            self.expires_at.as_deref(),
        ]
    }
}

/// A column of `outbox.events`.
#[derive(Clone, Copy)]
pub(super) struct Column {
    pub(super) name: &'static str,
    /// In `pg_type`.
    pub(super) oid: u32,
    /// As `format_type` spells it.
    pub(super) type_name: &'static str,
    pub(super) not_null: bool,
    /// Of the primary key, which is the replica identity.
    pub(super) key: bool,
}

/// Of `outbox.events`.
pub(super) const COLUMNS: [Column; 16] = [
    column("id", 2950, true, true),
    column("created_at", 1184, true, true),
    column("aggregatetype", 25, true, false),
    column("aggregateid", 25, true, false),
    column("type", 25, true, false),
    column("payload", 3802, false, false),
    column("payload_raw", 17, false, false),
    column("content_type", 25, false, false),
    column("topic", 25, false, false),
    column("headers", 3802, false, false),
    column("tenant_id", 25, false, false),
    column("correlation_id", 25, false, false),
    column("traceparent", 25, false, false),
    column("dedup_key", 25, false, false),
    column("deliver_at", 1184, false, false),
    column("expires_at", 1184, false, false),
];

const fn column(name: &'static str, oid: u32, not_null: bool, key: bool) -> Column {
    let type_name = match oid {
        2950 => "uuid",
        1184 => "timestamp with time zone",
        3802 => "jsonb",
        17 => "bytea",
        _ => "text",
    };
    Column {
        name,
        oid,
        type_name,
        not_null,
        key,
    }
}
