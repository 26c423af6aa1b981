//! `scripts/interop`: what outjet publishes as CloudEvents, read by an SDK that is not ours.

#[path = "../../tests/it/harness/mod.rs"]
mod harness;

use std::io::Write;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use harness::World;
use harness::drain::{self, Stored};

/// Bodies of each kind, and texts that need to be encoded in headers and in JSON.
const ROWS: &str = r#"
INSERT INTO outbox.events (id, created_at, aggregatetype, aggregateid, type, payload, payload_raw,
  content_type, tenant_id) VALUES
  ('00000000-0000-4000-8000-000000000001', '2026-01-02 03:04:05.5+00', 'order', 'Ä "1" %',
   'order.placed', '{"total": 9.5, "lines": [1, {"a": null}]}', NULL, NULL, 'acme'),
  ('00000000-0000-4000-8000-000000000002', '2026-01-02 03:04:06+00', 'order', '2', 'order.raw',
   NULL, '\x00ff7b0a', 'application/x-protobuf', NULL),
  ('00000000-0000-4000-8000-000000000003', '2026-01-02 03:04:07+00', 'order', '3', 'order.gone',
   NULL, NULL, NULL, NULL)"#;

const SOON: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let python = std::env::args()
        .nth(1)
        .expect("the interpreter that has the SDK");
    let mut wrong = 0;
    for format in ["cloudevents", "structured"] {
        let read = read_by(&python, &published(format).await);
        for (read, written) in read.iter().zip(written()) {
            let told = if *read == written { "ok" } else { "WRONG" };
            println!("{told}  {format}  {read}");
            wrong += usize::from(*read != written);
        }
        wrong += written().len().abs_diff(read.len());
    }
    match wrong {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// What the SDK must say of the rows.
fn written() -> [Value; 3] {
    let event = |n: u8, subject: &str, kind: &str, extra: Value, data: Value| {
        let mut attributes = json!({
            "specversion": "1.0",
            "id": format!("00000000-0000-4000-8000-00000000000{n}"),
            "source": "/postgres/outbox.events",
            "type": kind,
            "subject": subject,
            "partitionkey": format!("order:{subject}"),
        });
        let all = attributes.as_object_mut().expect("an object");
        all.extend(extra.as_object().expect("an object").clone());
        json!({"attributes": attributes, "data": data})
    };
    let first = json!({
        "time": "2026-01-02 03:04:05.500000+00:00",
        "datacontenttype": "application/json",
        "tenantid": "acme",
    });
    let second = json!({
        "time": "2026-01-02 03:04:06+00:00",
        "datacontenttype": "application/x-protobuf",
    });
    let third = json!({"time": "2026-01-02 03:04:07+00:00"});
    let payload = json!({"total": 9.5, "lines": [1, {"a": null}]});
    let bytes = json!({"bytes": "AP97Cg=="});
    [
        event(1, "Ä \"1\" %", "order.placed", first, payload),
        event(2, "2", "order.raw", second, bytes),
        event(3, "3", "order.gone", third, Value::Null),
    ]
}

/// What stands in the stream when the rows are published in this format.
async fn published(format: &str) -> Vec<Stored> {
    let world = World::start().await;
    let yaml = format!("publish: {{format: {format}}}");
    let setup = world.outjet(["setup"]).config(&yaml).output().await;
    assert_eq!(setup.code, Some(0), "{setup:?}");
    let _outjet = world.outjet(["run"]).config(&yaml).spawn();
    world.postgres.connect().await.run(ROWS).await;
    let jetstream = world.nats.jetstream().await;
    let rows = written().len() as u64;
    drain::until_stored(&jetstream, "OUTBOX", rows, SOON).await;
    drain::messages(&jetstream, "OUTBOX").await
}

/// What the SDK says of them, but for the time of the commit, which nobody knows beforehand.
fn read_by(python: &str, stored: &[Stored]) -> Vec<Value> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/interop/read.py");
    let mut command = Command::new(python);
    let command = command
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("the interpreter starts");
    let mut input = child.stdin.take().expect("a pipe");
    for message in stored {
        let headers: serde_json::Map<String, Value> = message
            .headers
            .iter()
            .map(|(name, values)| (name.to_string(), json!(values[0].as_str())))
            .collect();
        let line = json!({"headers": headers, "body": BASE64.encode(&message.payload)});
        writeln!(input, "{line}").expect("the interpreter reads");
    }
    drop(input);
    let output = child.wait_with_output().expect("the interpreter ends");
    assert!(output.status.success(), "the SDK refused a message");
    let lines = String::from_utf8(output.stdout).expect("text");
    let read = lines.lines().map(|line| {
        let mut event: Value = serde_json::from_str(line).expect("JSON");
        let attributes = event["attributes"].as_object_mut().expect("an object");
        let committed = attributes.remove("recordedtime");
        assert!(committed.is_some(), "{line}");
        event
    });
    read.collect()
}
