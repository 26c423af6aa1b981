//! Where a history takes place: who answers at which address, how slow the links are, and what an
//! operator has configured.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use outjet::config::{Config, Sources};

use crate::jetstream::{Nats, Version};
use crate::net::{Net, Weather};
use crate::postgres::Postgres;
use crate::random::Random;

/// Where Postgres is.
pub(crate) const POSTGRES: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 5432);
/// Where NATS is.
pub(crate) const NATS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 4222);

/// The highest `publish.in_flight_max`.
pub(crate) const IN_FLIGHT_MAX: u64 = 1024;

/// The server's.
pub(crate) const MAX_PAYLOAD: usize = 4096;

/// Transactions of more events need not appear as a whole.
pub(crate) const WHOLE_MAX: usize = 64;

/// Has both servers answer.
pub(crate) fn serve(net: &Net, postgres: &Postgres, nats: &Nats) {
    let server = postgres.clone();
    net.serve(
        POSTGRES,
        Box::new(move |end| {
            server
                .is_up()
                .then(|| Box::pin(server.clone().serve(end)) as _)
        }),
    );
    let server = nats.clone();
    net.serve(
        NATS,
        Box::new(move |end| Some(Box::pin(server.clone().serve(end)) as _)),
    );
}

/// Anything from a machine's own loopback to the other side of the world.
pub(crate) fn weather(random: &mut Random) -> Weather {
    Weather {
        delay_max: Duration::from_micros(1 << random.between(4, 19)),
        bytes_max: 1 << random.between(8, 20),
    }
}

/// What an operator has written, and what that promises.
pub(crate) struct Scene {
    /// The same in all configurations of a history, but for [`Scene::config`].
    settings: BTreeMap<String, String>,
    /// `stream.hold`.
    pub(crate) hold: Duration,
    /// `stream.shared`.
    pub(crate) shared: bool,
    /// Copies of the stream: 1 or 3.
    pub(crate) replicas: usize,
    /// Transactions appear as a whole.
    pub(crate) atomic: bool,
    /// Each instance has its own mind about transactions.
    pub(crate) undecided: bool,
    /// Some bodies are larger than [`MAX_PAYLOAD`].
    pub(crate) oversize: bool,
    /// Some events are delayed.
    pub(crate) delays: bool,
    /// Messages expire.
    pub(crate) expires: bool,
}

impl Scene {
    /// Draws one, for a server of this version.
    pub(crate) fn new(random: &mut Random, version: Version) -> Self {
        let batches = version >= Version(2, 12, 1);
        let shared = random.once_in(6);
        let private = !shared && random.once_in(5);
        let holds = !shared && random.once_in(4);
        let hold = if holds { random.between(1, 20) } else { 0 };
        let kind = random.below(5);
        let atomic = batches && !shared && kind == 0;
        let delayed = *random.of(&["schedule", "now"]);
        let age = random.between(20, 90);
        let expires = !shared && random.once_in(5);
        let replicas = if random.once_in(4) { 3 } else { 1 };
        let database = format!("postgres://outjet@{POSTGRES}/outjet?sslmode=disable");
        let settings = [
            ("POSTGRES__URL", database),
            (
                "POSTGRES__TAKEOVER_AFTER",
                format!("{}s", random.between(3, 10)),
            ),
            ("NATS__URL", format!("nats://{NATS}")),
            ("STREAM__SHARED", shared.to_string()),
            (
                "STREAM__INGRESS",
                if private { "private" } else { "public" }.to_owned(),
            ),
            ("STREAM__REPLICAS", replicas.to_string()),
            ("STREAM__HOLD", format!("{hold}s")),
            (
                "STREAM__MAX_AGE",
                format!("{}s", if expires { age } else { 0 }),
            ),
            ("PUBLISH__DELAYED", delayed.to_owned()),
            (
                "PUBLISH__TRANSACTIONS",
                if atomic { "atomic" } else { "pipelined" }.to_owned(),
            ),
        ];
        let named = settings
            .into_iter()
            .map(|(name, value)| (format!("OUTJET_{name}"), value));
        Self {
            settings: named.collect(),
            hold: Duration::from_secs(hold),
            shared,
            replicas,
            atomic,
            undecided: batches && !shared && kind == 1,
            oversize: random.once_in(4),
            delays: random.once_in(3),
            expires,
        }
    }

    /// What an instance is started with: some settings may change from one to the next.
    pub(crate) fn config(&self, random: &mut Random) -> Config {
        let mut settings = self.settings.clone();
        let mut set = |name: &str, value: &str| {
            settings.insert(format!("OUTJET_PUBLISH__{name}"), value.to_owned());
        };
        let smallest = if self.atomic { 2 * WHOLE_MAX } else { 1 };
        let in_flight_max = (IN_FLIGHT_MAX >> random.below(11)).max(smallest as u64);
        set("IN_FLIGHT_MAX", &in_flight_max.to_string());
        set(
            "ON_OVERSIZE",
            random.of::<&str>(&["object_store", "dead_letter"]),
        );
        if self.undecided {
            set("TRANSACTIONS", random.of::<&str>(&["atomic", "pipelined"]));
        }
        let config = Config::load(&Sources {
            file: None,
            searched: &[],
            environment: &settings,
            overrides: &[],
        });
        config.unwrap_or_else(|failure| panic!("{failure:?}"))
    }
}

impl fmt::Debug for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}
