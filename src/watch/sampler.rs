//! Looks at the slot from outside every few seconds, whoever leads: what it retains is what fills
//! the disk when nobody does. On a connection of its own; a failure is counted and tried again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::metrics::Metrics;
use super::vitals::{SlotSample, Vitals};
use crate::error::Failure;
use crate::lsn::Lsn;
use crate::pg::catalog::{Holder, Partitions, Server, Slot};
use crate::pg::control::Control;
use crate::pg::params::Params;

/// Often enough for an alarm, seldom enough to cost nothing.
const INTERVAL: Duration = Duration::from_secs(5);

/// With less left until the slot may be lost than a quarter of what is retained already, that is a
/// fifth of `max_slot_wal_keep_size`, a person is warned: what has taken a day to fill four fifths
/// leaves six hours. It is over with half as much left as is retained, so that it does not flicker.
const SCARCE_SHARE: u64 = 4;
const AMPLE_SHARE: u64 = 2;

/// Most looks that are remembered; every other one is forgotten when there are more, so that what
/// waits for a day is known to some ten minutes.
const LOOKS_MAX: usize = 256;

/// Looks for ever.
pub async fn run(params: &Params, slot: &str, vitals: &Arc<Vitals>) {
    let mut control = None;
    let mut danger = Danger::None;
    let mut waiting = Waiting::default();
    loop {
        let looked =
            tokio::time::timeout(INTERVAL, look(params, slot, &mut control, &vitals.metrics)).await;
        match looked {
            Ok(Ok((mut sample, confirmed, current))) => {
                let now = Instant::now();
                sample.lag = confirmed.map(|confirmed| waiting.look(confirmed, current, now));
                let was = danger;
                danger = Danger::of(&sample, was);
                danger.tell(was, &sample);
                vitals.sampled(sample);
            }
            failed => {
                control = None;
                let cause = match failed {
                    Ok(Err(failure)) => failure.problem.cause,
                    _ => "no answer in time".to_owned(),
                };
                debug!(cause, "the slot could not be looked at");
                let label = super::metrics::SlotLabel {
                    slot: slot.to_owned(),
                };
                vitals
                    .metrics
                    .slot
                    .poll_failures
                    .get_or_create(&label)
                    .inc();
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// What is known of the slot, how far it is confirmed, and where the server stands.
async fn look(
    params: &Params,
    name: &str,
    control: &mut Option<Control>,
    metrics: &Metrics,
) -> Result<(SlotSample, Option<Lsn>, Lsn), Failure> {
    let control = match control {
        Some(control) => control,
        None => {
            let connected = Control::connect(params).await;
            control.insert(connected.map_err(|error| error.failure(params))?)
        }
    };
    let server = Server::read(control.client()).await;
    let current = server.map_err(|error| error.failure())?.current;
    let partitions = Partitions::read(control.client()).await;
    let rows = partitions.map_err(|error| error.failure())?.default_rows;
    metrics.default_partition_rows.set(rows);
    let slot = Slot::read(control.client(), name).await;
    let slot = slot.map_err(|error| error.failure())?;
    let at = SystemTime::now();
    let Some(slot) = slot else {
        return Ok((SlotSample::missing(name, at), None, current));
    };
    let confirmed = slot.confirmed_flush;
    let decoding = slot.decoding;
    let sample = SlotSample {
        name: name.to_owned(),
        exists: true,
        active: slot.active,
        leader: slot.holder.as_ref().map(Holder::to_string),
        lag_bytes: slot.lag_bytes(current),
        retained_wal_bytes: slot.retained_wal_bytes(current),
        pinned_wal_bytes: slot.pinned_wal_bytes(),
        safe_wal_bytes: slot.safe_wal_size,
        lag: None,
        inactive_since: slot.inactive_since,
        spilled: (decoding.spill_transactions, decoding.spill_bytes),
        streamed: (decoding.stream_transactions, decoding.stream_bytes),
        wal_status: slot.wal_status,
        invalidation_reason: slot.invalidation_reason,
        at,
    };
    Ok((sample, confirmed, current))
}

/// What there was to confirm at earlier looks, and is not confirmed yet.
#[derive(Debug, Default)]
struct Waiting {
    /// Where the server stood, and when; the oldest first.
    looks: VecDeque<(Lsn, Instant)>,
    /// Least time between two of them.
    pace: Duration,
}

impl Waiting {
    /// For how long something has waited that was there to be confirmed: since the oldest look that
    /// saw any of it. Needs nobody who streams and no clock but ours; too short by what passed
    /// before that look, and by what passed before the first one.
    fn look(&mut self, confirmed: Lsn, current: Lsn, now: Instant) -> Duration {
        while self.looks.front().is_some_and(|(lsn, _)| *lsn <= confirmed) {
            self.looks.pop_front();
        }
        let waited = self
            .looks
            .front()
            .map(|(_, since)| now.duration_since(*since));
        match self.looks.back() {
            Some((lsn, at)) if *lsn >= current || now.duration_since(*at) < self.pace => {}
            Some(_) => self.looks.push_back((current, now)),
            None => {
                self.pace = Duration::ZERO;
                self.looks.push_back((current, now));
            }
        }
        if self.looks.len() > LOOKS_MAX {
            self.pace = (self.pace * 2).max(INTERVAL * 2);
            let mut place = 0;
            self.looks.retain(|_| {
                place += 1;
                place % 2 == 1
            });
        }
        waited.unwrap_or_default()
    }
}

/// Whether the slot will be there tomorrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Danger {
    None,
    Scarce,
    Lost,
}

impl Danger {
    fn of(sample: &SlotSample, before: Self) -> Self {
        let status = sample.wal_status.as_deref();
        if status == Some("lost") || sample.invalidation_reason.is_some() {
            return Self::Lost;
        }
        let retained = sample.retained_wal_bytes.unwrap_or(0);
        let share = match before {
            Self::Scarce => AMPLE_SHARE,
            Self::None | Self::Lost => SCARCE_SHARE,
        };
        let left = sample.safe_wal_bytes;
        let left = left.map(|left| u64::try_from(left).unwrap_or(0));
        match left {
            _ if status == Some("unreserved") => Self::Scarce,
            Some(left) if left < retained / share => Self::Scarce,
            Some(_) | None => Self::None,
        }
    }

    /// Says once what has changed.
    fn tell(self, was: Self, sample: &SlotSample) {
        let (slot, retained) = (&sample.name, sample.retained_wal_bytes);
        let left = sample.safe_wal_bytes;
        match self {
            _ if self == was => {}
            Self::None => info!(slot, retained, left, "the slot is out of danger"),
            Self::Scarce => {
                let fix = "let outjet publish, end old transactions, or raise \
                           max_slot_wal_keep_size while the disk bears it";
                warn!(
                    slot,
                    retained, left, fix, "the slot may be lost soon: it retains much WAL"
                );
            }
            Self::Lost => {
                let reason = sample.invalidation_reason.as_deref();
                error!(slot, reason, "the slot is lost");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_look_that_saw_something_unconfirmed() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        let mut look = |confirmed, current, after| {
            waiting.look(
                Lsn::new(confirmed),
                Lsn::new(current),
                start + seconds(after),
            )
        };
        assert_eq!(look(10, 10, 0), seconds(0));
        assert_eq!(look(10, 20, 5), seconds(0));
        assert_eq!(look(10, 20, 10), seconds(5));
        assert_eq!(look(10, 30, 15), seconds(10));
        assert_eq!(look(20, 40, 20), seconds(5), "30 was first seen at 15");
        assert_eq!(look(40, 40, 25), seconds(0));
        assert_eq!(look(40, 40, 3600), seconds(0), "nothing waits");
    }

    #[test]
    fn forgetting_every_other_look_keeps_the_oldest_that_waits() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        for n in 0..10_000 {
            waiting.look(Lsn::new(5), Lsn::new(10 + n), start + seconds(n));
            assert!(waiting.looks.len() <= LOOKS_MAX);
        }
        let lag = waiting.look(Lsn::new(5), Lsn::new(20_000), start + seconds(10_000));
        assert_eq!(lag, seconds(10_000));
        let lag = waiting.look(Lsn::new(5_010), Lsn::new(20_000), start + seconds(10_000));
        assert!((seconds(4_800)..=seconds(5_000)).contains(&lag), "{lag:?}");
    }

    #[test]
    fn danger_begins_with_a_fifth_left_and_ends_with_a_third() {
        let mut sample = SlotSample {
            wal_status: Some("reserved".to_owned()),
            ..SlotSample::missing("outjet", SystemTime::now())
        };
        let mut danger = |retained, left, before| {
            sample.retained_wal_bytes = Some(retained);
            sample.safe_wal_bytes = left;
            Danger::of(&sample, before)
        };
        assert_eq!(danger(80, Some(20), Danger::None), Danger::None);
        assert_eq!(danger(81, Some(19), Danger::None), Danger::Scarce);
        assert_eq!(danger(70, Some(30), Danger::Scarce), Danger::Scarce);
        assert_eq!(danger(66, Some(34), Danger::Scarce), Danger::None);
        assert_eq!(
            danger(1 << 40, None, Danger::None),
            Danger::None,
            "no limit"
        );
        sample.invalidation_reason = Some("wal_removed".to_owned());
        assert_eq!(Danger::of(&sample, Danger::Scarce), Danger::Lost);
    }
}
