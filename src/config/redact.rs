//! Hides the passwords in connection strings.

/// A connection string without what must not be shown: the password of a URL (or a token in its
/// place), `password=` in a query or in a keyword string. Hides too much rather than too little:
/// up to the last `@`, since a password may hold an `@` that should have been encoded.
pub fn redact_url(url: &str) -> String {
    // `password = 'a://b'` is no URL: a scheme has no spaces, quotes or equals signs.
    let scheme = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+');
    let parts = url.split_once("://");
    let Some((scheme, rest)) = parts.filter(|(before, _)| scheme(before)) else {
        return redact_keywords(url);
    };
    if let Some((first, others)) = first_of_list(scheme, rest) {
        let first = redact_url(&format!("{scheme}://{first}"));
        return format!("{first},{}", redact_url(others));
    }
    let rest = match rest.rsplit_once('@') {
        None => rest.to_owned(),
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:***@{host}"),
            None if scheme.starts_with("postgres") => format!("{user}@{host}"),
            None => format!("***@{host}"),
        },
    };
    format!("{scheme}://{}", redact_keywords(&rest))
}

/// The first server and the others of a list, `nats://a:b@one,nats://c:d@two`. A comma inside a
/// password begins no server: what stands before one ends in a host with a port or without.
fn first_of_list<'a>(scheme: &str, rest: &'a str) -> Option<(&'a str, &'a str)> {
    const SCHEMES: [&str; 4] = ["nats", "tls", "ws", "wss"];
    let begins = |text: &str| {
        SCHEMES.iter().any(|scheme| {
            text.strip_prefix(scheme)
                .is_some_and(|after| after.starts_with("://"))
        })
    };
    let (first, others) = rest
        .match_indices(',')
        .map(|(comma, _)| (&rest[..comma], &rest[comma + 1..]))
        .find(|(_, others)| begins(others))?;
    (SCHEMES.contains(&scheme) && has_sound_port(first)).then_some((first, others))
}

/// Whether a server, without its scheme, ends in a host with a numeric port or without one.
pub(super) fn has_sound_port(server: &str) -> bool {
    let host = server.rsplit('@').next().unwrap_or_default();
    let host = host.trim_end_matches('/');
    let port = host.rsplit_once(':').map_or("", |(_, port)| port);
    host.ends_with(']') || port.bytes().all(|b| b.is_ascii_digit())
}

/// Hides the value after each `password=` (and so after `sslpassword=`).
fn redact_keywords(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(found) = rest.to_ascii_lowercase().find("password") {
        let (before, after) = rest.split_at(found + "password".len());
        shown.push_str(before);
        let value = after.trim_start();
        let Some(value) = value.strip_prefix('=') else {
            rest = after;
            continue;
        };
        shown.push_str("=***");
        rest = after_value(value.trim_start());
    }
    shown + rest
}

/// What follows a value of a keyword string (quoted or not) or of a query.
fn after_value(value: &str) -> &str {
    let quoted = value.starts_with('\'');
    let mut escaped = false;
    for (at, c) in value.char_indices().skip(usize::from(quoted)) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\'' if quoted => return &value[at + 1..],
            '&' if !quoted => return &value[at..],
            c if c.is_whitespace() && !quoted => return &value[at..],
            _ => {}
        }
    }
    ""
}
