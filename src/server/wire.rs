//! The byte stream between a client and hyper. Bytes are passed on unchanged and recorded. Only requests that the fast
//! path answers are not passed on.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
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

/// The HTTP/2 connection preface (RFC 9113 §3.4). It is not a valid HTTP/1 request line.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a connection is not read when the memory budget refuses room for a head. Then the budget is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// How much of a body is read at once in HTTP/1, in bytes. hyper's buffer starts with 8 KiB and grows whenever one read
/// fills it. An upload that upstream does not read holds several such pieces.
const BODY_PIECE: usize = 8 * 1024 - 1;

/// How much is read first when bytes arrive at an idle connection, in bytes. Most heads are smaller.
const FIRST_READ: usize = 8 * 1024;

/// The fast path of a connection.
pub(super) struct WireFastPath {
    responder: Responder<Gateway>,
    shutdown: ListenerShutdown,
}

impl WireFastPath {
    pub(super) fn new(gateway: &Arc<Gateway>, connection: &Arc<Connection>, shutdown: ListenerShutdown) -> Self {
        Self { responder: Responder::new(Arc::clone(gateway), Arc::clone(connection)), shutdown }
    }

    fn take(&mut self, bytes: &[u8], activity: &ConnectionActivity) -> bool {
        let state = ResponderState { is_free: activity.is_free(), is_closing: self.shutdown.has_started() };
        self.responder.take(bytes, state)
    }
}

/// A connection whose HTTP version was detected.
pub(super) struct Wire<IO> {
    io: IO,
    /// The bytes that were read for that. Those in `first_unread` are still to be passed to hyper.
    first_bytes: [u8; PREFACE.len()],
    first_unread: std::ops::Range<usize>,
    /// Bytes that a previous hyper connection had read and not used.
    unused: Bytes,
    /// Bytes that were received and not yet inspected.
    received: Bytes,
    http2: Option<Box<Http2>>,
    /// HTTP/1 on the proxy listener.
    fast_path: Option<Box<WireFastPath>>,
    head: HeadMemory,
    /// Until the memory budget is tried again for a head.
    retry: Option<Pin<Box<Sleep>>>,
    /// HTTP/2: whether the requests whose heads were read have to start before more is read.
    waits_for_tasks: bool,
    /// HTTP/2: the number of the poll in which this task yielded to the tasks of the requests.
    yielded_at: Option<usize>,
    /// HTTP/2: the number of the poll in which bytes were read last.
    read_at: usize,
    /// HTTP/1: how long nothing may be written to a client that has closed its sending side.
    half_close: Duration,
    /// HTTP/1: set after the client has closed its sending side, while hyper does not know.
    half_closed: Option<HalfClosed>,
    activity: Arc<ConnectionActivity>,
}

impl<IO: AsyncRead + Unpin> Wire<IO> {
    /// Detects the HTTP version: reads until the first byte that differs from the HTTP/2 preface.
    ///
    /// # Errors
    /// If the client has closed the connection.
    pub(super) async fn detect(
        mut io: IO,
        fast_path: Option<Box<WireFastPath>>,
        shutdown: &ListenerShutdown,
        head: HeadMemory,
        half_close: Duration,
        activity: Arc<ConnectionActivity>,
    ) -> io::Result<Self> {
        let (mut first_bytes, mut read) = ([0; PREFACE.len()], 0);
        while read < first_bytes.len() && first_bytes[..read] == PREFACE[..read] {
            match io.read(&mut first_bytes[read..]).await? {
                0 if read == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                0 => break,
                more => read += more,
            }
        }
        let http2 = (first_bytes == *PREFACE).then(|| Box::new(Http2::new(shutdown.clone())));
        let fast_path = fast_path.filter(|_| http2.is_none());
        Ok(Self {
            io,
            first_bytes,
            first_unread: 0..read,
            unused: Bytes::new(),
            received: Bytes::new(),
            http2,
            fast_path,
            head,
            retry: None,
            waits_for_tasks: false,
            yielded_at: None,
            read_at: 0,
            half_close,
            half_closed: None,
            activity,
        })
    }

    /// Whether the first bytes are a TLS handshake record (RFC 8446 §5.1).
    pub(super) fn is_tls(&self) -> bool {
        self.first_bytes[..self.first_unread.end].starts_with(b"\x16\x03")
    }

    pub(super) fn is_http2(&self) -> bool {
        self.http2.is_some()
    }

    /// HTTP/2: the requests with bodies.
    pub(super) fn uploads(&self) -> Option<Arc<Uploads>> {
        self.http2.as_ref().map(|http2| Arc::clone(http2.uploads()))
    }

    /// HTTP/1: the connection is idle and hyper's buffer was freed. `unused` is what hyper had read and not used. It is
    /// read again.
    pub(super) fn memory_freed(&mut self, unused: Bytes) {
        self.head.free_buffer();
        self.activity.memory_freed();
        if let Some(fast_path) = &mut self.fast_path {
            fast_path.responder.shrink();
        }
        self.unused = unused;
    }

    /// Waits, without a heap buffer, until bytes arrive or the client closes.
    pub(super) fn poll_arrival(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.unused.is_empty() {
            return Poll::Ready(());
        }
        let mut space = [0; FIRST_READ];
        let mut buffer = ReadBuf::new(&mut space);
        // An error will be returned again by the next read.
        let _ = ready!(Pin::new(&mut self.io).poll_read(context, &mut buffer));
        self.received = Bytes::copy_from_slice(buffer.filled());
        Poll::Ready(())
    }

    /// How many bytes may be read now. Waits while the memory budget has no room for the incomplete head.
    fn poll_read_limit(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        loop {
            if let Some(retry) = &mut self.retry {
                ready!(retry.as_mut().poll(context));
                self.retry = None;
            }
            let room = match self.http2.as_ref().map(|http2| &http2.client_frames) {
                None if !self.activity.is_in_head() => {
                    // Earlier bytes belong to another head or to a body.
                    self.head.head_finished();
                    // The fast path remembers only heads that arrive in one piece.
                    Some(if self.activity.is_free() { READ_AT_ONCE } else { BODY_PIECE })
                }
                None => self.head.room(),
                Some(frames) => {
                    let (unfinished, data_left) = (frames.unfinished_head(), frames.data_left());
                    self.head.may_collect(unfinished).then(|| self.head.heads_at_once().max(data_left))
                }
            };
            match room {
                Some(room) => {
                    self.activity.set_awaits_memory(false);
                    return Poll::Ready(room.min(READ_AT_ONCE));
                }
                None => {
                    self.activity.set_awaits_memory(true);
                    self.retry = Some(Box::pin(sleep(RETRY)));
                }
            }
        }
    }

    /// HTTP/2: waits until the requests whose heads were read have started, if that is necessary before the next read.
    /// Until then, only their heads are charged. hyper continues to read after it has accepted a request, before the
    /// request's task has started.
    fn poll_tasks_started(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let polls = self.activity.polls();
        match self.yielded_at {
            Some(at) if at == polls => return Poll::Pending,
            Some(_) if self.activity.all_request_tasks_started() => {
                (self.waits_for_tasks, self.yielded_at) = (false, None);
                self.head.requests_started();
            }
            None if !self.waits_for_tasks => {}
            _ => {
                self.yielded_at = Some(polls);
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// HTTP/1: records a read. hyper's buffer stays as large as the largest head has made it.
    fn record_read(&mut self, bytes: usize) {
        self.activity.bytes_received();
        if self.activity.is_in_head() {
            self.head.record_read(bytes);
        }
        if self.head.is_large() {
            self.activity.set_has_large_buffer(true);
        }
    }
}

/// Reads at most `max` bytes.
fn poll_read<IO: AsyncRead + Unpin>(
    io: &mut IO,
    context: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
    max: usize,
) -> Poll<io::Result<()>> {
    if buffer.remaining() <= max {
        return Pin::new(io).poll_read(context, buffer);
    }
    // Not filled with zeros: most reads find that nothing has arrived.
    let mut space = [MaybeUninit::uninit(); READ_AT_ONCE];
    let mut piece = ReadBuf::uninit(&mut space[..max.min(READ_AT_ONCE)]);
    ready!(Pin::new(io).poll_read(context, &mut piece))?;
    buffer.put_slice(piece.filled());
    Poll::Ready(Ok(()))
}

impl<IO: Reset> Wire<IO> {
    /// HTTP/1: the client has closed its sending side. Waits until hyper has to see the end of input.
    fn poll_half_closed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, activity, half_closed, half_close, .. } = self;
        if half_closed.is_none() {
            *half_closed = HalfClosed::begin(activity.read_side(), *half_close, activity.is_blocked());
        }
        let Some(waiting) = half_closed else { return Poll::Ready(Ok(())) };
        let poll_reset = |context: &mut Context<'_>| io.poll_reset(context);
        match ready!(waiting.poll_end(activity.read_side(), context, poll_reset, activity.is_blocked())) {
            ReadEnd::EndOfInput => Poll::Ready(Ok(())),
            ReadEnd::Reset => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Reset + Unpin> AsyncRead for Wire<IO> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            // The next request is not read before the client has read the response of the fast path.
            ready!(this.poll_fast_path_response(context))?;
            // Requests are read even while one of the gateway's own frames cannot be written.
            if let Poll::Ready(written) = this.poll_own_frames(context) {
                written?;
            }
            if !this.unused.is_empty() {
                let more = this.unused.split_to(this.unused.len().min(buffer.remaining()));
                this.activity.bytes_received();
                buffer.put_slice(&more);
                return Poll::Ready(Ok(()));
            }
            if this.half_closed.is_some() {
                return this.poll_half_closed(context);
            }
            ready!(this.poll_tasks_started(context));
            let max = ready!(this.poll_read_limit(context));
            let before = buffer.filled().len();
            let first = this.first_unread.len().min(buffer.remaining());
            buffer.put_slice(&this.first_bytes[this.first_unread.start..][..first]);
            this.first_unread.start += first;
            let received = this.received.clone();
            let read = if received.is_empty() {
                poll_read(&mut this.io, context, buffer, max)
            } else {
                let more = this.received.split_to(received.len().min(buffer.remaining()).min(max));
                buffer.put_slice(&more);
                Poll::Ready(Ok(()))
            };
            let new_bytes = &buffer.filled()[before..];
            if new_bytes.is_empty() {
                if read.is_pending() && this.head.has_decoded() {
                    this.yielded_at = Some(this.activity.polls());
                }
                if this.http2.is_none() && matches!(read, Poll::Ready(Ok(()))) {
                    return this.poll_half_closed(context);
                }
                return read;
            }
            if this.fast_path.as_mut().is_some_and(|fast_path| fast_path.take(new_bytes, &this.activity)) {
                this.activity.head_finished();
                buffer.set_filled(before);
                continue;
            }
            match &mut this.http2 {
                None => {
                    let read = new_bytes.len();
                    this.record_read(read);
                }
                // The preface was already inspected and is not a frame.
                Some(http2) => {
                    if this.activity.exceeds_cancel_limit() {
                        return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                    }
                    // No request is in progress, so h2 holds no trailers. Requests whose heads arrived in this poll of
                    // the connection have not been accepted yet.
                    let polls = this.activity.polls();
                    if this.activity.is_free() && this.read_at != polls {
                        http2.client_frames.forget_trailers();
                    }
                    this.read_at = polls;
                    let new_bytes = &new_bytes[first..];
                    let upload = http2.record_read(new_bytes, &this.activity, context);
                    let completed = http2.client_frames.take_completed_heads();
                    if completed > 0 {
                        // Each head has its own timeout, even if the next one has started.
                        this.activity.head_finished();
                    }
                    this.activity.frames_received(http2.client_frames.is_unfinished());
                    if !this.head.charge_trailers(http2.client_frames.trailers()) {
                        return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
                    }
                    if completed > 0 {
                        this.waits_for_tasks = this.head.charge_decoded(completed);
                    }
                    if let Some(read) = upload {
                        this.waits_for_tasks = true;
                        let is_left = read < new_bytes.len();
                        if is_left && received.is_empty() {
                            this.received = Bytes::copy_from_slice(&new_bytes[read..]);
                        } else if is_left {
                            this.received = received.slice(read..);
                        }
                        buffer.set_filled(before + first + read);
                    }
                }
            }
            // Bytes that were received may be read, even if the connection has failed since.
            return Poll::Ready(Ok(()));
        }
    }
}

impl<IO: AsyncWrite + Unpin> Wire<IO> {
    /// HTTP/2: the gateway's own frames are written between those of hyper.
    fn poll_own_frames(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.http2 {
            Some(http2) => http2.poll_own_frames(&mut self.io, context),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Follows what hyper has written.
    fn record_written<'a>(
        &mut self,
        parts: impl IntoIterator<Item = &'a [u8]>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Some(half_closed) = &mut self.half_closed {
            half_closed.restart_timer();
        }
        if let (Some(http2), Poll::Ready(Ok(written))) = (&mut self.http2, &written) {
            http2.record_written(parts, *written, &self.activity);
        }
        written
    }

    /// A response of the fast path is written before what hyper writes.
    fn poll_fast_path_response(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(fast_path) = &mut self.fast_path
            && ready!(fast_path.responder.poll_write(&mut self.io, context))?
        {
            self.activity.fast_path_responded();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Wire<IO> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_fast_path_response(context))?;
        ready!(this.poll_own_frames(context))?;
        let written = Pin::new(&mut this.io).poll_write(context, bytes);
        this.record_written([bytes], written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_fast_path_response(context))?;
        ready!(this.poll_own_frames(context))?;
        let written = Pin::new(&mut this.io).poll_write_vectored(context, parts);
        this.record_written(parts.iter().map(|part| &**part), written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_fast_path_response(context))?;
        // hyper has written what it had. It may have completed a frame that was written in part before.
        ready!(this.poll_own_frames(context))?;
        ready!(Pin::new(&mut this.io).poll_flush(context))?;
        if let Some(half_closed) = &mut this.half_closed {
            half_closed.flushed(this.activity.read_side(), context);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_fast_path_response(context))?;
        Pin::new(&mut this.io).poll_shutdown(context)
    }
}
