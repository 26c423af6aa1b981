//! Rows of mapped tables that cannot become events, each for another reason, in a database whose
//! texts may be anything.

use crate::delivery::SOON;
use crate::harness::postgres::Session;
use crate::harness::{World, drain};

const YAML: &str = "
tables:
  - name: public.odd
    preset: none
    columns:
      id: id
      type: kind
      topic: topic
      tenant_id: {json: meta.tenant}
      headers: headers
      payload: body
      content_type: {value: application/json}
    extra_columns: {region: X-Region}
publish: {format: structured}";

const ODD: &str = "
CREATE TABLE odd (id text, kind text, topic text, meta text, headers text, region text, body text)";

/// A good row, but for one column.
fn insert(column: &str, value: &str) -> String {
    let values = [
        ("id", "'x'"),
        ("kind", "'made'"),
        ("topic", "NULL"),
        ("meta", r#"'{"tenant": "acme"}'"#),
        ("headers", "NULL"),
        ("region", "'eu'"),
        ("body", "'{}'"),
    ];
    let values = values.map(|(name, usual)| if name == column { value } else { usual });
    format!("INSERT INTO odd VALUES ({});", values.join(", "))
}

/// Column, what stands in it, the reason by which the row is rejected, and words of the error.
const BAD: [(&str, &str, &str, &str); 10] = [
    ("id", "NULL", "no_id", "its id is NULL"),
    ("meta", "NULL", "inside_column", "there is no value"),
    ("meta", "'{}'", "inside_column", "there is no value"),
    ("meta", "'[7]'", "inside_column", "not a JSON object"),
    ("meta", "'{'", "inside_column", "not well-formed JSON"),
    ("headers", r#"E'{"X": "\xff"}'"#, "header", "headers is not"),
    ("region", r"E'\xff'", "not_utf8", "an extra column"),
    ("region", r"E'eu\nNats-Rollup: all'", "header", "X-Region"),
    ("body", "'{\"a\": '", "payload", "not well-formed JSON"),
    (
        "topic",
        "repeat('t.', 299) || 't'",
        "subject",
        "more than 256 tokens",
    ),
];

#[tokio::test]
async fn bad_rows_of_a_mapped_table_are_dead_letters_with_their_reasons_and_stop_nothing() {
    let world = World::start().await;
    let ascii = "CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0";
    world.postgres.connect().await.run(ascii).await;
    let url = world.postgres.url_as("postgres", "ascii");
    let session = Session::connect(&url).await;
    session.run(ODD).await;
    let outjet = |command| {
        world
            .outjet([command])
            .env("DATABASE_URL", &url)
            .config(YAML)
    };
    let setup = outjet("setup").output().await;
    assert_eq!(setup.code, Some(0), "{setup:?}");
    let _outjet = outjet("run").spawn();
    for (column, value, ..) in BAD {
        session.run(&insert(column, value)).await;
        session.run(&insert("kind", "'good'")).await;
    }
    let jetstream = world.nats.jetstream().await;
    let rows = BAD.len() as u64;
    drain::until_stored(&jetstream, "OUTBOX", rows, SOON).await;
    let letters = drain::messages(&jetstream, "OUTBOX_DLQ").await;
    assert_eq!(letters.len(), BAD.len(), "{letters:?}");
    for (letter, (column, value, reason, words)) in letters.iter().zip(BAD) {
        let told = format!("{column} = {value}: {letter:?}");
        assert_eq!(letter.header("Outjet-Reason"), Some(reason), "{told}");
        let error = letter.header("Outjet-Error").expect("an error");
        assert!(error.contains(words), "{told}");
    }
    let stored = drain::messages(&jetstream, "OUTBOX").await;
    assert_eq!(stored.len(), BAD.len());
    assert!(
        stored
            .iter()
            .all(|stored| stored.subject == "events._.good")
    );
}
