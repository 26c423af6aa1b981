//! What may happen in a history: life, and faults. A seed leaves some of the faults out.

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Write,
    Overlap,
    Rollback,
    Traffic,
    Wait,
    Cut,
    Stall,
    Weather,
    Kill,
    Stop,
    Start,
    Checkpoint,
    Running,
    CrashPostgres,
    ShutDownPostgres,
    Terminate,
    Freeze,
    RestartNats,
    Leaderless,
    Vanish,
    Purge,
    Stranger,
    Copy,
    Advance,
    Recreate,
    Promote,
    Signal,
    Unpublished,
    LoseTail,
    LoseRecord,
    Remake,
    Full,
    PauseNats,
    LameDuck,
    TerminateSessions,
    AlterTable,
    Synchronous,
    LoseSlot,
}

impl Deed {
    /// Each as often as it stands here.
    pub(crate) const ALL: [Self; 50] = [
        Self::Write,
        Self::Write,
        Self::Write,
        Self::Write,
        Self::Write,
        Self::Write,
        Self::Overlap,
        Self::Overlap,
        Self::Rollback,
        Self::Traffic,
        Self::Wait,
        Self::Wait,
        Self::Cut,
        Self::Cut,
        Self::Cut,
        Self::Stall,
        Self::Weather,
        Self::Kill,
        Self::Kill,
        Self::Stop,
        Self::Start,
        Self::Start,
        Self::Checkpoint,
        Self::Running,
        Self::CrashPostgres,
        Self::Terminate,
        Self::RestartNats,
        Self::ShutDownPostgres,
        Self::Freeze,
        Self::Leaderless,
        Self::Vanish,
        Self::Vanish,
        Self::Purge,
        Self::Stranger,
        Self::Copy,
        Self::Advance,
        Self::Recreate,
        Self::Promote,
        Self::Signal,
        Self::Unpublished,
        Self::LoseTail,
        Self::LoseRecord,
        Self::Remake,
        Self::Full,
        Self::PauseNats,
        Self::LameDuck,
        Self::TerminateSessions,
        Self::AlterTable,
        Self::Synchronous,
        Self::LoseSlot,
    ];

    /// With it, what has vanished and bore an id may have been another event than the one that the
    /// server's memory of ids is asked for.
    pub(crate) fn leaves_ids_ambiguous(self) -> bool {
        matches!(
            self,
            Self::Promote
                | Self::Advance
                | Self::Recreate
                | Self::LoseTail
                | Self::LoseRecord
                | Self::Remake
        )
    }

    /// Three replicas do not do it.
    pub(crate) fn is_of_a_lone_server(self) -> bool {
        matches!(self, Self::LoseTail | Self::LoseRecord)
    }

    /// No fault, but what faults happen to.
    pub(crate) fn is_life(self) -> bool {
        matches!(
            self,
            Self::Write
                | Self::Overlap
                | Self::Rollback
                | Self::Traffic
                | Self::Wait
                | Self::Start
                | Self::AlterTable
        )
    }
}
