//! Whose connections are closed for others on a listener, over real sockets. Loopback addresses stand for different
//! peers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::net::{TcpSocket, TcpStream};

use super::super::accept::{Accepting, ConnectionHandler};
use super::super::memory::BUFFERS;
use super::*;
use crate::budget::{Account, Budget, ConnectionClass};
use crate::clock::ManualClock;
use crate::net::Network;
use crate::request::peer::Peer;
use crate::sync::Mutex;
use crate::telemetry::metrics::Metrics;

const SMALL: &str = "GET /small HTTP/1.1\r\nhost: x\r\n\r\n";
const WHOLE: &str = "small\r\n0\r\n\r\n";
/// Its response starts and never ends.
const NEVER: &str = "GET /never HTTP/1.1\r\nhost: x\r\n\r\n";

/// A listener for clients. `GET /known` raises a connection to the class of known callers.
struct TestListener {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    clock: ManualClock,
    serving: JoinHandle<()>,
    registry: Arc<Registry>,
    /// For responses that never end.
    _unfinished: Vec<mpsc::Sender<io::Result<Bytes>>>,
    _shutdown: watch::Sender<bool>,
    _limits: watch::Sender<ServeLimits>,
    _tls: watch::Sender<Option<Tls>>,
}

fn peer_of(address: IpAddr) -> Option<Peer> {
    match address {
        IpAddr::V4(address) if address != Ipv4Addr::LOCALHOST => Some(Peer::V4(address)),
        _ => None,
    }
}

impl TestListener {
    async fn for_connections(most: usize) -> Self {
        let listener = Network::System.listen(([127, 0, 0, 1], 0).into(), BUFFERS).unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, shutdown_requested) = watch::channel(false);
        let timeouts = ConnectionTimeouts { head: Duration::from_secs(100), ..TIMEOUTS };
        let limits =
            ServeLimits { timeouts, buffer: 64 * 1024, half_close: Duration::ZERO, shutdown_timeout: Duration::ZERO };
        let (limits, in_force) = watch::channel(limits);
        let (_tls, tls) = watch::channel(None);
        let (metrics, clock) = (Metrics::new().unwrap(), ManualClock::default());
        let (budget, observed) = (Budget::new(1 << 24), (&*metrics, Clock::Manual(clock.clone())));
        let accepting = Accepting::for_clients(
            ShutdownControl::new(shutdown_requested, false),
            in_force,
            tls,
            most,
            Arc::clone(&budget),
            observed,
        )
        .with_peers(peer_of);
        let registry = Arc::clone(accepting.registry());
        let (senders, bodies): (Vec<_>, Vec<_>) = (0..8).map(|_| mpsc::channel(1)).unzip();
        let bodies = Arc::new(Mutex::new(bodies));
        let serving = tokio::spawn(accepting.serve(listener, move |_, peer| {
            let unfinished = Arc::clone(&bodies);
            let account = Account::open(&budget, peer_of(peer));
            let raised = account.clone();
            let request_handler = move |request: Request<TrackedRequestBody>| {
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
            ConnectionHandler { request_handler, fast_path: None, account, half_close: Arc::default() }
        }));
        let (_unfinished, _shutdown, _limits) = (senders, shutdown, limits);
        Self { address, metrics, clock, serving, registry, _unfinished, _shutdown, _limits, _tls }
    }

    /// Connects from 127.0.0.`last` and sends `first_bytes`.
    async fn connect(&self, last: u8, first_bytes: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
        let mut stream = within(socket.connect(self.address)).await.unwrap();
        stream.write_all(first_bytes.as_bytes()).await.unwrap();
        stream
    }

    /// Connects, sends a request and reads the response, or its head if it never ends.
    async fn open(&self, last: u8, request: &str) -> TcpStream {
        let mut stream = self.connect(last, request).await;
        read_up_to(&mut stream, if request == NEVER { "\r\n\r\n" } else { WHOLE }).await;
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
    timeout(Duration::from_secs(60), future).await.expect("no result within a minute")
}

/// Reads up to these bytes.
async fn read_up_to(stream: &mut TcpStream, end: &str) {
    let mut response = Vec::new();
    while !response.ends_with(end.as_bytes()) {
        assert!(within(stream.read_buf(&mut response)).await.unwrap() > 0, "{}", String::from_utf8_lossy(&response));
    }
}

/// Waits until the gateway has closed a connection.
async fn closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    while within(stream.read_buf(&mut rest)).await.is_ok_and(|read| read > 0) {}
}

async fn request(stream: &mut TcpStream) {
    stream.write_all(SMALL.as_bytes()).await.unwrap();
    read_up_to(stream, WHOLE).await;
}

#[tokio::test]
async fn the_oldest_idle_connection_makes_room_and_busy_ones_stay() {
    let listener = TestListener::for_connections(3).await;
    let busy = listener.open(1, NEVER).await;
    let oldest = listener.open(1, SMALL).await;
    let mut other = listener.open(1, SMALL).await;
    listener.seconds_pass(10);
    let mut next = listener.open(1, SMALL).await;
    closed(oldest).await;
    request(&mut next).await;
    request(&mut other).await;
    assert_eq!((listener.registry.len(), listener.shed()), (3, 1));
    let nothing = busy.try_read(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn the_class_that_holds_most_makes_room() {
    let listener = TestListener::for_connections(5).await;
    let known = "GET /known HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut known = [listener.open(1, known).await, listener.open(1, known).await];
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(listener.open(1, SMALL).await);
    }
    listener.seconds_pass(10);
    // The known ones have been idle for longer.
    let _next = listener.open(1, SMALL).await;
    closed(others.remove(0)).await;
    let _next = listener.open(1, SMALL).await;
    closed(others.remove(0)).await;
    for stream in &mut known {
        request(stream).await;
    }
}

#[tokio::test]
async fn a_peer_address_makes_room_first_when_it_holds_more_than_half() {
    let listener = TestListener::for_connections(4).await;
    let mut other = listener.open(2, SMALL).await;
    let mut greedy = Vec::new();
    for _ in 0..3 {
        greedy.push(listener.open(4, SMALL).await);
    }
    listener.seconds_pass(10);
    let _next = listener.open(5, SMALL).await;
    closed(greedy.remove(0)).await;
    // Now it holds half, and gets only places of its own. The other peer has been idle for longer.
    let _own = listener.open(4, SMALL).await;
    closed(greedy.remove(0)).await;
    request(&mut other).await;
}

#[tokio::test]
async fn connections_of_a_peer_address_with_half_of_the_places_do_not_block_others() {
    let listener = TestListener::for_connections(4).await;
    let _busy = [listener.open(2, NEVER).await, listener.open(2, NEVER).await];
    let _others = [listener.open(3, NEVER).await, listener.open(1, SMALL).await];
    // More than wait here. The peer's own connections cannot be closed, and it does not get the place of another idle
    // one.
    listener.seconds_pass(10);
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(listener.connect(2, SMALL).await);
    }
    let mut next = listener.connect(5, SMALL).await;
    read_up_to(&mut next, WHOLE).await;
    let peer = Peer::V4([127, 0, 0, 2].into());
    assert!(listener.registry.holds_half(peer, 4) && !listener.registry.holds_half(peer, 5));
    // 32 wait; the others were closed.
    within(async {
        while listener.shed() < 1 + 40 - 32 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!listener.serving.is_finished());
}
