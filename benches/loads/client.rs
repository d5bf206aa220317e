//! Client connections, in plaintext or TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Far longer than any step takes.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// The timeout of connecting, including TLS. A gateway without room lets connections wait.
const CONNECTING: Duration = Duration::from_secs(10);

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(crate) type Stream = Box<dyn Io>;

#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// `None` for plaintext.
    pub(crate) tls: Option<Arc<rustls::ClientConfig>>,
}

impl Target {
    pub(crate) async fn connect(&self) -> io::Result<Stream> {
        self.connect_with(None, &[]).await
    }

    /// `buffer`: the size of the receive buffer in bytes, or the system's default. `offers`: protocols for ALPN.
    pub(crate) async fn connect_with(&self, buffer: Option<u32>, offers: &[&str]) -> io::Result<Stream> {
        let connecting = async {
            let socket = TcpSocket::new_v4()?;
            if let Some(bytes) = buffer {
                socket.set_recv_buffer_size(bytes)?;
            }
            let stream = socket.connect(self.address).await?;
            stream.set_nodelay(true)?;
            let Some(config) = &self.tls else { return Ok(Box::new(stream) as Stream) };
            let mut config = rustls::ClientConfig::clone(config);
            config.alpn_protocols = offers.iter().map(|name| name.as_bytes().to_vec()).collect();
            let name = ServerName::try_from("localhost").expect("a name");
            Ok(Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?) as Stream)
        };
        timeout(CONNECTING, connecting).await?
    }

    /// An HTTP/2 connection with this initial window of its streams, in bytes.
    pub(crate) async fn http2(&self, window: u32) -> Option<(SendRequest<Bytes>, Connection<Stream>)> {
        let stream = self.connect_with(None, &["h2"]).await.ok()?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(window).max_header_list_size(1 << 20);
        timeout(HANG, builder.handshake(stream)).await.ok()?.ok()
    }

    /// The absolute URI of a path, for HTTP/2.
    pub(crate) fn uri(&self, path: &str) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://gateway{path}")
    }
}

/// A token of a documented length, 4,800 characters.
pub(crate) fn token(name: &str) -> String {
    format!("{name:-<4800}")
}

/// The head of a GET in HTTP/1.1.
pub(crate) fn get(path: &str, token: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: gateway\r\nx-auth-token: {token}\r\n{more}\r\n")
}

/// Sends a request and reads the response. Returns its head and the length of its body in bytes.
pub(crate) async fn exchange(stream: &mut Stream, request: &str) -> io::Result<(String, usize)> {
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = Vec::with_capacity(1024);
    let head = loop {
        if let Some(end) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break String::from_utf8_lossy(&buffer[..end + 2]).into_owned();
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut rest = (head.len() + 2 + length).saturating_sub(buffer.len());
    let mut scratch = vec![0; rest.clamp(1, 64 * 1024)];
    while rest > 0 {
        let most = rest.min(scratch.len());
        match stream.read(&mut scratch[..most]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => rest -= read,
        }
    }
    Ok((head, length))
}

/// Waits until the peer closes the connection. The peer must not send anything.
pub(crate) async fn closed(stream: &mut Stream) {
    let _ = stream.read_u8().await;
}
