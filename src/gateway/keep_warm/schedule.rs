//! The schedule of keep warm: which request is sent next with each access key, and when. It makes no call. Pure: the
//! time, random numbers and what is in memory are arguments.
//!
//! A request is due after nine tenths of the lifetime of its entry, or of its caller's grant in that scope, whichever
//! ends first. A call for one request also proves the caller for the others of its scope. So of the requests that are due,
//! the one whose entry ends first is sent.
//!
//! With each key, one call is made at a time. After calls without an answer, the key and the request wait, and longer
//! after each further one.

use std::time::{Duration, Instant};

use crate::cache::grants::backoff_after;
use crate::config::keep_warm::SPENT;

/// If upstream has accepted a key for no client, it is tried once at a random moment of this time.
pub(super) const FIRST_TRY: Duration = Duration::from_secs(5 * 60);

/// The shortest time between two calls for one request, if upstream gives its responses a shorter lifetime than the
/// settings do. A response with a lifetime below this is not kept fresh.
const MIN_INTERVAL: Duration = Duration::from_secs(30);

/// How long to wait if a call could not be made, for example because a client makes the same one.
const RECHECK: Duration = Duration::from_secs(1);

/// When something begins to be valid, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetime {
    pub(super) begin: Instant,
    pub(super) length: Duration,
}

impl Lifetime {
    fn due(&self) -> Instant {
        self.begin + self.length.mul_f64(SPENT)
    }
}

/// What memory has for a request. `None` if there is nothing that its caller may be given.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Warmth {
    pub(super) entry: Option<Lifetime>,
    pub(super) grant: Option<Lifetime>,
    /// Whether the gateway backs off.
    pub(super) is_backing_off: bool,
}

impl Warmth {
    /// When a call is due. `None`: at once.
    fn due(&self) -> Option<Instant> {
        Some(self.entry?.due().min(self.grant?.due()))
    }

    /// Whether a call is due now, and may be made.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        !self.is_backing_off && self.due().is_none_or(|due| due <= now)
    }
}

/// What is known about an access key.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyFacts {
    /// The number of the latest call of a client that upstream has accepted.
    pub(super) accepted_call: Option<u64>,
    /// Whether upstream has refused no call with the key since it last accepted one.
    pub(super) needs_no_trial: bool,
}

/// How a call has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallResult {
    /// It has proved the caller. `fresh`: how long its response is fresh. `None` if it was not stored.
    Proved { fresh: Option<Duration> },
    /// Upstream has answered with something else, which an early repetition would not change.
    Answered,
    /// There was no good answer. `retry_after`: upstream's `Retry-After`.
    Failed { retry_after: Option<Duration> },
    /// Upstream has refused it. `calls`: the number of calls with the key that had been begun by then.
    Refused { calls: u64 },
    /// It was not made, because it was not needed any more or must not be made now.
    NotSent,
}

/// What to do for an access key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<Q> {
    /// Send this request, and report how the call has ended.
    Call(Q),
    /// Look again at this time.
    Wait(Instant),
    /// Look again when something has changed.
    WaitForChange,
}

pub(super) struct Schedule<K, Q> {
    keys: Vec<WarmKey<K, Q>>,
}

struct WarmKey<K, Q> {
    id: K,
    state: KeyState,
    /// After failures of different requests in a row.
    backoff: Backoff,
    last_failed: Option<Q>,
    is_calling: bool,
    requests: Vec<WarmRequest<Q>>,
}

#[derive(Clone, Copy)]
enum KeyState {
    /// Upstream has not accepted the key yet.
    NotStarted {
        try_at: Instant,
    },
    Running,
    /// Upstream has refused a call of keep warm, when this number of calls had been begun.
    Stopped {
        calls: u64,
    },
}

struct WarmRequest<Q> {
    request: Q,
    /// The spacing of its calls that the settings lead to.
    interval: Duration,
    not_before: Instant,
    backoff: Backoff,
}

#[derive(Clone, Copy)]
struct Backoff {
    failures: u32,
    until: Instant,
}

impl Backoff {
    fn none(now: Instant) -> Self {
        Self { failures: 0, until: now }
    }

    fn add_failure(&mut self, retry_after: Option<Duration>, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.until = now + backoff_after(self.failures).max(retry_after.unwrap_or_default());
    }
}

impl<K: Eq + Clone, Q: Eq + Clone> Schedule<K, Q> {
    pub(super) fn new() -> Self {
        Self { keys: Vec::new() }
    }

    pub(super) fn keys(&self) -> Vec<K> {
        self.keys.iter().map(|key| key.id.clone()).collect()
    }

    /// Replaces the requests. Each has its key and its interval. What is known of keys and requests that remain is kept.
    /// `random` gives numbers from 0 to 1.
    pub(super) fn set(&mut self, requests: Vec<(K, Q, Duration)>, now: Instant, mut random: impl FnMut() -> f64) {
        let mut before = std::mem::take(&mut self.keys);
        for (id, request, interval) in requests {
            let found = before.iter_mut().find(|key| key.id == id);
            let known = found.and_then(|key| {
                let index = key.requests.iter().position(|known| known.request == request)?;
                Some(key.requests.swap_remove(index))
            });
            let request = match known {
                // An equal request may have been built with newer settings.
                Some(known) => WarmRequest { request, interval, ..known },
                None => WarmRequest { request, interval, not_before: now, backoff: Backoff::none(now) },
            };
            if let Some(key) = self.keys.iter_mut().find(|key| key.id == id) {
                key.requests.push(request);
                continue;
            }
            let (state, backoff, is_calling) = match before.iter().find(|key| key.id == id) {
                Some(key) => (key.state, key.backoff, key.is_calling),
                None => (KeyState::NotStarted { try_at: now + FIRST_TRY.mul_f64(random()) }, Backoff::none(now), false),
            };
            self.keys.push(WarmKey { id, state, backoff, last_failed: None, is_calling, requests: vec![request] });
        }
    }

    /// What to do now for a key.
    pub(super) fn next(&mut self, id: &K, facts: KeyFacts, warmth: impl Fn(&Q) -> Warmth, now: Instant) -> Next<Q> {
        let Some(key) = self.keys.iter_mut().find(|key| key.id == *id) else { return Next::WaitForChange };
        match key.state {
            KeyState::NotStarted { .. } if facts.accepted_call.is_some() => key.state = KeyState::Running,
            KeyState::Stopped { calls } if facts.accepted_call.is_some_and(|number| number > calls) => {
                key.state = KeyState::Running;
            }
            _ => {}
        }
        if key.is_calling || !facts.needs_no_trial {
            return Next::WaitForChange;
        }
        match key.state {
            KeyState::Running => {}
            KeyState::NotStarted { try_at } if try_at <= now => {}
            KeyState::NotStarted { try_at } => return Next::Wait(try_at),
            KeyState::Stopped { .. } => return Next::WaitForChange,
        }
        if key.backoff.until > now {
            return Next::Wait(key.backoff.until);
        }
        let times = key.requests.iter().map(|it| {
            let warmth = warmth(&it.request);
            let earliest = it.not_before.max(it.backoff.until);
            let earliest = if warmth.is_backing_off { earliest.max(now + RECHECK) } else { earliest };
            (warmth.due().map_or(earliest, |due| due.max(earliest)), warmth.entry.map(|entry| entry.due()), it)
        });
        let times: Vec<_> = times.collect();
        // One that fails again and again must not keep the others from their turn. No entry comes before any entry.
        let order = |(_, entry, it): &(Instant, Option<Instant>, &WarmRequest<Q>)| (it.backoff.failures, *entry);
        let first = times.iter().filter(|(due, ..)| *due <= now).min_by_key(|it| order(it));
        match first {
            Some((.., it)) => {
                key.is_calling = true;
                Next::Call(it.request.clone())
            }
            None => times.iter().map(|(due, ..)| *due).min().map_or(Next::WaitForChange, Next::Wait),
        }
    }

    /// Records how a call has ended.
    pub(super) fn ended(&mut self, id: &K, request: &Q, result: CallResult, now: Instant) {
        let Some(key) = self.keys.iter_mut().find(|key| key.id == *id) else { return };
        key.is_calling = false;
        if let CallResult::Proved { .. } | CallResult::Answered = result {
            key.state = KeyState::Running;
            (key.backoff, key.last_failed) = (Backoff::none(now), None);
        }
        if let CallResult::Failed { retry_after } = result {
            // A request that fails alone delays the others only a little.
            if key.last_failed.replace(request.clone()).as_ref() == Some(request) {
                key.backoff.failures = key.backoff.failures.saturating_sub(1);
            }
            key.backoff.add_failure(retry_after, now);
        }
        if let CallResult::Refused { calls } = result {
            key.state = KeyState::Stopped { calls };
        }
        let Some(it) = key.requests.iter_mut().find(|it| it.request == *request) else { return };
        let shortest = MIN_INTERVAL.min(it.interval / 2);
        match result {
            CallResult::Proved { fresh: Some(fresh) } if fresh >= shortest => it.not_before = now + shortest,
            // It cannot be kept fresh.
            CallResult::Proved { .. } | CallResult::Answered | CallResult::Refused { .. } => {
                it.not_before = now + it.interval;
            }
            CallResult::Failed { retry_after } => it.backoff.add_failure(retry_after, now),
            CallResult::NotSent => it.not_before = now + RECHECK,
        }
        if let CallResult::Proved { .. } | CallResult::Answered = result {
            it.backoff = Backoff::none(now);
        }
    }
}

#[cfg(test)]
mod tests;
