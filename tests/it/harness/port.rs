//! A TCP port of one test, also while the server behind it is down.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// Held by a socket that never listens: whoever wants any port gets another one, whoever connects
/// is refused, and a server that is told this number, and sets SO_REUSEADDR as all do, gets it.
pub(crate) struct Port {
    number: u16,
    _held: Option<Socket>,
}

impl Port {
    /// Nobody's until now.
    pub(crate) fn free() -> Self {
        let held = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        held.set_reuse_address(true).expect("set an option");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        held.bind(&any.into()).expect("bind a port");
        let address = held.local_addr().expect("a bound port").as_socket();
        Self {
            number: address.expect("an address of IPv4").port(),
            // Elsewhere two sockets cannot be bound to one port: it is free for a moment then.
            _held: cfg!(target_os = "linux").then_some(held),
        }
    }

    /// Its number.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn port_of_a_server_that_is_down_is_refused_and_is_nobody_elses_until_it_is_up_again() {
        let port = Port::free();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        for _ in 0..2 {
            let server = TcpListener::bind(address).expect("it sets SO_REUSEADDR");
            TcpStream::connect(address).expect("it is up");
            drop(server);
            let down = TcpStream::connect(address).expect_err("it is down");
            assert_eq!(down.kind(), std::io::ErrorKind::ConnectionRefused);
            let stranger = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            let taken = stranger.bind(&address.into()).is_err();
            assert!(taken || !cfg!(target_os = "linux"));
        }
    }
}
