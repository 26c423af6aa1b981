//! A stream that others write, too (`stream.shared`). Without a chain nothing refuses an event
//! whose predecessor was refused, nor what a dead connection still delivers: events go out one
//! behind the other all the same, and what may have been lost is sent again from the first on, with
//! the same `Nats-Msg-Id`, once the stream was asked what it holds.
//!
//! One connection delivers a beginning of what was sent on it, so that the order holds over broken
//! ones as long as the server remembers ids; it is disturbed where a server refuses an event and
//! takes later ones.
//!
//! What the server calls a duplicate is looked at: another writer may have used the id. What is not
//! ours there, or is there no more, does not count: better twice than never.

use super::super::error::Error;
use super::super::tail;
use super::Appender;
use super::epoch::Epoch;

impl Appender {
    pub(crate) fn shared(&self) -> bool {
        self.options.stream.shared
    }

    /// Where the waiting event is, if the server has called it a duplicate, and of itself.
    pub(crate) async fn own_duplicate(&self, epoch: &mut Epoch) -> Result<Option<u64>, Error> {
        let waiting = self.ring.waiting().expect("an event waits");
        let Some(sequence) = waiting.duplicate_of else {
            return Ok(None);
        };
        let stream = &epoch.streams.stream;
        let stands = tail::stands_at(stream, (sequence, &self.lineage), waiting.event);
        let stands = epoch.link.during(Box::pin(stands)).await?;
        Ok(stands.then_some(sequence))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bytes::Bytes;
    use proptest::prelude::*;

    use crate::event::{Event, Headers, Position};
    use crate::sink::jetstream::append::ring::{Passed, Ring};

    fn event(index: usize) -> Event {
        Event {
            position: Position {
                commit: 1,
                index: index as u32,
            },
            id: index.to_string(),
            subject: "s".to_owned(),
            headers: Headers::default(),
            payload: Bytes::new(),
            table: "outbox.events".into(),
            deliver_at: None,
            expires_at: None,
            replayed: false,
            rejected: None,
            wrapped: None,
            followers: 0,
            known: false,
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push,
        /// The next event is judged, and goes out unless it stands there.
        Send,
        /// A message of a connection arrives, the newest or an older one, and is answered.
        Arrive {
            connection: prop::sample::Index,
            heard: bool,
            refused: bool,
        },
        Stranger,
        Break,
    }

    fn step() -> impl Strategy<Value = Step> {
        let arrive = (any::<prop::sample::Index>(), any::<bool>(), 0..6);
        prop_oneof![
            3 => Just(Step::Push),
            4 => Just(Step::Send),
            6 => arrive.prop_map(|(connection, heard, of_six)| Step::Arrive {
                connection,
                heard,
                refused: of_six == 0,
            }),
            1 => Just(Step::Stranger),
            1 => Just(Step::Break),
        ]
    }

    /// A stream as a plain list, in which a stranger's message is `None`, and what is on its way to
    /// it on each connection, the newest last.
    struct World {
        ring: Ring,
        pushed: usize,
        settled: usize,
        /// Of these the ring has heard, or they were found.
        known: Vec<usize>,
        stream: Vec<Option<usize>>,
        ways: Vec<VecDeque<usize>>,
        /// What the guard of this connection has seen.
        seen: std::ops::Range<usize>,
    }

    impl World {
        fn place_of(&self, event: usize) -> Option<u64> {
            let at = self.stream.iter().position(|stored| *stored == Some(event));
            at.map(|at| at as u64 + 1)
        }

        fn send(&mut self) {
            let Some(waiting) = self.ring.waiting() else {
                return;
            };
            let event = waiting.event.position.index as usize;
            let own = waiting.duplicate_of.is_some();
            let stands = self.stream[self.seen.clone()].contains(&Some(event));
            if stands || own {
                self.ring.settle(Passed::Known(None));
                self.known.push(event);
            } else {
                assert_eq!(self.ring.send().0, event as u64);
                self.ways.last_mut().expect("a connection").push_back(event);
            }
        }

        fn arrive(&mut self, way: usize, heard: bool, refused: bool) {
            let Some(event) = self.ways[way].pop_front() else {
                return;
            };
            let heard = heard && way + 1 == self.ways.len();
            let (number, place) = (event as u64, self.place_of(event));
            match (refused, place) {
                (true, _) if heard => assert!(self.ring.refuse(number)),
                (true, _) => {}
                (false, Some(place)) if heard => self.ring.refuse_duplicate(number, place),
                (false, Some(_)) => {}
                (false, None) => {
                    self.stream.push(Some(event));
                    let sequence = self.stream.len() as u64;
                    if heard {
                        self.ring
                            .acknowledge(number, (sequence, 1))
                            .expect("it fits");
                        self.known.push(event);
                    }
                }
            }
        }

        fn begin_again(&mut self) {
            let last = self.stream.len() as u64;
            let floor = self.ring.floor().map_or(last, |floor| floor.min(last));
            self.seen = floor as usize..last as usize;
            self.ring.restart(last);
            self.ways.push(VecDeque::new());
        }

        fn settle(&mut self) {
            let settled = self.ring.take_settled();
            self.settled += settled.stored + settled.known;
        }

        /// What may be stored, as far as the ring knows, would be looked for where it stands.
        fn check(&self) {
            let floor = self.ring.floor();
            for event in self.settled..self.pushed {
                let Some(place) = self.place_of(event) else {
                    continue;
                };
                if !self.known.contains(&event) {
                    assert!(
                        floor.is_some_and(|floor| floor < place),
                        "{event} at {place}"
                    );
                }
            }
        }
    }

    proptest! {
        /// As long as the server remembers ids: whatever is refused, unheard or late.
        #[test]
        fn each_event_stands_there_once(steps in prop::collection::vec(step(), 1..150)) {
            let mut world = World {
                ring: Ring::new(true),
                pushed: 0,
                settled: 0,
                known: Vec::new(),
                stream: Vec::new(),
                ways: vec![VecDeque::new()],
                seen: 0..0,
            };
            for step in steps {
                match step {
                    Step::Push => {
                        world.ring.push(event(world.pushed));
                        world.pushed += 1;
                    }
                    Step::Send => world.send(),
                    Step::Arrive { connection, heard, refused } => {
                        let way = connection.index(world.ways.len());
                        world.arrive(way, heard, refused);
                    }
                    Step::Stranger => world.stream.push(None),
                    Step::Break => world.begin_again(),
                }
                world.settle();
                world.check();
            }
            while world.settled < world.pushed {
                world.begin_again();
                while world.ring.waiting().is_some() {
                    world.send();
                }
                for way in 0..world.ways.len() {
                    while !world.ways[way].is_empty() {
                        world.arrive(way, true, false);
                    }
                }
                world.settle();
            }
            let mut stored: Vec<usize> = world.stream.into_iter().flatten().collect();
            stored.sort_unstable();
            prop_assert_eq!(stored, (0..world.pushed).collect::<Vec<_>>());
        }
    }
}
