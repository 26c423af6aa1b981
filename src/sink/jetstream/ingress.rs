//! On which subjects a stream takes events: on those that it stores them under, or on private ones
//! that it translates, so that whoever publishes to the public ones writes nothing into it. Pure.
//!
//! A private stream listens on `_outjet.<STREAM>.<subject>` for each of its subjects, and the
//! server takes the prefix off before it stores, counts or tells consumers anything
//! (`subject_transform`, nats-server 2.10).

use async_nats::jetstream::stream::{Config, SubjectTransform};

use super::error::Error;
use super::names::{PRIVATE, private_prefix};
use super::options::{Ingress, StreamOptions};

impl Ingress {
    /// Where to publish what a stream is to store under a subject or pattern.
    pub(super) fn entrance(self, stream: &str, subject: &str) -> String {
        match self {
            Self::Public => subject.to_owned(),
            Self::Private => private_prefix(stream) + subject,
        }
    }

    /// What the stream does to the subjects of what it takes.
    pub(super) fn transform(self, stream: &str) -> Option<SubjectTransform> {
        match self {
            Self::Public => None,
            Self::Private => Some(SubjectTransform {
                source: private_prefix(stream) + ">",
                destination: ">".to_owned(),
            }),
        }
    }

    /// The arguments of `nats stream edit` for a stream with these public subjects.
    pub(super) fn edit(self, stream: &str, subjects: &[String]) -> String {
        let entrances = subjects.iter().map(|s| self.entrance(stream, s));
        let entrances = entrances.collect::<Vec<_>>().join(",");
        format!("nats stream edit {stream} --subjects '{entrances}'")
    }
}

impl StreamOptions {
    /// What the stream listens on.
    pub(super) fn entrances(&self) -> Vec<String> {
        let subjects = self.subjects.iter();
        let entrances = subjects.map(|subject| self.ingress.entrance(&self.name, subject));
        entrances.collect()
    }

    /// The public subjects of a stream as it is found; refuses one that takes events otherwise than
    /// it should, wholly or in part.
    pub(super) fn public_subjects(&self, found: &Config) -> Result<Vec<String>, Error> {
        let prefix = private_prefix(&self.name);
        let mut subjects: Vec<String> = Vec::new();
        for subject in &found.subjects {
            let public = subject.strip_prefix(&prefix).unwrap_or(subject);
            if !subjects.iter().any(|known| known == public) {
                subjects.push(public.to_owned());
            }
        }
        let transform = &found.subject_transform;
        let fits = match self.ingress {
            // Any other transform is the owner's business.
            Ingress::Public => transform
                .as_ref()
                .is_none_or(|transform| !transform.source.starts_with(PRIVATE)),
            Ingress::Private => {
                *transform == self.ingress.transform(&self.name)
                    && found.subjects.iter().all(|s| s.starts_with(&prefix))
            }
        };
        if fits {
            return Ok(match self.ingress {
                Ingress::Public => found.subjects.clone(),
                Ingress::Private => subjects,
            });
        }
        let listens = found.subjects.join(", ");
        let translates = transform.as_ref().map_or_else(
            || "translates no subject".to_owned(),
            |SubjectTransform {
                 source,
                 destination,
             }| format!("translates {source} to {destination}"),
        );
        Err(Error::OtherIngress {
            name: self.name.clone(),
            found: format!("it listens on {listens}, and {translates}"),
            subjects,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::jetstream::Storage;

    fn stream(ingress: Ingress) -> StreamOptions {
        StreamOptions {
            name: "S".to_owned(),
            subjects: vec!["events.>".to_owned(), "audit.*".to_owned()],
            ingress,
            shared: false,
            replicas: 1,
            storage: Storage::File,
            create: true,
            duplicate_window: std::time::Duration::ZERO,
            max_age: std::time::Duration::ZERO,
            max_bytes: None,
            atomic: false,
            expires: true,
            schedules: false,
            objects: false,
        }
    }

    fn found(subjects: &[&str], transform: Option<(&str, &str)>) -> Config {
        Config {
            subjects: subjects.iter().map(|s| (*s).to_owned()).collect(),
            subject_transform: transform.map(|(source, destination)| SubjectTransform {
                source: source.to_owned(),
                destination: destination.to_owned(),
            }),
            ..Config::default()
        }
    }

    const OURS: Option<(&str, &str)> = Some(("_outjet.S.>", ">"));

    #[test]
    fn stream_is_taken_as_it_was_made() {
        for ingress in [Ingress::Public, Ingress::Private] {
            let stream = stream(ingress);
            let made = Config {
                subjects: stream.entrances(),
                subject_transform: ingress.transform("S"),
                ..Config::default()
            };
            let public = stream.public_subjects(&made).expect("as it should be");
            assert_eq!(public, stream.subjects);
        }
    }

    #[test]
    fn stream_that_is_private_in_part_is_refused_by_both() {
        for halfway in [
            found(&["events.>", "_outjet.S.events.>"], OURS),
            found(&["events.>"], OURS),
            found(&["_outjet.S.>"], Some(("_outjet.S.>", "x.>"))),
            found(&["_outjet.T.>"], Some(("_outjet.T.>", ">"))),
        ] {
            for ingress in [Ingress::Public, Ingress::Private] {
                let refused = stream(ingress).public_subjects(&halfway);
                assert!(refused.is_err(), "{ingress:?} takes {:?}", halfway.subjects);
            }
        }
    }

    #[test]
    fn stream_of_the_other_kind_is_refused() {
        let public = found(&["events.>"], None);
        assert!(stream(Ingress::Private).public_subjects(&public).is_err());
        let private = found(&["_outjet.S.events.>"], OURS);
        assert!(stream(Ingress::Public).public_subjects(&private).is_err());
        let bare = found(&["_outjet.S.events.>"], None);
        assert!(stream(Ingress::Private).public_subjects(&bare).is_err());
    }

    #[test]
    fn transform_of_the_owner_is_no_concern_of_a_public_stream() {
        let other = found(&["events.>"], Some(("events.>", "stored.events.>")));
        let subjects = stream(Ingress::Public).public_subjects(&other);
        assert_eq!(subjects.expect("usable"), ["events.>"]);
    }
}
