//! A client's connection in epoll: reads answers, and judges no more of them than that they are a 200 of the length
//! they say.

use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

/// A connection on which at most one request is under way.
pub struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    /// What has come of an answer's head, while that isn't whole.
    head: Vec<u8>,
    /// Bytes of the body that have still to come, once the head is there.
    missing: Option<usize>,
}

impl Client {
    /// Connects, to ask for `target` with the token of a caller, which is made as `wrk.lua` and `ask.py` make it.
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

    /// Asks. Nothing else is under way, so there is room for the whole of it.
    pub fn ask(&mut self) -> Result<(), Box<dyn Error>> {
        Ok(self.stream.write_all(&self.request)?)
    }

    /// Reads what there is. True when that was the last of an answer.
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
            self.missing = Some(missing.ok_or("more than was asked for")?);
            if self.missing == Some(0) {
                self.head.clear();
                self.missing = None;
                return Ok(true);
            }
        }
    }
}

/// The length of an answer, head and body; none if the head isn't whole.
fn length(text: &[u8]) -> Result<Option<usize>, Box<dyn Error>> {
    let Some(end) = memchr::memmem::find(text, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&text[..end])?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(format!("not what was asked for: {head}").into());
    }
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let (_, length) =
        fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length")).ok_or("an answer without a length")?;
    Ok(Some(end + 4 + length.parse::<usize>()?))
}
