//! A client's bytes, in and out: passed on as they are, and noted; but for heads that can be answered by the short way.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::frames::Frames;
use super::goaway::Notice;
use super::leaving::Leaving;
use super::pulse::Pulse;
use super::shortcut::Shortcut;

/// How a client of HTTP/2 that knows what it talks to begins (RFC 9113 §3.4). No request line of HTTP/1 does.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose first bytes have been looked at.
pub(super) struct Wire<IO> {
    io: IO,
    /// What was looked at and is still to be read.
    begun: [u8; PREFACE.len()],
    unread: std::ops::Range<usize>,
    /// Where there are any, that is in HTTP/2.
    frames: Option<Frames>,
    /// Likewise.
    notice: Option<Notice>,
    /// Where there is one, that is in HTTP/1, and on the listener for clients.
    shortcut: Option<Shortcut>,
    pulse: Arc<Pulse>,
}

impl<IO: AsyncRead + Unpin> Wire<IO> {
    /// Reads as much as it takes to tell the two versions apart: until the first byte that isn't the preface's.
    ///
    /// # Errors
    /// If the client has gone.
    pub(super) async fn of(
        mut io: IO,
        shortcut: Option<Shortcut>,
        leaving: &Leaving,
        pulse: Arc<Pulse>,
    ) -> io::Result<Self> {
        let (mut begun, mut read) = ([0; PREFACE.len()], 0);
        while read < begun.len() && begun[..read] == PREFACE[..read] {
            match io.read(&mut begun[read..]).await? {
                0 if read == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                0 => break,
                more => read += more,
            }
        }
        let frames = (begun == *PREFACE).then(Frames::new);
        let shortcut = shortcut.filter(|_| frames.is_none());
        let notice = frames.is_some().then(|| Notice::new(leaving.clone()));
        Ok(Self { io, begun, unread: 0..read, frames, notice, shortcut, pulse })
    }

    /// Whether the client begins as in TLS, with a handshake (RFC 8446 §5.1).
    pub(super) fn is_tls(&self) -> bool {
        self.begun[..self.unread.end].starts_with(b"\x16\x03")
    }

    /// Whether the client speaks HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.frames.is_some()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<IO> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            // Until a client has read an answer, it is not asked what else it wants.
            ready!(this.poll_finish(context))?;
            // What it wants is answered even if it doesn't read that it should go.
            if let Poll::Ready(said) = this.poll_notice(context) {
                said?;
            }
            let before = buffer.filled().len();
            let begun = this.unread.len().min(buffer.remaining());
            buffer.put_slice(&this.begun[this.unread.start..][..begun]);
            this.unread.start += begun;
            let read = Pin::new(&mut this.io).poll_read(context, buffer);
            let news = &buffer.filled()[before..];
            if news.is_empty() {
                return read;
            }
            if this.shortcut.as_mut().is_some_and(|shortcut| shortcut.takes(news, &this.pulse)) {
                buffer.set_filled(before);
                continue;
            }
            match &mut this.frames {
                None => this.pulse.heard(),
                // The preface, which is no frame, was looked at.
                Some(frames) => {
                    if this.pulse.is_flooded() {
                        return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                    }
                    this.pulse.heard_frames(frames.follow(&news[begun..]));
                }
            }
            // What has come before may be read, whatever has become of the connection since.
            return Poll::Ready(Ok(()));
        }
    }
}

impl<IO: AsyncWrite + Unpin> Wire<IO> {
    /// What is said here goes between what hyper writes.
    fn poll_notice(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.notice {
            Some(notice) => notice.poll(&mut self.io, context),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Takes note of what hyper has written.
    fn wrote<'a>(
        &mut self,
        parts: impl IntoIterator<Item = &'a [u8]>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let (Some(notice), Poll::Ready(Ok(written))) = (&mut self.notice, &written) {
            notice.follow(parts, *written);
        }
        written
    }

    /// What was answered here goes before what hyper writes.
    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.shortcut {
            Some(shortcut) => shortcut.poll_finish(&mut self.io, context, &self.pulse),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Wire<IO> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_finish(context))?;
        ready!(this.poll_notice(context))?;
        let written = Pin::new(&mut this.io).poll_write(context, bytes);
        this.wrote([bytes], written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_finish(context))?;
        ready!(this.poll_notice(context))?;
        let written = Pin::new(&mut this.io).poll_write_vectored(context, parts);
        this.wrote(parts.iter().map(|part| &**part), written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_finish(context))?;
        Pin::new(&mut this.io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_finish(context))?;
        Pin::new(&mut this.io).poll_shutdown(context)
    }
}
