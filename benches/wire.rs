//! HTTP/1.1 for both ends of the flood, with pipelining: messages with a `Content-Length` or without a body. It is
//! minimal because it shares the machine with the measured program. It does not validate messages.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Far longer than any step takes. Reaching it is a failure.
pub(crate) const HANG: Duration = Duration::from_secs(60);

pub(crate) struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// The length of the last message in the buffer.
    done: usize,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a socket");
        Self { stream, buffer: Vec::new(), done: 0 }
    }

    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.expect("a connection"))
    }

    /// Ignores errors: they show when the response is read.
    pub(crate) async fn write(&mut self, text: &str) {
        let _ = self.stream.write_all(text.as_bytes()).await;
    }

    /// The next head, with its empty line, and its body. `None` at the end of the connection or after [`HANG`].
    pub(crate) async fn read(&mut self) -> Option<(&str, &str)> {
        self.buffer.drain(..std::mem::take(&mut self.done));
        while self.done == 0 {
            let text = std::str::from_utf8(&self.buffer).ok()?;
            if let Some(end) = text.find("\r\n\r\n") {
                let length = text[..end].split_once("\r\ncontent-length: ").map_or("0", |(_, rest)| rest);
                let total = end + 4 + length.split("\r\n").next()?.parse::<usize>().ok()?;
                if text.len() >= total {
                    self.done = total;
                    let text = std::str::from_utf8(&self.buffer[..total]).ok()?;
                    return Some(text.split_at(end + 4));
                }
            }
            tokio::time::timeout(HANG, self.stream.read_buf(&mut self.buffer)).await.ok()?.ok().filter(|&n| n > 0)?;
        }
        None
    }
}
