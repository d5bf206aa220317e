//! An upstream that sends given bytes, closes and resets connections, as no HTTP library does.
//!
//! It has one reaction for each request, counted over all connections. The last reaction is repeated for all later
//! requests. It sends nothing on a connection before a request has arrived there.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::within;

/// What the upstream does after a request.
#[derive(Clone, Default)]
pub struct Reaction(Vec<Act>);

#[derive(Clone)]
enum Act {
    Send(Vec<u8>),
    Wait,
    Close,
    Reset,
}

/// Sends nothing and keeps the connection open.
pub fn silent() -> Reaction {
    Reaction::default()
}

/// Sends bytes and keeps the connection open.
pub fn sends(bytes: impl AsRef<[u8]>) -> Reaction {
    silent().then_sends(bytes)
}

/// Closes the connection (FIN) without a response.
pub fn closes() -> Reaction {
    silent().then_closes()
}

/// Resets the connection (RST) without a response.
pub fn resets() -> Reaction {
    silent().then_resets()
}

impl Reaction {
    pub fn then_sends(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.push(Act::Send(bytes.as_ref().to_vec()));
        self
    }

    /// Waits for [`RawUpstream::resume`].
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

#[derive(Clone, Copy, Default)]
struct Counts {
    connections: usize,
    requests: usize,
    closed: usize,
}

pub struct RawUpstream {
    url: String,
    shared: Arc<Shared>,
    listening: AbortHandle,
}

/// Its connections are closed with it.
impl Drop for RawUpstream {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

struct Shared {
    reactions: Vec<Reaction>,
    counts: watch::Sender<Counts>,
    heads: Mutex<Vec<String>>,
    resumed: Notify,
}

impl RawUpstream {
    /// Needs at least one reaction.
    pub async fn start(reactions: impl Into<Vec<Reaction>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            reactions: reactions.into(),
            counts: watch::Sender::default(),
            heads: Mutex::default(),
            resumed: Notify::new(),
        });
        let serving = Arc::clone(&shared);
        let listening = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                serving.counts.send_modify(|counts| counts.connections += 1);
                connections.spawn(serve(stream, Arc::clone(&serving)));
            }
        });
        Self { url, shared, listening: listening.abort_handle() }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn connections(&self) -> usize {
        self.shared.counts.borrow().connections
    }

    /// The number of request heads that have been received, on all connections.
    pub fn requests(&self) -> usize {
        self.shared.counts.borrow().requests
    }

    /// The received request heads, in order of arrival.
    pub fn heads(&self) -> Vec<String> {
        self.shared.heads.lock().unwrap().clone()
    }

    /// Waits until this many request heads have been received.
    pub async fn wait_for_requests(&self, count: usize) {
        self.until(|counts| counts.requests >= count).await;
    }

    /// Waits until the peer has closed this many connections.
    pub async fn wait_for_closes(&self, count: usize) {
        self.until(|counts| counts.closed >= count).await;
    }

    /// Ends the current wait, or else the next one.
    pub fn resume(&self) {
        self.shared.resumed.notify_one();
    }

    async fn until(&self, enough: impl FnMut(&Counts) -> bool) {
        let mut counts = self.shared.counts.subscribe();
        within(counts.wait_for(enough)).await.unwrap();
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut received = Vec::new();
    while let Some(head) = read_request(&mut stream, &mut received).await {
        shared.heads.lock().unwrap().push(head);
        let mut number = 0;
        shared.counts.send_modify(|counts| {
            number = counts.requests;
            counts.requests += 1;
        });
        let reaction = shared.reactions.get(number).or(shared.reactions.last()).unwrap();
        for act in &reaction.0 {
            match act {
                // The peer may have closed the connection.
                Act::Send(bytes) => drop(stream.write_all(bytes).await),
                Act::Wait => shared.resumed.notified().await,
                Act::Close => {
                    let _ = stream.shutdown().await;
                    while stream.read_buf(&mut received).await.is_ok_and(|read| read > 0) {}
                    shared.counts.send_modify(|counts| counts.closed += 1);
                    return;
                }
                Act::Reset => return stream.set_zero_linger().unwrap(),
            }
        }
    }
    shared.counts.send_modify(|counts| counts.closed += 1);
}

/// Reads a request and rereactions its head. A body with a length is discarded. `None` when the connection is closed.
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
