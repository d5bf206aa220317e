//! An upstream that says any bytes at all, closes and resets: what no HTTP library would do.
//!
//! It takes its turns request by request, on whatever connection they come, and the last turn is for all
//! that come after. What is said on connections it has not been asked on is nothing.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::within;

/// What is done about one request.
#[derive(Clone, Default)]
pub struct Turn(Vec<Act>);

#[derive(Clone)]
enum Act {
    Say(Vec<u8>),
    Wait,
    Close,
    Reset,
}

/// Says nothing, and keeps the connection.
pub fn silent() -> Turn {
    Turn::default()
}

/// Says these very bytes, and keeps the connection.
pub fn says(bytes: impl AsRef<[u8]>) -> Turn {
    silent().then_says(bytes)
}

/// Ends the connection without a word (FIN).
pub fn closes() -> Turn {
    silent().then_closes()
}

/// Breaks the connection without a word (RST).
pub fn resets() -> Turn {
    silent().then_resets()
}

impl Turn {
    pub fn then_says(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.push(Act::Say(bytes.as_ref().to_vec()));
        self
    }

    /// Goes on when the test says so ([`RawUpstream::go_on`]).
    pub fn then_waits(mut self) -> Self {
        self.0.push(Act::Wait);
        self
    }

    pub fn then_closes(mut self) -> Self {
        self.0.push(Act::Close);
        self
    }

    pub fn then_resets(mut self) -> Self {
        self.0.push(Act::Reset);
        self
    }
}

/// What has happened so far.
#[derive(Clone, Copy, Default)]
struct Seen {
    connections: usize,
    requests: usize,
    hung_up: usize,
}

pub struct RawUpstream {
    url: String,
    shared: Arc<Shared>,
    listening: AbortHandle,
}

/// All of its connections end with it.
impl Drop for RawUpstream {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

struct Shared {
    turns: Vec<Turn>,
    seen: watch::Sender<Seen>,
    heads: Mutex<Vec<String>>,
    going_on: Notify,
}

impl RawUpstream {
    /// With these turns, of which there has to be one at least.
    pub async fn start(turns: impl Into<Vec<Turn>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            turns: turns.into(),
            seen: watch::Sender::default(),
            heads: Mutex::default(),
            going_on: Notify::new(),
        });
        let serving = Arc::clone(&shared);
        let listening = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                serving.seen.send_modify(|seen| seen.connections += 1);
                connections.spawn(serve(stream, Arc::clone(&serving)));
            }
        });
        Self { url, shared, listening: listening.abort_handle() }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.shared.seen.borrow().connections
    }

    /// How many requests' heads have come, on all connections.
    pub fn requests(&self) -> usize {
        self.shared.seen.borrow().requests
    }

    /// The heads that have come, in order.
    pub fn heads(&self) -> Vec<String> {
        self.shared.heads.lock().unwrap().clone()
    }

    /// Returns once that many requests' heads have come.
    pub async fn asked(&self, times: usize) {
        self.until(|seen| seen.requests >= times).await;
    }

    /// Returns once the other side has ended, or answered the end of, that many connections.
    pub async fn hung_up(&self, times: usize) {
        self.until(|seen| seen.hung_up >= times).await;
    }

    /// Ends one wait, the present one or else the next.
    pub fn go_on(&self) {
        self.shared.going_on.notify_one();
    }

    async fn until(&self, enough: impl FnMut(&Seen) -> bool) {
        let mut seen = self.shared.seen.subscribe();
        within(seen.wait_for(enough)).await.unwrap();
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut received = Vec::new();
    while let Some(head) = read_request(&mut stream, &mut received).await {
        shared.heads.lock().unwrap().push(head);
        let mut number = 0;
        shared.seen.send_modify(|seen| {
            number = seen.requests;
            seen.requests += 1;
        });
        let turn = shared.turns.get(number).or(shared.turns.last()).unwrap();
        for act in &turn.0 {
            match act {
                // Who has heard enough may hang up.
                Act::Say(bytes) => drop(stream.write_all(bytes).await),
                Act::Wait => shared.going_on.notified().await,
                Act::Close => {
                    let _ = stream.shutdown().await;
                    while stream.read_buf(&mut received).await.is_ok_and(|read| read > 0) {}
                    shared.seen.send_modify(|seen| seen.hung_up += 1);
                    return;
                }
                Act::Reset => return stream.set_zero_linger().unwrap(),
            }
        }
    }
    shared.seen.send_modify(|seen| seen.hung_up += 1);
}

/// A request's head; its body, if it has a length, is read and dropped. `None` when there are no more.
async fn read_request(stream: &mut TcpStream, received: &mut Vec<u8>) -> Option<String> {
    let end = loop {
        if let Some(end) = received.windows(4).position(|end| end == b"\r\n\r\n") {
            break end + 4;
        }
        stream.read_buf(received).await.ok().filter(|&read| read > 0)?;
    };
    let head = String::from_utf8_lossy(&received[..end]).into_owned();
    let length = head
        .to_ascii_lowercase()
        .split_once("content-length: ")
        .map_or(0, |(_, rest)| rest.split("\r\n").next().and_then(|length| length.parse::<usize>().ok()).unwrap());
    while received.len() < end + length {
        stream.read_buf(received).await.ok().filter(|&read| read > 0)?;
    }
    received.drain(..end + length);
    Some(head)
}
