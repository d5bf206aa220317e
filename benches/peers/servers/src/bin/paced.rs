//! An open loop that needs less CPU than other tools, so that it reaches higher rates. Requests are due at a fixed
//! rate. Latency counts from the due time, whether a connection was free or not. Prints requests per second and the
//! 50th, 99th and 99.9th percentile in nanoseconds.
//!
//! It never sleeps: it has a core of its own, and a timer is less precise than what is measured.

use std::collections::VecDeque;
use std::error::Error;
use std::time::{Duration, Instant};

use mio::{Events, Poll};
use peers_servers::arguments;
use peers_servers::client::Client;

fn main() -> Result<(), Box<dyn Error>> {
    let [address, target, token_bytes, connections, rate, seconds] =
        arguments("paced ADDRESS TARGET TOKEN_BYTES CONNECTIONS RATE SECONDS")?;
    let mut poll = Poll::new()?;
    let mut clients = Vec::new();
    for number in 0..connections.parse()? {
        clients.push(Client::connect(poll.registry(), number, address.parse()?, &target, token_bytes.parse()?, 0)?);
    }
    let (rate, seconds): (f64, f64) = (rate.parse()?, seconds.parse()?);
    let begun = Instant::now();
    let mut times = run(&mut poll, &mut clients, rate, (rate * seconds) as u32)?;
    let per_second = times.len() as f64 / begun.elapsed().as_secs_f64();
    times.sort_unstable();
    let percentile = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_nanos();
    println!("{per_second} {} {} {}", percentile(0.5), percentile(0.99), percentile(0.999));
    Ok(())
}

/// The latency of each request, from its due time.
fn run(poll: &mut Poll, clients: &mut [Client], rate: f64, count: u32) -> Result<Vec<Duration>, Box<dyn Error>> {
    let interval = Duration::from_secs_f64(1.0 / rate);
    let mut events = Events::with_capacity(clients.len());
    let mut buffer = vec![0; 256 * 1024];
    let mut times = Vec::with_capacity(count as usize);
    // Round robin, like a connection pool.
    let mut free: VecDeque<usize> = (0..clients.len()).collect();
    let mut due_at = vec![Instant::now(); clients.len()];
    let (begun, mut sent) = (Instant::now(), 0);
    while times.len() < count as usize {
        while sent < count && begun + interval * sent <= Instant::now() {
            let Some(number) = free.pop_front() else { break };
            due_at[number] = begun + interval * sent;
            clients[number].send()?;
            sent += 1;
        }
        poll.poll(&mut events, Some(Duration::ZERO))?;
        for event in &events {
            let number = event.token().0;
            if clients[number].read(&mut buffer)? {
                times.push(due_at[number].elapsed());
                free.push_back(number);
            }
        }
    }
    Ok(times)
}
