//! Reads the stream back, and judges it.
//!
//! What was committed, and in which order, is told by a decoder that is not ours: test_decoding,
//! on a slot that was there before the first write. Our own headers have no say in it.

use async_nats::jetstream::{self, consumer};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::Duration;
use time::OffsetDateTime;

use super::postgres::{Postgres, Session};
use super::stage::SOON;
use super::wait::{Wait, until};

/// How long a server may take to hand out the next message of a stream that has one.
const NEXT_WITHIN: Duration = Duration::from_secs(30);

/// Three nodes elect a leader for some seconds, and nobody answers meanwhile.
const FOUND_WITHIN: Duration = Duration::from_secs(60);

/// A node that is down is found out by a request's timeout of 5 s, and chosen one time in three.
const CONSUMER_WITHIN: Duration = Duration::from_secs(120);

/// A message as it stands in the stream.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// Its place in the stream.
    pub(crate) sequence: u64,
    /// Its subject.
    pub(crate) subject: String,
    /// Its headers.
    pub(crate) headers: async_nats::HeaderMap,
    /// Its body.
    pub(crate) payload: Bytes,
    /// When the server stored it.
    pub(crate) stored_at: OffsetDateTime,
}

impl Stored {
    /// A header's first value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }

    /// The event's id. A message that the server would call a duplicate bears it under our name.
    pub(crate) fn id(&self) -> Option<&str> {
        let id = self.header("Nats-Msg-Id");
        id.or_else(|| self.header("Outjet-Id"))
    }

    /// The id of its row.
    pub(crate) fn row_id(&self) -> String {
        let id = self.header("Nats-Msg-Id");
        let id = id.unwrap_or_else(|| panic!("a message without an id: {self:?}"));
        row_id(id).to_owned()
    }
}

/// All messages of a stream, in its order.
pub(crate) async fn messages(jetstream: &jetstream::Context, stream: &str) -> Vec<Stored> {
    let mut messages = Vec::new();
    each(jetstream, stream, |message| {
        let told = message.info().expect("a JetStream message");
        messages.push(Stored {
            sequence: told.stream_sequence,
            subject: message.subject.to_string(),
            headers: message.headers.clone().unwrap_or_default(),
            payload: message.payload.clone(),
            stored_at: told.published,
        });
    })
    .await;
    messages
}

/// The events' ids, in the stream's order; for streams too large to be kept whole.
pub(crate) async fn ids(jetstream: &jetstream::Context, stream: &str) -> Vec<String> {
    let mut ids = Vec::new();
    // Bodies of hundreds of kilobytes take a client longer than its heartbeats allow.
    read(jetstream, stream, HEADERS_ONLY, |message| {
        let headers = message.headers.as_ref();
        let id = headers.and_then(|headers| headers.get("Nats-Msg-Id"));
        let id = id.unwrap_or_else(|| panic!("a message without an id: {message:?}"));
        ids.push(row_id(id.as_str()).to_owned());
    })
    .await;
    ids
}

/// Shows every message that stands in the stream now, in its order.
pub(crate) async fn each(
    jetstream: &jetstream::Context,
    stream: &str,
    show: impl FnMut(&jetstream::Message),
) {
    read(jetstream, stream, WHOLE, show).await;
}

const WHOLE: bool = false;
const HEADERS_ONLY: bool = true;

async fn read(
    jetstream: &jetstream::Context,
    stream: &str,
    headers_only: bool,
    mut show: impl FnMut(&jetstream::Message),
) {
    let found = until(
        &format!("stream {stream}"),
        FOUND_WITHIN,
        async || match jetstream.get_stream(stream).await {
            Ok(found) => Wait::Ready(found),
            Err(error) => Wait::NotYet(error.to_string()),
        },
    )
    .await;
    if found.cached_info().state.messages == 0 {
        return;
    }
    let last = found.cached_info().state.last_sequence;
    // It has no replicas, and may be placed on a node that is down: then the next one is elsewhere.
    let consumer = until("an ordered consumer", CONSUMER_WITHIN, async || {
        let ordered = consumer::pull::OrderedConfig {
            headers_only,
            ..Default::default()
        };
        match found.create_consumer(ordered).await {
            Ok(consumer) => Wait::Ready(consumer),
            Err(error) => Wait::NotYet(error.to_string()),
        }
    })
    .await;
    let mut messages = consumer.messages().await.expect("messages");
    loop {
        let next = tokio::time::timeout(NEXT_WITHIN, messages.next()).await;
        let next = next.unwrap_or_else(|_| panic!("stream {stream} yields no next message"));
        let message = next.expect("an endless stream").expect("a message");
        let (sequence, pending) = {
            let told = message.info().expect("a JetStream message");
            (told.stream_sequence, told.pending)
        };
        if sequence <= last {
            show(&message);
        }
        if sequence >= last || pending == 0 {
            return;
        }
    }
}

/// Waits until the stream has at least this many messages.
pub(crate) async fn until_stored(
    jetstream: &jetstream::Context,
    stream: &str,
    messages: u64,
    within: Duration,
) {
    let what = format!("stream {stream} has {messages} messages");
    until(&what, within, async || {
        match jetstream.get_stream(stream).await {
            Ok(found) => {
                let stored = found.cached_info().state.messages;
                Wait::ready_if(stored >= messages, stored)
            }
            Err(error) => Wait::NotYet(error.to_string()),
        }
    })
    .await;
}

/// The ids of those messages whose body is not what `payload` holds in the row of that id.
pub(crate) async fn altered(session: &Session, table: &str, stored: &[Stored]) -> Vec<String> {
    let rows = format!("SELECT id::text, payload::text FROM {table}");
    let rows = session.query(&rows, &[]).await.expect("the outbox's rows");
    let rows: HashMap<String, String> = rows
        .iter()
        .map(|row| (row.get(0), row.get::<_, Option<_>>(1).unwrap_or_default()))
        .collect();
    let id = |message: &Stored| row_id(message.header("Nats-Msg-Id").unwrap_or("")).to_owned();
    let differs = |message: &&Stored| {
        let row = rows.get(&id(message));
        row.is_none_or(|payload| payload.as_bytes() != message.payload)
    };
    stored.iter().filter(differs).map(id).collect()
}

/// The row's id in a message id, which may be `<schema>.<table>:<id>`.
fn row_id(message_id: &str) -> &str {
    message_id.rsplit(':').next().unwrap_or(message_id)
}

/// Who knows what was committed, and in which order.
#[derive(Clone)]
pub(crate) struct Judge {
    url: String,
    table: String,
}

impl Judge {
    /// Appoints a judge over `outbox.events` and its partitions, and over messages of the prefix
    /// `outbox`. What was written before is not its to judge.
    pub(crate) async fn appoint(postgres: &Postgres) -> Self {
        Self::over(&postgres.url(), "outbox.events").await
    }

    /// The same for another database, or for the tables whose names begin so, quoted as Postgres
    /// would. One judge a database.
    pub(crate) async fn over(url: &str, table: &str) -> Self {
        let slot = "SELECT pg_create_logical_replication_slot(
            'judge_' || current_database(), 'test_decoding')";
        Session::connect(url).await.text(slot).await;
        Self {
            url: url.to_owned(),
            table: table.to_owned(),
        }
    }

    /// Over `outbox.events`, and kept in step on standbys (17 and newer), where
    /// [`moved`](Self::moved) takes it.
    pub(crate) async fn with_failover(postgres: &Postgres) -> Self {
        let slot = "SELECT pg_create_logical_replication_slot(
            'judge_' || current_database(), 'test_decoding', failover => true)";
        postgres.connect().await.text(slot).await;
        Self {
            url: postgres.url(),
            table: "outbox.events".to_owned(),
        }
    }

    /// The same on another server that has the slot.
    pub(crate) fn moved(self, postgres: &Postgres) -> Self {
        Self {
            url: postgres.url(),
            ..self
        }
    }

    /// The ids of all committed events, in commit order.
    ///
    /// It peeks, and so reads from the beginning each time: a `get` moves the slot, and a crash of
    /// the server can take that back.
    pub(crate) async fn committed(&self) -> Vec<String> {
        let table = self.table.replace('\'', "''");
        let sql = COMMITTED.replace("{table}", &table);
        let session = Session::connect(&self.url).await;
        let rows = session.copy_out(&sql).await;
        let rows = rows.unwrap_or_else(|error| panic!("read the judge's slot: {error:?}"));
        let text = rows.try_fold(Vec::new(), async |mut text, bytes| {
            text.extend_from_slice(&bytes);
            Ok(text)
        });
        let text = String::from_utf8(text.await.expect("the judge's slot")).expect("UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    /// Compares what was committed with what is stored.
    pub(crate) async fn verdict(&self, stored: &[String]) -> Verdict {
        Verdict::of(&self.committed().await, stored)
    }
}

/// test_decoding prints `table outbox.events: INSERT: id[uuid]:'…' …`, partitions under their own
/// names, and `message: transactional: 1 prefix: outbox, sz: 9 content:…`.
const COMMITTED: &str = r#"
COPY (
  SELECT coalesce(
    substring(data FROM ' id\[[^]]*\]:''([^'']*)'''),
    substring(data FROM ' id\[[^]]*\]:(\S+)'),
    substring(data FROM '"id"\s*:\s*"([^"]+)"'),
    'unreadable: ' || left(data, 200))
  FROM pg_logical_slot_peek_changes('judge_' || current_database(), NULL, NULL,
    'include-xids', '0', 'skip-empty-xacts', '1')
  WHERE (starts_with(data, 'table {table}') AND position(': INSERT: ' IN data) > 0)
    OR starts_with(data, 'message: transactional: 1 prefix: outbox,')
) TO STDOUT"#;

/// What is wrong with a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// How many events were committed.
    pub(crate) committed: usize,
    /// How many messages are stored.
    pub(crate) stored: usize,
    /// Committed and not stored.
    pub(crate) missing: Vec<String>,
    /// Stored more often than committed.
    pub(crate) duplicated: Vec<String>,
    /// Stored after an event that was committed later.
    pub(crate) out_of_order: Vec<String>,
    /// Stored and not committed.
    pub(crate) uncommitted: Vec<String>,
}

impl Verdict {
    /// Compares two orders. An id may be committed twice; then it must be stored twice.
    pub(crate) fn of(committed: &[String], stored: &[String]) -> Self {
        let mut places: HashMap<&str, VecDeque<usize>> = HashMap::with_capacity(committed.len());
        for (place, id) in committed.iter().enumerate() {
            places.entry(id).or_default().push_back(place);
        }
        let mut verdict = Self {
            committed: committed.len(),
            stored: stored.len(),
            ..Self::default()
        };
        let mut highest = 0;
        for id in stored {
            match places.get_mut(id.as_str()).map(VecDeque::pop_front) {
                None => verdict.uncommitted.push(id.clone()),
                Some(None) => verdict.duplicated.push(id.clone()),
                Some(Some(place)) if place < highest => verdict.out_of_order.push(id.clone()),
                Some(Some(place)) => highest = place,
            }
        }
        let mut missing: Vec<usize> = places.into_values().flatten().collect();
        missing.sort_unstable();
        verdict.missing = missing
            .into_iter()
            .map(|place| committed[place].clone())
            .collect();
        verdict
    }

    /// Whether the stream is what was committed, event for event.
    pub(crate) fn is_exact(&self) -> bool {
        let faults = [
            &self.missing,
            &self.duplicated,
            &self.out_of_order,
            &self.uncommitted,
        ];
        faults.iter().all(|faults| faults.is_empty())
    }

    /// Panics with the verdict unless it is exact. A verdict over nothing proves nothing.
    #[track_caller]
    pub(crate) fn assert_exact(&self) {
        assert!(self.committed > 0, "nothing was committed");
        assert!(self.is_exact(), "{self}");
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "committed {}, stored {}", self.committed, self.stored)?;
        let faults = [
            ("missing", &self.missing),
            ("duplicated", &self.duplicated),
            ("out of order", &self.out_of_order),
            ("uncommitted", &self.uncommitted),
        ];
        for (name, ids) in faults {
            let first = &ids[..ids.len().min(5)];
            writeln!(f, "{name} {} {first:?}", ids.len())?;
        }
        Ok(())
    }
}

/// Waits until a standby has the slots of outjet and of the judge. A slot can be kept only from
/// where the standby has come to, so the judge's moves on: nothing was written that it misses.
pub(crate) async fn until_slots_are_kept(primary: &Session, standby: &Session) {
    let advance = "SELECT pg_log_standby_snapshot();
        SELECT pg_replication_slot_advance('judge_postgres', pg_current_wal_flush_lsn())";
    let kept = "SELECT count(*) FROM pg_replication_slots
        WHERE synced AND NOT temporary AND invalidation_reason IS NULL";
    until("both slots are kept", SOON, async || {
        primary.run(advance).await;
        let kept = standby.text(kept).await;
        Wait::ready_if(kept == "2", kept)
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::super::outbox::{self, Load};
    use super::super::{Nats, outbox::Written};
    use super::*;

    fn ids(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_same_order_is_exact() {
        let verdict = Verdict::of(&ids("a b c"), &ids("a b c"));
        assert!(verdict.is_exact(), "{verdict}");
        assert_eq!((verdict.committed, verdict.stored), (3, 3));
    }

    #[test]
    fn a_missing_event_is_found_at_either_end_and_in_between() {
        for (stored, missing) in [("b c", "a"), ("a c", "b"), ("a b", "c")] {
            let verdict = Verdict::of(&ids("a b c"), &ids(stored));
            assert_eq!(verdict.missing, ids(missing));
            assert!(!verdict.is_exact());
        }
    }

    #[test]
    fn a_duplicate_is_found_beside_its_original_and_far_from_it() {
        for stored in ["a a b c", "a b c a"] {
            let verdict = Verdict::of(&ids("a b c"), &ids(stored));
            assert_eq!((verdict.duplicated, verdict.missing), (ids("a"), vec![]));
        }
    }

    #[test]
    fn a_swap_is_found_and_is_neither_missing_nor_duplicated() {
        let verdict = Verdict::of(&ids("a b c"), &ids("b a c"));
        assert_eq!(verdict.out_of_order, ids("a"));
        assert!(verdict.missing.is_empty() && verdict.duplicated.is_empty());
        assert!(!verdict.is_exact());
    }

    #[test]
    fn a_message_that_nobody_committed_is_found() {
        let verdict = Verdict::of(&ids("a b"), &ids("a x b"));
        assert_eq!(verdict.uncommitted, ids("x"));
        assert!(!verdict.is_exact());
    }

    #[test]
    fn an_id_that_was_committed_twice_must_be_stored_twice() {
        assert!(Verdict::of(&ids("a b a"), &ids("a b a")).is_exact());
        assert_eq!(Verdict::of(&ids("a b a"), &ids("a b")).missing, ids("a"));
        assert_eq!(
            Verdict::of(&ids("a b a"), &ids("a a a b")).duplicated,
            ids("a")
        );
    }

    #[test]
    #[should_panic(expected = "nothing was committed")]
    fn a_verdict_over_nothing_is_none() {
        Verdict::of(&[], &[]).assert_exact();
    }

    async fn publish(jetstream: &jetstream::Context, id: &str, payload: &str) {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("outbox.events:{id}"));
        let sent = jetstream.publish_with_headers("events.a", headers, payload.to_owned().into());
        sent.await.expect("sent").await.expect("stored");
    }

    #[tokio::test]
    async fn the_judge_knows_what_concurrent_writers_committed_and_a_stream_is_read_whole() {
        let postgres = Postgres::start().await;
        outbox::create_plain(&postgres).await;
        let judge = Judge::appoint(&postgres).await;
        let Written {
            committed,
            rolled_back,
            empty,
        } = Load::mixed(7).write(&postgres.url()).await;
        assert!(rolled_back > 0 && empty > 0);

        let order = judge.committed().await;
        assert_eq!(order.len() as u64, committed);
        let session = postgres.connect().await;
        let rows = session.query("SELECT id::text, payload::text FROM outbox.events", &[]);
        let rows = rows.await.expect("rows");
        let rows: HashMap<String, String> =
            rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(rows.len() as u64, committed);
        assert!(order.iter().all(|id| rows.contains_key(id)));

        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        let stream = jetstream::stream::Config {
            name: "OUTBOX".to_owned(),
            subjects: vec!["events.>".to_owned()],
            duplicate_window: Duration::from_millis(100),
            ..Default::default()
        };
        jetstream.create_stream(stream).await.expect("a stream");
        for id in &order {
            publish(&jetstream, id, &rows[id]).await;
        }
        let stored = super::ids(&jetstream, "OUTBOX").await;
        judge.verdict(&stored).await.assert_exact();
        let whole = messages(&jetstream, "OUTBOX").await;
        assert_eq!(
            altered(&session, "outbox.events", &whole).await,
            Vec::<String>::new()
        );

        publish(&jetstream, "forged", "{}").await;
        let whole = messages(&jetstream, "OUTBOX").await;
        assert_eq!(altered(&session, "outbox.events", &whole).await, ["forged"]);
        let verdict = judge.verdict(&super::ids(&jetstream, "OUTBOX").await).await;
        assert_eq!(verdict.uncommitted, ["forged"]);
    }

    #[tokio::test]
    async fn the_judge_keeps_its_order_over_a_crash_of_the_server() {
        let mut postgres = Postgres::start().await;
        outbox::create_plain(&postgres).await;
        let judge = Judge::appoint(&postgres).await;
        outbox::backlog(&postgres.connect().await, 20).await;
        let before = judge.committed().await;
        assert_eq!(before.len(), 20);
        postgres.crash().await;
        postgres.start_again().await;
        outbox::one_transaction(&postgres.connect().await, 5).await;
        let after = judge.committed().await;
        assert_eq!((after.len(), &after[..20]), (25, &before[..]));
    }

    #[tokio::test]
    async fn the_judge_reads_odd_names_partitions_numbers_and_messages() {
        let postgres = Postgres::start().await;
        let session = postgres.connect().await;
        session
            .run(
                r#"CREATE SCHEMA "we""ird"; CREATE TABLE "we""ird"."out box" (id bigint, note text)
                   PARTITION BY RANGE (id);
                   CREATE TABLE "we""ird"."out box 1" PARTITION OF "we""ird"."out box" DEFAULT"#,
            )
            .await;
        let judge = Judge::over(&postgres.url(), r#""we""ird"."out box"#).await;
        session
            .run(r#"INSERT INTO "we""ird"."out box" VALUES (41, 'x'), (42, NULL)"#)
            .await;
        let message = r#"SELECT pg_logical_emit_message(true, 'outbox', '{"id": "told"}')"#;
        session.run(message).await;
        assert_eq!(judge.committed().await, ["41", "42", "told"]);
    }
}
