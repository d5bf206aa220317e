//! Connections of the storm's clients: TCP.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpSocket, TcpStream};

/// Bytes. So small that the gateway cannot write a whole list before a slow reader has read half of it.
const SMALL_BUFFER: u32 = 4 * 1024;

/// Connects a client, which reads slowly or not.
pub(crate) async fn connect(_client: usize, gateway: SocketAddr, is_slow: bool) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if is_slow {
        socket.set_recv_buffer_size(SMALL_BUFFER)?;
    }
    let stream = socket.connect(gateway).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
