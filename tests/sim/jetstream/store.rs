//! The messages of one stream, from its creation to its end.

use std::collections::{BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};

use super::config::Storage;
use super::{Gone, Incarnation, Stored, Writer};

/// What is about to be stored.
#[derive(Clone, Copy)]
pub(super) struct Draft<'a> {
    pub(super) subject: &'a [u8],
    pub(super) headers: &'a [u8],
    pub(super) body: &'a [u8],
    pub(super) writer: Writer,
    pub(super) time: i64,
}

/// The messages.
pub(super) struct Store {
    pub(super) past: Incarnation,
    storage: Storage,
    /// For each sequence number from `first` to `last`, where it is in `past`; `GONE` if nowhere.
    live: VecDeque<u32>,
    first: u64,
    last: u64,
    count: u64,
    bytes: u64,
    last_time: i64,
    /// When messages with a `Nats-TTL` vanish.
    ends: BTreeSet<(i64, u64)>,
}

const GONE: u32 = u32::MAX;

impl Store {
    pub(super) fn new(past: Incarnation, storage: Storage, first: u64) -> Self {
        let (first, last) = (first.max(1), first.max(1) - 1);
        Self {
            past,
            storage,
            live: VecDeque::new(),
            first,
            last,
            count: 0,
            bytes: 0,
            last_time: 0,
            ends: BTreeSet::new(),
        }
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// As STREAM.INFO says it: 0 of a stream that never held anything.
    pub(super) fn first(&self) -> u64 {
        match (self.last, self.count) {
            (0, 0) => 0,
            _ => self.first,
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn last_time(&self) -> i64 {
        self.last_time
    }

    pub(super) fn deleted(&self) -> impl Iterator<Item = u64> {
        let places = self.live.iter().zip(self.first..);
        places
            .filter(|(place, _)| **place == GONE)
            .map(|(_, sequence)| sequence)
    }

    pub(super) fn at(&self, sequence: u64) -> Option<&Stored> {
        let offset = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        match *self.live.get(offset)? {
            GONE => None,
            place => Some(&self.past.messages[place as usize]),
        }
    }

    /// Those that are there.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Stored> {
        let live = self.live.iter().filter(|place| **place != GONE);
        live.map(|place| &self.past.messages[*place as usize])
    }

    /// Those that are there from a sequence number on.
    pub(super) fn from(&self, sequence: u64) -> impl Iterator<Item = &Stored> {
        let skipped = sequence.saturating_sub(self.first);
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        let live = self.live.iter().skip(skipped);
        live.filter(|place| **place != GONE)
            .map(|place| &self.past.messages[*place as usize])
    }

    pub(super) fn last_of(&self, subject: &[u8]) -> Option<&Stored> {
        self.iter().rev().find(|stored| stored.subject == subject)
    }

    pub(super) fn size(&self, (subject, headers, body): (usize, usize, usize)) -> u64 {
        let bytes = match self.storage {
            Storage::Memory => subject + headers + body + 16,
            Storage::File if headers == 0 => 22 + subject + body + 8,
            Storage::File => 22 + subject + 4 + headers + body + 8,
        };
        bytes as u64
    }

    fn size_of(&self, stored: &Stored) -> u64 {
        let lengths = (
            stored.subject.len(),
            stored.headers.len(),
            stored.body.len(),
        );
        self.size(lengths)
    }

    /// No two messages have the same time.
    pub(super) fn append(&mut self, draft: Draft<'_>) -> u64 {
        let Draft {
            subject,
            headers,
            body,
            writer,
            time,
        } = draft;
        let mut whole = BytesMut::with_capacity(subject.len() + headers.len() + body.len());
        whole.extend_from_slice(subject);
        whole.extend_from_slice(headers);
        whole.extend_from_slice(body);
        let mut whole = whole.freeze();
        let stored_subject = whole.split_to(subject.len());
        let stored_headers = whole.split_to(headers.len());
        self.last += 1;
        self.last_time = time.max(self.last_time + 1);
        let stored = Stored {
            sequence: self.last,
            subject: stored_subject,
            headers: stored_headers,
            body: whole,
            time: self.last_time,
            writer,
            gone: None,
        };
        self.bytes += self.size_of(&stored);
        self.count += 1;
        let place = u32::try_from(self.past.messages.len()).expect("a history that ends");
        self.live.push_back(place);
        self.past.messages.push(stored);
        self.last
    }

    pub(super) fn end_at(&mut self, sequence: u64, time: i64) {
        self.ends.insert((time, sequence));
    }

    /// The next message that vanishes by its `Nats-TTL`.
    pub(super) fn next_end(&self) -> Option<(i64, u64)> {
        self.ends.first().copied()
    }

    /// The oldest that is there.
    pub(super) fn oldest(&self) -> Option<&Stored> {
        self.iter().next()
    }

    /// Whether there was one.
    pub(super) fn remove(&mut self, sequence: u64, (at, gone): (i64, Gone)) -> bool {
        let Some(offset) = sequence.checked_sub(self.first) else {
            return false;
        };
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let place = match self.live.get_mut(offset) {
            None | Some(&mut GONE) => return false,
            Some(place) => std::mem::replace(place, GONE),
        };
        let stored = &mut self.past.messages[place as usize];
        stored.gone = Some((at, gone));
        let stored = &self.past.messages[place as usize];
        self.bytes -= self.size_of(stored);
        self.count -= 1;
        while self.live.front() == Some(&GONE) {
            self.live.pop_front();
            self.first += 1;
        }
        if !self.ends.is_empty() {
            self.ends.retain(|(_, of)| *of != sequence);
        }
        true
    }

    /// What is stored behind a sequence number was never stored, and what had to go for it is
    /// there again.
    pub(super) fn truncate(&mut self, last: u64, at: i64) {
        if last >= self.last {
            return;
        }
        let mut since = i64::MAX;
        for stored in &mut self.past.messages {
            let lost = matches!(stored.gone, Some((_, Gone::Lost)));
            if stored.sequence > last && !lost {
                since = since.min(stored.time);
                stored.gone = Some((at, Gone::Lost));
            }
        }
        for stored in &mut self.past.messages {
            if let Some((at, Gone::Replaced | Gone::Limit)) = stored.gone
                && at >= since
                && stored.sequence <= last
            {
                stored.gone = None;
            }
        }
        self.last = last;
        self.ends.retain(|(_, sequence)| *sequence <= last);
        self.count_again();
    }

    /// Finds what is there.
    fn count_again(&mut self) {
        let live = self.past.messages.iter().filter(|it| it.gone.is_none());
        let mut live: Vec<u64> = live.map(|stored| stored.sequence).collect();
        live.sort_unstable();
        self.first = live.first().map_or(self.last + 1, |first| *first);
        self.count = live.len() as u64;
        let span = usize::try_from(self.last + 1 - self.first).expect("a history that ends");
        self.live = VecDeque::from(vec![GONE; span]);
        self.bytes = 0;
        self.last_time = 0;
        for (place, stored) in self.past.messages.iter().enumerate() {
            if stored.gone.is_none() {
                let offset = usize::try_from(stored.sequence - self.first).expect("within it");
                self.live[offset] = u32::try_from(place).expect("a history that ends");
                self.bytes += self.size_of(stored);
                self.last_time = self.last_time.max(stored.time);
            }
        }
    }

    pub(super) fn end(&mut self, (at, gone): (i64, Gone)) {
        let all: Vec<u64> = self.iter().map(|stored| stored.sequence).collect();
        for sequence in all {
            self.remove(sequence, (at, gone));
        }
        self.past.ended = Some(at);
    }

    /// How many subjects its messages have.
    pub(super) fn subjects(&self) -> usize {
        let subjects: BTreeSet<&Bytes> = self.iter().map(|stored| &stored.subject).collect();
        subjects.len()
    }
}
