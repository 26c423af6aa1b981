//! Whether a stream that is found takes events where it should ([`Ingress`]). Pure.

use async_nats::jetstream::stream::{Config, SubjectTransform};

use super::error::Error;
use super::names::{PRIVATE, private_prefix};
use super::options::{Ingress, StreamOptions};

impl StreamOptions {
    /// The public subjects of a stream as it is found; refuses one that takes events otherwise than
    /// it should, wholly or in part.
    pub(crate) fn public_subjects(&self, found: &Config) -> Result<Vec<String>, Error> {
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
