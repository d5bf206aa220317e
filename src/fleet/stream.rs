//! The stream to an engine: TCP or TLS. It ends when the engine sends far more than it was asked for, so that replies
//! cannot use up the memory.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How many bytes the engine may still send.
#[derive(Clone)]
pub(super) struct Allowance {
    left: Arc<AtomicU64>,
    most: u64,
}

impl Allowance {
    pub(super) fn new(most: u64) -> Self {
        Self { left: Arc::new(AtomicU64::new(most)), most }
    }

    /// A command is sent, or a reply has come.
    pub(super) fn renew(&self) {
        self.left.store(self.most, Ordering::Relaxed);
    }

    fn use_up(&self, bytes: u64) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }
}

pub(super) struct BoundedStream<S> {
    inner: S,
    allowance: Allowance,
}

impl<S> BoundedStream<S> {
    pub(super) fn new(inner: S, allowance: Allowance) -> Self {
        Self { inner, allowance }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for BoundedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        let read = (buffer.filled().len() - before) as u64;
        Poll::Ready(match self.allowance.use_up(read) {
            true => Ok(()),
            false => Err(io::Error::other("the engine sent more than it was asked for")),
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for BoundedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
