//! What differs between versions of nats-server.

/// A version of nats-server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u16, pub(crate) u16, pub(crate) u16);

impl Version {
    /// Ids are compared before all else; no batches, no TTL; unknown settings are forgotten.
    pub(crate) const V2_10: Self = Self(2, 10, 26);
    /// With TTL.
    pub(crate) const V2_11: Self = Self(2, 11, 11);
    /// With batches and schedules; ids are compared last; unknown settings are refused.
    pub(crate) const V2_12: Self = Self(2, 12, 8);
    /// The newest that the model was compared with.
    pub(crate) const V2_15: Self = Self(2, 15, 1);

    pub(super) fn text(self) -> String {
        format!("{}.{}.{}", self.0, self.1, self.2)
    }

    fn since(self, major: u16, minor: u16) -> bool {
        self >= Self(major, minor, 0)
    }

    /// `{"stream":"S", "seq":1}`, with a space.
    pub(super) fn spaces_acks(self) -> bool {
        !self.since(2, 12)
    }

    /// One replica looks at the id before it compares sequence numbers (three always do).
    pub(super) fn compares_ids_first(self) -> bool {
        !self.since(2, 12)
    }

    /// Three replicas keep the id of what they refuse for a wrong sequence number until the
    /// window ends.
    pub(super) fn stages_ids(self) -> bool {
        !self.since(2, 12)
    }

    /// What such an id is answered: `duplicate` of sequence 0, else error 10158.
    pub(super) fn calls_staged_duplicate(self) -> bool {
        !self.since(2, 11)
    }

    /// Of `max_bytes`, where new messages are refused.
    pub(super) fn keeps_a_byte_free(self) -> bool {
        !self.since(2, 14)
    }

    /// Says nothing to a `Nats-Rollup` that it does not know.
    pub(super) fn ignores_odd_rollups(self) -> bool {
        !self.since(2, 11)
    }

    pub(super) fn has_ttl(self) -> bool {
        self.since(2, 11)
    }

    pub(super) fn has_batches(self) -> bool {
        self.since(2, 12)
    }

    /// Ids within batches (2.12.1).
    pub(super) fn has_ids_in_batches(self) -> bool {
        self >= Self(2, 12, 1)
    }

    /// `eob` commits without storing.
    pub(super) fn has_end_of_batch(self) -> bool {
        self.since(2, 14)
    }

    /// What is not known in a request is refused.
    pub(super) fn strict(self) -> bool {
        self.since(2, 12)
    }

    /// A 503 names the subject, and CONNECT is followed by a second INFO.
    pub(super) fn names_subjects(self) -> bool {
        self.since(2, 12)
    }

    /// Of the API; 0 where INFO does not say it.
    pub(super) fn api_level(self) -> u8 {
        match (self.0, self.1) {
            (2, ..=10) => 0,
            (2, 11) => 1,
            (2, 12 | 13) => 3,
            (2, 14) => 4,
            _ => 5,
        }
    }
}
