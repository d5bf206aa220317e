//! The calls that a quota has counted, and which of them are in the window.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::catalogue::Quota;

/// Which calls count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaWindow {
    /// Those since the last multiple of the window after or before the origin.
    Fixed { origin: Instant },
    /// Those within the window before each call.
    Sliding,
}

impl QuotaWindow {
    /// The age of the oldest call that counts, exclusive.
    fn reach(self, window: Duration, now: Instant) -> Duration {
        match self {
            Self::Fixed { origin } => {
                let since_begin = since_begin(origin, window, now);
                since_begin.saturating_add(Duration::from_nanos(1))
            }
            Self::Sliding => window,
        }
    }
}

/// How much of a fixed window has passed: less than the window.
fn since_begin(origin: Instant, window: Duration, now: Instant) -> Duration {
    let remainder = |time: Duration| {
        let nanoseconds = time.as_nanos() % window.as_nanos();
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    };
    match now.checked_duration_since(origin) {
        Some(since) => remainder(since),
        None => {
            let until_origin = remainder(origin.duration_since(now));
            if until_origin.is_zero() { until_origin } else { window - until_origin }
        }
    }
}

/// The times must not decrease from call to call.
#[derive(Default)]
pub(super) struct Counter {
    /// In order of time, with the number of calls.
    calls: VecDeque<(Instant, u32)>,
    used: u32,
}

impl Counter {
    /// Removes the calls that are no longer in the window.
    pub(super) fn forget(&mut self, window: Duration, kind: QuotaWindow, now: Instant) {
        let reach = kind.reach(window, now);
        while let Some((_, calls)) = self.calls.pop_front_if(|(at, _)| now.duration_since(*at) >= reach) {
            self.used -= calls;
        }
    }

    pub(super) fn add(&mut self, calls: u32, now: Instant) {
        match self.calls.back_mut() {
            Some((at, last)) if *at == now => *last += calls,
            _ => self.calls.push_back((now, calls)),
        }
        self.used += calls;
    }

    /// The number of calls that were not removed.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// How long until more is accepted. Calls that are no longer in the window must have been removed.
    pub(super) fn reset(&self, quota: Quota, kind: QuotaWindow, now: Instant) -> Duration {
        let Quota { calls: limit, window } = quota;
        if let QuotaWindow::Fixed { origin } = kind {
            return window - since_begin(origin, window, now);
        }
        // More than one call must leave if the limit was lowered.
        let mut excess = self.used.saturating_sub(limit - 1).max(1);
        for (at, calls) in &self.calls {
            if *calls >= excess {
                return window - now.duration_since(*at);
            }
            excess -= calls;
        }
        window
    }
}
