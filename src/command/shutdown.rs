//! From signals to a stop: the first SIGTERM or SIGINT asks for an orderly end, the second ends the
//! process at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The signals that end the program.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from their default, which is to end the process.
    pub(super) fn take() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self {
            terminate,
            interrupt,
        })
    }

    /// Cancels `stop` at the first signal; returns at the second.
    pub(super) async fn watch(mut self, stop: &CancellationToken) {
        let name = self.next().await;
        info!(
            signal = name,
            "stopping: what is under way is stored and confirmed first"
        );
        stop.cancel();
        let name = self.next().await;
        warn!(signal = name, "stopping at once");
    }

    /// Waits for a signal and names it. Cancel-safe: one that came is not lost.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
