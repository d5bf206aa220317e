//! The limit of a stampede: accepts all connections, reads a request from each, and then writes the same response to
//! each with one `write`. Then the next round starts.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use peers_servers::arguments;

fn main() -> Result<(), Box<dyn Error>> {
    let [address, answer, connections] = arguments("writes ADDRESS ANSWER_FILE CONNECTIONS")?;
    let answer = std::fs::read(answer)?;
    let listener = TcpListener::bind(address)?;
    // No connection is closed while others of the same round still read.
    let mut served = Vec::new();
    loop {
        let mut clients = Vec::new();
        while clients.len() < connections.parse()? {
            let (client, _) = listener.accept()?;
            client.set_nodelay(true)?;
            clients.push(client);
        }
        served.clear();
        for client in &mut clients {
            read_head(client)?;
        }
        for client in &mut clients {
            client.write_all(&answer)?;
        }
        served.append(&mut clients);
    }
}

fn read_head(client: &mut TcpStream) -> Result<(), Box<dyn Error>> {
    let (mut buffer, mut length) = (vec![0; 64 * 1024], 0);
    while !buffer[..length].ends_with(b"\r\n\r\n") {
        match client.read(&mut buffer[length..])? {
            0 => return Err("a client has hung up".into()),
            read => length += read,
        }
    }
    Ok(())
}
