//! The values that were given, by keyword, whether in the connection string or the environment, and
//! their conversion. Does not know which of them a connection needs.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use super::{Address, Host, Keepalives, ParamsError, RootCert, SslMode, SslNegotiation, dsn};

/// Keywords with their environment variables (libpq's `PQconninfoOptions`).
const KEYWORDS: [(&str, Option<&str>); 26] = [
    ("application_name", Some("PGAPPNAME")),
    ("channel_binding", Some("PGCHANNELBINDING")),
    ("client_encoding", None),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("dbname", Some("PGDATABASE")),
    ("fallback_application_name", None),
    ("gssencmode", None),
    ("host", Some("PGHOST")),
    ("hostaddr", Some("PGHOSTADDR")),
    ("keepalives", None),
    ("keepalives_count", None),
    ("keepalives_idle", None),
    ("keepalives_interval", None),
    ("options", Some("PGOPTIONS")),
    ("passfile", Some("PGPASSFILE")),
    ("password", Some("PGPASSWORD")),
    ("port", Some("PGPORT")),
    ("sslcert", Some("PGSSLCERT")),
    ("sslkey", Some("PGSSLKEY")),
    ("sslmode", Some("PGSSLMODE")),
    ("sslnegotiation", Some("PGSSLNEGOTIATION")),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslsni", Some("PGSSLSNI")),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    ("tcp_user_timeout", None),
    ("user", Some("PGUSER")),
];

/// libpq's keywords that are refused by name, because ignoring them would weaken or change what
/// was asked for.
const UNSUPPORTED: [(&str, &str); 9] = [
    ("load_balance_hosts", "hosts are tried in the order given"),
    ("replication", "outjet sets it where it is needed"),
    ("require_auth", "use channel_binding=require"),
    (
        "requirepeer",
        "use a socket directory that only the server can write to",
    ),
    ("service", "write the parameters out"),
    ("sslcrl", "certificate revocation lists are not read"),
    ("sslcrldir", "certificate revocation lists are not read"),
    (
        "sslpassword",
        "decrypt the key: `openssl pkey -in client.key -out plain.key`",
    ),
    ("ssl_min_protocol_version", "TLS 1.2 is the minimum"),
];

/// Values by keyword, each taken once.
pub(super) struct Given(BTreeMap<&'static str, String>);

impl Given {
    pub(super) fn collect(
        dsn: &str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ParamsError> {
        let mut values = BTreeMap::new();
        for (keyword, value) in dsn::split(dsn)? {
            values.insert(known(&keyword)?, value);
        }
        // An address from the environment belongs to the host of the environment.
        let hosts_given = values.contains_key("host") || values.contains_key("hostaddr");
        for (keyword, variable) in KEYWORDS {
            if values.contains_key(keyword) || (hosts_given && keyword.starts_with("host")) {
                continue;
            }
            if let Some(value) = variable.and_then(env).filter(|value| !value.is_empty()) {
                values.insert(keyword, value);
            }
        }
        values.retain(|_, value| !value.is_empty());
        Ok(Self(values))
    }

    pub(super) fn take(&mut self, keyword: &str) -> Option<String> {
        self.0.remove(keyword)
    }

    pub(super) fn parse_or_default<T>(&mut self, keyword: &'static str) -> Result<T, ParamsError>
    where
        T: FromStr<Err = &'static str> + Default,
    {
        self.take(keyword).map_or_else(
            || Ok(T::default()),
            |value| {
                value.parse().map_err(|expected| ParamsError::Value {
                    keyword,
                    value,
                    expected,
                })
            },
        )
    }

    pub(super) fn number(&mut self, keyword: &'static str) -> Result<Option<u32>, ParamsError> {
        let Some(value) = self.take(keyword) else {
            return Ok(None);
        };
        value
            .trim()
            .parse()
            .map(Some)
            .map_err(|_| ParamsError::Value {
                keyword,
                value,
                expected: "a whole number",
            })
    }

    /// In seconds; zero and negative mean for ever, as in libpq.
    pub(super) fn timeout(
        &mut self,
        keyword: &'static str,
        default: Option<Duration>,
    ) -> Result<Option<Duration>, ParamsError> {
        if self
            .0
            .get(keyword)
            .is_some_and(|value| value.starts_with('-'))
        {
            self.take(keyword);
            return Ok(None);
        }
        Ok(match self.number(keyword)? {
            Some(0) => None,
            Some(seconds) => Some(Duration::from_secs(seconds.into())),
            None => default,
        })
    }

    pub(super) fn milliseconds(
        &mut self,
        keyword: &'static str,
    ) -> Result<Option<Duration>, ParamsError> {
        let timeout = self.number(keyword)?.filter(|&timeout| timeout != 0);
        Ok(timeout.map(|timeout| Duration::from_millis(timeout.into())))
    }

    pub(super) fn keepalives(&mut self) -> Result<Option<Keepalives>, ParamsError> {
        let on = self.number("keepalives")?.is_none_or(|on| on != 0);
        let idle = self.timeout("keepalives_idle", None)?;
        let keepalives = Keepalives {
            idle: idle.unwrap_or(Keepalives::default().idle),
            interval: self.timeout("keepalives_interval", None)?,
            count: self.number("keepalives_count")?.filter(|&count| count != 0),
        };
        Ok(on.then_some(keepalives))
    }

    pub(super) fn sslmode(&mut self, roots: Option<&RootCert>) -> Result<SslMode, ParamsError> {
        let system = roots == Some(&RootCert::System);
        if system && !self.0.contains_key("sslmode") {
            return Ok(SslMode::VerifyFull);
        }
        match self.parse_or_default("sslmode")? {
            sslmode if system && sslmode < SslMode::VerifyFull => {
                Err(ParamsError::WeakSslMode(sslmode))
            }
            sslmode => Ok(sslmode),
        }
    }

    /// libpq: with a weaker mode one could not fall back.
    pub(super) fn sslnegotiation(
        &mut self,
        sslmode: SslMode,
    ) -> Result<SslNegotiation, ParamsError> {
        match self.parse_or_default("sslnegotiation")? {
            SslNegotiation::Direct if sslmode < SslMode::Require => Err(ParamsError::Unsupported {
                keyword: "sslnegotiation",
                reason: "direct needs sslmode=require or stronger",
            }),
            negotiation => Ok(negotiation),
        }
    }

    pub(super) fn refuse_unsupported(&mut self) -> Result<(), ParamsError> {
        let refuse = |keyword, reason| Err(ParamsError::Unsupported { keyword, reason });
        if self
            .take("gssencmode")
            .is_some_and(|mode| mode == "require")
        {
            return refuse("gssencmode", "GSSAPI is not built in; use TLS");
        }
        let encoding = self.take("client_encoding").unwrap_or_default();
        let utf8 = ["", "auto", "utf8", "utf-8", "unicode"];
        if !utf8.contains(&encoding.to_ascii_lowercase().as_str()) {
            return refuse("client_encoding", "it is always UTF8");
        }
        Ok(())
    }

    pub(super) fn hosts(&mut self) -> Result<Vec<Host>, ParamsError> {
        let list = |value: Option<String>| -> Option<Vec<String>> {
            Some(value?.split(',').map(|one| one.trim().to_owned()).collect())
        };
        let addrs = list(self.take("hostaddr"));
        let names = list(self.take("host"));
        let ports = list(self.take("port")).unwrap_or_else(|| vec![String::new()]);
        let hosts = names.as_ref().or(addrs.as_ref()).map_or(1, Vec::len);
        let count = |keyword, others| match others == hosts {
            true => Ok(()),
            false => Err(ParamsError::Count {
                hosts,
                keyword,
                others,
            }),
        };
        if let Some(addrs) = &addrs {
            count("hostaddr", addrs.len())?;
        }
        if ports.len() != 1 {
            count("port", ports.len())?;
        }
        let mut parsed = Vec::with_capacity(hosts);
        for at in 0..hosts {
            let one = |list: &Option<Vec<String>>| list.as_ref().map_or("", |l| &l[at]).to_owned();
            let port = parse_port(ports.get(at).unwrap_or(&ports[0]))?;
            let address = parse_address(&one(&names), &one(&addrs), port)?;
            parsed.push(Host { address, port });
        }
        Ok(parsed)
    }
}

fn parse_port(port: &str) -> Result<u16, ParamsError> {
    match port {
        "" => Ok(5432),
        port => match port.parse() {
            Ok(0) | Err(_) => Err(ParamsError::Port),
            Ok(port) => Ok(port),
        },
    }
}

fn parse_address(name: &str, addr: &str, port: u16) -> Result<Address, ParamsError> {
    if addr.is_empty() {
        return Ok(Address::from_host(name, port));
    }
    let parsed = addr.parse().map_err(|_| ParamsError::Value {
        keyword: "hostaddr",
        value: addr.to_owned(),
        expected: "an IP address",
    })?;
    Ok(Address::Tcp {
        name: if name.is_empty() { addr } else { name }.to_owned(),
        addr: Some(parsed),
    })
}

fn known(keyword: &str) -> Result<&'static str, ParamsError> {
    if let Some((known, _)) = KEYWORDS.iter().find(|(known, _)| *known == keyword) {
        return Ok(known);
    }
    if let Some(&(keyword, reason)) = UNSUPPORTED.iter().find(|(known, _)| *known == keyword) {
        return Err(ParamsError::Unsupported { keyword, reason });
    }
    /// Three typing errors in a word of ten letters are still that word; more are another.
    const SIMILAR: f64 = 0.7;
    let nearest = KEYWORDS
        .iter()
        .map(|(known, _)| (*known, strsim::jaro_winkler(known, keyword)))
        .filter(|(_, likeness)| *likeness >= SIMILAR)
        .max_by(|a, b| a.1.total_cmp(&b.1));
    Err(ParamsError::Unknown {
        keyword: keyword.to_owned(),
        nearest: nearest.map(|(known, _)| known),
    })
}
