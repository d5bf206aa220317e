//! A network in memory. Everything in it happens at times of the runtime's clock and in an order that only the seed
//! decides.
//!
//! A host is an IP address. A byte takes the delay of its link, which differs between connections. A link can be cut:
//! then nothing arrives until it is mended, as when packets are lost. Connections can be reset, and a host can be
//! without descriptors. What TCP guarantees holds: bytes arrive once and in order, and a full window stops the sender.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, BufWriter, Error, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};
use workspace_gateway::testing::net::{
    Connecting, Network, SimulatedListener, SimulatedNetwork, SimulatedStream as Connection,
};

/// How many bytes the kernels of both sides hold in one direction.
const WINDOW: usize = 64 * 1024;
/// Errors of Linux.
const EMFILE: i32 = 24;
const EPIPE: i32 = 32;
const EADDRINUSE: i32 = 98;
const ECONNRESET: i32 = 104;
const ECONNREFUSED: i32 = 111;

/// The delay of a connection in one direction is below this.
const MAX_DELAY: Duration = Duration::from_millis(4);
/// The first port of outgoing connections.
const FIRST_PORT: u16 = 32_768;

#[derive(Clone)]
pub(crate) struct SimulatedNet(Arc<Mutex<State>>);

struct State {
    seed: u64,
    /// By host and port.
    listeners: BTreeMap<(IpAddr, u16), Backlog>,
    connections: Vec<Weak<Mutex<Pipes>>>,
    /// The number of connections that each host has opened.
    opened: BTreeMap<IpAddr, u64>,
    /// Pairs of hosts, the lower address first.
    cut: BTreeSet<(IpAddr, IpAddr)>,
    /// Additional delay of links.
    slow: BTreeMap<(IpAddr, IpAddr), Duration>,
    without_descriptors: BTreeSet<IpAddr>,
    /// Woken when a link is mended.
    waiting: Vec<Waker>,
    digest: blake3::Hasher,
    /// Where all that is digested is written, too.
    trace: Option<BufWriter<File>>,
    started: Instant,
}

#[derive(Default)]
struct Backlog {
    arrived: VecDeque<Stream>,
    waker: Option<Waker>,
}

/// Both directions of a connection. A direction has the number of the side that reads it.
struct Pipes {
    number: u64,
    addresses: [SocketAddr; 2],
    delay: [Duration; 2],
    pipes: [Pipe; 2],
    is_reset: bool,
}

#[derive(Default)]
struct Pipe {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// When the end arrives, if the sender has closed.
    end: Option<Instant>,
    /// Whether the reader has closed, so that bytes reset the connection.
    is_unread: bool,
    has_begun: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    fn digest(&mut self, what: &str, bytes: &[u8]) {
        let at = self.started.elapsed().as_nanos();
        self.digest.update(&at.to_le_bytes()).update(what.as_bytes()).update(bytes);
        if let Some(trace) = &mut self.trace {
            writeln!(trace, "{:.6} {what} {}", at as f64 / 1e9, bytes.escape_ascii()).expect("a written line");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pair(one: IpAddr, other: IpAddr) -> (IpAddr, IpAddr) {
    (one.min(other), one.max(other))
}

impl SimulatedNet {
    pub(crate) fn new(seed: u64, trace: Option<&Path>) -> Self {
        Self(Arc::new(Mutex::new(State {
            seed,
            listeners: BTreeMap::new(),
            connections: Vec::new(),
            opened: BTreeMap::new(),
            cut: BTreeSet::new(),
            slow: BTreeMap::new(),
            without_descriptors: BTreeSet::new(),
            waiting: Vec::new(),
            digest: blake3::Hasher::new(),
            trace: trace.map(|path| BufWriter::new(File::create(path).expect("a file"))),
            started: Instant::now(),
        })))
    }

    /// The network as this host sees it.
    pub(crate) fn of(&self, host: IpAddr) -> Network {
        Network::Simulated(Arc::new(Host { net: self.clone(), ip: host }))
    }

    /// Nothing arrives between two hosts until the link is mended.
    pub(crate) fn cut(&self, one: IpAddr, other: IpAddr, is_cut: bool) {
        let mut state = lock(&self.0);
        if is_cut {
            state.cut.insert(pair(one, other));
        } else {
            state.cut.remove(&pair(one, other));
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// Delays what is sent between two hosts from now on.
    pub(crate) fn slow_down(&self, one: IpAddr, other: IpAddr, delay: Duration) {
        lock(&self.0).slow.insert(pair(one, other), delay);
    }

    pub(crate) fn set_descriptors(&self, host: IpAddr, are_there: bool) {
        let mut state = lock(&self.0);
        let backlogs: Vec<Waker> = match are_there {
            true => {
                state.without_descriptors.remove(&host);
                let of_host = state.listeners.iter_mut().filter(|((of, _), _)| *of == host);
                of_host.filter_map(|(_, backlog)| backlog.waker.take()).collect()
            }
            false => {
                state.without_descriptors.insert(host);
                Vec::new()
            }
        };
        drop(state);
        backlogs.into_iter().for_each(Waker::wake);
    }

    /// Resets the connections between two hosts, or all of one host.
    pub(crate) fn reset(&self, one: IpAddr, other: Option<IpAddr>) {
        let mut state = lock(&self.0);
        state.connections.retain(|connection| connection.strong_count() > 0);
        let connections: Vec<_> = state.connections.iter().filter_map(Weak::upgrade).collect();
        drop(state);
        for connection in connections {
            let hosts = lock(&connection).addresses.map(|address| address.ip());
            if hosts.contains(&one) && other.is_none_or(|other| hosts.contains(&other)) {
                reset(&connection);
            }
        }
    }

    /// The process of a host has ended: its listeners and connections are gone.
    pub(crate) fn end(&self, host: IpAddr) {
        lock(&self.0).listeners.retain(|(of, _), _| *of != host);
        self.reset(host, None);
    }

    /// A digest of all that has arrived so far, with its times.
    pub(crate) fn digest(&self) -> blake3::Hash {
        lock(&self.0).digest.finalize()
    }

    /// Adds a line to the digest.
    pub(crate) fn note(&self, line: &str) {
        lock(&self.0).digest("", line.as_bytes());
    }

    /// The number of connections that are open.
    pub(crate) fn open_connections(&self, host: IpAddr) -> usize {
        let connections: Vec<_> = lock(&self.0).connections.iter().filter_map(Weak::upgrade).collect();
        let is_open = |pipes: &Pipes| !pipes.is_reset && pipes.addresses.iter().any(|address| address.ip() == host);
        connections.iter().filter(|connection| is_open(&lock(connection))).count()
    }
}

fn reset(connection: &Mutex<Pipes>) {
    let mut pipes = lock(connection);
    pipes.is_reset = true;
    let wakers: Vec<_> = pipes.pipes.iter_mut().flat_map(|pipe| [pipe.reader.take(), pipe.writer.take()]).collect();
    drop(pipes);
    wakers.into_iter().flatten().for_each(Waker::wake);
}

struct Host {
    net: SimulatedNet,
    ip: IpAddr,
}

impl SimulatedNetwork for Host {
    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn SimulatedListener>> {
        let mut state = lock(&self.net.0);
        let (host, port) = (self.ip, address.port());
        if state.listeners.contains_key(&(host, port)) {
            return Err(Error::from_raw_os_error(EADDRINUSE));
        }
        state.listeners.insert((host, port), Backlog::default());
        let address = if address.ip().is_unspecified() { SocketAddr::new(host, port) } else { address };
        Ok(Box::new(Listener { net: self.net.clone(), host, address }))
    }

    fn connect(&self, to: SocketAddr) -> Connecting {
        let (net, ip) = (self.net.clone(), self.ip);
        Box::pin(async move {
            let (mut dice, port, number) = {
                let mut state = lock(&net.0);
                if state.without_descriptors.contains(&ip) {
                    return Err(Error::from_raw_os_error(EMFILE));
                }
                let opened = state.opened.entry(ip).or_default();
                *opened += 1;
                let number = *opened;
                // Not from one stream of dice: so the delays of a connection do not depend on the order of others.
                let key = blake3::hash(format!("{} {ip} {to} {number}", state.seed).as_bytes());
                let dice = SmallRng::from_seed(key.as_bytes()[..32].try_into().map_err(Error::other)?);
                (
                    dice,
                    FIRST_PORT + u16::try_from(number % u64::from(u16::MAX - FIRST_PORT)).map_err(Error::other)?,
                    number,
                )
            };
            let delay = [(); 2].map(|()| match dice.random_ratio(1, 2) {
                true => Duration::ZERO,
                false => dice.random_range(Duration::ZERO..MAX_DELAY),
            });
            net.mended(ip, to.ip()).await;
            let slow = lock(&net.0).slow.get(&pair(ip, to.ip())).copied().unwrap_or_default();
            tokio::time::sleep(delay[0] + delay[1] + 2 * slow).await;
            net.mended(ip, to.ip()).await;
            let pipes = Arc::new(Mutex::new(Pipes {
                number,
                addresses: [SocketAddr::new(ip, port), to],
                delay,
                pipes: Default::default(),
                is_reset: false,
            }));
            let stream =
                |side| Stream { net: net.clone(), pipes: Arc::clone(&pipes), side, timer: None, has_ended: false };
            let mut state = lock(&net.0);
            state.connections.push(Arc::downgrade(&pipes));
            if state.connections.len().is_multiple_of(1024) {
                state.connections.retain(|connection| connection.strong_count() > 0);
            }
            let backlog =
                state.listeners.get_mut(&(to.ip(), to.port())).ok_or(Error::from_raw_os_error(ECONNREFUSED))?;
            backlog.arrived.push_back(stream(1));
            let waker = backlog.waker.take();
            drop(state);
            waker.into_iter().for_each(Waker::wake);
            Ok(Box::new(stream(0)) as Box<dyn Connection>)
        })
    }
}

impl SimulatedNet {
    /// Waits until the link of two hosts is not cut.
    async fn mended(&self, one: IpAddr, other: IpAddr) {
        std::future::poll_fn(|context| self.poll_mended(one, other, context)).await;
    }

    fn poll_mended(&self, one: IpAddr, other: IpAddr, context: &Context<'_>) -> Poll<()> {
        let mut state = lock(&self.0);
        if !state.cut.contains(&pair(one, other)) {
            return Poll::Ready(());
        }
        state.waiting.push(context.waker().clone());
        Poll::Pending
    }
}

struct Listener {
    net: SimulatedNet,
    host: IpAddr,
    address: SocketAddr,
}

impl SimulatedListener for Listener {
    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Box<dyn Connection>>> {
        let mut state = lock(&self.net.0);
        let is_exhausted = state.without_descriptors.contains(&self.host);
        // Its host has ended.
        let Some(backlog) = state.listeners.get_mut(&(self.host, self.address.port())) else { return Poll::Pending };
        if backlog.arrived.is_empty() {
            backlog.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        if is_exhausted {
            return Poll::Ready(Err(Error::from_raw_os_error(EMFILE)));
        }
        match backlog.arrived.pop_front() {
            Some(stream) => Poll::Ready(Ok(Box::new(stream))),
            None => Poll::Pending,
        }
    }

    fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let backlog = lock(&self.net.0).listeners.remove(&(self.host, self.address.port()));
        drop(backlog);
    }
}

/// One side of a connection.
struct Stream {
    net: SimulatedNet,
    pipes: Arc<Mutex<Pipes>>,
    side: usize,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether [`Connection::poll_reset`] was called.
    has_ended: bool,
}

impl Stream {
    /// Waits until this time.
    fn poll_until(&mut self, at: Instant, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(context)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.has_ended {
            return Poll::Ready(Ok(()));
        }
        let shared = Arc::clone(&this.pipes);
        let mut pipes = lock(&shared);
        if pipes.is_reset {
            return Poll::Ready(Err(Error::from_raw_os_error(ECONNRESET)));
        }
        let [one, other] = pipes.addresses.map(|address| address.ip());
        let (now, number) = (Instant::now(), pipes.number);
        let pipe = &mut pipes.pipes[this.side];
        let next = pipe.pieces.front().map(|(at, _)| *at).or(pipe.end);
        let Some(at) = next else {
            pipe.reader = Some(context.waker().clone());
            return Poll::Pending;
        };
        if this.net.poll_mended(one, other, context).is_pending() {
            return Poll::Pending;
        }
        if at > now {
            // A reset must wake the reader, too.
            pipe.reader = Some(context.waker().clone());
            drop(pipes);
            if this.poll_until(at, context).is_pending() {
                return Poll::Pending;
            }
            pipes = lock(&shared);
        }
        let pipe = &mut pipes.pipes[this.side];
        let mut read = Vec::new();
        while let Some((at, bytes)) = pipe.pieces.front_mut()
            && *at <= now.max(Instant::now())
            && buffer.remaining() > 0
        {
            let count = bytes.len().min(buffer.remaining());
            buffer.put_slice(&bytes[..count]);
            read.extend_from_slice(&bytes[..count]);
            bytes.drain(..count);
            pipe.bytes -= count;
            if bytes.is_empty() {
                pipe.pieces.pop_front();
            }
        }
        let writer = pipe.writer.take();
        drop(pipes);
        writer.into_iter().for_each(Waker::wake);
        lock(&this.net.0).digest(&format!("{one}-{other} {number}.{}", this.side), &read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipes = lock(&self.pipes);
        let [one, other] = pipes.addresses.map(|address| address.ip());
        let (side, delay) = (1 - self.side, pipes.delay[1 - self.side]);
        let slow = lock(&self.net.0).slow.get(&pair(one, other)).copied().unwrap_or_default();
        if pipes.is_reset {
            return Poll::Ready(Err(Error::from_raw_os_error(EPIPE)));
        }
        let pipe = &mut pipes.pipes[side];
        if pipe.end.is_some() {
            return Poll::Ready(Err(Error::from_raw_os_error(EPIPE)));
        }
        if pipe.is_unread {
            let shared = Arc::clone(&self.pipes);
            drop(pipes);
            reset(&shared);
            return Poll::Ready(Err(Error::from_raw_os_error(ECONNRESET)));
        }
        let count = bytes.len().min(WINDOW - pipe.bytes);
        if count == 0 {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        // Bytes do not overtake earlier ones.
        let earliest = pipe.pieces.back().map(|(at, _)| *at);
        let at = earliest.into_iter().fold(Instant::now() + delay + slow, Instant::max);
        pipe.pieces.push_back((at, bytes[..count].to_vec()));
        pipe.bytes += count;
        pipe.has_begun = true;
        let reader = pipe.reader.take();
        drop(pipes);
        reader.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

impl Stream {
    /// Closes the sending side.
    fn close(&self) {
        let mut pipes = lock(&self.pipes);
        let (side, delay) = (1 - self.side, pipes.delay[1 - self.side]);
        let pipe = &mut pipes.pipes[side];
        if pipe.end.is_none() {
            let last = pipe.pieces.back().map(|(at, _)| *at);
            pipe.end = Some(last.into_iter().fold(Instant::now() + delay, Instant::max));
        }
        let reader = pipe.reader.take();
        drop(pipes);
        reader.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.close();
        let mut pipes = lock(&self.pipes);
        let mine = &mut pipes.pipes[self.side];
        mine.is_unread = true;
        let has_unread = !mine.pieces.is_empty();
        let writer = mine.writer.take();
        drop(pipes);
        if has_unread {
            reset(&self.pipes);
        }
        writer.into_iter().for_each(Waker::wake);
    }
}

impl Connection for Stream {
    fn local_addr(&self) -> SocketAddr {
        lock(&self.pipes).addresses[self.side]
    }

    fn peer_addr(&self) -> SocketAddr {
        lock(&self.pipes).addresses[1 - self.side]
    }

    fn is_silent(&self) -> bool {
        let pipes = lock(&self.pipes);
        !pipes.is_reset && !pipes.pipes[self.side].has_begun
    }

    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.has_ended = true;
        let mut pipes = lock(&self.pipes);
        if pipes.is_reset {
            return Poll::Ready(());
        }
        pipes.pipes[self.side].reader = Some(context.waker().clone());
        Poll::Pending
    }
}
