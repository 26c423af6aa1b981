//! The judge: one line a case, and what the verdict says of the events that come then.

use super::*;

const SLOT: &str = "outjet";

fn source(system: &str, timeline: u32) -> Source {
    Source {
        system: system.to_owned(),
        timeline,
        slot: SLOT.to_owned(),
    }
}

fn at(commit: u64) -> Position {
    Position { commit, index: 0 }
}

fn lsn(value: u64) -> Lsn {
    Lsn::new(value)
}

fn switch(timeline: u32, ended_at: u64) -> Switch {
    Switch {
        timeline,
        ended_at: lsn(ended_at),
    }
}

/// P at 100, S its message at sequence 7, C at 110, on timeline 1.
fn record() -> Record {
    Record {
        version: VERSION,
        source: source("7", 1),
        history: Vec::new(),
        dead: Vec::new(),
        stream_created: "then".to_owned(),
        settled: Some(Settled {
            position: at(100),
            id: Some("p".to_owned()),
        }),
        stored: Some(Place {
            sequence: 7,
            position: at(100),
            id: "p".to_owned(),
        }),
        base: 7,
        letters: 3,
        delayed: 4,
        confirmed: lsn(110),
        gap: None,
        term: 5,
        instance: "i".to_owned(),
        server_id: "n".to_owned(),
    }
}

/// What a judge finds, and is told of.
struct Case {
    record: Record,
    source: Source,
    history: Vec<Switch>,
    start: u64,
    slot_used: bool,
    flush: u64,
    standby: bool,
    confirmed_here: u64,
    created: &'static str,
    last_sequence: u64,
    newest: Option<u64>,
    holds: bool,
    beside: (Option<u64>, Option<u64>),
    at_stored: At,
    current: bool,
    void: bool,
}

/// The slot stands at 90, below P; everything else is as the record says.
fn case() -> Case {
    Case {
        record: record(),
        source: source("7", 1),
        history: Vec::new(),
        start: 90,
        slot_used: true,
        flush: 200,
        standby: false,
        confirmed_here: 0,
        created: "then",
        last_sequence: 9,
        newest: Some(105),
        holds: false,
        beside: (Some(3), Some(4)),
        at_stored: At::Same,
        current: false,
        void: false,
    }
}

impl Case {
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn judge(&self) -> Result<Verdict, Refusal> {
        judge(&self.record, &self.facts())
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            source: &self.source,
            history: &self.history,
            start: lsn(self.start),
            slot_used: self.slot_used,
            flush: lsn(self.flush),
            standby: self.standby,
            confirmed_here: lsn(self.confirmed_here),
            stream_created: self.created,
            last_sequence: self.last_sequence,
            newest: self.newest.map(at),
            holds: self.holds,
            letters: self.beside.0,
            delayed: self.beside.1,
            at_stored: self.at_stored,
            current: self.current,
            void: self.void,
        }
    }
}

/// What comes of a case, in a word; `known` up to which commit.
#[derive(Debug, PartialEq)]
enum Told {
    /// The event at P must come first.
    Pending(u64),
    Known(u64),
    Nothing(Void),
    /// A gap is reported: known up to, and where it begins and ends.
    Gap(u64, u64, u64),
    Refused(Refusal),
}

fn told(case: &Case) -> Told {
    match case.judge() {
        Err(refusal) => Told::Refused(refusal),
        Ok(Verdict {
            void: Some(void), ..
        }) => Told::Nothing(void),
        Ok(Verdict { gap, watermark, .. }) => {
            let known = watermark.settled_to().expect("something is known").commit;
            match gap {
                Some(gap) => Told::Gap(known, gap.from.as_u64(), gap.to.as_u64()),
                None if watermark.pending() => Told::Pending(known),
                None => Told::Known(known),
            }
        }
    }
}

#[test]
fn each_rule_has_its_verdict() {
    let moved = |from, to| {
        let (from, to) = (lsn(from), lsn(to));
        let shown_by = Shows::Slot;
        Refusal::Moved(Gap { from, to, shown_by })
    };
    let cases = [
        // A restart: 14–16 rewind, 17 and newer start where it was confirmed.
        (case(), Told::Pending(100)),
        (case().with(|c| c.start = 100), Told::Pending(100)),
        (case().with(|c| c.start = 101), Told::Known(100)),
        (case().with(|c| c.start = 110), Told::Known(100)),
        // Rule 1.
        (
            case().with(|c| c.created = "now"),
            Told::Nothing(Void::Created),
        ),
        // Rule 2: systems and timelines.
        (
            case().with(|c| c.source = source("8", 1)),
            Told::Refused(Refusal::OtherSystem(source("7", 1))),
        ),
        (
            case().with(|c| c.record.source = source("7", 2)),
            Told::Refused(Refusal::OlderTimeline(2)),
        ),
        // A standby that had all of it was promoted; one that lacked a tail.
        (
            case().with(|c| (c.source, c.history) = (source("7", 2), vec![switch(1, 150)])),
            Told::Pending(100),
        ),
        (
            case().with(|c| (c.source, c.history) = (source("7", 2), vec![switch(1, 95)])),
            Told::Known(94),
        ),
        // A fork: both left timeline 1 or 2, at different points.
        (
            case().with(|c| {
                (c.record.source, c.record.history) = (source("7", 2), vec![switch(1, 60)]);
                (c.source, c.history) = (source("7", 3), vec![switch(1, 95)]);
                c.start = 50;
            }),
            Told::Known(59),
        ),
        (
            case().with(|c| {
                (c.record.source, c.record.history) = (source("7", 2), vec![switch(1, 60)]);
                (c.source, c.history) = (source("7", 2), vec![switch(1, 40)]);
                c.start = 30;
            }),
            Told::Known(39),
        ),
        (
            case().with(|c| {
                (c.record.source, c.record.history) = (source("7", 2), vec![switch(1, 60)]);
                c.source = source("7", 3);
            }),
            Told::Nothing(Void::History),
        ),
        // Rule 3: the slot was moved, or this record is an older one.
        (case().with(|c| c.start = 111), Told::Gap(100, 110, 111)),
        (
            case().with(|c| (c.start, c.confirmed_here) = (130, 130)),
            Told::Known(100),
        ),
        (
            case().with(|c| (c.start, c.confirmed_here) = (131, 130)),
            Told::Gap(100, 110, 131),
        ),
        (
            case().with(|c| (c.start, c.current) = (111, true)),
            Told::Gap(100, 110, 111),
        ),
        (
            case().with(|c| (c.start, c.current, c.last_sequence) = (111, true, 7)),
            Told::Refused(moved(110, 111)),
        ),
        (
            case().with(|c| (c.start, c.last_sequence) = (111, 7)),
            Told::Gap(100, 110, 111),
        ),
        // It was made again on the new primary, behind the fork.
        (
            case().with(|c| {
                (c.source, c.history) = (source("7", 2), vec![switch(1, 95)]);
                c.start = 96;
            }),
            Told::Gap(94, 95, 96),
        ),
        // Rule 4: the server is behind.
        (
            case().with(|c| c.flush = 109),
            Told::Refused(Refusal::PutBack(lsn(110))),
        ),
        (
            case().with(|c| (c.flush, c.standby) = (109, true)),
            Told::Refused(Refusal::Behind(lsn(110))),
        ),
        (case().with(|c| c.flush = 110), Told::Pending(100)),
        // Rule 5: the stream.
        (case().with(|c| c.last_sequence = 7), Told::Pending(100)),
        (
            case().with(|c| (c.last_sequence, c.at_stored) = (6, At::Nothing)),
            Told::Nothing(Void::StreamEnds { last: 6, stored: 7 }),
        ),
        (
            case().with(|c| c.at_stored = At::Nothing),
            Told::Pending(100),
        ),
        (
            case().with(|c| c.at_stored = At::Other),
            Told::Nothing(Void::OtherMessage(7)),
        ),
        (
            case().with(|c| c.beside = (Some(2), Some(4))),
            Told::Nothing(Void::BesideEnds),
        ),
        (
            case().with(|c| c.beside = (None, Some(3))),
            Told::Nothing(Void::BesideEnds),
        ),
        (case().with(|c| c.beside = (None, None)), Told::Pending(100)),
        // Rule 6: an event has shown it.
        (
            case().with(|c| c.void = true),
            Told::Nothing(Void::OtherEvent),
        ),
        // A newer program.
        (
            case().with(|c| c.record.version = VERSION + 1),
            Told::Refused(Refusal::Version(VERSION + 1)),
        ),
    ];
    for (number, (case, expected)) in cases.into_iter().enumerate() {
        assert_eq!(told(&case), expected, "case {number}");
    }
}

#[test]
fn what_is_void_is_written_without_anything_that_was_known() {
    let verdict = case()
        .with(|c| c.at_stored = At::Other)
        .judge()
        .expect("a term");
    let Record {
        settled,
        stored,
        base,
        letters,
        delayed,
        confirmed,
        ..
    } = verdict.record;
    assert_eq!((settled, stored), (None, None));
    assert_eq!((base, letters, delayed), (0, 0, 0));
    assert_eq!(
        confirmed,
        lsn(110),
        "what may have been confirmed may still have been"
    );
    assert_eq!(verdict.watermark, Watermark::default());
}

#[test]
fn another_timeline_is_written_with_what_both_have_in_common() {
    let promoted = case().with(|c| (c.source, c.history) = (source("7", 2), vec![switch(1, 95)]));
    let verdict = promoted.judge().expect("a term");
    assert_eq!(verdict.record.source, source("7", 2));
    assert_eq!(verdict.record.history, [switch(1, 95)]);
    assert_eq!(verdict.record.confirmed, lsn(95));
    let again = promoted.with(|c| c.record = verdict.record.clone());
    assert_eq!(again.judge().expect("a term").record, verdict.record);
}

/// A standby that had not followed the first promotion is promoted in its turn, and another one.
#[test]
fn dead_timelines_are_known_up_to_where_they_were_ours() {
    let led = record();
    let led = Record {
        source: source("7", 3),
        history: vec![switch(1, 95), switch(2, 200)],
        ..led
    };
    let case = case().with(|c| {
        c.record = led;
        (c.source, c.history) = (source("7", 4), vec![switch(1, 95), switch(2, 150)]);
    });
    let verdict = case.judge().expect("a term");
    assert_eq!(verdict.record.dead, [switch(3, 150)]);
    let next = case.with(|c| {
        c.record = verdict.record.clone();
        (c.source, c.history) = (source("7", 5), vec![switch(1, 90)]);
    });
    let dead = next.judge().expect("a term").record.dead;
    assert_eq!(dead, [switch(2, 90), switch(4, 90), switch(3, 90)]);
    let elsewhere = (&source("8", 5), &[switch(1, 90)][..]);
    assert_eq!(super::dead(&next.record, elsewhere), []);
}

#[test]
fn a_gap_stays_in_the_record_and_grows() {
    let moved = case().with(|c| c.start = 120);
    let record = moved.judge().expect("a term").record;
    assert_eq!(record.confirmed, lsn(120));
    let again = moved.with(|c| (c.record, c.start) = (record, 140));
    let gap = again.judge().expect("a term").record.gap;
    let whole = Gap {
        from: lsn(110),
        to: lsn(140),
        shown_by: Shows::Slot,
    };
    assert_eq!(gap, Some(whole));
}

#[test]
fn void_streams_and_moved_slots_are_both_reported() {
    let both = case().with(|c| (c.start, c.at_stored) = (120, At::Other));
    let verdict = both.judge().expect("a term");
    assert!(verdict.gap.is_some() && verdict.void.is_some());
}

/// What is reported of a stream that lacks S, or is another one.
fn lacking(change: impl FnOnce(&mut Case)) -> Option<(u64, u64)> {
    let verdict = case().with(change).judge().expect("a term");
    assert_eq!(verdict.record.gap, verdict.gap);
    let gap = verdict.gap?;
    assert_eq!(gap.shown_by, Shows::Stream);
    Some((gap.from.as_u64(), gap.to.as_u64()))
}

#[test]
fn stream_without_what_was_stored_is_reported_unless_that_comes_again() {
    let created = |c: &mut Case| (c.created, c.start) = ("now", 110);
    // A copy that has all of it, and one that ends before S.
    assert_eq!(lacking(created), None);
    let ends = |newest: Option<u64>| {
        lacking(|c| {
            created(c);
            c.newest = newest;
        })
    };
    assert_eq!(ends(Some(100)), None);
    assert_eq!(ends(Some(99)), Some((99, 110)));
    assert_eq!(ends(None), Some((0, 110)));
    let lost = |start: u64, holds: bool| {
        lacking(|c| {
            (c.last_sequence, c.newest) = (6, Some(80));
            (c.start, c.holds) = (start, holds);
        })
    };
    // The slot sends from 80 on, with the transaction of the newest event.
    assert_eq!(lost(80, false), None);
    assert_eq!(lost(81, false), Some((80, 81)));
    // What is held comes again, and the event at S with it.
    assert_eq!(lost(100, true), None);
    assert_eq!(lost(101, true), Some((80, 101)));
    let letters = |c: &mut Case| (c.beside, c.newest) = ((Some(2), Some(4)), Some(80));
    assert_eq!(lacking(letters), Some((80, 90)));
    // A backup of both, in which nothing contradicts anything but the slot.
    let backup = case().with(|c| (c.created, c.start, c.newest) = ("now", 120, Some(100)));
    let gap = backup.judge().expect("a term").record.gap.expect("a gap");
    let expected = (lsn(110), lsn(120), Shows::Slot);
    assert_eq!((gap.from, gap.to, gap.shown_by), expected);
    let current = backup.with(|c| (c.current, c.last_sequence) = (true, 7));
    assert!(matches!(current.judge(), Err(Refusal::Moved(_))));
    // Nothing was stored yet.
    let nothing = |c: &mut Case| {
        created(c);
        (c.record.stored, c.newest) = (None, None);
    };
    assert_eq!(lacking(nothing), None);
    // Another cluster's positions say nothing.
    let elsewhere = |c: &mut Case| {
        created(c);
        (c.source, c.newest) = (source("8", 1), None);
    };
    assert_eq!(lacking(elsewhere), None);
}

#[test]
fn gaps_of_the_slot_and_of_the_stream_become_one() {
    let both = case().with(|c| {
        (c.start, c.last_sequence, c.newest) = (120, 6, Some(80));
    });
    let gap = both.judge().expect("a term").record.gap.expect("a gap");
    assert_eq!((gap.from, gap.to), (lsn(80), lsn(120)));
}

/// What comes of a slot without a record.
fn unrecorded(change: impl FnOnce(&mut Case)) -> Result<Option<(u64, u64)>, Refusal> {
    let case = case().with(change);
    let gap = judge_unrecorded(&case.facts())?;
    Ok(gap.map(|gap| (gap.from.as_u64(), gap.to.as_u64())))
}

#[test]
fn slot_without_a_record_is_new_or_known_by_the_stream_or_halts() {
    assert_eq!(unrecorded(|c| c.newest = Some(90)), Ok(None));
    assert_eq!(unrecorded(|c| c.newest = Some(89)), Ok(Some((89, 90))));
    assert_eq!(unrecorded(|c| c.newest = None), Ok(Some((0, 90))));
    let empty = |c: &mut Case| (c.newest, c.last_sequence) = (None, 0);
    assert_eq!(unrecorded(empty), Err(Refusal::Unknown));
    // Nobody has read it, or this process has confirmed it.
    let new = |c: &mut Case| (c.newest, c.last_sequence, c.slot_used) = (None, 0, false);
    assert_eq!(unrecorded(new), Ok(None));
    let own = |c: &mut Case| (c.newest, c.last_sequence, c.confirmed_here) = (None, 0, 90);
    assert_eq!(unrecorded(own), Ok(None));
    // The statistics were lost, the events were not.
    let forgotten = |c: &mut Case| (c.newest, c.slot_used) = (Some(89), false);
    assert_eq!(unrecorded(forgotten), Ok(Some((89, 90))));
}

fn pending() -> Watermark {
    case().judge().expect("a term").watermark
}

#[test]
fn events_up_to_the_watermark_are_known_once_the_last_of_them_has_come() {
    let mut watermark = pending();
    assert_eq!(watermark.take(at(95), "a"), Ok(true));
    assert!(watermark.pending());
    assert_eq!(
        watermark.keepalive(lsn(100)),
        Ok(()),
        "its commit is not passed yet"
    );
    assert_eq!(watermark.take(at(100), "p"), Ok(true));
    assert!(!watermark.pending());
    let behind = Position {
        commit: 100,
        index: 1,
    };
    assert_eq!(watermark.take(behind, "q"), Ok(false));
    assert_eq!(watermark.keepalive(lsn(300)), Ok(()));
}

/// A snapshot was put back, and other rows were committed at the same places.
#[test]
fn another_event_at_the_watermark_makes_it_void() {
    assert_eq!(pending().take(at(100), "other"), Err(Void::OtherEvent));
    assert_eq!(pending().take(at(101), "x"), Err(Void::OtherEvent));
    let mut later = case()
        .with(|c| c.start = 110)
        .judge()
        .expect("a term")
        .watermark;
    assert_eq!(later.take(at(100), "other"), Err(Void::OtherEvent));
    assert_eq!(later.take(at(101), "x"), Ok(false));
}

/// Otherwise a quiet outbox would wait indefinitely.
#[test]
fn a_keepalive_beyond_the_watermark_makes_it_void() {
    assert_eq!(pending().keepalive(lsn(101)), Err(Void::OtherEvent));
}

#[test]
fn a_record_reads_as_it_was_written() {
    let mut record = record();
    record.history = vec![switch(1, 0x1_0000_0002)];
    record.gap = Some(Gap {
        from: lsn(1),
        to: lsn(2),
        shown_by: Shows::Stream,
    });
    let json = serde_json::to_string(&record).expect("JSON");
    assert!(json.contains(r#""source":"7/1/outjet""#), "{json}");
    assert!(json.contains(r#""ended_at":"1/2""#), "{json}");
    assert!(
        json.contains(r#""position":"0000000000000064-00000000""#),
        "{json}"
    );
    assert_eq!(
        serde_json::from_str::<Record>(&json).expect("a record"),
        record
    );
}
