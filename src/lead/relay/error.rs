//! Why a stint of streaming ends, and what is to be done about it.

use std::time::Duration;

use crate::error::{Exit, Failure, Problem, chain};
use crate::event::assemble::{AssembleError, Rejection};
use crate::lead::record::not_written;
use crate::lead::watermark::Void;
use crate::pg::Error as PgError;
use crate::pg::params::Params;

/// Why a relay ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection to Postgres.
    #[error("stream from Postgres")]
    Postgres(#[source] PgError),
    /// What came over it.
    #[error("read the write-ahead log")]
    Assemble(#[source] AssembleError),
    /// A row that cannot become an event.
    #[error(transparent)]
    Rejected(Box<Rejection>),
    /// The server passes over rows because it does not find the publication.
    #[error("{0}")]
    PublicationSkipped(String),
    /// The sink has ended.
    #[error("the sink ended")]
    Sink(#[source] Failure),
    /// No event got through for too long.
    #[error("no event gets through for {} s", .waited.as_secs())]
    SinkDown {
        /// What the sink says.
        failure: Failure,
        /// For how long.
        waited: Duration,
    },
    /// The server cannot shut down before we have confirmed what we cannot confirm yet.
    #[error("Postgres has waited for {} s", .0.as_secs())]
    Awaited(Duration),
    /// The record of what is settled could not be written.
    #[error("the record was not written for {} s", .0.as_secs())]
    Unrecorded(Duration),
    /// Another instance has claimed the record.
    #[error("another instance leads, in term {0}")]
    Superseded(u64),
    /// The record speaks of another event.
    #[error("the record does not hold: {0}")]
    Void(Void),
    /// The server says nothing, though it was asked.
    #[error("Postgres has been silent for {} s", .0.as_secs())]
    Silent(Duration),
}

impl Error {
    /// Whether it is what the log says that ended the stint, not how it was carried.
    pub(super) fn is_of_the_log(&self) -> bool {
        match self {
            Self::Assemble(_) | Self::Rejected(_) | Self::PublicationSkipped(_) => true,
            Self::Postgres(_)
            | Self::Sink(_)
            | Self::SinkDown { .. }
            | Self::Awaited(_)
            | Self::Unrecorded(_)
            | Self::Superseded(_)
            | Self::Void(_)
            | Self::Silent(_) => false,
        }
    }

    /// For whom it may concern, with the fix.
    pub fn failure(&self, params: &Params) -> Failure {
        match self {
            Self::Postgres(error) => error.failure(params),
            Self::Assemble(error) => Failure::halt(Exit::Config, assemble_problem(error)),
            Self::Rejected(rejection) => Failure::halt(Exit::Halted, rejection_problem(rejection)),
            Self::PublicationSkipped(message) => Failure::halt(
                Exit::Config,
                Problem::new(
                    "the publication does not exist for what is read now",
                    message,
                    "`outjet check` shows what is missing; what was written without a publication \
                     is not published",
                ),
            ),
            Self::Sink(failure) | Self::SinkDown { failure, .. } => failure.clone(),
            Self::Awaited(waited) => Failure::retry(Problem::new(
                format!("Postgres at {params} waits for events that cannot be confirmed yet"),
                format!(
                    "it has asked for {} s, as it does before it shuts down, and none was stored, \
                     or all are held back (stream.hold)",
                    waited.as_secs()
                ),
                "nothing: it need not wait any longer; they are read again when it is up, and what \
                 is stored is skipped",
            )),
            Self::Unrecorded(waited) => not_written(&format!(
                "nothing was stored in its bucket for {} s",
                waited.as_secs()
            )),
            Self::Superseded(term) => Failure::retry(Problem::new(
                "another instance leads",
                format!("it has claimed the record of what is settled, in term {term}"),
                "nothing: this one stands by; if both claim it again and again, see that they use \
                 the same database",
            )),
            Self::Void(void) => Failure::retry(Problem::new(
                "the record of what is settled does not hold",
                format!("Postgres sends other events than those it speaks of: {void}"),
                "nothing: the stream is searched instead; was the database restored?",
            )),
            Self::Silent(silence) => Failure::retry(Problem::new(
                format!("Postgres at {params} is silent"),
                format!(
                    "nothing was heard for {} s, though it was asked",
                    silence.as_secs()
                ),
                "nothing: the connection is made anew; look at the network if it repeats",
            )),
        }
    }
}

fn assemble_problem(error: &AssembleError) -> Problem {
    match error {
        AssembleError::Mapping(missing) => Problem::new(
            format!("table {} has no column {}", missing.table, missing.column),
            format!(
                "{} comes from it, and the next row was written when the columns were {}",
                missing.field, missing.found
            ),
            format!(
                "name the column of that time in `columns` of this table, {{{}: …}}: rows keep \
                 the names that they were written with, whatever is renamed later",
                missing.field
            ),
        ),
        AssembleError::Unmapped(table) => Problem::new(
            format!("rows of {table} arrive, which is not configured"),
            "the publication contains the table, the configuration does not",
            format!(
                "add {table} to tables, or take it out: ALTER PUBLICATION … DROP TABLE {table}"
            ),
        ),
        AssembleError::Decode(_)
        | AssembleError::OutOfTurn(_)
        | AssembleError::Undescribed(_)
        | AssembleError::Row(_) => Problem::new(
            "the write-ahead log cannot be read on",
            chain(error),
            "nothing was skipped; please report this with the Postgres version",
        ),
    }
}

fn rejection_problem(rejection: &Rejection) -> Problem {
    Problem::new(
        format!(
            "row {:?} of {} cannot become an event",
            rejection.id, rejection.table
        ),
        format!(
            "{} (at {}); publish.on_reject is halt",
            rejection.reason, rejection.position
        ),
        "change the mapping so that it fits; the row itself stands in the write-ahead log",
    )
}
