//! The limit of the sockets: one thread waits in epoll, reads up to each empty line, and writes the same bytes for
//! each: a recorded response of the gateway. It does not parse HTTP.

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};

use memchr::memmem::Finder;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use peers_servers::arguments;

const LISTENER: Token = Token(usize::MAX);
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

fn main() -> Result<(), Box<dyn Error>> {
    let [address, answer] = arguments("wire ADDRESS ANSWER_FILE")?;
    let answer = std::fs::read(answer)?;
    let mut listener = TcpListener::bind(address.parse()?)?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut clients: Vec<Option<Client>> = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let end_of_head = Finder::new(END_OF_HEAD);
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut clients)?;
                continue;
            }
            let client = &mut clients[event.token().0];
            // An error is handled like the end of the connection.
            if !client.as_mut().is_some_and(|it| it.serve(&answer, &end_of_head, &mut buffer).unwrap_or(false)) {
                *client = None;
            }
        }
    }
}

fn accept(listener: &TcpListener, poll: &Poll, clients: &mut Vec<Option<Client>>) -> io::Result<()> {
    loop {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        stream.set_nodelay(true)?;
        let free = clients.iter().position(Option::is_none).unwrap_or(clients.len());
        poll.registry().register(&mut stream, Token(free), Interest::READABLE | Interest::WRITABLE)?;
        let client = Some(Client { stream, tail: Vec::with_capacity(END_OF_HEAD.len()), owed: 0 });
        if free < clients.len() { clients[free] = client } else { clients.push(client) }
    }
}

struct Client {
    stream: TcpStream,
    /// The last bytes read, which may be the beginning of the empty line.
    tail: Vec<u8>,
    /// The number of bytes that are not yet written.
    owed: usize,
}

impl Client {
    /// Reads and writes what is possible now. False at the end of the connection.
    fn serve(&mut self, answer: &[u8], end_of_head: &Finder, buffer: &mut [u8]) -> io::Result<bool> {
        loop {
            self.write(answer)?;
            let kept = self.tail.len();
            buffer[..kept].copy_from_slice(&self.tail);
            let read = match self.stream.read(&mut buffer[kept..]) {
                Ok(0) => return Ok(false),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            };
            let text = &buffer[..kept + read];
            let (mut heads, mut end) = (0, 0);
            for start in end_of_head.find_iter(text) {
                (heads, end) = (heads + 1, start + END_OF_HEAD.len());
            }
            self.tail.clear();
            self.tail.extend_from_slice(&text[end.max(text.len().saturating_sub(END_OF_HEAD.len() - 1))..]);
            self.owed += heads * answer.len();
            if kept + read < buffer.len() {
                // Nothing more to read, or epoll reports it.
                self.write(answer)?;
                return Ok(true);
            }
        }
    }

    fn write(&mut self, answer: &[u8]) -> io::Result<()> {
        while self.owed > 0 {
            let start = (answer.len() - self.owed % answer.len()) % answer.len();
            match self.stream.write(&answer[start..]) {
                Ok(written) => self.owed -= written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
