//! HTTP/1: what becomes of a connection whose client has closed its sending side.
//!
//! hyper takes the end of what a client sends for the end of the connection. So it is not told of it while it owes an
//! answer: until nothing was written for `limits.half_close`, the client has gone (a reset), the rest of a body is
//! missing, or a slot that the request holds is wanted by others.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use crate::clock::Clock;
use crate::request::half_close::HalfClose;
use crate::sync::{Mutex, MutexGuard};

/// What the two directions of a connection have to know of each other.
pub(super) struct ReadSide {
    gateway: Arc<HalfClose>,
    owes_answer: AtomicBool,
    has_ended: AtomicBool,
    body: Mutex<RequestBody>,
}

/// The body of the request under way.
#[derive(Default)]
struct RequestBody {
    is_truncated: bool,
    /// Of who waits for more of it.
    reader: Option<Waker>,
    /// Of the connection's task, once the client has closed its sending side.
    connection: Option<Waker>,
}

impl ReadSide {
    /// The gateway is told by this when the client has closed.
    pub(super) fn new(gateway: Arc<HalfClose>) -> Self {
        let (owes_answer, has_ended) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { gateway, owes_answer, has_ended, body: Mutex::default() }
    }

    /// Notes whether a request has come whose answer is not over.
    pub(super) fn owes_answer(&self, owes: bool) {
        self.owes_answer.store(owes, Ordering::Release);
    }

    /// Whether the connection has ended because nothing was written for too long, or others needed the request's slot.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }

    /// Whether the client has closed its sending side. To be asked before more of a body is read: if it had closed and nothing
    /// can be read, the body is truncated.
    pub(super) fn is_closed(&self) -> bool {
        self.gateway.is_closed()
    }

    /// There is no more of a body at present. `was_closed`: whether the client had closed its sending side before that was
    /// seen, so that hyper had been given all that there is.
    pub(super) fn body_pends(&self, was_closed: bool, context: &Context<'_>) {
        let mut body = self.body();
        if was_closed {
            body.is_truncated = true;
            if let Some(connection) = body.connection.take() {
                connection.wake();
            }
            return;
        }
        body.reader = Some(context.waker().clone());
        // It may have closed just now.
        if self.is_closed() {
            context.waker().wake_by_ref();
        }
    }

    /// Notes that the client has closed its sending side. Says whether the request under way may go on.
    fn close(&self) -> bool {
        let may_go_on = self.gateway.close();
        self.has_ended.store(!may_go_on, Ordering::Relaxed);
        if let Some(reader) = self.body().reader.take() {
            reader.wake();
        }
        may_go_on
    }

    fn poll_truncated(&self, context: &Context<'_>) -> Poll<()> {
        let mut body = self.body();
        if body.is_truncated {
            return Poll::Ready(());
        }
        body.connection = Some(context.waker().clone());
        Poll::Pending
    }

    fn body(&self) -> MutexGuard<'_, RequestBody> {
        self.body.lock()
    }
}

/// Lasts from the end of what a client sends to the end of its connection.
pub(super) struct HalfClosed {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    /// Whether hyper was asked to read once more, after the answer.
    has_asked: bool,
}

/// What hyper is to be told.
pub(super) enum ReadEnd {
    /// That the client has sent everything.
    OfInput,
    /// That it has gone.
    Reset,
}

impl HalfClosed {
    /// The client has closed its sending side. `is_blocked`: a part of the answer waits until the client reads. None if hyper is
    /// to be told at once: it drops what it has not written.
    pub(super) fn begin(read_side: &ReadSide, limit: Duration, is_blocked: bool) -> Option<Self> {
        let may_wait = !limit.is_zero() && (is_blocked || read_side.owes_answer.load(Ordering::Acquire));
        (may_wait && read_side.close()).then(|| Self { limit, timer: Box::pin(sleep(limit)), has_asked: false })
    }

    /// Something is being written, or will be as soon as the client makes room.
    pub(super) fn goes_on(&mut self) {
        let deadline = Clock::System.timer_now() + self.limit;
        self.timer.as_mut().reset(deadline);
    }

    /// Everything has been written. Has hyper read once more if that was the end of the answer: it waits for the client
    /// otherwise.
    pub(super) fn has_flushed(&mut self, read_side: &ReadSide, context: &Context<'_>) {
        let is_over = !read_side.owes_answer.load(Ordering::Acquire);
        if is_over && !std::mem::replace(&mut self.has_asked, true) {
            context.waker().wake_by_ref();
        }
    }

    /// Waits until hyper is to be told. `poll_reset` waits for a reset, and `is_blocked` says whether the client makes no
    /// room for more, for which there is another limit.
    pub(super) fn poll_end(
        &mut self,
        read_side: &ReadSide,
        context: &mut Context<'_>,
        poll_reset: impl FnOnce(&mut Context<'_>) -> Poll<()>,
        is_blocked: bool,
    ) -> Poll<ReadEnd> {
        let is_over = !is_blocked && !read_side.owes_answer.load(Ordering::Acquire);
        if is_over || read_side.poll_truncated(context).is_ready() {
            return Poll::Ready(ReadEnd::OfInput);
        }
        if poll_reset(context).is_ready() {
            return Poll::Ready(ReadEnd::Reset);
        }
        while self.timer.as_mut().poll(context).is_ready() {
            if !is_blocked {
                read_side.has_ended.store(true, Ordering::Relaxed);
                return Poll::Ready(ReadEnd::OfInput);
            }
            self.goes_on();
        }
        Poll::Pending
    }
}
