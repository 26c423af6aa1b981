//! Bodies leave as they were written, up to the last byte that a server takes; what it does not
//! take stops the stream in its place, and nothing is skipped.

use super::{Delivery, SOON};
use crate::harness::drain::Stored;
use crate::harness::wait::until_sync;
use crate::harness::{Nats, Outjet, Postgres, Wait, outjet};

/// No header whose length depends on the clock.
const MINIMAL: &str = "
publish: {format: minimal, on_reject: halt}
postgres: {halt_retry: 1s}
";

/// Small, so that a message at the limit is cheap.
const MAX_PAYLOAD: usize = 100_000;

/// An event type, and what stands in the columns payload and payload_raw.
type Body<'a> = (&'a str, Option<&'a str>, Option<&'a [u8]>);

/// An event whose body has this many bytes of `x`.
fn body_of(bytes: usize) -> String {
    let body = format!("convert_to(repeat('x', {bytes}), 'UTF8')");
    format!("SELECT outbox.emit('order', '1', 'x', payload_raw => {body})")
}

/// An event whose only header of its own has this many bytes of `x`.
fn header_of(bytes: usize) -> String {
    let headers = format!("jsonb_build_object('X', repeat('x', {bytes}))");
    format!("SELECT outbox.emit('order', '1', 'x', headers => {headers})")
}

/// The header block as it was sent: the server counts it with the body.
fn header_bytes(stored: &Stored) -> usize {
    let lines = stored.headers.iter().flat_map(|(name, values)| {
        let line = move |value: &async_nats::HeaderValue| format!("{name}: {value}\r\n");
        values.iter().map(move |value| line(value).len())
    });
    lines.sum::<usize>() + "NATS/1.0\r\n\r\n".len()
}

/// `outjet run --exit-on-halt` to its end, which must be a halt; returns the three lines.
async fn halted(delivery: &Delivery) -> Vec<String> {
    let run = delivery.outjet(["run", "--exit-on-halt"]);
    let outjet::Output { code, stderr, .. } = run.output().await;
    assert_eq!(code, Some(65), "{stderr}");
    let lines: Vec<String> = stderr.lines().map(str::to_owned).collect();
    let start = lines.iter().position(|line| line.starts_with("outjet: "));
    let lines = lines[start.expect("the problem")..].to_vec();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    lines
}

async fn until_halted(outjet: &mut Outjet) {
    until_sync("outjet halts", SOON, || {
        let lines = outjet.log();
        let halted = lines
            .iter()
            .any(|line| line.to_string().contains("halted: "));
        Wait::ready_if(halted, lines.len())
    })
    .await;
}

#[tokio::test]
async fn every_kind_of_body_arrives_byte_for_byte() {
    let delivery = Delivery::ready().await;
    let _outjet = delivery.run();
    let session = &delivery.session;
    let every_byte: Vec<u8> = (0..=255).collect();
    let json = r#"{"ключ": "значение 🦀 \u0001 \" \\ / é", "n": [1e10, -0.5, null, true, {}]}"#;
    let bodies: [Body<'_>; 7] = [
        ("null", None, None),
        ("json-null", Some("null"), None),
        ("json", Some(json), None),
        ("text", Some(r#""just text""#), None),
        ("every-byte", None, Some(&every_byte)),
        ("empty", None, Some(b"")),
        (
            "protocol",
            None,
            Some(b"\r\n\r\nPUB x 0\r\n\r\n+OK\r\n-ERR 'no'\r\n"),
        ),
    ];
    for (kind, payload, raw) in &bodies {
        let emit = "SELECT outbox.emit('order', '1', $1, $2::text::jsonb, payload_raw => $3)";
        let emitted = session.query(emit, &[kind, payload, raw]).await;
        emitted.expect("an event");
    }
    delivery.verdict().await.assert_exact();
    let stored = delivery.stored().await;
    assert_eq!(stored.len(), bodies.len());
    for (stored, (kind, payload, raw)) in stored.iter().zip(&bodies) {
        assert_eq!(stored.subject, format!("events.order.{kind}"));
        let (body, content_type) = match (payload, raw) {
            (Some(json), _) => {
                let normal = session
                    .query_one("SELECT $1::text::jsonb::text", &[json])
                    .await;
                let normal: String = normal.expect("a row").get(0);
                (normal.into_bytes(), Some("application/json"))
            }
            (None, Some(raw)) => (raw.to_vec(), Some("application/octet-stream")),
            (None, None) => (Vec::new(), None),
        };
        assert_eq!(stored.payload, body, "{kind}");
        assert_eq!(stored.header("ce-datacontenttype"), content_type, "{kind}");
    }
}

#[tokio::test]
async fn bodies_of_a_megabyte_arrive_beside_small_ones() {
    let delivery = Delivery::ready().await;
    let _outjet = delivery.run();
    let sql = "
        BEGIN;
        INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload_raw)
        SELECT 'order', n::text, 'large', convert_to(repeat(chr(64 + n), 1000 * 1000), 'UTF8')
        FROM generate_series(1, 20) AS n;
        INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload)
        SELECT 'order', n::text, 'small', to_jsonb(n) FROM generate_series(1, 20) AS n;
        COMMIT;";
    delivery.session.run(sql).await;
    delivery.verdict().await.assert_exact();
    let stored = delivery.stored().await;
    for (n, stored) in (1u8..=20).zip(&stored) {
        assert!(
            stored.payload == vec![64 + n; 1_000_000],
            "body {n} is another"
        );
    }
    assert_eq!(stored.len(), 40);
}

#[tokio::test]
async fn message_of_max_payload_is_stored_and_one_byte_more_halts_until_it_fits() {
    let nats = Nats::builder().config(&format!("max_payload: {MAX_PAYLOAD}"));
    let mut delivery = Delivery::on((Postgres::builder(), nats), MINIMAL).await;
    delivery.session.run(&body_of(1)).await;
    let mut first = delivery.run();
    delivery.confirmed().await;
    assert_eq!(first.terminate(SOON).await, Some(0));
    // All stay below sequence 10, so that their headers are of one length.
    let most = MAX_PAYLOAD - header_bytes(&delivery.stored().await[0]);
    for bytes in [most - 1, most, 2, 3, most + 1, 4] {
        delivery.session.run(&body_of(bytes)).await;
    }

    let lines = halted(&delivery).await;
    let id = "SELECT id FROM outbox.events ORDER BY length(payload_raw) DESC LIMIT 1";
    let id = delivery.session.text(id).await;
    let which = format!("outjet: event \"{id}\" at ");
    assert!(lines[0].starts_with(&which), "{lines:#?}");
    let bytes = MAX_PAYLOAD + 1;
    let reason = format!("{bytes} bytes with headers, the server takes {MAX_PAYLOAD}");
    assert!(lines[0].contains(&reason), "{lines:#?}");
    let before = delivery.stored().await;
    let sizes: Vec<usize> = before.iter().map(|stored| stored.payload.len()).collect();
    assert_eq!(sizes, [1, most - 1, most, 2, 3]);

    let mut second = delivery.run();
    until_halted(&mut second).await;
    let nats = &mut delivery.world.nats;
    let limit = |bytes: usize| format!("max_payload: {bytes}");
    let raised = nats
        .configuration()
        .replace(&limit(MAX_PAYLOAD), &limit(bytes));
    nats.configure(&raised);
    nats.reload();
    let verdict = delivery.verdict().await;
    verdict.assert_exact();
    assert_eq!(verdict.stored, 7);
    assert!(second.exited().is_none(), "it went on by itself");
}

#[tokio::test]
async fn headers_of_64_kib_less_a_byte_are_stored_and_one_byte_more_halts() {
    let delivery = Delivery::configured(MINIMAL).await;
    delivery.session.run(&header_of(1)).await;
    let mut first = delivery.run();
    delivery.confirmed().await;
    assert_eq!(first.terminate(SOON).await, Some(0));
    let most = 65_535 - (header_bytes(&delivery.stored().await[0]) - 1);
    for bytes in [most, most + 1] {
        delivery.session.run(&header_of(bytes)).await;
    }
    let lines = halted(&delivery).await;
    let reason = "65536 bytes of headers, a server takes 65535";
    assert!(lines[0].contains(reason), "{lines:#?}");
    let stored = delivery.stored().await;
    let sizes: Vec<usize> = stored.iter().skip(1).map(header_bytes).collect();
    assert_eq!(sizes, [65_535]);
}

#[tokio::test]
async fn everything_before_a_row_that_cannot_become_an_event_is_stored_and_nothing_behind_it() {
    let delivery = Delivery::configured("publish: {on_reject: halt}").await;
    // One transaction, so that one read yields good and bad rows alike.
    let sql = "
        INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload, payload_raw)
        SELECT 'order', n::text, 'created', to_jsonb(n), CASE n WHEN 701 THEN 'two'::bytea END
        FROM generate_series(1, 1000) AS n";
    delivery.session.run(sql).await;
    for _ in 0..2 {
        let lines = halted(&delivery).await;
        let reason = "both payload and payload_raw are set";
        assert!(lines[1].contains(reason), "{lines:#?}");
        assert_eq!(
            delivery.ids().await,
            delivery.judge.committed().await[..700]
        );
    }
}
