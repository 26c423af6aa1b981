//! For applications in Rust: an event is written by the transaction that does the work, and is
//! published if that commits. Needs tokio-postgres, and of this crate the feature `producer` alone.
//!
//! ```no_run
//! use std::error::Error;
//!
//! use outjet::producer::Event;
//! use tokio_postgres::Client;
//!
//! #[derive(serde::Serialize)]
//! struct OrderPlaced {
//!     total: f64,
//! }
//!
//! async fn place(client: &mut Client) -> Result<(), Box<dyn Error>> {
//!     let transaction = client.transaction().await?;
//!     transaction.execute("UPDATE orders SET state = 'placed' WHERE id = 42", &[]).await?;
//!     let event = Event::new("order", "42", "OrderPlaced")
//!         .json(&OrderPlaced { total: 9.5 })?
//!         .traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
//!     event.insert(&transaction).await?;
//!     transaction.commit().await?;
//!     Ok(())
//! }
//! ```

use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error, GenericClient};
use uuid::Uuid;

/// An event to be written, with the columns of `outbox.events`. What is not given is left to the
/// defaults of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    id: Uuid,
    aggregate_type: String,
    aggregate_id: String,
    event_type: String,
    body: Body,
    topic: Option<String>,
    headers: Map<String, Value>,
    tenant_id: Option<String>,
    correlation_id: Option<String>,
    traceparent: Option<String>,
    dedup_key: Option<String>,
    deliver_at: Option<SystemTime>,
    expires_at: Option<SystemTime>,
}

#[derive(Clone, Debug, PartialEq)]
enum Body {
    Empty,
    Json(String),
    Bytes {
        bytes: Vec<u8>,
        content_type: String,
    },
}

impl Event {
    /// An event without a body. Its id is new, and larger than those made before it (UUID 7).
    pub fn new(
        aggregate_type: impl Into<String>,
        aggregate_id: impl Into<String>,
        event_type: impl Into<String>,
    ) -> Self {
        Self {
            id: Uuid::now_v7(),
            aggregate_type: aggregate_type.into(),
            aggregate_id: aggregate_id.into(),
            event_type: event_type.into(),
            body: Body::Empty,
            topic: None,
            headers: Map::new(),
            tenant_id: None,
            correlation_id: None,
            traceparent: None,
            dedup_key: None,
            deliver_at: None,
            expires_at: None,
        }
    }

    /// What consumers know it by.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// An id of the caller's, that of a request, say: the same request inserts it once.
    #[must_use]
    pub fn with_id(self, id: Uuid) -> Self {
        Self { id, ..self }
    }

    /// The body as JSON. Postgres stores it as `jsonb`.
    pub fn json(self, payload: &(impl Serialize + ?Sized)) -> Result<Self, serde_json::Error> {
        let body = Body::Json(serde_json::to_string(payload)?);
        Ok(Self { body, ..self })
    }

    /// A body that is sent untouched.
    #[must_use]
    pub fn bytes(self, bytes: impl Into<Vec<u8>>, content_type: impl Into<String>) -> Self {
        let body = Body::Bytes {
            bytes: bytes.into(),
            content_type: content_type.into(),
        };
        Self { body, ..self }
    }

    /// The subject, instead of one made of the aggregate's type and the event's.
    #[must_use]
    pub fn topic(self, subject: impl Into<String>) -> Self {
        let topic = Some(subject.into());
        Self { topic, ..self }
    }

    /// A header of the message: a text, a number, a boolean, or an array of them to repeat it.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// W3C trace context.
    #[must_use]
    pub fn traceparent(self, traceparent: impl Into<String>) -> Self {
        let traceparent = Some(traceparent.into());
        Self {
            traceparent,
            ..self
        }
    }

    /// The tenant.
    #[must_use]
    pub fn tenant_id(self, id: impl Into<String>) -> Self {
        let tenant_id = Some(id.into());
        Self { tenant_id, ..self }
    }

    /// What ties it to other events.
    #[must_use]
    pub fn correlation_id(self, id: impl Into<String>) -> Self {
        let correlation_id = Some(id.into());
        Self {
            correlation_id,
            ..self
        }
    }

    /// A business key by which consumers may drop repeats.
    #[must_use]
    pub fn dedup_key(self, key: impl Into<String>) -> Self {
        let dedup_key = Some(key.into());
        Self { dedup_key, ..self }
    }

    /// Consumers get it then and not before, on the subject `delayed.<subject>`.
    #[must_use]
    pub fn deliver_at(self, time: SystemTime) -> Self {
        let deliver_at = Some(time);
        Self { deliver_at, ..self }
    }

    /// The stream drops it then.
    #[must_use]
    pub fn expires_at(self, time: SystemTime) -> Self {
        let expires_at = Some(time);
        Self { expires_at, ..self }
    }

    /// Inserts it into `outbox.events`: `client` is the transaction that does the work. Asks for no
    /// right but INSERT.
    pub async fn insert(&self, client: &impl GenericClient) -> Result<(), Error> {
        self.insert_into(client, "outbox", "events").await
    }

    /// Inserts it into another table with columns of these names; only those must exist whose
    /// values were given. Both names stand as they are in the catalog.
    pub async fn insert_into(
        &self,
        client: &impl GenericClient,
        schema: &str,
        table: &str,
    ) -> Result<(), Error> {
        let headers = (!self.headers.is_empty()).then(|| Value::from(self.headers.clone()));
        let headers = headers.map(|headers| headers.to_string());
        let row = self.row(headers.as_ref());
        let columns: Vec<&str> = row.iter().map(|cell| cell.column).collect();
        let places: Vec<String> = (1..).zip(&row).map(|(n, cell)| cell.place(n)).collect();
        let sql = format!(
            "INSERT INTO {}.{} ({}) VALUES ({})",
            quote(schema),
            quote(table),
            columns.join(", "),
            places.join(", "),
        );
        let values: Vec<_> = row
            .into_iter()
            .map(|cell| (cell.value, cell.kind))
            .collect();
        client.execute_typed(&sql, &values).await?;
        Ok(())
    }

    /// The columns that have a value.
    fn row<'a>(&'a self, headers: Option<&'a String>) -> Vec<Cell<'a>> {
        let mut row = vec![
            Cell::new("id", &self.id, Type::UUID),
            Cell::new("aggregatetype", &self.aggregate_type, Type::TEXT),
            Cell::new("aggregateid", &self.aggregate_id, Type::TEXT),
            Cell::new("type", &self.event_type, Type::TEXT),
        ];
        match &self.body {
            Body::Empty => {}
            Body::Json(json) => row.push(Cell::new("payload", json, Type::TEXT).json()),
            Body::Bytes {
                bytes,
                content_type,
            } => {
                row.push(Cell::new("payload_raw", bytes, Type::BYTEA));
                row.push(Cell::new("content_type", content_type, Type::TEXT));
            }
        }
        row.extend(headers.map(|headers| Cell::new("headers", headers, Type::TEXT).json()));
        let texts = [
            ("topic", &self.topic),
            ("tenant_id", &self.tenant_id),
            ("correlation_id", &self.correlation_id),
            ("traceparent", &self.traceparent),
            ("dedup_key", &self.dedup_key),
        ];
        let given = texts
            .into_iter()
            .filter_map(|(column, text)| Some(Cell::new(column, text.as_ref()?, Type::TEXT)));
        row.extend(given);
        let times = [
            ("deliver_at", &self.deliver_at),
            ("expires_at", &self.expires_at),
        ];
        let given = times.into_iter().filter_map(|(column, time)| {
            Some(Cell::new(column, time.as_ref()?, Type::TIMESTAMPTZ))
        });
        row.extend(given);
        row
    }
}

/// A column with its value.
struct Cell<'a> {
    column: &'static str,
    value: &'a (dyn ToSql + Sync),
    kind: Type,
    json: bool,
}

impl<'a> Cell<'a> {
    fn new(column: &'static str, value: &'a (dyn ToSql + Sync), kind: Type) -> Self {
        Self {
            column,
            value,
            kind,
            json: false,
        }
    }

    fn json(self) -> Self {
        Self { json: true, ..self }
    }

    /// Its place among the values.
    fn place(&self, number: usize) -> String {
        match self.json {
            true => format!("${number}::jsonb"),
            false => format!("${number}"),
        }
    }
}

/// An identifier for SQL.
fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}
