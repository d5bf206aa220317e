//! A connection that is read to its end after a write has failed.
//!
//! An upstream that refuses an upload answers before it has read the body, and closes (RFC 9112 §9.6). The close resets the
//! connection, so the next write fails, while the answer is in the receive buffer. hyper would give up without reading it.
//! Here a failed write waits instead, so that hyper sends nothing more and reads on. What has arrived ends with the error
//! of the write: the connection takes no other request, and a body that only the end of the connection delimits is not
//! taken for whole. A write that waits does so for a moment only, because hyper also flushes when it has stopped reading.

use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::time::{Sleep, sleep};

/// How long nothing may arrive after a failed write. The kernel knows at once whether there is more, but the runtime may
/// learn it later.
const PATIENCE: Duration = Duration::from_secs(2);

/// How much is read at once after a failed write, in bytes.
const PIECE: usize = 4 * 1024;

/// A connection, and what has become of its writes.
pub(super) struct ReadAfterWriteError<S> {
    io: S,
    /// A read has failed, so that nothing more arrives.
    has_read_failed: bool,
    /// Apart, so that connections that work don't have its size.
    failed: Option<Box<WriteFailed>>,
}

/// A write has failed.
struct WriteFailed {
    error: io::Error,
    /// Nothing more is read.
    is_over: bool,
    /// While nothing arrives.
    stale_if_slow: Option<Pin<Box<Sleep>>>,
}

impl WriteFailed {
    /// The error of the write, which each later call gets, too.
    fn error(&self) -> io::Error {
        self.error.raw_os_error().map_or_else(|| self.error.kind().into(), io::Error::from_raw_os_error)
    }

    fn poll_read<S: Read + Unpin>(
        &mut self,
        io: &mut S,
        context: &mut Context<'_>,
        buffer: &mut ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_over {
            return Poll::Ready(Err(self.error()));
        }
        let mut space = [0; PIECE];
        let mut piece = ReadBuf::new(&mut space[..PIECE.min(buffer.remaining())]);
        match Pin::new(io).poll_read(context, piece.unfilled()) {
            Poll::Ready(Ok(())) if !piece.filled().is_empty() => {
                self.stale_if_slow = None;
                buffer.put_slice(piece.filled());
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(_) => {}
            Poll::Pending => {
                let stale_if_slow = self.stale_if_slow.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
                ready!(stale_if_slow.as_mut().poll(context));
            }
        }
        self.is_over = true;
        Poll::Ready(Err(self.error()))
    }

    /// A write after the failed one: it waits for reads, but no longer than they would. hyper may have stopped reading.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if !self.is_over {
            let stale_if_slow = self.stale_if_slow.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
            ready!(stale_if_slow.as_mut().poll(context));
            self.is_over = true;
        }
        Poll::Ready(self.error())
    }
}

impl<S> ReadAfterWriteError<S> {
    pub(super) fn new(io: S) -> Self {
        Self { io, has_read_failed: false, failed: None }
    }

    /// Writes, unless that has failed before.
    fn write<T>(
        &mut self,
        context: &mut Context<'_>,
        attempt: impl FnOnce(&mut S, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Some(failed) = &mut self.failed {
            return failed.poll_write(context).map(Err);
        }
        match attempt(&mut self.io, context) {
            Poll::Ready(Err(error))
                if !self.has_read_failed
                    && matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) =>
            {
                let failed = self.failed.insert(Box::new(WriteFailed { error, is_over: false, stale_if_slow: None }));
                // Now it is to be read, which may have been tried before.
                context.waker().wake_by_ref();
                failed.poll_write(context).map(Err)
            }
            written => written,
        }
    }
}

impl<S: Read + Unpin> Read for ReadAfterWriteError<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.failed {
            None => {
                let read = Pin::new(&mut this.io).poll_read(context, buffer);
                this.has_read_failed |= matches!(read, Poll::Ready(Err(_)));
                read
            }
            Some(failed) => failed.poll_read(&mut this.io, context, &mut buffer),
        }
    }
}

impl<S: Write + Unpin> Write for ReadAfterWriteError<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(context, |io, context| Pin::new(io).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(context, |io, context| Pin::new(io).poll_write_vectored(context, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().write(context, |io, context| Pin::new(io).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &this.failed {
            // There is nobody to tell.
            Some(_) => Poll::Ready(Ok(())),
            None => Pin::new(&mut this.io).poll_shutdown(context),
        }
    }
}

impl<S: Connection> Connection for ReadAfterWriteError<S> {
    fn connected(&self) -> Connected {
        self.io.connected()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::clock::Clock;

    /// A connection on which each write fails, and these bytes have arrived.
    struct Reset {
        arrived: &'static [u8],
        /// Whether the end is there, too.
        has_ended: bool,
    }

    impl Read for Reset {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            mut buffer: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            if self.arrived.is_empty() && !self.has_ended {
                return Poll::Pending;
            }
            let (now, later) = self.arrived.split_at(self.arrived.len().min(buffer.remaining()));
            buffer.put_slice(now);
            self.arrived = later;
            Poll::Ready(Ok(()))
        }
    }

    impl Write for Reset {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(ErrorKind::ConnectionReset.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    async fn read(stream: &mut ReadAfterWriteError<Reset>) -> Result<Vec<u8>, ErrorKind> {
        let mut space = [0; 3];
        let mut buffer = ReadBuf::new(&mut space);
        let read = poll_fn(|context| Pin::new(&mut *stream).poll_read(context, buffer.unfilled())).await;
        read.map(|()| buffer.filled().to_vec()).map_err(|error| error.kind())
    }

    /// What becomes of a write, or `None` if it waits.
    async fn write(stream: &mut ReadAfterWriteError<Reset>) -> Option<ErrorKind> {
        poll_fn(|context| {
            Poll::Ready(match Pin::new(&mut *stream).poll_write(context, b"more") {
                Poll::Pending => None,
                Poll::Ready(written) => Some(written.unwrap_err().kind()),
            })
        })
        .await
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failed_write_what_has_arrived_is_read_and_then_all_fails() {
        for (has_ended, waited) in [(true, Duration::ZERO), (false, PATIENCE)] {
            let begun = Clock::System.timer_now();
            let mut stream = ReadAfterWriteError::new(Reset { arrived: b"answer", has_ended });
            assert_eq!((write(&mut stream).await, write(&mut stream).await), (None, None));
            assert_eq!(read(&mut stream).await.unwrap(), b"ans");
            assert_eq!(write(&mut stream).await, None);
            assert_eq!(read(&mut stream).await.unwrap(), b"wer");
            assert_eq!(read(&mut stream).await, Err(ErrorKind::ConnectionReset));
            let passed = Clock::System.timer_now() - begun;
            assert!(passed >= waited && passed <= waited + Duration::from_millis(1), "{passed:?}");
            assert_eq!(write(&mut stream).await, Some(ErrorKind::ConnectionReset));
            assert_eq!(read(&mut stream).await, Err(ErrorKind::ConnectionReset));
            poll_fn(|context| Pin::new(&mut stream).poll_shutdown(context)).await.unwrap();
        }
    }

    /// How long a flush waits after a failed write, if nobody reads.
    async fn flush(stream: &mut ReadAfterWriteError<Reset>) -> (Result<(), ErrorKind>, Duration) {
        let begun = Clock::System.timer_now();
        let flushing = poll_fn(|context| Pin::new(&mut *stream).poll_flush(context));
        let flushed = tokio::time::timeout(10 * PATIENCE, flushing).await.expect("it ends");
        (flushed.map_err(|error| error.kind()), Clock::System.timer_now() - begun)
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_ends_though_nobody_reads_any_more() {
        let mut stream = ReadAfterWriteError::new(Reset { arrived: b"", has_ended: false });
        assert_eq!(write(&mut stream).await, None);
        let (flushed, waited) = flush(&mut stream).await;
        assert_eq!(flushed, Err(ErrorKind::ConnectionReset));
        assert!(waited >= PATIENCE && waited <= PATIENCE + Duration::from_millis(1), "{waited:?}");
        assert_eq!(flush(&mut stream).await, (Err(ErrorKind::ConnectionReset), Duration::ZERO));
    }
}
