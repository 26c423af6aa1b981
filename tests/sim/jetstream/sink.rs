//! The model under the real sink: everything that outjet asks for, once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outjet::event::lineage::{Lineage, Source};
use outjet::event::{Event, Headers, Position, Rejected};
use outjet::sink::jetstream::{
    Buries, Ingress, JetStream, Options as SinkOptions, Storage, StreamOptions, check_rights,
};
use outjet::sink::{Order, Past, Report, Write, Written};
use time::OffsetDateTime;
use tokio::sync::mpsc;

use super::tests::client_options;
use super::{BASE, Nats, Options, Stored, Version};

fn sink_options(nats: &Nats, newest: bool) -> SinkOptions {
    let stream = StreamOptions {
        name: "S".to_owned(),
        subjects: vec!["events.>".to_owned()],
        ingress: Ingress::Private,
        shared: false,
        replicas: 1,
        storage: Storage::File,
        create: true,
        duplicate_window: Duration::from_secs(10),
        max_age: Duration::ZERO,
        max_bytes: None,
        atomic: newest,
        expires: true,
        schedules: false,
        objects: false,
    };
    SinkOptions {
        nats: client_options(nats),
        dead_letters: Some(stream.dead_letters()),
        bodies: Some(stream.bodies("bodies", Duration::ZERO)),
        delayed: newest.then(|| stream.delayed()),
        stream,
        buries: Buries {
            oversize: false,
            others: true,
        },
        record: true,
        whose: |_| None,
        takes_over: false,
        read_to: None,
        in_flight_max: 100,
        in_flight_bytes_max: 1024 * 1024,
        ack_timeout: Duration::from_secs(5),
        hold: Duration::ZERO,
        give_up_after: None,
    }
}

fn event(commit: u64) -> Event {
    Event {
        position: Position { commit, index: 0 },
        id: format!("id-{commit}"),
        subject: "events.a".to_owned(),
        headers: Headers::default(),
        payload: Bytes::from_static(b"body"),
        wrapped: None,
        table: Arc::from("public.outbox"),
        deliver_at: None,
        expires_at: None,
        replayed: false,
        rejected: None,
        followers: 0,
        known: false,
    }
}

/// Plain ones, one that cannot be published, one that no message holds; then, where there are
/// batches and schedules, two that go together and one that waits.
fn events(newest: bool) -> Vec<Event> {
    let mut events: Vec<Event> = (1..=5).map(event).collect();
    events[2].rejected = Some(Box::new(Rejected {
        reason: "subject",
        error: "it has none".to_owned(),
    }));
    events[3].payload = vec![b'x'; 2 * 1024 * 1024].into();
    if newest {
        events.extend((6..=8).map(event));
        events[5].followers = 1;
        let due = OffsetDateTime::from_unix_timestamp_nanos(BASE.into()).expect("a time");
        events[7].deliver_at = Some(due + Duration::from_secs(3600));
    }
    events
}

fn subjects(nats: &Nats, stream: &str) -> Vec<String> {
    let messages: Vec<Stored> = nats.stored(stream).remove(0).messages;
    let subject = |stored: &Stored| String::from_utf8_lossy(&stored.subject).into_owned();
    messages.iter().map(subject).collect()
}

async fn publish_everything(version: Version) {
    let newest = version >= Version::V2_12;
    let nats = Nats::new(Options::new(version));
    let options = sink_options(&nats, newest);
    let source = Source::parse("7/1/outjet").expect("a source");
    let opened = JetStream::open(options.clone(), Lineage::new(source, Vec::new()));
    let mut sink = opened.await.expect("the streams are made");
    let standing = sink.standing(0, newest).await.expect("it stands");
    assert_eq!((standing.last_sequence, standing.record_replicas), (0, 1));
    let write = |expected| Write {
        expected,
        bytes: Bytes::from_static(b"{}"),
    };
    assert_eq!(sink.keep(write(0)).await.expect("kept"), Written::Stored(1));
    let refused = sink.keep(write(0)).await.expect("an answer");
    assert!(matches!(refused, Written::Found(Some(kept)) if kept.revision == 1));
    sink.begin(Past::NONE).await.expect("it begins");
    let events = events(newest);
    let wanted = events.len();
    let (orders, ours) = mpsc::channel(4);
    let (theirs, mut reports) = mpsc::channel(64);
    let settle = async move {
        orders.send(Order::Append(events)).await.expect("it runs");
        let mut settled = 0;
        while settled < wanted {
            match reports.recv().await.expect("it runs") {
                Report::Settled(some) => settled += some.events(),
                Report::Down(failure) => panic!("it is down: {failure:?}"),
                _ => {}
            }
        }
        drop(orders);
    };
    let (ended, ()) = tokio::join!(sink.run(ours, theirs), settle);
    ended.expect("it ends well");

    let plain = if newest { 6 } else { 4 };
    assert_eq!(subjects(&nats, "S"), vec!["events.a"; plain]);
    assert_eq!(subjects(&nats, "S_DLQ"), ["dlq.events.a"]);
    assert_eq!(subjects(&nats, "KV_OUTJET_S"), ["$KV.OUTJET_S.outjet"]);
    let parts = subjects(&nats, "OBJ_bodies");
    assert_eq!(parts.len(), 17, "{parts:?}");
    if newest {
        tokio::time::sleep(Duration::from_secs(3601)).await;
        let delayed = subjects(&nats, "S_DELAYED");
        assert_eq!(delayed.len(), 3);
        assert_eq!(delayed[2], "delayed.events.a");
    }
    let tried = check_rights(&options, "events.>").await;
    assert_eq!(tried.expect("all is allowed").len(), 4);
}

#[tokio::test(start_paused = true)]
async fn sink_does_all_that_it_can_on_2_10() {
    Box::pin(publish_everything(Version::V2_10)).await;
}

#[tokio::test(start_paused = true)]
async fn sink_does_all_that_it_can_on_2_15() {
    Box::pin(publish_everything(Version::V2_15)).await;
}

/// Behind an event of ours nobody would notice any more that the stream had lost its end.
#[tokio::test(start_paused = true)]
async fn stranger_in_the_place_of_a_lost_event_is_noticed_before_anything_is_sent() {
    let nats = Nats::new(Options::new(Version::V2_15));
    let mut options = sink_options(&nats, false);
    options.stream.ingress = Ingress::Public;
    let source = Source::parse("7/1/outjet").expect("a source");
    let opened = JetStream::open(options, Lineage::new(source, Vec::new()));
    let mut sink = opened.await.expect("the streams are made");
    sink.begin(Past::NONE).await.expect("it begins");
    let (orders, ours) = mpsc::channel(4);
    let (theirs, mut reports) = mpsc::channel(64);
    let server = nats.clone();
    let lose = async move {
        let append = |commit| Order::Append(vec![event(commit)]);
        for commit in [1, 2] {
            orders.send(append(commit)).await.expect("it runs");
            let settled = reports.recv().await.expect("it runs");
            assert!(matches!(settled, Report::Settled(_)), "{settled:?}");
        }
        server.truncate("S", 1);
        assert_eq!(server.publish("events.strange", "", b"?"), Some(2));
        server.restart();
        orders.send(append(3)).await.expect("it runs");
        while let Some(report) = reports.recv().await {
            assert!(!matches!(report, Report::Settled(_)), "{report:?}");
        }
    };
    let (ended, ()) = tokio::join!(sink.run(ours, theirs), lose);
    let failure = ended.expect_err("the stream has lost an event");
    let words = failure.to_string();
    let told = words.contains("stream \"S\" bears another message at sequence 2");
    assert!(told, "{words}");
    assert_eq!(
        subjects(&nats, "S"),
        ["events.a", "events.a", "events.strange"]
    );
}
