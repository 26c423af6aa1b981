//! JetStream's requests, as far as outjet and the tests have them (ADR-31).

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::config::Config;
use super::hub::{Account, Reply};
use super::json::{self, Refusal, rfc3339};
use super::stream::Stream;
use super::version::Version;
use super::wire::Published;
use super::{Gone, Leader, Options, Stored, subject};

/// What is asked, without the prefix.
pub(super) struct Asked<'a> {
    pub(super) name: &'a [u8],
    pub(super) published: &'a Published<'a>,
}

/// What is said to it.
pub(super) enum Said {
    Reply(Reply),
    /// Nobody who listens says anything.
    Silence,
    /// Nobody listens.
    Nobody,
}

impl Said {
    fn json(json: String) -> Self {
        Self::Reply(Reply::api(json))
    }
}

/// What begins a request.
const REQUESTS: [(&str, &str); 8] = [
    ("STREAM.INFO.", "stream_info"),
    ("STREAM.MSG.GET.", "stream_msg_get"),
    ("STREAM.CREATE.", "stream_create"),
    ("STREAM.UPDATE.", "stream_update"),
    ("STREAM.DELETE.", "stream_delete"),
    ("STREAM.PURGE.", "stream_purge"),
    ("STREAM.MSG.DELETE.", "stream_msg_delete"),
    ("DIRECT.GET.", "direct"),
];

/// Whether it is a request at all.
pub(super) fn knows(name: &[u8]) -> bool {
    let mut requests = REQUESTS.iter();
    name == b"INFO"
        || name == b"STREAM.NAMES"
        || requests.any(|(prefix, _)| name.starts_with(prefix.as_bytes()))
}

/// The server, at this time.
type Server<'a> = (i64, &'a Options, Leader);

/// Answers a request.
pub(super) fn answer(account: &mut Account, asked: &Asked<'_>, server: Server<'_>) -> Said {
    let (now, options, leader) = server;
    let Asked { name, published } = asked;
    let name = String::from_utf8_lossy(name);
    if name == "STREAM.NAMES" {
        return Said::json(names(account));
    }
    let found = REQUESTS.iter().find_map(|(prefix, kind)| {
        let stream = name.strip_prefix(prefix)?;
        Some((stream, *kind))
    });
    let Some((stream, kind)) = found else {
        return Said::Silence;
    };
    if kind == "direct" {
        return direct(account, (stream, published.body), leader);
    }
    if stream.contains('.') {
        return Said::Silence;
    }
    let its = account.streams.get(stream).map(|it| it.leader);
    let leader = its.filter(|its| *its != Leader::Present).unwrap_or(leader);
    match leader {
        Leader::Present => {}
        Leader::NoQuorum if kind == "stream_info" => {}
        Leader::Silent | Leader::NoResponders => return Said::Silence,
        Leader::NoQuorum => {
            let text = "JetStream system temporarily unavailable";
            return Said::json(json::request_refused(kind, &Refusal::new(503, 10008, text)));
        }
    }
    let body = published.body;
    let answered = match kind {
        "stream_create" => create(account, (stream, body), (now, options)),
        "stream_update" => update(account, (stream, body), (now, options)),
        "stream_delete" => match account.remove(stream, now) {
            Some(_) => Ok(json::success(kind)),
            None => Err(missing()),
        },
        _ => {
            let domain = account.domain.clone();
            match account.streams.get_mut(stream) {
                None => Err(missing()),
                Some(found) => {
                    let led = leader == Leader::Present;
                    of_stream(
                        found,
                        (kind, body),
                        (now, options, (domain.as_deref(), led)),
                    )
                }
            }
        }
    };
    Said::json(answered.unwrap_or_else(|refusal| json::request_refused(kind, &refusal)))
}

fn missing() -> Refusal {
    Refusal::new(404, 10059, "stream not found")
}

fn of_stream(
    stream: &mut Stream,
    (kind, body): (&str, &[u8]),
    (now, options, (domain, led)): (i64, &Options, (Option<&str>, bool)),
) -> Result<String, Refusal> {
    let version = options.version;
    match kind {
        "stream_info" => {
            let question: Info = parse(body, version)?;
            let mut json = json::response(kind);
            json.push_str(r#","total":0,"offset":0,"limit":0,"#);
            describe(&mut json, stream, question.deleted_details);
            if let Some(domain) = domain {
                let _ = write!(json, r#","domain":"{domain}""#);
            }
            if options.servers == 1 {
                json.push_str(r#","cluster":{"leader":"n1"}"#);
            } else {
                push_cluster(&mut json, stream, (version, led));
            }
            let _ = write!(json, r#","ts":"{}"}}"#, rfc3339(now));
            Ok(json)
        }
        "stream_msg_get" => message(stream, body, version),
        "stream_purge" => purge(stream, (body, version), now),
        _ => {
            let Sequence { seq } = parse(body, version)?;
            delete(stream, seq, now)
        }
    }
}

/// The configuration, and what there is.
fn describe(json: &mut String, stream: &Stream, with_deleted: bool) {
    let created = rfc3339(stream.store.past.created);
    let _ = write!(json, r#""config":{},"created":"{created}","#, stream.json);
    stream.push_state(json, with_deleted);
}

fn push_cluster(json: &mut String, stream: &Stream, (version, led): (Version, bool)) {
    let replicas = stream.config.num_replicas;
    let _ = write!(
        json,
        r#","cluster":{{"name":"sim","raft_group":"S-R{replicas}F-sim""#
    );
    if led {
        json.push_str(r#","leader":"n1""#);
    }
    if version.names_subjects() {
        let since = rfc3339(stream.store.past.created);
        let _ = write!(
            json,
            r#","leader_since":"{since}","system_account":true,"traffic_account":"$SYS""#
        );
    }
    let first = if led { 2 } else { 1 };
    let peers = (first..=replicas).map(|peer| {
        format!(r#"{{"name":"n{peer}","current":{led},"active":1000,"peer":"peer-{peer}"}}"#)
    });
    let peers = peers.collect::<Vec<_>>().join(",");
    if !peers.is_empty() {
        let _ = write!(json, r#","replicas":[{peers}]"#);
    }
    json.push('}');
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Info {
    deleted_details: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Sequence {
    seq: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Which {
    seq: u64,
    last_by_subj: String,
    next_by_subj: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Purge {
    filter: String,
    seq: u64,
    keep: u64,
}

fn parse<'a, T: Deserialize<'a> + Default>(body: &'a [u8], version: Version) -> Result<T, Refusal> {
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|_| {
        let text = match version {
            _ if version.strict() => "invalid JSON: unexpected EOF",
            _ if version.has_ttl() => "invalid JSON: unexpected end of JSON input",
            _ => "invalid JSON",
        };
        Refusal::new(400, 10025, text)
    })
}

/// `{"seq":7}`, which is asked most.
fn plain_sequence(body: &[u8]) -> Option<u64> {
    let digits = body.strip_prefix(b"{\"seq\":")?.strip_suffix(b"}")?;
    super::header::number(digits).filter(|sequence| *sequence > 0)
}

fn which(body: &[u8], version: Version) -> Result<Which, Refusal> {
    if let Some(seq) = plain_sequence(body) {
        return Ok(Which {
            seq,
            ..Which::default()
        });
    }
    let which: Which = parse(body, version)?;
    let (last, next) = (
        !which.last_by_subj.is_empty(),
        !which.next_by_subj.is_empty(),
    );
    let sound = match (which.seq > 0, last, next) {
        (true, false, false) | (_, false, true) | (false, true, false) => true,
        (false, false, false) | (true, true, _) | (false, true, true) => false,
    };
    if sound {
        Ok(which)
    } else {
        Err(Refusal::new(400, 10003, "bad request"))
    }
}

fn find<'a>(stream: &'a Stream, which: &Which) -> Option<&'a Stored> {
    let has =
        |pattern: &str, stored: &Stored| subject::matches(pattern.as_bytes(), &stored.subject);
    if !which.next_by_subj.is_empty() {
        let mut from = stream.store.from(which.seq);
        return from.find(|stored| has(&which.next_by_subj, stored));
    }
    if which.last_by_subj.is_empty() {
        return stream.store.at(which.seq);
    }
    // That of `>` is looked for at the end only.
    if which.last_by_subj == ">" {
        return stream.store.at(stream.store.last());
    }
    let mut all = stream.store.iter().rev();
    all.find(|stored| has(&which.last_by_subj, stored))
}

fn message(stream: &Stream, body: &[u8], version: Version) -> Result<String, Refusal> {
    let which = which(body, version)?;
    let Some(stored) = find(stream, &which) else {
        return Err(Refusal::new(404, 10037, "no message found"));
    };
    let bytes = stored.subject.len() + (stored.headers.len() + stored.body.len()) * 4 / 3;
    let mut json = String::with_capacity(bytes + 192);
    json.push_str(&json::response("stream_msg_get"));
    let subject = String::from_utf8_lossy(&stored.subject);
    let _ = write!(
        json,
        r#","message":{{"subject":"{}","seq":{}"#,
        json::escaped(&subject),
        stored.sequence
    );
    for (name, bytes) in [("hdrs", &stored.headers), ("data", &stored.body)] {
        if !bytes.is_empty() {
            let _ = write!(json, r#","{name}":""#);
            STANDARD.encode_string(bytes, &mut json);
            json.push('"');
        }
    }
    let _ = write!(json, r#","time":"{}"}}}}"#, rfc3339(stored.time));
    Ok(json)
}

fn delete(stream: &mut Stream, sequence: u64, now: i64) -> Result<String, Refusal> {
    if stream.config.sealed {
        return Err(Refusal::sealed());
    }
    if stream.config.deny_delete {
        let text = "message delete not permitted";
        return Err(Refusal::new(500, 10057, text));
    }
    if sequence > stream.store.last() {
        return Err(Refusal::new(500, 10057, "stream store EOF"));
    }
    if stream.store.remove(sequence, (now, Gone::Deleted)) {
        return Ok(json::success("stream_msg_delete"));
    }
    let text = format!("sequence {sequence} not found");
    Err(Refusal::said(400, 10043, text))
}

fn purge(
    stream: &mut Stream,
    (body, version): (&[u8], Version),
    now: i64,
) -> Result<String, Refusal> {
    let question: Purge = parse(body, version)?;
    if stream.config.sealed {
        return Err(Refusal::sealed());
    }
    if stream.config.deny_purge {
        return Err(Refusal::new(500, 10110, "stream purge not permitted"));
    }
    let filter = question.filter.as_bytes();
    let purged = |stored: &&Stored| filter.is_empty() || subject::matches(filter, &stored.subject);
    let mut purged: Vec<u64> = stream
        .store
        .iter()
        .filter(purged)
        .map(|stored| stored.sequence)
        .collect();
    if question.seq > 0 {
        purged.retain(|sequence| *sequence < question.seq);
    }
    let kept = usize::try_from(question.keep).unwrap_or(usize::MAX);
    purged.truncate(purged.len().saturating_sub(kept));
    for sequence in &purged {
        stream.store.remove(*sequence, (now, Gone::Purged));
    }
    let mut json = json::response("stream_purge");
    let _ = write!(json, r#","success":true,"purged":{}}}"#, purged.len());
    Ok(json)
}

fn create(
    account: &mut Account,
    (name, body): (&str, &[u8]),
    (now, options): (i64, &Options),
) -> Result<String, Refusal> {
    let config = Config::read(body, options.version)?;
    if config.name != name {
        let text = "stream name in subject does not match request";
        return Err(Refusal::new(400, 10056, text));
    }
    config.check(options.servers)?;
    match account.streams.get(name) {
        Some(found) if found.config == config => {}
        Some(_) => {
            let text = "stream name already in use with a different configuration";
            return Err(Refusal::new(400, 10058, text));
        }
        None => {
            let mut others = account.streams.values();
            if others.any(|other| other.config.overlaps(&config)) {
                let text = "subjects overlap with an existing stream";
                return Err(Refusal::new(400, 10065, text));
            }
            account.create(config, now);
        }
    }
    let mut json = json::response("stream_create");
    json.push(',');
    describe(&mut json, &account.streams[name], false);
    let _ = write!(json, r#","ts":"{}","did_create":true}}"#, rfc3339(now));
    Ok(json)
}

fn update(
    account: &mut Account,
    (name, body): (&str, &[u8]),
    (now, options): (i64, &Options),
) -> Result<String, Refusal> {
    let config = Config::read(body, options.version)?;
    let stream = account.streams.get_mut(name).ok_or_else(missing)?;
    config.check(options.servers)?;
    stream.config.check_update(&config)?;
    stream.configure(|old| *old = config, now);
    let mut json = json::response("stream_update");
    json.push(',');
    describe(&mut json, stream, false);
    let _ = write!(json, r#","ts":"{}"}}"#, rfc3339(now));
    Ok(json)
}

fn names(account: &Account) -> String {
    let names: Vec<&str> = account.streams.keys().map(String::as_str).collect();
    let mut json = json::response("stream_names");
    let (total, all) = (names.len(), serde_json::json!(names));
    let _ = write!(
        json,
        r#","total":{total},"offset":0,"limit":1024,"streams":{all}}}"#
    );
    json
}

/// Without JSON, and from any replica: headers tell what was found.
fn direct(account: &Account, (name, body): (&str, &[u8]), leader: Leader) -> Said {
    let (name, subject) = name.split_once('.').unwrap_or((name, ""));
    let Some(stream) = account
        .streams
        .get(name)
        .filter(|it| it.config.allow_direct)
    else {
        return Said::Nobody;
    };
    if leader != Leader::Present || stream.leader == Leader::Silent {
        return Said::Silence;
    }
    let mut which: Which = serde_json::from_slice(body).unwrap_or_default();
    if !subject.is_empty() {
        subject.clone_into(&mut which.last_by_subj);
    }
    let status = |text: &str| Said::Reply(Reply::direct(format!("NATS/1.0 {text}\r\n\r\n"), b""));
    if which.seq == 0 && which.last_by_subj.is_empty() && which.next_by_subj.is_empty() {
        return status("408 Empty Request");
    }
    let Some(stored) = find(stream, &which) else {
        return status("404 Message Not Found");
    };
    let own = String::from_utf8_lossy(&stored.headers);
    let own = own.strip_suffix("\r\n").unwrap_or("NATS/1.0\r\n");
    let headers = format!(
        "{own}Nats-Stream: {name}\r\nNats-Subject: {}\r\nNats-Sequence: {}\r\n\
         Nats-Time-Stamp: {}\r\n\r\n",
        String::from_utf8_lossy(&stored.subject),
        stored.sequence,
        rfc3339(stored.time)
    );
    Said::Reply(Reply::direct(headers, &stored.body))
}
