//! What a connection is doing, as far as its time limits go. Those who read, write and answer note it here, and
//! one timer per connection asks; so nothing on the way of a request has a timer to set.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::clock::Clock;

/// For a client that is told that its connection ends: this long it may take to go.
const FAREWELL: Duration = Duration::from_secs(5);

/// How many requests a client may take back, provided that they are more than those it lets be answered.
const TAKEN_BACK: usize = 256;

/// How long a client may take for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// From a head's first byte, or the connection's beginning, to the head's end.
    pub(super) head: Duration,
    /// Without a request.
    pub(super) idle: Duration,
    /// To make room for the next part of an answer.
    pub(super) write: Duration,
}

impl Terms {
    fn soonest(&self) -> Duration {
        self.head.min(self.idle).min(self.write)
    }
}

/// What has to be done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing before that moment.
    Wait(Instant),
    /// No request for too long: it ends in good order.
    Idle,
    /// A client that doesn't keep to the terms: it ends at once.
    Drop(Cause),
}

/// Why a connection was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A head that took too long, or never began.
    Head,
    /// No request for too long.
    Idle,
    /// An answer that isn't read.
    Write,
    /// Too many requests that were taken back.
    Resets,
    /// Told that it is over, the client did not go.
    Farewell,
}

impl Cause {
    /// The name used alike as metric label and log field.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Head => "head-timeout",
            Self::Idle => "keepalive-timeout",
            Self::Write => "write-timeout",
            Self::Resets => "resets",
            Self::Farewell => "farewell",
        }
    }
}

/// Moments are counted in nanoseconds from the connection's beginning.
pub(super) struct Pulse {
    began: Instant,
    /// Requests and answers that aren't over, each for itself: an upload may outlast its answer.
    halves: AtomicUsize,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    blocked_since: AtomicU64,
    answered: AtomicUsize,
    taken_back: AtomicUsize,
}

/// The moment of what isn't so.
const NEVER: u64 = u64::MAX;

impl Pulse {
    /// Of a connection that begins now, and owes its first head.
    pub(super) fn new() -> Self {
        Self {
            began: Clock::System.now(),
            halves: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(NEVER),
            answered: AtomicUsize::new(0),
            taken_back: AtomicUsize::new(0),
        }
    }

    fn now(&self) -> u64 {
        let nanos = Clock::System.now().saturating_duration_since(self.began).as_nanos();
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

    /// HTTP/1: a request that never had halves is over.
    pub(super) fn answered_here(&self) {
        self.idle_since.store(self.now(), Ordering::Release);
    }

    /// Whether nothing is being answered, and nothing waits to be written.
    pub(super) fn is_free(&self) -> bool {
        self.halves.load(Ordering::Acquire) == 0 && self.blocked_since.load(Ordering::Relaxed) == NEVER
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
        }
    }

    /// Nothing could be written.
    fn blocked(&self) {
        if self.blocked_since.load(Ordering::Relaxed) == NEVER {
            self.blocked_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// The first moment at which anything can be due.
    pub(super) fn first(&self, terms: &Terms) -> Instant {
        self.began + terms.soonest()
    }

    /// What has to be done at this moment, and if nothing, when to ask again. `closing`: since when the client
    /// has known that the connection ends.
    pub(super) fn judge(&self, terms: &Terms, is_http2: bool, closing: Option<Instant>) -> Verdict {
        let now = Clock::System.now();
        // What isn't so may begin at any time, and be due no earlier than this.
        let mut next = now + terms.soonest();
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
            return Verdict::Drop(Cause::Write);
        }
        if head_since != NEVER && is_due(head_since, terms.head) {
            return Verdict::Drop(Cause::Head);
        }
        if is_busy || blocked_since != NEVER {
            return Verdict::Wait(next);
        }
        match closing {
            // In HTTP/2 whoever is just asking is answered all the same, so that beginnings don't put it off.
            None if (is_http2 || head_since == NEVER) && is_due(idle_since, terms.idle) => return Verdict::Idle,
            None => {}
            Some(closing) => {
                let closing = closing.saturating_duration_since(self.began).as_nanos();
                let since = idle_since.max(u64::try_from(closing).unwrap_or(NEVER - 1));
                let limit = if head_since == NEVER { FAREWELL.min(terms.write) } else { terms.head };
                if is_due(since, limit) {
                    return Verdict::Drop(Cause::Farewell);
                }
            }
        }
        Verdict::Wait(next)
    }
}
