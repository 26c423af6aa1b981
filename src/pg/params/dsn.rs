//! Splits a connection string into keywords and values, URL or keyword form, as libpq does
//! (`conninfo_uri_parse_options` and `conninfo_parse`, fe-connect.c). Does not know what the
//! keywords mean. Errors never repeat what stands where a password can stand.

use super::ParamsError;

/// Keywords and values in the order in which they are given; of repeated ones the last counts.
pub(super) type Pairs = Vec<(String, String)>;

pub(super) fn split(dsn: &str) -> Result<Pairs, ParamsError> {
    let dsn = dsn.trim();
    for scheme in ["postgresql://", "postgres://"] {
        if let Some(rest) = dsn.strip_prefix(scheme) {
            return url(rest);
        }
    }
    match dsn.split_once("://") {
        Some((scheme, _))
            if scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || ":+-.".contains(c)) =>
        {
            Err(ParamsError::Scheme(scheme.to_owned()))
        }
        _ => keywords(dsn),
    }
}

/// `[user[:password]@][host[:port],…][/dbname][?keyword=value&…]`
fn url(rest: &str) -> Result<Pairs, ParamsError> {
    let mut pairs = Pairs::new();
    let mut rest = rest;
    // An `@` before any `/` ends the login, whatever else stands in it.
    if let Some(at) = rest
        .find(['@', '/'])
        .filter(|&at| rest[at..].starts_with('@'))
    {
        let (user, password) = rest[..at].split_once(':').unwrap_or((&rest[..at], ""));
        push_unless_empty(&mut pairs, "user", user)?;
        push_unless_empty(&mut pairs, "password", password)?;
        rest = &rest[at + 1..];
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (hosts, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    url_hosts(&mut pairs, hosts)?;
    push_unless_empty(&mut pairs, "dbname", dbname)?;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (keyword, value) = pair
            .split_once('=')
            .ok_or(ParamsError::Syntax("a URL parameter lacks its \"=\""))?;
        pairs.push(match (decode(keyword)?, decode(value)?) {
            // As JDBC writes it; libpq translates it, too.
            (keyword, value) if keyword == "ssl" && value == "true" => {
                ("sslmode".to_owned(), "require".to_owned())
            }
            pair => pair,
        });
    }
    Ok(pairs)
}

fn url_hosts(pairs: &mut Pairs, authority: &str) -> Result<(), ParamsError> {
    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    for one in authority.split(',') {
        let (host, port) = match one.strip_prefix('[') {
            Some(bracketed) => {
                let (host, rest) = bracketed
                    .split_once(']')
                    .ok_or(ParamsError::Syntax("an IPv6 address lacks its \"]\""))?;
                let port = match rest.strip_prefix(':') {
                    Some(port) => port,
                    None if rest.is_empty() => "",
                    None => return Err(ParamsError::Syntax("only \":port\" may follow a \"]\"")),
                };
                (host, port)
            }
            None => one.split_once(':').unwrap_or((one, "")),
        };
        hosts.push(decode(host)?);
        ports.push(decode(port)?);
    }
    if hosts.iter().any(|host| !host.is_empty()) {
        pairs.push(("host".to_owned(), hosts.join(",")));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        pairs.push(("port".to_owned(), ports.join(",")));
    }
    Ok(())
}

fn push_unless_empty(pairs: &mut Pairs, keyword: &str, value: &str) -> Result<(), ParamsError> {
    if !value.is_empty() {
        pairs.push((keyword.to_owned(), decode(value)?));
    }
    Ok(())
}

fn decode(text: &str) -> Result<String, ParamsError> {
    const WRONG: ParamsError =
        ParamsError::Syntax("a \"%\" is not followed by two hexadecimal digits (write it as %25)");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2).ok_or(WRONG)?;
        let nibble = |digit: u8| char::from(digit).to_digit(16).ok_or(WRONG);
        let value = nibble(digits[0])? << 4 | nibble(digits[1])?;
        bytes.push(u8::try_from(value).map_err(|_| WRONG)?);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| ParamsError::Syntax("a percent-encoded part is not UTF-8"))
}

/// `keyword = value …`, values optionally in single quotes, backslash escapes.
fn keywords(dsn: &str) -> Result<Pairs, ParamsError> {
    let mut pairs = Pairs::new();
    let mut rest = dsn.trim_start();
    while !rest.is_empty() {
        let (keyword, tail) = rest
            .split_once('=')
            .ok_or(ParamsError::Syntax("expected a URL or keyword=value pairs"))?;
        let keyword = keyword.trim_end();
        if keyword.is_empty() || keyword.contains(char::is_whitespace) {
            return Err(ParamsError::Syntax(
                "a keyword lacks its \"=\" (a value with spaces goes into single quotes)",
            ));
        }
        let (value, tail) = value(tail.trim_start())?;
        pairs.push((keyword.to_owned(), value));
        rest = tail.trim_start();
    }
    Ok(pairs)
}

fn value(text: &str) -> Result<(String, &str), ParamsError> {
    let (quoted, text) = match text.strip_prefix('\'') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            c if !quoted && c.is_whitespace() => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted {
        return Err(ParamsError::Syntax(
            "a quoted value lacks its closing quote",
        ));
    }
    Ok((value, ""))
}
