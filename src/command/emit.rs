//! `outjet emit`: writes one event into `outbox.events`, in a transaction of its own.

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::{Out, unwritten};
use crate::cli;
use crate::error::{Exit, Failure, Problem};
use crate::pg::catalog::StatementError;
use crate::pg::params::Params;

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

/// Commits as many events as were asked for and writes their ids.
pub async fn emit_all(typed: &cli::Emit, params: &Params, out: Out<'_>) -> Result<(), Failure> {
    let control = super::connect(params).await?;
    let headers = &typed.headers;
    let headers: serde_json::Map<String, serde_json::Value> = headers
        .iter()
        .map(|(name, value)| (name.clone(), value.clone().into()))
        .collect();
    let event = Event {
        aggregatetype: typed.aggregatetype.clone(),
        aggregateid: typed.aggregateid.clone(),
        event_type: typed.event_type.clone(),
        payload: Some(typed.payload.clone()),
        topic: typed.topic.clone(),
        headers: (!headers.is_empty()).then(|| serde_json::Value::Object(headers).to_string()),
        id: None,
    };
    if let Some(tenant) = &typed.tenant {
        let sql = "SELECT set_config('outbox.tenant_id', $1, false)";
        let set = control.client().execute(sql, &[tenant]).await;
        set.map_err(|error| StatementError::new("set the tenant", error).failure())?;
    }
    for _ in 0..typed.count {
        let id = emit(control.client(), &event).await?;
        writeln!(out, "{id}").map_err(unwritten)?;
    }
    Ok(())
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
        .map_err(|error| failure(StatementError::new("emit an event", error)))
}

/// Why nothing was emitted. Codes: Postgres documentation, appendix A.
pub(super) fn failure(error: StatementError) -> Failure {
    let problem = |problem: &str, fix: &str| Problem::new(problem, error.cause(), fix);
    match error.sqlstate() {
        // invalid_schema_name, undefined_function
        Some("3F000" | "42883") => Failure::halt(
            Exit::CheckFailed,
            problem(
                "the schema outbox is not installed in this database",
                "`outjet setup`",
            ),
        ),
        // insufficient_privilege
        Some("42501") => Failure::halt(
            Exit::NotPermitted,
            problem(
                "this role may not write to the outbox",
                "GRANT USAGE ON SCHEMA outbox TO …; GRANT INSERT ON outbox.events TO …;",
            ),
        ),
        // invalid_text_representation, untranslatable_character
        Some("22P02" | "22P05") => Failure::halt(
            Exit::Usage,
            problem(
                "the event is not well-formed",
                "payload and headers are JSON, the id is a UUID",
            ),
        ),
        _ => error.failure(),
    }
}
