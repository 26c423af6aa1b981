//! By what one sees that a stream has not lost its end.

use std::time::Duration;

use super::super::error::Error;
use super::super::messages::{Messages, Standing, Stored};
use super::super::names::POSITION;
use super::super::tail::Bounds;
use crate::event::Position;

/// The newest message of a stream; a later one of ours bears a position that is known.
pub(crate) async fn newest(stream: &Messages, bounds: Bounds) -> Result<Witness, Error> {
    let sequence = bounds.last;
    if sequence == 0 {
        return Ok(Witness::default());
    }
    let message = stream.at(sequence).await?;
    let position = message.and_then(|message| position_of(&message));
    Ok(Witness { sequence, position })
}

fn position_of(message: &Stored) -> Option<Position> {
    message.header(POSITION)?.parse().ok()
}

/// A message by which one sees that a stream has not lost its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Witness {
    pub(crate) sequence: u64,
    /// What it bears; `None` if that is not known.
    pub(crate) position: Option<Position>,
}

impl Witness {
    /// The newer of both.
    pub(crate) fn or_newer(self, other: Self) -> Self {
        if other.sequence > self.sequence {
            other
        } else {
            self
        }
    }

    /// Whether another message has taken its place: the stream had lost its end by then.
    pub(crate) async fn is_replaced(&self, of: &Messages) -> Result<bool, Error> {
        if self.position.is_none() {
            return Ok(false);
        }
        let message = of.at(self.sequence).await?;
        Ok(message.is_some_and(|message| self.is_another(&message)))
    }

    fn is_another(&self, message: &Stored) -> bool {
        self.position.is_some() && self.position != position_of(message)
    }

    /// For how long it has stood there; `None` if another message does.
    pub(crate) async fn age(
        &self,
        of: &Messages,
        standing: &Standing,
    ) -> Result<Option<Age>, Error> {
        let Some(message) = of.at(self.sequence).await? else {
            // Somebody took it away, which is not the end of a stream that goes on behind it.
            return Ok(Some(Age::Unknown));
        };
        if self.is_another(&message) {
            return Ok(None);
        }
        let age = standing.now.map(|now| now - message.time);
        Ok(Some(age.map_or(Age::Unknown, |age| {
            Age::Known(age.try_into().unwrap_or_default())
        })))
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Age {
    Known(Duration),
    Unknown,
}
