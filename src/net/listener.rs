//! Listening sockets.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};

use super::{Accepted, Buffers, SimulatedListener};

/// How many connections the kernel queues until they are accepted.
const BACKLOG: u32 = 1024;

/// A listening socket. Accepted connections inherit its buffer sizes.
pub(crate) enum Listener {
    System(TcpListener),
    Simulated(Box<dyn SimulatedListener>),
}

impl Listener {
    pub(super) fn bind(address: SocketAddr, buffers: Buffers) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Otherwise a restarted gateway could not listen while connections of its predecessor are in TIME_WAIT.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        set_buffers(&SockRef::from(&socket), buffers)?;
        socket.bind(address)?;
        socket.listen(BACKLOG).map(Self::System)
    }

    /// Takes over a socket that is already listening. Connections in its queue keep their buffer sizes.
    ///
    /// # Errors
    /// If the socket options cannot be set.
    pub(crate) fn adopt(socket: std::net::TcpListener, buffers: Buffers) -> io::Result<Self> {
        set_buffers(&SockRef::from(&socket), buffers)?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket).map(Self::System)
    }

    /// Accepts the next connection and returns it with the address of its peer.
    ///
    /// # Errors
    /// Those of `accept(2)`.
    pub(crate) async fn accept(&self) -> io::Result<(Accepted, SocketAddr)> {
        match self {
            Self::System(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Accepted::new(stream), peer))
            }
            Self::Simulated(listener) => {
                let stream = poll_fn(|context| listener.poll_accept(context)).await?;
                let peer = stream.peer_addr();
                Ok((Accepted::Simulated(stream), peer))
            }
        }
    }

    /// # Errors
    /// Those of `getsockname(2)`.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::System(listener) => listener.local_addr(),
            Self::Simulated(listener) => Ok(listener.local_addr()),
        }
    }
}

/// Whether an inherited socket is listening.
///
/// # Errors
/// If the file descriptor is not a socket.
pub(crate) fn listens(socket: &std::net::TcpListener) -> io::Result<bool> {
    SockRef::from(socket).is_listener()
}

/// Sets the maximum that the kernel buffers for a client in each direction. By default it buffers megabytes.
fn set_buffers(socket: &SockRef<'_>, buffers: Buffers) -> io::Result<()> {
    socket.set_send_buffer_size(buffers.send)?;
    socket.set_recv_buffer_size(buffers.receive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_have_the_buffer_sizes_of_their_listener() {
        let buffers = Buffers { send: 8 * 1024, receive: 32 * 1024 };
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let inherited = std::net::TcpListener::bind(any).unwrap();
        for listener in [Listener::bind(any, buffers).unwrap(), Listener::adopt(inherited, buffers).unwrap()] {
            let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let Listener::System(listener) = listener else { panic!("a socket") };
            let (stream, _) = listener.accept().await.unwrap();
            // Linux reports twice the value that was set.
            assert_eq!(SockRef::from(&stream).send_buffer_size().unwrap(), 2 * buffers.send);
            assert_eq!(SockRef::from(&stream).recv_buffer_size().unwrap(), 2 * buffers.receive);
        }
    }
}
