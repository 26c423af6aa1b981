//! A look at the stream before anything is appended to it: what it is, and who has written it.

use std::time::Duration;

use super::client::Desk;
use super::error::Error;
use super::options::{Options, StreamOptions};
use super::streams;
use super::tail::{self, Bounds};
use crate::event::lineage::{Mark, Source};

/// A stream as it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Its name.
    pub name: String,
    /// The subjects that it stores events under.
    pub subjects: Vec<String>,
    /// How many messages it holds.
    pub messages: u64,
    /// The sequence number of the newest.
    pub last_sequence: u64,
    /// It was missing, and `options` said to create it.
    pub created: bool,
    /// Its messages may have an end.
    pub expires: bool,
    /// How long its server remembers ids.
    pub duplicate_window: Duration,
    /// Its messages may vanish.
    pub vanishing: bool,
    /// What is worth knowing.
    pub warnings: Vec<&'static str>,
    /// The newest event of an outjet, if one was found near the end; of each, if it is shared.
    pub newest: Vec<Mark>,
    /// Others write into it, too.
    pub shared: bool,
}

impl Inspection {
    /// On one line.
    pub fn summary(&self) -> String {
        format!("{}, {} messages", self.name, self.messages)
    }

    /// Refuses a stream that another slot or another cluster writes, unless it is shared.
    pub fn check_writer(&self, ours: &Source) -> Result<(), Error> {
        if self.shared {
            return Ok(());
        }
        check_writer(&self.name, self.newest.first(), ours)
    }
}

/// Looks at the stream, or creates it if `options` say so.
pub async fn inspect(options: &Options) -> Result<Inspection, Error> {
    let desk = Box::pin(Desk::open(options)).await?;
    let found = &desk.streams.info;
    let bounds = Bounds {
        first: found.state.first_sequence,
        last: found.state.last_sequence,
    };
    let newest = Box::pin(tail::newest_marks(&desk.streams.stream, bounds)).await?;
    Ok(Inspection {
        name: found.config.name.clone(),
        subjects: found.config.subjects.clone(),
        messages: found.state.messages,
        last_sequence: found.state.last_sequence,
        created: desk.streams.created,
        expires: found.config.allow_message_ttl,
        duplicate_window: found.config.duplicate_window,
        vanishing: streams::vanishing(&found.config),
        warnings: streams::warnings(&found.config, options.stream.shared),
        newest,
        shared: options.stream.shared,
    })
}

/// Refuses to append behind these newest events.
pub(crate) fn check_newest(
    stream: &StreamOptions,
    newest: &[Mark],
    ours: &Source,
) -> Result<(), Error> {
    if !stream.shared {
        check_writer(&stream.name, newest.first(), ours)?;
    }
    let own = newest.iter().find(|mark| mark.source.same_slot(ours));
    check_timeline(&stream.name, own, ours)
}

fn check_writer(name: &str, newest: Option<&Mark>, ours: &Source) -> Result<(), Error> {
    match newest.map(|mark| &mark.source) {
        Some(found) if !found.same_slot(ours) => Err(Error::OtherSource {
            name: name.to_owned(),
            found: Box::new(found.clone()),
            ours: Box::new(ours.clone()),
        }),
        _ => Ok(()),
    }
}

/// Refuses to go on where the cluster was before its last promotion: what lies behind it was
/// published by the server that was promoted, and this one has another history.
fn check_timeline(name: &str, newest: Option<&Mark>, ours: &Source) -> Result<(), Error> {
    match newest.map(|mark| mark.source.timeline) {
        Some(found) if found > ours.timeline => Err(Error::OlderTimeline {
            name: name.to_owned(),
            found,
            ours: ours.timeline,
        }),
        _ => Ok(()),
    }
}
