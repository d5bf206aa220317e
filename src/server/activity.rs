//! What a connection is doing, for its time limits, for shedding and for freeing its memory. Those who read, write and answer note it here, and
//! one timer per connection asks; so nothing on the way of a request has a timer to set.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use strum::{IntoStaticStr, VariantArray};
use tokio::time::Instant;

use super::half_closed::ReadSide;
use super::shed::ActivityState;
use crate::clock::Clock;
use crate::request::half_close::HalfClose;
use crate::sync::Mutex;

/// For a client that is told that its connection ends: this long it may take to go.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection in HTTP/1 is idle before its memory is freed.
const REST: Duration = Duration::from_secs(1);

/// How many requests a client may take back, provided that they are more than those it lets be answered.
const TAKEN_BACK: usize = 256;

/// How long a client may take for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionTimeouts {
    /// From a head's first byte, or the connection's beginning, to the head's end.
    pub(super) head: Duration,
    /// Without a request.
    pub(super) idle: Duration,
    /// To make room for the next part of an answer.
    pub(super) write: Duration,
}

impl ConnectionTimeouts {
    fn soonest(&self) -> Duration {
        self.head.min(self.idle).min(self.write)
    }
}

/// What has to be done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeoutAction {
    /// Nothing before that moment.
    Wait(Instant),
    /// No request for too long: it ends in good order.
    Idle,
    /// A client that doesn't keep to the terms: it ends at once.
    Drop(EndCause),
}

/// Why a connection was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub(super) enum EndCause {
    /// A head that took too long, or never began.
    #[strum(serialize = "header-timeout")]
    Head,
    /// No request for too long.
    #[strum(serialize = "keepalive-timeout")]
    Idle,
    /// An answer that isn't read.
    #[strum(serialize = "write-timeout")]
    Write,
    /// Its client had closed its sending side, and nothing was written for too long.
    HalfClose,
    /// Too many requests that were taken back.
    Resets,
    /// Told that it is over, the client did not go.
    ShutdownTimeout,
    /// Another connection needed its place.
    Shed,
}

/// Moments are counted in nanoseconds from the connection's beginning.
pub(super) struct ConnectionActivity {
    began: Instant,
    /// Requests and answers that aren't over, each for itself: an upload may outlast its answer.
    halves: AtomicUsize,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    blocked_since: AtomicU64,
    /// Woken when something can be written again.
    unblocked: Mutex<Option<Waker>>,
    /// HTTP/2: answers for whose next part the client makes no room, and since when it has made none for any of them.
    stalled: AtomicUsize,
    stalled_since: AtomicU64,
    /// HTTP/2: how often the connection was polled, how many requests were accepted, and how many of them have begun.
    polls: AtomicUsize,
    accepted: AtomicUsize,
    begun: AtomicUsize,
    answered: AtomicUsize,
    taken_back: AtomicUsize,
    has_open_streams: AtomicBool,
    awaits_memory: AtomicBool,
    has_large_buffer: AtomicBool,
    is_to_rest: AtomicBool,
    has_left_body: AtomicBool,
    /// HTTP/1.
    read_side: ReadSide,
}

/// An answer that waits for its client to make room.
pub(super) struct Stalled(Arc<ConnectionActivity>);

impl Drop for Stalled {
    fn drop(&mut self) {
        self.0.stalled.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The moment of what isn't so.
const NEVER: u64 = u64::MAX;

impl ConnectionActivity {
    /// Of a connection that begins now, and owes its first head. The gateway is told by `half_close` when the client has closed its sending side.
    pub(super) fn new(half_close: Arc<HalfClose>) -> Self {
        Self {
            began: Clock::System.timer_now(),
            halves: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(NEVER),
            unblocked: Mutex::default(),
            stalled: AtomicUsize::new(0),
            stalled_since: AtomicU64::new(NEVER),
            polls: AtomicUsize::new(0),
            accepted: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            taken_back: AtomicUsize::new(0),
            has_open_streams: AtomicBool::new(false),
            awaits_memory: AtomicBool::new(false),
            has_large_buffer: AtomicBool::new(false),
            is_to_rest: AtomicBool::new(false),
            has_left_body: AtomicBool::new(false),
            read_side: ReadSide::new(half_close),
        }
    }

    /// HTTP/1: what is known of the end of what the client sends.
    pub(super) fn read_side(&self) -> &ReadSide {
        &self.read_side
    }

    fn now(&self) -> u64 {
        let nanos = Clock::System.timer_now().saturating_duration_since(self.began).as_nanos();
        u64::try_from(nanos).unwrap_or(NEVER - 1)
    }

    fn moment(&self, since: u64) -> Instant {
        self.began + Duration::from_nanos(since)
    }

    /// HTTP/1: bytes have come. Between requests they can only be a head. (What comes while one is being
    /// answered may be its body; if it is the beginning of the next head, that has until the idle time is over.)
    pub(super) fn heard(&self) {
        if self.halves.load(Ordering::Relaxed) == 0 {
            self.head_begins();
        }
    }

    fn head_begins(&self) {
        if self.head_since.load(Ordering::Relaxed) == NEVER {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// HTTP/2: bytes have come, and now a head is unfinished or none is.
    pub(super) fn heard_frames(&self, in_head: bool) {
        if in_head {
            self.head_begins();
        } else {
            self.head_is_whole();
        }
    }

    /// A request has come, in so many halves.
    pub(super) fn begins(&self, halves: usize) {
        self.halves.fetch_add(halves, Ordering::Relaxed);
    }

    /// Whether the head that has begun waits for room in the memory budget. Its time begins anew when there is some, if the
    /// connection has requests under way: those may be what holds the memory.
    pub(super) fn awaits_memory(&self, waits: bool) {
        let has_waited = self.awaits_memory.swap(waits, Ordering::Relaxed);
        if has_waited && !waits && self.halves.load(Ordering::Relaxed) > 0 {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// No head is under way.
    pub(super) fn head_is_whole(&self) {
        self.head_since.store(NEVER, Ordering::Relaxed);
    }

    /// Whether one is.
    pub(super) fn is_in_head(&self) -> bool {
        self.head_since.load(Ordering::Relaxed) != NEVER
    }

    /// One half of an exchange is over.
    pub(super) fn ends(&self) {
        if self.halves.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle_since.store(self.now(), Ordering::Release);
        }
    }

    /// The connection is polled by its task. What its requests' tasks have done since is known now.
    pub(super) fn is_polled(&self) {
        self.polls.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it was.
    pub(super) fn polls(&self) -> usize {
        self.polls.load(Ordering::Relaxed)
    }

    /// HTTP/2: a request was accepted. Its task begins later.
    pub(super) fn accepts(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// HTTP/2: the task of a request was polled for the first time, or never will be. What it takes is charged.
    pub(super) fn has_begun(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// HTTP/2: whether the tasks of all requests that were accepted have begun.
    pub(super) fn have_all_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed) >= self.accepted.load(Ordering::Relaxed)
    }

    /// HTTP/2: an answer is over, or its request was taken back.
    pub(super) fn answered(&self, over: bool) {
        let count = if over { &self.answered } else { &self.taken_back };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the client asks mostly to take it back.
    pub(super) fn is_flooded(&self) -> bool {
        let taken_back = self.taken_back.load(Ordering::Relaxed);
        taken_back > TAKEN_BACK && taken_back > self.answered.load(Ordering::Relaxed)
    }

    /// HTTP/2: from now on a stream's answer waits for its client to make room, until what is returned is dropped. `has_read`:
    /// whether the client has read some of that answer since it waited before.
    pub(super) fn stalls(self: &Arc<Self>, has_read: bool) -> Stalled {
        if self.stalled.fetch_add(1, Ordering::Relaxed) == 0 || has_read {
            self.stalled_since.store(self.now(), Ordering::Relaxed);
        }
        Stalled(Arc::clone(self))
    }

    /// HTTP/2: whether there are streams whose response has not been written to its end.
    pub(super) fn has_open_streams(&self, has_some: bool) {
        self.has_open_streams.store(has_some, Ordering::Relaxed);
    }

    /// HTTP/2: whether the client waits for nothing, and is not in the midst of a head.
    pub(super) fn is_quiet(&self) -> bool {
        !self.has_open_streams.load(Ordering::Relaxed) && !self.is_in_head()
    }

    /// HTTP/1: a request that never had halves is over.
    pub(super) fn answered_here(&self) {
        self.idle_since.store(self.now(), Ordering::Release);
    }

    /// Whether nothing is being answered, and nothing waits to be written.
    pub(super) fn is_free(&self) -> bool {
        self.halves.load(Ordering::Acquire) == 0 && !self.is_blocked()
    }

    /// Whether something waits to be written.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_since.load(Ordering::Relaxed) != NEVER
    }

    /// What the connection is doing, for those who choose which to close.
    pub(super) fn activity(&self) -> ActivityState {
        let blocked_since = self.blocked_since.load(Ordering::Relaxed);
        if blocked_since != NEVER {
            return ActivityState::Blocked(self.moment(blocked_since));
        }
        let halves = self.halves.load(Ordering::Acquire);
        if halves > 0 && self.stalled.load(Ordering::Relaxed) >= halves {
            return ActivityState::Blocked(self.moment(self.stalled_since.load(Ordering::Relaxed)));
        }
        if halves > 0 {
            return ActivityState::Busy;
        }
        let head_since = self.head_since.load(Ordering::Relaxed);
        let idle_since = self.idle_since.load(Ordering::Acquire);
        ActivityState::Idle(self.moment(if head_since == NEVER { idle_since } else { head_since }))
    }

    /// Something was tried to be written.
    pub(super) fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Pending => self.blocked(),
            Poll::Ready(Ok(1..)) => self.wrote(),
            Poll::Ready(_) => {}
        }
        written
    }

    /// Something was written. Where it had to wait, the connection was not idle until now.
    fn wrote(&self) {
        if self.blocked_since.load(Ordering::Relaxed) != NEVER {
            self.blocked_since.store(NEVER, Ordering::Relaxed);
            self.idle_since.store(self.now(), Ordering::Relaxed);
            if let Some(waker) = self.unblocked.lock().take() {
                waker.wake();
            }
        }
    }

    /// Waits until what was written before has gone to the kernel.
    pub(super) fn poll_unblocked(&self, context: &Context<'_>) -> Poll<()> {
        if self.blocked_since.load(Ordering::Relaxed) == NEVER {
            return Poll::Ready(());
        }
        *self.unblocked.lock() = Some(context.waker().clone());
        Poll::Pending
    }

    /// HTTP/1: whether the buffer that is read into has become large.
    pub(super) fn has_large_buffer(&self, is_large: bool) {
        self.has_large_buffer.store(is_large, Ordering::Relaxed);
    }

    /// HTTP/1: whether the memory that an active connection takes is to be freed now: the connection is idle, and has been
    /// for a moment or has a large buffer.
    pub(super) fn is_to_renew(&self) -> bool {
        let is_wanted = self.has_large_buffer.load(Ordering::Relaxed) || self.is_to_rest.load(Ordering::Relaxed);
        let is_between_requests = self.is_free() && !self.is_in_head() && !self.has_left_body.load(Ordering::Relaxed);
        is_wanted && is_between_requests
    }

    /// HTTP/1: when to look whether that memory is to be freed, unless it is now.
    fn rest_at(&self, now: Instant) -> Option<Instant> {
        let rest = self.moment(self.idle_since.load(Ordering::Acquire)) + REST;
        if !self.is_free() || self.is_in_head() {
            return Some(now + REST);
        }
        if rest > now {
            return Some(rest);
        }
        self.is_to_rest.store(true, Ordering::Relaxed);
        None
    }

    /// A request was answered before its body had come to its end. hyper reads or refuses the rest, and nobody else may
    /// take that for a request.
    pub(super) fn leaves_body(&self) {
        self.has_left_body.store(true, Ordering::Relaxed);
    }

    /// HTTP/1: that memory is freed.
    pub(super) fn rests(&self) {
        self.has_large_buffer.store(false, Ordering::Relaxed);
        self.is_to_rest.store(false, Ordering::Relaxed);
    }

    /// Why the connection has failed, if it is not the client that has closed it.
    pub(super) fn cause(&self) -> Option<EndCause> {
        if self.read_side.has_ended() {
            return Some(EndCause::HalfClose);
        }
        self.is_flooded().then_some(EndCause::Resets)
    }

    /// Nothing could be written.
    fn blocked(&self) {
        if self.blocked_since.load(Ordering::Relaxed) == NEVER {
            self.blocked_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// The first moment at which anything can be due.
    pub(super) fn first(&self, terms: &ConnectionTimeouts) -> Instant {
        self.began + terms.soonest().min(REST)
    }

    /// What has to be done at this moment, and if nothing, when to ask again. `closing`: since when the client
    /// has known that the connection ends.
    pub(super) fn judge(&self, terms: &ConnectionTimeouts, is_http2: bool, closing: Option<Instant>) -> TimeoutAction {
        let now = Clock::System.timer_now();
        // What isn't so may begin at any time, and be due no earlier than this.
        let mut next = now + terms.soonest();
        if !is_http2 && let Some(rest) = self.rest_at(now) {
            next = next.min(rest);
        }
        let mut is_due = |since: u64, limit: Duration| {
            let due = self.moment(since) + limit;
            next = next.min(due);
            due <= now
        };
        let is_busy = self.halves.load(Ordering::Acquire) > 0;
        let idle_since = self.idle_since.load(Ordering::Acquire);
        let head_since = self.head_since.load(Ordering::Relaxed);
        let blocked_since = self.blocked_since.load(Ordering::Relaxed);
        if blocked_since != NEVER && is_due(blocked_since, terms.write) {
            return TimeoutAction::Drop(EndCause::Write);
        }
        let is_held_up = is_busy && self.awaits_memory.load(Ordering::Relaxed);
        if head_since != NEVER && !is_held_up && is_due(head_since, terms.head) {
            return TimeoutAction::Drop(EndCause::Head);
        }
        if is_busy || blocked_since != NEVER {
            return TimeoutAction::Wait(next);
        }
        match closing {
            // In HTTP/2 whoever is just asking is answered all the same, so that beginnings don't put it off.
            None if (is_http2 || head_since == NEVER) && is_due(idle_since, terms.idle) => return TimeoutAction::Idle,
            None => {}
            Some(closing) => {
                let closing = closing.saturating_duration_since(self.began).as_nanos();
                let since = idle_since.max(u64::try_from(closing).unwrap_or(NEVER - 1));
                let limit = if head_since == NEVER { CLOSE_TIMEOUT.min(terms.write) } else { terms.head };
                if is_due(since, limit) {
                    return TimeoutAction::Drop(EndCause::ShutdownTimeout);
                }
            }
        }
        TimeoutAction::Wait(next)
    }
}
