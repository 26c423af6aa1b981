//! The server behind its connections: who listens to what, and where an answer goes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::accept::Outcome;
use super::config::Config;
use super::connection::{Connection, Subscription};
use super::json::{self, Refusal};
use super::store::Draft;
use super::stream::Stream;
use super::wire::{Limits, Published};
use super::{Answer, Fate, Incarnation, Kind, Leader, Options, Writer, api, header, subject};

/// The server.
pub(super) struct Hub {
    pub(super) options: Options,
    epoch: Instant,
    /// How often it was started.
    starts: u64,
    opened: u64,
    connections: BTreeMap<u64, Connection>,
    pub(super) home: Account,
    twin: Option<Account>,
    /// What was stored by twins that are gone.
    twins_past: Vec<Incarnation>,
    pub(super) leader: Leader,
    /// Patterns that clients may not publish and subscribe to.
    denied: (Vec<String>, Vec<String>),
    pub(super) paused: bool,
    pub(super) lame_duck: bool,
    pub(super) jetstream: bool,
    pub(super) decide: Box<dyn FnMut(&Answer<'_>) -> Fate + Send>,
}

/// The streams of a domain.
pub(super) struct Account {
    pub(super) domain: Option<String>,
    twin: bool,
    pub(super) streams: BTreeMap<String, Stream>,
    past: Vec<Incarnation>,
}

/// What the server answers.
pub(super) struct Reply {
    kind: Kind,
    stream: Option<Arc<str>>,
    headers: Vec<u8>,
    body: String,
    /// Instead of `body`, where that may be no text.
    raw: Option<Vec<u8>>,
}

impl Reply {
    pub(super) fn api(body: String) -> Self {
        Self {
            kind: Kind::Api,
            stream: None,
            headers: Vec::new(),
            body,
            raw: None,
        }
    }

    /// Headers, and a body that may be no text.
    pub(super) fn direct(headers: String, body: &[u8]) -> Self {
        Self {
            headers: headers.into_bytes(),
            raw: Some(body.to_vec()),
            ..Self::api(String::new())
        }
    }

    fn body(&self) -> &[u8] {
        self.raw.as_deref().unwrap_or(self.body.as_bytes())
    }
}

impl Account {
    fn new(domain: Option<String>, twin: bool) -> Self {
        Self {
            domain,
            twin,
            streams: BTreeMap::new(),
            past: Vec::new(),
        }
    }

    pub(super) fn create(&mut self, config: Config, now: i64) {
        let name = config.name.clone();
        let stream = Stream::new(config, (now, self.twin));
        self.streams.insert(name, stream);
    }

    /// Ends a stream.
    pub(super) fn remove(&mut self, name: &str, now: i64) -> Option<Config> {
        let mut stream = self.streams.remove(name)?;
        stream.store.end((now, super::Gone::Stream));
        self.past.push(stream.store.past);
        Some(stream.config)
    }

    fn incarnations(&self) -> impl Iterator<Item = &Incarnation> {
        let live = self.streams.values().map(|stream| &stream.store.past);
        self.past.iter().chain(live)
    }

    fn restart(&mut self, now: i64) {
        let memory = |stream: &Stream| stream.config.storage == super::config::Storage::Memory;
        let lost = self.streams.values().filter(|it| memory(it));
        let lost: Vec<String> = lost.map(|stream| stream.config.name.clone()).collect();
        for name in lost {
            self.remove(&name, now);
        }
        for stream in self.streams.values_mut() {
            stream.batches.clear();
            stream.read_ids_again();
        }
    }
}

impl Hub {
    pub(super) fn new(options: Options) -> Self {
        Self {
            home: Account::new(options.domain.clone(), false),
            options,
            epoch: Instant::now(),
            starts: 1,
            opened: 0,
            connections: BTreeMap::new(),
            twin: None,
            twins_past: Vec::new(),
            leader: Leader::Present,
            denied: (Vec::new(), Vec::new()),
            paused: false,
            lame_duck: false,
            jetstream: true,
            decide: Box::new(|_| Fate::Now),
        }
    }

    /// Nanoseconds since 1970.
    pub(super) fn now(&self) -> i64 {
        let since = self.epoch.elapsed().as_nanos();
        self.options.base + i64::try_from(since).expect("centuries")
    }

    /// Everything that is due happens.
    pub(super) fn advance(&mut self) {
        let now = self.now();
        let twins = self
            .twin
            .iter_mut()
            .flat_map(|twin| twin.streams.values_mut());
        for stream in self.home.streams.values_mut().chain(twins) {
            stream.advance(now);
        }
    }

    pub(super) fn incarnations(&self) -> Vec<&Incarnation> {
        let mut all: Vec<&Incarnation> = self.home.incarnations().collect();
        all.extend(&self.twins_past);
        all.extend(self.twin.iter().flat_map(Account::incarnations));
        all
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            payload: self.options.max_payload,
            line: self.options.max_control_line,
        }
    }

    pub(super) fn open(&mut self) -> u64 {
        self.opened += 1;
        let number = self.opened;
        let info = self.info(number, false);
        let connection = Connection {
            output: info,
            ..Connection::default()
        };
        self.connections.insert(number, connection);
        number
    }

    pub(super) fn close(&mut self, number: u64) {
        self.connections.remove(&number);
    }

    pub(super) fn connection(&mut self, number: u64) -> &mut Connection {
        let found = self.connections.get_mut(&number);
        found.expect("it is served")
    }

    pub(super) fn info(&self, number: u64, signed_in: bool) -> Vec<u8> {
        let Options {
            version,
            domain,
            max_payload,
            ..
        } = &self.options;
        let mut info = format!(
            r#"INFO {{"server_id":"N{:055}","server_name":"n1","version":"{}","proto":1,"#,
            self.starts,
            version.text()
        );
        let _ = write!(
            info,
            r#""host":"sim","port":4222,"headers":true,"max_payload":{max_payload},"#
        );
        if self.jetstream {
            info.push_str(r#""jetstream":true,"#);
        }
        let _ = write!(info, r#""client_id":{number},"client_ip":"127.0.0.1""#);
        if let Some(domain) = domain {
            let _ = write!(info, r#","domain":"{domain}""#);
        }
        if self.lame_duck {
            info.push_str(r#","ldm":true"#);
        }
        if signed_in && version.names_subjects() {
            info.push_str(r#","connect_info":true,"remote_account":"$G""#);
        }
        if version.names_subjects() {
            let _ = write!(info, r#","api_lvl":{}"#, version.api_level());
        }
        info.push_str("} \r\n");
        info.into_bytes()
    }

    /// Connections are told what has changed.
    pub(super) fn tell_info(&mut self) {
        let numbers: Vec<u64> = self.connections.keys().copied().collect();
        for number in numbers {
            let info = self.info(number, true);
            let connection = self.connection(number);
            if connection.signed_in {
                connection.output.extend_from_slice(&info);
                connection.wake();
            }
        }
    }

    pub(super) fn wake_all(&mut self) {
        self.connections.values_mut().for_each(Connection::wake);
    }

    pub(super) fn disconnect(&mut self) {
        for connection in self.connections.values_mut() {
            connection.closing = true;
            connection.late.clear();
            connection.wake();
        }
    }

    pub(super) fn restart(&mut self) {
        let now = self.now();
        self.starts += 1;
        self.lame_duck = false;
        self.home.restart(now);
        if let Some(twin) = &mut self.twin {
            twin.restart(now);
        }
        self.disconnect();
    }

    pub(super) fn set_twin(&mut self, domain: &str, config: Option<&str>) {
        let now = self.now();
        if let Some(mut twin) = self.twin.take() {
            let names: Vec<String> = twin.streams.keys().cloned().collect();
            for name in names {
                twin.remove(&name, now);
            }
            self.twins_past.append(&mut twin.past);
        }
        if let Some(config) = config {
            let read = Config::read(config.as_bytes(), self.options.version);
            let mut twin = Account::new(Some(domain.to_owned()), true);
            twin.create(read.expect("a configuration"), now);
            self.twin = Some(twin);
        }
    }

    pub(super) fn subscribe(&mut self, number: u64, (subject, id): (&[u8], &[u8])) {
        let mut denied = self.denied.1.iter();
        if denied.any(|pattern| subject::matches(pattern.as_bytes(), subject)) {
            self.tell_denied(number, ("Subscription", subject));
            return;
        }
        self.connection(number).subscriptions.push(Subscription {
            subject: subject.to_vec(),
            number: id.to_vec(),
            left: None,
        });
    }

    pub(super) fn deny(&mut self, publish: Vec<String>, subscribe: Vec<String>) {
        for connection in self.connections.values_mut() {
            connection.end_denied(&subscribe);
        }
        self.denied = (publish, subscribe);
    }

    fn tell_denied(&mut self, number: u64, (what, subject): (&str, &[u8])) {
        let subject = String::from_utf8_lossy(subject);
        let error = format!("-ERR 'Permissions Violation for {what} to \"{subject}\"'\r\n");
        let connection = self.connection(number);
        connection.output.extend_from_slice(error.as_bytes());
    }

    /// A client publishes.
    pub(super) fn publish(&mut self, number: u64, published: &Published<'_>) {
        let mut denied = self.denied.0.iter();
        if denied.any(|pattern| subject::matches(pattern.as_bytes(), published.subject)) {
            self.tell_denied(number, ("Publish", published.subject));
            return;
        }
        let mut replies = Vec::new();
        let taken = self.route(Writer::Connection(number), published, &mut replies);
        let delivered = self.deliver(published);
        if published.reply.is_empty() {
            return;
        }
        if !taken && !delivered {
            replies.push(self.nobody(published.subject));
        }
        for reply in replies {
            self.answer(number, published.reply, reply);
        }
    }

    /// Somebody else asks.
    pub(super) fn ask(&mut self, subject: &str, lines: &str, body: &[u8]) -> Option<Vec<u8>> {
        let headers = header::block(lines);
        let published = Published {
            subject: subject.as_bytes(),
            reply: b"_",
            headers: &headers,
            body,
        };
        let mut replies = Vec::new();
        self.route(Writer::Stranger, &published, &mut replies);
        let first = replies.into_iter().next()?;
        Some(first.raw.unwrap_or(first.body.into_bytes()))
    }

    fn nobody(&self, subject: &[u8]) -> Reply {
        let headers = match self.options.version.names_subjects() {
            true => {
                let subject = String::from_utf8_lossy(subject);
                format!("NATS/1.0 503\r\nNats-Subject: {subject}\r\n\r\n")
            }
            false => "NATS/1.0 503\r\n\r\n".to_owned(),
        };
        Reply {
            kind: Kind::Nobody,
            ..Reply::direct(headers, b"")
        }
    }

    fn answer(&mut self, number: u64, to: &[u8], reply: Reply) {
        let answer = Answer {
            connection: number,
            stream: reply.stream.as_deref().unwrap_or_default(),
            kind: reply.kind,
        };
        match (self.decide)(&answer) {
            Fate::Never => {}
            Fate::After(delay) if delay > Duration::ZERO => {
                let due = Instant::now() + delay;
                let connection = self.connection(number);
                connection.made += 1;
                let made = connection.made;
                connection.late.insert((due, made), (to.to_vec(), reply));
            }
            Fate::Now | Fate::After(_) => self.send(to, &reply),
        }
    }

    fn send(&mut self, to: &[u8], reply: &Reply) {
        self.deliver(&Published {
            subject: to,
            reply: b"",
            headers: &reply.headers,
            body: reply.body(),
        });
    }

    /// What is late and due goes out. When the next is due.
    pub(super) fn send_due(&mut self, number: u64) -> Option<Instant> {
        let now = Instant::now();
        loop {
            let connection = self.connection(number);
            let first = connection.late.first_entry()?;
            if first.key().0 > now {
                return Some(first.key().0);
            }
            let (to, reply) = first.remove();
            self.send(&to, &reply);
        }
    }

    /// Whether anybody has subscribed to it.
    fn deliver(&mut self, published: &Published<'_>) -> bool {
        let mut delivered = false;
        for connection in self.connections.values_mut() {
            delivered |= connection.deliver(published);
        }
        delivered
    }

    /// Whether JetStream takes it.
    fn route(
        &mut self,
        writer: Writer,
        published: &Published<'_>,
        replies: &mut Vec<Reply>,
    ) -> bool {
        if !self.jetstream || self.lame_duck {
            return false;
        }
        match self.api_of(published.subject) {
            Some((Some(domain), name)) if name.starts_with(b"$") => {
                let published = Published {
                    subject: name,
                    ..*published
                };
                let twin = Some(domain) != self.home.domain.as_deref();
                let only = if twin { Only::Twin } else { Only::Home };
                self.store(writer, (&published, only), replies)
            }
            Some((domain, name)) => {
                let twin = domain.is_some() && domain != self.home.domain.as_deref();
                let (now, options) = (self.now(), &self.options);
                let (leader, twins) = (self.leader, self.twin.as_mut());
                let account = if twin { twins } else { Some(&mut self.home) };
                let Some(account) = account else {
                    return false;
                };
                let asked = api::Asked { name, published };
                match api::answer(account, &asked, (now, options, leader)) {
                    api::Said::Reply(reply) => replies.push(reply),
                    api::Said::Silence => {}
                    api::Said::Nobody => return false,
                }
                true
            }
            None => self.store(writer, (published, Only::All), replies),
        }
    }

    /// The domain that is asked, and what is asked; only `$JS.<domain>.API` leads to buckets.
    fn api_of<'a>(&self, subject: &'a [u8]) -> Option<(Option<&'a str>, &'a [u8])> {
        let rest = subject.strip_prefix(b"$JS.")?;
        if let Some(name) = rest.strip_prefix(b"API.") {
            return Some((None, name));
        }
        let dot = rest.iter().position(|byte| *byte == b'.')?;
        let name = rest[dot + 1..].strip_prefix(b"API.")?;
        let domain = str::from_utf8(&rest[..dot]).ok()?;
        let twin = self.twin.as_ref().and_then(|twin| twin.domain.as_deref());
        let known = self.home.domain.as_deref() == Some(domain) || twin == Some(domain);
        let bucket = name.starts_with(b"$KV.") || name.starts_with(b"$O.");
        let asked = known && (bucket || api::knows(name));
        asked.then_some((Some(domain), name))
    }

    fn store(
        &mut self,
        writer: Writer,
        (published, only): (&Published<'_>, Only),
        replies: &mut Vec<Reply>,
    ) -> bool {
        if !subject::is_valid(published.subject) || self.leader.refuses() {
            return false;
        }
        let (now, version) = (self.now(), self.options.version);
        let silent = self.leader.is_silent();
        let home = Some(&mut self.home).filter(|_| only != Only::Twin);
        let twin = self.twin.as_mut().filter(|_| only != Only::Home);
        let mut taken = false;
        for account in home.into_iter().chain(twin) {
            let domain = account.domain.as_deref();
            let mut streams = account.streams.values_mut();
            let found = streams.find(|stream| stream.config.listens(published.subject));
            let Some(stream) = found.filter(|stream| !stream.leader.refuses()) else {
                continue;
            };
            taken = true;
            if silent || stream.leader.is_silent() {
                continue;
            }
            let transform = stream.config.subject_transform.as_ref();
            let transformed =
                transform.and_then(|it| subject::transform(published.subject, &it.src, &it.dest));
            let draft = Draft {
                subject: transformed.as_deref().unwrap_or(published.subject),
                headers: published.headers,
                body: published.body,
                writer,
                time: now,
            };
            let outcome = stream.accept(draft, version);
            if !published.reply.is_empty() && !stream.config.no_ack {
                let mut reply = acknowledge(stream, outcome, (domain, version));
                if account.twin {
                    reply = reply.map(|reply| Reply {
                        kind: Kind::Twin,
                        ..reply
                    });
                }
                replies.extend(reply);
            }
        }
        taken
    }
}

impl Leader {
    /// Publishes get 503.
    fn refuses(self) -> bool {
        self == Self::NoResponders
    }

    /// They get nothing.
    fn is_silent(self) -> bool {
        matches!(self, Self::Silent | Self::NoQuorum)
    }
}

/// Whose streams are meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Only {
    All,
    Home,
    Twin,
}

fn acknowledge(
    stream: &Stream,
    outcome: Outcome,
    (domain, version): (Option<&str>, super::Version),
) -> Option<Reply> {
    let name = &*stream.name;
    let refused = |refusal: &Refusal| {
        (
            Kind::Refused(refusal.err_code),
            json::refused(name, refusal),
        )
    };
    let (kind, body) = match outcome {
        Outcome::Silence => return None,
        Outcome::Staged => (Kind::Staged, String::new()),
        Outcome::Stored(at) => (
            Kind::Stored(at),
            json::stored((name, at), domain, None, version),
        ),
        Outcome::Committed(at, id, count) => (
            Kind::Stored(at),
            json::stored((name, at), domain, Some((&id, count)), version),
        ),
        Outcome::Duplicate(at) => (
            Kind::Duplicate(at),
            json::duplicate((name, at), domain, version),
        ),
        Outcome::Refused(refusal) => refused(&refusal),
    };
    Some(Reply {
        kind,
        stream: Some(Arc::clone(&stream.name)),
        headers: Vec::new(),
        body,
        raw: None,
    })
}
