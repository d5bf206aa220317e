//! The stream to an engine: TCP or TLS. It ends when the engine sends far more than it was asked for, so that replies
//! cannot use up the memory.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How many bytes the engine may still send: those of a reply for each command that was sent, and no more than those of
/// [`MAX_REPLIES`].
#[derive(Clone)]
pub(super) struct Allowance {
    left: Arc<AtomicU64>,
    reply: u64,
}

/// More large replies are not on their way at a time.
const MAX_REPLIES: u64 = 32;

impl Allowance {
    /// `reply`: the largest reply, in bytes.
    pub(super) fn new(reply: u64) -> Self {
        Self { left: Arc::new(AtomicU64::new(reply)), reply }
    }

    /// A command is sent.
    pub(super) fn add(&self) {
        let most = MAX_REPLIES.saturating_mul(self.reply);
        let add = |left: u64| Some(left.saturating_add(self.reply).min(most));
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
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
