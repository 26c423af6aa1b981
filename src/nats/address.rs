//! A server's URL: `nats://`, `tls://` or `host:port`, with the user information that
//! [`super::Options`] reads.

use super::error::{ConnectError, ConnectErrorKind};
use super::options::{Options, without_secrets};

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// A name or an address, without brackets: what its certificate must name.
    pub(super) host: String,
    pub(super) port: u16,
    /// The URL wants TLS.
    pub(super) tls: bool,
}

const PORT_USUAL: u16 = 4222;

/// All servers, or what is wrong with the first that is none.
pub(super) fn addresses(options: &Options) -> Result<Vec<Address>, ConnectError> {
    let addresses = options.servers.iter().map(|url| {
        Address::parse(url).map_err(|reason| {
            let url = without_secrets(url);
            ConnectError::new("", ConnectErrorKind::Address { url, reason })
        })
    });
    addresses.collect()
}

impl Address {
    fn parse(url: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "nats" => false,
            "tls" => true,
            "ws" | "wss" => return Err("WebSocket is not supported"),
            _ => return Err("it begins with neither nats:// nor tls://"),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let place = authority.rsplit_once('@').map_or(authority, |(_, at)| at);
        let (host, port) = match place.strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or("a bracket is not closed")?,
            None => place.split_at(place.find(':').unwrap_or(place.len())),
        };
        let is_odd = |letter: char| letter.is_whitespace() || letter.is_control();
        if host.is_empty() || host.contains(is_odd) {
            return Err("it names no host");
        }
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => PORT_USUAL,
            Some("") => PORT_USUAL,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits
                .parse()
                .map_err(|_| "its port is not a number up to 65535")?,
            // An IPv6 address takes brackets.
            Some(_) | None => return Err("its port is not a number up to 65535"),
        };
        let host = host.to_owned();
        Ok(Self { host, port, tls })
    }

    /// `host:port`, for messages.
    pub(super) fn at(&self) -> String {
        let (host, port) = (&self.host, self.port);
        match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<(String, u16, bool), &'static str> {
        Address::parse(url).map(|address| (address.host, address.port, address.tls))
    }

    fn at(host: &str, port: u16, tls: bool) -> Result<(String, u16, bool), &'static str> {
        Ok((host.to_owned(), port, tls))
    }

    #[test]
    fn urls_say_where_a_server_is_and_whether_it_talks_over_tls() {
        assert_eq!(parse("nats://a.example:4333"), at("a.example", 4333, false));
        assert_eq!(parse("a.example"), at("a.example", 4222, false));
        assert_eq!(parse("a.example:1"), at("a.example", 1, false));
        assert_eq!(parse("TLS://a.example/"), at("a.example", 4222, true));
        assert_eq!(parse("nats://a:/?x#y"), at("a", 4222, false));
        assert_eq!(parse("nats://me:se@cret@b:5"), at("b", 5, false));
        assert_eq!(parse("nats://token@[::1]:6"), at("::1", 6, false));
        assert_eq!(parse("[fe80::1]"), at("fe80::1", 4222, false));
    }

    #[test]
    fn what_is_no_address_says_why() {
        for url in ["", "nats://", "nats://:4222", "nats://a b", "me@"] {
            assert_eq!(parse(url), Err("it names no host"), "{url}");
        }
        for url in ["a:b", "a:-1", "a:+1", "a:65536", "::1", "[::1]4222"] {
            assert!(parse(url).is_err(), "{url}");
        }
        assert_eq!(parse("ws://a:1"), Err("WebSocket is not supported"));
        assert_eq!(parse("[::1"), Err("a bracket is not closed"));
        assert!(parse("http://a").is_err());
    }

    #[test]
    fn error_names_the_url_without_its_password() {
        let options = Options::of_servers(vec!["ws://me:secret@host:1".to_owned()]);
        let error = addresses(&options).expect_err("no address").to_string();
        assert!(error.contains("ws://host:1"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}
