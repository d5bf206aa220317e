//! A client connection in epoll. It only checks that responses are a 200 with the stated length.

use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

/// A connection with at most one request in flight.
pub struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    /// The received part of a head that is not complete.
    head: Vec<u8>,
    /// The missing bytes of the body, after the head is complete.
    missing: Option<usize>,
}

impl Client {
    /// Connects. Requests are for `target`, with the token of a caller like in `wrk.lua` and `http_client.py`.
    pub fn connect(
        registry: &Registry,
        number: usize,
        address: SocketAddr,
        target: &str,
        token_bytes: usize,
        caller: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        registry.register(&mut stream, Token(number), Interest::READABLE)?;
        let token = format!("{}{caller:08}", "t".repeat(token_bytes.saturating_sub(8)));
        let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nX-Auth-Token: {token}\r\n\r\n");
        Ok(Self { stream, request: request.into_bytes(), head: Vec::new(), missing: None })
    }

    /// Sends the request. Nothing else is in flight, so the socket buffer has room for all of it.
    pub fn send(&mut self) -> Result<(), Box<dyn Error>> {
        Ok(self.stream.write_all(&self.request)?)
    }

    /// Reads what is available. True at the end of a response.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<bool, Box<dyn Error>> {
        loop {
            let read = match self.stream.read(buffer) {
                Ok(0) => return Err("a connection was closed".into()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            let missing = match self.missing {
                Some(missing) => missing.checked_sub(read),
                None => {
                    self.head.extend_from_slice(&buffer[..read]);
                    let Some(whole) = length(&self.head)? else { continue };
                    whole.checked_sub(self.head.len())
                }
            };
            self.missing = Some(missing.ok_or("more bytes than Content-Length")?);
            if self.missing == Some(0) {
                self.head.clear();
                self.missing = None;
                return Ok(true);
            }
        }
    }
}

/// The length of a response, head and body. `None` if the head is not complete.
fn length(text: &[u8]) -> Result<Option<usize>, Box<dyn Error>> {
    let Some(end) = memchr::memmem::find(text, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&text[..end])?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(format!("unexpected head: {head}").into());
    }
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let (_, length) =
        fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length")).ok_or("an answer without a length")?;
    Ok(Some(end + 4 + length.parse::<usize>()?))
}
