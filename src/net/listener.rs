//! Sockets that listen.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};

use super::{Accepted, Buffers};

/// How many connections wait in the kernel to be accepted.
const BACKLOG: u32 = 1024;

/// A socket that connections are accepted from. They have the buffers of the listener.
pub(crate) struct Listener(TcpListener);

impl Listener {
    /// Listens on an address, as `TcpListener::bind` does.
    ///
    /// # Errors
    /// If the address is in use or is not one of this machine's.
    pub(crate) fn bind(address: SocketAddr, buffers: Buffers) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Or a gateway that is started again could not listen while connections of the last one linger.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        set_buffers(&SockRef::from(&socket), buffers)?;
        socket.bind(address)?;
        socket.listen(BACKLOG).map(Self)
    }

    /// Takes over a socket that listens already. Connections that wait to be accepted keep the buffers that they have.
    ///
    /// # Errors
    /// If the system refuses its options.
    pub(crate) fn adopt(socket: std::net::TcpListener, buffers: Buffers) -> io::Result<Self> {
        set_buffers(&SockRef::from(&socket), buffers)?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket).map(Self)
    }

    /// The next connection, and the address of its peer.
    ///
    /// # Errors
    /// Those of `accept(2)`.
    pub(crate) async fn accept(&self) -> io::Result<(Accepted, SocketAddr)> {
        let (stream, peer) = self.0.accept().await?;
        Ok((Accepted::new(stream), peer))
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// Those of `getsockname(2)`.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Whether a socket that was handed down listens.
///
/// # Errors
/// If it is no socket.
pub(crate) fn listens(socket: &std::net::TcpListener) -> io::Result<bool> {
    SockRef::from(socket).is_listener()
}

/// Sets what the kernel holds for a client at most, in both directions. Left to itself it holds megabytes.
fn set_buffers(socket: &SockRef<'_>, buffers: Buffers) -> io::Result<()> {
    socket.set_send_buffer_size(buffers.send)?;
    socket.set_recv_buffer_size(buffers.receive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_have_the_buffers_of_their_listener() {
        let buffers = Buffers { send: 8 * 1024, receive: 32 * 1024 };
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let handed_down = std::net::TcpListener::bind(any).unwrap();
        for listener in [Listener::bind(any, buffers).unwrap(), Listener::adopt(handed_down, buffers).unwrap()] {
            let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, _) = listener.0.accept().await.unwrap();
            // Linux tells what it has set aside, which is twice what was asked for.
            assert_eq!(SockRef::from(&stream).send_buffer_size().unwrap(), 2 * buffers.send);
            assert_eq!(SockRef::from(&stream).recv_buffer_size().unwrap(), 2 * buffers.receive);
        }
    }
}
