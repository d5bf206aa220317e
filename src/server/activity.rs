//! The activity of one connection, as atomics. Readers, writers and handlers record it here. One timer per connection
//! evaluates it for timeouts, shedding and freeing memory, so no request has to set a timer. Nothing is closed here.

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

/// How long a client may take to close after it was notified that the connection ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an HTTP/1 connection is idle before its memory is freed.
const IDLE_BEFORE_FREE: Duration = Duration::from_secs(1);

/// How many requests a client may cancel, even if it cancels more requests than it lets finish.
const MAX_CANCELLED: usize = 256;

/// The timeouts of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionTimeouts {
    /// From the start of the connection, or from the first byte of a head, to the end of that head.
    pub(super) head: Duration,
    /// Without a request.
    pub(super) idle: Duration,
    /// For the client to read enough that the next part of a response can be written.
    pub(super) write: Duration,
}

impl ConnectionTimeouts {
    fn soonest(&self) -> Duration {
        self.head.min(self.idle).min(self.write)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeoutAction {
    /// Nothing is due before this time.
    Wait(Instant),
    /// The keep-alive timeout has passed.
    CloseGracefully,
    /// The client has exceeded a limit: close immediately.
    Close(EndCause),
}

/// Why the gateway has ended a connection. The values of a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub(super) enum EndCause {
    /// A head was incomplete at the timeout, or none came.
    #[strum(serialize = "header-timeout")]
    Head,
    /// No request came.
    #[strum(serialize = "keepalive-timeout")]
    Idle,
    /// The client did not read a response.
    #[strum(serialize = "write-timeout")]
    Write,
    /// The client had closed its sending side, and nothing was written for too long.
    HalfClose,
    /// The client cancelled too many requests.
    Resets,
    /// The client did not close after it was notified.
    CloseTimeout,
    /// Another connection needed its place.
    Shed,
}

/// Times are nanoseconds since the start of the connection.
pub(super) struct ConnectionActivity {
    began: Instant,
    /// Requests and responses that are not finished, counted separately: an upload may outlast its response.
    halves: AtomicUsize,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    blocked_since: AtomicU64,
    /// Woken when bytes can be written again.
    unblocked: Mutex<Option<Waker>>,
    /// HTTP/2: responses that wait for the client's flow-control window, and since when the client has opened none of
    /// these windows.
    stalled: AtomicUsize,
    stalled_since: AtomicU64,
    /// HTTP/2: how often the connection was polled, how many requests were accepted, and how many of their tasks have
    /// started.
    polls: AtomicUsize,
    accepted: AtomicUsize,
    tasks_started: AtomicUsize,
    finished: AtomicUsize,
    cancelled: AtomicUsize,
    has_open_streams: AtomicBool,
    awaits_memory: AtomicBool,
    has_large_buffer: AtomicBool,
    idle_delay_passed: AtomicBool,
    has_unread_body: AtomicBool,
    /// HTTP/1.
    read_side: ReadSide,
}

/// A response that waits for the client's flow-control window.
pub(super) struct StalledResponse(Arc<ConnectionActivity>);

impl Drop for StalledResponse {
    fn drop(&mut self) {
        self.0.stalled.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Marks a time that is not set.
const NEVER: u64 = u64::MAX;

impl ConnectionActivity {
    /// For a connection that starts now. The header timeout starts, too. `half_close` notifies the gateway when the
    /// client has closed its sending side.
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
            tasks_started: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            cancelled: AtomicUsize::new(0),
            has_open_streams: AtomicBool::new(false),
            awaits_memory: AtomicBool::new(false),
            has_large_buffer: AtomicBool::new(false),
            idle_delay_passed: AtomicBool::new(false),
            has_unread_body: AtomicBool::new(false),
            read_side: ReadSide::new(half_close),
        }
    }

    /// HTTP/1: the state of the client's sending side.
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

    /// HTTP/1: bytes were received. Between requests, they must be the start of a head. While a request is in progress,
    /// they may be its body. If they are the next head, it has until the keep-alive timeout.
    pub(super) fn bytes_received(&self) {
        if self.halves.load(Ordering::Relaxed) == 0 {
            self.start_head();
        }
    }

    fn start_head(&self) {
        if self.head_since.load(Ordering::Relaxed) == NEVER {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// HTTP/2: bytes were received. `in_head`: whether a head is incomplete now.
    pub(super) fn frames_received(&self, in_head: bool) {
        if in_head {
            self.start_head();
        } else {
            self.head_finished();
        }
    }

    /// A request was received: 1 half without a body, 2 with one.
    pub(super) fn request_started(&self, halves: usize) {
        self.halves.fetch_add(halves, Ordering::Relaxed);
    }

    /// Records whether the incomplete head waits for the memory budget. When it stops waiting, the header timeout
    /// starts again if the connection has requests in progress, because those may be what holds the memory.
    pub(super) fn set_awaits_memory(&self, is_waiting: bool) {
        let was_waiting = self.awaits_memory.swap(is_waiting, Ordering::Relaxed);
        if was_waiting && !is_waiting && self.halves.load(Ordering::Relaxed) > 0 {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// The head is complete, or there is none.
    pub(super) fn head_finished(&self) {
        self.head_since.store(NEVER, Ordering::Relaxed);
    }

    /// Whether a head is incomplete.
    pub(super) fn is_in_head(&self) -> bool {
        self.head_since.load(Ordering::Relaxed) != NEVER
    }

    /// A request body or a response has finished.
    pub(super) fn half_finished(&self) {
        if self.halves.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle_since.store(self.now(), Ordering::Release);
        }
    }

    /// Counts a poll of the connection by its task. What the tasks of its requests did before is visible now.
    pub(super) fn count_poll(&self) {
        self.polls.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn polls(&self) -> usize {
        self.polls.load(Ordering::Relaxed)
    }

    /// HTTP/2: a request was accepted. Its task starts later.
    pub(super) fn request_accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// HTTP/2: the task of a request was polled for the first time, or was dropped. Its memory is charged now.
    pub(super) fn request_task_started(&self) {
        self.tasks_started.fetch_add(1, Ordering::Relaxed);
    }

    /// HTTP/2: whether the tasks of all accepted requests have started.
    pub(super) fn all_request_tasks_started(&self) -> bool {
        self.tasks_started.load(Ordering::Relaxed) >= self.accepted.load(Ordering::Relaxed)
    }

    /// HTTP/2: a response is complete, or its request was cancelled.
    pub(super) fn stream_finished(&self, is_complete: bool) {
        let count = if is_complete { &self.finished } else { &self.cancelled };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the client cancels too many requests (CVE-2023-44487, HTTP/2 Rapid Reset).
    pub(super) fn exceeds_cancel_limit(&self) -> bool {
        let cancelled = self.cancelled.load(Ordering::Relaxed);
        cancelled > MAX_CANCELLED && cancelled > self.finished.load(Ordering::Relaxed)
    }

    /// HTTP/2: a response waits for the client's flow-control window until the returned value is dropped. `has_read`:
    /// whether the client has read some of that response since the previous wait.
    pub(super) fn response_stalled(self: &Arc<Self>, has_read: bool) -> StalledResponse {
        if self.stalled.fetch_add(1, Ordering::Relaxed) == 0 || has_read {
            self.stalled_since.store(self.now(), Ordering::Relaxed);
        }
        StalledResponse(Arc::clone(self))
    }

    /// HTTP/2: records whether there are streams whose response has not been written completely.
    pub(super) fn set_has_open_streams(&self, has_some: bool) {
        self.has_open_streams.store(has_some, Ordering::Relaxed);
    }

    /// HTTP/2: whether no stream is open and no head is incomplete.
    pub(super) fn is_between_requests(&self) -> bool {
        !self.has_open_streams.load(Ordering::Relaxed) && !self.is_in_head()
    }

    /// HTTP/1: the fast path has written a response.
    pub(super) fn fast_path_responded(&self) {
        self.idle_since.store(self.now(), Ordering::Release);
    }

    /// Whether no request is in progress and no write is blocked.
    pub(super) fn is_free(&self) -> bool {
        self.halves.load(Ordering::Acquire) == 0 && !self.is_blocked()
    }

    /// Whether bytes wait to be written because the client does not read.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_since.load(Ordering::Relaxed) != NEVER
    }

    /// The connection's state, for shedding.
    pub(super) fn state(&self) -> ActivityState {
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

    /// Records the result of a write.
    pub(super) fn record_write(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Pending => self.write_blocked(),
            Poll::Ready(Ok(1..)) => self.write_succeeded(),
            Poll::Ready(_) => {}
        }
        written
    }

    /// If the write had been blocked, the idle time starts now.
    fn write_succeeded(&self) {
        if self.blocked_since.load(Ordering::Relaxed) != NEVER {
            self.blocked_since.store(NEVER, Ordering::Relaxed);
            self.idle_since.store(self.now(), Ordering::Relaxed);
            if let Some(waker) = self.unblocked.lock().take() {
                waker.wake();
            }
        }
    }

    /// Waits until the kernel has taken all bytes of earlier writes.
    pub(super) fn poll_unblocked(&self, context: &Context<'_>) -> Poll<()> {
        if self.blocked_since.load(Ordering::Relaxed) == NEVER {
            return Poll::Ready(());
        }
        *self.unblocked.lock() = Some(context.waker().clone());
        Poll::Pending
    }

    /// HTTP/1: records whether the read buffer has grown large.
    pub(super) fn set_has_large_buffer(&self, is_large: bool) {
        self.has_large_buffer.store(is_large, Ordering::Relaxed);
    }

    /// HTTP/1: whether to free hyper's memory now. The connection must be between requests, and either have been idle
    /// for a while or have a large buffer.
    pub(super) fn should_free_memory(&self) -> bool {
        let is_due = self.has_large_buffer.load(Ordering::Relaxed) || self.idle_delay_passed.load(Ordering::Relaxed);
        let is_allowed = self.is_free() && !self.is_in_head() && !self.has_unread_body.load(Ordering::Relaxed);
        is_due && is_allowed
    }

    /// HTTP/1: when to check again whether memory can be freed. `None` if it can be freed now.
    fn free_memory_at(&self, now: Instant) -> Option<Instant> {
        let free_at = self.moment(self.idle_since.load(Ordering::Acquire)) + IDLE_BEFORE_FREE;
        if !self.is_free() || self.is_in_head() {
            return Some(now + IDLE_BEFORE_FREE);
        }
        if free_at > now {
            return Some(free_at);
        }
        self.idle_delay_passed.store(true, Ordering::Relaxed);
        None
    }

    /// A request was answered before its whole body was received. hyper reads or refuses the rest. Nothing else may
    /// take the rest for a new request.
    pub(super) fn body_left_unread(&self) {
        self.has_unread_body.store(true, Ordering::Relaxed);
    }

    /// HTTP/1: memory was freed, or the connection is active again.
    pub(super) fn memory_freed(&self) {
        self.has_large_buffer.store(false, Ordering::Relaxed);
        self.idle_delay_passed.store(false, Ordering::Relaxed);
    }

    /// Why the gateway made the connection fail. `None` if the client closed it.
    pub(super) fn end_cause(&self) -> Option<EndCause> {
        if self.read_side.has_ended_connection() {
            return Some(EndCause::HalfClose);
        }
        self.exceeds_cancel_limit().then_some(EndCause::Resets)
    }

    fn write_blocked(&self) {
        if self.blocked_since.load(Ordering::Relaxed) == NEVER {
            self.blocked_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// The earliest time at which anything can be due.
    pub(super) fn first_deadline(&self, timeouts: &ConnectionTimeouts) -> Instant {
        self.began + timeouts.soonest().min(IDLE_BEFORE_FREE)
    }

    /// What has to be done now, and if nothing, when to check again. `closing`: since when the client has been notified
    /// that the connection ends.
    pub(super) fn check_timeouts(
        &self,
        timeouts: &ConnectionTimeouts,
        is_http2: bool,
        closing: Option<Instant>,
    ) -> TimeoutAction {
        let now = Clock::System.timer_now();
        // A state that is not set now may be set at any time and is due no earlier than this.
        let mut next = now + timeouts.soonest();
        if !is_http2 && let Some(free_at) = self.free_memory_at(now) {
            next = next.min(free_at);
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
        if blocked_since != NEVER && is_due(blocked_since, timeouts.write) {
            return TimeoutAction::Close(EndCause::Write);
        }
        let waits_for_memory = is_busy && self.awaits_memory.load(Ordering::Relaxed);
        if head_since != NEVER && !waits_for_memory && is_due(head_since, timeouts.head) {
            return TimeoutAction::Close(EndCause::Head);
        }
        if is_busy || blocked_since != NEVER {
            return TimeoutAction::Wait(next);
        }
        match closing {
            // In HTTP/2, a request that arrives now is still answered, so an incomplete head does not delay closing.
            None if (is_http2 || head_since == NEVER) && is_due(idle_since, timeouts.idle) => {
                return TimeoutAction::CloseGracefully;
            }
            None => {}
            Some(closing) => {
                let closing = closing.saturating_duration_since(self.began).as_nanos();
                let since = idle_since.max(u64::try_from(closing).unwrap_or(NEVER - 1));
                let limit = if head_since == NEVER { CLOSE_TIMEOUT.min(timeouts.write) } else { timeouts.head };
                if is_due(since, limit) {
                    return TimeoutAction::Close(EndCause::CloseTimeout);
                }
            }
        }
        TimeoutAction::Wait(next)
    }
}
