//! A network in memory. Everything in it happens at times of the runtime's clock and in an order that only the seed
//! decides.
//!
//! A host is an IP address. A byte takes the delay of its link, which differs between connections. A link can be cut:
//! then nothing arrives until it is mended, as when packets are lost. Connections can be reset, and a host can be
//! without descriptors. What TCP guarantees holds: bytes arrive once and in order, and a full window stops the sender.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, BufWriter, Error, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::net::{Connecting, Network, SimulatedListener, SimulatedNetwork, SimulatedStream};

use super::connection::{Pipes, Stream};
use super::lock;

/// Errors of Linux.
const EMFILE: i32 = 24;
const EADDRINUSE: i32 = 98;
const ENETDOWN: i32 = 100;
const ECONNREFUSED: i32 = 111;

/// The delay of a connection in one direction is below this.
const MAX_DELAY: Duration = Duration::from_millis(3);
/// With a violation, so many faults are told.
const FAULTS_TOLD: usize = 5;
/// The first port of outgoing connections.
const FIRST_PORT: u16 = 32_768;

#[derive(Clone)]
pub(crate) struct SimulatedNet(Arc<Mutex<State>>);

struct State {
    seed: u64,
    /// How many processes of each host have ended.
    ended: BTreeMap<IpAddr, u64>,
    /// By host and port, those of its present process.
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
    /// The faults so far, with their times.
    faults: Vec<(Duration, String)>,
    /// Where all that is digested is written, too.
    trace: Option<BufWriter<File>>,
    started: Instant,
}

#[derive(Default)]
struct Backlog {
    arrived: VecDeque<Stream>,
    waker: Option<Waker>,
}

impl State {
    /// The number of a host's present process.
    fn process(&self, host: IpAddr) -> u64 {
        self.ended.get(&host).copied().unwrap_or_default()
    }

    /// The time since the run began.
    fn now(&self) -> Duration {
        Clock::System.timer_now() - self.started
    }

    fn digest(&mut self, what: &str, bytes: &[u8]) {
        let at = self.now().as_nanos();
        self.digest.update(&at.to_le_bytes()).update(what.as_bytes()).update(bytes);
        if let Some(trace) = &mut self.trace {
            writeln!(trace, "{:.6} {what} {}", at as f64 / 1e9, bytes.escape_ascii()).expect("a written line");
        }
    }
}

fn pair(one: IpAddr, other: IpAddr) -> (IpAddr, IpAddr) {
    (one.min(other), one.max(other))
}

impl SimulatedNet {
    pub(crate) fn new(seed: u64, trace: Option<&Path>) -> Self {
        Self(Arc::new(Mutex::new(State {
            seed,
            ended: BTreeMap::new(),
            listeners: BTreeMap::new(),
            connections: Vec::new(),
            opened: BTreeMap::new(),
            cut: BTreeSet::new(),
            slow: BTreeMap::new(),
            without_descriptors: BTreeSet::new(),
            waiting: Vec::new(),
            digest: blake3::Hasher::new(),
            faults: Vec::new(),
            trace: trace.map(|path| BufWriter::new(File::create(path).expect("a file"))),
            started: Clock::System.timer_now(),
        })))
    }

    /// The network as the present process of this host sees it. After [`end`](Self::end) it is down for that process.
    pub(crate) fn of(&self, host: IpAddr) -> Network {
        let process = lock(&self.0).process(host);
        Network::Simulated(Arc::new(Host { net: self.clone(), ip: host, process }))
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
            let hosts = lock(&connection).hosts();
            if hosts.contains(&one) && other.is_none_or(|other| hosts.contains(&other)) {
                Pipes::reset(&connection);
            }
        }
    }

    /// The number of connections of two hosts that neither of them has dropped.
    pub(crate) fn open_between(&self, one: IpAddr, other: IpAddr) -> usize {
        let state = lock(&self.0);
        let open = state.connections.iter().filter(|connection| connection.strong_count() == 2);
        let hosts = open.filter_map(Weak::upgrade).map(|open| lock(&open).hosts());
        hosts.filter(|hosts| hosts.contains(&one) && hosts.contains(&other)).count()
    }

    /// The process of a host has ended: its listeners and connections are gone, and what still runs of it opens no others.
    pub(crate) fn end(&self, host: IpAddr) {
        let mut state = lock(&self.0);
        *state.ended.entry(host).or_default() += 1;
        let (gone, left): (BTreeMap<_, _>, _) =
            std::mem::take(&mut state.listeners).into_iter().partition(|((of, _), _)| *of == host);
        state.listeners = left;
        drop(state);
        // Connections that were not accepted lock the network when they are dropped.
        drop(gone);
        self.reset(host, None);
    }

    /// A digest of all that has arrived so far, with its times.
    pub(crate) fn digest(&self) -> blake3::Hash {
        lock(&self.0).digest.finalize()
    }

    /// Adds a line to the digest.
    pub(crate) fn note(&self, line: &str) {
        self.arrived("", line.as_bytes());
    }

    /// Adds a fault to the digest, and to those that [`Self::moment`] tells.
    pub(crate) fn note_fault(&self, fault: String) {
        self.note(&fault);
        let mut state = lock(&self.0);
        let now = state.now();
        state.faults.push((now, fault));
    }

    /// The present time, and the last faults.
    pub(crate) fn moment(&self) -> String {
        let state = lock(&self.0);
        let last = &state.faults[state.faults.len().saturating_sub(FAULTS_TOLD)..];
        let last = last.iter().map(|(at, fault)| format!("; {:.3} s {fault}", at.as_secs_f64()));
        format!("at {:.3} s; before{}", state.now().as_secs_f64(), last.collect::<String>())
    }

    /// Adds bytes to the digest, which have arrived at `place`.
    pub(crate) fn arrived(&self, place: &str, bytes: &[u8]) {
        lock(&self.0).digest(place, bytes);
    }

    /// The additional delay of a link.
    pub(crate) fn delay(&self, [one, other]: [IpAddr; 2]) -> Duration {
        lock(&self.0).slow.get(&pair(one, other)).copied().unwrap_or_default()
    }

    /// Waits until the link of two hosts is not cut.
    pub(crate) fn poll_mended(&self, [one, other]: [IpAddr; 2], context: &Context<'_>) -> Poll<()> {
        let mut state = lock(&self.0);
        if !state.cut.contains(&pair(one, other)) {
            return Poll::Ready(());
        }
        state.waiting.push(context.waker().clone());
        Poll::Pending
    }

    async fn mended(&self, hosts: [IpAddr; 2]) {
        poll_fn(|context| self.poll_mended(hosts, context)).await;
    }
}

/// The network of one process of a host.
struct Host {
    net: SimulatedNet,
    ip: IpAddr,
    process: u64,
}

impl Host {
    /// # Errors
    /// If the process has ended.
    fn check_running(&self, state: &State) -> io::Result<()> {
        if state.process(self.ip) == self.process { Ok(()) } else { Err(Error::from_raw_os_error(ENETDOWN)) }
    }
}

impl SimulatedNetwork for Host {
    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn SimulatedListener>> {
        let mut state = lock(&self.net.0);
        self.check_running(&state)?;
        let (host, port) = (self.ip, address.port());
        if state.listeners.contains_key(&(host, port)) {
            return Err(Error::from_raw_os_error(EADDRINUSE));
        }
        state.listeners.insert((host, port), Backlog::default());
        let address = if address.ip().is_unspecified() { SocketAddr::new(host, port) } else { address };
        Ok(Box::new(Listener { net: self.net.clone(), host, process: self.process, address }))
    }

    fn connect(&self, to: SocketAddr) -> Connecting {
        let host = Self { net: self.net.clone(), ..*self };
        Box::pin(async move {
            let Self { net, ip, .. } = &host;
            let ip = *ip;
            let (mut dice, port, number) = {
                let mut state = lock(&net.0);
                host.check_running(&state)?;
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
            let hosts = [ip, to.ip()];
            net.mended(hosts).await;
            tokio::time::sleep(delay[0] + delay[1] + 2 * net.delay(hosts)).await;
            net.mended(hosts).await;
            let pipes = Arc::new(Mutex::new(Pipes::new(number, [SocketAddr::new(ip, port), to], delay)));
            let mut state = lock(&net.0);
            host.check_running(&state)?;
            state.connections.push(Arc::downgrade(&pipes));
            if state.connections.len().is_multiple_of(1024) {
                state.connections.retain(|connection| connection.strong_count() > 0);
            }
            let backlog =
                state.listeners.get_mut(&(to.ip(), to.port())).ok_or(Error::from_raw_os_error(ECONNREFUSED))?;
            backlog.arrived.push_back(Stream::new(net, &pipes, 1));
            let waker = backlog.waker.take();
            drop(state);
            waker.into_iter().for_each(Waker::wake);
            Ok(Box::new(Stream::new(net, &pipes, 0)) as Box<dyn SimulatedStream>)
        })
    }
}

struct Listener {
    net: SimulatedNet,
    host: IpAddr,
    process: u64,
    address: SocketAddr,
}

impl SimulatedListener for Listener {
    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Box<dyn SimulatedStream>>> {
        let mut state = lock(&self.net.0);
        if state.process(self.host) != self.process {
            return Poll::Pending;
        }
        let is_exhausted = state.without_descriptors.contains(&self.host);
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
        let mut state = lock(&self.net.0);
        let is_present = state.process(self.host) == self.process;
        let backlog = is_present.then(|| state.listeners.remove(&(self.host, self.address.port())));
        drop(state);
        // Connections that were not accepted lock the network when they are dropped.
        drop(backlog);
    }
}
