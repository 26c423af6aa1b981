//! `outjet emit`: writes one event into `outbox.events`, in a transaction of its own.

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use crate::error::{Exit, Failure, Problem};
use crate::pg::catalog::Error;

/// What `outbox.emit()` is called with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The type of the aggregate.
    pub aggregatetype: String,
    /// The aggregate's id.
    pub aggregateid: String,
    /// The event's type.
    pub event_type: String,
    /// JSON.
    pub payload: Option<String>,
    /// The subject; without it it comes from the types.
    pub topic: Option<String>,
    /// A JSON object.
    pub headers: Option<String>,
    /// A UUID; without it the server makes one.
    pub id: Option<String>,
}

/// Commits the event and returns its id.
pub async fn emit(client: &Client, event: &Event) -> Result<String, Failure> {
    let sql = include_str!("../../sql/emit.sql");
    let params: [&(dyn ToSql + Sync); 7] = [
        &event.aggregatetype,
        &event.aggregateid,
        &event.event_type,
        &event.payload,
        &event.topic,
        &event.headers,
        &event.id,
    ];
    let row = client.query_one(sql, &params).await;
    row.and_then(|row| row.try_get(0))
        .map_err(|error| failure(Error::new("emit an event", error)))
}

/// Codes: Postgres documentation, appendix A.
fn failure(error: Error) -> Failure {
    let problem = |problem: &str, fix: &str| Problem::new(problem, error.cause(), fix);
    match error.sqlstate() {
        // invalid_schema_name, undefined_function
        Some("3F000" | "42883") => Failure::halt(
            Exit::CheckFailed,
            problem(
                "The schema outbox is not installed in this database",
                "outjet setup",
            ),
        ),
        // insufficient_privilege
        Some("42501") => Failure::halt(
            Exit::NotPermitted,
            problem(
                "This role may not write to the outbox",
                "GRANT USAGE ON SCHEMA outbox TO …; GRANT INSERT ON outbox.events TO …;",
            ),
        ),
        // invalid_text_representation, untranslatable_character
        Some("22P02" | "22P05") => Failure::halt(
            Exit::Usage,
            problem(
                "The event is not well-formed",
                "Payload and headers are JSON, the id is a UUID.",
            ),
        ),
        _ => error.failure(),
    }
}
