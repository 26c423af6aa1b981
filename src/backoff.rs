//! How long to wait before the next attempt, and which failed attempts are worth a log line: the
//! first at once, then one every 30 seconds, and one when it is over. Pure but for the clock.

use std::time::Duration;

use tokio::time::Instant;

/// Doubling delays with jitter.
#[derive(Debug)]
pub struct Backoff {
    options: Options,
    attempts: u32,
    /// When the first of them failed.
    failing_since: Option<Instant>,
    logged_at: Option<Instant>,
    /// State of a xorshift generator: jitter need not be unpredictable, only uneven.
    random: u64,
}

/// The bounds of the delay.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// After the first failure.
    pub delay_min: Duration,
    /// From then on, doubling up to this.
    pub delay_max: Duration,
}

impl Default for Options {
    /// DESIGN §9: quick enough not to be noticed, slow enough not to hurt a server that is down.
    fn default() -> Self {
        Self {
            delay_min: Duration::from_millis(50),
            delay_max: Duration::from_secs(5),
        }
    }
}

/// What to do about a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// How long to wait.
    pub delay: Duration,
    /// How many attempts have failed in a row.
    pub attempts: u32,
    /// For how long they have.
    pub failing_for: Duration,
    /// Whether it is time for a log line.
    pub log: bool,
}

impl Backoff {
    /// How often a trouble that goes on is logged.
    const LOG_INTERVAL: Duration = Duration::from_secs(30);

    /// For attempts that have not failed yet. Those of other copies have other seeds.
    pub fn new(options: Options, seed: u128) -> Self {
        // The lower half of a unique number, mixed; never 0, which xorshift would not leave.
        let random = (seed as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        Self {
            options,
            attempts: 0,
            failing_since: None,
            logged_at: None,
            random,
        }
    }

    /// An attempt failed.
    pub fn failed(&mut self) -> Pause {
        let doubled = self
            .options
            .delay_min
            .saturating_mul(1 << self.attempts.min(20));
        let delay = doubled.min(self.options.delay_max);
        self.attempts = self.attempts.saturating_add(1);
        let now = Instant::now();
        let since = *self.failing_since.get_or_insert(now);
        let log = self
            .logged_at
            .is_none_or(|at| now - at >= Self::LOG_INTERVAL);
        if log {
            self.logged_at = Some(now);
        }
        Pause {
            delay: self.jitter(delay),
            attempts: self.attempts,
            failing_for: now - since,
            log,
        }
    }

    /// How many attempts have failed in a row.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// An attempt worked. Says how many had failed before, if any.
    pub fn worked(&mut self) -> Option<u32> {
        let failed = std::mem::take(&mut self.attempts);
        self.logged_at = None;
        self.failing_since = None;
        (failed > 0).then_some(failed)
    }

    /// Between half of the delay and all of it: copies that failed together part.
    fn jitter(&mut self, delay: Duration) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let share = (self.random % 1024) as u32;
        delay / 2 + delay / 2 * share / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn copies_that_failed_together_part() {
        let delays = |seed| {
            let mut backoff = Backoff::new(Options::default(), seed);
            [(); 4].map(|()| backoff.failed().delay)
        };
        assert_eq!(delays(1), delays(1));
        assert_ne!(delays(1), delays(2));
    }

    #[tokio::test(start_paused = true)]
    async fn delays_double_up_to_the_maximum_and_start_again() {
        let mut backoff = Backoff::new(Options::default(), 1);
        for expected in [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let delay = backoff.failed().delay;
            let expected = Duration::from_millis(expected);
            assert!(
                expected / 2 <= delay && delay <= expected,
                "{delay:?} of {expected:?}"
            );
        }
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(backoff.failed().failing_for, Duration::from_secs(7));
        assert_eq!(backoff.worked(), Some(10));
        assert_eq!(backoff.failed().failing_for, Duration::ZERO);
        assert_eq!(backoff.worked(), Some(1));
        assert_eq!(backoff.worked(), None);
        assert!(backoff.failed().delay <= Duration::from_millis(50));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lasting_trouble_is_logged_at_once_and_every_30_seconds() {
        let mut backoff = Backoff::new(Options::default(), 1);
        assert!(backoff.failed().log);
        assert!(!backoff.failed().log);
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(backoff.failed().log);
        assert!(!backoff.failed().log);
    }
}
