//! A connection with a timeout for writes.
//!
//! A request ends if there is no data for `upstream.idle_timeout`. Its connection does not end then: hyper first writes
//! its buffer, which takes forever if upstream does not read. So a stalled write fails here, unless data is read
//! meanwhile. hyper does not read while a client reads a response slowly, or after a client has aborted. In these cases
//! the timeout is longer.

use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::time::{Sleep, sleep};

/// How much longer the write timeout is than the idle timeout of the request, so that the request ends first.
const MARGIN: Duration = Duration::from_secs(1);

/// The minimum write timeout if there may be data that hyper does not read. For a client that reads 70 B/s, hyper reads
/// a piece of 8 KiB within this time.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(120);

pub(super) struct StallLimit<S> {
    io: S,
    limit: Duration,
    /// Whether the last read found no data.
    is_read_empty: bool,
    /// Runs while a write waits and no data is read.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> StallLimit<S> {
    /// `idle` is the idle timeout of the requests on this connection.
    pub(super) fn new(io: S, idle: Duration) -> Self {
        Self { io, limit: idle.saturating_add(MARGIN), is_read_empty: true, timer: None }
    }

    /// Fails a write that has waited for longer than the timeout.
    fn limited<T>(&mut self, context: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.timer = None;
            return write;
        }
        let limit = if self.is_read_empty { self.limit } else { self.limit.max(UNREAD_TIMEOUT) };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        timer.as_mut().poll(context).map(|()| Err(ErrorKind::TimedOut.into()))
    }
}

impl<S: Read + Unpin> Read for StallLimit<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        let was_empty = std::mem::replace(&mut self.is_read_empty, read.is_pending());
        if !(was_empty && self.is_read_empty) {
            self.timer = None;
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

    /// A connection with a buffer of four bytes, and its peer.
    fn connection() -> (StallLimit<TokioIo<DuplexStream>>, DuplexStream) {
        let (io, peer) = tokio::io::duplex(4);
        (StallLimit::new(TokioIo::new(io), IDLE), peer)
    }

    async fn write(io: &mut StallLimit<TokioIo<DuplexStream>>) -> io::Result<usize> {
        poll_fn(|context| Pin::new(&mut *io).poll_write(context, b"four")).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_write_fails_one_second_after_the_idle_timeout() {
        let (mut io, _peer) = connection();
        write(&mut io).await.unwrap();
        let start = Clock::System.timer_now();
        assert_eq!(write(&mut io).await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(Clock::System.timer_now() - start, IDLE + MARGIN);
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
    async fn each_read_or_write_restarts_the_timeout() {
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
        let start = Clock::System.timer_now();
        assert_eq!(write(&mut io).await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(Clock::System.timer_now() - start, IDLE + MARGIN);
    }

    #[tokio::test(start_paused = true)]
    async fn the_timeout_is_longer_while_received_data_is_not_read() {
        let (mut io, mut peer) = connection();
        write(&mut io).await.unwrap();
        peer.write_all(b"xy").await.unwrap();
        assert!(waits(&mut io).await && read(&mut io).await);
        assert!(waits(&mut io).await);
        advance(UNREAD_TIMEOUT - MARGIN).await;
        assert!(waits(&mut io).await && read(&mut io).await);
        for (is_read, limit) in [(false, UNREAD_TIMEOUT), (true, IDLE + MARGIN)] {
            assert!((!is_read || !read(&mut io).await) && waits(&mut io).await);
            let start = Clock::System.timer_now();
            assert_eq!(write(&mut io).await.unwrap_err().kind(), ErrorKind::TimedOut);
            assert_eq!(Clock::System.timer_now() - start, limit);
        }
    }
}
