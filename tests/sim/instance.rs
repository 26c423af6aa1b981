//! One outjet: the program from its configuration on, but for what only watches it (HTTP, samples,
//! housekeeping).

use std::collections::BTreeMap;
use std::sync::Arc;

use outjet::config::Config;
use outjet::error::Failure;
use outjet::lead::term;
use outjet::net::Network;
use outjet::watch::vitals::{State, Vitals};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::net::Net;

/// A process, running or not.
pub(crate) struct Instance {
    /// Which links are its own.
    pub(crate) seat: usize,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Failure>>,
    vitals: Arc<Vitals>,
}

impl Instance {
    /// Starts it with this configuration, and whatever connections `net` gives. Within a `LocalSet`.
    pub(crate) fn start(net: &Net, seat: usize, config: &Config) -> Self {
        let network = Network::of(net.seat(seat));
        let mut params = config.params(&BTreeMap::new()).expect("a database");
        params.network = network.clone();
        let mut sink = config.sink_options();
        sink.nats.network = network;
        let vitals = Arc::new(Vitals::new(config.postgres.takeover_after));
        let options = term::Options {
            preflight: config.preflight_options(),
            assemble: config.assemble_options(&params.dbname).expect("a mapping"),
            sink,
            relay: config.relay_options(),
            exit_on_halt: false,
            vitals: vitals.clone(),
            halt_retry: config.postgres.halt_retry,
            params,
        };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let run = async move { term::run(&options, async || Ok(()), &stopped).await };
        Self {
            seat,
            stop,
            task: tokio::task::spawn_local(run),
            vitals,
        }
    }

    /// SIGTERM.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// SIGKILL: what it has written is still on its way.
    pub(crate) fn kill(&self) {
        self.task.abort();
    }

    /// Whether it has ended, and was not killed. It ends only when it is told to.
    pub(crate) fn ended(&self) -> bool {
        self.task.is_finished()
    }

    /// What it says of itself.
    pub(crate) fn state(&self) -> State {
        self.vitals.read().state
    }

    /// Why it does not lead, in words.
    pub(crate) fn problem(&self) -> String {
        let problem = self.vitals.read().problem;
        problem.map_or_else(String::new, |problem| {
            format!("{}: {}", problem.problem, problem.cause)
        })
    }

    /// How many events it may have stored twice, by its own account.
    pub(crate) fn uncertain(&self) -> u64 {
        self.vitals.metrics.events_uncertain.get()
    }

    /// Bytes of the log that may never have been read, by its own account.
    pub(crate) fn gap(&self) -> bool {
        self.vitals.metrics.slot_gap_bytes.get() > 0 || self.vitals.metrics.gap_events.get() > 0
    }
}
