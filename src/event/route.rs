//! From a row to a subject: a template with fields, then routes with wildcards. Pure; does not know
//! where the values come from.

/// Longest subject that is sent, in bytes. A server reads subject, reply and sizes as one control
/// line of 4096 bytes by default (`max_control_line`) and closes the connection on more.
pub const SUBJECT_BYTES_MAX: usize = 1024;

/// Most tokens of a subject that is sent. A server takes more, and works for each of them wherever
/// it looks a subject up; its documentation advises 16. What has hundreds is text gone astray.
pub const SUBJECT_TOKENS_MAX: usize = 256;

/// Why a template or a route cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// A `{` without `}`.
    #[error("`{{` is never closed in {0:?}")]
    Unclosed(String),
    /// `{x|what}` with a filter that does not exist.
    #[error("unknown filter {0:?} (there is one: token)")]
    Filter(String),
    /// A field without a name.
    #[error("an empty field name in {0:?}")]
    EmptyField(String),
    /// What is left without its fields is no subject.
    #[error("{0:?} is not a subject: {1}")]
    Subject(String, &'static str),
    /// `>` stands for the rest, so it can only be last.
    #[error("`>` is only possible at the end of {0:?}")]
    Rest(String),
    /// `{3}` where the pattern has two wildcards.
    #[error("{to:?} uses {{{used}}}, but {pattern:?} has {captures} wildcards")]
    Capture {
        /// The target.
        to: String,
        /// The number in it.
        used: String,
        /// The pattern.
        pattern: String,
        /// How many it captures.
        captures: usize,
    },
}

/// A subject with fields, `events.{aggregatetype}.{type}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field { name: String, token: bool },
}

impl Template {
    /// Reads a template. `{x}` keeps the dots of its value, `{x|token}` does not.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find('{') {
            let end = rest[start..]
                .find('}')
                .ok_or_else(|| RouteError::Unclosed(text.to_owned()))?;
            if start > 0 {
                parts.push(Part::Text(rest[..start].to_owned()));
            }
            parts.push(field(&rest[start + 1..start + end], text)?);
            rest = &rest[start + end + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        let template = Self { parts };
        let mut sample = String::new();
        template.render(&mut sample, |_| None);
        check_subject(&sample).map_err(|why| RouteError::Subject(text.to_owned(), why))?;
        Ok(template)
    }

    /// The names of the fields, in order of appearance.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Field { name, .. } => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// Appends the subject; `value` gets the number of a field among [`Template::fields`].
    pub fn render<'a>(&self, subject: &mut String, value: impl Fn(usize) -> Option<&'a str>) {
        let mut number = 0;
        for part in &self.parts {
            match part {
                Part::Text(text) => subject.push_str(text),
                Part::Field { token, .. } => {
                    push_value(subject, value(number).unwrap_or_default(), *token);
                    number += 1;
                }
            }
        }
    }
}

fn field(inner: &str, text: &str) -> Result<Part, RouteError> {
    let (name, filter) = inner
        .split_once('|')
        .map_or((inner, None), |(n, f)| (n, Some(f)));
    let token = match filter.map(str::trim) {
        None => false,
        Some("token") => true,
        Some(other) => return Err(RouteError::Filter(other.to_owned())),
    };
    match name.trim() {
        "" => Err(RouteError::EmptyField(text.to_owned())),
        name => Ok(Part::Field {
            name: name.to_owned(),
            token,
        }),
    }
}

/// Appends a value as one token or, with its dots, as several. What a subject cannot hold becomes
/// `_`, as does a token without characters: servers store wildcards as they come and never answer
/// for an empty token.
pub fn push_value(subject: &mut String, value: &str, token: bool) {
    let mut empty = true;
    for character in value.chars() {
        match character {
            'A'..='Z' | 'a'..='z' | '0'..='9' | '_' | '-' => subject.push(character),
            '.' if !token => {
                if empty {
                    subject.push('_');
                }
                subject.push('.');
                empty = true;
                continue;
            }
            _ => subject.push('_'),
        }
        empty = false;
    }
    if empty {
        subject.push('_');
    }
}

/// Whether a subject can be published to: tokens without wildcards, spaces or control characters.
pub fn check_subject(subject: &str) -> Result<(), &'static str> {
    if subject.is_empty() {
        return Err("it is empty");
    }
    if subject.len() > SUBJECT_BYTES_MAX {
        return Err("it is longer than 1024 bytes");
    }
    if subject.starts_with('$') {
        return Err("subjects that start with $ are the server's");
    }
    let bytes = subject.as_bytes();
    let (mut tokens, mut token, mut wildcard, mut blank) = (1, 0, false, false);
    for (at, byte) in subject.bytes().enumerate() {
        blank |= byte <= b' ' || byte == 0x7f;
        if byte == b'.' {
            if at == token {
                return Err("it has an empty token");
            }
            wildcard |= is_wildcard(&bytes[token..at]);
            tokens += 1;
            token = at + 1;
        }
    }
    if token == subject.len() {
        return Err("it has an empty token");
    }
    if tokens > SUBJECT_TOKENS_MAX {
        return Err("it has more than 256 tokens");
    }
    if wildcard || is_wildcard(&bytes[token..]) {
        return Err("it has a wildcard");
    }
    let unseen = |c: char| c.is_whitespace() || c.is_control();
    if blank || !subject.is_ascii() && subject.chars().any(unseen) {
        return Err("it has a space or a control character");
    }
    Ok(())
}

fn is_wildcard(token: &[u8]) -> bool {
    token == b"*" || token == b">"
}

/// Whether a subject falls under a pattern with `*` and `>`, as the server decides it.
pub fn matches(pattern: &str, subject: &str) -> bool {
    capture(pattern, subject, &mut |_| {})
}

/// Whether every subject under the pattern `inner` falls under the pattern `outer`.
pub fn contains(outer: &str, inner: &str) -> bool {
    let (mut outer, mut inner) = (outer.split('.'), inner.split('.'));
    loop {
        match (outer.next(), inner.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

/// Whether any subject falls under both patterns.
pub fn overlap(one: &str, other: &str) -> bool {
    intersection(one, other).is_some()
}

/// The pattern of the subjects that fall under both patterns, if there are any.
pub fn intersection(one: &str, other: &str) -> Option<String> {
    let (mut ones, mut others) = (one.split('.'), other.split('.'));
    let mut tokens: Vec<&str> = Vec::new();
    loop {
        match (ones.next(), others.next()) {
            (None, None) => return Some(tokens.join(".")),
            (None, Some(_)) | (Some(_), None) => return None,
            (Some(">"), Some(token)) => {
                tokens.extend(std::iter::once(token).chain(&mut others));
            }
            (Some(token), Some(">")) => {
                tokens.extend(std::iter::once(token).chain(&mut ones));
            }
            (Some("*"), Some(token)) => tokens.push(token),
            (Some(token), Some("*")) => tokens.push(token),
            (Some(one), Some(other)) if one == other => tokens.push(one),
            (Some(_), Some(_)) => return None,
        }
    }
}

/// `{match: "order.*", to: "prod.orders.{1}"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pattern: String,
    to: Vec<Target>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Text(String),
    Capture(usize),
}

impl Route {
    /// Reads a route. `*` captures a token, `>` the rest; `{1}` is the first capture.
    pub fn parse(pattern: &str, to: &str) -> Result<Self, RouteError> {
        let tokens: Vec<_> = pattern.split('.').collect();
        if tokens.iter().rev().skip(1).any(|token| *token == ">") {
            return Err(RouteError::Rest(pattern.to_owned()));
        }
        let plain = pattern.replace(['*', '>'], "_");
        check_subject(&plain).map_err(|why| RouteError::Subject(pattern.to_owned(), why))?;
        let captures = tokens
            .iter()
            .filter(|token| matches!(**token, "*" | ">"))
            .count();
        let target = Template::parse(to)?;
        let to = target.parts.into_iter().map(|part| match part {
            Part::Text(text) => Ok(Target::Text(text)),
            Part::Field { name, .. } => match name.parse() {
                Ok(number) if (1..=captures).contains(&number) => Ok(Target::Capture(number - 1)),
                _ => Err(RouteError::Capture {
                    to: to.to_owned(),
                    used: name,
                    pattern: pattern.to_owned(),
                    captures,
                }),
            },
        });
        Ok(Self {
            pattern: pattern.to_owned(),
            to: to.collect::<Result<_, _>>()?,
        })
    }

    /// The new subject, if the old one matches.
    pub fn apply(&self, subject: &str) -> Option<String> {
        let mut captures = Vec::new();
        if !capture(&self.pattern, subject, &mut |text| captures.push(text)) {
            return None;
        }
        Some(self.to.iter().fold(String::new(), |mut subject, part| {
            subject.push_str(match part {
                Target::Text(text) => text,
                Target::Capture(number) => captures[*number],
            });
            subject
        }))
    }
}

/// Matches token by token and reports what each wildcard stands for.
fn capture<'s>(pattern: &str, subject: &'s str, found: &mut dyn FnMut(&'s str)) -> bool {
    let mut rest = Some(subject);
    for token in pattern.split('.') {
        let Some(left) = rest else { return false };
        if token == ">" {
            found(left);
            return true;
        }
        let (first, after) = left
            .split_once('.')
            .map_or((left, None), |(f, a)| (f, Some(a)));
        match token {
            "*" => found(first),
            _ if token == first => {}
            _ => return false,
        }
        rest = after;
    }
    rest.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn render(template: &str, values: &[Option<&str>]) -> String {
        let mut subject = String::new();
        Template::parse(template)
            .unwrap()
            .render(&mut subject, |number| values[number]);
        subject
    }

    #[test]
    fn dots_separate_tokens_unless_a_single_token_is_asked_for() {
        let values = [Some("order.created")];
        assert_eq!(render("events.{type}", &values), "events.order.created");
        assert_eq!(
            render("events.{type|token}", &values),
            "events.order_created"
        );
    }

    #[test]
    fn what_a_subject_cannot_hold_becomes_an_underscore() {
        let values = [Some("a b*>$ü"), None, Some("")];
        assert_eq!(render("{a}.{b}.{c}", &values), "a_b____._._");
        assert_eq!(render("{a}", &[Some(".x..y.")]), "_.x._.y._");
    }

    #[test]
    fn a_bad_template_is_refused() {
        assert_eq!(
            Template::parse("a.{b"),
            Err(RouteError::Unclosed("a.{b".to_owned()))
        );
        assert_eq!(
            Template::parse("a.{}"),
            Err(RouteError::EmptyField("a.{}".to_owned()))
        );
        assert_eq!(
            Template::parse("{a|lower}"),
            Err(RouteError::Filter("lower".to_owned()))
        );
        for text in ["", "a..b", "a.*", ">", "a b", "$JS.x"] {
            assert!(
                matches!(Template::parse(text), Err(RouteError::Subject(..))),
                "{text:?}"
            );
        }
    }

    #[test]
    fn subject_of_too_many_tokens_cannot_be_published_to() {
        let subject = |tokens: usize| vec!["a"; tokens].join(".");
        assert_eq!(check_subject(&subject(256)), Ok(()));
        assert!(check_subject(&subject(257)).is_err());
    }

    #[test]
    fn the_topic_map_of_a_poller_is_two_routes() {
        let exact = Route::parse("user.created", "production.users.created").unwrap();
        assert_eq!(
            exact.apply("user.created").as_deref(),
            Some("production.users.created")
        );
        assert_eq!(exact.apply("user.created.v2"), None);
        let wild = Route::parse("order.*", "production.orders.{1}").unwrap();
        assert_eq!(
            wild.apply("order.paid").as_deref(),
            Some("production.orders.paid")
        );
        assert_eq!(wild.apply("order"), None);
    }

    #[test]
    fn the_rest_is_captured_with_its_dots() {
        let route = Route::parse("*.events.>", "{2}.of.{1}").unwrap();
        assert_eq!(
            route.apply("acme.events.order.paid").as_deref(),
            Some("order.paid.of.acme")
        );
        assert_eq!(route.apply("acme.events"), None);
    }

    #[test]
    fn a_bad_route_is_refused() {
        assert!(matches!(
            Route::parse("a.>.b", "x"),
            Err(RouteError::Rest(_))
        ));
        assert!(matches!(
            Route::parse("a.*", "x.{2}"),
            Err(RouteError::Capture { .. })
        ));
        assert!(matches!(
            Route::parse("a.*", "x.{0}"),
            Err(RouteError::Capture { .. })
        ));
        assert!(matches!(
            Route::parse("a..b", "x"),
            Err(RouteError::Subject(..))
        ));
        assert!(matches!(
            Route::parse("a", "x.*"),
            Err(RouteError::Subject(..))
        ));
    }

    /// The naive model of the server's matching.
    fn naive(pattern: &[&str], subject: &[&str]) -> bool {
        match (pattern, subject) {
            ([], []) => true,
            ([">"], [_, ..]) => true,
            ([p, pattern @ ..], [s, subject @ ..]) => {
                (*p == "*" || p == s) && naive(pattern, subject)
            }
            _ => false,
        }
    }

    fn pattern() -> impl Strategy<Value = String> {
        let tokens = prop::collection::vec(prop_oneof!["a", "b", "\\*"], 0..4);
        (tokens, any::<bool>()).prop_map(|(mut tokens, rest)| {
            if rest || tokens.is_empty() {
                tokens.push(">".to_owned());
            }
            tokens.join(".")
        })
    }

    /// Every subject of so many tokens or fewer.
    fn subjects(tokens: &[&str], count_max: usize) -> Vec<String> {
        let mut longest: Vec<String> = tokens.iter().map(|&token| token.to_owned()).collect();
        let mut all = longest.clone();
        for _ in 1..count_max {
            let longer = |subject: &String| -> Vec<String> {
                tokens
                    .iter()
                    .map(|token| format!("{subject}.{token}"))
                    .collect()
            };
            longest = longest.iter().flat_map(longer).collect();
            all.extend_from_slice(&longest);
        }
        all
    }

    proptest! {
        #[test]
        fn every_rendered_subject_can_be_published(a in "\\PC{0,40}", b in ".{0,40}", token: bool) {
            let mut subject = String::new();
            push_value(&mut subject, &a, token);
            subject.push('.');
            push_value(&mut subject, &b, !token);
            prop_assert_eq!(check_subject(&subject), Ok(()));
        }

        #[test]
        fn matching_agrees_with_the_naive_model(
            pattern in prop::collection::vec(prop_oneof!["a", "b", "\\*"], 1..4),
            rest: bool,
            subject in prop::collection::vec("[ab]", 1..5),
        ) {
            let mut pattern = pattern;
            if rest {
                pattern.push(">".to_owned());
            }
            let tokens: Vec<_> = pattern.iter().map(String::as_str).collect();
            let model: Vec<_> = subject.iter().map(String::as_str).collect();
            let matched = matches(&pattern.join("."), &subject.join("."));
            prop_assert_eq!(matched, naive(&tokens, &model));
        }

        #[test]
        fn patterns_contain_and_overlap_as_the_sets_of_their_subjects_do(
            one in pattern(),
            other in pattern(),
        ) {
            let all = subjects(&["a", "b", "c"], 5);
            let both = |subject: &String| matches(&one, subject) && matches(&other, subject);
            prop_assert_eq!(overlap(&one, &other), all.iter().any(both));
            let shared = intersection(&one, &other);
            let in_shared = |subject: &String| shared.iter().any(|s| matches(s, subject));
            prop_assert!(all.iter().all(|subject| both(subject) == in_shared(subject)));
            let inner: Vec<_> = all.iter().filter(|subject| matches(&other, subject)).collect();
            let contained = inner.iter().all(|subject| matches(&one, subject));
            prop_assert_eq!(contains(&one, &other), contained);
        }
    }
}
