//! One stint of streaming: WAL in, events out, acknowledgements back, status updates to Postgres.
//!
//! One task owns all state. [`Relay::select`] only chooses what to do next, and may be cancelled at
//! any await; [`Relay::apply`] does it, synchronously; [`Relay::maintain`] then restores what must
//! hold after every action. The order of the choices matters: what was stored is booked before more
//! is read, and a status update is due whether or not there is room to read, because a server that
//! hears nothing for `wal_sender_timeout` hangs up.
//!
//! The safety argument: an event enters the window before it goes to the sink, leaves it only when
//! the sink settled it, and only [`Window`] makes the [`Confirmed`] that a status update carries.
//! Trouble with NATS is the sink's; every other trouble ends the relay, and with it the term.

mod error;
mod recording;
mod together;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

pub use self::error::Error;
use self::together::Together;
use super::record::Keeper;
use super::watermark::Watermark;
use crate::error::{Failure, Problem};
use crate::event::Event;
use crate::event::assemble::{Assembler, Passed, Step};
use crate::fault;
use crate::lead::window::{Confirmed, Limits, Window};
use crate::lsn::Lsn;
use crate::pg::replication::{Frame, Stream};
use crate::pg::{Error as PgError, ServerMessage};
use crate::sink::running::Running;
use crate::sink::{HELD_MAX, Order, Report, Settled};
use crate::watch::vitals::{State, Vitals, unix_seconds};

/// How a relay keeps pace.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Most that may be with the sink.
    pub window: Limits,
    /// The session's `wal_sender_timeout`; status updates go out three times as often. Without NATS
    /// for this long, the slot is given up for a copy that has it.
    pub takeover_after: Duration,
    /// How long the record may stay unwritten. No less than a publish may stay unacknowledged: a
    /// connection that stalls has both waiting.
    pub record_timeout: Duration,
    /// How long a stop waits for outstanding acknowledgements.
    pub drain_timeout: Duration,
    /// Whether the sink takes events that cannot be published; they end the relay otherwise.
    pub dead_letters: bool,
    /// Whether the sink holds back what it has settled.
    pub holds: bool,
    /// Whether the events of a transaction are to appear together.
    pub atomic: bool,
}

/// The state of one stint.
pub struct Relay {
    stream: Stream,
    assembler: Assembler,
    window: Window,
    options: Options,
    vitals: Arc<Vitals>,
    /// The open transaction's commit time, in microseconds since 1970.
    committed: i64,
    /// Says of what comes again whether it is settled.
    watermark: Watermark,
    /// Writes what is settled before it is confirmed.
    keeper: Keeper,
    /// When that was done last, and is to be done next.
    written_at: Instant,
    write_due: Option<Instant>,
    /// Whether commits wait for what is confirmed, as far as is known.
    synchronous: Arc<AtomicBool>,
    /// The server has asked, and was not answered yet.
    questioned: bool,
    /// Events of the term that the record did not know.
    handed_over: u64,
    sink: Running,
    batch: Vec<Event>,
    /// Those of the open transaction that wait for its end.
    together: Together,
    /// How much of the read buffer was used up with the last event whose body lies there.
    kept_from: u64,
    reported: Confirmed,
    status_at: Instant,
    status_due: Instant,
    /// WAL is left to gather until then, or until half a portion was settled.
    gather_until: Option<Instant>,
    /// Events settled meanwhile.
    settled_meanwhile: usize,
    heard_at: Instant,
    /// Since when, and how often, the server has asked while nothing came of it.
    asked: Option<(Instant, u32)>,
    down: Option<(Instant, Failure)>,
    stop_at: Option<Instant>,
    /// How many events a stop still takes so that the open transaction can be confirmed.
    last_events: usize,
    /// What cannot be read on; what was read before it is stored first.
    unreadable: Option<Error>,
    passed: Passed,
}

/// Where a stint begins.
pub struct Start {
    /// The slot's confirmed position.
    pub confirmed: Lsn,
    /// What is known of the events that come.
    pub watermark: Watermark,
    /// Writes the record.
    pub keeper: Keeper,
    /// Whether commits wait for what is confirmed (`synchronous_standby_names`).
    pub synchronous: Arc<AtomicBool>,
}

/// An orderly end, but for the last status update, which is queued.
pub struct End {
    /// To be flushed and closed.
    pub stream: Stream,
    /// What was confirmed last, if anything was.
    pub confirmed: Option<Confirmed>,
}

/// What to do next.
enum Action {
    Stop,
    Report(Report),
    Due,
    Flushed,
    Frame(Frame),
}

impl Relay {
    /// At most this often a status update goes out because something was stored: soon enough for
    /// whoever waits, seldom enough to cost nothing.
    const STATUS_PAUSE: Duration = Duration::from_millis(20);

    /// Most events in one hand-over: larger ones only delay the first event of them. A stop reads
    /// no more than this, either: an end within a transaction means that it is read again.
    const BATCH_MAX: usize = 256;

    /// While this many events are with the sink, reading gains nothing from haste.
    const BUSY_EVENTS: usize = 64;

    /// With the sink busy, WAL is read in portions of about this many events: a wake-up of every
    /// process on the way costs more than the event that it is for.
    const PORTION_EVENTS: usize = 64;

    /// The longest that WAL is left to gather for a portion.
    const GATHER_MAX: Duration = Duration::from_millis(1);

    /// A server that goes on asks at most twice in `wal_sender_timeout`, and hardly ever, because
    /// it hears from us before; one that is to shut down asks again after each answer (WalSndDone).
    const ASKED_MIN: u32 = 16;

    /// For a stream that was just started, and a sink with room for all events of the window.
    pub fn new(
        stream: Stream,
        assembler: Assembler,
        sink: Running,
        (start, options, vitals): (Start, Options, Arc<Vitals>),
    ) -> Self {
        vitals.metrics.nats_connected.set(1);
        vitals.recorded(start.keeper.shown());
        let now = Instant::now();
        let Start {
            confirmed,
            watermark,
            keeper,
            synchronous,
        } = start;
        let window = Window::new(options.window, confirmed);
        let window = if options.holds {
            window.holding()
        } else {
            window
        };
        Self {
            reported: window.confirmed(),
            stream,
            assembler,
            window,
            options,
            vitals,
            committed: 0,
            watermark,
            keeper,
            written_at: now,
            write_due: None,
            synchronous,
            questioned: false,
            handed_over: 0,
            sink,
            batch: Vec::new(),
            together: Together::new(options.atomic),
            kept_from: 0,
            status_at: now,
            status_due: now,
            gather_until: None,
            settled_meanwhile: 0,
            heard_at: now,
            asked: None,
            down: None,
            stop_at: None,
            last_events: Self::BATCH_MAX,
            unreadable: None,
            passed: Passed::default(),
        }
    }

    /// Runs until told to stop and everything handed over is stored, or `drain_timeout` is over. A
    /// row that ends the stint does so when everything before it is stored, and is an orderly end,
    /// too: whatever is configured to get past it need not suit the rows before it once more.
    /// Returns that row, unless it was told to stop.
    pub async fn run(&mut self, stop: &CancellationToken) -> Result<Option<Error>, Error> {
        while !self.drained() {
            let action = self.select(stop).await?;
            self.apply(action)?;
            self.maintain()?;
        }
        let confirmed = self.window.confirmed();
        if self.window.stored() > confirmed.lsn() {
            let stored = self.window.stored();
            info!(%stored, "what is held back is not waited for: it is read again, and skipped");
        }
        self.queue_status(true);
        Ok(self.unreadable.take().filter(|_| self.stop_at.is_none()))
    }

    /// What a status update has carried at the highest.
    pub fn reported(&self) -> Lsn {
        self.reported.lsn()
    }

    /// After an orderly end.
    pub fn end(self) -> End {
        End {
            confirmed: self.window.newly(self.confirmable()),
            stream: self.stream,
        }
    }

    /// Chooses the next action. Cancel-safe: all of these are.
    async fn select(&mut self, stop: &CancellationToken) -> Result<Action, Error> {
        let reading = self.reading() && self.gather_until.is_none();
        let wake = self.wake_at();
        tokio::select! {
            biased;
            () = stop.cancelled(), if self.stop_at.is_none() => Ok(Action::Stop),
            report = self.sink.report() => report.map(Action::Report).map_err(Error::Sink),
            () = tokio::time::sleep_until(wake) => Ok(Action::Due),
            action = exchange(&mut self.stream, reading) => action.map_err(Error::Postgres),
        }
    }

    fn apply(&mut self, action: Action) -> Result<(), Error> {
        match action {
            Action::Stop => {
                debug!(events = self.window.events(), "stopping");
                let problem = self.down.as_ref();
                let problem = problem.map(|(_, failure)| failure.problem.clone());
                self.vitals.set(State::Draining, problem);
                self.stop_at = Some(Instant::now() + self.options.drain_timeout);
                Ok(())
            }
            Action::Report(report) => {
                self.take_report(report)?;
                while let Some(report) = self.sink.try_report() {
                    self.take_report(report)?;
                }
                Ok(())
            }
            Action::Due => {
                self.check_patience()?;
                let now = Instant::now();
                self.gather_until = self.gather_until.filter(|at| *at > now);
                if now >= self.status_due {
                    let quiet = self.heard_at.elapsed() > self.status_interval();
                    self.queue_status(quiet);
                }
                Ok(())
            }
            Action::Flushed => Ok(()),
            Action::Frame(frame) => match self.take_frames(frame) {
                Err(error) if error.is_of_the_log() => {
                    self.unreadable = Some(error);
                    Ok(())
                }
                taken => taken,
            },
        }
    }

    /// What must hold after every action.
    fn maintain(&mut self) -> Result<(), Error> {
        self.vitals.beat();
        if self.together.events() == self.window.events() && !self.window.has_room() {
            // Nothing will be settled, so nothing more be read: it is too large to be gathered.
            self.together.give_up(&mut self.batch);
        }
        self.hand_over();
        self.keep_record();
        if self.confirmable() > self.reported {
            self.asked = None;
            // What was to be recorded first has waited already.
            let pause = match self.keeper.kept() {
                true => Duration::ZERO,
                false => Self::STATUS_PAUSE,
            };
            self.status_due = self.status_due.min(self.status_at + pause);
        }
        if !self.reading() {
            // Whoever does not listen cannot say that the other is silent.
            self.heard_at = Instant::now();
        }
        self.log_passed();
        self.measure();
        Ok(())
    }

    fn measure(&mut self) {
        let metrics = &self.vitals.metrics;
        let gauge = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
        metrics.events_in_flight.set(gauge(self.window.events()));
        metrics.in_flight_bytes.set(gauge(self.window.bytes()));
        let held = self.window.stored().as_u64() - self.window.confirmed().lsn().as_u64();
        metrics
            .held_wal_bytes
            .set(i64::try_from(held).unwrap_or(i64::MAX));
        let seconds = |micros: i64| micros as f64 / 1e6;
        metrics
            .oldest_unpublished
            .set(self.window.oldest().map_or(0.0, seconds));
        let left = self.window.take_left();
        if !left.is_empty() {
            let now = unix_seconds(SystemTime::now());
            metrics.last_published.set(now);
            for committed in left {
                metrics
                    .commit_to_ack
                    .observe((now - seconds(committed)).max(0.0));
            }
        }
    }

    fn take_report(&mut self, report: Report) -> Result<(), Error> {
        match report {
            Report::Settled(settled) => self.take_settled(&settled),
            Report::Written(written) => self.take_written(written)?,
            Report::Held => {
                assert!(
                    self.window.portions() < HELD_MAX,
                    "more is held than promised"
                );
                self.window.hold();
            }
            Report::Released => self.window.release(),
            Report::Gap(events, problem) => {
                let Problem {
                    problem: what,
                    cause,
                    fix,
                } = &problem;
                error!(events, %cause, %fix, "gap: {what}");
                self.vitals.gap(events, problem);
            }
            Report::Down(failure) => {
                self.vitals.metrics.nats_connected.set(0);
                self.vitals.metrics.nats_disconnects.inc();
                self.vitals.held_up(Some(failure.problem.clone()));
                self.down = Some((Instant::now(), failure));
            }
            Report::Up => {
                self.vitals.metrics.nats_connected.set(1);
                self.vitals.held_up(None);
                self.down = None;
            }
        }
        Ok(())
    }

    fn take_settled(&mut self, settled: &Settled) {
        let events = settled.events();
        let metrics = &self.vitals.metrics;
        metrics.events_published.inc_by(settled.stored as u64);
        metrics.events_uncertain.inc_by(settled.uncertain as u64);
        metrics.events_recorded.inc_by(settled.recorded as u64);
        metrics.events_known.inc_by(settled.known as u64);
        let letters = settled.dead_lettered as u64;
        metrics.events_dead_lettered.inc_by(letters);
        metrics.events_delayed.inc_by(settled.delayed_events as u64);
        self.window.settle(events);
        self.keeper.settle(settled);
        fault::point("settled");
        if self.window.in_transaction() {
            fault::point("settled_in_part");
        }
        self.asked = None;
        self.settled_meanwhile += events;
        if self.settled_meanwhile >= Self::PORTION_EVENTS / 2 {
            self.gather_until = None;
        }
    }

    /// Takes a frame and those that came with it, as far as there is room.
    fn take_frames(&mut self, first: Frame) -> Result<(), Error> {
        self.heard_at = Instant::now();
        let heard = unix_seconds(SystemTime::now());
        self.vitals.metrics.last_wal_message.set(heard);
        self.take_frame(first)?;
        while self.reading() && self.batch.len() < Self::BATCH_MAX {
            match self.stream.next_buffered() {
                Some(frame) => self.take_frame(frame.map_err(Error::Postgres)?)?,
                None => {
                    self.gather();
                    break;
                }
            }
        }
        Ok(())
    }

    /// All that was there is read. If that was little and the sink has enough to do, the next read
    /// waits until the sink has got through half a portion.
    fn gather(&mut self) {
        let little = self.batch.len() < Self::PORTION_EVENTS;
        if little && self.window.events() >= Self::BUSY_EVENTS {
            self.gather_until = Some(Instant::now() + Self::GATHER_MAX);
            self.settled_meanwhile = 0;
        }
    }

    fn take_frame(&mut self, frame: Frame) -> Result<(), Error> {
        match frame {
            Frame::Wal { body } => {
                self.asked = None;
                match self.assembler.take(&body).map_err(Error::Assemble)? {
                    Step::Nothing => {}
                    Step::Begin(committed) => {
                        self.committed = committed.to_unix_micros();
                        self.window.begin();
                    }
                    Step::Event(event) => self.take_event(event, &body)?,
                    Step::Rejected(rejection) if self.options.dead_letters => {
                        self.take_event(rejection.into_event(), &body)?;
                    }
                    Step::Rejected(rejection) => return Err(Error::Rejected(rejection)),
                    Step::Commit(end) => {
                        self.together.commit(&mut self.batch);
                        self.vitals.metrics.transactions_decoded.inc();
                        self.window.commit(end);
                    }
                }
                Ok(())
            }
            Frame::Keepalive {
                wal_end,
                reply_requested,
            } => {
                if !self.window.in_transaction() {
                    self.watermark.keepalive(wal_end).map_err(Error::Void)?;
                }
                self.window.keepalive(wal_end);
                if reply_requested {
                    self.take_question();
                }
                Ok(())
            }
            Frame::Notice(notice) => take_notice(notice),
        }
    }

    /// The server wants an answer. It gets one soon, and not at once each time: a server that is to
    /// shut down would ask thousands of times a second.
    fn take_question(&mut self) {
        self.questioned = true;
        let soon = self.status_at + Self::STATUS_PAUSE;
        self.status_due = self.status_due.min(soon);
        let held = self.window.stored() > self.window.confirmed().lsn();
        self.asked = match self.asked {
            _ if self.window.events() == 0 && !held => None,
            None => Some((Instant::now(), 1)),
            Some((since, times)) => Some((since, times.saturating_add(1))),
        };
    }

    fn take_event(&mut self, mut event: Event, read: &Bytes) -> Result<(), Error> {
        let known = self.watermark.take(event.position, &event.id);
        event.known = known.map_err(Error::Void)?;
        self.handed_over += u64::from(!event.known);
        let bytes = self.kept_bytes(&event, read);
        self.window.hand_over(bytes, self.committed);
        self.vitals
            .metrics
            .decoded_bytes
            .inc_by(event.payload.len() as u64);
        self.last_events -= usize::from(self.stop_at.is_some());
        self.together.take(event, &mut self.batch);
        Ok(())
    }

    /// What is kept in memory for an event: its own, and, if its body lies where it was read, what
    /// was read since the last such event, too: other columns, and what means nothing to us. That
    /// is more than all events together where 14 sends thousands of empty transactions between two.
    fn kept_bytes(&mut self, event: &Event, read: &Bytes) -> usize {
        if !read.as_ptr_range().contains(&event.payload.as_ptr()) {
            return event.size();
        }
        let used = self.stream.used_bytes();
        let since = used - std::mem::replace(&mut self.kept_from, used);
        let chunk = Stream::CHUNK_BYTES + read.len();
        let kept = usize::try_from(since).map_or(chunk, |since| since.min(chunk));
        event.size() - event.payload.len() + kept
    }

    fn hand_over(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        self.vitals
            .metrics
            .events_decoded
            .inc_by(self.batch.len() as u64);
        let batch = std::mem::take(&mut self.batch);
        self.sink.order(Order::Append(batch));
    }

    fn queue_status(&mut self, reply_requested: bool) {
        let now = Instant::now();
        self.questioned = false;
        self.status_at = now;
        self.status_due = now + self.status_interval();
        let confirmed = self.confirmable();
        assert!(
            confirmed >= self.reported,
            "what is confirmed never goes back"
        );
        self.reported = confirmed;
        // The slot knows where it stood: 0/0 leaves it alone (ProcessStandbyReplyMessage).
        let confirmed = self.window.newly(confirmed);
        self.stream
            .queue_status(self.window.received(), confirmed, reply_requested);
        fault::point("status_queued");
    }

    fn status_interval(&self) -> Duration {
        self.options.takeover_after / 3
    }

    fn wake_at(&self) -> Instant {
        let down = self
            .down
            .as_ref()
            .map(|(since, _)| *since + self.options.takeover_after);
        let asked = self.asked_until();
        let wakes = [
            Some(self.status_due),
            self.gather_until,
            down,
            asked,
            self.stop_at,
            self.write_due,
            self.unwritten_until(),
        ];
        wakes.into_iter().flatten().min().unwrap_or(self.status_due)
    }

    /// How long a server that waits for us may have to; for what is only held back, not at all.
    fn asked_until(&self) -> Option<Instant> {
        let (since, times) = self.asked.filter(|_| self.stop_at.is_none())?;
        let under_way = self.window.events() > 0;
        let patience = under_way.then_some(self.options.drain_timeout);
        (times >= Self::ASKED_MIN).then(|| since + patience.unwrap_or_default())
    }

    /// Ends the stint when waiting longer helps nobody.
    fn check_patience(&self) -> Result<(), Error> {
        if let Some((since, _)) = self.asked
            && self.asked_until().is_some_and(|at| at <= Instant::now())
        {
            return Err(Error::Awaited(since.elapsed()));
        }
        if let Some((since, failure)) = &self.down
            && since.elapsed() >= self.options.takeover_after
        {
            let (failure, waited) = (failure.clone(), since.elapsed());
            return Err(Error::SinkDown { failure, waited });
        }
        self.check_record()?;
        // A server that is asked answers at once, or within half of wal_sender_timeout from the
        // middle of a large transaction (WalSndWriteData).
        let silence = self.heard_at.elapsed();
        if self.reading() && silence >= self.options.takeover_after * 3 {
            return Err(Error::Silent(silence));
        }
        Ok(())
    }

    fn reading(&self) -> bool {
        let wanted = self.stop_at.is_none() || self.finishing();
        let room = self.window.has_room() && self.keeper.has_room(self.handed_over);
        wanted && self.unreadable.is_none() && room
    }

    /// Whether a stop waits for the end of the open transaction.
    fn finishing(&self) -> bool {
        self.window.in_transaction() && self.last_events > 0
    }

    fn drained(&self) -> bool {
        if self.stop_at.is_some_and(|at| Instant::now() >= at) {
            return true;
        }
        let stopped = self.stop_at.is_some() && !self.finishing();
        let outstanding = self.window.events() - self.together.events();
        (stopped || self.unreadable.is_some()) && outstanding == 0 && self.is_recorded()
    }

    /// Says once of each kind that something is passed over.
    fn log_passed(&mut self) {
        let passed = self.assembler.passed();
        let before = std::mem::replace(&mut self.passed, passed);
        if before.headers == 0 && passed.headers > 0 {
            warn!("rows have headers with reserved names (nats-, outjet-, ce-): they are left out");
        }
        if before.changes == 0 && passed.changes > 0 {
            warn!("the publication sends more than inserts: updates and deletes are passed over");
        }
        if before.messages == 0 && passed.messages > 0 {
            debug!("the slot sends logical messages of others: they are passed over");
        }
        if before.loose_messages == 0 && passed.loose_messages > 0 {
            warn!(
                "logical messages were emitted outside of their transaction, where nothing is \
                 committed: they are passed over; call pg_logical_emit_message(true, …)"
            );
        }
    }
}

/// Reads or, where there is no room for it, only writes. Cancel-safe as both are.
async fn exchange(stream: &mut Stream, reading: bool) -> Result<Action, PgError> {
    if reading {
        return stream.recv().await.map(Action::Frame);
    }
    if stream.wants_flush() {
        return stream.flush().await.map(|()| Action::Flushed);
    }
    std::future::pending().await
}

/// 18 says by a warning that it does not find the publication, and passes over the rows.
pub(crate) fn take_notice(notice: ServerMessage) -> Result<(), Error> {
    // object_not_in_prerequisite_state, and synchronized_standby_slots shares it: told apart by
    // what is lost if we are wrong. A needless halt loses nothing.
    let standby = notice.message.contains("synchronized_standby_slots");
    if notice.code == "55000" && !standby {
        return Err(Error::PublicationSkipped(notice.message));
    }
    warn!(code = %notice.code, message = %notice.message, "Postgres says");
    Ok(())
}
