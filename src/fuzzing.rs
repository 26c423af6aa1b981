//! What is fuzzed: for every parser of bytes, and for the window, a function from any input to
//! claims about it. `fuzz/targets` calls them under cargo-fuzz, and the tests here with what
//! `fuzz/seeds` holds. Compiled for these two only.

use bytes::Bytes;

use crate::config::Config;
use crate::event::assemble::{Assembler, Options, Step};
use crate::event::format::Format;
use crate::event::mapping::Preset;
use crate::event::route::{self, Route, Template, check_subject, contains, matches, overlap};
use crate::event::{Event, Position, header_is_sound};
use crate::lead::window::{Limits, Window};
use crate::lsn::Lsn;
use crate::nats::wire::{Operation, parse};
use crate::pg::params::Params;
use crate::pg::pgoutput::{decode, encode::encode};

/// Claims about an input.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Target); 10] = [
    ("assemble", assemble),
    ("dsn", dsn),
    ("frames", frames),
    ("lsn", lsn),
    ("nats", nats),
    ("pgoutput", pgoutput),
    ("position", position),
    ("routes", routes),
    ("window", window),
    ("yaml", yaml),
];

/// However what a server sends is cut into reads, the same frames come out of it, and whatever is
/// left is the beginning of a frame or was refused.
pub fn frames(input: &[u8]) {
    const BYTES_MAX: usize = 300;
    let Some((portion, sent)) = input.split_first() else {
        return;
    };
    let portions = sent.chunks(usize::from(*portion).max(1));
    let (frames, refused) = crate::pg::frames(portions, BYTES_MAX);
    let length = |bytes: &[u8]| {
        let length = bytes.get(1..)?.first_chunk()?;
        Some(1 + u64::from(u32::from_be_bytes(*length)))
    };
    let mut rest = sent;
    for (tag, body) in frames {
        let bytes = length(rest).expect("a frame has a length") as usize;
        assert_eq!((tag, &body[..]), (rest[0], &rest[5..bytes]));
        rest = &rest[bytes..];
    }
    let length = length(rest);
    assert_eq!(
        refused,
        length.is_some_and(|length| !(5..=BYTES_MAX as u64).contains(&length))
    );
    assert!(refused || length.is_none_or(|length| length > rest.len() as u64));
}

/// The first byte says where to cut. Whatever a server sends, an operation is read once all of it
/// is there and not before, and lies in the bytes that it takes.
pub fn nats(input: &[u8]) {
    let Some((cut, mut rest)) = input.split_first() else {
        return;
    };
    while let Ok(Some((operation, bytes))) = parse(rest) {
        let whole = &rest[..bytes];
        assert_eq!(parse(whole), Ok(Some((operation, bytes))));
        for short in [bytes - 1, bytes * usize::from(*cut) / 256] {
            assert_eq!(parse(&whole[..short]), Ok(None));
        }
        if let Operation::Message(message) = operation {
            let headers = message.headers.as_bytes();
            assert!(headers.len() + message.body.len() < bytes);
            for (name, _) in message.headers.lines() {
                let name = str::from_utf8(name);
                assert!(
                    name.is_err() || name.is_ok_and(|name| message.headers.value(name).is_some())
                );
            }
            let status = message.headers.status();
            assert!(status.is_none_or(|status| status < 1000));
        }
        rest = &rest[bytes..];
    }
}

/// A body that decodes lost nothing: it encodes to the same bytes.
pub fn pgoutput(body: &[u8]) {
    if let Ok(message) = decode(body) {
        assert_eq!(encode(&message), body, "{message:?}");
    }
}

/// Whatever the messages (each behind its length, two bytes), events come inside a transaction
/// only, in order, and can be sent.
pub fn assemble(input: &[u8]) {
    let mut assembler = Assembler::new(Options {
        tables: vec![Preset::Native.mapping("outbox", "events")],
        prefixes: vec!["outbox".to_owned()],
        subject: Options::default_subject().expect("the default"),
        routes: vec![Route::parse("events.order.>", "orders.{1}").expect("a route")],
        subject_prefix: None,
        format: Format::CloudEvents,
        source: None,
        database: "app".to_owned(),
        slot: "outjet".to_owned(),
    });
    let mut order = Order::default();
    let mut rest = input;
    while let Some((length, tail)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length)).min(tail.len());
        let (body, tail) = tail.split_at(length);
        match assembler.take(&Bytes::copy_from_slice(body)) {
            Ok(step) => order.take(step),
            // The end of the term.
            Err(_) => return,
        }
        rest = tail;
    }
}

#[derive(Default)]
struct Order {
    open: bool,
    newest: Option<Position>,
    confirmed: Lsn,
}

impl Order {
    fn take(&mut self, step: Step) {
        match step {
            Step::Nothing => {}
            Step::Begin(_) => assert!(!std::mem::replace(&mut self.open, true)),
            Step::Event(event) => {
                assert_eq!(check_subject(&event.subject), Ok(()));
                let mut headers = event.headers.iter();
                assert!(headers.all(|(name, value)| header_is_sound(name, value)));
                self.take_event(&event);
            }
            Step::Rejected(rejection) => self.take_event(&rejection.into_event()),
            Step::Commit(end) => {
                assert!(std::mem::take(&mut self.open));
                assert!(
                    self.newest
                        .is_none_or(|newest| newest.commit < end.as_u64())
                );
                self.confirmed = end;
            }
        }
    }

    fn take_event(&mut self, event: &Event) {
        assert!(self.open);
        assert!(!event.id.is_empty());
        assert!(header_is_sound("Nats-Msg-Id", &event.id));
        assert!(self.newest.is_none_or(|newest| newest < event.position));
        self.newest = Some(event.position);
    }
}

/// The first byte of two says what happens, the second how much; a list of transactions, each with
/// the events up to its end, says what may be confirmed.
pub fn window(input: &[u8]) {
    const LIMITS: Limits = Limits {
        events_max: 8,
        bytes_max: 64,
    };
    let mut window = Window::new(LIMITS, Lsn::new(100));
    let mut model = Model::default();
    let mut now = 100;
    for [what, much] in input.as_chunks().0 {
        now += 1 + u64::from(*much);
        match (what % 4, model.open) {
            (0, false) => {
                window.begin();
                model.open = true;
            }
            (0, true) => {
                window.commit(Lsn::new(now));
                model.open = false;
                model.ends.push((model.sizes.len(), now));
            }
            (1, true) => {
                window.hand_over(usize::from(*much), 0);
                model.sizes.push(usize::from(*much));
            }
            (2, open) => {
                // It may say less than what was read before.
                let wal_end = now.saturating_sub(u64::from(what / 4));
                window.keepalive(Lsn::new(wal_end));
                if !open {
                    model.ends.push((model.sizes.len(), wal_end));
                }
            }
            (3, _) => {
                let settled = usize::from(*much).min(window.events());
                window.settle(settled);
                model.settled += settled;
            }
            _ => {}
        }
        model.compare(&window, LIMITS);
    }
}

#[derive(Default)]
struct Model {
    open: bool,
    sizes: Vec<usize>,
    settled: usize,
    /// How many events came before each end.
    ends: Vec<(usize, u64)>,
}

impl Model {
    fn compare(&self, window: &Window, limits: Limits) {
        let settled = self
            .ends
            .iter()
            .filter(|(events, _)| *events <= self.settled);
        let confirmed = settled.map(|(_, end)| *end).max().unwrap_or(0).max(100);
        assert_eq!(window.confirmed().lsn(), Lsn::new(confirmed));
        assert!(window.received() >= window.confirmed().lsn());
        assert_eq!(window.in_transaction(), self.open);
        let outstanding = &self.sizes[self.settled..];
        assert_eq!(window.events(), outstanding.len());
        assert_eq!(window.bytes(), outstanding.iter().sum::<usize>());
        let reached = |part: usize| {
            window.events() >= limits.events_max.div_ceil(part)
                || window.bytes() >= limits.bytes_max.div_ceil(part)
        };
        assert!(!(window.has_room() && reached(1)), "more than it may hold");
        assert!(
            window.has_room() || window.events() > 0,
            "nothing ever moves"
        );
    }
}

/// Five lines: two patterns, the target of a route from the first, a template, and a value. What is
/// made of them is a subject, and the patterns mean what a naive reading says.
pub fn routes(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    let mut lines = text.splitn(5, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (one, other, to, template, value) = (line(), line(), line(), line(), line());
    let mut subject = String::new();
    if let Ok(template) = Template::parse(template) {
        template.render(&mut subject, |_| Some(value));
    } else {
        route::push_value(&mut subject, value, false);
    }
    if check_subject(&subject).is_err() {
        // The value may have made it too long, and nothing else.
        assert!(is_too_long(&subject), "{subject:?}");
        return;
    }
    let tokens = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
    let naive = |pattern: &str| falls_under(&tokens(pattern), &tokens(&subject));
    let is_pattern = |pattern: &str| Route::parse(pattern, "x").is_ok();
    if !(is_pattern(one) && is_pattern(other)) {
        return;
    }
    assert_eq!(matches(one, &subject), naive(one), "{one:?} {subject:?}");
    if matches(one, &subject) && matches(other, &subject) {
        assert!(overlap(one, other), "{one:?} {other:?} {subject:?}");
    }
    if contains(one, other) && matches(other, &subject) {
        assert!(matches(one, &subject), "{one:?} {other:?} {subject:?}");
    }
    if let Ok(route) = Route::parse(one, to) {
        let routed = route.apply(&subject);
        assert_eq!(routed.is_some(), naive(one));
        // A literal `$` of the template may come to stand in front.
        let refused = |routed: &String| is_too_long(routed) || routed.starts_with('$');
        let sound = |routed: &String| check_subject(routed).is_ok() || refused(routed);
        assert!(
            routed.iter().all(sound),
            "{one:?} {to:?} {subject:?} {routed:?}"
        );
    }
}

fn is_too_long(subject: &str) -> bool {
    let tokens = subject.split('.').count();
    subject.len() > route::SUBJECT_BYTES_MAX || tokens > route::SUBJECT_TOKENS_MAX
}

fn falls_under(pattern: &[String], subject: &[String]) -> bool {
    match (pattern, subject) {
        ([], []) => true,
        ([rest], [_, ..]) if rest == ">" => true,
        ([token, pattern @ ..], [found, subject @ ..]) => {
            (token == "*" || token == found) && falls_under(pattern, subject)
        }
        _ => false,
    }
}

/// No connection string panics, none shows its password, and a refused one says why.
pub fn dsn(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    match Params::parse(text, &|name| (name == "PGUSER").then(|| "me".to_owned())) {
        Ok(params) => {
            assert!(!params.hosts.is_empty());
            let shown = format!("{params} {params:?}");
            let password = params.password.as_ref().map(|password| password.expose());
            // A shorter one may be part of anything, and this one of another field.
            let secret = password.filter(|password| password.len() > 12);
            let without = Params {
                password: None,
                ..params.clone()
            };
            let elsewhere = format!("{without} {without:?}");
            assert!(
                secret.is_none_or(|secret| elsewhere.contains(secret) || !shown.contains(secret)),
                "{shown}"
            );
        }
        Err(error) => assert!(!error.failure().problem.fix.is_empty()),
    }
}

/// No file panics, and what is accepted can be shown and built from.
pub fn yaml(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    match Config::of_text(text) {
        Ok(config) => {
            config.show();
            config.relay_options();
            config.sink_options();
            let built = config.assemble_options("app").err();
            let refused = built.into_iter().chain(config.subject_pattern().err());
            assert!(
                refused
                    .into_iter()
                    .all(|failure| !failure.problem.fix.is_empty())
            );
        }
        Err(failure) => assert!(!failure.problem.fix.is_empty()),
    }
}

/// A text that is an LSN means what Postgres means by it.
pub fn lsn(input: &[u8]) {
    let parsed = str::from_utf8(input).map(|text| (text, text.parse::<Lsn>()));
    if let Ok((text, Ok(lsn))) = parsed {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
        let plain = |half: &str| half.trim_start_matches('0').to_ascii_uppercase();
        let halves = |text: &str| text.split('/').map(plain).collect::<Vec<_>>();
        assert_eq!(halves(&lsn.to_string()), halves(text));
    }
}

/// A text that is a position has only one form, and texts sort as positions do.
pub fn position(input: &[u8]) {
    let Ok(texts) = str::from_utf8(input) else {
        return;
    };
    let parse = |text: &str| {
        let position = text.parse::<Position>().ok()?;
        let form = text.to_ascii_uppercase();
        assert_eq!(position.to_string(), form);
        Some((position, form))
    };
    let (a, b) = texts.split_once(' ').unwrap_or((texts, ""));
    if let (Some(a), Some(b)) = (parse(a), parse(b)) {
        assert_eq!(a.0.cmp(&b.0), a.1.cmp(&b.1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    #[test]
    fn seeds_and_what_was_found_hold_for_every_target() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        for (name, target) in TARGETS {
            assert!(fuzz.join(format!("targets/{name}.rs")).exists(), "{name}");
            let seeds = fs::read_dir(fuzz.join("seeds").join(name)).unwrap();
            let mut inputs = 0;
            for seed in seeds {
                target(&fs::read(seed.unwrap().path()).unwrap());
                inputs += 1;
            }
            assert!(inputs > 0, "no seed for {name}");
        }
    }
}
