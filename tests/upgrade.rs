//! One gateway takes over from another while many clients keep asking: none of them notices. They ask nothing twice, and
//! do no more than clients of their kind have to: after `Connection: close`, GOAWAY, or when a connection has ended
//! between two questions, they connect anew.

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

use crate::supervised::Told;
use crate::support::process::{Process, folder};
use crate::support::{Http, PROJECT, within};

/// How often a gateway is replaced.
const UPGRADES: usize = 3;

/// Clients, by how they ask: on and on, once in a while, once on each connection, and in HTTP/2.
const BUSY: usize = 100;
const QUIET: usize = 50;
const BRIEF: usize = 20;
const HTTP2: usize = 30;

/// What all clients have in common.
struct Stage {
    address: SocketAddr,
    token: String,
    /// What everyone is to be answered.
    expected: Bytes,
    over: AtomicBool,
    /// How many questions were answered well.
    answered: watch::Sender<usize>,
    /// Moves when quiet clients are to ask again.
    time_to_ask: watch::Sender<usize>,
}

impl Stage {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Checks an answer, and counts it.
    fn hears(&self, status: u16, body: &[u8]) -> Result<(), String> {
        if status != 200 || body != self.expected {
            return Err(format!("{status}: {}", String::from_utf8_lossy(body)));
        }
        self.answered.send_modify(|answered| *answered += 1);
        Ok(())
    }

    /// Until so many more questions were answered.
    async fn goes_on(&self, more: usize) {
        let mut answered = self.answered.subscribe();
        let goal = *answered.borrow() + more;
        within(answered.wait_for(|&answered| answered >= goal)).await.unwrap();
    }
}

/// A client's connection in HTTP/1, while it has one.
#[derive(Default)]
struct Line(Option<TcpStream>);

impl Line {
    /// Asks once. Only before it asks it may find that there is no connection any more.
    async fn asks(&mut self, stage: &Stage, more: &str) -> Result<(), String> {
        if self.0.as_ref().is_some_and(has_ended) {
            self.0 = None;
        }
        let stream = match &mut self.0 {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect(stage.address).await.map_err(|error| format!("to connect: {error}"))?;
                stream.set_nodelay(true).map_err(|error| error.to_string())?;
                none.insert(stream)
            }
        };
        let head =
            format!("GET /v2/{PROJECT}/products HTTP/1.1\r\nhost: x\r\nx-auth-token: {}\r\n{more}\r\n", stage.token);
        stream.write_all(head.as_bytes()).await.map_err(|error| format!("to ask: {error}"))?;
        let (head, body) = answer(stream).await?;
        stage.hears(head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0), &body)?;
        if head.contains("\r\nconnection: close\r\n") {
            self.0 = None;
        }
        Ok(())
    }
}

/// Whether the other side has closed, as far as it is known here.
fn has_ended(stream: &TcpStream) -> bool {
    !stream.try_read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Reads one answer with a known length.
async fn answer(stream: &mut TcpStream) -> Result<(String, Vec<u8>), String> {
    let mut heard = Vec::with_capacity(4096);
    loop {
        let end = heard.windows(4).position(|end| end == b"\r\n\r\n").map(|end| end + 4);
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&heard[..end]).into_owned();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            let length = length.ok_or_else(|| format!("no length: {head}"))?;
            if heard.len() >= end + length {
                return Ok((head, heard.split_off(end)));
            }
        }
        match stream.read_buf(&mut heard).await {
            Ok(1..) => {}
            ended => return Err(format!("{ended:?} after {:?}", String::from_utf8_lossy(&heard))),
        }
    }
}

async fn busy(stage: Arc<Stage>) -> Result<(), String> {
    let mut line = Line::default();
    while !stage.is_over() {
        line.asks(&stage, "").await.map_err(|error| format!("busy: {error}"))?;
    }
    Ok(())
}

/// Asks when it is time, and keeps its connection meanwhile.
async fn quiet(stage: Arc<Stage>) -> Result<(), String> {
    let (mut line, mut time) = (Line::default(), stage.time_to_ask.subscribe());
    while !stage.is_over() {
        line.asks(&stage, "").await.map_err(|error| format!("quiet: {error}"))?;
        time.changed().await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn brief(stage: Arc<Stage>) -> Result<(), String> {
    while !stage.is_over() {
        let asked = Line::default().asks(&stage, "connection: close\r\n").await;
        asked.map_err(|error| format!("brief: {error}"))?;
    }
    Ok(())
}

async fn http2(stage: Arc<Stage>) -> Result<(), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("HTTP/2: {what}: {error}");
    let mut connected: Option<SendRequest<Bytes>> = None;
    while !stage.is_over() {
        let mut sender = match connected.take() {
            Some(sender) => sender,
            None => {
                let stream = TcpStream::connect(stage.address).await.map_err(|error| failed("to connect", &error))?;
                let (sender, connection) =
                    h2::client::handshake(stream).await.map_err(|error| failed("to begin", &error))?;
                tokio::spawn(connection);
                sender
            }
        };
        // Nothing is asked of one who wishes to go.
        let Ok(ready) = sender.ready().await else { continue };
        sender = ready;
        let request = Request::get(format!("http://x/v2/{PROJECT}/products")).header("x-auth-token", &stage.token);
        let request = request.body(()).map_err(|error| error.to_string())?;
        let (answer, _) = sender.send_request(request, true).map_err(|error| failed("to ask", &error))?;
        let answer = answer.await.map_err(|error| failed("to be answered", &error))?;
        let (status, mut body, mut whole) = (answer.status().as_u16(), answer.into_body(), Vec::new());
        while let Some(part) = body.data().await {
            whole.extend(part.map_err(|error| failed("to hear it all", &error))?);
        }
        stage.hears(status, &whole)?;
        connected = Some(sender);
    }
    Ok(())
}

#[tokio::test]
async fn one_process_takes_over_from_another_and_no_client_notices() {
    let simulator = Simulator::start().await.unwrap();
    let folder = folder("upgrade");
    let file = folder.join("config.toml");
    // A line for each request would be more than anybody reads here.
    std::fs::write(&file, "[log]\nformat = \"json\"\nlevel = \"warn\"\n").unwrap();
    let sockets = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let handed = [("proxy", &sockets[0]), ("metrics", &sockets[1]), ("admin", &sockets[2])];
    let start = async |number: usize| {
        let path = folder.join(format!("{number}"));
        let told = Told::at(UnixDatagram::bind(&path).unwrap());
        let environment = [("NOTIFY_SOCKET", path.to_str().unwrap())];
        let process = Process::begin_on(&handed, &simulator, &file, &environment);
        assert!(told.next().await.starts_with("READY=1\n"));
        (process, told)
    };
    let (mut gateway, mut told) = start(0).await;

    let (address, token) = (sockets[0].local_addr().unwrap(), simulator.token(PROJECT));
    let url = format!("http://{address}/v2/{PROJECT}/products");
    let first = Http::new().send(http::Method::GET, &url, &[("x-auth-token", &token)], "").await;
    let stage = Arc::new(Stage {
        address,
        token,
        expected: first.body().clone(),
        over: AtomicBool::new(false),
        answered: watch::Sender::new(0),
        time_to_ask: watch::Sender::new(0),
    });
    let mut clients = JoinSet::new();
    for _ in 0..BUSY {
        clients.spawn(busy(Arc::clone(&stage)));
    }
    for _ in 0..QUIET {
        clients.spawn(quiet(Arc::clone(&stage)));
    }
    for _ in 0..BRIEF {
        clients.spawn(brief(Arc::clone(&stage)));
    }
    for _ in 0..HTTP2 {
        clients.spawn(http2(Arc::clone(&stage)));
    }
    let clients = tokio::spawn(clients.join_all());
    stage.goes_on(1_000).await;

    for number in 1..=UPGRADES {
        let (next, told_by_next) = start(number).await;
        gateway.signal("TERM");
        assert!(told.next().await.starts_with("STOPPING=1\n"));
        stage.time_to_ask.send_modify(|time| *time += 1);
        let (code, log) = gateway.ends().await;
        assert_eq!((code, log.as_str()), (Some(0), ""), "nobody was cut off");
        (gateway, told) = (next, told_by_next);
        stage.goes_on(500).await;
        stage.time_to_ask.send_modify(|time| *time += 1);
    }
    stage.over.store(true, Ordering::Relaxed);
    stage.time_to_ask.send_modify(|time| *time += 1);
    let failures: Vec<String> = within(clients).await.unwrap().into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{} of {}: {failures:#?}", failures.len(), *stage.answered.borrow());
    // What one has learned, the next has to learn again: there is no cache but in memory, and nobody is proved yet.
    // (Who asked before the first proof was there, and looks for it after, may ask once more.)
    let calls = simulator.requests_seen().len();
    assert!((1 + UPGRADES..*stage.answered.borrow() / 20).contains(&calls), "{calls}");
    drop(gateway);
}
