//! A connection that continues to read after a write has failed.
//!
//! An upstream that refuses an upload may respond before it has read the body, and close (RFC 9112 §9.6). The close
//! resets the connection, so the next write fails, while the response is in the receive buffer. hyper would discard
//! that response. So a failed write stays pending here: hyper writes nothing more and continues to read. After the
//! received data, reads fail with the error of the write. Thus the connection is not reused, and a body without a
//! declared length does not count as complete. The write stays pending for 2 s at most, because hyper also flushes
//! after it has stopped reading.

use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::time::{Sleep, sleep};

/// How long to wait for data after a failed write. The kernel has received all data by then, but the runtime may be
/// notified later.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// How many bytes are read at once after a failed write.
const MAX_READ: usize = 4 * 1024;

pub(super) struct ReadAfterWriteError<S> {
    io: S,
    /// After a failed read no more data arrives.
    has_read_failed: bool,
    /// Boxed, so that working connections stay small.
    failed: Option<Box<WriteFailed>>,
}

/// The state after a failed write.
struct WriteFailed {
    error: io::Error,
    /// Whether all received data has been read, or the timeout has passed.
    is_over: bool,
    /// Runs while no data arrives.
    timer: Option<Pin<Box<Sleep>>>,
}

impl WriteFailed {
    /// The error of the write, for each later call.
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
        let mut space = [0; MAX_READ];
        let mut piece = ReadBuf::new(&mut space[..MAX_READ.min(buffer.remaining())]);
        match Pin::new(io).poll_read(context, piece.unfilled()) {
            Poll::Ready(Ok(())) if !piece.filled().is_empty() => {
                self.timer = None;
                buffer.put_slice(piece.filled());
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(_) => {}
            Poll::Pending => {
                let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(READ_TIMEOUT)));
                ready!(timer.as_mut().poll(context));
            }
        }
        self.is_over = true;
        Poll::Ready(Err(self.error()))
    }

    /// A write after the failed one. It waits for reads, with the same timeout, because hyper may have stopped reading.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if !self.is_over {
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(READ_TIMEOUT)));
            ready!(timer.as_mut().poll(context));
            self.is_over = true;
        }
        Poll::Ready(self.error())
    }
}

impl<S> ReadAfterWriteError<S> {
    pub(super) fn new(io: S) -> Self {
        Self { io, has_read_failed: false, failed: None }
    }

    /// Writes, unless a write has failed before.
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
                let failed = self.failed.insert(Box::new(WriteFailed { error, is_over: false, timer: None }));
                // Wake the task, because its last read may have been before this write.
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
            // The peer has closed the connection already.
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

    /// A connection that has received these bytes and on which each write fails.
    struct Reset {
        arrived: &'static [u8],
        /// Whether the end of the stream has arrived, too.
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

    /// The error of a write, or `None` if it is pending.
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
    async fn after_a_failed_write_the_received_data_is_read_and_then_all_calls_fail() {
        for (has_ended, waited) in [(true, Duration::ZERO), (false, READ_TIMEOUT)] {
            let start = Clock::System.timer_now();
            let mut stream = ReadAfterWriteError::new(Reset { arrived: b"answer", has_ended });
            assert_eq!((write(&mut stream).await, write(&mut stream).await), (None, None));
            assert_eq!(read(&mut stream).await.unwrap(), b"ans");
            assert_eq!(write(&mut stream).await, None);
            assert_eq!(read(&mut stream).await.unwrap(), b"wer");
            assert_eq!(read(&mut stream).await, Err(ErrorKind::ConnectionReset));
            let passed = Clock::System.timer_now() - start;
            assert!(passed >= waited && passed <= waited + Duration::from_millis(1), "{passed:?}");
            assert_eq!(write(&mut stream).await, Some(ErrorKind::ConnectionReset));
            assert_eq!(read(&mut stream).await, Err(ErrorKind::ConnectionReset));
            poll_fn(|context| Pin::new(&mut stream).poll_shutdown(context)).await.unwrap();
        }
    }

    /// The result and the duration of a flush after a failed write, without reads.
    async fn flush(stream: &mut ReadAfterWriteError<Reset>) -> (Result<(), ErrorKind>, Duration) {
        let start = Clock::System.timer_now();
        let flushing = poll_fn(|context| Pin::new(&mut *stream).poll_flush(context));
        let flushed = tokio::time::timeout(10 * READ_TIMEOUT, flushing).await.expect("it ends");
        (flushed.map_err(|error| error.kind()), Clock::System.timer_now() - start)
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_ends_even_if_nothing_is_read_any_more() {
        let mut stream = ReadAfterWriteError::new(Reset { arrived: b"", has_ended: false });
        assert_eq!(write(&mut stream).await, None);
        let (flushed, waited) = flush(&mut stream).await;
        assert_eq!(flushed, Err(ErrorKind::ConnectionReset));
        assert!(waited >= READ_TIMEOUT && waited <= READ_TIMEOUT + Duration::from_millis(1), "{waited:?}");
        assert_eq!(flush(&mut stream).await, (Err(ErrorKind::ConnectionReset), Duration::ZERO));
    }
}
