//! The stream to an engine: TCP or TLS. It ends when the engine sends more than it was asked for, so that replies cannot
//! use up the memory.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::diagnosis;
use super::framing::Framing;
use crate::sync::Mutex;

/// What the engine may still send.
#[derive(Clone)]
pub(super) struct Allowance(Arc<Mutex<Left>>);

struct Left {
    bytes: u64,
    /// The largest reply, in bytes.
    reply: u64,
    framing: Framing,
    /// Whether it has sent anything.
    is_begun: bool,
    /// What it sent that was not accepted.
    refused: Option<&'static str>,
}

/// More large replies are not on their way at a time.
const MAX_REPLIES: u64 = 32;

impl Allowance {
    /// `reply`: the largest reply, in bytes.
    pub(super) fn new(reply: u64) -> Self {
        let framing = Framing::new(reply);
        Self(Arc::new(Mutex::new(Left { bytes: reply, reply, framing, is_begun: false, refused: None })))
    }

    /// Commands are sent, with one large reply at most.
    pub(super) fn add(&self, commands: usize) {
        let mut left = self.0.lock();
        left.bytes = left.bytes.saturating_add(left.reply).min(MAX_REPLIES.saturating_mul(left.reply));
        left.framing.sent(commands as u64);
    }

    /// What the engine has sent that it was not asked for, for an operator.
    pub(super) fn refused(&self) -> Option<&'static str> {
        self.0.lock().refused
    }

    fn accepts(&self, bytes: &[u8]) -> bool {
        let mut left = self.0.lock();
        let remaining = left.bytes.checked_sub(bytes.len() as u64);
        let is_first = !std::mem::replace(&mut left.is_begun, true);
        left.bytes = remaining.unwrap_or_default();
        let is_accepted = remaining.is_some() && left.framing.accepts(bytes);
        if !is_accepted {
            left.refused =
                Some(if is_first { diagnosis::of_bytes(bytes) } else { "it sends more than it was asked for" });
        }
        is_accepted
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
        let read = buffer.filled().get(before..).unwrap_or_default();
        if self.allowance.accepts(read) {
            return Poll::Ready(Ok(()));
        }
        buffer.set_filled(before);
        Poll::Ready(Err(io::Error::other("the engine sent something that it was not asked for")))
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
