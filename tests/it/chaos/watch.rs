//! Looks at the servers from beside the faults: whether the stream grows, and who leads.

use std::time::Duration;

use async_nats::jetstream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::STREAM;
use crate::harness::postgres::Session;

/// A fault hit a running stream if the stream had grown at most this long before it: some looks.
const MOMENTS: Duration = Duration::from_millis(300);

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(40);

/// A look at a server that is away or stands still is given up then.
const LOOK_WITHIN: Duration = Duration::from_millis(500);

/// What a leader's connections call themselves, before the copy's number.
pub(crate) const NAMES: &str = "outjet-";

/// What the connections of commands call themselves.
const OPERATOR: &str = "outjet";

/// Who holds the slot. Others than our copies may not.
const LEADER: &str = "
    SELECT s.active_pid, a.application_name FROM pg_replication_slots AS s
    JOIN pg_stat_activity AS a ON a.pid = s.active_pid WHERE s.slot_name = 'outjet'";

/// Looks on until it is dropped.
pub(crate) struct Watch {
    growth: watch::Receiver<Growth>,
    leader: watch::Receiver<Leader>,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Growth {
    last: u64,
    at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Leader {
    copy: usize,
    changes: u64,
}

impl Watch {
    /// Begins to look.
    pub(crate) fn start(jetstream: jetstream::Context, postgres: &str) -> Self {
        let (growth_sender, growth) = watch::channel(Growth::default());
        let (leader_sender, leader) = watch::channel(Leader::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(watch_growth(jetstream, growth_sender));
        tasks.spawn(watch_leader(postgres.to_owned(), leader_sender));
        Self {
            growth,
            leader,
            _tasks: tasks,
        }
    }

    /// Whether the stream grew within the last moments.
    pub(crate) fn stream_runs(&self) -> bool {
        let grew = self.growth.borrow().at;
        grew.is_some_and(|at| at.elapsed() < MOMENTS)
    }

    /// The copy that holds the slot, or held it last.
    pub(crate) fn leader(&self) -> usize {
        self.leader.borrow().copy
    }

    /// How often another copy was found to lead.
    pub(crate) fn takeovers(&self) -> u64 {
        self.leader.borrow().changes
    }
}

async fn watch_growth(jetstream: jetstream::Context, growth: watch::Sender<Growth>) {
    loop {
        if let Ok(Ok(stream)) = timeout(LOOK_WITHIN, jetstream.get_stream(STREAM)).await {
            let last = stream.cached_info().state.last_sequence;
            growth.send_modify(|growth| {
                if last > growth.last {
                    growth.at = Some(Instant::now());
                }
                // A broker that forgets makes it less.
                growth.last = last;
            });
        }
        sleep(INTERVAL).await;
    }
}

async fn watch_leader(url: String, leader: watch::Sender<Leader>) {
    let mut session = None;
    loop {
        sleep(INTERVAL).await;
        let Some(connected) = &session else {
            session = Session::try_connect(&url).await.ok();
            continue;
        };
        match timeout(LOOK_WITHIN, holder(connected)).await {
            Ok(Ok(Some((_, copy)))) => leader.send_modify(|leader| {
                leader.changes += u64::from(leader.copy != copy);
                leader.copy = copy;
            }),
            Ok(Ok(None)) => {}
            Ok(Err(_)) | Err(_) => session = None,
        }
    }
}

/// The walsender that serves the slot, and the copy it serves. `outjet recover` may have the slot
/// for a moment, and so may who moves it.
pub(crate) async fn holder(
    session: &Session,
) -> Result<Option<(u32, usize)>, tokio_postgres::Error> {
    let rows = session.query(LEADER, &[]).await?;
    Ok(rows.first().and_then(|row| {
        let name: String = row.get(1);
        if name == OPERATOR || name.is_empty() {
            return None;
        }
        let number = name.strip_prefix(NAMES).and_then(|copy| copy.parse().ok());
        let pid = u32::try_from(row.get::<_, i32>(0)).expect("a process id");
        let number = number.unwrap_or_else(|| panic!("{name} holds the slot"));
        Some((pid, number))
    }))
}
