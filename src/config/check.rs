//! From what is written to what is meant: every value is read, held against its limits and against
//! the others. The first mistake ends it, with its place.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::lists::{Routes, Tables, Texts};
use super::names::{
    check_bucket, check_pattern, check_prefix, check_publication, check_slot, check_stream,
};
use super::problem::{ConfigFile, config_failure, origin_place};
use super::raw::{Given, Raw};
use super::redact::{has_sound_port, redact_url};
use super::value::{
    Bytes, Ingress, OnOversize, OnReject, Refusal, Setting, Transactions, Url, duration_text,
};
use super::{
    ClaimCheck, Config, Http, Log, Messages, Nats, Postgres, Publish, Retention, Stream, Table, Tls,
};
use crate::error::Failure;
use crate::event::assemble;
use crate::sink::jetstream::streams::SHARED_WINDOW_MIN;

/// Limits of the durations that the world has to keep. Below, networks are slower than that; above,
/// a typo is likelier than the wish.
const WAITS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);
/// From the briefest that Postgres's own timer is good for, to where a takeover is no takeover.
const TAKEOVERS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// More often would only fill the servers' logs; less often nobody would wait for.
const HALT_RETRIES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const DRAINS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
const HOLDS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
/// nats-server refuses shorter ones (`JSStreamDuplicateWindow`, minimum 100 ms).
const STREAM_TIME_MIN: Duration = Duration::from_millis(100);
/// What a connection that broke still delivers arrives within a few seconds.
const WINDOW_MIN: Duration = Duration::from_secs(10);
/// A leader that hangs is thrown out after `takeover_after`; what it has sent arrives and its
/// successor has read the stream within this time.
pub(super) const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(5);
/// More than that in flight only waits in the server's queue.
const IN_FLIGHT: RangeInclusive<u32> = 1..=16_384;
/// Below, one ordinary event fills the window; above, memory is no longer small.
const IN_FLIGHT_BYTES: RangeInclusive<Bytes> = Bytes(64 << 10)..=Bytes(1 << 30);
/// nats-server's `StreamMaxReplicas`.
const REPLICAS: RangeInclusive<u32> = 1..=5;
/// Below, an event is hardly published when it is deleted; above, nobody means to delete.
const KEEPS: RangeInclusive<Duration> =
    Duration::from_secs(3600)..=Duration::from_secs(3650 * 24 * 3600);
/// Each is a table; a year of them is more than anybody needs ahead.
const DAYS_AHEAD: RangeInclusive<u32> = 1..=365;

/// Checks the whole.
pub(super) fn config(raw: Raw, config_file: Option<&ConfigFile>) -> Result<Config, Failure> {
    let check = Check {
        raw: &raw,
        config_file,
    };
    let (postgres, nats, stream) = (check.postgres()?, check.nats()?, check.stream()?);
    let (tables, messages, publish) = (check.tables()?, check.messages()?, check.publish()?);
    let (retention, http, log) = (check.retention()?, check.http()?, check.log()?);
    if tables.is_empty() {
        return Err(config_failure(
            "there is nothing to publish",
            "tables is empty",
            "name the outbox table in tables, or leave tables out: then it is outbox.events",
        ));
    }
    Ok(Config {
        postgres,
        tables,
        messages,
        nats,
        stream,
        publish,
        retention,
        http,
        log,
        file: config_file.map(|config_file| config_file.path.clone()),
        raw,
    })
}

struct Check<'a> {
    raw: &'a Raw,
    config_file: Option<&'a ConfigFile>,
}

/// Reads `$check.raw.a.b` under the name `a.b`.
macro_rules! read {
    ($check:ident . $first:ident $(. $next:ident)*) => {
        $check.read(
            concat!(stringify!($first) $(, ".", stringify!($next))*),
            &$check.raw.$first $(.$next)*,
        )?
    };
}

impl Check<'_> {
    fn postgres(&self) -> Result<Postgres, Failure> {
        Ok(Postgres {
            url: read!(self.postgres.url).optional().map(|Url(url)| url),
            slot: read!(self.postgres.slot).and_text(check_slot)?.required(),
            publication: read!(self.postgres.publication)
                .and_text(check_publication)?
                .required(),
            sslmode: read!(self.postgres.sslmode).optional(),
            sslrootcert: read!(self.postgres.sslrootcert).optional(),
            sslcert: read!(self.postgres.sslcert).optional(),
            sslkey: read!(self.postgres.sslkey).optional(),
            takeover_after: read!(self.postgres.takeover_after)
                .within(TAKEOVERS)?
                .required(),
            halt_retry: read!(self.postgres.halt_retry)
                .within(HALT_RETRIES)?
                .required(),
            connect_timeout: read!(self.postgres.connect_timeout)
                .within(WAITS)?
                .optional(),
        })
    }

    fn tables(&self) -> Result<Vec<Table>, Failure> {
        let twice = |Tables(tables): &Tables| {
            let mut seen = BTreeSet::new();
            match tables.iter().find(|table| !seen.insert(&table.name)) {
                None => Ok(()),
                Some(table) => Err(Refusal::new(
                    format!("names {} twice", table.name),
                    "remove one of the two",
                )),
            }
        };
        let kept = |Tables(tables): &Tables| {
            let mut keeps = tables.iter().filter_map(|table| table.keep.as_ref());
            keeps.try_for_each(|keep| {
                let named = |refusal: Refusal| Refusal {
                    what: format!("has keep: {}, which {}", duration_text(*keep), refusal.what),
                    ..refusal
                };
                within(keep, &KEEPS).map_err(named)
            })
        };
        Ok(read!(self.tables).and(twice)?.and(kept)?.required().0)
    }

    fn messages(&self) -> Result<Messages, Failure> {
        let Texts(prefixes) = read!(self.messages.prefixes)
            .and(check_prefixes)?
            .required();
        Ok(Messages { prefixes })
    }

    fn nats(&self) -> Result<Nats, Failure> {
        let user = read!(self.nats.user).optional();
        let password = read!(self.nats.password);
        if user.is_none() && password.value.is_some() {
            return Err(password.refuse("a password without a user", "give nats.user, too"));
        }
        Ok(Nats {
            url: read!(self.nats.url).and(check_servers)?.required().0,
            name: read!(self.nats.name).required(),
            creds: read!(self.nats.creds).file(),
            nkey: read!(self.nats.nkey).optional(),
            user,
            password: password.optional(),
            token: read!(self.nats.token).optional(),
            tls: self.tls()?,
            connect_timeout: read!(self.nats.connect_timeout).within(WAITS)?.required(),
            inbox_prefix: read!(self.nats.inbox_prefix)
                .and_text(check_prefix)?
                .required(),
            jetstream_domain: read!(self.nats.jetstream_domain).optional(),
        })
    }

    fn tls(&self) -> Result<Tls, Failure> {
        let cert = read!(self.nats.tls.cert);
        let key = read!(self.nats.tls.key);
        match (&cert.value, &key.value) {
            (Some(_), None) => {
                return Err(cert.refuse("a certificate without its key", "give nats.tls.key, too"));
            }
            (None, Some(_)) => {
                return Err(key.refuse("a key without its certificate", "give nats.tls.cert, too"));
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        Ok(Tls {
            ca: read!(self.nats.tls.ca).file(),
            identity: cert.file().zip(key.file()),
            first: read!(self.nats.tls.first).required(),
        })
    }

    fn stream(&self) -> Result<Stream, Failure> {
        let max_age = read!(self.stream.max_age).and(lasting)?;
        let takeover_after = read!(self.postgres.takeover_after).required();
        let unset = match read!(self.stream.shared).required() {
            true => SHARED_WINDOW_MIN * 2,
            false => WINDOW_MIN,
        };
        let window = read!(self.stream.duplicate_window)
            .within(STREAM_TIME_MIN..=Duration::MAX)?
            .optional()
            .unwrap_or(unset.max(takeover_after + TAKEN_OVER_WITHIN));
        let max_age = max_age.and(|age| match !age.is_zero() && *age < window {
            // nats-server refuses it: "duplicates window can not be larger then max age".
            true => Err(Refusal::new(
                format!(
                    "is less than stream.duplicate_window, {}",
                    duration_text(window)
                ),
                "write a longer max_age, or a duplicate_window that is no longer than it",
            )),
            false => Ok(()),
        })?;
        let max_age = max_age.required();
        let Bytes(max_bytes) = read!(self.stream.max_bytes)
            .and(|bytes: &Bytes| within(bytes, &(Bytes(0)..=Bytes(i64::MAX.unsigned_abs()))))?
            .required();
        Ok(Stream {
            name: read!(self.stream.name).and_text(check_stream)?.required(),
            subjects: read!(self.stream.subjects)
                .and(check_subjects)?
                .required()
                .0,
            ingress: read!(self.stream.ingress).required(),
            shared: self.shared()?,
            replicas: read!(self.stream.replicas).within(REPLICAS)?.required(),
            storage: read!(self.stream.storage).required(),
            manage: read!(self.stream.manage).required(),
            duplicate_window: window,
            max_age: (!max_age.is_zero()).then_some(max_age),
            max_bytes: (max_bytes != 0).then_some(max_bytes),
            hold: read!(self.stream.hold).within(HOLDS)?.required(),
        })
    }

    /// What rests on the chain, or takes a stream of our own, does not go with other writers.
    fn shared(&self) -> Result<bool, Failure> {
        let shared = read!(self.stream.shared).required();
        if !shared {
            return Ok(false);
        }
        let with = "does not go with stream.shared";
        let own = "leave it out, or give outjet a stream of its own";
        read!(self.stream.ingress).and(|ingress| match ingress {
            Ingress::Public => Ok(()),
            Ingress::Private => Err(Refusal::new(with, own)),
        })?;
        read!(self.stream.hold).and(|hold| match hold.is_zero() {
            true => Ok(()),
            false => Err(Refusal::new(with, own)),
        })?;
        read!(self.publish.transactions).and(|transactions| match transactions {
            Transactions::Pipelined => Ok(()),
            Transactions::Atomic => Err(Refusal::new(with, own)),
        })?;
        read!(self.stream.duplicate_window).and(|window| {
            if *window >= SHARED_WINDOW_MIN {
                return Ok(());
            }
            let what = "is too little for stream.shared, where nothing else keeps a copy out that \
                        arrives late";
            Err(Refusal::new(what, "write 2m; 1m or more"))
        })?;
        Ok(true)
    }

    fn publish(&self) -> Result<Publish, Failure> {
        let events = read!(self.publish.in_flight_max).within(IN_FLIGHT)?;
        let bytes = read!(self.publish.in_flight_bytes_max).within(IN_FLIGHT_BYTES)?;
        let on_reject = read!(self.publish.on_reject).required();
        let as_all = match on_reject {
            OnReject::DeadLetter => OnOversize::DeadLetter,
            OnReject::Halt => OnOversize::Halt,
        };
        Ok(Publish {
            subject: read!(self.publish.subject).and_text(not_empty)?.required(),
            routes: read!(self.publish.routes).and(check_routes)?.required().0,
            subject_prefix: read!(self.publish.subject_prefix)
                .and_text(check_prefix)?
                .optional(),
            format: read!(self.publish.format).required(),
            source: read!(self.publish.source).and_text(not_empty)?.optional(),
            on_reject,
            on_oversize: read!(self.publish.on_oversize).optional().unwrap_or(as_all),
            claim_check: self.claim_check()?,
            delayed: read!(self.publish.delayed).required(),
            transactions: read!(self.publish.transactions).required(),
            in_flight_max: events.required() as usize,
            in_flight_bytes_max: bytes.required().0 as usize,
            ack_timeout: read!(self.publish.ack_timeout).within(WAITS)?.required(),
            drain_timeout: read!(self.publish.drain_timeout).within(DRAINS)?.required(),
        })
    }

    fn claim_check(&self) -> Result<ClaimCheck, Failure> {
        let as_long = read!(self.stream.max_age).required();
        let kept = read!(self.publish.claim_check.max_age).and(lasting)?;
        let kept = kept.optional().unwrap_or(as_long);
        Ok(ClaimCheck {
            bucket: read!(self.publish.claim_check.bucket)
                .and_text(check_bucket)?
                .required(),
            max_age: (!kept.is_zero()).then_some(kept),
        })
    }

    fn retention(&self) -> Result<Retention, Failure> {
        Ok(Retention {
            manage: read!(self.retention.manage).required(),
            keep: read!(self.retention.keep).within(KEEPS)?.required(),
            ahead_days: read!(self.retention.ahead_days)
                .within(DAYS_AHEAD)?
                .required(),
        })
    }

    fn http(&self) -> Result<Http, Failure> {
        let listen = read!(self.http.listen).required();
        Ok(Http { listen })
    }

    fn log(&self) -> Result<Log, Failure> {
        Ok(Log {
            level: read!(self.log.level).required(),
            format: read!(self.log.format).required(),
        })
    }

    fn read<T: Setting>(
        &self,
        key: &'static str,
        given: &Option<Given<T>>,
    ) -> Result<Read<T>, Failure> {
        let Some(given) = given else {
            return Ok(Read::absent(key));
        };
        let shown = T::quoted(&given.written);
        // A text is marked as a whole, of a list or a secret only where it begins.
        let text = shown
            .strip_prefix('`')
            .and_then(|text| text.strip_suffix('`'));
        let marked = text.map_or(1, |text| text.chars().count());
        let mut read = Read {
            key,
            place: origin_place(&given.origin, self.config_file, marked),
            shown,
            value: None,
        };
        match T::read(&given.written) {
            Ok(value) => read.value = Some(value),
            Err(refusal) => {
                if let (Some(place), Some(config_file), super::Origin::File(_)) =
                    (refusal.place, self.config_file, &given.origin)
                {
                    read.place = config_file.place(place, 1);
                }
                return Err(read.refuse(&refusal.what, refusal.fix));
            }
        }
        Ok(read)
    }
}

/// A value that has been read, with what an error about it needs.
struct Read<T> {
    key: &'static str,
    place: String,
    shown: String,
    value: Option<T>,
}

impl<T> Read<T> {
    fn absent(key: &'static str) -> Self {
        Self {
            key,
            place: String::new(),
            shown: String::new(),
            value: None,
        }
    }

    fn optional(self) -> Option<T> {
        self.value
    }

    fn required(self) -> T {
        self.value
            .expect("config/outjet.yaml gives every such key a value")
    }

    /// Demands what `test` demands of the value, if there is one.
    fn and(self, test: impl FnOnce(&T) -> Result<(), Refusal>) -> Result<Self, Failure> {
        match self.value.as_ref().map(test) {
            Some(Err(refusal)) => {
                Err(self.refuse(&format!("{} {}", self.shown, refusal.what), refusal.fix))
            }
            Some(Ok(())) | None => Ok(self),
        }
    }

    fn within(self, range: RangeInclusive<T>) -> Result<Self, Failure>
    where
        T: Limited,
    {
        self.and(|value| within(value, &range))
    }

    fn refuse(&self, what: &str, fix: impl Into<String>) -> Failure {
        config_failure(format!("{}: {what}", self.key), self.place.clone(), fix)
    }
}

impl Read<String> {
    fn and_text(self, test: fn(&str) -> Result<(), Refusal>) -> Result<Self, Failure> {
        self.and(|text| test(text))
    }

    fn file(self) -> Option<PathBuf> {
        self.value.map(PathBuf::from)
    }
}

/// What has a smallest and a largest value.
trait Limited: PartialOrd {
    const MAX: Self;

    fn text(&self) -> String;
}

impl Limited for Duration {
    const MAX: Self = Self::MAX;

    fn text(&self) -> String {
        duration_text(*self)
    }
}

impl Limited for Bytes {
    const MAX: Self = Self(i64::MAX.unsigned_abs());

    fn text(&self) -> String {
        self.to_string()
    }
}

impl Limited for u32 {
    const MAX: Self = Self::MAX;

    fn text(&self) -> String {
        self.to_string()
    }
}

fn within<T: Limited>(value: &T, range: &RangeInclusive<T>) -> Result<(), Refusal> {
    let (least, most) = (range.start().text(), range.end().text());
    let fix = match *range.end() == T::MAX {
        true => format!("write {least} or more"),
        false => format!("write {least} to {most}"),
    };
    if value < range.start() {
        return Err(Refusal::new("is too little", fix));
    }
    match value > range.end() {
        true => Err(Refusal::new("is too much", fix)),
        false => Ok(()),
    }
}

/// An age of messages: zero is none.
fn lasting(age: &Duration) -> Result<(), Refusal> {
    match age.is_zero() {
        true => Ok(()),
        false => within(age, &(STREAM_TIME_MIN..=Duration::MAX)),
    }
}

fn not_empty(text: &str) -> Result<(), Refusal> {
    match text.is_empty() {
        true => Err(Refusal::new(
            "is empty",
            "write something, or leave the key out",
        )),
        false => Ok(()),
    }
}

fn check_servers(Url(url): &Url) -> Result<(), Refusal> {
    const FIX: &str = "write nats://host:4222 or tls://host:4222, several separated by commas";
    for server in url.expose().split(',') {
        let (scheme, host) = server.split_once("://").unwrap_or(("nats", server));
        if host.trim().is_empty() {
            return Err(Refusal::new(
                "has an empty place where a server should stand",
                FIX,
            ));
        }
        // Shown is the whole: a comma in a password makes servers of its parts.
        if !has_sound_port(host.trim()) {
            let what = format!("has a port that is no number: {}", redact_url(url.expose()));
            return Err(Refusal::new(
                what,
                "write the port as a number, and a comma in a password as %2C",
            ));
        }
        if !matches!(scheme.trim(), "nats" | "tls") {
            let what = format!("has an unknown scheme: {}", redact_url(url.expose()));
            return Err(Refusal::new(what, FIX));
        }
    }
    Ok(())
}

fn check_subjects(Texts(subjects): &Texts) -> Result<(), Refusal> {
    if subjects.is_empty() {
        return Err(Refusal::new(
            "is empty",
            "write at least one subject: [events.>]",
        ));
    }
    subjects
        .iter()
        .try_for_each(|subject| named(subject, check_pattern(subject)))
}

fn check_prefixes(Texts(prefixes): &Texts) -> Result<(), Refusal> {
    let reserved = |prefix: &&String| *prefix == assemble::HANDOVER;
    if prefixes.iter().any(|prefix| prefix.is_empty()) {
        return Err(Refusal::new("has an empty prefix", "remove it"));
    }
    match prefixes.iter().find(reserved) {
        Some(prefix) => Err(Refusal::new(
            format!("has `{prefix}`, which outjet itself uses for `outjet replay`"),
            "choose another prefix",
        )),
        None => Ok(()),
    }
}

fn check_routes(Routes(routes): &Routes) -> Result<(), Refusal> {
    routes.iter().try_for_each(|route| {
        named(&route.pattern, check_pattern(&route.pattern))?;
        named(&route.to, not_empty(&route.to))
    })
}

/// Says which entry of the list it is.
fn named(entry: &str, result: Result<(), Refusal>) -> Result<(), Refusal> {
    result.map_err(|refusal| Refusal {
        what: format!("has `{entry}`, which {}", refusal.what),
        ..refusal
    })
}
