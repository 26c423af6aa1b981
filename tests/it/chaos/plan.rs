//! What is to go wrong, and when: a function of the seed and of nothing else. Knows no server.
//!
//! Faults stand on tracks. Those of one track follow one another, those of different tracks overlap
//! as they like. Most of them wait until the stream runs, so that they hit something; the others
//! come while outjet is still busy with what came before. A longer plan begins like a shorter one
//! of the same seed.

mod flaws;

use std::fmt;
use std::time::Duration;

use crate::harness::Direction;
use crate::harness::outbox::Random;
pub(crate) use flaws::Release;

/// A leader that is silent for longer than this loses the slot (`postgres.takeover_after`).
pub(crate) const TAKEOVER_AFTER: Duration = Duration::from_secs(2);

/// How long events are held back by copies that do (`stream.hold`).
pub(crate) const HOLD: Duration = Duration::from_secs(3);

/// Older than this nothing is that a broker forgets. A stored event is confirmed once it is
/// [`HOLD`] old: the rest is for machines that are late.
pub(crate) const FORGOTTEN_MAX: Duration = Duration::from_secs(2);

/// Everything that one round is made of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// Names the plan and the contents.
    pub(crate) seed: u64,
    /// No fault begins later.
    pub(crate) length: Duration,
    /// Copies of outjet: one leads.
    pub(crate) copies: usize,
    /// What their configuration says at first, and always unless the past changes.
    pub(crate) first: Settings,
    /// Copies of the stream, each on a server of its own: 1, or 3 of which one is down.
    pub(crate) replicas: usize,
    /// Whether a transaction appears as a whole.
    pub(crate) atomic: bool,
    /// Whether events are held back, which is what makes [`NatsFault::Forget`] harmless.
    pub(crate) hold: bool,
    /// How the past changes behind outjet's back, if it does.
    pub(crate) past: Option<Past>,
    /// What others do to the stream; with it events may stand where they did not belong.
    pub(crate) strangers: Vec<Planned<StrangerFault>>,
    /// What is done with dead letters.
    pub(crate) letters: Vec<Planned<LetterFault>>,
    /// What happens to the database server.
    pub(crate) postgres: Vec<Planned<PostgresFault>>,
    /// What happens to the broker.
    pub(crate) nats: Vec<Planned<NatsFault>>,
    /// What happens to copies.
    pub(crate) copy: Vec<Planned<(Whom, CopyFault)>>,
    /// What happens between a copy and Postgres.
    pub(crate) postgres_link: Vec<Planned<(Whom, LinkFault)>>,
    /// What happens between a copy and NATS.
    pub(crate) nats_link: Vec<Planned<(Whom, LinkFault)>>,
}

/// How the past changes behind outjet's back. In each of these rounds a copy has other settings
/// from one start to the next, some events are delayed, and older records are put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    /// The stream is a work queue, and a consumer empties it.
    Consumed,
    /// Some events have an end, and the stream is purged of what was read.
    Expiring,
    /// The slot is moved, made again or dropped.
    Moved,
    /// A standby that lags is promoted (17 and newer): what it lacks was never committed.
    Promoted,
}

impl Past {
    /// Whether some events cannot be published, and somebody does something about them.
    pub(crate) fn has_letters(self) -> bool {
        match self {
            Self::Consumed | Self::Expiring => true,
            Self::Moved | Self::Promoted => false,
        }
    }
}

/// What can happen to the slot while no copy runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moving {
    /// `pg_replication_slot_advance`.
    Advance,
    /// It is dropped and made again.
    Recreate,
    /// It is dropped.
    Drop,
}

/// What a copy's configuration says until it is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// `publish.in_flight_max`.
    pub(crate) in_flight_max: u32,
    /// `publish.in_flight_bytes_max`, in KiB.
    pub(crate) in_flight_kib_max: usize,
    /// `publish.delayed`: `now`, or `schedule`.
    pub(crate) delayed_now: bool,
}

impl Settings {
    fn draw(random: &mut Random) -> Self {
        Self {
            in_flight_max: [16, 256, 4096][random.below(3) as usize],
            in_flight_kib_max: [256, 32 * 1024][random.below(2) as usize],
            delayed_now: false,
        }
    }

    /// Without the smallest windows: an outjet that lags publishes nothing of what will be lost.
    fn swift(self) -> Self {
        Self {
            in_flight_max: self.in_flight_max.max(256),
            ..self
        }
    }
}

/// A fault with its time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Planned<F> {
    /// Whether it waits for a running stream first.
    pub(crate) awaits_stream: bool,
    /// Quiet on its track, from then on.
    pub(crate) after: Duration,
    /// How long something is down, stands or is silent.
    pub(crate) lasts: Duration,
    /// What happens.
    pub(crate) fault: F,
}

/// Which copy a fault is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    /// Whoever holds the slot at that time, or held it last.
    Leader,
    /// This one, counted from 0, whatever it is doing.
    Copy(usize),
}

/// What can happen to Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PostgresFault {
    /// `kill -9` of the postmaster.
    Kill,
    /// A fast stop, which waits for the walsender's client.
    StopFast,
    /// An immediate stop, with recovery at the next start.
    StopImmediate,
    /// `pg_terminate_backend` of the walsender.
    TerminateWalsender,
    /// `kill -9` of the walsender: the postmaster restarts everything.
    KillWalsender,
    /// SIGSTOP of the walsender.
    PauseWalsender,
    /// A standby is cut off, the server goes on and is killed, and the standby takes its place.
    Promote,
}

/// What can happen to nats-server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NatsFault {
    /// `kill -9`.
    Kill,
    /// An orderly stop.
    Stop,
    /// SIGSTOP.
    Pause,
    /// `kill -9`, and what it has on disk is as it was some time ago.
    Forget,
}

/// What can be done to the stream by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StrangerFault {
    /// They publish into it.
    Write,
    /// They publish into it, and the message vanishes.
    WriteAndVanish,
    /// They publish one of our newest messages again, with its headers.
    Copy,
    /// One of our newest messages vanishes.
    Delete,
    /// They publish into it, and the message has an end (2.11 and newer).
    WriteExpiring,
    /// Everything that was read vanishes.
    Purge,
}

impl StrangerFault {
    /// Whether it can take the place of an event that is under way.
    fn displaces(self) -> bool {
        match self {
            Self::Write | Self::WriteAndVanish | Self::WriteExpiring | Self::Copy => true,
            Self::Delete | Self::Purge => false,
        }
    }
}

/// What is done with a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LetterFault {
    /// `outjet dead-letters drop`, of the newest.
    Drop,
    /// The row of the oldest is corrected, and then `outjet dead-letters retry`.
    Retry,
}

/// What can happen to outjet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyFault {
    /// `kill -9`.
    Kill,
    /// SIGTERM.
    Terminate,
    /// SIGSTOP for less than [`TAKEOVER_AFTER`].
    Pause,
    /// SIGSTOP until another copy may have taken over.
    PauseLong,
    /// All copies end, and meanwhile the record is put back to what it was some time ago.
    PutRecordBack,
    /// All copies end, and meanwhile the slot passes over what was committed. Somebody recovers.
    MoveSlot(Moving),
}

/// What can happen to a network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum LinkFault {
    /// Connections are reset at once.
    Cut,
    /// Connections are reset after this many more bytes.
    CutAfter(Direction, u64),
    /// Nothing passes in a direction.
    Stall(Direction),
    /// Each chunk is held back for this long.
    Delay(Duration),
    /// Connections are reset and new ones refused.
    Refuse,
    /// Connections stand still, new ones do not, and what was sent arrives late.
    Freeze,
    /// The same for good, as behind a firewall that has forgotten them: nobody is told.
    Forget,
}

impl Plan {
    /// The plan of a seed.
    pub(crate) fn new(seed: u64, length: Duration) -> Self {
        let source = |track| Self::source(seed, track);
        let mut random = source(1);
        let copies = 2 + random.below(2) as usize;
        let first = Settings::draw(&mut random);
        Self {
            seed,
            length,
            copies,
            first,
            replicas: 1,
            atomic: false,
            hold: false,
            past: None,
            strangers: Vec::new(),
            letters: Vec::new(),
            postgres: track(source(2), (500, 4_000), length, &mut postgres_faults()),
            nats: track(source(3), (500, 4_000), length, &mut nats_faults(&[])),
            copy: track(
                source(4),
                (300, 3_000),
                length,
                &mut copy_faults(copies, &[]),
            ),
            postgres_link: track(source(5), (300, 2_500), length, &mut link_faults(copies)),
            nats_link: track(source(6), (300, 2_500), length, &mut link_faults(copies)),
        }
    }

    /// The same, with events that are held back and a broker that forgets.
    pub(crate) fn holding(seed: u64, length: Duration) -> Self {
        let mut plan = Self::new(seed, length);
        let random = Self::source(seed, 3);
        let forget = [NatsFault::Forget; 8];
        plan.hold = true;
        plan.nats = track(random, (300, 1_500), length, &mut nats_faults(&forget));
        // Of a stream that does not run nothing is lost.
        let forgets = |planned: &&mut Planned<_>| planned.fault == NatsFault::Forget;
        for planned in plan.nats.iter_mut().filter(forgets) {
            planned.awaits_stream = true;
        }
        plan
    }

    /// The same, with others that write into the stream and delete from it.
    pub(crate) fn among_strangers(seed: u64, length: Duration) -> Self {
        let random = Self::source(seed, 7);
        Self {
            strangers: track(random, (50, 600), length, &mut stranger_faults(&STRANGE)),
            ..Self::new(seed, length)
        }
    }

    /// The same, with a past that changes, and in every other round with strangers.
    pub(crate) fn changing(seed: u64, past: Past, length: Duration) -> Self {
        use StrangerFault::*;
        let mut plan = Self::new(seed, length);
        let mut random = Self::source(seed, 8);
        let mut faults = match past {
            Past::Consumed | Past::Moved | Past::Promoted => Vec::new(),
            Past::Expiring => vec![Purge],
        };
        // Among strangers the order cannot be judged, and this is about it.
        if past != Past::Promoted && random.below(2) == 0 {
            faults.extend([Write, WriteAndVanish, WriteExpiring, WriteExpiring]);
            faults.extend([Copy, Delete]);
        }
        if !faults.is_empty() {
            let mut draw = stranger_faults(&faults);
            plan.strangers = track(random, (50, 600), length, &mut draw);
        }
        if past.has_letters() {
            let mut deck = Deck::of(&[LetterFault::Drop, LetterFault::Retry]);
            // A retry that takes longer is killed.
            let mut draw = |random: &mut Random| (deck.deal(random), between(random, (500, 4_000)));
            plan.letters = track(Self::source(seed, 9), (300, 2_000), length, &mut draw);
        }
        plan.past = Some(past);
        let (random, copies) = (Self::source(seed, 4), plan.copies);
        let between = match past {
            Past::Consumed | Past::Expiring => vec![CopyFault::PutRecordBack; 2],
            Past::Promoted => Vec::new(),
            Past::Moved => [Moving::Advance, Moving::Recreate, Moving::Drop]
                .map(CopyFault::MoveSlot)
                .into_iter()
                .chain([CopyFault::PutRecordBack])
                .collect(),
        };
        let mut draw = copy_faults(copies, &between);
        plan.copy = track(random, (300, 3_000), length, &mut draw);
        if past == Past::Promoted {
            plan.first = plan.first.swift();
            plan.promote_once();
        }
        plan
    }

    /// After a quarter of the time: then there is something to lose, and time for what follows.
    fn promote_once(&mut self) {
        let mut at = Duration::ZERO;
        let is_early = |planned: &&Planned<_>| {
            at += planned.after + planned.lasts;
            at < self.length / 4
        };
        let place = self.postgres.iter().take_while(is_early).count();
        let mut random = Self::source(self.seed, 10);
        let promotion = Planned {
            awaits_stream: true,
            after: between(&mut random, (300, 1_500)),
            lasts: between(&mut random, (100, 1_500)),
            fault: PostgresFault::Promote,
        };
        self.postgres.insert(place, promotion);
    }

    /// The plan of a seed whose past changes in the way that is this seed's.
    pub(crate) fn past_of(seed: u64, length: Duration) -> Self {
        let past = [Past::Consumed, Past::Expiring, Past::Moved];
        Self::changing(seed, past[seed as usize % past.len()], length)
    }

    /// What a copy's configuration says at a start, counted from 0.
    pub(crate) fn settings(&self, copy: usize, start: u64) -> Settings {
        if self.past.is_none() || start == 0 {
            return self.first;
        }
        let mut random = Self::source(self.seed, 16 + copy as u64);
        random.0 = random.0.wrapping_add(start << 16);
        let settings = Settings {
            delayed_now: random.below(2) == 0,
            ..Settings::draw(&mut random)
        };
        match self.past {
            Some(Past::Promoted) => settings.swift(),
            _ => settings,
        }
    }

    /// Whether events may stand where they did not belong: beside strangers, or as the tables were
    /// read, which know no commits.
    pub(crate) fn displaces(&self) -> bool {
        self.past == Some(Past::Moved) || self.has_writers()
    }

    /// One source of choices for each track, so that no track moves another.
    fn source(seed: u64, track: u64) -> Random {
        Random(seed.wrapping_mul(1_000_003).wrapping_add(track << 32))
    }

    /// How many faults it has.
    pub(crate) fn faults(&self) -> usize {
        self.postgres.len()
            + self.nats.len()
            + self.strangers.len()
            + self.letters.len()
            + self.copy.len()
            + self.postgres_link.len()
            + self.nats_link.len()
    }
}

/// Faults for as long as the plan can last, with as many milliseconds of quiet between two.
fn track<F>(
    mut random: Random,
    quiet: (u64, u64),
    length: Duration,
    draw: &mut impl FnMut(&mut Random) -> (F, Duration),
) -> Vec<Planned<F>> {
    let mut planned = Vec::new();
    let mut at = Duration::ZERO;
    while at < length {
        let awaits_stream = random.below(4) > 0;
        let after = between(&mut random, quiet);
        let (fault, lasts) = draw(&mut random);
        planned.push(Planned {
            awaits_stream,
            after,
            lasts,
            fault,
        });
        at += after + lasts;
    }
    planned
}

/// Deals all cards before it deals one again, so that a short plan has some of everything.
struct Deck<C> {
    cards: Vec<C>,
    left: Vec<C>,
}

impl<C: Copy> Deck<C> {
    fn of(cards: &[C]) -> Self {
        Self {
            cards: cards.to_vec(),
            left: Vec::new(),
        }
    }

    fn deal(&mut self, random: &mut Random) -> C {
        if self.left.is_empty() {
            self.left.clone_from(&self.cards);
        }
        let chosen = random.below(self.left.len() as u64);
        self.left.swap_remove(chosen as usize)
    }
}

fn postgres_faults() -> impl FnMut(&mut Random) -> (PostgresFault, Duration) {
    use PostgresFault::*;
    let mut deck = Deck::of(&[
        Kill,
        StopFast,
        StopImmediate,
        TerminateWalsender,
        KillWalsender,
        PauseWalsender,
    ]);
    move |random| {
        let fault = deck.deal(random);
        let lasts = match fault {
            Kill | StopFast | StopImmediate => (0, 1_500),
            TerminateWalsender | KillWalsender => (0, 1),
            PauseWalsender => (100, 4_000),
            Promote => unreachable!("it is in no deck"),
        };
        (fault, skewed(random, lasts))
    }
}

fn nats_faults(more: &[NatsFault]) -> impl FnMut(&mut Random) -> (NatsFault, Duration) {
    use NatsFault::*;
    let mut deck = Deck::of(&[&[Kill, Kill, Stop, Pause], more].concat());
    move |random| {
        let fault = deck.deal(random);
        let lasts = match fault {
            Kill | Stop => skewed(random, (0, 2_000)),
            Pause => skewed(random, (100, 4_000)),
            // What was stored within that time is lost: the longer, the more.
            Forget => between(random, (300, FORGOTTEN_MAX.as_millis() as u64)),
        };
        (fault, lasts)
    }
}

/// What strangers do where the past does not change.
const STRANGE: [StrangerFault; 4] = [
    StrangerFault::Write,
    StrangerFault::WriteAndVanish,
    StrangerFault::Copy,
    StrangerFault::Delete,
];

fn stranger_faults(
    faults: &[StrangerFault],
) -> impl FnMut(&mut Random) -> (StrangerFault, Duration) + use<> {
    let mut deck = Deck::of(faults);
    move |random| (deck.deal(random), Duration::ZERO)
}

fn copy_faults(
    copies: usize,
    more: &[CopyFault],
) -> impl FnMut(&mut Random) -> ((Whom, CopyFault), Duration) + use<> {
    use CopyFault::*;
    let mut deck = Deck::of(&[&[Kill, Kill, Terminate, Pause, PauseLong], more].concat());
    move |random| {
        let fault = deck.deal(random);
        let takeover = TAKEOVER_AFTER.as_millis() as u64;
        let lasts = match fault {
            Kill | Terminate => (0, 1_500),
            Pause => (50, takeover - 500),
            PauseLong => (takeover + 500, takeover + 3_000),
            PutRecordBack => (100, 2_000),
            MoveSlot(_) => (0, 1),
        };
        ((whom(random, copies), fault), skewed(random, lasts))
    }
}

fn link_faults(copies: usize) -> impl FnMut(&mut Random) -> ((Whom, LinkFault), Duration) {
    /// What is drawn first; the details are drawn for each.
    #[derive(Clone, Copy)]
    enum Card {
        Cut,
        CutAfter,
        Stall,
        Delay,
        Refuse,
        Freeze,
        Forget,
    }
    use Card::*;
    let mut deck = Deck::of(&[
        Cut, CutAfter, CutAfter, Stall, Stall, Delay, Refuse, Freeze, Forget,
    ]);
    move |random| {
        let (fault, lasts) = match deck.deal(random) {
            Cut => (LinkFault::Cut, (0, 1)),
            CutAfter => {
                let bytes = 1 + random.below(100_000);
                (LinkFault::CutAfter(direction(random), bytes), (200, 1_500))
            }
            Stall => (LinkFault::Stall(direction(random)), (100, 4_000)),
            Delay => {
                let delay = between(random, (1, 60));
                (LinkFault::Delay(delay), (500, 3_000))
            }
            Refuse => (LinkFault::Refuse, (100, 3_000)),
            Freeze => (LinkFault::Freeze, (200, 4_000)),
            Forget => (LinkFault::Forget, (0, 1)),
        };
        ((whom(random, copies), fault), skewed(random, lasts))
    }
}

/// Most often the leader: what happens to a standby hits nothing.
fn whom(random: &mut Random, copies: usize) -> Whom {
    match random.below(6) {
        0 => Whom::Copy(random.below(copies as u64) as usize),
        _ => Whom::Leader,
    }
}

fn direction(random: &mut Random) -> Direction {
    match random.below(3) {
        0 => Direction::ToServer,
        1 => Direction::ToClient,
        _ => Direction::Both,
    }
}

/// Short more often than long: an outage of everything is easily had, and hides what comes next.
fn skewed(random: &mut Random, (low, high): (u64, u64)) -> Duration {
    match random.below(3) {
        0 => between(random, (low, high)),
        _ => between(random, (low, low + (high - low).div_ceil(5))),
    }
}

fn between(random: &mut Random, (low, high): (u64, u64)) -> Duration {
    Duration::from_millis(low + random.below(high - low))
}

impl fmt::Display for PostgresFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "Postgres: kill -9",
            Self::StopFast => "Postgres: fast stop",
            Self::StopImmediate => "Postgres: immediate stop",
            Self::TerminateWalsender => "walsender: terminated",
            Self::KillWalsender => "walsender: kill -9",
            Self::PauseWalsender => "walsender: SIGSTOP",
            Self::Promote => "Postgres: a standby that lags is promoted",
        })
    }
}

impl fmt::Display for NatsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "nats-server: kill -9",
            Self::Stop => "nats-server: stop",
            Self::Pause => "nats-server: SIGSTOP",
            Self::Forget => "nats-server: kill -9, its store rolled back",
        })
    }
}

impl fmt::Display for StrangerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Write => "stranger: writes",
            Self::WriteAndVanish => "stranger: writes, and it vanishes",
            Self::Copy => "stranger: copies one of ours",
            Self::Delete => "stranger: deletes one of ours",
            Self::WriteExpiring => "stranger: writes, and it expires",
            Self::Purge => "stranger: purges what was read",
        })
    }
}

impl fmt::Display for LetterFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drop => "dead letter: dropped",
            Self::Retry => "dead letter: retried",
        })
    }
}

impl fmt::Display for CopyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "outjet: kill -9",
            Self::Terminate => "outjet: SIGTERM",
            Self::Pause => "outjet: SIGSTOP, short",
            Self::PauseLong => "outjet: SIGSTOP, past takeover_after",
            Self::PutRecordBack => "record: put back while no copy runs",
            Self::MoveSlot(moving) => return moving.fmt(f),
        })
    }
}

impl fmt::Display for Moving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Advance => "slot: advanced while no copy runs",
            Self::Recreate => "slot: dropped and made again",
            Self::Drop => "slot: dropped",
        })
    }
}

/// Its kind; [`LinkFault::details`] says the rest.
impl fmt::Display for LinkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cut => "cut",
            Self::CutAfter(..) => "cut at a byte",
            Self::Stall(_) => "stalled",
            Self::Delay(_) => "delayed",
            Self::Refuse => "refused",
            Self::Freeze => "frozen, delivered late",
            Self::Forget => "silent for good",
        })
    }
}

impl LinkFault {
    /// What else there is to say, if there is anything.
    pub(crate) fn details(&self) -> String {
        match self {
            Self::Cut | Self::Refuse | Self::Freeze | Self::Forget => String::new(),
            Self::CutAfter(direction, bytes) => format!("{direction:?}, {bytes} bytes"),
            Self::Stall(direction) => format!("{direction:?}"),
            Self::Delay(delay) => format!("{delay:?} a chunk"),
        }
    }
}

#[cfg(test)]
mod tests;
