//! A client's bytes, in and out: passed on as they are, and noted. Heads that the fast path can answer are not passed on.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::activity::ConnectionActivity;
use super::half_closed::{HalfClosed, ReadEnd};
use super::http2::Http2;
use super::memory::HeadMemory;
use super::shutdown::ListenerShutdown;
use super::uploads::Uploads;
use crate::fast_path::{Responder, ResponderState};
use crate::gateway::{Connection, Gateway};
use crate::net::Reset;
use crate::stream::READ_AT_ONCE;

/// How a client of HTTP/2 that knows what it talks to begins (RFC 9113 §3.4). No request line of HTTP/1 does.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a connection does not read when its client may not have what its head takes. Then the budget is asked again.
const RETRY: Duration = Duration::from_millis(100);

/// How much of a body is read at once in HTTP/1, in bytes. hyper's buffer has 8 KiB, and grows whenever one read fills it. An
/// upload that upstream does not read holds several such pieces.
const BODY_PIECE: usize = 8 * 1024 - 1;

/// How much of what arrives at an idle connection is read at first: more than most heads have.
const ARRIVAL: usize = 8 * 1024;

/// The fast path of a connection, and what tells whether the connection is about to end.
pub(super) struct WireFastPath {
    responder: Responder<Gateway>,
    shutdown: ListenerShutdown,
}

impl WireFastPath {
    pub(super) fn new(gateway: &Arc<Gateway>, connection: &Arc<Connection>, shutdown: ListenerShutdown) -> Self {
        Self { responder: Responder::new(Arc::clone(gateway), Arc::clone(connection)), shutdown }
    }

    fn take(&mut self, bytes: &[u8], activity: &ConnectionActivity) -> bool {
        let state = ResponderState { is_free: activity.is_free(), is_closing: self.shutdown.is_begun() };
        self.responder.take(bytes, state)
    }
}

/// A connection whose first bytes have been looked at.
pub(super) struct Wire<IO> {
    io: IO,
    /// What was looked at and is still to be read.
    begun: [u8; PREFACE.len()],
    unread: std::ops::Range<usize>,
    /// What was read once before, by a connection of hyper's that is gone.
    again: Bytes,
    /// What has arrived since, and is still to be looked at.
    arrived: Bytes,
    /// Where HTTP/2 is spoken.
    http2: Option<Box<Http2>>,
    /// In HTTP/1, on the listener for clients.
    fast_path: Option<Box<WireFastPath>>,
    head: HeadMemory,
    /// Until the memory budget is asked again for room for a head.
    retry: Option<Pin<Box<Sleep>>>,
    /// HTTP/2: whether the requests whose heads were read have to begin before more is read.
    yields: bool,
    /// HTTP/2: at which poll of the connection it was left to others to go on.
    yielded_at: Option<usize>,
    /// HTTP/2: at which poll of the connection something was read last.
    read_at: usize,
    /// HTTP/1: how long a client that has closed its sending side may be written nothing.
    half_close: Duration,
    /// HTTP/1: once it has closed, and while hyper does not know.
    half_closed: Option<HalfClosed>,
    activity: Arc<ConnectionActivity>,
}

impl<IO: AsyncRead + Unpin> Wire<IO> {
    /// Reads as much as it takes to tell the two versions apart: until the first byte that isn't the preface's.
    ///
    /// # Errors
    /// If the client has gone.
    pub(super) async fn of(
        mut io: IO,
        fast_path: Option<Box<WireFastPath>>,
        shutdown: &ListenerShutdown,
        head: HeadMemory,
        half_close: Duration,
        activity: Arc<ConnectionActivity>,
    ) -> io::Result<Self> {
        let (mut begun, mut read) = ([0; PREFACE.len()], 0);
        while read < begun.len() && begun[..read] == PREFACE[..read] {
            match io.read(&mut begun[read..]).await? {
                0 if read == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                0 => break,
                more => read += more,
            }
        }
        let http2 = (begun == *PREFACE).then(|| Box::new(Http2::new(shutdown.clone())));
        let fast_path = fast_path.filter(|_| http2.is_none());
        Ok(Self {
            io,
            begun,
            unread: 0..read,
            again: Bytes::new(),
            arrived: Bytes::new(),
            http2,
            fast_path,
            head,
            retry: None,
            yields: false,
            yielded_at: None,
            read_at: 0,
            half_close,
            half_closed: None,
            activity,
        })
    }

    /// Whether the client begins as in TLS, with a handshake (RFC 8446 §5.1).
    pub(super) fn is_tls(&self) -> bool {
        self.begun[..self.unread.end].starts_with(b"\x16\x03")
    }

    /// Whether the client speaks HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.http2.is_some()
    }

    /// HTTP/2: the requests whose bodies follow their heads.
    pub(super) fn uploads(&self) -> Option<Arc<Uploads>> {
        self.http2.as_ref().map(|http2| Arc::clone(http2.uploads()))
    }

    /// HTTP/1: nothing is asked, and the buffer that is read into is gone. What was left in it is read again.
    pub(super) fn rests(&mut self, left: Bytes) {
        self.head.is_freed();
        self.activity.rests();
        if let Some(fast_path) = &mut self.fast_path {
            fast_path.responder.shrink();
        }
        self.again = left;
    }

    /// Waits until more has arrived, or the client has gone, without a buffer of its own.
    pub(super) fn poll_arrival(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.again.is_empty() {
            return Poll::Ready(());
        }
        let mut space = [0; ARRIVAL];
        let mut buffer = ReadBuf::new(&mut space);
        // A failure comes again when it is read again.
        let _ = ready!(Pin::new(&mut self.io).poll_read(context, &mut buffer));
        self.arrived = Bytes::copy_from_slice(buffer.filled());
        Poll::Ready(())
    }

    /// How many bytes may be read now. Waits while the client may not have what a head takes that is begun.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        loop {
            if let Some(retry) = &mut self.retry {
                ready!(retry.as_mut().poll(context));
                self.retry = None;
            }
            let room = match self.http2.as_ref().map(|http2| &http2.frames) {
                None if !self.activity.is_in_head() => {
                    // What was read before belongs to another head, or to a body.
                    self.head.head_is_whole();
                    // A whole head in one piece is what the fast path remembers.
                    Some(if self.activity.is_free() { READ_AT_ONCE } else { BODY_PIECE })
                }
                None => self.head.room(),
                Some(frames) => {
                    let (unfinished, data_left) = (frames.unfinished(), frames.data_left());
                    self.head.may_collect(unfinished).then(|| self.head.heads_at_once().max(data_left))
                }
            };
            match room {
                Some(room) => {
                    self.activity.awaits_memory(false);
                    return Poll::Ready(room.min(READ_AT_ONCE));
                }
                None => {
                    self.activity.awaits_memory(true);
                    self.retry = Some(Box::pin(sleep(RETRY)));
                }
            }
        }
    }

    /// HTTP/2: waits until the requests whose heads were read have begun, if more must not be read before: until then only
    /// their heads are charged. hyper reads on whenever it has accepted one, before any of them has begun.
    fn poll_begun(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let polls = self.activity.polls();
        match self.yielded_at {
            Some(at) if at == polls => return Poll::Pending,
            Some(_) if self.activity.have_all_begun() => {
                (self.yields, self.yielded_at) = (false, None);
                self.head.requests_have_begun();
            }
            None if !self.yields => {}
            _ => {
                self.yielded_at = Some(polls);
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// HTTP/1: notes what was read. hyper's buffer stays as large as the largest head has made it.
    fn reads(&mut self, bytes: usize) {
        self.activity.heard();
        if self.activity.is_in_head() {
            self.head.reads(bytes);
        }
        if self.head.is_large() {
            self.activity.has_large_buffer(true);
        }
    }
}

/// Reads so much at once, at most.
fn poll_read<IO: AsyncRead + Unpin>(
    io: &mut IO,
    context: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
    most: usize,
) -> Poll<io::Result<()>> {
    if buffer.remaining() <= most {
        return Pin::new(io).poll_read(context, buffer);
    }
    let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
    ready!(Pin::new(io).poll_read(context, &mut part))?;
    let read = part.filled().len();
    buffer.advance(read);
    Poll::Ready(Ok(()))
}

impl<IO: Reset> Wire<IO> {
    /// HTTP/1: the client has closed its sending side. Waits until hyper is to be told.
    fn poll_half_closed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, activity, half_closed, half_close, .. } = self;
        if half_closed.is_none() {
            *half_closed = HalfClosed::begin(activity.read_side(), *half_close, activity.is_blocked());
        }
        let Some(waiting) = half_closed else { return Poll::Ready(Ok(())) };
        let poll_reset = |context: &mut Context<'_>| io.poll_reset(context);
        match ready!(waiting.poll_end(activity.read_side(), context, poll_reset, activity.is_blocked())) {
            ReadEnd::OfInput => Poll::Ready(Ok(())),
            ReadEnd::Reset => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Reset + Unpin> AsyncRead for Wire<IO> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            // Until a client has read an answer, it is not asked what else it wants.
            ready!(this.poll_finish(context))?;
            // Requests are read even while a frame of our own cannot be written.
            if let Poll::Ready(said) = this.poll_own(context) {
                said?;
            }
            if !this.again.is_empty() {
                let more = this.again.split_to(this.again.len().min(buffer.remaining()));
                this.activity.heard();
                buffer.put_slice(&more);
                return Poll::Ready(Ok(()));
            }
            if this.half_closed.is_some() {
                return this.poll_half_closed(context);
            }
            ready!(this.poll_begun(context));
            let most = ready!(this.poll_room(context));
            let before = buffer.filled().len();
            let begun = this.unread.len().min(buffer.remaining());
            buffer.put_slice(&this.begun[this.unread.start..][..begun]);
            this.unread.start += begun;
            let arrived = this.arrived.clone();
            let read = if arrived.is_empty() {
                poll_read(&mut this.io, context, buffer, most)
            } else {
                let more = this.arrived.split_to(arrived.len().min(buffer.remaining()).min(most));
                buffer.put_slice(&more);
                Poll::Ready(Ok(()))
            };
            let news = &buffer.filled()[before..];
            if news.is_empty() {
                if read.is_pending() && this.head.has_decoded() {
                    this.yielded_at = Some(this.activity.polls());
                }
                if this.http2.is_none() && matches!(read, Poll::Ready(Ok(()))) {
                    return this.poll_half_closed(context);
                }
                return read;
            }
            if this.fast_path.as_mut().is_some_and(|fast_path| fast_path.take(news, &this.activity)) {
                this.activity.head_is_whole();
                buffer.set_filled(before);
                continue;
            }
            match &mut this.http2 {
                None => {
                    let read = news.len();
                    this.reads(read);
                }
                // The preface, which is no frame, was looked at.
                Some(http2) => {
                    if this.activity.is_flooded() {
                        return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                    }
                    // No request is under way, so that h2 holds the trailers of none. Those whose heads came in this poll of the
                    // connection have not been accepted yet.
                    let polls = this.activity.polls();
                    if this.activity.is_free() && this.read_at != polls {
                        http2.frames.forget_trailers();
                    }
                    this.read_at = polls;
                    let news = &news[begun..];
                    let upload = http2.reads(news, &this.activity, context);
                    let whole = http2.frames.take_whole();
                    if whole > 0 {
                        // Each head has its own time, though the next one has begun.
                        this.activity.head_is_whole();
                    }
                    this.activity.heard_frames(http2.frames.is_unfinished());
                    if !this.head.trailers(http2.frames.trailers()) {
                        return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
                    }
                    if whole > 0 {
                        this.yields = this.head.decodes(whole);
                    }
                    if let Some(read) = upload {
                        this.yields = true;
                        let is_left = read < news.len();
                        if is_left && arrived.is_empty() {
                            this.arrived = Bytes::copy_from_slice(&news[read..]);
                        } else if is_left {
                            this.arrived = arrived.slice(read..);
                        }
                        buffer.set_filled(before + begun + read);
                    }
                }
            }
            // What has come before may be read, whatever has become of the connection since.
            return Poll::Ready(Ok(()));
        }
    }
}

impl<IO: AsyncWrite + Unpin> Wire<IO> {
    /// What is said here goes between what hyper writes.
    fn poll_own(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.http2 {
            Some(http2) => http2.poll_own(&mut self.io, context),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Takes note of what hyper has written.
    fn wrote<'a>(
        &mut self,
        parts: impl IntoIterator<Item = &'a [u8]>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Some(half_closed) = &mut self.half_closed {
            half_closed.goes_on();
        }
        if let (Some(http2), Poll::Ready(Ok(written))) = (&mut self.http2, &written) {
            http2.wrote(parts, *written, &self.activity);
        }
        written
    }

    /// A response of the fast path goes before what hyper writes.
    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(fast_path) = &mut self.fast_path
            && ready!(fast_path.responder.poll_write(&mut self.io, context))?
        {
            self.activity.answered_here();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Wire<IO> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_finish(context))?;
        ready!(this.poll_own(context))?;
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
        ready!(this.poll_own(context))?;
        let written = Pin::new(&mut this.io).poll_write_vectored(context, parts);
        this.wrote(parts.iter().map(|part| &**part), written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_finish(context))?;
        // hyper has written what it had, perhaps to the end of a frame that it could not write whole before.
        ready!(this.poll_own(context))?;
        ready!(Pin::new(&mut this.io).poll_flush(context))?;
        if let Some(half_closed) = &mut this.half_closed {
            half_closed.has_flushed(this.activity.read_side(), context);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_finish(context))?;
        Pin::new(&mut this.io).poll_shutdown(context)
    }
}
