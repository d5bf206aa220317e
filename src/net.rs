//! TCP sockets and name resolution: listening, accepting, connecting and resolving. No other part opens sockets, except
//! the demo, `simulate` and the socket of the supervisor (`cli/supervisor.rs`). Inherited sockets come from
//! `cli/inherit.rs`.
//!
//! A [`Network`] is the system's or a simulated one. The program behaves the same over both. A simulated network has no
//! names: hosts are IP addresses.

mod accepted;
mod connector;
mod listener;
mod simulated;
mod stream;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

pub(crate) use accepted::{Accepted, Reset};
pub(crate) use connector::{Connector, SystemResolver};
pub(crate) use listener::{Listener, listens};
pub use simulated::{Connecting, SimulatedListener, SimulatedNetwork, SimulatedStream};
pub(crate) use stream::Stream;

/// The sizes of the kernel's socket buffers, in bytes. Linux doubles the values that are set (socket(7)).
#[derive(Clone, Copy)]
pub(crate) struct Buffers {
    pub(crate) send: usize,
    pub(crate) receive: usize,
}

/// Where sockets come from.
#[derive(Clone, Default)]
pub enum Network {
    #[default]
    System,
    /// For tests.
    Simulated(Arc<dyn SimulatedNetwork>),
}

impl Network {
    /// Listens on an address, as `TcpListener::bind` does.
    ///
    /// # Errors
    /// If the address is in use or is not an address of this machine.
    pub(crate) fn listen(&self, address: SocketAddr, buffers: Buffers) -> io::Result<Listener> {
        match self {
            Self::System => Listener::bind(address, buffers),
            Self::Simulated(network) => network.listen(address).map(Listener::Simulated),
        }
    }

    /// A connector with this resolver. The timeout is divided among the addresses of a host, so that one dead address
    /// does not use all of it.
    pub(crate) fn connector<R>(&self, resolver: R, limit: Duration, buffers: Buffers) -> Connector<R> {
        match self {
            Self::System => Connector::system(resolver, limit, buffers),
            Self::Simulated(network) => Connector::Simulated(Arc::clone(network)),
        }
    }

    /// Connects to an address, without a limit of its own.
    ///
    /// # Errors
    /// If the connection is not accepted.
    pub(crate) async fn connect(&self, address: SocketAddr) -> io::Result<Stream> {
        match self {
            Self::System => without_delay(TcpStream::connect(address).await?),
            Self::Simulated(network) => network.connect(address).await.map(Stream::Simulated),
        }
    }

    /// Connects to a host, without a limit of its own.
    ///
    /// # Errors
    /// If the name is unknown, or none of its addresses accepts the connection.
    pub(crate) async fn dial(&self, host: &str, port: u16) -> io::Result<Stream> {
        match self {
            Self::System => without_delay(TcpStream::connect((host, port)).await?),
            Self::Simulated(_) => self.connect(simulated::address(host, port)?).await,
        }
    }
}

/// Disables Nagle's algorithm.
fn without_delay(stream: TcpStream) -> io::Result<Stream> {
    stream.set_nodelay(true)?;
    Ok(Stream::System(stream))
}
