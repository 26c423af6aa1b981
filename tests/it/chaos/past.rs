//! Rounds in which the past changes behind outjet's back: messages are consumed or come to their
//! end, events are delayed by one run and published at once by the next, older records are put
//! back. And what a judge makes of a stream of which little is left.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use async_nats::jetstream::consumer::{self, AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, stream};
use futures_util::StreamExt;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::arena::Copy;
use super::plan::{Past, Plan};
use super::strangers::Strangers;
use super::{LOOK, STREAM, contents, letters};
use crate::harness::drain::{self, Stored};
use crate::harness::outbox::Random;
use crate::harness::postgres::Session;
use crate::harness::stage::confirmed;
use crate::harness::{Verdict, Wait, until};
use bytes::Bytes;
use futures_util::future::join_all;

/// Where events appear that were delayed.
const DELAYED: &str = "OUTBOX_DELAYED";

/// Where the record is kept.
const BUCKET: &str = "KV_OUTJET_OUTBOX";

/// The slot's, there.
const KEY: &str = "$KV.OUTJET_OUTBOX.outjet";

/// The consumer's name.
const CONSUMER: &str = "judge";

/// What was handed out and not acknowledged is handed out again.
const ACK_WAIT: Duration = Duration::from_secs(1);

/// How long the consumer waits for the next messages.
const BATCH_EXPIRES: Duration = Duration::from_millis(200);

/// An answer that does not come within that time is asked for again.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// When all faults are over: what is left to be read, and to become due.
const REST_WITHIN: Duration = Duration::from_secs(60);

/// Ids that begin so are delayed.
const DELAYED_IDS: [char; 1] = ['0'];

/// Ids that begin so expire, where events do.
const EXPIRING_IDS: [char; 3] = ['1', '2', '3'];

/// Makes the stream a work queue, where it is to be one. Before `outjet setup`.
pub(crate) async fn make_queue(jetstream: &jetstream::Context, plan: &Plan) {
    if plan.past != Some(Past::Consumed) {
        return;
    }
    let queue = stream::Config {
        name: STREAM.to_owned(),
        subjects: vec!["events.>".to_owned()],
        retention: stream::RetentionPolicy::WorkQueue,
        discard: stream::DiscardPolicy::New,
        num_replicas: plan.replicas,
        duplicate_window: Duration::from_secs(120),
        allow_message_ttl: true,
        ..Default::default()
    };
    jetstream.create_stream(queue).await.expect("a work queue");
}

/// Has the server of the database say when events are due and when they expire, and which cannot
/// be published, by their ids: what writers write is the same in all rounds. The times lie within
/// some seconds.
pub(crate) fn variety(plan: &Plan) -> String {
    let expiring = match plan.past {
        Some(Past::Expiring) => EXPIRING_IDS.iter().collect(),
        Some(Past::Consumed | Past::Moved | Past::Promoted) | None => "-".to_owned(),
    };
    let delayed: String = DELAYED_IDS.iter().collect();
    let rejected = match plan.past.is_some_and(Past::has_letters) {
        true => letters::REJECTED_IDS,
        false => "-",
    };
    format!(
        "CREATE FUNCTION set_variety() RETURNS trigger LANGUAGE plpgsql AS $$
         DECLARE
           quarters integer := ('x' || substr(NEW.id::text, 2, 1))::bit(4)::integer;
         BEGIN
           IF NEW.id::text ~ '^[{delayed}]' THEN
             NEW.deliver_at := clock_timestamp() + interval '2 s' + quarters * interval '250 ms';
           END IF;
           IF NEW.id::text ~ '^[{expiring}]' THEN
             NEW.expires_at := clock_timestamp() + interval '1 s' + quarters * interval '250 ms';
           END IF;
           IF NEW.id::text ~ '^{rejected}' THEN
             NEW.headers := '[0]';
           END IF;
           RETURN NEW;
         END $$;
         CREATE TRIGGER set_variety BEFORE INSERT ON outbox.events
           FOR EACH ROW EXECUTE FUNCTION set_variety()"
    )
}

/// Has a first schedule recorded. Until one is, an instance that publishes what is delayed at once
/// looks for none (docs/losses.md).
pub(crate) async fn prelude(session: &Session) {
    let mut random = Random(1);
    let mut id = random.uuid();
    while !is_delayed(&id) {
        id = random.uuid();
    }
    session.run(&contents::insert(&id)).await;
    confirmed(session, REST_WITHIN).await;
}

/// Ends all copies and puts the record back to what it was `lasts` before. Says whether it tried:
/// a broker that is away has nothing to be put back, and a record that lacks nothing may halt
/// outjet, as the slot then seems to have been moved.
pub(crate) async fn put_record_back(
    jetstream: &jetstream::Context,
    copies: &mut [Copy],
    lasts: Duration,
) -> bool {
    let old = timeout(ANSWER_WITHIN, record(jetstream))
        .await
        .ok()
        .flatten();
    sleep(lasts).await;
    let orderly = lasts.as_millis().is_multiple_of(2);
    join_all(copies.iter_mut().map(|copy| copy.end(orderly))).await;
    let mut tried = false;
    let put = timeout(ANSWER_WITHIN, async {
        let old = old?;
        let stored: serde_json::Value = serde_json::from_slice(&old).ok()?;
        let stored = stored["stored"]["sequence"].as_u64()?;
        let stream = jetstream.get_stream(STREAM).await.ok()?;
        tried = stream.cached_info().state.last_sequence > stored;
        if tried {
            jetstream.publish(KEY, old).await.ok()?.await.ok()?;
        }
        Some(())
    });
    let _ = put.await;
    copies.iter_mut().for_each(Copy::start_again);
    tried
}

/// What is kept for the slot.
async fn record(jetstream: &jetstream::Context) -> Option<Bytes> {
    let bucket = jetstream.get_stream(BUCKET).await.ok()?;
    Some(
        bucket
            .get_last_raw_message_by_subject(KEY)
            .await
            .ok()?
            .payload,
    )
}

/// Whether a line of the log says that the slot lies above what the record says, as it does when
/// that was put back.
pub(crate) fn is_gap(line: &str) -> bool {
    line.contains("gap: slot outjet was moved: events may be missing")
}

/// Whether the event of this id is delayed.
fn is_delayed(id: &str) -> bool {
    id.starts_with(DELAYED_IDS)
}

/// Reads everything that is stored, before it vanishes.
pub(crate) struct Consumer {
    jetstream: jetstream::Context,
    seen: watch::Receiver<BTreeMap<u64, Seen>>,
    _tasks: JoinSet<()>,
}

/// A message, as it was.
#[derive(Clone, Debug)]
struct Seen {
    stored: Stored,
    /// When it was acknowledged last, which is when it vanishes from a work queue.
    acked_at: OffsetDateTime,
}

impl Consumer {
    /// Starts it. The stream must have been made.
    pub(crate) async fn start(jetstream: &jetstream::Context) -> Self {
        let config = pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_ack_pending: 10_000,
            ..Default::default()
        };
        // A node that is down may be chosen, and is found out by a timeout.
        until("a consumer", REST_WITHIN, async || {
            let created = jetstream.create_consumer_on_stream(config.clone(), STREAM);
            match created.await {
                Ok(_) => Wait::Ready(()),
                Err(error) => Wait::NotYet(error.to_string()),
            }
        })
        .await;
        let (sender, seen) = watch::channel(BTreeMap::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(consume(jetstream.clone(), sender));
        Self {
            jetstream: jetstream.clone(),
            seen,
            _tasks: tasks,
        }
    }

    /// Everything up to this sequence number was read; 0 if the broker does not say. What was
    /// handed out to a connection that broke comes later than what follows it.
    pub(crate) async fn read_to(&self) -> u64 {
        let info = timeout(ANSWER_WITHIN, info(&self.jetstream)).await;
        let info = info.ok().flatten();
        info.map_or(0, |info| info.ack_floor.stream_sequence)
    }

    /// Waits until nothing is left to be read; what there was, and the last sequence number.
    async fn finish(&self) -> (BTreeMap<u64, Seen>, u64) {
        until("all is read", REST_WITHIN, async || {
            let info = timeout(ANSWER_WITHIN, info(&self.jetstream)).await;
            let left = info.map(|info| info.map(|i| i.num_pending + i.num_ack_pending as u64));
            Wait::ready_if(left == Ok(Some(0)), left)
        })
        .await;
        let stream = self.jetstream.get_stream(STREAM).await.expect("the stream");
        let last = stream.cached_info().state.last_sequence;
        (self.seen.borrow().clone(), last)
    }
}

/// How far the consumer has come.
async fn info(jetstream: &jetstream::Context) -> Option<consumer::Info> {
    let stream = jetstream.get_stream(STREAM).await.ok()?;
    let consumer: PullConsumer = stream.get_consumer(CONSUMER).await.ok()?;
    Some(consumer.cached_info().clone())
}

async fn consume(jetstream: jetstream::Context, seen: watch::Sender<BTreeMap<u64, Seen>>) {
    loop {
        let consumer = timeout(ANSWER_WITHIN, async {
            let stream = jetstream.get_stream(STREAM).await.ok()?;
            stream.get_consumer::<pull::Config>(CONSUMER).await.ok()
        });
        if let Ok(Some(consumer)) = consumer.await {
            while let Ok(Some(())) = timeout(ANSWER_WITHIN, take(&consumer, &seen)).await {}
        }
        sleep(LOOK).await;
    }
}

/// Takes the next messages, and acknowledges each once it is kept.
async fn take(consumer: &PullConsumer, seen: &watch::Sender<BTreeMap<u64, Seen>>) -> Option<()> {
    let batch = consumer.batch().max_messages(500).expires(BATCH_EXPIRES);
    let mut batch = batch.messages().await.ok()?;
    while let Some(message) = batch.next().await {
        let message = message.ok()?;
        let told = message.info().ok()?;
        let (sequence, stored_at) = (told.stream_sequence, told.published);
        let stored = Stored {
            sequence,
            subject: message.subject.to_string(),
            headers: message.headers.clone().unwrap_or_default(),
            payload: message.payload.clone(),
            stored_at,
        };
        let acked_at = OffsetDateTime::now_utc();
        // What is handed out again was still there.
        seen.send_modify(|seen| drop(seen.insert(sequence, Seen { stored, acked_at })));
        message.ack().await.ok()?;
    }
    Some(())
}

/// For how long a replaced copy may go on publishing at once what its successor delays.
const OVERLAP: time::Duration = time::Duration::seconds(5);

/// What a judge knows of a round whose past has changed.
pub(crate) struct Found {
    /// Of the stream: what is ours, each once but for what is doubled.
    pub(crate) stored: Vec<Stored>,
    /// What was delayed and has become due.
    due: Vec<Stored>,
    /// What else is kept of it.
    marks: Vec<Stored>,
    /// Sequence numbers at which nobody saw a message, and which no stranger had.
    pub(crate) unseen: usize,
    /// How often the stream has an event that could not be published, by its id.
    pub(crate) corrected: HashMap<String, usize>,
    /// Events that were stored twice, as nobody could know that they were stored once.
    pub(crate) uncertain: usize,
}

/// What the stream and the faults say.
pub(crate) struct Evidence<'a> {
    /// What was planned.
    pub(crate) plan: &'a Plan,
    /// What strangers did.
    pub(crate) strangers: &'a Strangers,
    /// When a server of NATS was stopped or killed: it forgets the ids of what has vanished.
    pub(crate) forgot_at: Vec<OffsetDateTime>,
    /// What was committed on a dead timeline alone, and may be stored or not.
    pub(crate) lost: &'a HashSet<String>,
}

impl Found {
    /// Reads what is left to be read.
    pub(crate) async fn by(consumer: &Consumer, evidence: &Evidence<'_>) -> Self {
        let (seen, last) = consumer.finish().await;
        let strangers = evidence.strangers;
        let foreign = |sequence: &u64| !strangers.had(*sequence);
        let vacant = (1..=last).filter(|sequence| !seen.contains_key(sequence));
        let unseen = vacant.filter(foreign).count();
        let gone = evidence.gone(&seen);
        let stored = seen.into_values().map(|seen| seen.stored).collect();
        let kept = until_due(&consumer.jetstream).await;
        let is_due = |message: &Stored| message.subject.starts_with("delayed.");
        let (mut due, marks): (Vec<_>, Vec<_>) = kept.into_iter().partition(is_due);
        due.retain(|message| message.id().is_some_and(|id| strangers.left(id)));
        let mut found = Self {
            stored: Vec::new(),
            due,
            marks,
            unseen,
            corrected: HashMap::new(),
            uncertain: 0,
        };
        let has_letters = evidence.plan.past.is_some_and(Past::has_letters);
        let mut first = HashMap::new();
        for message in strangers.ours(stored) {
            let id = message.id().expect("an id").to_owned();
            match first.get(&id) {
                Some(before) if evidence.excuses(&gone, *before, message.stored_at) => {
                    found.uncertain += 1;
                }
                _ if !strangers.left(&id) => {}
                _ if has_letters && letters::is_rejected(&id) => {
                    *found.corrected.entry(id.clone()).or_default() += 1;
                }
                _ => found.stored.push(message.clone()),
            }
            first.insert(id, (message.sequence, message.stored_at));
        }
        // Nor does the stream of what is delayed know what another copy publishes at once.
        let marks = found.marks.iter().filter(|mark| is_mark(mark));
        let marked: HashMap<&str, OffsetDateTime> = marks
            .filter_map(|mark| Some((mark.id()?, mark.stored_at)))
            .collect();
        let before = found.stored.len();
        found.stored.retain(|message| {
            let marked_at = message.id().and_then(|id| marked.get(id).copied());
            !marked_at.is_some_and(|marked_at| {
                let behind = marked_at - message.stored_at;
                let together = (time::Duration::ZERO..OVERLAP).contains(&behind);
                together || behind.is_positive() && gone.contains_key(&message.sequence)
            })
        });
        found.uncertain += before - found.stored.len();
        found
    }

    /// All that there is, to be compared with what was written.
    pub(crate) fn messages(&self) -> Vec<Stored> {
        let due = self.due.iter().cloned().map(|mut message| {
            let subject = message.subject.strip_prefix("delayed.");
            message.subject = subject.expect("it is delayed").to_owned();
            message
        });
        self.stored.iter().cloned().chain(due).collect()
    }

    /// Where the events of a verdict were stored, one line for each message.
    pub(crate) fn places(&self, verdict: &Verdict) -> String {
        let ids: HashSet<&String> = verdict.duplicated.iter().chain(&verdict.missing).collect();
        let messages = self.stored.iter().chain(&self.due).chain(&self.marks);
        let lines = messages.filter_map(|message| {
            let id = message.id()?.to_owned();
            let (sequence, at) = (message.sequence, message.stored_at);
            let position = message.header("Outjet-Position").unwrap_or_default();
            let subject = &message.subject;
            ids.contains(&id)
                .then(|| format!("{id} {position} {subject} {sequence} {at}"))
        });
        let mut lines: Vec<String> = lines.collect();
        lines.sort();
        lines.join("\n") + "\n"
    }

    /// Table and streams. What was delayed is there once, at once or later; what expires may have
    /// done so unseen.
    pub(crate) fn verdict(&self, evidence: &Evidence<'_>, mut committed: Vec<String>) -> Verdict {
        committed.retain(|id| evidence.strangers.left(id));
        let survives = |id: &String| !evidence.lost.contains(id);
        let [mut due, mut stored] = [&self.due, &self.stored].map(|it| super::report::ids(it));
        due.retain(survives);
        stored.retain(survives);
        let later: HashSet<&String> = due.iter().collect();
        let (delayed, at_once): (Vec<_>, Vec<_>) =
            committed.into_iter().partition(|id| later.contains(id));
        let mut verdict = Verdict::of(&at_once, &stored);
        let appeared = Verdict::of(&delayed, &in_order_of(&delayed, &due));
        verdict.committed += appeared.committed;
        verdict.stored += appeared.stored;
        verdict.duplicated.extend(appeared.duplicated);
        verdict.uncommitted.extend(appeared.uncommitted);
        // At once, and later, too.
        let (twice, uncommitted) = verdict
            .uncommitted
            .into_iter()
            .partition(|id| later.contains(id));
        let twice: Vec<String> = twice;
        verdict.duplicated.extend(twice);
        verdict.uncommitted = uncommitted;
        if evidence.plan.past == Some(Past::Expiring) {
            let mut left = self.unseen;
            verdict.missing.retain(|id| {
                let excused = id.starts_with(EXPIRING_IDS) && left > 0;
                left -= usize::from(excused);
                !excused
            });
        }
        verdict
    }
}

fn is_mark(message: &Stored) -> bool {
    message.subject.ends_with(".mark")
}

/// Times are not commits: what became due is compared without its order.
fn in_order_of(committed: &[String], due: &[String]) -> Vec<String> {
    let places: HashMap<&String, usize> = committed.iter().zip(0..).collect();
    let mut due = due.to_vec();
    due.sort_by_key(|id| places.get(id).copied());
    due
}

impl Evidence<'_> {
    /// When each message had vanished, if it did.
    fn gone(&self, seen: &BTreeMap<u64, Seen>) -> HashMap<u64, OffsetDateTime> {
        let mut gone = HashMap::new();
        for (sequence, seen) in seen {
            let consumed = self.plan.past == Some(Past::Consumed);
            let expires = seen.stored.header("Nats-TTL").and_then(|ttl| {
                let seconds = ttl.trim_end_matches('s').parse().ok()?;
                Some(seen.stored.stored_at + Duration::from_secs(seconds))
            });
            let purged = self.strangers.purged_at(*sequence);
            let acked_at = consumed.then_some(seen.acked_at);
            let at = [acked_at, expires, purged].into_iter().flatten().min();
            at.map(|at| gone.insert(*sequence, at));
        }
        gone
    }

    /// Whether nobody could know that the event was stored: its message had vanished, and the
    /// server had forgotten its id. Of three replicas each remembers what it has seen itself.
    fn excuses(
        &self,
        gone: &HashMap<u64, OffsetDateTime>,
        (sequence, stored_at): (u64, OffsetDateTime),
        again_at: OffsetDateTime,
    ) -> bool {
        let vanished = gone.get(&sequence).is_some_and(|at| *at <= again_at);
        let between = |at: &OffsetDateTime| stored_at <= *at + ANSWER_WITHIN && *at <= again_at;
        vanished && (self.plan.replicas > 1 || self.forgot_at.iter().any(between))
    }
}

/// What is kept of delayed events, once nothing is left that has yet to become due.
async fn until_due(jetstream: &jetstream::Context) -> Vec<Stored> {
    if jetstream.get_stream(DELAYED).await.is_err() {
        return Vec::new();
    }
    // What becomes due while it is looked for stands behind the end that was seen.
    let mut settled = false;
    until("all is due", REST_WITHIN, async || {
        let kept = drain::messages(jetstream, DELAYED).await;
        let waiting = kept.iter().filter(|m| m.header("Nats-Schedule").is_some());
        let waiting = waiting.count();
        let before = std::mem::replace(&mut settled, waiting == 0);
        match before && settled {
            true => Wait::Ready(kept),
            false => Wait::NotYet(format!("{waiting} are not")),
        }
    })
    .await
}
