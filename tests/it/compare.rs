//! What `outjet compare` says of an old relay that runs beside outjet, by the messages of both.

use async_nats::jetstream::stream;
use serde_json::{Value, json};

use crate::harness::drain::Stored;
use crate::harness::outjet::Output;
use crate::harness::stage::{SOON, Stage};
use crate::harness::{Nats, drain};

/// outjet in the shadow of another relay.
const SHADOW: &str = "
stream: {name: SHADOW, subjects: ['shadow.>'], duplicate_window: 100ms}
publish: {subject_prefix: shadow}
";

/// A message of the old relay.
#[derive(Clone, Debug)]
struct Sent {
    subject: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

/// Both relays' work on one table.
struct Shadow {
    stage: Stage,
    /// What outjet has published.
    ours: Vec<Stored>,
}

impl Shadow {
    /// With so many events from outjet, two of each aggregate, and an empty stream EVENTS.
    async fn of(events: u32) -> Self {
        let stage = Stage::on(Nats::builder(), SHADOW).await;
        let mut outjet = stage.run();
        outjet.logged("leading", SOON).await;
        let sql = format!(
            "INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload, dedup_key)
             SELECT 'order', (n / 2)::text, 'created', to_jsonb(n),
               CASE WHEN n > 0 THEN 'k-' || n END
             FROM generate_series(0, {events} - 1) n"
        );
        stage.session.run(&sql).await;
        stage.confirmed().await;
        assert_eq!(outjet.terminate(SOON).await, Some(0));
        let jetstream = stage.jetstream().await;
        let theirs = stream::Config {
            name: "EVENTS".to_owned(),
            subjects: vec!["events.>".to_owned()],
            ..Default::default()
        };
        jetstream.create_stream(theirs).await.expect("a stream");
        let ours = drain::messages(&jetstream, "SHADOW").await;
        assert_eq!(ours.len(), events as usize);
        Self { stage, ours }
    }

    /// What a relay would send that does as outjet does.
    fn faithful(&self) -> Vec<Sent> {
        let sent = self.ours.iter().map(|stored| Sent {
            subject: stored.subject.replacen("shadow.", "", 1),
            headers: vec![("Nats-Msg-Id", stored.row_id())],
            body: stored.payload.to_vec(),
        });
        sent.collect()
    }

    async fn send(&self, messages: &[Sent]) {
        let jetstream = self.stage.jetstream().await;
        for sent in messages {
            let mut headers = async_nats::HeaderMap::new();
            for (name, value) in &sent.headers {
                headers.insert(*name, value.as_str());
            }
            let body = sent.body.clone().into();
            let sent = jetstream.publish_with_headers(sent.subject.clone(), headers, body);
            sent.await.expect("sent").await.expect("stored");
        }
    }

    /// Unless told otherwise, without patience for what was stored just now.
    async fn compare(&self, typed: &[&str]) -> Output {
        let patience: &[&str] = match typed.contains(&"--settle") {
            true => &[],
            false => &["--settle", "0s"],
        };
        let typed = [&["compare", "--with", "EVENTS"], patience, typed].concat();
        self.stage.outjet(typed).output().await
    }

    /// All counts that are not 0, and the exit code.
    async fn counts(&self, typed: &[&str]) -> (Option<i32>, Value) {
        let output = self.compare(&[&["--json"], typed].concat()).await;
        let report: Value = serde_json::from_str(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let report = report.as_object().expect("an object").iter();
        let counts = report.filter_map(|(kind, told)| {
            let count = told.get("count").unwrap_or(told).as_u64()?;
            (count > 0).then(|| (kind.clone(), json!(count)))
        });
        (output.code, Value::Object(counts.collect()))
    }

    fn id(&self, number: usize) -> String {
        self.ours[number].row_id()
    }
}

#[tokio::test]
async fn relays_that_publish_the_same_are_the_same() {
    let shadow = Shadow::of(10).await;
    shadow.send(&shadow.faithful()).await;
    let counts = shadow.counts(&["--bodies"]).await;
    assert_eq!(counts, (Some(0), json!({"both": 10})));
    let text = shadow.compare(&[]).await;
    assert_eq!(text.code, Some(0), "{text:?}");
    let told: Vec<&str> = text.stdout.lines().collect();
    assert_eq!(
        told[0].split_whitespace().collect::<Vec<_>>(),
        ["in", "both", "10"]
    );
    let last = "10 messages in SHADOW, 10 in EVENTS: the same";
    assert_eq!(told.last(), Some(&last));
}

#[tokio::test]
async fn event_that_the_old_relay_lost_or_made_up_is_named() {
    let shadow = Shadow::of(10).await;
    let mut sent = shadow.faithful();
    let mut forged = sent[7].clone();
    forged.headers = vec![("Nats-Msg-Id", "forged".to_owned())];
    sent[4] = forged;
    shadow.send(&sent).await;
    let counts = shadow.counts(&[]).await;
    assert_eq!(
        counts,
        (
            Some(1),
            json!({"both": 9, "only_ours": 1, "only_theirs": 1})
        )
    );
    let text = shadow.compare(&[]).await;
    let subject = "events.order.created";
    let lost = format!("    {}: 5 {subject} | -, stored ", shadow.id(4));
    assert!(text.stdout.contains(&lost), "{text:?}");
    let forged = format!("    forged: - | 5 {subject}, stored ");
    assert!(text.stdout.contains(&forged), "{text:?}");
    assert!(text.stdout.ends_with(": they differ\n"), "{text:?}");
}

#[tokio::test]
async fn event_that_the_old_relay_sent_twice_is_counted_by_the_header_of_its_own() {
    let shadow = Shadow::of(10).await;
    let mut sent = shadow.faithful();
    for message in &mut sent {
        message.headers[0].0 = "Event-ID";
    }
    sent.insert(6, sent[2].clone());
    shadow.send(&sent).await;
    let counts = shadow.counts(&["--id-header", "Event-ID"]).await;
    assert_eq!(counts, (Some(1), json!({"both": 10, "repeated_theirs": 1})));
}

#[tokio::test]
async fn neighbours_of_an_aggregate_that_the_old_relay_swapped_are_counted() {
    let shadow = Shadow::of(10).await;
    let mut sent = shadow.faithful();
    // Two aggregates may overtake each other.
    sent.swap(1, 2);
    shadow.send(&sent).await;
    let counts = shadow.counts(&[]).await;
    assert_eq!(counts, (Some(0), json!({"both": 10})));
    let jetstream = shadow.stage.jetstream().await;
    let stream = jetstream.get_stream("EVENTS").await.expect("the stream");
    stream.purge().await.expect("purged");
    for (index, message) in sent.iter_mut().enumerate() {
        // The server would take them for duplicates.
        message.headers = vec![("Event-ID", shadow.id([0, 2, 1, 3, 4, 5, 6, 7, 8, 9][index]))];
    }
    sent.swap(4, 5);
    sent.swap(8, 9);
    shadow.send(&sent).await;
    let counts = shadow.counts(&["--id-header", "Event-ID"]).await;
    assert_eq!(counts, (Some(1), json!({"both": 10, "swapped": 2})));
}

#[tokio::test]
async fn other_subjects_differ_and_other_bodies_only_if_they_must_not() {
    let shadow = Shadow::of(10).await;
    let mut sent = shadow.faithful();
    sent[2].body = b" 2".to_vec();
    shadow.send(&sent).await;
    let counts = shadow.counts(&[]).await;
    assert_eq!(counts, (Some(0), json!({"both": 10, "body": 1})));
    let counts = shadow.counts(&["--bodies"]).await;
    assert_eq!(counts, (Some(1), json!({"both": 10, "body": 1})));
    // With another prefix, every subject is another.
    let counts = shadow.counts(&["--prefix", "shadow.events"]).await;
    assert_eq!(
        counts,
        (Some(1), json!({"both": 10, "body": 1, "subject": 10}))
    );
}

#[tokio::test]
async fn ids_inside_bodies_are_found_and_messages_without_one_differ() {
    let shadow = Shadow::of(6).await;
    let mut sent = shadow.faithful();
    for (index, message) in sent.iter_mut().enumerate() {
        message.headers.clear();
        let id = shadow.id(index);
        message.body = json!({"meta": {"id": id}}).to_string().into_bytes();
    }
    let stranger = Sent {
        body: b"{}".to_vec(),
        ..sent[3].clone()
    };
    sent.insert(3, stranger);
    shadow.send(&sent).await;
    let counts = shadow.counts(&["--id-json", "meta.id"]).await;
    assert_eq!(
        counts,
        (Some(1), json!({"both": 6, "body": 6, "without_id": 1}))
    );
    // Nobody can say then which is which.
    let strangers = shadow.compare(&[]).await;
    assert_eq!(strangers.code, Some(1), "{strangers:?}");
    let problem = "SHADOW and EVENTS have no event in common";
    assert!(strangers.stderr.contains(problem), "{strangers:?}");
    assert!(
        strangers.stderr.contains("7 of them have no id"),
        "{strangers:?}"
    );
    assert!(strangers.stderr.contains("--id-json"), "{strangers:?}");
}

#[tokio::test]
async fn keys_bring_together_what_has_no_id_in_common() {
    let shadow = Shadow::of(6).await;
    let mut sent = shadow.faithful();
    for (index, message) in sent.iter_mut().enumerate() {
        message.headers.clear();
        let key = match index {
            0 => shadow.id(0),
            _ => format!("k-{index}"),
        };
        message.body = json!({"idempotency_key": key}).to_string().into_bytes();
    }
    shadow.send(&sent).await;
    let typed = [
        "--id-json",
        "idempotency_key",
        "--our-id-header",
        "Outjet-Dedup-Key",
    ];
    let counts = shadow.counts(&typed).await;
    assert_eq!(counts, (Some(0), json!({"both": 6, "body": 6})));
}

#[tokio::test]
async fn replays_of_outjet_are_no_repetitions() {
    let shadow = Shadow::of(4).await;
    shadow.send(&shadow.faithful()).await;
    let mut outjet = shadow.stage.run();
    outjet.logged("leading", SOON).await;
    let replayed = shadow.stage.outjet(["replay", "--all"]).output().await;
    assert_eq!(replayed.code, Some(0), "{replayed:?}");
    shadow.stage.confirmed().await;
    let stored = drain::messages(&shadow.stage.jetstream().await, "SHADOW").await;
    assert_eq!(stored.len(), 8);
    let counts = shadow.counts(&[]).await;
    assert_eq!(counts, (Some(0), json!({"both": 4})));
}

#[tokio::test]
async fn what_may_still_come_or_was_before_both_ran_is_not_missing() {
    let shadow = Shadow::of(10).await;
    let mut sent = shadow.faithful();
    // Nor does an event of before the slot come from outjet.
    let mut older = sent[0].clone();
    older.headers = vec![("Nats-Msg-Id", "older".to_owned())];
    sent.truncate(8);
    sent.insert(0, older);
    shadow.send(&sent).await;
    let counts = shadow.counts(&[]).await;
    assert_eq!(
        counts,
        (Some(0), json!({"both": 8, "not_yet": 2, "earlier": 1}))
    );
}

#[tokio::test]
async fn what_was_stored_a_moment_ago_is_given_time() {
    let shadow = Shadow::of(10).await;
    let mut sent = shadow.faithful();
    sent.remove(4);
    shadow.send(&sent).await;
    let counts = shadow.counts(&["--settle", "1h"]).await;
    assert_eq!(counts, (Some(0), json!({"both": 9, "not_yet": 1})));
}

#[tokio::test]
async fn messages_of_others_and_of_before_a_time_can_be_left_out() {
    let shadow = Shadow::of(10).await;
    let mut sent = shadow.faithful();
    sent.remove(2);
    let stranger = Sent {
        subject: "events.other".to_owned(),
        headers: vec![("Nats-Msg-Id", "stranger".to_owned())],
        body: Vec::new(),
    };
    sent.insert(4, stranger);
    shadow.send(&sent).await;
    let all = json!({"both": 9, "only_ours": 1, "only_theirs": 1});
    assert_eq!(shadow.counts(&[]).await, (Some(1), all));
    let subject = ["--subject", "events.order.*"];
    let counts = shadow.counts(&subject).await;
    assert_eq!(counts, (Some(1), json!({"both": 9, "only_ours": 1})));
    // Postgres knows microseconds.
    let since = shadow.ours[6].stored_at;
    let since = since.replace_nanosecond(since.microsecond() * 1000);
    let since = since.expect("less than a second");
    let later = shadow.ours.iter().filter(|ours| ours.stored_at >= since);
    let later = later.count();
    assert!(later < 7, "the lost event is an earlier one");
    let counts = shadow
        .counts(&[&["--since", &since.to_string()], &subject[..]].concat())
        .await;
    let earlier = sent.len() - 1 - later;
    assert_eq!(
        counts,
        (Some(0), json!({"both": later, "earlier": earlier}))
    );
    let never = shadow.compare(&["--since", "infinity"]).await;
    assert_eq!(never.code, Some(2), "{never:?}");
}

#[tokio::test]
async fn stream_that_is_missing_or_its_own_or_consumed_is_told() {
    let shadow = Shadow::of(2).await;
    let told = async |stream: &str| {
        let typed = ["compare", "--with", stream];
        shadow.stage.outjet(typed).output().await
    };
    let missing = told("NOWHERE").await;
    assert_eq!(missing.code, Some(78), "{missing:?}");
    for line in [
        "outjet: stream \"NOWHERE\" does not exist",
        "has no stream of that name",
        "name the old relay's stream in --with: `nats stream ls`",
    ] {
        assert!(missing.stderr.contains(line), "{missing:?}");
    }
    let own = told("SHADOW").await;
    assert_eq!(own.code, Some(2), "{own:?}");
    assert!(
        own.stderr.contains("would be compared with itself"),
        "{own:?}"
    );
    let queue = stream::Config {
        name: "QUEUE".to_owned(),
        subjects: vec!["queue.>".to_owned()],
        retention: stream::RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    let jetstream = shadow.stage.jetstream().await;
    jetstream.create_stream(queue).await.expect("a stream");
    let consumed = told("QUEUE").await;
    assert_eq!(consumed.code, Some(78), "{consumed:?}");
    assert!(
        consumed.stderr.contains("vanish when they are consumed"),
        "{consumed:?}"
    );
}
