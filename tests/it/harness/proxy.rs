//! A TCP proxy with a stable address that breaks connections on request.
//!
//! It runs on the test's runtime and ends with its value. All it knows of the traffic is bytes.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::port::Port;
use super::wait::{Wait, until_sync};

/// What the proxy does with bytes. A change counts at once, for connections that exist, too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    /// Passes everything on.
    Forward,
    /// Resets all connections and takes no new ones: nobody listens.
    Refuse,
    /// Passes nothing on in this direction; connections stay open, and the sender's buffers fill.
    Stall(Direction),
    /// Resets all connections once this many more bytes have passed, then forwards.
    Cut(Direction, u64),
    /// Passes each chunk on after this long.
    Delay(Duration),
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Direction {
    /// From the client.
    ToServer,
    /// To the client.
    ToClient,
    /// Either way; for [`Mode::Cut`], both counted together.
    Both,
}

/// Where connections go.
#[derive(Clone, Debug)]
pub(crate) enum Upstream {
    /// A TCP server.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// A running proxy.
pub(crate) struct Proxy {
    port: Port,
    state: watch::Sender<State>,
    _acceptor: JoinSet<()>,
}

impl Proxy {
    /// Listens on a port of its own and forwards.
    pub(crate) fn start(upstream: Upstream) -> Self {
        let port = Port::free();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        let listener = listen(address).expect("our port");
        let (state, seen) = watch::channel(State::new(upstream));
        let mut acceptor = JoinSet::new();
        acceptor.spawn(accept(listener, address, state.clone(), seen));
        Self {
            port,
            state,
            _acceptor: acceptor,
        }
    }

    /// A proxy before a TCP port of this machine.
    pub(crate) fn before_port(port: u16) -> Self {
        Self::start(Upstream::Tcp((Ipv4Addr::LOCALHOST, port).into()))
    }

    /// Changes what happens to bytes.
    pub(crate) fn set(&self, mode: Mode) {
        self.state.send_modify(|state| {
            state.mode = mode;
            state.cuts += u64::from(mode == Mode::Refuse);
        });
    }

    /// Sends connections that are opened from now on elsewhere.
    pub(crate) fn retarget(&self, upstream: Upstream) {
        self.state.send_modify(|state| state.upstream = upstream);
    }

    /// Resets all connections, once.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Stalls the connections that exist, both ways; later ones are not touched. What they have
    /// sent is delivered at the [`thaw`](Self::thaw), as by a network that was away for a while.
    pub(crate) fn freeze(&self) {
        self.state
            .send_modify(|state| state.frozen_below = state.accepted);
    }

    /// Lets frozen connections go on.
    pub(crate) fn thaw(&self) {
        self.state.send_modify(|state| state.frozen_below = 0);
    }

    /// How often connections were reset (all of them at once count one).
    pub(crate) fn cuts(&self) -> u64 {
        self.state.borrow().cuts
    }

    /// How many connections were ever taken.
    pub(crate) fn accepted(&self) -> u64 {
        self.state.borrow().accepted
    }

    /// Waits until a planned [`Mode::Cut`] has happened.
    pub(crate) async fn until_cut(&self, within: Duration) {
        until_sync("the proxy has cut the connections", within, || {
            let mode = self.state.borrow().mode;
            Wait::ready_if(!matches!(mode, Mode::Cut(..)), mode)
        })
        .await;
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port.number()).into()
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }
}

/// What the connections act upon.
struct State {
    mode: Mode,
    upstream: Upstream,
    accepted: u64,
    frozen_below: u64,
    cuts: u64,
}

impl State {
    fn new(upstream: Upstream) -> Self {
        Self {
            mode: Mode::Forward,
            upstream,
            accepted: 0,
            frozen_below: 0,
            cuts: 0,
        }
    }

    fn lets_pass(&self, connection: u64, direction: Direction) -> bool {
        let stalled = match self.mode {
            Mode::Stall(stalled) => stalled.covers(direction),
            Mode::Forward | Mode::Refuse | Mode::Cut(..) | Mode::Delay(_) => false,
        };
        !stalled && connection >= self.frozen_below
    }

    /// Counts bytes against a planned cut; if they reach it, says how many of them still pass.
    fn count(&mut self, direction: Direction, length: usize) -> Option<usize> {
        let Mode::Cut(counted, left) = &mut self.mode else {
            return None;
        };
        if !counted.covers(direction) {
            return None;
        }
        if (length as u64) < *left {
            *left -= length as u64;
            return None;
        }
        let passing = *left as usize;
        self.mode = Mode::Forward;
        self.cuts += 1;
        Some(passing)
    }
}

impl Direction {
    fn covers(self, other: Self) -> bool {
        self == Self::Both || self == other
    }
}

async fn accept(
    listener: TcpListener,
    address: SocketAddr,
    state: watch::Sender<State>,
    mut seen: watch::Receiver<State>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let refusing = seen.borrow_and_update().mode == Mode::Refuse;
        if refusing {
            listener = None;
        } else if listener.is_none() {
            listener = Some(listen(address).expect("bind our port again"));
        }
        tokio::select! {
            changed = seen.changed() => if changed.is_err() { return },
            Some(_) = connections.join_next() => {}
            accepted = next(listener.as_ref()) => {
                let Ok((client, _)) = accepted else { continue };
                let mut admitted = (0, 0);
                state.send_modify(|state| {
                    admitted = (state.accepted, state.cuts);
                    state.accepted += 1;
                });
                connections.spawn(serve(client, admitted, state.clone()));
            }
        }
    }
}

async fn next(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// One connection, until both sides have closed it or it is cut.
async fn serve(mut client: TcpStream, (id, cuts): (u64, u64), state: watch::Sender<State>) {
    let upstream = state.borrow().upstream.clone();
    let mut seen = state.subscribe();
    // With linger 0 a close is a reset, unless the pumps have shut it down in order.
    let reset = socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO));
    reset.expect("set an option of our socket");
    let _ = client.set_nodelay(true);
    tokio::select! {
        biased;
        _ = seen.wait_for(|state| state.cuts != cuts) => {}
        done = forward(&mut client, upstream, id, &state) => drop(done),
    }
}

async fn forward(
    client: &mut TcpStream,
    upstream: Upstream,
    id: u64,
    state: &watch::Sender<State>,
) -> io::Result<()> {
    // Borrowed halves: an owned one would end the stream in order when dropped, hiding the reset.
    let (from_client, to_client) = client.split();
    match upstream {
        Upstream::Tcp(address) => {
            let mut server = TcpStream::connect(address).await?;
            server.set_nodelay(true)?;
            let (from_server, to_server) = server.split();
            tokio::try_join!(
                pump((from_client, to_server), id, Direction::ToServer, state),
                pump((from_server, to_client), id, Direction::ToClient, state),
            )?;
        }
        Upstream::Unix(path) => {
            let mut server = UnixStream::connect(path).await?;
            let (from_server, to_server) = server.split();
            tokio::try_join!(
                pump((from_client, to_server), id, Direction::ToServer, state),
                pump((from_server, to_client), id, Direction::ToClient, state),
            )?;
        }
    }
    Ok(())
}

async fn pump(
    (mut from, mut to): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    id: u64,
    direction: Direction,
    state: &watch::Sender<State>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    let mut seen = state.subscribe();
    loop {
        let length = from.read(&mut buffer).await?;
        let passes = seen.wait_for(|state| state.lets_pass(id, direction)).await;
        let delay = match passes.map(|state| state.mode) {
            Ok(Mode::Delay(delay)) => delay,
            _ => Duration::ZERO,
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if length == 0 {
            return to.shutdown().await;
        }
        let mut last = None;
        state.send_if_modified(|state| {
            last = state.count(direction, length);
            false
        });
        let Some(passing) = last else {
            to.write_all(&buffer[..length]).await?;
            continue;
        };
        // Written before the others are told to close, so that exactly these bytes arrive. This
        // side must end here itself: it would go on with what comes behind the bytes that were
        // dropped before `serve` hears of the cut, and no network leaves such a gap.
        to.write_all(&buffer[..passing]).await?;
        to.flush().await?;
        state.send_modify(|_| {});
        return Err(io::ErrorKind::ConnectionReset.into());
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

    /// A client's and a server's end of one proxied connection.
    struct Wire {
        proxy: Proxy,
        client: (OwnedReadHalf, OwnedWriteHalf),
        server: (OwnedReadHalf, OwnedWriteHalf),
        listener: TcpListener,
    }

    async fn wire() -> Wire {
        let listener = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let proxy = Proxy::before_port(listener.local_addr().unwrap().port());
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        let server = listener.accept().await.unwrap().0;
        Wire {
            proxy,
            client: client.into_split(),
            server: server.into_split(),
            listener,
        }
    }

    async fn received(from: &mut OwnedReadHalf, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    async fn is_silent(from: &mut OwnedReadHalf) -> bool {
        let wait = tokio::time::timeout(Duration::from_millis(100), from.read_u8());
        wait.await.is_err()
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_a_half_close_too() {
        let mut wire = wire().await;
        wire.client.1.write_all(b"ping").await.unwrap();
        assert_eq!(received(&mut wire.server.0, 4).await, b"ping");
        wire.client.1.shutdown().await.unwrap();
        assert!(wire.server.0.read_u8().await.is_err());
        wire.server.1.write_all(b"pong").await.unwrap();
        assert_eq!(received(&mut wire.client.0, 4).await, b"pong");
    }

    #[tokio::test]
    async fn a_stall_holds_back_one_direction_and_loses_nothing() {
        let mut wire = wire().await;
        wire.proxy.set(Mode::Stall(Direction::ToClient));
        wire.client.1.write_all(b"ping").await.unwrap();
        assert_eq!(received(&mut wire.server.0, 4).await, b"ping");
        wire.server.1.write_all(b"pong").await.unwrap();
        assert!(is_silent(&mut wire.client.0).await);
        wire.proxy.set(Mode::Forward);
        assert_eq!(received(&mut wire.client.0, 4).await, b"pong");
    }

    #[tokio::test]
    async fn a_cut_lets_exactly_that_many_bytes_through() {
        let mut wire = wire().await;
        wire.proxy.set(Mode::Cut(Direction::ToServer, 3));
        wire.client.1.write_all(b"ping").await.unwrap();
        let mut bytes = Vec::new();
        let _ = wire.server.0.read_to_end(&mut bytes).await;
        assert_eq!(bytes, b"pin");
        let error = wire.client.0.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        wire.proxy.until_cut(Duration::from_secs(5)).await;
        assert_eq!(wire.proxy.cuts(), 1);
        TcpStream::connect(wire.proxy.address()).await.unwrap();
        wire.listener.accept().await.unwrap();
    }

    #[tokio::test]
    async fn nothing_that_waits_behind_a_cut_passes() {
        let mut wire = wire().await;
        let sent: Vec<u8> = (0..32 * 1024_u16).flat_map(u16::to_be_bytes).collect();
        wire.proxy.set(Mode::Stall(Direction::ToServer));
        wire.client.1.write_all(&sent).await.unwrap();
        wire.proxy.set(Mode::Cut(Direction::ToServer, 20_001));
        let mut bytes = Vec::new();
        let _ = wire.server.0.read_to_end(&mut bytes).await;
        assert_eq!(bytes.len(), 20_001);
        assert!(sent.starts_with(&bytes));
    }

    #[tokio::test]
    async fn refusing_resets_what_is_open_and_nobody_listens_until_it_forwards() {
        let mut wire = wire().await;
        wire.proxy.set(Mode::Refuse);
        assert!(wire.client.0.read_u8().await.is_err());
        let error = TcpStream::connect(wire.proxy.address()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        wire.proxy.set(Mode::Forward);
        let within = Duration::from_secs(5);
        super::super::until("it listens again", within, async || {
            let connected = TcpStream::connect(wire.proxy.address()).await;
            Wait::ready_if(connected.is_ok(), connected)
        })
        .await;
    }

    #[tokio::test]
    async fn a_frozen_connection_delivers_late_what_its_dead_client_sent() {
        let mut wire = wire().await;
        wire.proxy.freeze();
        wire.client.1.write_all(b"late").await.unwrap();
        drop(wire.client);
        let second = TcpStream::connect(wire.proxy.address()).await.unwrap();
        let (mut at_server, _) = wire.listener.accept().await.unwrap();
        second.try_write(b"now").unwrap();
        let mut now = [0; 3];
        at_server.read_exact(&mut now).await.unwrap();
        assert!(is_silent(&mut wire.server.0).await);
        wire.proxy.thaw();
        assert_eq!(received(&mut wire.server.0, 4).await, b"late");
    }

    #[tokio::test]
    async fn a_delay_holds_each_chunk_back_for_that_long() {
        let mut wire = wire().await;
        let delay = Duration::from_millis(50);
        wire.proxy.set(Mode::Delay(delay));
        let sent = tokio::time::Instant::now();
        wire.client.1.write_all(b"ping").await.unwrap();
        assert_eq!(received(&mut wire.server.0, 4).await, b"ping");
        assert!(sent.elapsed() >= delay);
    }
}
