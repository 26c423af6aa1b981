//! Whether a server that says nothing is at work or stalled: a long query and a server that has
//! stopped are silent alike, but the one that works lets a new session in.

use std::time::Duration;

use super::connect::connect;
use super::error::{Error, Kind};
use super::params::Params;
use super::wire::heard_bytes;

/// After as much silence a new session is tried: long enough for few commands to need one.
pub const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Waits until the server is silent and lets no new session in within `connect_timeout`; says why.
/// Whatever a server answers to a login, be it a refusal, shows that it works.
pub async fn stalled(params: &Params) -> Error {
    loop {
        let before = heard_bytes();
        tokio::time::sleep(SILENCE_MAX).await;
        if heard_bytes() != before {
            continue;
        }
        match connect(params, &[]).await {
            Ok(conn) => conn.close().await,
            Err(error) if error.unanswered() && heard_bytes() == before => {
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
