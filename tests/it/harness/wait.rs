//! Waiting for a condition instead of sleeping.

use std::time::Duration;
use time::{OffsetDateTime, Time};
use tokio::time::{Instant, sleep};

/// How often a condition is looked at: short beside everything a test waits for.
const INTERVAL: Duration = Duration::from_millis(20);

/// What a look at the condition showed.
pub(crate) enum Wait<T> {
    /// It holds.
    Ready(T),
    /// It does not hold yet; the text says how far it is, and is printed on timeout.
    NotYet(String),
    /// It cannot come to hold any more.
    Broken(String),
}

impl Wait<()> {
    /// For conditions that are a plain comparison.
    pub(crate) fn ready_if(holds: bool, status: impl std::fmt::Debug) -> Self {
        if holds {
            Self::Ready(())
        } else {
            Self::NotYet(format!("{status:?}"))
        }
    }
}

/// Looks at `condition` until it is ready. Panics with the last status when `within` has passed,
/// and at once when the condition is broken.
pub(crate) async fn until<T>(
    what: &str,
    within: Duration,
    mut condition: impl AsyncFnMut() -> Wait<T>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        let status = match condition().await {
            Wait::Ready(value) => return value,
            Wait::NotYet(status) => status,
            Wait::Broken(error) => panic!("waiting until {what}: {error}"),
        };
        assert!(
            Instant::now() < deadline,
            "not within {within:?}: {what}; last status: {status}"
        );
        sleep(INTERVAL).await;
    }
}

/// [`until`], for conditions that need not await.
pub(crate) async fn until_sync<T>(
    what: &str,
    within: Duration,
    mut condition: impl FnMut() -> Wait<T>,
) -> T {
    until(what, within, async || condition()).await
}

/// So long does a test take at most that counts days.
const DAY_LEFT_MIN: Duration = Duration::from_secs(120);

/// Waits until no day of UTC ends soon, for tests of partitions: a server has one clock, which
/// turns at midnight, also between two statements.
pub(crate) async fn until_the_day_lasts() {
    let within = DAY_LEFT_MIN + Duration::from_secs(10);
    until_sync("the next day has begun", within, || {
        let now = OffsetDateTime::now_utc().time();
        Wait::ready_if(day_left(now) > DAY_LEFT_MIN, now)
    })
    .await;
}

fn day_left(now: Time) -> Duration {
    let (hour, minute, second) = now.as_hms();
    let past = (u64::from(hour) * 60 + u64::from(minute)) * 60 + u64::from(second);
    Duration::from_secs(24 * 60 * 60 - past)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn day_ends_at_midnight() {
        assert_eq!(day_left(Time::MIDNIGHT), Duration::from_secs(86_400));
        assert_eq!(day_left(Time::MAX), Duration::from_secs(1));
        let noon = Time::from_hms(12, 1, 30).expect("a time");
        assert_eq!(day_left(noon), Duration::from_secs(43_110));
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "not within 1s: it is three; last status: 2")]
    async fn a_timeout_says_what_was_waited_for_and_how_far_it_came() {
        until_sync("it is three", Duration::from_secs(1), || {
            Wait::ready_if(false, 2)
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "waiting until it is up: it died")]
    async fn a_broken_condition_ends_the_wait_at_once() {
        until_sync::<()>("it is up", Duration::from_secs(3600), || {
            Wait::Broken("it died".to_owned())
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_condition_is_looked_at_until_it_holds() {
        let mut looks = 0;
        let value = until_sync("third look", Duration::from_secs(1), || {
            looks += 1;
            if looks == 3 {
                Wait::Ready("there")
            } else {
                Wait::NotYet(looks.to_string())
            }
        })
        .await;
        assert_eq!((value, looks), ("there", 3));
    }
}
