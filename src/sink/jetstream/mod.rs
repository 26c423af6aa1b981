//! Appends to one JetStream stream, of which this sink is the only writer: in order, each event
//! once, whatever breaks. Knows no LSN and no Postgres. What holds of it in a stream that others
//! write, too, says [`append::shared`].
//!
//! Every publish expects the sequence that its predecessor made, so whatever is refused or lost
//! takes everything behind it along, and what a dead connection still delivers late fits nowhere.
//! Every publish asks for its acknowledgement, and only the predicted one settles an event: a
//! stranger's message could otherwise stand in for ours (the chain proves a count, not an
//! identity). Anything else means that the outcome is unknown. Then the *epoch* ends, with its
//! connection; the next one asks the stream which of the unsettled events it holds ([`tail`],
//! [`crate::guard`]) and sends the others. There is no other way to recover.
//!
//! A stranger's message costs a round trip, and is told. It never halts the sink, however often it
//! comes: nothing is lost by it, and whoever may publish into the stream could otherwise stop the
//! outbox for good with two messages a minute.
//!
//! `Nats-Msg-Id` is sent for consumers. The server's answer `duplicate` is never believed: ids are
//! used again, and some servers call what they refused a duplicate.

mod answers;
pub(crate) mod append;
mod aside;
mod bucket;
pub mod client;
mod error;
mod headers;
mod ingress;
mod inspection;
mod messages;
mod names;
mod options;
mod read;
mod reply;
mod rights;
mod tail;

use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue, Message};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use self::append::batch::Batch;
use self::append::chain::{Chain, Passed};
use self::append::hold::{self, Hold, Seen, Witness};
use self::append::memory::Memory;
use self::append::past::Doubts;
use self::append::record;
pub use self::append::record::Standing;
use self::aside::bodies::{Bodies, outgoing};
use self::aside::delayed::Delayed;
use self::aside::letters::{Buried, Letters};
use self::bucket::Bucket;
use self::client::{Connection, HEADER_BYTES_MAX};
pub use self::error::Error;
use self::headers::{headers, wire_len};
pub use self::inspection::{Inspection, inspect};
use self::names::{BATCH_HEADER_BYTES, EXPECTED_LAST_SEQUENCE, TOO_LARGE};
pub use self::options::{Buries, Ingress, NatsOptions, Options, Storage, StreamOptions};
pub use self::read::follower::Follower;
pub use self::read::ledger::{Ledger, Line, Past};
pub use self::read::letterbox::{DeadLetter, Letterbox};
pub use self::read::schedules::{Schedule, Schedules};
pub use self::read::shelf::{BucketFound, Shelf, bucket_config, inspect_bucket};
pub use self::read::transcript::{Message as StoredMessage, Transcript};
use self::reply::Reply;
pub use self::rights::check_rights;
use self::tail::{Bounds, Search};
use crate::backoff::{self, Backoff};
use crate::error::Failure;
use crate::event::lineage::Lineage;
use crate::event::{Event, Rejected};
use crate::fault;
use crate::route;
use crate::sink::{Order, Report, Settled, Write};

/// Most bytes that may be under way at once, but for one event: 1 Gbit/s over 64 ms. A client that
/// was given up keeps what it could not send for as long as it lives, so there should be little,
/// whatever the events' size.
const IN_FLIGHT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The sink of one term.
pub struct JetStream {
    options: Options,
    lineage: Lineage,
    source: String,
    chain: Chain,
    backoff: Backoff,
    epoch: Option<Epoch>,
    /// What may be stored already.
    memory: Memory,
    /// A write whose outcome is not known.
    writing: Option<Write>,
    /// Why the bucket cannot be used: we lack the rights.
    denied: Option<String>,
    /// We may not look for what was delayed.
    schedules_denied: bool,
    /// The stream and its dead letters, which must not become less than they were.
    seen: Seen,
    seen_letters: Seen,
    hold: Hold,
    buried: Buried,
    doubts: Doubts,
}

/// One connection with its chain.
struct Epoch {
    connection: Connection,
    /// What is kept beside the stream; or why nothing is.
    bucket: Result<Bucket, String>,
    tail: Search,
    letters: Option<Letters>,
    bodies: Option<Bodies>,
    /// Opened for the first event that is delayed.
    delayed: Option<Delayed>,
    /// Where the stream ended when the epoch began.
    last_sequence: u64,
    /// What stood there.
    newest: Witness,
    message_bytes_max: usize,
    batch: Batch,
    /// When the last acknowledgement came, or the first event went out after a pause.
    progress_at: Instant,
}

impl JetStream {
    /// Connects, checks the stream or creates it, and checks that it is ours to write.
    pub async fn open(options: Options, lineage: Lineage) -> Result<Self, Failure> {
        let mut sink = Self {
            source: lineage.source().to_string(),
            memory: Memory::new(&lineage, options.stream.shared),
            lineage,
            chain: Chain::new(options.stream.shared),
            backoff: Backoff::new(backoff::Options::default()),
            epoch: None,
            writing: None,
            denied: None,
            schedules_denied: false,
            seen: Seen::default(),
            seen_letters: Seen::default(),
            hold: Hold::new(options.hold),
            buried: Buried::default(),
            doubts: Doubts::default(),
            options,
        };
        sink.open_epoch()
            .await
            .map_err(|error| error.failure(&sink.options))?;
        Ok(sink)
    }

    /// Appends what comes until the channel is closed. Ends with a failure if a person must act.
    /// What is known of the events that come must have been said ([`begin`](Self::begin)).
    pub async fn run(
        mut self,
        mut orders: mpsc::Receiver<Order>,
        reports: mpsc::Sender<Report>,
    ) -> Result<(), Failure> {
        let mut down = false;
        loop {
            let ended = match self.epoch {
                Some(_) => self.run_epoch(&mut orders, &reports, &mut down).await,
                None => Box::pin(self.continue_in_a_new_epoch(&reports)).await,
            };
            match ended {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    let error = self.without_it(error);
                    self.epoch = None;
                    self.give_up_or_wait(&error, &reports, &mut down).await?;
                }
            }
        }
    }

    /// Ends the sink if a person must act or the stream is another one; waits otherwise.
    async fn give_up_or_wait(
        &mut self,
        error: &Error,
        reports: &mpsc::Sender<Report>,
        down: &mut bool,
    ) -> Result<(), Failure> {
        let failure = error.failure(&self.options);
        if let Error::StreamChanged { gap, .. } = *error
            && gap > 0
        {
            let problem = error.gap(&self.options);
            let _ = reports.send(Report::Gap(gap, problem)).await;
        }
        let lasting = !matches!(
            error,
            Error::Broken(_)
                | Error::BucketDenied(_)
                | Error::BodyRefused { .. }
                | Error::Connect(_)
                | Error::ConnectTimeout
        );
        if lasting {
            return Err(failure);
        }
        let pause = self.backoff.failed();
        let given_up = |max| pause.failing_for >= max;
        if self.options.give_up_after.is_some_and(given_up) {
            return Err(failure);
        }
        if pause.log {
            let cause = &failure.problem.cause;
            warn!(attempts = pause.attempts, %cause, "{}", failure.problem.problem);
        }
        if !std::mem::replace(down, true) {
            // The relay may be gone; then the next receive says so.
            let _ = reports.send(Report::Down(failure)).await;
        }
        tokio::time::sleep(pause.delay).await;
        Ok(())
    }

    async fn open_epoch(&mut self) -> Result<(), Error> {
        let connection = Box::pin(Connection::open(&self.options)).await?;
        let bounds = Bounds::of(&connection.info);
        self.check_seen(&connection)?;
        if !self.memory.complete() {
            let newest = tail::newest_marks(&connection.stream, bounds);
            let newest = connection.unless_broken(Box::pin(newest)).await?;
            Box::pin(self.check_newest(&connection, &newest)).await?;
        }
        let newest = match self.hold.holds() {
            true => hold::newest(&connection, bounds).await?,
            false => Witness::default(),
        };
        let bucket = match Box::pin(self.open_bucket(&connection)).await {
            Err(error @ Error::BucketDenied(_)) => {
                // The connection is of no more use.
                self.without_it(error);
                return Box::pin(self.open_epoch()).await;
            }
            opened => opened?,
        };
        self.chain.restart(bounds.last);
        let message_bytes_max = connection.message_bytes_max(&connection.info);
        let letters = connection.letters.as_ref();
        let letters =
            letters.map(|(_, info)| Letters::new(info, connection.message_bytes_max(info)));
        let bodies = match &self.options.bodies {
            Some(bucket) => Some(Bodies::open(&connection, bucket).await?),
            None => None,
        };
        self.epoch = Some(Epoch {
            connection,
            bucket,
            tail: Search::Finished,
            letters,
            bodies,
            delayed: None,
            last_sequence: bounds.last,
            newest,
            message_bytes_max,
            batch: Batch::default(),
            progress_at: Instant::now(),
        });
        Ok(())
    }

    /// After the end of an epoch: `false`, the channel is not closed.
    async fn continue_in_a_new_epoch(
        &mut self,
        reports: &mpsc::Sender<Report>,
    ) -> Result<bool, Error> {
        self.open_epoch().await?;
        self.reconcile(false).await?;
        self.settle_write(reports).await?;
        Ok(false)
    }

    /// Runs until the channel is closed (true) or the epoch ends.
    async fn run_epoch(
        &mut self,
        orders: &mut mpsc::Receiver<Order>,
        reports: &mpsc::Sender<Report>,
        down: &mut bool,
    ) -> Result<bool, Error> {
        loop {
            // Replies come before new events in `select`; under load there is always one.
            while let Ok(order) = orders.try_recv() {
                self.take_order(order, reports).await?;
            }
            let pumped = Box::pin(self.pump()).await;
            // Also if this was the end: what is stored is to be confirmed.
            let settled = self.chain.take_settled();
            if settled.to.is_some() {
                self.settled(settled, reports, down).await;
            } else if *down && self.chain.waiting().is_none() && self.chain.in_flight() == 0 {
                self.recovered(reports, down).await;
            }
            let more = pumped?;
            match self.select(orders, more).await? {
                Action::Send => {}
                Action::Closed => return Ok(true),
                Action::Order(order) => self.take_order(order, reports).await?,
                Action::Reply(message) => self.take_replies(message, reports).await?,
                Action::Look => Box::pin(self.look(reports)).await?,
            }
        }
    }

    async fn take_order(
        &mut self,
        order: Order,
        reports: &mpsc::Sender<Report>,
    ) -> Result<(), Error> {
        match order {
            Order::Append(batch) => {
                for event in batch {
                    self.memory.handed_over(self.chain.end(), &event);
                    self.chain.push(event);
                }
                Ok(())
            }
            Order::Keep(write) => self.send_write(write, reports).await,
        }
    }

    /// Chooses what to do next. Cancel-safe: every branch is a receive on a channel or a timer.
    /// `more`: something can be sent at once.
    async fn select(
        &mut self,
        orders: &mut mpsc::Receiver<Order>,
        more: bool,
    ) -> Result<Action, Error> {
        let in_flight = self.chain.in_flight();
        let ack_timeout = self.options.ack_timeout;
        let epoch = self.epoch.as_mut().expect("an epoch runs");
        let deadline = epoch.progress_at + ack_timeout;
        let look_at = self.hold.wake_at();
        let Connection {
            replies, broken, ..
        } = &mut epoch.connection;
        tokio::select! {
            biased;
            reply = replies.next() => match reply {
                Some(message) => Ok(Action::Reply(Box::new(message))),
                None => Err(Error::Broken("the connection was closed".to_owned())),
            },
            why = client::until_broken(broken) => Err(why),
            () = tokio::time::sleep_until(deadline), if in_flight > 0 => {
                Err(Error::Broken(format!("no acknowledgement for {}", seconds(ack_timeout))))
            }
            () = tokio::time::sleep_until(look_at), if in_flight == 0 => Ok(Action::Look),
            order = orders.recv() => Ok(order.map_or(Action::Closed, Action::Order)),
            () = std::future::ready(()), if more => Ok(Action::Send),
        }
    }

    async fn settled(
        &mut self,
        mut settled: Settled,
        reports: &mpsc::Sender<Report>,
        down: &mut bool,
    ) {
        self.book(&settled);
        self.memory.settle(&mut settled, &self.chain);
        let _ = reports.send(Report::Settled(settled)).await;
        if self.hold.close() {
            let _ = reports.send(Report::Held).await;
        }
        self.recovered(reports, down).await;
    }

    async fn recovered(&mut self, reports: &mpsc::Sender<Report>, down: &mut bool) {
        if let Some(attempts) = self.backoff.worked() {
            info!(attempts, "events get through to NATS again");
        }
        if std::mem::take(down) {
            let _ = reports.send(Report::Up).await;
        }
    }

    /// Sends what may be sent. `true`: there is more, but something was waited for, and what came
    /// meanwhile goes first.
    async fn pump(&mut self) -> Result<bool, Error> {
        while let Some(waiting) = self.chain.waiting() {
            if waiting.event.known {
                self.pass(|chain| chain.settle(Passed::Recorded)).await?;
                continue;
            }
            if !self.has_room() {
                break;
            }
            if let Some(known) = self.find().await? {
                self.pass(|chain| chain.settle(known)).await?;
                continue;
            }
            if self.is_delayed() {
                match self.delay().await {
                    Ok(how) => self.pass(|chain| chain.settle(how)).await?,
                    Err(error) if error.rejected().is_none() => return Err(error),
                    Err(_) if self.chain.in_flight() > 0 => break,
                    Err(unsendable) => self.set_aside(unsendable).await?,
                }
                return Ok(true);
            }
            if self.memory.is_uncertain(&self.chain) && self.chain.staged() == 0 {
                if self.chain.in_flight() > 0 {
                    break;
                }
                self.send_uncertain().await?;
                return Ok(true);
            }
            match self.send().await? {
                Sent::UnderWay => {}
                Sent::NotYet => break,
                Sent::Aside => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Sends the waiting event, or stages it with those that go together.
    async fn send(&mut self) -> Result<Sent, Error> {
        let waiting = self.chain.waiting().expect("an event waits");
        let together = waiting.event.followers > 0 || self.chain.staged() > 0;
        let (subject, headers, payload) = match self.compose(together) {
            Ok(message) => message,
            // First everything before this event is stored. The end of the sink would take the
            // connection along, and what it has not sent yet.
            Err(_) if self.chain.in_flight() > 0 => return Ok(Sent::NotYet),
            Err(unsendable) => {
                self.set_aside(unsendable).await?;
                return Ok(Sent::Aside);
            }
        };
        if together {
            let batch = &mut epoch_mut(&mut self.epoch).batch;
            batch.push(subject, headers, payload);
            self.pass(Chain::stage).await?;
            return Ok(Sent::UnderWay);
        }
        if self.chain.in_flight() == 0 {
            epoch_mut(&mut self.epoch).progress_at = Instant::now();
        }
        self.memory.send(&self.chain);
        fault::point("judged");
        let (number, _) = self.chain.send();
        let connection = &epoch_mut(&mut self.epoch).connection;
        let reply = format!("{}.{number}", connection.inbox);
        let publish = connection.publish(
            (subject, Some(reply)),
            (headers, payload),
            self.options.ack_timeout,
        );
        publish.await?;
        fault::point("published");
        Ok(Sent::UnderWay)
    }

    /// The message of the waiting event: what it is published to, its headers and its body.
    fn compose(&self, together: bool) -> Result<(String, HeaderMap, Bytes), Error> {
        let waiting = self.chain.waiting().expect("an event waits");
        let epoch = self.epoch.as_ref().expect("an epoch runs");
        let event = outgoing(&epoch.bodies, waiting.event);
        let stream = &epoch.connection.info.config;
        let anonymous = waiting.duplicate_of.is_some();
        let mut headers = headers((event, &self.source), anonymous, stream);
        let mut headers_bytes = wire_len(&headers) + BATCH_HEADER_BYTES;
        if !together && !self.shared() {
            let expected = HeaderValue::from(self.chain.last_sequence());
            headers.insert(EXPECTED_LAST_SEQUENCE, expected);
            headers_bytes = wire_len(&headers);
        }
        self.check(event, headers_bytes)?;
        Ok((self.entrance(event), headers, event.payload.clone()))
    }

    fn entrance(&self, event: &Event) -> String {
        let stream = &self.options.stream;
        stream.ingress.entrance(&stream.name, &event.subject)
    }

    /// What no server takes must not be sent: it would close the connection or never answer.
    fn check(&self, event: &Event, headers: usize) -> Result<(), Error> {
        if let Some(rejected) = &event.rejected {
            return Err(Error::unsendable(event, (**rejected).clone()));
        }
        let epoch = self.epoch.as_ref().expect("an epoch runs");
        let subjects = &epoch.connection.info.config.subjects;
        if !subjects
            .iter()
            .any(|pattern| route::matches(pattern, &event.subject))
        {
            if event.replayed {
                // Its subject may have a prefix that one call of a command chose.
                let error = format!("the stream does not cover subject {:?}", event.subject);
                let reason = "uncovered";
                return Err(Error::unsendable(event, Rejected { reason, error }));
            }
            return Err(Error::Uncovered {
                name: self.options.stream.name.clone(),
                subjects: subjects.join(", "),
                subject: event.subject.clone(),
            });
        }
        let bytes = headers + event.payload.len();
        let error = if headers > HEADER_BYTES_MAX {
            format!("{headers} bytes of headers, a server takes {HEADER_BYTES_MAX}")
        } else if bytes > epoch.message_bytes_max {
            let max = epoch.message_bytes_max;
            format!("{bytes} bytes with headers, the server takes {max} (max_payload)")
        } else {
            return Ok(());
        };
        let reason = TOO_LARGE;
        Err(Error::unsendable(event, Rejected { reason, error }))
    }

    /// Takes a reply and those that are there already, even if one of them ends the epoch: each
    /// says what became of an event.
    async fn take_replies(
        &mut self,
        first: Box<Message>,
        reports: &mpsc::Sender<Report>,
    ) -> Result<(), Error> {
        let mut taken = Ok(());
        let mut next = Some(*first);
        while let Some(message) = next {
            let took = match message.subject.ends_with(record::REPLY) {
                true => self.take_written(&message, reports).await,
                false => self.take_reply(&message),
            };
            taken = taken.and(took);
            let replies = &mut epoch_mut(&mut self.epoch).connection.replies;
            next = replies.next().now_or_never().flatten();
        }
        taken
    }

    fn take_reply(&mut self, message: &Message) -> Result<(), Error> {
        fault::point("answered");
        let connection = &epoch_mut(&mut self.epoch).connection;
        let Some(reply) = connection.read(message, &self.options.stream.name) else {
            return Ok(());
        };
        let number = message
            .subject
            .rsplit('.')
            .next()
            .and_then(|token| token.parse().ok());
        let number =
            number.ok_or_else(|| Error::Broken(format!("reply to {}", message.subject)))?;
        // Where it is only a copy that came late, nobody is to be found out.
        let copy = self.shared() && matches!(reply, Reply::Duplicate(_));
        let reason = match reply {
            Reply::Stored { sequence, together } => {
                match self.chain.acknowledge(number, (sequence, together)) {
                    Ok(()) => {
                        epoch_mut(&mut self.epoch).progress_at = Instant::now();
                        return Ok(());
                    }
                    Err(mismatch) => mismatch.to_string(),
                }
            }
            Reply::Duplicate(0) if self.shared() => {
                // 2.10: it is under way already, nobody knows where to.
                self.chain.refuse(number);
                "the server calls it a duplicate".to_owned()
            }
            Reply::Duplicate(sequence) => {
                // Whether it really stands there, the guard finds out.
                self.chain.refuse_duplicate(number, sequence);
                "the server calls it a duplicate".to_owned()
            }
            Reply::Refused(reason) => match self.chain.refuse(number) {
                true => reason,
                // Ours has stored it; so this is another stream's.
                false => return Ok(()),
            },
            Reply::Unclear(reason) => reason,
        };
        if !copy {
            self.memory.refused(&self.chain);
        }
        Err(Error::Broken(format!(
            "an event was not acknowledged as expected: {reason}"
        )))
    }
}

impl Epoch {
    /// Reads once more where the streams end.
    async fn refresh(&mut self) -> Result<(), Error> {
        let Connection {
            context,
            info,
            letters,
            ..
        } = &mut self.connection;
        let state = async |name: &str| {
            let found = context.get_stream(name).await;
            let found = found.map_err(|error| Error::Broken(crate::error::chain(&error)))?;
            Ok::<_, Error>(found.cached_info().state.clone())
        };
        info.state = state(&info.config.name).await?;
        self.last_sequence = info.state.last_sequence;
        if let Some((_, info)) = letters {
            info.state = state(&info.config.name).await?;
            let bytes_max = self.letters.as_ref().map_or(0, Letters::bytes_max);
            self.letters = Some(Letters::new(info, bytes_max));
        }
        Ok(())
    }
}

/// What became of an event that was to be sent.
enum Sent {
    /// It is, or goes with the next.
    UnderWay,
    /// Not before everything else has been acknowledged.
    NotYet,
    /// It is stored elsewhere.
    Aside,
}

enum Action {
    /// The relay is done.
    Closed,
    Order(Order),
    Send,
    Reply(Box<Message>),
    /// It is time to see whether the stream is what it was.
    Look,
}

fn epoch_mut(epoch: &mut Option<Epoch>) -> &mut Epoch {
    epoch.as_mut().expect("an epoch runs")
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}
