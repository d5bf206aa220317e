//! A client that says exactly these bytes, piece by piece, and hears what comes back answer by answer.

use std::fmt;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{PROJECT, World, within};

/// Hits whose head had come before.
pub const FAST_PATH_HITS: &str = "workspace_gateway_fast_path_hits_total";

/// A connection to the gateway.
pub struct Line<S = TcpStream> {
    stream: S,
    heard: Vec<u8>,
}

/// One whole answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Heard {
    pub head: String,
    pub body: String,
}

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} ({} bytes)", self.head, self.body.get(..100).unwrap_or(&self.body), self.body.len())
    }
}

impl Heard {
    pub fn status(&self) -> u16 {
        self.head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {self:?}"))
    }

    /// The values of a header, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.filter(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    /// A header that must be there once.
    pub fn header(&self, name: &str) -> &str {
        let all = self.all(name);
        assert_eq!(all.len(), 1, "{name} in {self:?}");
        all[0]
    }

    /// All of it but what differs from one request to the next.
    pub fn apart_from_id(&self) -> Self {
        let id = self.header("x-request-id").to_owned();
        Self { head: self.head.replace(&id, "ID"), body: self.body.replace(&id, "ID") }
    }
}

impl Line {
    /// To the gateway of a world.
    pub async fn to(world: &World) -> Self {
        Self::at(world.server.proxy_address()).await
    }

    pub async fn at(address: SocketAddr) -> Self {
        let stream = within(TcpStream::connect(address)).await.unwrap();
        // Each piece is sent at once.
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    pub fn over(stream: S) -> Self {
        Self { stream, heard: Vec::new() }
    }

    /// Says this, and returns once the gateway has seen it: what is said next is another piece.
    pub async fn says(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.stream.write_all(bytes.as_ref())).await.unwrap();
        within(self.stream.flush()).await.unwrap();
        seen().await;
    }

    /// Says this, if the gateway has not closed yet.
    pub async fn says_if_it_can(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = within(self.stream.write_all(bytes.as_ref())).await;
        seen().await;
    }

    /// Says this and no more, but listens: the gateway sees the end with it.
    pub async fn says_last(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.stream.write_all(bytes.as_ref())).await.unwrap();
        self.says_no_more().await;
    }

    /// Says no more, but listens.
    pub async fn says_no_more(&mut self) {
        let _ = self.stream.shutdown().await;
        seen().await;
    }

    /// The next answer.
    pub async fn hears(&mut self) -> Heard {
        within(self.next()).await.unwrap_or_else(|| panic!("closed after {:?}", String::from_utf8_lossy(&self.heard)))
    }

    /// What it is a client on.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// Says this and hears the answer.
    pub async fn asks(&mut self, bytes: impl AsRef<[u8]>) -> Heard {
        self.says(bytes).await;
        self.hears().await
    }

    /// The answers that are still to come until the gateway closes. Anything else that comes is a failure.
    pub async fn hears_out(&mut self) -> Vec<Heard> {
        let mut answers = Vec::new();
        while let Some(answer) = within(self.next()).await {
            answers.push(answer);
        }
        assert!(self.heard.is_empty(), "{:?}", String::from_utf8_lossy(&self.heard));
        answers
    }

    /// All bytes that come until the gateway closes.
    pub async fn hears_bytes(&mut self) -> Vec<u8> {
        within(async { while self.more().await.is_some() {} }).await;
        std::mem::take(&mut self.heard)
    }

    /// Whatever comes next.
    pub async fn hears_some(&mut self) {
        assert!(within(self.more()).await.is_some(), "closed");
    }

    /// Asserts that what was said so far has no more answers.
    pub async fn hears_nothing(&mut self) {
        seen().await;
        let more = tokio::select! {
            biased;
            more = self.stream.read_buf(&mut self.heard) => Some(more),
            () = std::future::ready(()) => None,
        };
        let heard = String::from_utf8_lossy(&self.heard);
        assert!(more.is_none() && self.heard.is_empty(), "{more:?} {heard:?}");
    }

    /// None if the connection is closed before there is a whole one.
    async fn next(&mut self) -> Option<Heard> {
        let end = loop {
            if let Some(end) = self.heard.windows(4).position(|end| end == b"\r\n\r\n") {
                break end + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8(self.heard.drain(..end).collect()).unwrap();
        let mut answer = Heard { head, body: String::new() };
        if answer.status() < 200 || answer.status() == 304 {
            return Some(answer);
        }
        answer.body = match answer.all("transfer-encoding")[..] {
            [] => self.take(answer.header("content-length").parse().unwrap()).await?,
            ["chunked"] => self.chunks().await?,
            _ => panic!("{answer:?}"),
        };
        Some(answer)
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
        while self.heard.len() < length {
            self.more().await?;
        }
        Some(String::from_utf8(self.heard.drain(..length).collect()).unwrap())
    }

    async fn more(&mut self) -> Option<()> {
        self.stream.read_buf(&mut self.heard).await.ok().filter(|&read| read > 0).map(drop)
    }
}

/// Lets the gateway, which runs on this very thread, do all that it can do: what was written is there for it at once.
async fn seen() {
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
}

impl World {
    /// The head of a GET with the valid token and more lines; `PROJECT` in the path stands for the project.
    pub fn head(&self, path: &str, lines: &[&str]) -> String {
        head_as(&self.token, path, lines)
    }

    /// Has a head answered as often as it takes to be known.
    pub async fn learns(&self, head: &str) {
        let mut line = Line::to(self).await;
        line.asks(head).await;
        let hit = line.asks(head).await;
        assert!(hit.head.contains("workspace-gateway; hit"), "{hit:?}");
        let before = self.fast_path_hits();
        line.asks(head).await;
        assert_eq!(self.fast_path_hits(), before + 1, "not learnt: {head}");
    }

    /// How many answers have gone the fast path.
    pub fn fast_path_hits(&self) -> usize {
        self.metric(FAST_PATH_HITS) as usize
    }
}

/// The head of a GET with a token.
pub fn head_as(token: &str, path: &str, lines: &[&str]) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!(
        "GET {} HTTP/1.1\r\nhost: gateway\r\nx-auth-token: {token}\r\n{lines}\r\n",
        path.replace("PROJECT", PROJECT)
    )
}
