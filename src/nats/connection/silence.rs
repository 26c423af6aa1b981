//! Whether the server is still there: asked with a PING where it says nothing.

use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::super::error::Broken;

/// How long a server may say nothing before it is asked.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How often it is asked in vain. A dead connection is noticed after three intervals at least, and
/// four at most.
const PINGS_MAX: u32 = 2;

/// Looks once in an interval, so that what comes costs no clock.
#[derive(Debug)]
pub(super) struct Silence {
    interval: Interval,
    heard: bool,
    /// PINGs since something was heard.
    pings: u32,
}

impl Default for Silence {
    fn default() -> Self {
        let mut interval = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        // Whoever was stopped for a minute has not listened for a minute.
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            interval,
            heard: false,
            pings: 0,
        }
    }
}

impl Silence {
    /// The server has said something, whatever it is.
    pub(super) fn heard(&mut self) {
        self.heard = true;
    }

    /// Whether the server is to be asked now. To be called when all was read that is there.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Result<bool, Broken> {
        let mut ping = false;
        while self.interval.poll_tick(cx).is_ready() {
            if std::mem::take(&mut self.heard) {
                self.pings = 0;
                continue;
            }
            if self.pings == PINGS_MAX {
                return Err(Broken::Silent(PING_INTERVAL * (PINGS_MAX + 1)));
            }
            self.pings += 1;
            ping = true;
        }
        Ok(ping)
    }
}
