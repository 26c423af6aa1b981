//! Whether our user may do what publishing takes, found out by doing it: messages that no stream
//! takes, and questions for a message. Only who subscribes to those subjects without JetStream sees
//! anything, an empty message each. And whether a single stream answers.

use std::time::Duration;

use tokio::time::timeout;

use super::client::{Client, Desk};
use super::error::Error;
use super::headers::Outgoing;
use super::names::EXPECTED_STREAM;
use super::options::{Options, StreamOptions};
use super::reply::refusing_stream;
use crate::event::route;
use crate::nats::Message;

/// No stream's name has a dot in it (`isValidName`, nats-server), so none takes what expects it.
const NO_STREAM: &str = "outjet.check";

/// What stands for a wildcard.
const TOKEN: &str = "outjet-check";

/// How much later than the first a second stream may answer: it is behind a leaf node, and a round
/// trip to the other side of the world takes less.
const OTHERS_WITHIN: Duration = Duration::from_millis(500);

/// Tries to publish to a subject of `pattern` and to that of its dead letter, and to read messages.
/// The stream must exist. Returns the subjects that were tried.
pub async fn check_rights(options: &Options, pattern: &str) -> Result<Vec<String>, Error> {
    let desk = Box::pin(Desk::open(&options.of_stream())).await?;
    let client = &desk.client;
    let subject = subject(pattern, &desk.streams.info.config.subjects);
    let entrance = |name: &str, subject: &str| options.stream.ingress.entrance(name, subject);
    let letter = options.dead_letters.as_ref();
    let letter = letter.map(|letters| entrance(&letters.name, &format!("dlq.{subject}")));
    let own = entrance(&options.stream.name, &subject);
    let chunks = options
        .bodies
        .as_ref()
        .map(|bucket| subject_in(bucket, "C"));
    let names = options
        .bodies
        .as_ref()
        .map(|bucket| subject_in(bucket, "M"));
    let subjects = [Some(own), letter, chunks, names].into_iter().flatten();
    let subjects: Vec<String> = subjects.collect();
    let within = options.nats.connect_timeout;
    let answers = Box::pin(try_all(client, &subjects, within)).await?;
    let streams = [
        Some(&options.stream),
        options.dead_letters.as_ref(),
        options.bodies.as_ref(),
        // The leader reads what is delayed when its term begins.
        options.delayed.as_ref(),
    ];
    for stream in streams.into_iter().flatten() {
        let messages = client.messages(&stream.name);
        denied(messages.at(1).await)?;
        if stream.objects {
            denied(messages.purge(&subject_in(stream, "C")).await)?;
        }
    }
    for (subject, messages) in answers {
        let streams: Vec<String> = messages
            .iter()
            .filter_map(|message| refusing_stream(&message.body))
            .collect();
        if streams.len() > 1 {
            return Err(Error::Twins {
                subject,
                streams,
                domain: client.domain.as_deref().map(str::to_owned),
            });
        }
    }
    Ok(subjects)
}

/// The header of what no stream takes, as a line.
pub(crate) fn unheeded() -> String {
    format!("{EXPECTED_STREAM}: {NO_STREAM}\r\n")
}

/// Publishes to each subject what no stream takes, and returns what was answered.
async fn try_all(
    client: &Client,
    subjects: &[String],
    within: Duration,
) -> Result<Vec<(String, Vec<Message>)>, Error> {
    let (mut asked, unheeded) = (Vec::new(), unheeded());
    for subject in subjects {
        let mut answers = client.ask(Outgoing {
            subject,
            lines: &unheeded,
            body: b"",
        })?;
        // Silence is no denial.
        let first = timeout(within, answers.next()).await.ok().transpose()?;
        asked.push((subject.clone(), Vec::from_iter(first), answers));
    }
    tokio::time::sleep(OTHERS_WITHIN).await;
    let all = asked.into_iter().map(|(subject, mut found, mut answers)| {
        found.extend(std::iter::from_fn(|| answers.try_next()));
        (subject, found)
    });
    Ok(all.collect())
}

/// Any other answer is one: that nobody listens, or that there is no such stream yet.
pub(crate) fn denied<T>(tried: Result<T, Error>) -> Result<(), Error> {
    use Error::{BucketDenied, InboxDenied, PublishDenied};
    match tried {
        Err(error @ (PublishDenied(_) | InboxDenied(_) | BucketDenied(_))) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Of a part that no object has.
fn subject_in(bucket: &StreamOptions, kind: &str) -> String {
    format!("$O.{}.{kind}.{TOKEN}", bucket.bucket())
}

/// A subject that the stream covers where only a part of the pattern is covered.
fn subject(pattern: &str, covered: &[String]) -> String {
    let narrower = covered.iter().find(|one| route::contains(pattern, one));
    let pattern = narrower.map_or(pattern, String::as_str);
    let tokens = pattern.split('.').map(|token| match token {
        "*" | ">" => TOKEN,
        token => token,
    });
    tokens.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::subject;

    #[test]
    fn subject_is_one_that_both_the_pattern_and_the_stream_take() {
        let covered = ["other.a".to_owned(), "events.>".to_owned()];
        assert_eq!(
            subject("events.*.>", &covered),
            "events.outjet-check.outjet-check"
        );
        assert_eq!(subject("events.order", &covered), "events.order");
        assert_eq!(subject(">", &covered[1..]), "events.outjet-check");
        assert_eq!(subject("none.>", &covered), "none.outjet-check");
    }
}
