//! Outgoing connections.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::GaiResolver;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Buffers;

/// The system's resolver: `getaddrinfo`.
pub(crate) type SystemResolver = GaiResolver;

/// Resolves a host name and connects to it.
pub(crate) type Connector<R> = HttpConnector<R>;

pub(crate) type Stream = TokioIo<TcpStream>;

/// A connector with this resolver. The timeout is divided among the addresses of a host, so that one dead address does
/// not use all of it.
pub(crate) fn connector<R>(resolver: R, limit: Duration, buffers: Buffers) -> Connector<R> {
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_recv_buffer_size(Some(buffers.receive));
    tcp.set_send_buffer_size(Some(buffers.send));
    tcp.set_connect_timeout(Some(limit));
    tcp
}

/// # Errors
/// If the connection is not accepted.
pub(crate) async fn connect(address: SocketAddr) -> io::Result<Stream> {
    TcpStream::connect(address).await.map(TokioIo::new)
}

/// Connects to a host by name, without a limit of its own.
///
/// # Errors
/// If the name is unknown, or none of its addresses accepts the connection.
pub(crate) async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
