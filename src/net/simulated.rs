//! The interface of a simulated network. A test implements it; the shipped program has no implementation.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};

/// A connection that is being opened.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn SimulatedStream>>> + Send>>;

/// The network as one machine sees it. Errors are those of Linux: rules depend on their numbers
/// (`io::Error::from_raw_os_error`).
pub trait SimulatedNetwork: Send + Sync {
    /// # Errors
    /// If the address is in use or is not an address of this machine.
    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn SimulatedListener>>;

    fn connect(&self, to: SocketAddr) -> Connecting;
}

pub trait SimulatedListener: Send + Sync {
    /// # Errors
    /// Those of `accept(2)`.
    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Box<dyn SimulatedStream>>>;

    fn local_addr(&self) -> SocketAddr;
}

/// A TCP connection. It is closed when this is dropped: with a reset if there are bytes that were not read.
pub trait SimulatedStream: AsyncRead + AsyncWrite + Send + Sync + Unpin {
    fn local_addr(&self) -> SocketAddr;

    fn peer_addr(&self) -> SocketAddr;

    /// Whether the peer is connected and has sent no data so far.
    fn is_silent(&self) -> bool;

    /// Waits for a reset. After the first call no data can be read.
    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()>;
}

/// A simulated network has no names.
pub(super) fn address(host: &str, port: u16) -> io::Result<SocketAddr> {
    let ip: Result<IpAddr, _> = host.trim_matches(['[', ']']).parse();
    ip.map(|ip| SocketAddr::new(ip, port)).map_err(io::Error::other)
}
