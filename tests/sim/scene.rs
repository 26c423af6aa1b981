//! Where a history takes place: who answers at which address, how slow the links are, and what an
//! operator has configured.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::jetstream::Nats;
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

/// What an operator may have written.
pub(crate) fn settings(random: &mut Random) -> BTreeMap<String, String> {
    let database = format!("postgres://outjet@{POSTGRES}/outjet?sslmode=disable");
    let settings = [
        ("POSTGRES__URL", database),
        (
            "POSTGRES__TAKEOVER_AFTER",
            format!("{}s", random.between(3, 10)),
        ),
        ("NATS__URL", format!("nats://{NATS}")),
        (
            "PUBLISH__IN_FLIGHT_MAX",
            (IN_FLIGHT_MAX >> random.below(11)).to_string(),
        ),
        ("PUBLISH__DELAYED", "now".to_owned()),
    ];
    let named = settings
        .into_iter()
        .map(|(name, value)| (format!("OUTJET_{name}"), value));
    named.collect()
}
