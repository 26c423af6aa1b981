//! Looks at the slot from outside every few seconds, whoever leads: what it retains is what fills
//! the disk when nobody does. On a connection of its own; a failure is counted and tried again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tracing::{debug, warn};

use crate::error::Failure;
use crate::pg::catalog::{Holder, Server, Slot};
use crate::pg::control::Control;
use crate::pg::params::Params;
use crate::vitals::{SlotSample, Vitals};

/// Often enough for an alarm, seldom enough to cost nothing.
const INTERVAL: Duration = Duration::from_secs(5);

/// Less than this share of what is retained already, left until the slot may be lost, is a warning.
const HEADROOM_SHARE: u64 = 4;

/// Looks for ever.
pub async fn run(params: &Params, slot: &str, vitals: &Arc<Vitals>) {
    let mut control = None;
    let mut warned = false;
    loop {
        let looked = tokio::time::timeout(INTERVAL, look(params, slot, &mut control)).await;
        match looked {
            Ok(Ok(sample)) => {
                warned = warn_of_loss(&sample, warned);
                vitals.sampled(sample);
            }
            failed => {
                control = None;
                let cause = match failed {
                    Ok(Err(failure)) => failure.problem.cause,
                    _ => "no answer in time".to_owned(),
                };
                debug!(cause, "the slot could not be looked at");
                let label = crate::metrics::SlotLabel {
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

async fn look(
    params: &Params,
    name: &str,
    control: &mut Option<Control>,
) -> Result<SlotSample, Failure> {
    let control = match control {
        Some(control) => control,
        None => {
            let connected = Control::connect(params).await;
            control.insert(connected.map_err(|error| error.failure(params))?)
        }
    };
    let server = Server::read(control.client()).await;
    let current = server.map_err(|error| error.failure())?.current;
    let slot = Slot::read(control.client(), name).await;
    let slot = slot.map_err(|error| error.failure())?;
    Ok(SlotSample {
        name: name.to_owned(),
        exists: slot.is_some(),
        active: slot.as_ref().is_some_and(|slot| slot.active),
        leader: slot
            .as_ref()
            .and_then(|slot| slot.holder.as_ref())
            .map(Holder::to_string),
        wal_status: slot.as_ref().and_then(|slot| slot.wal_status.clone()),
        lag_bytes: slot.as_ref().and_then(|slot| slot.lag_bytes(current)),
        retained_wal_bytes: slot
            .as_ref()
            .and_then(|slot| slot.retained_wal_bytes(current)),
        safe_wal_bytes: slot.as_ref().and_then(|slot| slot.safe_wal_size),
        at: SystemTime::now(),
    })
}

/// Says once that the slot may be lost soon. Returns whether that is so.
fn warn_of_loss(sample: &SlotSample, warned: bool) -> bool {
    let retained = sample.retained_wal_bytes.unwrap_or(0);
    let left = sample
        .safe_wal_bytes
        .map(|left| u64::try_from(left).unwrap_or(0));
    let scarce = left.is_some_and(|left| left < retained / HEADROOM_SHARE)
        || sample.wal_status.as_deref() == Some("unreserved");
    if scarce && !warned {
        let slot = &sample.name;
        let fix = "let outjet publish, or raise max_slot_wal_keep_size while the disk bears it";
        warn!(
            slot,
            retained, left, fix, "the slot may be lost soon: it retains much WAL"
        );
    }
    scarce
}
