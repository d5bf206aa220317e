//! The layers below HTTP: a socket that records its progress, and optionally TLS. HTTP is not parsed here.
//!
//! Progress is recorded at the socket, not above TLS: TLS accepts up to 64 KiB before the client has read a byte. For
//! the same reason, bytes count as sent only after a flush.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::activity::ConnectionActivity;
use super::memory::{SendBuffer, SocketMemory};
use crate::net::Reset;

/// What a connection is served on: a [`Transport`], or a part of it.
pub(super) trait ClientIo: AsyncRead + AsyncWrite + Reset + Unpin + Send + 'static {}

impl<IO: AsyncRead + AsyncWrite + Reset + Unpin + Send + 'static> ClientIo for IO {}

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
    /// Writes. If the send buffer is full and can be enlarged, tries again.
    fn write(&mut self, mut attempt: impl FnMut(&mut IO) -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let mut written = attempt(&mut self.io);
        if written.is_pending() && self.memory.enlarge(&self.io) {
            written = attempt(&mut self.io);
        }
        self.activity.record_write(written)
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

/// A plaintext or a TLS connection. TLS is boxed, so that plaintext connections do not have its size.
pub(super) type Transport<IO> = Either<Socket<IO>, Box<TlsStream<Socket<IO>>>>;

/// Whether ALPN has chosen HTTP/2 or HTTP/1.1. `None` without ALPN: then the client may speak either.
pub(super) fn negotiated_http2<IO>(transport: &Transport<IO>) -> Option<bool> {
    match transport {
        Either::Left(_) => None,
        Either::Right(tls) => tls.get_ref().1.alpn_protocol().map(|name| name == b"h2"),
    }
}

impl<IO: Reset> Reset for Transport<IO> {
    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Either::Left(socket) => socket.poll_reset(context),
            Either::Right(tls) => tls.get_mut().0.poll_reset(context),
        }
    }
}
