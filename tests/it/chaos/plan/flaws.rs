//! Flaws of old nats-servers that cost what was acknowledged, whatever a writer does: a plan leaves
//! out what would show them.

use super::{NatsFault, Past, Plan, StrangerFault};

/// A release of nats-server: major, minor and patch.
pub(crate) type Release = (i64, i64, i64);

/// From here on (and in 2.10.28) the end of an emptied stream outlives `kill -9`. Before, its last
/// block was deleted before the next one named the last sequence number: killed in between, the
/// stream starts again at 1 (nats-server 5956e87, "Delete lmb only after successfully creating a
/// new msg block").
const EMPTIED: Release = (2, 11, 2);

/// From here on, what is refused for the sequence that it expects does not enter the log of three
/// replicas. Before, a replica that is killed forgets how many refusals it had counted, and takes
/// the last messages that it has stored for new ones when it reads its log again. One that expects
/// a sequence is refused, which makes up for it. A stranger's is stored twice, and the event behind
/// it is refused: that replica lacks what all have acknowledged (v2.10.26, `applyStreamEntries` and
/// `clfs` in jetstream_cluster.go).
///
/// ```text
///  log      e5  refused  refused  stranger  e7        snapshot: 1 refusal
///  leader   5                     6         7
///  killed   5                     6         6 again, so that e7, which expects 6, is refused
/// ```
const REPLAYED: Release = (2, 12, 0);

impl Plan {
    /// Where a nats-server that is killed would lose what it has acknowledged by a flaw of its own,
    /// which no writer can make up for, it is stopped instead. `is`: whether it is of a release, or
    /// a later one.
    pub(crate) fn spare(&mut self, is: impl Fn(Release) -> bool) {
        let emptied = self.past == Some(Past::Consumed) && !is(EMPTIED);
        let replayed = self.replicas > 1 && self.has_writers() && !is(REPLAYED);
        let faults = self.nats.iter_mut().map(|planned| &mut planned.fault);
        let kills = faults.filter(|fault| **fault == NatsFault::Kill);
        if emptied || replayed {
            kills.for_each(|fault| *fault = NatsFault::Stop);
        }
    }

    /// Whether strangers write into the stream.
    pub(super) fn has_writers(&self) -> bool {
        let mut faults = self.strangers.iter().map(|planned| planned.fault);
        faults.any(StrangerFault::displaces)
    }
}
