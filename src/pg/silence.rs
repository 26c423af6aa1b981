//! Whether a server that says nothing is at work or stalled: a long query and a server that has
//! stopped are silent alike, but the one that works lets a new session in.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::conn::Conn;
use super::error::{Error, Kind};
use super::params::Params;

/// What has come on the sessions of this process since they were logged in, in bytes.
static HEARD_BYTES: AtomicU64 = AtomicU64::new(0);

/// After as much silence a new session is tried: long enough for few commands to need one.
pub const SILENCE_MAX: Duration = Duration::from_secs(15);

/// A session has received something.
pub(super) fn heard(bytes: usize) {
    HEARD_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// Waits until the server is silent and lets no new session in within `connect_timeout`; says why.
/// Whatever a server answers to a login, be it a refusal, shows that it works.
pub async fn stalled(params: &Params) -> Error {
    loop {
        let before = HEARD_BYTES.load(Ordering::Relaxed);
        tokio::time::sleep(SILENCE_MAX).await;
        if HEARD_BYTES.load(Ordering::Relaxed) != before {
            continue;
        }
        match Conn::connect(params, &[]).await {
            Ok(conn) => conn.close().await,
            Err(error) if error.unanswered() && HEARD_BYTES.load(Ordering::Relaxed) == before => {
                return error;
            }
            Err(error) => tracing::debug!(%error, "a silent server answers"),
        }
    }
}

impl Error {
    /// Nobody has answered; of several hosts, one of them, which may be the one in use.
    fn unanswered(&self) -> bool {
        match self.kind() {
            Kind::Resolve(_)
            | Kind::Unreachable(_)
            | Kind::Timeout(_)
            | Kind::Io(_)
            | Kind::Closed => true,
            Kind::Hosts(errors) => errors.iter().any(Self::unanswered),
            _ => false,
        }
    }
}
