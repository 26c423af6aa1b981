//! What one value of the configuration may be: its written form, its JSON Schema, what it means,
//! and how it is shown. Knows neither files nor the environment nor the names of the keys.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use serde_saphyr::Location;

use super::redact::redact_url;

/// Why a written value is not taken, in two parts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// What is wrong. A [`Scalar`] leaves out the value: "has no unit".
    pub(super) what: String,
    /// What to write instead.
    pub(super) fix: String,
    /// Where in the file, if more is known than where the whole value begins.
    pub(super) place: Option<Location>,
}

impl Refusal {
    pub(super) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            fix: fix.into(),
            place: None,
        }
    }
}

/// A kind of value.
pub(super) trait Setting: Sized {
    /// What YAML gives for it: the text of a scalar, or a list.
    type Written: DeserializeOwned + fmt::Debug;
    /// No error and no log may repeat what is written.
    const SECRET: bool = false;

    /// What a variable or a flag holds for it.
    fn from_text(text: &str) -> Result<Self::Written, Box<serde_saphyr::Error>>;
    /// What is meant by it.
    fn read(written: &Self::Written) -> Result<Self, Refusal>;
    /// As an error names it.
    fn quoted(_: &Self::Written) -> String {
        "the list".to_owned()
    }
    /// As YAML on one line, without secrets.
    fn shown(written: &Self::Written) -> String;
    /// The JSON Schema of the written form.
    fn schema() -> Value;
}

/// A [`Setting`] that is written as one scalar. Its text is taken as it stands, so that a numeric
/// password stays what it is.
pub(super) trait Scalar: Sized {
    const SECRET: bool = false;

    fn parse(text: &str) -> Result<Self, Refusal>;
    fn schema() -> Value {
        json!({"type": "string"})
    }
    fn redact(text: &str) -> String {
        text.to_owned()
    }
}

impl<T: Scalar> Setting for T {
    type Written = String;
    const SECRET: bool = <T as Scalar>::SECRET;

    fn from_text(text: &str) -> Result<String, Box<serde_saphyr::Error>> {
        Ok(text.to_owned())
    }

    fn read(written: &String) -> Result<Self, Refusal> {
        T::parse(written).map_err(|refusal| Refusal {
            what: format!("{} {}", Self::quoted(written), refusal.what),
            ..refusal
        })
    }

    fn quoted(written: &String) -> String {
        match <Self as Setting>::SECRET {
            true => "the value".to_owned(),
            false => format!("`{written}`"),
        }
    }

    fn shown(written: &String) -> String {
        let text = T::redact(written);
        let typed = <T as Scalar>::schema()["type"] != "string";
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        let word = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
        let number_and_unit = text.parse::<Bytes>().is_ok() || Duration::parse(&text).is_ok();
        if typed || number_and_unit || (word && text.chars().all(plain) && !is_keyword(&text)) {
            text
        } else {
            Value::from(text).to_string()
        }
    }

    fn schema() -> Value {
        <T as Scalar>::schema()
    }
}

/// What some YAML readers take for a boolean or nothing where it is not quoted.
fn is_keyword(text: &str) -> bool {
    const KEYWORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    KEYWORDS.contains(&text.to_ascii_lowercase().as_str())
}

impl Scalar for String {
    fn parse(text: &str) -> Result<Self, Refusal> {
        match text.chars().find(|c| c.is_control()) {
            None => Ok(text.to_owned()),
            Some(c) => Err(Refusal::new(
                format!("holds the control character {c:?}"),
                "remove it",
            )),
        }
    }
}

impl Scalar for PathBuf {
    fn parse(text: &str) -> Result<Self, Refusal> {
        String::parse(text).map(Self::from)
    }
}

impl Scalar for bool {
    fn parse(text: &str) -> Result<Self, Refusal> {
        text.parse()
            .map_err(|_| Refusal::new("is neither true nor false", "write true or false"))
    }

    fn schema() -> Value {
        json!({"type": "boolean"})
    }
}

impl Scalar for u32 {
    fn parse(text: &str) -> Result<Self, Refusal> {
        text.parse()
            .map_err(|_| Refusal::new("is not a whole number", "write digits only"))
    }

    fn schema() -> Value {
        json!({"type": "integer", "minimum": 0})
    }
}

/// Where HTTP is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// At this address; port 0 is any that is free.
    At(SocketAddr),
}

impl Scalar for Listen {
    fn parse(text: &str) -> Result<Self, Refusal> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse().map(Self::At).map_err(|_| {
            Refusal::new(
                "is not an IP address with a port",
                "write one, as in 0.0.0.0:9464 or [::]:9464, or off",
            )
        })
    }
}

/// Text that no log and no error shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, for the one who signs in with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Scalar for Secret {
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, Refusal> {
        Ok(Self(text.to_owned()))
    }

    fn redact(_: &str) -> String {
        "***".to_owned()
    }
}

/// Where a server is, possibly with a password in it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Url(pub(super) Secret);

impl Scalar for Url {
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, Refusal> {
        Ok(Self(Secret(text.to_owned())))
    }

    fn redact(text: &str) -> String {
        redact_url(text)
    }
}

impl Scalar for Duration {
    fn parse(text: &str) -> Result<Self, Refusal> {
        const UNITS: [(&str, u64); 5] = [
            ("ms", 1),
            ("s", 1_000),
            ("m", 60_000),
            ("h", 3_600_000),
            ("d", 86_400_000),
        ];
        const EXAMPLE: &str = "write a number and a unit: 500ms, 30s, 2m, 12h or 7d";
        quantity(text, &UNITS, EXAMPLE).map(Duration::from_millis)
    }

    fn schema() -> Value {
        json!({"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$"})
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) struct Bytes(pub(super) u64);

impl std::str::FromStr for Bytes {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        const UNITS: [(&str, u64); 5] = [
            ("B", 1),
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40),
        ];
        const EXAMPLE: &str = "write a number and a unit: 512B, 64KiB, 32MiB, 2GiB or 1TiB";
        quantity(text, &UNITS, EXAMPLE).map(Self)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut number = self.0;
        let mut unit = 0;
        while number != 0 && number.is_multiple_of(1024) && unit + 1 < UNITS.len() {
            number /= 1024;
            unit += 1;
        }
        write!(f, "{number}{}", UNITS[unit])
    }
}

impl Scalar for Bytes {
    fn parse(text: &str) -> Result<Self, Refusal> {
        text.parse()
    }

    fn schema() -> Value {
        json!({"type": "string", "pattern": "^[0-9]+(B|KiB|MiB|GiB|TiB)$"})
    }
}

/// `<digits><unit>` as a count of the smallest unit.
fn quantity(text: &str, units: &[(&str, u64)], example: &str) -> Result<u64, Refusal> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let refusal = |what: String| Refusal::new(what, example);
    if number.is_empty() {
        return Err(refusal("is not a number with a unit".to_owned()));
    }
    if unit.is_empty() {
        return Err(refusal("has no unit".to_owned()));
    }
    let Some((_, size)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(refusal(format!("has the unknown unit {unit:?}")));
    };
    let number: Option<u64> = number.parse().ok();
    number
        .and_then(|number| number.checked_mul(*size))
        .ok_or_else(|| refusal("is too large".to_owned()))
}

/// A duration as it may be written, or how it should be.
pub fn duration(text: &str) -> Result<Duration, String> {
    <Duration as Scalar>::parse(text).map_err(|refusal| refusal.fix)
}

/// A duration as it is written: with the largest unit that divides it.
pub fn duration_text(duration: Duration) -> String {
    const UNITS: [(&str, u128); 4] = [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
    ];
    let millis = duration.as_millis();
    let unit = UNITS
        .iter()
        .find(|(_, size)| millis.is_multiple_of(*size) && millis != 0);
    match unit {
        Some((unit, size)) => format!("{}{unit}", millis / size),
        None if millis == 0 => "0s".to_owned(),
        None => format!("{millis}ms"),
    }
}

/// One of a few words.
macro_rules! choice {
    (
        $(#[doc = $about:literal])+
        $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[doc = $doc])+ $variant),+ }

        impl $name {
            /// Every word, in the order of the documentation.
            pub const WORDS: &[&str] = &[$($word),+];

            /// The word that is written for it.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl Scalar for $name {
            fn parse(text: &str) -> Result<Self, Refusal> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(unknown_word(text, Self::WORDS)),
                }
            }

            fn schema() -> Value {
                json!({"enum": Self::WORDS, "type": "string"})
            }
        }
    };
}

fn unknown_word(text: &str, words: &[&str]) -> Refusal {
    let all = words.join(", ");
    let fix = match nearest(text, words) {
        Some(word) => format!("did you mean `{word}`? It can be: {all}"),
        None => format!("write one of: {all}"),
    };
    Refusal::new("is not one of the possible words", fix)
}

/// The word that was probably meant: one that the text begins with or is the beginning of, else one
/// with at most a third of its letters wrong (of a short one, one letter).
pub(super) fn nearest<'a>(text: &str, words: &[&'a str]) -> Option<&'a str> {
    const PREFIX_MIN: usize = 3;
    let text = text.to_lowercase();
    let akin = |word: &str| {
        let shorter = text.len().min(word.len());
        shorter >= PREFIX_MIN && (text.starts_with(word) || word.starts_with(&text))
    };
    let distance = |word: &str| strsim::osa_distance(&text, word);
    let near = words
        .iter()
        .filter(|word| distance(word) <= (word.len() / 3).max(1));
    let near = near.min_by_key(|word| distance(word));
    near.or_else(|| words.iter().find(|word| akin(word)))
        .copied()
}

choice! {
    /// How much the connection to Postgres is protected; libpq's meaning.
    SslMode {
        /// No TLS.
        Disable = "disable",
        /// TLS only if the server insists.
        Allow = "allow",
        /// TLS if the server has it.
        Prefer = "prefer",
        /// TLS, whoever answers.
        Require = "require",
        /// TLS, and a certificate that a trusted authority signed.
        VerifyCa = "verify-ca",
        /// The same, and it names the host.
        VerifyFull = "verify-full",
    }
}

choice! {
    /// A known layout of an outbox table.
    Preset {
        /// `outbox.events` as `outjet setup` makes it.
        Native = "native",
        /// Debezium's outbox event router.
        Debezium = "debezium",
        /// `outboxes` with topic, metadata and payload.
        PgOutbox = "pg-outbox",
        /// `outbox_events` with `published_at`.
        OutboxEvents = "outbox-events",
        /// The same with a trace carrier, a status and an attempt count.
        RelayEvents = "relay-events",
        /// Tenant, versions, privacy and scheduling.
        Envelope = "envelope",
        /// Open Outbox Relay.
        OpenOutbox = "open-outbox",
        /// Watermill's SQL Pub/Sub.
        Watermill = "watermill",
        /// Eventuate Tram.
        Eventuate = "eventuate",
        /// The npm package of that name.
        PgTransactionalOutbox = "pg-transactional-outbox",
        /// No layout: only what `columns` says.
        None = "none",
    }
}

choice! {
    /// What a column (or a constant) of an outbox table is used for.
    Field {
        /// The event's identity.
        Id = "id",
        /// The whole subject of this event.
        Topic = "topic",
        /// What kind of thing the event is about.
        AggregateType = "aggregatetype",
        /// Which one.
        AggregateId = "aggregateid",
        /// What happened.
        Type = "type",
        /// The body, as text or JSON.
        Payload = "payload",
        /// A second place for the body: where `payload` is NULL.
        PayloadRaw = "payload_raw",
        /// The body's media type.
        ContentType = "content_type",
        /// A JSON object of further headers.
        Headers = "headers",
        /// Whose event it is.
        TenantId = "tenant_id",
        /// What it belongs together with.
        CorrelationId = "correlation_id",
        /// W3C trace context.
        Traceparent = "traceparent",
        /// W3C trace context.
        Tracestate = "tracestate",
        /// W3C baggage.
        Baggage = "baggage",
        /// When it happened.
        CreatedAt = "created_at",
        /// When consumers are to get it.
        DeliverAt = "deliver_at",
        /// From when on it is of no use.
        ExpiresAt = "expires_at",
        /// For consumers that recognise repeated requests.
        DedupKey = "dedup_key",
        /// The version of the payload's schema.
        SchemaVersion = "schema_version",
        /// The trace, where there is no trace context.
        TraceId = "trace_id",
        /// Who made the event.
        Producer = "producer",
        /// Whether the payload holds personal data.
        Pii = "pii",
        /// Which members of it do.
        PiiFields = "pii_fields",
        /// What the person agreed to.
        Consent = "consent",
        /// JSON beside the payload.
        Metadata = "metadata",
    }
}

choice! {
    /// What becomes of the stream at start-up.
    Manage {
        /// It must exist.
        Check = "check",
        /// It is made if it is missing, then checked.
        Create = "create",
    }
}

choice! {
    /// Where the stream takes events.
    Ingress {
        /// On its subjects: everybody who may publish there writes into it.
        Public = "public",
        /// On `_outjet.<stream.name>.>`: it stores what comes there under its subjects.
        Private = "private",
    }
}

choice! {
    /// Where JetStream keeps the stream.
    Storage {
        /// On disk.
        File = "file",
        /// In memory: gone with the server.
        Memory = "memory",
    }
}

choice! {
    /// How an event is written as a message.
    Format {
        /// The body as it is, CloudEvents attributes as headers.
        CloudEvents = "cloudevents",
        /// The body as it is, and only the headers that every format has.
        Minimal = "minimal",
        /// CloudEvents as one JSON object.
        Structured = "structured",
        /// A JSON object with version, tenant, producer and privacy around the payload.
        Envelope = "envelope",
    }
}

choice! {
    /// What becomes of an event that cannot be published.
    OnReject {
        /// It goes to the stream of the dead letters.
        DeadLetter = "dead_letter",
        /// Publishing stops before it, until a person has acted.
        Halt = "halt",
    }
}

choice! {
    /// What becomes of an event that no message holds.
    OnOversize {
        /// It goes to the stream of the dead letters.
        DeadLetter = "dead_letter",
        /// Publishing stops before it, until a person has acted.
        Halt = "halt",
        /// Its body goes into a bucket of the object store, and the event says where.
        ObjectStore = "object_store",
    }
}

choice! {
    /// What becomes of an event whose `deliver_at` lies behind its commit.
    OnDelayed {
        /// The server keeps it until then, in a stream of its own.
        Schedule = "schedule",
        /// It is published like any other; a header says when it was meant for.
        Now = "now",
    }
}

choice! {
    /// How the events of one transaction appear in the stream.
    Transactions {
        /// One by one.
        Pipelined = "pipelined",
        /// All at once, or not at all.
        Atomic = "atomic",
    }
}

choice! {
    /// The least severe message that is logged.
    LogLevel {
        /// A person must act.
        Error = "error",
        /// Unexpected, but dealt with.
        Warn = "warn",
        /// A state changed.
        Info = "info",
        /// Each step.
        Debug = "debug",
        /// Each event.
        Trace = "trace",
    }
}

choice! {
    /// How log lines look.
    LogFormat {
        /// Text on a terminal, JSON elsewhere.
        Auto = "auto",
        /// For people.
        Text = "text",
        /// For collectors.
        Json = "json",
    }
}

/// What a mapped field is taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Column {
    /// The column of this name.
    Named(String),
    /// The same text for every row.
    Constant(String),
    /// `column.key.key`: what is at this path in the JSON of a column.
    Json {
        /// The path.
        path: String,
        /// That there is nothing is no mistake.
        optional: bool,
    },
    /// `column.key`: what a column with Java properties has under this key, or nothing.
    Properties(String),
}

/// [`Column`]s by what they are used for.
pub type Columns = BTreeMap<Field, Column>;
