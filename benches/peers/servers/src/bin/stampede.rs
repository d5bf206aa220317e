//! A stampede: as many connections as told, each with a token of its own, all ask for the same at once. Prints the
//! microseconds from the first answer's first byte to the last answer's last byte.

use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use peers_servers::arguments;

/// Nothing takes this long; reaching it is a failure, not a wait.
const HANG: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    let [address, path, token_bytes, connections] = arguments("stampede ADDRESS PATH TOKEN_BYTES CONNECTIONS")?;
    let (address, token_bytes): (SocketAddr, usize) = (address.parse()?, token_bytes.parse()?);
    let mut poll = Poll::new()?;
    let mut clients = Vec::new();
    for number in 0..connections.parse()? {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(number), Interest::READABLE)?;
        // As wrk.lua and ask.py make them.
        let token = format!("{}{number:08}", "t".repeat(token_bytes - 8));
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nX-Auth-Token: {token}\r\n\r\n");
        clients.push((request, Client { stream, head: Vec::new(), missing: None }));
    }
    for (request, client) in &mut clients {
        // The first thing on its connection, so there is room for the whole of it.
        client.stream.write_all(request.as_bytes())?;
    }
    let mut clients: Vec<Client> = clients.into_iter().map(|(_, client)| client).collect();
    let spread = await_all(&mut poll, &mut clients)?;
    println!("{}", spread.as_micros());
    Ok(())
}

fn await_all(poll: &mut Poll, clients: &mut [Client]) -> Result<Duration, Box<dyn Error>> {
    let mut events = Events::with_capacity(clients.len());
    let mut buffer = vec![0; 256 * 1024];
    let (mut first, mut waiting) = (None, clients.len());
    while waiting > 0 {
        poll.poll(&mut events, Some(HANG))?;
        if events.is_empty() {
            return Err(format!("{waiting} answers have not come").into());
        }
        let first = first.get_or_insert_with(Instant::now);
        for event in &events {
            let client = &mut clients[event.token().0];
            if client.missing != Some(0) && client.read(&mut buffer)? {
                waiting -= 1;
            }
        }
        if waiting == 0 {
            return Ok(first.elapsed());
        }
    }
    Err("nobody has asked".into())
}

struct Client {
    stream: TcpStream,
    /// What has come of the head, while that isn't whole.
    head: Vec<u8>,
    /// Bytes of the body that have still to come, once the head is there.
    missing: Option<usize>,
}

impl Client {
    /// Reads what there is. True when that was the last of the answer.
    fn read(&mut self, buffer: &mut [u8]) -> Result<bool, Box<dyn Error>> {
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
                    let Some((end, length)) = parse(&self.head)? else { continue };
                    (end + length).checked_sub(self.head.len())
                }
            };
            let missing = missing.ok_or("more than was asked for")?;
            self.missing = Some(missing);
            if missing == 0 {
                return Ok(true);
            }
        }
    }
}

/// Where a head ends, and how much follows; none if it isn't whole.
fn parse(text: &[u8]) -> Result<Option<(usize, usize)>, Box<dyn Error>> {
    let Some(end) = text.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&text[..end])?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(format!("not what was asked for: {head}").into());
    }
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let (_, length) = length.ok_or("an answer without a length")?;
    Ok(Some((end + 4, length.parse()?)))
}
