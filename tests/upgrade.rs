//! One gateway process replaces another while many clients send requests. No request may fail. The clients do not
//! retry. They reconnect only after `Connection: close`, GOAWAY, or when a connection was closed between two requests.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use workspace_gateway::testing::simulator::Simulator;

use crate::supervised::Notifications;
use crate::support::process::{Process, folder};
use crate::support::{Http, PROJECT, within};

/// The number of times that a gateway is replaced.
const UPGRADES: usize = 3;

/// The number of clients of each kind: always busy, mostly idle, with a new connection for each request, and with
/// HTTP/2.
const BUSY: usize = 100;
const MOSTLY_IDLE: usize = 50;
const BRIEF: usize = 20;
const HTTP2: usize = 30;

/// What all clients share.
struct Load {
    address: SocketAddr,
    token: String,
    /// The body of each response.
    expected: Bytes,
    is_over: AtomicBool,
    /// The number of successful responses.
    answered: watch::Sender<usize>,
    /// Changes when mostly idle clients send the next request.
    idle_round: watch::Sender<usize>,
}

impl Load {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Checks a response, and counts it.
    fn check(&self, status: u16, body: &[u8]) -> Result<(), String> {
        if status != 200 || body != self.expected {
            return Err(format!("{status}: {}", String::from_utf8_lossy(body)));
        }
        self.answered.send_modify(|answered| *answered += 1);
        Ok(())
    }

    /// Waits for more successful responses.
    async fn wait_for_responses(&self, more: usize) {
        let mut answered = self.answered.subscribe();
        let goal = *answered.borrow() + more;
        within(answered.wait_for(|&answered| answered >= goal)).await.unwrap();
    }
}

/// The HTTP/1 connection of a client, if it has one.
#[derive(Default)]
struct Http1Client(Option<TcpStream>);

impl Http1Client {
    /// Sends one request. Connects first if there is no connection, or if it was closed before the request.
    async fn get(&mut self, load: &Load, more: &str) -> Result<(), String> {
        if self.0.as_ref().is_some_and(has_ended) {
            self.0 = None;
        }
        let stream = match &mut self.0 {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect(load.address).await.map_err(|error| format!("connect: {error}"))?;
                stream.set_nodelay(true).map_err(|error| error.to_string())?;
                none.insert(stream)
            }
        };
        let head =
            format!("GET /v2/{PROJECT}/products HTTP/1.1\r\nhost: x\r\nx-auth-token: {}\r\n{more}\r\n", load.token);
        stream.write_all(head.as_bytes()).await.map_err(|error| format!("send: {error}"))?;
        let (head, body) = read_response(stream).await?;
        load.check(head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0), &body)?;
        if head.contains("\r\nconnection: close\r\n") {
            self.0 = None;
        }
        Ok(())
    }
}

/// Whether the peer has closed the connection, as far as this side knows.
fn has_ended(stream: &TcpStream) -> bool {
    !stream.try_read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Reads one response with a `Content-Length`.
async fn read_response(stream: &mut TcpStream) -> Result<(String, Vec<u8>), String> {
    let mut received = Vec::with_capacity(4096);
    loop {
        let end = received.windows(4).position(|end| end == b"\r\n\r\n").map(|end| end + 4);
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&received[..end]).into_owned();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            let length = length.ok_or_else(|| format!("no length: {head}"))?;
            if received.len() >= end + length {
                return Ok((head, received.split_off(end)));
            }
        }
        match stream.read_buf(&mut received).await {
            Ok(1..) => {}
            ended => return Err(format!("{ended:?} after {:?}", String::from_utf8_lossy(&received))),
        }
    }
}

async fn busy(load: Arc<Load>) -> Result<(), String> {
    let mut client = Http1Client::default();
    while !load.is_over() {
        client.get(&load, "").await.map_err(|error| format!("busy: {error}"))?;
    }
    Ok(())
}

/// Keeps its connection open while it is idle.
async fn mostly_idle(load: Arc<Load>) -> Result<(), String> {
    let (mut client, mut round) = (Http1Client::default(), load.idle_round.subscribe());
    while !load.is_over() {
        client.get(&load, "").await.map_err(|error| format!("mostly idle: {error}"))?;
        round.changed().await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn brief(load: Arc<Load>) -> Result<(), String> {
    while !load.is_over() {
        let result = Http1Client::default().get(&load, "connection: close\r\n").await;
        result.map_err(|error| format!("brief: {error}"))?;
    }
    Ok(())
}

async fn http2(load: Arc<Load>) -> Result<(), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("HTTP/2: {what}: {error}");
    let mut connected: Option<SendRequest<Bytes>> = None;
    while !load.is_over() {
        let mut sender = match connected.take() {
            Some(sender) => sender,
            None => {
                let stream = TcpStream::connect(load.address).await.map_err(|error| failed("connect", &error))?;
                let (sender, connection) =
                    h2::client::handshake(stream).await.map_err(|error| failed("handshake", &error))?;
                tokio::spawn(connection);
                sender
            }
        };
        // After GOAWAY the client opens a new connection.
        let Ok(ready) = sender.ready().await else { continue };
        sender = ready;
        let request = Request::get(format!("http://x/v2/{PROJECT}/products")).header("x-auth-token", &load.token);
        let request = request.body(()).map_err(|error| error.to_string())?;
        let (response, _) = sender.send_request(request, true).map_err(|error| failed("send", &error))?;
        let response = response.await.map_err(|error| failed("response", &error))?;
        let (status, mut body, mut received) = (response.status().as_u16(), response.into_body(), Vec::new());
        while let Some(part) = body.data().await {
            received.extend(part.map_err(|error| failed("body", &error))?);
        }
        load.check(status, &received)?;
        connected = Some(sender);
    }
    Ok(())
}

#[tokio::test]
async fn replacing_the_process_fails_no_request() {
    let simulator = Simulator::start().await.unwrap();
    let folder = folder("upgrade");
    let file = folder.join("config.toml");
    // The access log is not needed.
    std::fs::write(&file, "[log]\nformat = \"json\"\nlevel = \"warn\"\n").unwrap();
    let sockets = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let inherited = [("proxy", &sockets[0]), ("metrics", &sockets[1]), ("admin", &sockets[2])];
    let start = async |number: usize| {
        let path = folder.join(format!("{number}"));
        let notifications = Notifications::on(UnixDatagram::bind(&path).unwrap());
        let environment = [("NOTIFY_SOCKET", path.to_str().unwrap())];
        let process = Process::spawn_on_sockets(&inherited, &simulator, &file, &environment);
        assert!(notifications.next().await.starts_with("READY=1\n"));
        (process, notifications)
    };
    let (mut gateway, mut notifications) = start(0).await;

    let (address, token) = (sockets[0].local_addr().unwrap(), simulator.token(PROJECT));
    let url = format!("http://{address}/v2/{PROJECT}/products");
    let first = Http::new().send(http::Method::GET, &url, &[("x-auth-token", &token)], "").await;
    let load = Arc::new(Load {
        address,
        token,
        expected: first.body().clone(),
        is_over: AtomicBool::new(false),
        answered: watch::Sender::new(0),
        idle_round: watch::Sender::new(0),
    });
    let mut clients = JoinSet::new();
    for _ in 0..BUSY {
        clients.spawn(busy(Arc::clone(&load)));
    }
    for _ in 0..MOSTLY_IDLE {
        clients.spawn(mostly_idle(Arc::clone(&load)));
    }
    for _ in 0..BRIEF {
        clients.spawn(brief(Arc::clone(&load)));
    }
    for _ in 0..HTTP2 {
        clients.spawn(http2(Arc::clone(&load)));
    }
    let clients = tokio::spawn(clients.join_all());
    load.wait_for_responses(1_000).await;

    for number in 1..=UPGRADES {
        let (next, next_notifications) = start(number).await;
        gateway.signal("TERM");
        assert!(notifications.next().await.starts_with("STOPPING=1\n"));
        load.idle_round.send_modify(|round| *round += 1);
        let (code, log) = gateway.wait_for_exit().await;
        assert_eq!((code, log.as_str()), (Some(0), ""), "no connection was closed forcibly");
        (gateway, notifications) = (next, next_notifications);
        load.wait_for_responses(500).await;
        load.idle_round.send_modify(|round| *round += 1);
    }
    load.is_over.store(true, Ordering::Relaxed);
    load.idle_round.send_modify(|round| *round += 1);
    let failures: Vec<String> = within(clients).await.unwrap().into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{} of {}: {failures:#?}", failures.len(), *load.answered.borrow());
    // The cache and the grants are only in memory, so each process fetches and proves again. A request that was sent
    // before the first proof may cause another call.
    let calls = simulator.requests_seen().len();
    assert!((1 + UPGRADES..*load.answered.borrow() / 20).contains(&calls), "{calls}");
    drop(gateway);
}
