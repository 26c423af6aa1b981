//! The model under the real client.

use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outjet::nats::{Api, Broken, Connection, Options as NatsOptions, Which};
use outjet::net::{Dialled, Network, Stream, World};
use time::OffsetDateTime;
use tokio::io::duplex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::{BASE, Fate, Gone, Kind, Leader, Nats, Options, Version, Writer};

/// Leads to one server.
struct Line {
    nats: Nats,
    served: Mutex<JoinSet<()>>,
    unique: AtomicUsize,
}

impl World for Line {
    fn dial(&self, _: SocketAddr) -> Dialled {
        let (ours, theirs) = duplex(64 * 1024);
        let mut served = self.served.lock().expect("nobody panics with it");
        served.spawn(self.nats.clone().serve(theirs));
        let ours: io::Result<Box<dyn Stream>> = Ok(Box::new(ours));
        Box::pin(ready(ours))
    }

    fn unique(&self) -> u128 {
        self.unique.fetch_add(1, Ordering::Relaxed) as u128
    }

    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(self.nats.now().into()).expect("a date")
    }
}

/// How the real client reaches the model.
pub(super) fn client_options(nats: &Nats) -> NatsOptions {
    let line = Line {
        nats: nats.clone(),
        served: Mutex::default(),
        unique: AtomicUsize::new(1),
    };
    NatsOptions {
        servers: vec!["nats://127.0.0.1:4222".to_owned()],
        entered: Arc::default(),
        name: "test".to_owned(),
        user: None,
        password: None,
        token: None,
        nkey: None,
        creds: None,
        tls_ca: None,
        tls_client: None,
        tls_first: false,
        connect_timeout: Duration::from_secs(5),
        inbox_prefix: None,
        domain: None,
        network: Network::of(Arc::new(line)),
    }
}

/// A server, and the way to it.
struct Site {
    nats: Nats,
    options: NatsOptions,
}

impl Deref for Site {
    type Target = Nats;

    fn deref(&self) -> &Nats {
        &self.nats
    }
}

impl Site {
    fn of(options: Options) -> Self {
        let nats = Nats::new(options);
        let options = client_options(&nats);
        Self { nats, options }
    }

    /// With stream S on `s.>`.
    fn start(version: Version) -> Self {
        let site = Self::of(Options::new(version));
        site.create("S", r#"{"name":"S","subjects":["s.>"]}"#);
        site
    }

    async fn connect(&self) -> Connection {
        let connected = Connection::open(&self.options).await;
        connected.expect("the model lets us in")
    }

    fn api(&self, connection: &Connection) -> Api {
        Api::new(connection.requests(), &self.options)
    }
}

/// Publishes behind what is expected, and asks for an answer with this number.
fn publish(connection: &mut Connection, number: u64, expected: u64) {
    let mut draft = connection.message("s.a", Some(number));
    draft.number("Nats-Expected-Last-Sequence", expected);
    draft.send(b"body");
}

/// The next answers: their numbers, and what they say.
async fn answers(connection: &mut Connection, wanted: usize) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    while found.len() < wanted {
        while let Some(reply) = connection.next_reply() {
            let status = reply.headers.status();
            let said = match status {
                Some(status) => status.to_string(),
                None => String::from_utf8_lossy(reply.body).into_owned(),
            };
            found.push((reply.number, said));
        }
        if found.len() < wanted {
            connection.ready().await.expect("it lives");
        }
    }
    found
}

/// What ends a connection.
async fn end(connection: &mut Connection) -> Broken {
    loop {
        match connection.ready().await {
            Err(broken) => return broken,
            Ok(()) => while connection.next_reply().is_some() {},
        }
    }
}

#[tokio::test(start_paused = true)]
async fn client_appends_a_chain_and_reads_it() {
    let nats = Site::start(Version::V2_15);
    let mut connection = nats.connect().await;
    for number in 0..3 {
        publish(&mut connection, number, number);
    }
    let said = answers(&mut connection, 3).await;
    assert_eq!(said[2], (2, r#"{"stream":"S","seq":3}"#.to_owned()));
    publish(&mut connection, 9, 2);
    let refused = answers(&mut connection, 1).await;
    assert!(
        refused[0].1.contains("wrong last sequence: 3"),
        "{refused:?}"
    );

    let api = nats.api(&connection);
    let info = connection.during(api.stream("S")).await.expect("it lives");
    let info = info.expect("an answer").expect("a stream");
    assert_eq!((info.state.messages, info.state.last_sequence), (3, 3));
    let which = Which {
        seq: Some(2),
        ..Which::default()
    };
    let read = api.message::<serde_json::Value>("S", &which);
    let read = connection.during(read).await.expect("it lives");
    let read = read.expect("an answer").expect("a message");
    assert_eq!(read["data"], "Ym9keQ==");

    let stored = nats.stored("S");
    let writers: Vec<_> = stored[0].messages.iter().map(|it| it.writer).collect();
    assert_eq!(writers, [Writer::Connection(1); 3]);
    assert_eq!(
        stored[0].messages[0].header("Nats-Expected-Last-Sequence"),
        Some(&b"0"[..])
    );
}

#[tokio::test(start_paused = true)]
async fn answers_overtake_each_other_and_what_is_stored_does_not() {
    let nats = Site::start(Version::V2_15);
    nats.decide(|answer| match answer.kind {
        Kind::Stored(1) => Fate::After(Duration::from_nanos(1_500_000)),
        Kind::Stored(2) => Fate::After(Duration::from_nanos(1_400_000)),
        Kind::Stored(3) => Fate::Never,
        _ => Fate::Now,
    });
    let mut connection = nats.connect().await;
    for number in 0..4 {
        publish(&mut connection, number, number);
    }
    let said = answers(&mut connection, 3).await;
    let order: Vec<u64> = said.iter().map(|(number, _)| *number).collect();
    assert_eq!(order, [3, 1, 0]);
    let stored = nats.stored("S");
    let sequences: Vec<u64> = stored[0].messages.iter().map(|it| it.sequence).collect();
    assert_eq!(sequences, [1, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn tail_that_is_lost_is_stored_again_at_its_place() {
    let nats = Site::start(Version::V2_15);
    let mut connection = nats.connect().await;
    for number in 0..3 {
        publish(&mut connection, number, number);
    }
    answers(&mut connection, 3).await;
    nats.truncate("S", 1);
    publish(&mut connection, 3, 3);
    publish(&mut connection, 4, 1);
    let said = answers(&mut connection, 2).await;
    assert!(said[0].1.contains("wrong last sequence: 1"), "{said:?}");
    assert_eq!(said[1].1, r#"{"stream":"S","seq":2}"#);
    let stored = nats.stored("S");
    let lost = |at: usize| stored[0].messages[at].gone.map(|(_, how)| how);
    assert_eq!(
        [lost(0), lost(1), lost(2), lost(3)],
        [None, Some(Gone::Lost), Some(Gone::Lost), None]
    );
}

#[tokio::test(start_paused = true)]
async fn stream_that_is_made_again_begins_anew_and_the_first_is_not_forgotten() {
    let nats = Site::start(Version::V2_15);
    assert_eq!(nats.publish("s.a", "Nats-Msg-Id: i\r\n", b"x"), Some(1));
    sleep(Duration::from_secs(1)).await;
    nats.recreate("S");
    assert_eq!(nats.publish("s.a", "Nats-Msg-Id: i\r\n", b"x"), Some(1));
    let stored = nats.stored("S");
    let created: Vec<_> = stored.iter().map(|it| it.created - BASE).collect();
    assert_eq!(created, [0, 1_000_000_000]);
    assert_eq!(
        stored[0].messages[0].gone,
        Some((BASE + 1_000_000_000, Gone::Stream))
    );
}

#[tokio::test(start_paused = true)]
async fn cluster_says_who_leads_and_who_follows() {
    for version in [Version::V2_10, Version::V2_15] {
        let site = Site::of(Options {
            servers: 3,
            ..Options::new(version)
        });
        site.create("S", r#"{"name":"S","subjects":["s.>"],"num_replicas":3}"#);
        let connection = site.connect().await;
        let api = site.api(&connection);
        let driven = connection.spawn();
        let info = api.stream("S").await.expect("an answer").expect("a stream");
        let cluster = info.cluster.expect("a cluster");
        assert_eq!(cluster.leader.as_deref(), Some("n1"));
        assert_eq!(cluster.replicas.len(), 2);
        site.set_leader(None, Leader::NoQuorum);
        let info = api.stream("S").await.expect("an answer").expect("a stream");
        assert_eq!(info.cluster.expect("a cluster").leader, None);
        drop(driven);
    }
}

#[tokio::test(start_paused = true)]
async fn three_replicas_keep_the_id_of_what_they_refused_before_2_12() {
    for (version, said) in [
        (
            Version::V2_10,
            r#"{"stream":"S", "seq":0,"duplicate": true}"#,
        ),
        (Version::V2_11, r#""err_code":10158"#),
        (Version::V2_12, r#"{"stream":"S","seq":1}"#),
    ] {
        let nats = Site::of(Options {
            servers: 3,
            ..Options::new(version)
        });
        let config = r#"{"name":"S","subjects":["s.>"],"num_replicas":3,
            "duplicate_window":5000000000}"#;
        nats.create("S", config);
        let refused = nats.publish(
            "s.a",
            "Nats-Msg-Id: i\r\nNats-Expected-Last-Sequence: 7\r\n",
            b"",
        );
        assert_eq!(refused, None);
        let again = "Nats-Msg-Id: i\r\nNats-Expected-Last-Sequence: 0\r\n";
        let answer = nats.ask("s.a", again, b"").expect("an answer");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains(said), "{version:?}: {answer}");
        sleep(Duration::from_secs(5)).await;
        let late = nats.publish("s.a", "Nats-Msg-Id: i\r\n", b"");
        assert!(late.is_some(), "{version:?}: the window has ended");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_nothing_is_stored() {
    let nats = Site::start(Version::V2_15);
    let mut connection = nats.connect().await;
    nats.set_leader(Some("S"), Leader::NoResponders);
    publish(&mut connection, 0, 0);
    assert_eq!(answers(&mut connection, 1).await, [(0, "503".to_owned())]);
    nats.set_leader(Some("S"), Leader::NoQuorum);
    let api = nats.api(&connection);
    let info = connection.during(api.stream("S")).await.expect("it lives");
    assert_eq!(
        info.expect("an answer").expect("a stream").state.messages,
        0
    );
    let deleted = connection.during(api.delete_message("S", 1)).await;
    let refused = deleted.expect("it lives").expect_err("no leader");
    assert!(refused.to_string().contains("10008"), "{refused}");
    nats.set_leader(Some("S"), Leader::Silent);
    publish(&mut connection, 1, 0);
    let heard = timeout(Duration::from_secs(1), connection.ready()).await;
    assert!(heard.is_err(), "{heard:?}");
    nats.set_leader(Some("S"), Leader::Present);
    publish(&mut connection, 2, 0);
    let said = answers(&mut connection, 1).await;
    assert_eq!(said, [(2, r#"{"stream":"S","seq":1}"#.to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn rights_that_are_withdrawn_are_missed_at_once() {
    let nats = Site::start(Version::V2_15);
    let mut connection = nats.connect().await;
    nats.deny(&["s.>"], &[]);
    publish(&mut connection, 0, 0);
    let broken = end(&mut connection).await;
    assert!(matches!(broken, Broken::PublishDenied(_)), "{broken}");
    nats.deny(&[], &[]);
    let mut connection = nats.connect().await;
    publish(&mut connection, 0, 0);
    answers(&mut connection, 1).await;
    nats.deny(&[], &["_INBOX.>"]);
    let broken = end(&mut connection).await;
    assert!(matches!(broken, Broken::SubscriptionDenied(_)), "{broken}");
}

#[tokio::test(start_paused = true)]
async fn twin_of_another_domain_stores_and_answers_too() {
    let nats = Site::of(Options {
        domain: Some("hub".to_owned()),
        ..Options::new(Version::V2_15)
    });
    let config = r#"{"name":"S","subjects":["s.>"]}"#;
    nats.create("S", config);
    nats.set_twin("leaf", Some(config));
    let mut connection = nats.connect().await;
    publish(&mut connection, 0, 0);
    let said = answers(&mut connection, 2).await;
    assert_eq!(said[0].1, r#"{"stream":"S","domain":"hub","seq":1}"#);
    assert_eq!(said[1].1, r#"{"stream":"S","domain":"leaf","seq":1}"#);
    nats.set_leader(Some("S"), Leader::NoResponders);
    publish(&mut connection, 1, 1);
    let said = answers(&mut connection, 1).await;
    assert_eq!(said[0].1, r#"{"stream":"S","domain":"leaf","seq":2}"#);
    let twins: usize = nats.read(|all| {
        all.iter()
            .filter(|it| it.twin)
            .map(|it| it.messages.len())
            .sum()
    });
    assert_eq!(twins, 2);
    assert_eq!(nats.stored("S")[0].messages.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn restart_ends_connections_and_forgets_what_is_in_memory() {
    let nats = Site::start(Version::V2_15);
    nats.create("M", r#"{"name":"M","subjects":["m.>"],"storage":"memory"}"#);
    assert_eq!(nats.publish("m.a", "", b""), Some(1));
    assert_eq!(nats.publish("s.a", "Nats-Msg-Id: i\r\n", b""), Some(1));
    let mut connection = nats.connect().await;
    let before = connection.server().id.clone();
    nats.restart();
    assert!(matches!(end(&mut connection).await, Broken::Closed));
    let connection = nats.connect().await;
    assert_ne!(connection.server().id, before);
    assert_eq!(nats.publish("m.a", "", b""), None);
    let known = nats
        .ask("s.a", "Nats-Msg-Id: i\r\n", b"")
        .expect("an answer");
    assert!(String::from_utf8_lossy(&known).contains("duplicate"));
    assert!(nats.stored("M")[0].ended.is_some());
}

#[tokio::test(start_paused = true)]
async fn server_that_stands_still_says_nothing_and_goes_on() {
    let nats = Site::start(Version::V2_15);
    let mut connection = nats.connect().await;
    nats.pause(true);
    publish(&mut connection, 0, 0);
    let since = Instant::now();
    let waited = timeout(Duration::from_secs(3), answers(&mut connection, 1)).await;
    assert!(waited.is_err());
    assert_eq!(since.elapsed(), Duration::from_secs(3));
    assert!(nats.stored("S")[0].messages.is_empty());
    nats.pause(false);
    assert_eq!(answers(&mut connection, 1).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn lame_duck_and_a_smaller_max_payload_are_told() {
    let nats = Site::start(Version::V2_15);
    let mut connection = nats.connect().await;
    nats.set_max_payload(1000);
    publish(&mut connection, 0, 0);
    answers(&mut connection, 1).await;
    assert_eq!(connection.max_payload(), 1000);
    nats.lame_duck();
    assert!(matches!(end(&mut connection).await, Broken::LameDuck));
}

#[tokio::test(start_paused = true)]
async fn everything_vanishes_in_its_own_way() {
    let nats = Site::of(Options::new(Version::V2_15));
    nats.create(
        "W",
        r#"{"name":"W","subjects":["w.>"],"retention":"workqueue","allow_msg_ttl":true}"#,
    );
    for sequence in 1..=6 {
        let lines = if sequence == 5 {
            "Nats-TTL: 2s\r\n"
        } else {
            ""
        };
        assert_eq!(nats.publish("w.a", lines, b""), Some(sequence));
    }
    assert!(nats.consume("W", 1));
    assert!(!nats.consume("W", 1));
    assert!(nats.delete("W", 3));
    assert_eq!(nats.purge("W", 2), 1);
    sleep(Duration::from_secs(3)).await;
    let gone = || {
        let messages = nats.stored("W").remove(0).messages;
        messages
            .iter()
            .map(|it| it.gone.map(|(_, how)| how))
            .collect::<Vec<_>>()
    };
    let expected = [Gone::Consumed, Gone::Purged, Gone::Deleted].map(Some);
    assert_eq!(gone()[..3], expected);
    assert_eq!(gone()[3..], [None, Some(Gone::Ttl), None]);
    assert_eq!(nats.expire("W", Duration::from_secs(1)), 2);
    assert_eq!(gone()[5], Some(Gone::Aged));
    assert_eq!(
        nats.publish("w.a", "Nats-Expected-Last-Sequence: 6\r\n", b""),
        Some(7)
    );
}

#[tokio::test(start_paused = true)]
async fn schedule_is_due_at_its_time() {
    let nats = Site::of(Options::new(Version::V2_15));
    let config =
        r#"{"name":"D","subjects":["d.>"],"allow_msg_schedules":true,"allow_msg_ttl":true}"#;
    nats.create("D", config);
    let lines = "Nats-Schedule: @at 2026-01-01T00:00:10Z\r\nNats-Schedule-Target: d.due\r\n";
    assert_eq!(nats.publish("d.later", lines, b"body"), Some(1));
    let due = BASE + 10_000_000_000;
    assert_eq!(nats.next_due(), Some(due));
    sleep(Duration::from_secs(9)).await;
    assert_eq!(nats.stored("D")[0].messages.len(), 1);
    sleep(Duration::from_secs(60)).await;
    let messages = nats.stored("D").remove(0).messages;
    assert_eq!(messages[0].gone, Some((due, Gone::Fired)));
    let (subject, time) = (&messages[1].subject[..], messages[1].time);
    assert_eq!(
        (subject, time, messages[1].writer),
        (&b"d.due"[..], due, Writer::Server)
    );
}

#[tokio::test(start_paused = true)]
async fn copy_has_the_headers_of_its_original_but_what_that_expected() {
    let nats = Site::start(Version::V2_15);
    let lines = "Outjet-Position: 1/0\r\nNats-Msg-Id: i\r\nNats-Expected-Last-Sequence: 0\r\n";
    assert_eq!(nats.publish("s.a", lines, b"body"), Some(1));
    assert_eq!(nats.copy("S", 1, true), None);
    assert_eq!(nats.copy("S", 1, false), Some(2));
    let copy = nats.stored("S")[0].messages[1].clone();
    assert_eq!(
        &copy.headers[..],
        b"NATS/1.0\r\nOutjet-Position: 1/0\r\n\r\n"
    );
    assert_eq!(
        (&copy.body[..], copy.writer),
        (&b"body"[..], Writer::Stranger)
    );
}

#[tokio::test(start_paused = true)]
async fn owner_changes_a_stream_under_its_writer() {
    let nats = Site::start(Version::V2_15);
    let refused = |lines: &str| {
        let answer = nats.ask("s.a", lines, b"").expect("an answer");
        String::from_utf8_lossy(&answer).into_owned()
    };
    nats.set_full("S", true);
    assert!(refused("").contains("10077"));
    nats.set_full("S", false);
    nats.configure("S", |config| config.max_msgs = 1);
    assert_eq!(nats.publish("s.a", "", b""), Some(1));
    assert_eq!(nats.publish("s.a", "", b""), Some(2));
    let first = nats.stored("S")[0].messages[0].clone();
    assert_eq!(first.gone.map(|(_, how)| how), Some(Gone::Limit));
    nats.configure("S", |config| config.sealed = true);
    assert!(refused("").contains("10109"));
    nats.remove("S");
    assert_eq!(nats.ask("s.a", "", b""), None);
}

#[tokio::test(start_paused = true)]
async fn interest_keeps_what_a_consumer_has_not_had() {
    let nats = Site::of(Options::new(Version::V2_15));
    nats.create(
        "I",
        r#"{"name":"I","subjects":["i.>"],"retention":"interest"}"#,
    );
    assert_eq!(nats.publish("i.a", "", b""), Some(1));
    nats.set_consumers("I", 1);
    assert_eq!(nats.publish("i.a", "", b""), Some(2));
    assert!(nats.consume("I", 2));
    let messages = nats.stored("I").remove(0).messages;
    let gone: Vec<_> = messages
        .iter()
        .map(|it| it.gone.map(|(_, how)| how))
        .collect();
    assert_eq!(gone, [Some(Gone::NoInterest), Some(Gone::Consumed)]);
}

#[tokio::test(start_paused = true)]
async fn connections_end_without_anything_else() {
    let nats = Site::start(Version::V2_15);
    let mut connection = nats.connect().await;
    nats.disconnect();
    assert!(matches!(end(&mut connection).await, Broken::Closed));
    nats.set_jetstream(false);
    let mut connection = nats.connect().await;
    assert!(!connection.server().jetstream);
    publish(&mut connection, 0, 0);
    assert_eq!(answers(&mut connection, 1).await, [(0, "503".to_owned())]);
}

/// Some trouble, decided by a number; all that was said.
async fn history(seed: u64) -> Vec<String> {
    let nats = Site::start(Version::V2_15);
    let asked = Arc::new(Mutex::new((seed, Vec::<String>::new())));
    let decided = Arc::clone(&asked);
    nats.decide(move |answer| {
        let (state, told) = &mut *decided.lock().expect("nobody panics with it");
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let (connection, stream) = (answer.connection, answer.stream);
        told.push(format!("{connection} {stream} {:?}", answer.kind));
        Fate::After(Duration::from_micros(*state >> 52))
    });
    let mut connection = nats.connect().await;
    for number in 0..100 {
        publish(&mut connection, number, number);
    }
    let said = answers(&mut connection, 100).await;
    let mut told = asked.lock().expect("nobody panics with it").1.clone();
    told.extend(said.into_iter().map(|(_, said)| said));
    told.push(format!("{:?}", nats.stored("S")));
    told
}

#[tokio::test(start_paused = true)]
async fn same_choices_make_the_same_history() {
    let (one, again, other) = (history(1).await, history(1).await, history(2).await);
    assert_eq!(one, again);
    assert_ne!(one, other);
    assert_eq!(one[0], "1 S Stored(1)");
}

#[tokio::test(start_paused = true)]
async fn bucket_that_loses_its_tail_has_the_older_revision() {
    let nats = Site::of(Options::new(Version::V2_15));
    let config = r#"{"name":"KV_B","subjects":["$KV.B.>"],"max_msgs_per_subject":1}"#;
    nats.create("KV_B", config);
    for revision in 1..=3 {
        assert_eq!(nats.publish("$KV.B.a", "", b"x"), Some(revision));
    }
    nats.truncate("KV_B", 2);
    let expects = |revision: u64| {
        let lines = format!("Nats-Expected-Last-Subject-Sequence: {revision}\r\n");
        nats.publish("$KV.B.a", &lines, b"y")
    };
    assert_eq!(expects(3), None);
    assert_eq!(expects(2), Some(3));
    let messages = nats.stored("KV_B").remove(0).messages;
    let gone: Vec<_> = messages
        .iter()
        .map(|it| it.gone.map(|(_, how)| how))
        .collect();
    let replaced = Some(Gone::Replaced);
    assert_eq!(gone, [replaced, replaced, Some(Gone::Lost), None]);
}
