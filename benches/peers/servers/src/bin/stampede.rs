//! A stampede: a number of connections, each with a token of its own, send the same request at the same time. Prints
//! the microseconds from the first byte of the first response to the last byte of the last one.

use std::error::Error;
use std::time::{Duration, Instant};

use mio::{Events, Poll};
use peers_servers::arguments;
use peers_servers::client::Client;

/// Far longer than any step takes. Reaching it is a failure.
const HANG: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    let [address, target, token_bytes, connections] = arguments("stampede ADDRESS TARGET TOKEN_BYTES CONNECTIONS")?;
    let mut poll = Poll::new()?;
    let mut clients = Vec::new();
    for number in 0..connections.parse()? {
        let client = Client::connect(poll.registry(), number, address.parse()?, &target, token_bytes.parse()?, number)?;
        clients.push(client);
    }
    for client in &mut clients {
        client.send()?;
    }
    println!("{}", await_all(&mut poll, &mut clients)?.as_micros());
    Ok(())
}

fn await_all(poll: &mut Poll, clients: &mut [Client]) -> Result<Duration, Box<dyn Error>> {
    let mut events = Events::with_capacity(clients.len());
    let mut buffer = vec![0; 256 * 1024];
    let (mut first, mut waiting) = (None, clients.len());
    loop {
        poll.poll(&mut events, Some(HANG))?;
        if events.is_empty() {
            return Err(format!("{waiting} answers have not come").into());
        }
        let first = first.get_or_insert_with(Instant::now);
        for event in &events {
            waiting -= usize::from(clients[event.token().0].read(&mut buffer)?);
        }
        if waiting == 0 {
            return Ok(first.elapsed());
        }
    }
}
