//! Who wrote a message: a slot of a cluster, on a timeline of its history. LSNs are used again
//! after a failover, so a position means something only on the timeline of its commit.

use super::Position;

/// Who wrote an entry: one slot of one Postgres cluster, on one timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The cluster's system identifier.
    pub system: String,
    /// The timeline on which it was read.
    pub timeline: u32,
    /// The slot.
    pub slot: String,
}

impl Source {
    /// Reads `<system identifier>/<timeline>/<slot>`; `None` if it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '/');
        let (system, timeline, slot) = (parts.next()?, parts.next()?, parts.next()?);
        let timeline = timeline.parse().ok()?;
        Some(Self {
            system: system.to_owned(),
            timeline,
            slot: slot.to_owned(),
        })
    }

    /// Whether both are the same slot of the same cluster, on whatever timeline.
    pub fn same_slot(&self, other: &Self) -> bool {
        self.system == other.system && self.slot == other.slot
    }
}

/// The text is not a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a source (expected <system identifier>/<timeline>/<slot>)")]
pub struct ParseSourceError;

impl std::str::FromStr for Source {
    type Err = ParseSourceError;

    fn from_str(text: &str) -> Result<Self, ParseSourceError> {
        Self::parse(text).ok_or(ParseSourceError)
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.system, self.timeline, self.slot)
    }
}

/// The source that writes now, and where earlier timelines of its cluster ended.
#[derive(Clone, Debug)]
pub struct Lineage {
    source: Source,
    /// (timeline, first commit position that is no longer part of it).
    ended: Vec<(u32, u64)>,
    /// The same of timelines that are no part of the history, which shared it up to there.
    dead: Vec<(u32, u64)>,
}

impl Lineage {
    /// `ended`: each earlier timeline with the position at which the next one left it
    /// (`TIMELINE_HISTORY`).
    pub fn new(source: Source, ended: Vec<(u32, u64)>) -> Self {
        let dead = Vec::new();
        Self {
            source,
            ended,
            dead,
        }
    }

    /// The source that writes now.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Each earlier timeline with the position at which the next one left it.
    pub fn ended(&self) -> &[(u32, u64)] {
        &self.ended
    }

    /// Who led on another timeline wrote what was committed before that began, too, under its name:
    /// each such timeline with the position up to which its history was ours.
    pub fn learn(&mut self, dead: Vec<(u32, u64)>) {
        self.dead = dead;
    }

    /// Whether an entry belongs to the history that the cluster has now.
    pub fn holds(&self, mark: &Mark) -> bool {
        if !mark.source.same_slot(&self.source) {
            return false;
        }
        if mark.source.timeline == self.source.timeline {
            return true;
        }
        let end = self
            .ended
            .iter()
            .chain(&self.dead)
            .find(|(timeline, _)| *timeline == mark.source.timeline);
        end.is_some_and(|(_, end)| mark.position.commit < *end)
    }

    /// Whether it can be told what an entry of our slot is. What lies on a timeline of which
    /// nothing is known may have been committed in our history, or not.
    pub fn knows(&self, mark: &Mark) -> bool {
        let mut others = self.ended.iter().chain(&self.dead);
        let timeline = mark.source.timeline;
        timeline == self.source.timeline || others.any(|(known, _)| *known == timeline)
    }

    /// Whether somebody else wrote a message: anybody, or an outjet of another slot.
    pub fn is_foreign(&self, mark: Option<&Mark>) -> bool {
        !mark.is_some_and(|mark| mark.source.same_slot(&self.source))
    }
}

/// What our headers say of a stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Who wrote it.
    pub source: Source,
    /// Its place in the commit order.
    pub position: Position,
    /// The message id.
    pub id: String,
}

/// A message of ours in a stream.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Place {
    /// Its sequence number.
    pub sequence: u64,
    /// Which event it bears.
    pub position: Position,
    /// The event's id.
    pub id: String,
}
