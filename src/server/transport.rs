//! What is below HTTP: a socket, whose progress is noted, and TLS on it or none.
//!
//! Progress is noted at the socket and not above TLS, which takes some 64 KiB before the client has read a byte. For the
//! same reason nothing is sent for sure until it is flushed.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::activity::ConnectionActivity;
use super::memory::{SendBuffer, SocketMemory};
use crate::net::Reset;

/// A socket.
pub(super) struct Socket<IO> {
    io: IO,
    activity: Arc<ConnectionActivity>,
    memory: SocketMemory,
}

impl<IO> Socket<IO> {
    pub(super) fn new(io: IO, activity: Arc<ConnectionActivity>, memory: SocketMemory) -> Self {
        Self { io, activity, memory }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Socket<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<IO: Reset> Reset for Socket<IO> {
    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.io.poll_reset(context)
    }
}

impl<IO: SendBuffer> Socket<IO> {
    /// Tries to write, and once more if the send buffer was full and could be made larger.
    fn write(&mut self, mut attempt: impl FnMut(&mut IO) -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let mut written = attempt(&mut self.io);
        if written.is_pending() && self.memory.enlarge(&self.io) {
            written = attempt(&mut self.io);
        }
        self.activity.note(written)
    }
}

impl<IO: AsyncWrite + SendBuffer + Unpin> AsyncWrite for Socket<IO> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(|io| Pin::new(io).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(|io| Pin::new(io).poll_write_vectored(context, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// A socket, and how what goes by it is written there.
pub(super) enum Transport<IO> {
    Plain(Socket<IO>),
    /// Apart, so that connections without it don't have its size.
    Tls(Box<TlsStream<Socket<IO>>>),
}

impl<IO> Transport<IO> {
    /// Whether the client has negotiated HTTP/2, or HTTP/1.1. `None` without ALPN: then it may speak either.
    pub(super) fn negotiated_http2(&self) -> Option<bool> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol().map(|name| name == b"h2"),
        }
    }
}

impl<IO: Reset> Reset for Transport<IO> {
    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Plain(io) => io.poll_reset(context),
            Self::Tls(io) => io.get_mut().0.poll_reset(context),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + SendBuffer + Unpin> AsyncRead for Transport<IO> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(context, buffer),
            Self::Tls(io) => Pin::new(io).poll_read(context, buffer),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + SendBuffer + Unpin> AsyncWrite for Transport<IO> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(context, bytes),
            Self::Tls(io) => Pin::new(io).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write_vectored(context, parts),
            Self::Tls(io) => Pin::new(io).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(context),
            Self::Tls(io) => Pin::new(io).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(context),
            Self::Tls(io) => Pin::new(io).poll_shutdown(context),
        }
    }
}
