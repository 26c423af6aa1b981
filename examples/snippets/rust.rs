//! The snippet in Rust of docs/producers.md, which is what follows.

use outjet::producer::Event;
use serde_json::json;
use tokio_postgres::Client;

pub async fn place_order(
    client: &mut Client,
    order: &str,
    total: f64,
    traceparent: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let transaction = client.transaction().await?;
    let update = "UPDATE orders SET state = 'placed' WHERE id = $1";
    transaction.execute(update, &[&order]).await?;
    Event::new("order", order, "OrderPlaced")
        .json(&json!({ "total": total }))?
        .traceparent(traceparent)
        .insert(&transaction)
        .await?;
    Ok(transaction.commit().await?)
}
