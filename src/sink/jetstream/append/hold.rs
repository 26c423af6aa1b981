//! What was stored may be lost again: JetStream acknowledges before it writes to disk, and somebody
//! may put an older copy of a stream, or a new one, in its place. So it is looked at now and then,
//! and events can be held back until they have been there for long enough.
//!
//! Events are held in portions, each with the newest message that it covers as its *witness*. What
//! is lost is an end of the stream: while the witness stands where it stood, so does all before it.
//! Ages are the stream's own (its clock, its timestamps): what a new leader finds stored has waited
//! already.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::jetstream::stream::Info;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::client::Streams;
use super::super::error::Error;
use super::super::messages::{Messages, Standing};
use super::super::options::BEHIND_MAX;
use super::Appender;
use super::epoch::Epoch;
use super::witness::{Age, Witness};
use crate::sink::{HELD_MAX, Report, Settled};

/// How often a stream is looked at in which nothing happens: about as soon as a dead connection is
/// noticed, and one small request.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Portions are made no faster than this: a look costs two round trips, in which nothing is sent.
const PORTION_MIN: Duration = Duration::from_millis(50);

/// Half of the portions that there may be: they are released a little later than they are due.
const PORTIONS: u32 = HELD_MAX as u32 / 2;

/// A stream as it was last seen. It may only grow.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    created: Option<OffsetDateTime>,
    last_sequence: u64,
    behind: Option<Instant>,
}

impl Seen {
    /// Its last sequence number is at least this.
    pub(crate) fn reached(&mut self, sequence: u64) {
        self.last_sequence = self.last_sequence.max(sequence);
    }

    /// Refuses a stream that has become less than it was. `gap`: how many released events are lost
    /// where it reached one sequence number and now ends at another.
    pub(crate) fn check(
        &mut self,
        stream: &Found<'_>,
        gap: impl Fn(u64, u64) -> u64,
    ) -> Result<(), Error> {
        let Found {
            name,
            created,
            last_sequence: last,
            replicas,
        } = *stream;
        let changed = |reason: String, last: u64| Error::StreamChanged {
            name: name.to_owned(),
            reason,
            gap: gap(self.last_sequence, last),
        };
        if self.created.is_some_and(|before| before != created) {
            let reason = "was deleted and created again".to_owned();
            return Err(changed(reason, 0));
        }
        if last < self.last_sequence {
            let since = *self.behind.get_or_insert_with(Instant::now);
            let reason = format!(
                "lost its end: it reached sequence {}, it now ends at {last}",
                self.last_sequence
            );
            if replicas > 1 && since.elapsed() < BEHIND_MAX {
                return Err(Error::Broken(reason));
            }
            return Err(changed(reason, last));
        }
        self.behind = None;
        self.created = Some(created);
        Ok(())
    }
}

/// A stream as it is found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    pub(crate) name: &'a str,
    pub(crate) created: OffsetDateTime,
    pub(crate) last_sequence: u64,
    pub(crate) replicas: usize,
}

impl<'a> Found<'a> {
    fn of(info: &'a Info) -> Self {
        Self {
            name: &info.config.name,
            created: info.created,
            last_sequence: info.state.last_sequence,
            replicas: info.config.num_replicas,
        }
    }

    fn now(info: &'a Info, standing: &Standing) -> Self {
        Self {
            created: standing.created,
            last_sequence: standing.last_sequence,
            ..Self::of(info)
        }
    }
}

impl Appender {
    /// Refuses a connection to a stream that is less than it was.
    pub(crate) fn check_seen(&mut self, streams: &Streams) -> Result<(), Error> {
        let found = Found::of(&streams.info);
        self.seen.check(&found, |was, is| self.hold.gap(was, is))?;
        self.seen.reached(found.last_sequence);
        if let Some((_, info)) = &streams.letters {
            let found = Found::of(info);
            self.seen_letters.check(&found, |_, _| 0)?;
            self.seen_letters.reached(found.last_sequence);
        }
        Ok(())
    }

    /// Refuses a stream in which another message has taken the place of the newest that was stored.
    /// Before anything is sent: behind an event of ours it would not be noticed any more.
    ///
    /// ```text
    ///  acknowledged  ──1──2──3       lost its end, and a stranger wrote:  ──1──2──?──►
    /// ```
    pub(crate) async fn check_newest_stands(&self, stream: &Messages) -> Result<(), Error> {
        if !Box::pin(self.newest.is_replaced(stream)).await? {
            return Ok(());
        }
        let sequence = self.newest.sequence;
        Err(replaced(
            stream,
            sequence,
            self.hold.gap(sequence, sequence - 1),
        ))
    }

    /// Takes note of what was settled, to hold it back.
    pub(crate) fn book(&mut self, epoch: &Epoch, settled: &Settled) {
        let known = settled.known + settled.recorded;
        let stored = match &settled.stored_at {
            Some(place) => Witness {
                sequence: place.sequence,
                position: Some(place.position),
            },
            None if known > 0 => epoch.newest,
            None => Witness::default(),
        };
        self.seen.reached(stored.sequence);
        if stored.position.is_some() {
            self.newest = self.newest.or_newer(stored);
        }
        let mut buried = Witness::default();
        if let Some(letters) = &epoch.letters
            && known + settled.dead_lettered > 0
        {
            buried.sequence = letters.last_sequence();
            self.seen_letters.reached(buried.sequence);
        }
        if known == 0 {
            self.hold
                .begin(stored.sequence.saturating_sub(settled.stored as u64));
        }
        self.hold.settle(settled.events() as u64, stored, buried);
    }

    /// Sees whether the stream is what it was, and releases what has been in it for long enough.
    pub(crate) async fn look(
        &mut self,
        epoch: &mut Epoch,
        reports: &mpsc::Sender<Report>,
    ) -> Result<(), Error> {
        self.hold.looked();
        let Epoch { link, streams, .. } = epoch;
        let standing = link.during(Box::pin(streams.stream.standing())).await?;
        let found = Found::now(&streams.info, &standing);
        self.seen.check(&found, |was, is| self.hold.gap(was, is))?;
        let mut letters = None;
        if let Some((messages, info)) = &streams.letters {
            let standing = link.during(Box::pin(messages.standing())).await?;
            self.seen_letters
                .check(&Found::now(info, &standing), |_, _| 0)?;
            letters = Some((messages, standing));
        }
        if self.hold.close() {
            let _ = reports.send(Report::Held).await;
        }
        let stored = (&streams.stream, &standing);
        loop {
            let buried = letters
                .as_ref()
                .map(|(messages, standing)| (*messages, standing));
            let release = Box::pin(self.hold.release(stored, buried));
            if !link.during(release).await? {
                return Ok(());
            }
            let _ = reports.send(Report::Released).await;
        }
    }
}

fn replaced(stream: &Messages, sequence: u64, gap: u64) -> Error {
    Error::StreamChanged {
        name: stream.name().to_owned(),
        reason: format!("bears another message at sequence {sequence}"),
        gap,
    }
}

/// The events of one term that are held back.
#[derive(Debug)]
pub(crate) struct Hold {
    hold: Duration,
    portions: VecDeque<Portion>,
    /// Behind the newest portion.
    open: Portion,
    began_at: Instant,
    looked_at: Instant,
    /// Events of this term that were settled.
    settled: u64,
    /// What stands at this sequence number or below was released, in this term or before it, as far
    /// as that is known.
    released_to: u64,
}

#[derive(Clone, Copy, Debug)]
struct Portion {
    /// The events of the term up to its end.
    settled: u64,
    stored: Witness,
    buried: Witness,
    closed_at: Instant,
    due: Instant,
}

impl Hold {
    pub(crate) fn new(hold: Duration) -> Self {
        let now = Instant::now();
        Self {
            hold,
            portions: VecDeque::new(),
            open: Portion {
                settled: 0,
                stored: Witness::default(),
                buried: Witness::default(),
                closed_at: now,
                due: now,
            },
            began_at: now,
            looked_at: now,
            settled: 0,
            released_to: 0,
        }
    }

    /// Whether anything is ever held back.
    pub(crate) fn holds(&self) -> bool {
        !self.hold.is_zero()
    }

    /// The next events to be settled are new, and stand behind this sequence number. If they are
    /// the first of the term, whatever stands before them was released by earlier ones.
    pub(crate) fn begin(&mut self, sequence: u64) {
        if self.settled == 0 {
            self.released_to = sequence;
        }
    }

    /// Events were settled, the newest of them at these places or before them.
    pub(crate) fn settle(&mut self, events: u64, stored: Witness, buried: Witness) {
        self.settled += events;
        self.open.stored = self.open.stored.or_newer(stored);
        self.open.buried = self.open.buried.or_newer(buried);
    }

    /// Makes a portion of what was settled since the last one, if it is time for it.
    pub(crate) fn close(&mut self) -> bool {
        let now = Instant::now();
        let wanted = self.holds() && self.settled > self.open.settled;
        if !wanted || self.portions.len() == HELD_MAX || now < self.open.closed_at + self.pace() {
            return false;
        }
        self.open.settled = self.settled;
        self.open.closed_at = now;
        // What was found stored may have been there for long.
        self.open.due = now;
        self.portions.push_back(self.open);
        true
    }

    /// How many released events a stream lost that reached a sequence number and now ends at
    /// another. While the term still finds its first events stored it is not known how many of
    /// those before them were released: then none is told, as all that is lost may be held.
    pub(crate) fn gap(&self, was: u64, last: u64) -> u64 {
        let idle = self.settled == 0 && self.began_at.elapsed() >= self.hold;
        let released_to = match self.holds() && !idle {
            true => self.released_to,
            false => was,
        };
        released_to.saturating_sub(last)
    }

    /// When the stream is to be looked at. Only while nothing is in flight: the request would wait
    /// behind the events, on a slow network for longer than an answer may take. What is in flight
    /// notices by itself that the stream is another one.
    pub(crate) fn wake_at(&self) -> Instant {
        let idle = self.looked_at + LOOK_INTERVAL;
        self.held_wake_at().map_or(idle, |held| held.min(idle))
    }

    /// Whether events have to wait for a look at what is held: without a pause none would come.
    pub(crate) fn wants_look(&self) -> bool {
        self.held_wake_at().is_some_and(|at| at <= Instant::now())
    }

    fn held_wake_at(&self) -> Option<Instant> {
        let due = self.portions.front().map(|portion| portion.due);
        let open = (self.holds() && self.settled > self.open.settled)
            .then(|| self.open.closed_at + self.pace());
        let earliest = [due, open].into_iter().flatten().min()?;
        Some(earliest.max(self.looked_at + PORTION_MIN))
    }

    /// The stream was looked at.
    pub(crate) fn looked(&mut self) {
        self.looked_at = Instant::now();
    }

    /// Whether the oldest portion is old enough and still there: then it is released.
    pub(crate) async fn release(
        &mut self,
        stored: (&Messages, &Standing),
        buried: Option<(&Messages, &Standing)>,
    ) -> Result<bool, Error> {
        let hold = self.hold;
        let now = Instant::now();
        let Some(portion) = self
            .portions
            .front_mut()
            .filter(|portion| portion.due <= now)
        else {
            return Ok(false);
        };
        let mut age = None;
        let witnesses = [(portion.stored, Some(stored)), (portion.buried, buried)];
        for (witness, stream) in witnesses {
            let Some((messages, standing)) = stream.filter(|_| witness.sequence > 0) else {
                continue;
            };
            let found = witness.age(messages, standing).await?;
            let found = found.ok_or_else(|| replaced(messages, witness.sequence, 0))?;
            let known = match found {
                Age::Known(known) => known,
                Age::Unknown => portion.closed_at.elapsed(),
            };
            age = Some(age.map_or(known, |age: Duration| age.min(known)));
        }
        let age = age.unwrap_or_else(|| portion.closed_at.elapsed());
        if age < hold {
            portion.due = now + (hold - age);
            return Ok(false);
        }
        self.released_to = self.released_to.max(portion.stored.sequence);
        self.portions.pop_front();
        Ok(true)
    }

    fn pace(&self) -> Duration {
        (self.hold / PORTIONS).max(PORTION_MIN)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use super::*;

    const HOLD: Duration = Duration::from_secs(128);

    fn found(created: i64, last_sequence: u64, replicas: usize) -> Found<'static> {
        Found {
            name: "S",
            created: OffsetDateTime::from_unix_timestamp(created).expect("a time"),
            last_sequence,
            replicas,
        }
    }

    fn lost_all(was: u64, last: u64) -> u64 {
        was - last
    }

    fn lost(seen: &mut Seen, found: &Found<'_>) -> Option<u64> {
        match seen.check(found, lost_all) {
            Err(Error::StreamChanged { gap, .. }) => Some(gap),
            Ok(()) | Err(_) => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stream_that_ends_earlier_or_was_made_anew_has_lost_what_was_there() {
        let mut seen = Seen::default();
        assert_eq!(lost(&mut seen, &found(1, 10, 1)), None);
        seen.reached(20);
        assert_eq!(lost(&mut seen, &found(1, 20, 1)), None);
        assert_eq!(lost(&mut seen, &found(1, 19, 1)), Some(1));
        assert_eq!(lost(&mut seen, &found(2, 30, 1)), Some(20));
    }

    #[tokio::test(start_paused = true)]
    async fn new_leader_of_replicas_is_given_time_to_catch_up() {
        let mut seen = Seen::default();
        seen.reached(20);
        let behind = found(1, 19, 3);
        assert!(matches!(
            seen.check(&behind, lost_all),
            Err(Error::Broken(_))
        ));
        tokio::time::advance(BEHIND_MAX).await;
        assert_eq!(lost(&mut seen, &behind), Some(1));
        assert!(seen.check(&found(1, 20, 3), lost_all).is_ok());
        assert!(matches!(
            seen.check(&behind, lost_all),
            Err(Error::Broken(_))
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn portions_are_bounded_and_what_comes_too_soon_joins_the_next() {
        let mut hold = Hold::new(HOLD);
        let mut closed = 0;
        for sequence in 1..=10_000 {
            let witness = Witness {
                sequence,
                position: None,
            };
            hold.settle(1, witness, Witness::default());
            closed += usize::from(hold.close());
            tokio::time::advance(Duration::from_millis(500)).await;
        }
        assert_eq!((closed, hold.portions.len()), (HELD_MAX, HELD_MAX));
        let first = hold.portions.front().expect("a portion");
        assert_eq!((first.settled, first.stored.sequence), (3, 3));
    }

    fn stored(hold: &mut Hold, sequences: RangeInclusive<u64>) {
        let events = sequences.clone().count() as u64;
        hold.begin(sequences.start() - 1);
        found_stored(hold, events, *sequences.end());
    }

    fn found_stored(hold: &mut Hold, events: u64, newest: u64) {
        let witness = Witness {
            sequence: newest,
            position: None,
        };
        hold.settle(events, witness, Witness::default());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_lost_and_was_not_released_is_no_gap() {
        let mut hold = Hold::new(HOLD);
        assert_eq!(hold.gap(2_331, 1_500), 0, "nobody knows yet");
        // More of the stream's end is held than was settled so far.
        found_stored(&mut hold, 640, 2_331);
        assert_eq!(hold.gap(2_331, 1_500), 0);
        // In flight, too.
        assert_eq!(hold.gap(2_400, 1_500), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_stood_before_the_first_new_event_of_a_term_was_released() {
        let mut hold = Hold::new(HOLD);
        stored(&mut hold, 101..=120);
        stored(&mut hold, 121..=130);
        assert_eq!(hold.gap(130, 100), 0);
        assert_eq!(hold.gap(130, 93), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn all_was_released_if_nothing_came_again_for_as_long_as_it_is_held() {
        let hold = Hold::new(HOLD);
        tokio::time::advance(HOLD - Duration::from_millis(1)).await;
        assert_eq!(hold.gap(20, 0), 0);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(hold.gap(20, 0), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn without_holding_all_that_is_settled_is_released() {
        let mut hold = Hold::new(Duration::ZERO);
        hold.settle(5, Witness::default(), Witness::default());
        assert!(!hold.close());
        assert_eq!(hold.gap(12, 5), 7);
        assert_eq!(hold.wake_at(), hold.looked_at + LOOK_INTERVAL);
    }
}
