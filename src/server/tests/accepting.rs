//! Whose connections make room on a listener, over real sockets: clients are told apart by loopback addresses here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::net::{TcpSocket, TcpStream};

use super::super::accept::{Accepting, Handler};
use super::super::memory::BUFFERS;
use super::*;
use crate::budget::{Account, Budget, ConnectionClass};
use crate::clock::ManualClock;
use crate::net::Listener;
use crate::request::peer::Peer;
use crate::sync::Mutex;
use crate::telemetry::metrics::Metrics;

const SMALL: &str = "GET /small HTTP/1.1\r\nhost: x\r\n\r\n";
const WHOLE: &str = "small\r\n0\r\n\r\n";
/// Its answer begins and never ends.
const NEVER: &str = "GET /never HTTP/1.1\r\nhost: x\r\n\r\n";

/// A listener for clients, on which `GET /known` makes a connection known.
struct Listening {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    clock: ManualClock,
    serving: JoinHandle<()>,
    registry: Arc<Registry>,
    /// Of answers that never end.
    _unfinished: Vec<mpsc::Sender<io::Result<Bytes>>>,
    _exit: watch::Sender<bool>,
    _bounds: watch::Sender<ServeLimits>,
    _tls: watch::Sender<Option<Tls>>,
}

fn peer_of(address: IpAddr) -> Option<Peer> {
    match address {
        IpAddr::V4(address) if address != Ipv4Addr::LOCALHOST => Some(Peer::V4(address)),
        _ => None,
    }
}

impl Listening {
    async fn for_connections(most: usize) -> Self {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), BUFFERS).unwrap();
        let address = listener.local_addr().unwrap();
        let (exit, wanted) = watch::channel(false);
        let terms = ConnectionTimeouts { head: Duration::from_secs(100), ..TERMS };
        let bounds =
            ServeLimits { terms, buffer: 64 * 1024, half_close: Duration::ZERO, shutdown_timeout: Duration::ZERO };
        let (bounds, in_force) = watch::channel(bounds);
        let (_tls, tls) = watch::channel(None);
        let (metrics, clock) = (Metrics::new().unwrap(), ManualClock::default());
        let (budget, observed) = (Budget::new(1 << 24), (&*metrics, Clock::Manual(clock.clone())));
        let accepting = Accepting::for_clients(
            ShutdownControl::new(wanted, false),
            in_force,
            tls,
            most,
            Arc::clone(&budget),
            observed,
        )
        .telling_apart(peer_of);
        let registry = Arc::clone(accepting.registry());
        let (senders, bodies): (Vec<_>, Vec<_>) = (0..8).map(|_| mpsc::channel(1)).unzip();
        let bodies = Arc::new(Mutex::new(bodies));
        let serving = tokio::spawn(accepting.serve(listener, move |_, peer| {
            let unfinished = Arc::clone(&bodies);
            let account = Account::open(&budget, peer_of(peer));
            let raised = account.clone();
            let answer = move |request: Request<TrackedRequestBody>| {
                let path = request.uri().path().to_owned();
                if path == "/known" {
                    raised.raise(ConnectionClass::Known, None);
                }
                let unfinished = unfinished.clone();
                async move {
                    Response::new(match path.as_str() {
                        "/never" => Parts(unfinished.lock().pop().unwrap()),
                        _ => Parts::whole(Bytes::from_static(b"small")),
                    })
                }
            };
            Handler { answer, fast_path: None, account, half_close: Arc::default() }
        }));
        let (_unfinished, _exit, _bounds) = (senders, exit, bounds);
        Self { address, metrics, clock, serving, registry, _unfinished, _exit, _bounds, _tls }
    }

    /// A connection from 127.0.0.`last`, on which this was sent before it was accepted.
    async fn connect(&self, last: u8, begun: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
        let mut stream = within(socket.connect(self.address)).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        stream
    }

    /// The same, once the gateway has answered, or begun to.
    async fn open(&self, last: u8, request: &str) -> TcpStream {
        let mut stream = self.connect(last, request).await;
        answered(&mut stream, if request == NEVER { "\r\n\r\n" } else { WHOLE }).await;
        stream
    }

    fn seconds_pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    fn shed(&self) -> u64 {
        self.metrics.connections_ended.with_label_values(&["shed"]).get()
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("nothing came of it in a minute")
}

/// Reads an answer up to these bytes.
async fn answered(stream: &mut TcpStream, end: &str) {
    let mut answer = Vec::new();
    while !answer.ends_with(end.as_bytes()) {
        assert!(within(stream.read_buf(&mut answer)).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
    }
}

/// Waits until the gateway has closed a connection.
async fn closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    while within(stream.read_buf(&mut rest)).await.is_ok_and(|read| read > 0) {}
}

async fn ask(stream: &mut TcpStream) {
    stream.write_all(SMALL.as_bytes()).await.unwrap();
    answered(stream, WHOLE).await;
}

#[tokio::test]
async fn the_oldest_idle_connection_makes_room_and_busy_ones_stay() {
    let listening = Listening::for_connections(3).await;
    let busy = listening.open(1, NEVER).await;
    let oldest = listening.open(1, SMALL).await;
    let mut other = listening.open(1, SMALL).await;
    listening.seconds_pass(10);
    let mut next = listening.open(1, SMALL).await;
    closed(oldest).await;
    ask(&mut next).await;
    ask(&mut other).await;
    assert_eq!((listening.registry.len(), listening.shed()), (3, 1));
    let nothing = busy.try_read(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn the_class_that_holds_most_makes_room() {
    let listening = Listening::for_connections(5).await;
    let known = "GET /known HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut known = [listening.open(1, known).await, listening.open(1, known).await];
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(listening.open(1, SMALL).await);
    }
    listening.seconds_pass(10);
    // Though the known ones are idle for longer.
    let _next = listening.open(1, SMALL).await;
    closed(others.remove(0)).await;
    let _next = listening.open(1, SMALL).await;
    closed(others.remove(0)).await;
    for stream in &mut known {
        ask(stream).await;
    }
}

#[tokio::test]
async fn a_peer_address_makes_room_first_when_it_holds_more_than_half() {
    let listening = Listening::for_connections(4).await;
    let mut other = listening.open(2, SMALL).await;
    let mut greedy = Vec::new();
    for _ in 0..3 {
        greedy.push(listening.open(4, SMALL).await);
    }
    listening.seconds_pass(10);
    let _next = listening.open(5, SMALL).await;
    closed(greedy.remove(0)).await;
    // Now it holds half, and may have only places of its own. The other has been idle for longer than these.
    let _own = listening.open(4, SMALL).await;
    closed(greedy.remove(0)).await;
    ask(&mut other).await;
}

#[tokio::test]
async fn newcomers_of_a_peer_address_with_half_of_the_places_keep_nobody_out() {
    let listening = Listening::for_connections(4).await;
    let _busy = [listening.open(2, NEVER).await, listening.open(2, NEVER).await];
    let _others = [listening.open(3, NEVER).await, listening.open(1, SMALL).await];
    // More than wait here. None of theirs can be closed, and the other idle connection is not for them.
    listening.seconds_pass(10);
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(listening.connect(2, SMALL).await);
    }
    let mut next = listening.connect(5, SMALL).await;
    answered(&mut next, WHOLE).await;
    let peer = Peer::V4([127, 0, 0, 2].into());
    assert!(listening.registry.has_its_half(peer, 4) && !listening.registry.has_its_half(peer, 5));
    // 32 wait, the others were closed.
    within(async {
        while listening.shed() < 1 + 40 - 32 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!listening.serving.is_finished());
}
