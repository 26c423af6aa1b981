//! What the server answers to a publish. Pure.

use crate::nats::wire::Headers;

/// An answer, by what it proves.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Stored at this sequence number of our stream, the last of so many that were stored together.
    Stored { sequence: u64, together: u64 },
    /// Not stored: its id was seen before, at this sequence number if the server says so; or, of a
    /// batch, the id of some event.
    Duplicate(u64),
    /// Not stored, and why.
    Refused(String),
    /// It proves nothing.
    Unclear(String),
}

/// A stream of another JetStream domain that stores what was meant for ours. Its answer says
/// nothing about ours, which may still come.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{stream:?} of domain {domain:?}")]
pub(crate) struct Twin {
    stream: String,
    /// Empty: its server has none.
    domain: String,
}

impl Reply {
    /// Reads an answer to a publish that was meant for `stream` of this domain.
    ///
    /// A server with a domain names it in every acknowledgement, of duplicates and batches too, and
    /// in its answer to `STREAM.INFO`; one without leaves it out. No error names it: whose that is,
    /// nobody knows (seen with nats-server 2.10.26 and 2.15.1).
    pub(crate) fn read(
        (headers, body): (Headers<'_>, &[u8]),
        stream: &str,
        domain: Option<&str>,
    ) -> Result<Self, Twin> {
        if headers.status() == Some(NO_RESPONDERS) {
            let nobody = "no stream answers (no leader, or no stream listens)";
            return Ok(Self::Refused(nobody.to_owned()));
        }
        match plain(body, stream) {
            Some(sequence) if domain.is_none() => Ok(Self::Stored {
                sequence,
                together: 1,
            }),
            _ => Self::read_body(body, (stream, domain)),
        }
    }

    fn read_body(body: &[u8], (stream, domain): (&str, Option<&str>)) -> Result<Self, Twin> {
        Ok(match serde_json::from_slice(body) {
            Err(error) => Self::Unclear(format!("the reply is not understood: {error}")),
            Ok(PubAck {
                error: Some(error), ..
            }) if error.err_code == BATCH_WITH_DUPLICATE => Self::Duplicate(0),
            Ok(PubAck {
                error: Some(error), ..
            }) => Self::Refused(format!("{} ({})", error.description, error.err_code)),
            Ok(ack) if ack.domain != domain => {
                return Err(Twin {
                    stream: ack.stream.to_owned(),
                    domain: ack.domain.unwrap_or_default().to_owned(),
                });
            }
            Ok(PubAck { stream: other, .. }) if other != stream => {
                Self::Refused(format!("stream {other:?} took it"))
            }
            Ok(PubAck {
                duplicate: true,
                seq,
                ..
            }) => Self::Duplicate(seq),
            Ok(PubAck { seq, count, .. }) => Self::Stored {
                sequence: seq,
                together: count,
            },
        })
    }
}

/// The stream that refuses a message, by its name.
pub(crate) fn refusing_stream(body: &[u8]) -> Option<String> {
    let answer: PubAck = serde_json::from_slice(body).ok()?;
    let refuses = answer.error.is_some() && !answer.stream.is_empty();
    refuses.then(|| answer.stream.to_owned())
}

/// The sequence number of the answer that nearly every event gets: `{"stream":"<stream>","seq":7}`
/// and nothing else; before 2.12 with a space behind the comma.
fn plain(body: &[u8], stream: &str) -> Option<u64> {
    let rest = body.strip_prefix(b"{\"stream\":\"")?;
    let rest = rest.strip_prefix(stream.as_bytes())?.strip_prefix(b"\",")?;
    let rest = rest.strip_prefix(b" ").unwrap_or(rest);
    let digits = rest.strip_prefix(b"\"seq\":")?.strip_suffix(b"}")?;
    // No number has more digits that always fits, and none in JSON begins with 0.
    let number = (1..=19).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    let number = number && digits[0] != b'0';
    let add = |number: u64, digit: &u8| number * 10 + u64::from(digit - b'0');
    number.then(|| digits.iter().fold(0, add))
}

/// The status of an answer that nobody gave.
const NO_RESPONDERS: u16 = 503;

/// `JSAtomicPublishContainsDuplicateMessageErr` of nats-server.
const BATCH_WITH_DUPLICATE: u64 = 10201;

#[derive(Debug, serde::Deserialize)]
struct PubAck<'a> {
    #[serde(borrow, default)]
    stream: &'a str,
    #[serde(borrow, default)]
    domain: Option<&'a str>,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    /// Of a batch.
    #[serde(default = "one")]
    count: u64,
    #[serde(default)]
    error: Option<ApiError>,
}

fn one() -> u64 {
    1
}

#[derive(Debug, serde::Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Reply {
        read_in(None, body).expect("ours")
    }

    fn read_in(domain: Option<&str>, body: &str) -> Result<Reply, Twin> {
        Reply::read_body(body.as_bytes(), ("S", domain))
    }

    fn twin(domain: &str) -> Result<Reply, Twin> {
        let (stream, domain) = ("S".to_owned(), domain.to_owned());
        Err(Twin { stream, domain })
    }

    fn stored(sequence: u64, together: u64) -> Reply {
        Reply::Stored { sequence, together }
    }

    #[test]
    fn a_batch_is_answered_as_a_whole() {
        let committed = r#"{"stream":"S","seq":12,"batch":"b8","count":3}"#;
        assert_eq!(read(committed), stored(12, 3));
        let duplicate = r#"{"error":{"code":400,"err_code":10201,
            "description":"atomic publish batch contains duplicate message id"},
            "stream":"S","seq":0}"#;
        assert_eq!(read(duplicate), Reply::Duplicate(0));
    }

    #[test]
    fn answers_of_every_server_version_are_told_apart() {
        assert_eq!(read(r#"{"stream":"S","seq":7}"#), stored(7, 1));
        // 2.10 and 2.11 put a space there.
        assert_eq!(read(r#"{"stream":"S", "seq":7}"#), stored(7, 1));
        let duplicate = r#"{"stream":"S","seq":2,"duplicate": true}"#;
        assert_eq!(read(duplicate), Reply::Duplicate(2));
        let refused = r#"{"error":{"code":400,"err_code":10071,
            "description":"wrong last sequence: 2"},"stream":"S","seq":0}"#;
        assert_eq!(
            read(refused),
            Reply::Refused("wrong last sequence: 2 (10071)".to_owned())
        );
    }

    #[test]
    fn answer_that_is_read_at_a_glance_is_read_as_all_others_are() {
        for body in [
            r#"{"stream":"S","seq":7}"#,
            r#"{"stream":"S", "seq":18446744073709551615}"#,
            r#"{"stream":"S","seq":9999999999999999999}"#,
            r#"{"stream":"S","seq":007}"#,
            r#"{"stream":"S","seq":7,"duplicate":true}"#,
            r#"{"stream":"S","seq":7,"seq":8}"#,
            r#"{"stream":"S","seq":}"#,
            r#"{"stream":"S","seq":-7}"#,
            r#"{"stream":"T","seq":7}"#,
            r#"{"stream":"S","domain":"hub","seq":7}"#,
        ] {
            for domain in [None, Some("hub")] {
                let headers = Headers::new(b"");
                let read = Reply::read((headers, body.as_bytes()), "S", domain);
                let whole = Reply::read_body(body.as_bytes(), ("S", domain));
                assert_eq!(read, whole, "{body} in {domain:?}");
            }
        }
    }

    #[test]
    fn an_ack_of_another_stream_is_none() {
        let other = read(r#"{"stream":"T","seq":7}"#);
        assert_eq!(other, Reply::Refused("stream \"T\" took it".to_owned()));
    }

    #[test]
    fn an_ack_of_another_domain_is_none_of_ours() {
        let (hub, none) = (Some("hub"), None);
        let of_hub = r#"{"stream":"S", "domain":"hub", "seq":7}"#;
        assert_eq!(read_in(hub, of_hub), Ok(stored(7, 1)));
        assert_eq!(read_in(none, of_hub), twin("hub"));
        assert_eq!(read_in(Some("hu"), of_hub), twin("hub"));
        let of_none = r#"{"stream":"S","seq":7}"#;
        assert_eq!(read_in(none, of_none), Ok(stored(7, 1)));
        assert_eq!(read_in(hub, of_none), twin(""));
    }

    #[test]
    fn what_another_domain_calls_a_duplicate_or_has_stored_together_is_none_of_ours() {
        let duplicate = r#"{"stream":"S","domain":"leaf","seq":2,"duplicate": true}"#;
        assert_eq!(read_in(Some("leaf"), duplicate), Ok(Reply::Duplicate(2)));
        assert_eq!(read_in(Some("hub"), duplicate), twin("leaf"));
        let batch = r#"{"stream":"S","domain":"leaf","seq":4,"batch":"b1","count":2}"#;
        assert_eq!(read_in(Some("leaf"), batch), Ok(stored(4, 2)));
        assert_eq!(read_in(Some("hub"), batch), twin("leaf"));
    }

    #[test]
    fn an_error_is_everybodys_because_no_server_names_its_domain_there() {
        let refused = r#"{"error":{"code":400,"err_code":10071,
            "description":"wrong last sequence: 2"},"stream":"S","seq":0}"#;
        let reply = Reply::Refused("wrong last sequence: 2 (10071)".to_owned());
        assert_eq!(read_in(Some("hub"), refused), Ok(reply));
    }

    #[test]
    fn what_is_not_understood_proves_nothing() {
        for body in ["", "{", "+OK", r#"{"stream":7}"#] {
            assert!(matches!(read(body), Reply::Unclear(_)), "{body}");
        }
    }
}
