//! An HTTP/1.1 client that sends given bytes, piece by piece, and reads responses one by one.

use std::fmt;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{PROJECT, World, within};

/// The number of hits of the fast path.
pub const FAST_PATH_HITS: &str = "workspace_gateway_fast_path_hits_total";

pub struct RawClient<S = TcpStream> {
    stream: S,
    received: Vec<u8>,
}

/// A complete response.
#[derive(Clone, PartialEq, Eq)]
pub struct RawResponse {
    pub head: String,
    pub body: String,
}

impl fmt::Debug for RawResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} ({} bytes)", self.head, self.body.get(..100).unwrap_or(&self.body), self.body.len())
    }
}

impl RawResponse {
    pub fn status(&self) -> u16 {
        self.head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {self:?}"))
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.filter(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    /// Panics unless the header occurs exactly once.
    pub fn header(&self, name: &str) -> &str {
        let all = self.all(name);
        assert_eq!(all.len(), 1, "{name} in {self:?}");
        all[0]
    }

    /// The response with its request id replaced, to compare responses.
    pub fn without_request_id(&self) -> Self {
        let id = self.header("x-request-id").to_owned();
        Self { head: self.head.replace(&id, "ID"), body: self.body.replace(&id, "ID") }
    }
}

impl RawClient {
    pub async fn connect(world: &World) -> Self {
        Self::connect_to(world.server.proxy_address()).await
    }

    pub async fn connect_to(address: SocketAddr) -> Self {
        let stream = within(TcpStream::connect(address)).await.unwrap();
        // Each piece is sent immediately.
        stream.set_nodelay(true).unwrap();
        Self::new(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> RawClient<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, received: Vec::new() }
    }

    /// Returns when the gateway has read the bytes, so that later bytes arrive as another piece.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.stream.write_all(bytes.as_ref())).await.unwrap();
        within(self.stream.flush()).await.unwrap();
        let_gateway_run().await;
    }

    /// Ignores that the gateway has closed the connection.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = within(self.stream.write_all(bytes.as_ref())).await;
        let_gateway_run().await;
    }

    /// Sends bytes and closes the sending side (half-close). The gateway sees both at once.
    pub async fn send_and_finish(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.stream.write_all(bytes.as_ref())).await.unwrap();
        self.finish_sending().await;
    }

    /// Closes the sending side (half-close).
    pub async fn finish_sending(&mut self) {
        let _ = self.stream.shutdown().await;
        let_gateway_run().await;
    }

    pub async fn read_response(&mut self) -> RawResponse {
        within(self.next())
            .await
            .unwrap_or_else(|| panic!("closed after {:?}", String::from_utf8_lossy(&self.received)))
    }

    pub fn into_stream(self) -> S {
        self.stream
    }

    pub async fn exchange(&mut self, bytes: impl AsRef<[u8]>) -> RawResponse {
        self.send(bytes).await;
        self.read_response().await
    }

    /// All responses until the gateway closes the connection. Panics if other bytes are received.
    pub async fn read_responses(&mut self) -> Vec<RawResponse> {
        let mut responses = Vec::new();
        while let Some(response) = within(self.next()).await {
            responses.push(response);
        }
        assert!(self.received.is_empty(), "{:?}", String::from_utf8_lossy(&self.received));
        responses
    }

    /// All bytes until the gateway closes the connection.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        within(async { while self.more().await.is_some() {} }).await;
        std::mem::take(&mut self.received)
    }

    /// Waits for any bytes.
    pub async fn read_some(&mut self) {
        assert!(within(self.more()).await.is_some(), "closed");
    }

    /// Asserts that no bytes have been received beyond the responses that were read.
    pub async fn assert_no_response(&mut self) {
        let_gateway_run().await;
        let more = tokio::select! {
            biased;
            more = self.stream.read_buf(&mut self.received) => Some(more),
            () = std::future::ready(()) => None,
        };
        let received = String::from_utf8_lossy(&self.received);
        assert!(more.is_none() && self.received.is_empty(), "{more:?} {received:?}");
    }

    /// `None` if the connection is closed before the response is complete.
    async fn next(&mut self) -> Option<RawResponse> {
        let end = loop {
            if let Some(end) = self.received.windows(4).position(|end| end == b"\r\n\r\n") {
                break end + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8(self.received.drain(..end).collect()).unwrap();
        let mut response = RawResponse { head, body: String::new() };
        if response.status() < 200 || response.status() == 304 {
            return Some(response);
        }
        response.body = match response.all("transfer-encoding")[..] {
            [] => self.take(response.header("content-length").parse().unwrap()).await?,
            ["chunked"] => self.chunks().await?,
            _ => panic!("{response:?}"),
        };
        Some(response)
    }

    async fn chunks(&mut self) -> Option<String> {
        let mut body = String::new();
        loop {
            let mut size = String::new();
            while !size.ends_with("\r\n") {
                size += &self.take(1).await?;
            }
            let chunk = self.take(usize::from_str_radix(size.trim_end(), 16).unwrap()).await?;
            assert_eq!(self.take(2).await?, "\r\n");
            if chunk.is_empty() {
                return Some(body);
            }
            body += &chunk;
        }
    }

    async fn take(&mut self, length: usize) -> Option<String> {
        while self.received.len() < length {
            self.more().await?;
        }
        Some(String::from_utf8(self.received.drain(..length).collect()).unwrap())
    }

    async fn more(&mut self) -> Option<()> {
        self.stream.read_buf(&mut self.received).await.ok().filter(|&read| read > 0).map(drop)
    }
}

/// Lets the gateway read what was written. It runs on the same thread, so it can do so at once.
async fn let_gateway_run() {
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
}

impl World {
    /// The head of a GET with the valid token and more header lines.
    pub fn head(&self, path: &str, lines: &[&str]) -> String {
        head_as(&self.token, path, lines)
    }

    /// Sends a head until the fast path answers it.
    pub async fn warm_head_cache(&self, head: &str) {
        let mut client = RawClient::connect(self).await;
        client.exchange(head).await;
        let hit = client.exchange(head).await;
        assert!(hit.head.contains("workspace-gateway; hit"), "{hit:?}");
        let before = self.fast_path_hits();
        client.exchange(head).await;
        assert_eq!(self.fast_path_hits(), before + 1, "not on the fast path: {head}");
    }

    pub fn fast_path_hits(&self) -> usize {
        self.metric(FAST_PATH_HITS) as usize
    }
}

/// The head of a GET with this token. `PROJECT` in the path is replaced by [`PROJECT`].
pub fn head_as(token: &str, path: &str, lines: &[&str]) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!(
        "GET {} HTTP/1.1\r\nhost: gateway\r\nx-auth-token: {token}\r\n{lines}\r\n",
        path.replace("PROJECT", PROJECT)
    )
}
