//! A network in memory: servers by address, and links that take their time, stall, and break at
//! any byte. What was sent before a link broke may still arrive, as it does from a kernel's buffer.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use outjet::net::{Dialled, World};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep};

use crate::jetstream::BASE;
use crate::random::Random;

/// What answers at an address: plays the server's side of a connection, or refuses it.
pub(crate) type Server = Box<dyn FnMut(End) -> Option<Served> + Send>;

/// A connection being served.
pub(crate) type Served = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The whole network. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Net(Arc<Mutex<Inner>>);

struct Inner {
    servers: BTreeMap<SocketAddr, Server>,
    links: Vec<Link>,
    serving: JoinSet<()>,
    random: Random,
    /// How slow links are.
    weather: Weather,
    unique: u128,
    began: Instant,
}

/// How slow links are that are made from now on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// What is written arrives after a time of up to this.
    pub(crate) delay_max: Duration,
    /// Most bytes that may be under way in one direction.
    pub(crate) bytes_max: usize,
}

/// One connection, from the outside. It may be over.
#[derive(Clone)]
struct Link {
    /// Who dialled.
    seat: usize,
    to: SocketAddr,
    wire: Weak<Mutex<Wire>>,
}

/// Where an instance sits: what it dials is its own.
struct Seat {
    net: Net,
    number: usize,
}

impl Net {
    pub(crate) fn new(random: Random, weather: Weather) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            servers: BTreeMap::new(),
            links: Vec::new(),
            serving: JoinSet::new(),
            random,
            weather,
            unique: 0,
            began: Instant::now(),
        })))
    }

    /// Has `server` answer at `address`.
    pub(crate) fn serve(&self, address: SocketAddr, server: Server) {
        lock(&self.0).servers.insert(address, server);
    }

    /// What instance `number` is given as its world.
    pub(crate) fn seat(&self, number: usize) -> Arc<dyn World> {
        Arc::new(Seat {
            net: self.clone(),
            number,
        })
    }

    /// Changes how slow links are that are made from now on.
    pub(crate) fn set_weather(&self, weather: Weather) {
        lock(&self.0).weather = weather;
    }

    /// Breaks links: of `seat`, or of all; to `to`, or to all; each after so many more bytes from
    /// the client, and from the server. What is under way before that still arrives.
    pub(crate) fn cut(
        &self,
        seat: Option<usize>,
        to: Option<SocketAddr>,
        after: [u64; 2],
    ) -> usize {
        let wires = self.wires(seat, to);
        for wire in &wires {
            let mut wire = lock(wire);
            for (half, bytes) in wire.0.iter_mut().zip(after) {
                half.cut_after = Some(bytes);
            }
            if after.contains(&0) {
                wire.end(Ending::Broken);
            }
        }
        wires.len()
    }

    /// Nothing arrives over these links for so long.
    pub(crate) fn stall(
        &self,
        seat: Option<usize>,
        to: Option<SocketAddr>,
        time: Duration,
    ) -> usize {
        let wires = self.wires(seat, to);
        for wire in &wires {
            for half in &mut lock(wire).0 {
                half.stalled_until = Some(Instant::now() + time);
                half.wake();
            }
        }
        wires.len()
    }

    fn wires(&self, seat: Option<usize>, to: Option<SocketAddr>) -> Vec<Arc<Mutex<Wire>>> {
        let links = &mut lock(&self.0).links;
        links.retain(|link| link.wire.upgrade().is_some_and(|wire| !lock(&wire).over()));
        let wanted = |link: &&Link| {
            seat.is_none_or(|seat| seat == link.seat) && to.is_none_or(|to| to == link.to)
        };
        let wanted = links.iter().filter(wanted);
        wanted.filter_map(|link| link.wire.upgrade()).collect()
    }

    fn connect(&self, seat: usize, to: SocketAddr) -> io::Result<Box<dyn outjet::net::Stream>> {
        let mut inner = lock(&self.0);
        let weather = inner.weather;
        let half = |random: &mut Random| Half::new(weather, random.fork());
        let wire = Wire([half(&mut inner.random), half(&mut inner.random)]);
        let wire = Arc::new(Mutex::new(wire));
        let [ours, theirs] = [0, 1].map(|side| End::new(wire.clone(), side));
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let server = inner.servers.get_mut(&to).ok_or_else(refused)?;
        let served = server(theirs).ok_or_else(refused)?;
        let wire = Arc::downgrade(&wire);
        inner.links.push(Link { seat, to, wire });
        while inner.serving.try_join_next().is_some() {}
        inner.serving.spawn(served);
        Ok(Box::new(ours))
    }
}

impl World for Seat {
    fn dial(&self, address: SocketAddr) -> Dialled {
        let (net, seat) = (self.net.clone(), self.number);
        let delay = {
            let mut inner = lock(&net.0);
            let most = inner.weather.delay_max;
            delay(&mut inner.random, most)
        };
        Box::pin(async move {
            sleep(delay).await;
            net.connect(seat, address)
        })
    }

    fn unique(&self) -> u128 {
        let mut inner = lock(&self.net.0);
        inner.unique += 1;
        inner.unique
    }

    fn now(&self) -> OffsetDateTime {
        let began = OffsetDateTime::from_unix_timestamp_nanos(BASE.into()).expect("a date");
        began + lock(&self.net.0).began.elapsed()
    }
}

/// Mostly short: one in eight is up to `most`, the others an eighth of that.
fn delay(random: &mut Random, most: Duration) -> Duration {
    let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
    let most = if random.once_in(8) { most } else { most / 8 };
    Duration::from_micros(random.below(most.max(1)))
}

/// From the client to the server, and back.
struct Wire([Half; 2]);

impl Wire {
    fn over(&self) -> bool {
        self.0.iter().any(Half::over)
    }

    fn end(&mut self, ending: Ending) {
        self.0.iter_mut().for_each(|half| half.end(ending));
    }
}

/// One direction of a link.
struct Half {
    weather: Weather,
    random: Random,
    /// What is under way, and when it arrives.
    pieces: VecDeque<(Instant, Vec<u8>)>,
    /// How much of the first one has been read.
    read: usize,
    /// All of it.
    bytes: usize,
    /// Nothing arrives before.
    stalled_until: Option<Instant>,
    /// So many bytes may still be written.
    cut_after: Option<u64>,
    /// Nothing more is written: by the writer, or because the link broke.
    ended: Option<Ending>,
    /// The reader is gone.
    unread: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Closed,
    Broken,
}

impl Half {
    fn new(weather: Weather, random: Random) -> Self {
        Self {
            weather,
            random,
            pieces: VecDeque::new(),
            read: 0,
            bytes: 0,
            stalled_until: None,
            cut_after: None,
            ended: None,
            unread: false,
            reader: None,
            writer: None,
        }
    }

    fn over(&self) -> bool {
        self.ended.is_some() || self.unread
    }

    fn end(&mut self, ending: Ending) {
        self.ended.get_or_insert(ending);
        self.wake();
    }

    fn wake(&mut self) {
        let wakers = [self.reader.take(), self.writer.take()];
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Takes as much as there is room for.
    fn write(&mut self, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.over() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = self.weather.bytes_max.saturating_sub(self.bytes);
        if room == 0 {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut length = room.min(bytes.len());
        if let Some(left) = &mut self.cut_after {
            length = length.min(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= length as u64;
        }
        let delay = delay(&mut self.random, self.weather.delay_max);
        // In order: what is behind cannot overtake.
        let last = self.pieces.back().map(|(at, _)| *at);
        let at = last
            .max(Some(Instant::now() + delay))
            .unwrap_or_else(Instant::now);
        self.pieces.push_back((at, bytes[..length].to_vec()));
        self.bytes += length;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(length))
    }

    /// Reads what has arrived; `Err`: until when nothing does.
    fn read(
        &mut self,
        cx: &Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Result<Poll<io::Result<()>>, Instant> {
        let now = Instant::now();
        let stalled = self.stalled_until.filter(|until| *until > now);
        let Some((at, piece)) = self.pieces.front() else {
            return match (self.ended, stalled) {
                (Some(_), Some(until)) => Err(until),
                (Some(Ending::Closed), None) => Ok(Poll::Ready(Ok(()))),
                (Some(Ending::Broken), None) => {
                    Ok(Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())))
                }
                (None, _) => {
                    self.reader = Some(cx.waker().clone());
                    Ok(Poll::Pending)
                }
            };
        };
        let at = stalled.map_or(*at, |until| until.max(*at));
        if at > now {
            return Err(at);
        }
        let length = buf.remaining().min(piece.len() - self.read);
        buf.put_slice(&piece[self.read..self.read + length]);
        self.read += length;
        self.bytes -= length;
        if self.read == piece.len() {
            self.pieces.pop_front();
            self.read = 0;
        }
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
        Ok(Poll::Ready(Ok(())))
    }
}

/// One side of a link. Dropped, it is closed: what it has written still arrives.
pub(crate) struct End {
    wire: Arc<Mutex<Wire>>,
    /// Which half it writes.
    side: usize,
    /// Until what is under way arrives.
    arrival: Option<Pin<Box<Sleep>>>,
}

impl End {
    fn new(wire: Arc<Mutex<Wire>>, side: usize) -> Self {
        Self {
            wire,
            side,
            arrival: None,
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut wire = lock(&self.wire);
        wire.0[self.side].end(Ending::Closed);
        let incoming = &mut wire.0[1 - self.side];
        incoming.unread = true;
        incoming.wake();
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let read = lock(&self.wire).0[1 - self.side].read(cx, buf);
            let at = match read {
                Ok(poll) => return poll,
                Err(at) => at,
            };
            let arrival = match &mut self.arrival {
                Some(arrival) => {
                    if arrival.deadline() != at {
                        arrival.as_mut().reset(at);
                    }
                    arrival
                }
                None => self.arrival.insert(Box::pin(tokio::time::sleep_until(at))),
            };
            if arrival.as_mut().poll(cx).is_pending() {
                // A stall may begin or end meanwhile.
                let waker = cx.waker().clone();
                lock(&self.wire).0[1 - self.side].reader = Some(waker);
                return Poll::Pending;
            }
            self.arrival = None;
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut wire = lock(&self.wire);
        let written = wire.0[self.side].write(cx, bytes);
        if wire.0[self.side].cut_after == Some(0) {
            wire.end(Ending::Broken);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.wire).0[self.side].end(Ending::Closed);
        Poll::Ready(Ok(()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A history that panics with a lock held has failed already.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
