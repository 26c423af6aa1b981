//! What docs/consumers.md shows: how a consumer reads a body, wherever it is.

use async_nats::Message;
use async_nats::jetstream::Context;
use bytes::Bytes;
use tokio::io::AsyncReadExt;

pub(crate) async fn body(
    jetstream: &Context,
    message: &Message,
) -> Result<Bytes, async_nats::Error> {
    let headers = message.headers.as_ref();
    let reference = headers.and_then(|headers| headers.get("ce-dataref"));
    let object = reference.and_then(|value| value.as_str().strip_prefix("nats-object://"));
    let Some((bucket, name)) = object.and_then(|object| object.split_once('/')) else {
        return Ok(message.payload.clone());
    };
    let bucket = jetstream.get_object_store(bucket).await?;
    let mut body = Vec::new();
    bucket.get(name).await?.read_to_end(&mut body).await?;
    Ok(body.into())
}

#[test]
fn page_for_consumers_shows_what_is_tried_here() {
    let (here, page) = (
        include_str!("consumer.rs"),
        include_str!("../../../docs/consumers.md"),
    );
    let shown = &here[here.find("async fn body").expect("the function")..];
    let shown = &shown[..shown.find("\n}\n").expect("its end")];
    assert!(page.contains(shown), "docs/consumers.md lacks:\n{shown}");
}
