//! A connection on which a write may wait only for a limited time.
//!
//! A request ends when nothing has moved for `upstream.idle_timeout`. Its connection does not: hyper first writes its buffer,
//! which never ends if upstream reads nothing. So the connection ends as well, unless something is read meanwhile. hyper does not
//! read while a client takes a response slowly, nor after a client has given one up, so that takes longer to tell.

use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::time::{Sleep, sleep};

/// How much longer than its request a connection may be stalled, so that the request ends first.
const MARGIN: Duration = Duration::from_secs(1);

/// How long a write may wait if there may be something to read that hyper does not ask for. A client that takes 70 B/s has it
/// read a piece of 8 KiB in that time.
const UNREAD: Duration = Duration::from_secs(120);

/// A connection, and for how long it has been stalled.
pub(super) struct StallLimit<S> {
    io: S,
    limit: Duration,
    /// Whether the last read has found nothing.
    is_silent: bool,
    /// While a write waits and nothing is read.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> StallLimit<S> {
    /// For a connection whose requests end when nothing has moved for so long.
    pub(super) fn new(io: S, idle: Duration) -> Self {
        Self { io, limit: idle.saturating_add(MARGIN), is_silent: true, stalled: None }
    }

    /// Fails a write that has waited for too long.
    fn limited<T>(&mut self, context: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.stalled = None;
            return write;
        }
        let limit = if self.is_silent { self.limit } else { self.limit.max(UNREAD) };
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        stalled.as_mut().poll(context).map(|()| Err(ErrorKind::TimedOut.into()))
    }
}

impl<S: Read + Unpin> Read for StallLimit<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        let was_silent = std::mem::replace(&mut self.is_silent, read.is_pending());
        if !(was_silent && self.is_silent) {
            self.stalled = None;
        }
        read
    }
}

impl<S: Write + Unpin> Write for StallLimit<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.io).poll_write(context, bytes);
        self.limited(context, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.io).poll_write_vectored(context, parts);
        self.limited(context, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let write = Pin::new(&mut self.io).poll_flush(context);
        self.limited(context, write)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let write = Pin::new(&mut self.io).poll_shutdown(context);
        self.limited(context, write)
    }
}

impl<S: Connection> Connection for StallLimit<S> {
    fn connected(&self) -> Connected {
        self.io.connected()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use hyper::rt::ReadBuf;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::advance;

    use super::*;
    use crate::clock::Clock;

    const IDLE: Duration = Duration::from_secs(60);

    /// A connection whose peer has room for four bytes, and the peer.
    fn connection() -> (StallLimit<TokioIo<DuplexStream>>, DuplexStream) {
        let (io, peer) = tokio::io::duplex(4);
        (StallLimit::new(TokioIo::new(io), IDLE), peer)
    }

    /// Writes four bytes, or says why not.
    async fn write(io: &mut StallLimit<TokioIo<DuplexStream>>) -> io::Result<usize> {
        poll_fn(|context| Pin::new(&mut *io).poll_write(context, b"four")).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_waits_fails_a_second_after_its_request() {
        let (mut io, _peer) = connection();
        write(&mut io).await.unwrap();
        let begun = Clock::System.timer_now();
        assert_eq!(write(&mut io).await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(Clock::System.timer_now() - begun, IDLE + MARGIN);
    }

    /// Whether a write waits.
    async fn waits(io: &mut StallLimit<TokioIo<DuplexStream>>) -> bool {
        poll_fn(|context| Poll::Ready(Pin::new(&mut *io).poll_write(context, b"four").is_pending())).await
    }

    /// Reads a byte if there is one.
    async fn read(io: &mut StallLimit<TokioIo<DuplexStream>>) -> bool {
        let mut space = [0; 1];
        let mut piece = ReadBuf::new(&mut space);
        poll_fn(|context| Poll::Ready(Pin::new(&mut *io).poll_read(context, piece.unfilled()).is_ready())).await
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_is_read_or_written_begins_the_time_anew() {
        let (mut io, mut peer) = connection();
        write(&mut io).await.unwrap();
        for reads in [false, true, false] {
            assert!(waits(&mut io).await);
            advance(IDLE).await;
            if reads {
                peer.read_exact(&mut [0; 4]).await.unwrap();
                write(&mut io).await.unwrap();
            } else {
                peer.write_all(b"x").await.unwrap();
                assert!(read(&mut io).await && !read(&mut io).await);
            }
        }
        let begun = Clock::System.timer_now();
        assert_eq!(write(&mut io).await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(Clock::System.timer_now() - begun, IDLE + MARGIN);
    }

    #[tokio::test(start_paused = true)]
    async fn while_nobody_reads_what_is_there_a_write_may_wait_for_longer() {
        let (mut io, mut peer) = connection();
        write(&mut io).await.unwrap();
        peer.write_all(b"xy").await.unwrap();
        assert!(waits(&mut io).await && read(&mut io).await);
        assert!(waits(&mut io).await);
        advance(UNREAD - MARGIN).await;
        assert!(waits(&mut io).await && read(&mut io).await);
        for (is_read, limit) in [(false, UNREAD), (true, IDLE + MARGIN)] {
            assert!((!is_read || !read(&mut io).await) && waits(&mut io).await);
            let begun = Clock::System.timer_now();
            assert_eq!(write(&mut io).await.unwrap_err().kind(), ErrorKind::TimedOut);
            assert_eq!(Clock::System.timer_now() - begun, limit);
        }
    }
}
