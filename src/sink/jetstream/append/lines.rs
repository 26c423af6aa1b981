//! How long a control line the server takes: 4096 bytes, unless it is configured otherwise
//! (`max_control_line`). Then it says so only when one was longer: `-ERR`, and the connection is
//! closed.
//!
//! It does not say which one it was. But if one of those that were sent on a connection is too
//! long, the longest of them is, too:
//!
//! ```text
//!  what it takes ──────┤
//!  sent          ───┤ ✓
//!                ──────────┤ ✗   closed here
//!                ───────────────┤   not read any more; the longest: known to be too long
//! ```
//!
//! So whatever is as long as that is not sent any more, and what has to be left out for it does not
//! fit for certain. What follows goes out one by one, so that the longest on the next connection is
//! the culprit itself, and each such connection sets an event aside. Pure.

use std::collections::BTreeMap;

use crate::nats::wire::CONTROL_LINE_BYTES_MAX;

/// Servers whose limits are kept: more than any list of servers or balancer leads to. Each may have
/// one of its own.
const SERVERS_MAX: usize = 64;

/// What is known of servers. They are known by their ids, which are those of their processes: one
/// that was started again may be configured otherwise.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// The one that we are connected to, or were last.
    server: String,
    bytes_max: BTreeMap<String, usize>,
}

impl Lines {
    /// Connected to a server: the longest line that it takes, as far as is known.
    pub(crate) fn connected(&mut self, server: &str) -> usize {
        server.clone_into(&mut self.server);
        let known = self.bytes_max.get(server).copied();
        known.unwrap_or(CONTROL_LINE_BYTES_MAX)
    }

    /// A line of so many bytes was too long for it.
    pub(crate) fn too_long(&mut self, bytes: usize) {
        let bytes_max = self
            .connected(&self.server.clone())
            .min(bytes.saturating_sub(1));
        if self.bytes_max.len() >= SERVERS_MAX {
            // Learnt anew.
            self.bytes_max.clear();
        }
        self.bytes_max.insert(self.server.clone(), bytes_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_below_what_was_too_long_and_only_falls() {
        let mut lines = Lines::default();
        assert_eq!(lines.connected("a"), CONTROL_LINE_BYTES_MAX);
        for (too_long, bytes_max) in [(700, 699), (600, 599), (650, 599)] {
            lines.too_long(too_long);
            assert_eq!(lines.connected("a"), bytes_max);
        }
    }

    /// Or a list of servers that are connected to in turn would be asked indefinitely.
    #[test]
    fn each_server_has_its_limit() {
        let mut lines = Lines::default();
        lines.connected("a");
        lines.too_long(700);
        assert_eq!(lines.connected("b"), CONTROL_LINE_BYTES_MAX);
        lines.too_long(600);
        assert_eq!(lines.connected("a"), 699);
        assert_eq!(lines.connected("b"), 599);
    }

    #[test]
    fn servers_that_come_and_go_take_no_room() {
        let mut lines = Lines::default();
        for server in 0..3 * SERVERS_MAX {
            lines.connected(&server.to_string());
            lines.too_long(700);
            assert_eq!(lines.connected(&server.to_string()), 699);
            assert!(lines.bytes_max.len() <= SERVERS_MAX);
        }
    }
}
