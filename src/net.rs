//! Where connections, unique numbers and the time of day come from: the system, or a world that
//! decides everything by a seed.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use uuid::Uuid;

/// Any stream a session can run over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// A stream, or why there is none.
pub type Dialled = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// A world without sockets, and without any chance or clock but its own.
pub trait World: Send + Sync {
    /// Connects to the server at `address`.
    fn dial(&self, address: SocketAddr) -> Dialled;

    /// A number that it has not given before.
    fn unique(&self) -> u128;

    /// The time of day.
    fn now(&self) -> OffsetDateTime;
}

/// The system's network, unless a [`World`] is given.
#[derive(Clone, Default)]
pub struct Network(Option<Arc<dyn World>>);

impl Network {
    /// That of `world`.
    pub fn of(world: Arc<dyn World>) -> Self {
        Self(Some(world))
    }

    /// Connects to `address`; `set` sets the options of a socket, without delay (`TCP_NODELAY`).
    pub(crate) async fn dial(
        &self,
        address: SocketAddr,
        set: impl FnOnce(&TcpStream) -> io::Result<()>,
    ) -> io::Result<Box<dyn Stream>> {
        if let Some(world) = &self.0 {
            return world.dial(address).await;
        }
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        set(&tcp)?;
        Ok(Box::new(tcp))
    }

    /// A number that nobody else has.
    pub(crate) fn unique(&self) -> Uuid {
        match &self.0 {
            None => Uuid::now_v7(),
            Some(world) => Uuid::from_u128(world.unique()),
        }
    }

    /// The time of day, for what others are told; never to measure.
    pub(crate) fn now(&self) -> OffsetDateTime {
        match &self.0 {
            None => OffsetDateTime::now_utc(),
            Some(world) => world.now(),
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "a world"
        } else {
            "the system"
        })
    }
}

impl PartialEq for Network {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs),
            _ => false,
        }
    }
}

impl Eq for Network {}
