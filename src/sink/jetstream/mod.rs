//! Appends to one JetStream stream, of which this sink is the only writer: in order, each event
//! once, whatever breaks. Knows no LSN and no Postgres. What holds of it in a stream that others
//! write, too, says [`append::shared`].
//!
//! Every publish expects the sequence that its predecessor made, so whatever is refused or lost
//! takes everything behind it along, and what a dead connection still delivers late fits nowhere.
//! Every publish asks for its acknowledgement, and only the predicted one settles an event: a
//! stranger's message could otherwise stand in for ours (the chain proves a count, not an
//! identity). Anything else means that the outcome is unknown. Then the *epoch* ends, with its
//! connection; the next one asks the stream which of the unsettled events it holds ([`tail`],
//! [`crate::guard`]) and sends the others. There is no other way to recover.
//!
//! A stranger's message costs a round trip, and is told. It never halts the sink, however often it
//! comes: nothing is lost by it, and whoever may publish into the stream could otherwise stop the
//! outbox for good with two messages a minute.
//!
//! `Nats-Msg-Id` is sent for consumers. The server's answer `duplicate` is never believed: ids are
//! used again, and some servers call what they refused a duplicate.

mod answers;
pub(crate) mod append;
mod aside;
mod begin;
mod bucket;
mod client;
mod error;
mod headers;
mod ingress;
mod inspection;
mod messages;
mod names;
mod options;
mod read;
mod reply;
mod rights;
pub mod streams;
mod tail;

use tokio::sync::mpsc;

use self::append::Appender;
use self::append::epoch::Epoch;
pub use self::begin::Standing;
pub use self::error::Error;
pub use self::inspection::{Inspection, inspect};
pub use self::options::{
    BEHIND_MAX, Buries, Ingress, NatsOptions, Options, Storage, StreamOptions,
};
pub use self::read::follower::Follower;
pub use self::read::ledger::{Ledger, Line, Past};
pub use self::read::letterbox::{DeadLetter, Letterbox};
pub use self::read::schedules::{Schedule, Schedules};
pub use self::read::shelf::{BucketFound, Shelf, bucket_config, inspect_bucket};
pub use self::read::transcript::{Message as StoredMessage, Transcript};
pub use self::rights::check_rights;
use crate::error::Failure;
use crate::event::lineage::Lineage;
use crate::sink::running::Running;
use crate::sink::{Order, Report};

/// The sink of one term.
pub struct JetStream {
    appender: Appender,
    /// The first one.
    epoch: Epoch,
}

impl JetStream {
    /// Connects, checks the stream or creates it, and checks that it is ours to write.
    pub async fn open(options: Options, lineage: Lineage) -> Result<Self, Failure> {
        let mut appender = Appender::new(options, lineage);
        match appender.open_epoch().await {
            Ok(epoch) => Ok(Self { appender, epoch }),
            Err(error) => Err(error.failure(&appender.options)),
        }
    }

    /// Appends what comes on a task of its own, as [`run`](Self::run) does.
    pub fn start(self, events_max: usize) -> Running {
        Running::start(events_max, |orders, reports| self.run(orders, reports))
    }

    /// Appends what comes until the channel is closed. Ends with a failure if a person must act.
    /// What is known of the events that come must have been said ([`begin`](Self::begin)).
    pub async fn run(
        self,
        mut orders: mpsc::Receiver<Order>,
        reports: mpsc::Sender<Report>,
    ) -> Result<(), Failure> {
        let Self {
            mut appender,
            epoch,
        } = self;
        let mut ended = appender.run_epoch(epoch, &mut orders, &reports).await;
        while let Err(error) = ended {
            appender.give_up_or_wait(error, &reports).await?;
            ended = match Box::pin(appender.next_epoch(&reports)).await {
                Ok(epoch) => appender.run_epoch(epoch, &mut orders, &reports).await,
                Err(error) => Err(error),
            };
        }
        Ok(())
    }
}
