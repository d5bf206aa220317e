//! HTTP/1: handles a client that has closed its sending side.
//!
//! hyper treats end of input as end of the connection. So it must not see it while a response is owed. It sees it when
//! nothing was written for `limits.half_close`, when the client has reset the connection, when the rest of a request
//! body is missing, or when others need the slot that the request holds.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use crate::clock::Clock;
use crate::request::half_close::HalfClose;
use crate::sync::{Mutex, MutexGuard};

/// State that is shared by the two directions of a connection.
pub(super) struct ReadSide {
    gateway: Arc<HalfClose>,
    owes_response: AtomicBool,
    has_ended_connection: AtomicBool,
    body: Mutex<RequestBody>,
}

/// The body of the request in progress.
#[derive(Default)]
struct RequestBody {
    is_truncated: bool,
    /// Waits for more of the body.
    reader: Option<Waker>,
    /// The connection's task, once the client has closed its sending side.
    connection: Option<Waker>,
}

impl ReadSide {
    /// `gateway` is notified when the client closes.
    pub(super) fn new(gateway: Arc<HalfClose>) -> Self {
        let (owes_response, has_ended_connection) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { gateway, owes_response, has_ended_connection, body: Mutex::default() }
    }

    /// Records whether a request was received whose response is not complete.
    pub(super) fn set_owes_response(&self, is_owed: bool) {
        self.owes_response.store(is_owed, Ordering::Release);
    }

    /// Whether the connection was ended because nothing was written for too long, or because others needed the
    /// request's slot.
    pub(super) fn has_ended_connection(&self) -> bool {
        self.has_ended_connection.load(Ordering::Relaxed)
    }

    /// Whether the client has closed its sending side. Call it before more of a body is read: if the client had closed
    /// and nothing can be read, the body is truncated.
    pub(super) fn is_closed(&self) -> bool {
        self.gateway.is_closed()
    }

    /// No more of the body is available now. `was_closed`: whether the client had closed its sending side before the
    /// body was polled. If so, hyper already had all bytes.
    pub(super) fn body_pending(&self, was_closed: bool, context: &Context<'_>) {
        let mut body = self.body();
        if was_closed {
            body.is_truncated = true;
            if let Some(connection) = body.connection.take() {
                connection.wake();
            }
            return;
        }
        body.reader = Some(context.waker().clone());
        // The client may have closed since then.
        if self.is_closed() {
            context.waker().wake_by_ref();
        }
    }

    /// Records that the client has closed its sending side. Returns whether the request in progress may go on.
    fn close(&self) -> bool {
        let may_go_on = self.gateway.close();
        self.has_ended_connection.store(!may_go_on, Ordering::Relaxed);
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

/// Exists from the end of the client's input to the end of the connection.
pub(super) struct HalfClosed {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    /// Whether hyper was woken to read once more after the response.
    has_woken_hyper: bool,
}

/// What hyper reads next.
pub(super) enum ReadEnd {
    /// End of input.
    EndOfInput,
    /// An error: the client has reset the connection.
    Reset,
}

impl HalfClosed {
    /// The client has closed its sending side. `is_blocked`: a part of the response waits until the client reads.
    /// `None` if hyper has to see the end of input immediately; it then drops what it has not written.
    pub(super) fn begin(read_side: &ReadSide, limit: Duration, is_blocked: bool) -> Option<Self> {
        let may_wait = !limit.is_zero() && (is_blocked || read_side.owes_response.load(Ordering::Acquire));
        (may_wait && read_side.close()).then(|| Self { limit, timer: Box::pin(sleep(limit)), has_woken_hyper: false })
    }

    /// A write was made or is blocked: the timer starts again.
    pub(super) fn restart_timer(&mut self) {
        let deadline = Clock::System.timer_now() + self.limit;
        self.timer.as_mut().reset(deadline);
    }

    /// All bytes were written. If the response is complete, wakes hyper to read once more. Otherwise hyper would wait
    /// for the client.
    pub(super) fn flushed(&mut self, read_side: &ReadSide, context: &Context<'_>) {
        let is_over = !read_side.owes_response.load(Ordering::Acquire);
        if is_over && !std::mem::replace(&mut self.has_woken_hyper, true) {
            context.waker().wake_by_ref();
        }
    }

    /// Waits until hyper has to see the end of input. `poll_reset` waits for a reset. `is_blocked`: the client does not
    /// read, for which there is another timeout.
    pub(super) fn poll_end(
        &mut self,
        read_side: &ReadSide,
        context: &mut Context<'_>,
        poll_reset: impl FnOnce(&mut Context<'_>) -> Poll<()>,
        is_blocked: bool,
    ) -> Poll<ReadEnd> {
        let is_over = !is_blocked && !read_side.owes_response.load(Ordering::Acquire);
        if is_over || read_side.poll_truncated(context).is_ready() {
            return Poll::Ready(ReadEnd::EndOfInput);
        }
        if poll_reset(context).is_ready() {
            return Poll::Ready(ReadEnd::Reset);
        }
        while self.timer.as_mut().poll(context).is_ready() {
            if !is_blocked {
                read_side.has_ended_connection.store(true, Ordering::Relaxed);
                return Poll::Ready(ReadEnd::EndOfInput);
            }
            self.restart_timer();
        }
        Poll::Pending
    }
}
