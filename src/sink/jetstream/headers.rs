//! The headers of a message.

use async_nats::jetstream::stream::Config;
use async_nats::{HeaderMap, HeaderName as NatsHeaderName, HeaderValue};
use time::OffsetDateTime;

use super::names::{MESSAGE_ID, PLAIN_ID, POSITION, REPLAY, SOURCE, TTL};
use crate::event::Event;

/// A value of `Nats-TTL`: whole seconds, of which there must be one (ADR-43).
pub(crate) fn ttl(left: time::Duration) -> String {
    let seconds = left.whole_seconds() + i64::from(left.subsec_nanoseconds() > 0);
    format!("{}s", seconds.max(1))
}

/// The bytes of a header block as it is sent; the server counts them with the body.
pub(crate) fn wire_len(headers: &HeaderMap) -> usize {
    let lines = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values
            .iter()
            .map(|value| name.len() + value.as_str().len() + ": \r\n".len())
    });
    lines.sum::<usize>() + "NATS/1.0\r\n\r\n".len()
}

/// The headers of a message but for the expectation.
pub(crate) fn headers(
    (event, source): (&Event, &str),
    anonymous: bool,
    stream: &Config,
) -> HeaderMap {
    let mut headers = row_headers(event);
    headers.insert(NatsHeaderName::from_static(SOURCE), source);
    headers.insert(
        NatsHeaderName::from_static(POSITION),
        event.position.to_string(),
    );
    // The server would take what goes out again for a duplicate, and so would other streams.
    let anonymous = anonymous || event.replayed;
    let id = if anonymous { PLAIN_ID } else { MESSAGE_ID };
    headers.insert(NatsHeaderName::from_static(id), event.id.as_str());
    // What has come to its end already is there for a second.
    if let Some(expires) = event.expires_at
        && stream.allow_message_ttl
    {
        headers.insert(TTL, ttl(expires - OffsetDateTime::now_utc()));
    }
    headers
}

/// The headers of the format and of the row.
pub(crate) fn row_headers(event: &Event) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in event.headers.iter() {
        let value: HeaderValue = value.parse().expect("a checked header value");
        headers.append(name, value);
    }
    if event.replayed {
        headers.insert(NatsHeaderName::from_static(REPLAY), "1");
    }
    headers
}
