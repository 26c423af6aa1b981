//! The order API: `POST /orders` writes an order and its event in one transaction. Either both are
//! there or neither; the answer waits for Postgres alone, NATS may be away.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use deadpool_postgres::Pool;
use outjet::producer::Event;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::Failure;

/// What is ordered.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Wanted {
    pub(crate) sku: String,
    pub(crate) quantity: i32,
}

/// The payload of the event, and the answer.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct OrderPlaced {
    pub(crate) order: Uuid,
    pub(crate) sku: String,
    pub(crate) quantity: i32,
}

/// Answers for ever.
pub(crate) async fn serve(listener: TcpListener, pool: Pool) -> Result<(), Failure> {
    let routes = Router::new().route("/orders", post(place)).with_state(pool);
    Ok(axum::serve(listener, routes).await?)
}

async fn place(
    State(pool): State<Pool>,
    Json(wanted): Json<Wanted>,
) -> Result<(StatusCode, Json<OrderPlaced>), (StatusCode, String)> {
    let placed = insert(&pool, wanted).await;
    let refused = |error: Failure| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    placed
        .map(|placed| (StatusCode::CREATED, Json(placed)))
        .map_err(refused)
}

async fn insert(pool: &Pool, wanted: Wanted) -> Result<OrderPlaced, Failure> {
    let placed = OrderPlaced {
        order: Uuid::now_v7(),
        sku: wanted.sku,
        quantity: wanted.quantity,
    };
    let event = Event::new("order", placed.order, "OrderPlaced").json(&placed)?;

    let mut client = pool.get().await?;
    let transaction = client.transaction().await?;
    let order = "INSERT INTO orders (id, sku, quantity) VALUES ($1, $2, $3)";
    transaction
        .execute(order, &[&placed.order, &placed.sku, &placed.quantity])
        .await?;
    event.insert(&*transaction).await?;
    transaction.commit().await?;
    Ok(placed)
}
