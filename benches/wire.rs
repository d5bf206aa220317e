//! HTTP/1.1 for both ends of the flood: messages with a `Content-Length` or without a body, several at once
//! if need be. Lean, for it shares the machine with what is measured; no judge of what it reads.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Nothing takes this long; reaching it is a failure, not a wait.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// A connection by which heads and bodies come and go.
pub(crate) struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// How much of the buffer the last message was.
    done: usize,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a socket");
        Self { stream, buffer: Vec::new(), done: 0 }
    }

    pub(crate) async fn to(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.expect("a connection"))
    }

    /// Whether that has failed shows when the answer is read.
    pub(crate) async fn write(&mut self, text: &str) {
        let _ = self.stream.write_all(text.as_bytes()).await;
    }

    /// The next head, blank line included, and its body; none at the end, or after a while.
    pub(crate) async fn read(&mut self) -> Option<(&str, &str)> {
        self.buffer.drain(..std::mem::take(&mut self.done));
        while self.done == 0 {
            let text = std::str::from_utf8(&self.buffer).ok()?;
            if let Some(end) = text.find("\r\n\r\n") {
                let length = text[..end].split_once("\r\ncontent-length: ").map_or("0", |(_, rest)| rest);
                let whole = end + 4 + length.split("\r\n").next()?.parse::<usize>().ok()?;
                if text.len() >= whole {
                    self.done = whole;
                    let text = std::str::from_utf8(&self.buffer[..whole]).ok()?;
                    return Some(text.split_at(end + 4));
                }
            }
            tokio::time::timeout(HANG, self.stream.read_buf(&mut self.buffer)).await.ok()?.ok().filter(|&n| n > 0)?;
        }
        None
    }
}
