//! What is demanded of values that must fit together, after each has been read and held against its
//! own limits. The first mistake ends it, with its place.

use std::time::Duration;

use super::Config;
use super::keys::{Raw, Sections};
use super::problem::{ConfigFile, config_failure};
use super::section::{At, Part};
use super::value::{Ingress, Refusal, Transactions, duration_text};
use crate::error::Failure;
use crate::sink::jetstream::streams::SHARED_WINDOW_MIN;

/// What a connection that broke still delivers arrives within a few seconds.
const WINDOW_MIN: Duration = Duration::from_secs(10);
/// A leader that hangs is thrown out after `takeover_after`; what it has sent arrives and its
/// successor has read the stream within this time.
pub(super) const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(5);

/// Checks the whole.
pub(super) fn config(raw: Raw, config_file: Option<&ConfigFile>) -> Result<Config, Failure> {
    let top = At::top(config_file);
    let mut sections = Sections::check(&raw, &top)?;
    let check = Check { raw: &raw, top };
    if raw.stream.duplicate_window.is_none() {
        sections.stream.duplicate_window = duplicate_window(&sections);
    }
    check.nats()?;
    check.max_age(sections.stream.duplicate_window)?;
    if sections.stream.shared {
        check.shared()?;
    }
    if sections.tables.is_empty() {
        return Err(config_failure(
            "there is nothing to publish",
            "tables is empty",
            "name the outbox table in tables, or leave tables out: then it is outbox.events",
        ));
    }
    Ok(Config {
        sections,
        file: config_file.map(|config_file| config_file.path.clone()),
        raw,
    })
}

/// How long ids are remembered where that is not configured.
fn duplicate_window(sections: &Sections) -> Duration {
    let least = match sections.stream.shared {
        true => SHARED_WINDOW_MIN * 2,
        false => WINDOW_MIN,
    };
    least.max(sections.postgres.takeover_after + TAKEN_OVER_WITHIN)
}

struct Check<'a> {
    raw: &'a Raw,
    top: At<'a>,
}

/// Reads `$check.raw.a.b` under the name `a.b`.
macro_rules! read {
    ($check:ident . $first:ident $(. $next:ident)*) => {
        $check
            .top
            .key(concat!(stringify!($first) $(, ".", stringify!($next))*))
            .read(&$check.raw.$first $(.$next)*)?
    };
}

impl Check<'_> {
    fn nats(&self) -> Result<(), Failure> {
        let nats = &self.raw.nats;
        if nats.user.is_none() && nats.password.is_some() {
            let password = read!(self.nats.password);
            return Err(password.refuse("a password without a user", "give nats.user, too"));
        }
        match (&nats.tls.cert, &nats.tls.key) {
            (Some(_), None) => {
                let cert = read!(self.nats.tls.cert);
                Err(cert.refuse("a certificate without its key", "give nats.tls.key, too"))
            }
            (None, Some(_)) => {
                let key = read!(self.nats.tls.key);
                Err(key.refuse("a key without its certificate", "give nats.tls.cert, too"))
            }
            (Some(_), Some(_)) | (None, None) => Ok(()),
        }
    }

    /// nats-server refuses it: "duplicates window can not be larger then max age".
    fn max_age(&self, window: Duration) -> Result<(), Failure> {
        read!(self.stream.max_age).and(|age| match !age.is_zero() && *age < window {
            true => Err(Refusal::new(
                format!(
                    "is less than stream.duplicate_window, {}",
                    duration_text(window)
                ),
                "write a longer max_age, or a duplicate_window that is no longer than it",
            )),
            false => Ok(()),
        })?;
        Ok(())
    }

    /// What rests on the chain, or takes a stream of our own, does not go with other writers.
    fn shared(&self) -> Result<(), Failure> {
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
        Ok(())
    }
}
