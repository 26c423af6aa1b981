//! Rows of mapped tables that cannot become events, each for another reason, in a database whose
//! texts may be anything.

use crate::delivery::SOON;
use crate::harness::postgres::Session;
use crate::harness::stage::confirmed;
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
const BAD: [(&str, &str, &str, &str); 11] = [
    ("id", "NULL", "no_id", "its id is NULL or empty"),
    ("id", "''", "no_id", "its id is NULL or empty"),
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

/// What is sent as it stands, what becomes a header, and a column that nobody looks at.
const LATIN: &str = r"
CREATE TABLE latin (id int PRIMARY KEY, body text, region text, note text);
INSERT INTO latin VALUES (1, E'caf\xe9', 'eu', NULL), (2, 'good', E'\xe9', NULL),
  (3, 'good', NULL, E'\xe9'), (4, NULL, 'eu', '')";

const LATIN_YAML: &str = "
tables:
  - name: public.latin
    preset: none
    columns: {id: id, aggregatetype: {value: a}, type: {value: t}, payload: body}
    extra_columns: {region: X-Region}";

/// Bodies of the events, and of the letters with their reasons.
async fn latin(world: &World) -> (Vec<Vec<u8>>, Vec<(Vec<u8>, String)>) {
    let jetstream = world.nats.jetstream().await;
    let stored = drain::messages(&jetstream, "OUTBOX").await;
    let letters = drain::messages(&jetstream, "OUTBOX_DLQ").await;
    let reason = |letter: &drain::Stored| letter.header("Outjet-Reason").map(str::to_owned);
    let letter = |letter: &drain::Stored| {
        let body = letter.payload.to_vec();
        (body, reason(letter).unwrap_or_default())
    };
    let bodies = stored.iter().map(|event| event.payload.to_vec());
    (bodies.collect(), letters.iter().map(letter).collect())
}

#[tokio::test]
async fn rows_that_are_not_utf8_are_replayed_and_recovered_as_the_slot_sends_them() {
    let world = World::start().await;
    let ascii = "CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0";
    world.postgres.connect().await.run(ascii).await;
    let url = world.postgres.url_as("postgres", "ascii");
    let session = Session::connect(&url).await;
    let (table, rows) = LATIN.split_once(';').expect("two statements");
    session.run(table).await;
    let outjet = |typed: &'static str| {
        let call = world.outjet(typed.split(' '));
        call.env("DATABASE_URL", &url).config(LATIN_YAML)
    };
    let types = async |typed: &'static str| {
        let output = outjet(typed).output().await;
        assert_eq!(output.code, Some(0), "{typed} {output:?}");
        output.stdout
    };
    types("setup").await;
    let mut running = outjet("run").spawn();
    session.run(rows).await;
    let bodies: Vec<Vec<u8>> = vec![b"caf\xe9".into(), b"good".into(), b"".into()];
    let letters = vec![(b"good".to_vec(), "not_utf8".to_owned())];
    confirmed(&session, SOON).await;
    assert_eq!(latin(&world).await, (bodies.clone(), letters.clone()));
    let sampled = types("inspect public.latin").await;
    assert!(sampled.contains("newest row would be"), "{sampled}");
    types("replay --all").await;
    confirmed(&session, SOON).await;
    let twice = ([&bodies[..]; 2].concat(), [&letters[..]; 2].concat());
    assert_eq!(latin(&world).await, twice);
    assert_eq!(running.terminate(SOON).await, Some(0));
    types("drop --force --yes").await;
    let jetstream = world.nats.jetstream().await;
    for stream in ["OUTBOX", "OUTBOX_DLQ"] {
        jetstream.delete_stream(stream).await.expect("deleted");
    }
    let recovered = types("setup --backfill").await;
    assert!(recovered.contains("appended  4 events"), "{recovered}");
    assert_eq!(latin(&world).await, (bodies, letters));
}
