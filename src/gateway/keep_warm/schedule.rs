//! The schedule of keep warm: which request is sent next with each access key, and when. It makes no call. Pure: the
//! time, random numbers and what is in memory are arguments.
//!
//! A request is due after nine tenths of the lifetime of its entry, or of its caller's grant in that scope, whichever
//! ends first. A call for one request also proves the caller for the others of its scope. So of the requests that are due,
//! the one whose entry ends first is sent.
//!
//! An entry or grant that ends early, because a client has invalidated the scope for example, is not replaced before the
//! request's interval has passed since its last call. Otherwise clients could cause more calls than `check` prints. A
//! purge is the operator's, and is followed by calls at once. If there is another purge during such a call, the next
//! one is made after the shortest time between two calls.
//!
//! With each key, one call is made at a time. One that a limit of upstream would hold back is not begun, so that the
//! others do not wait for it. After calls without an answer, the key and the request wait, and longer after each further
//! one.

use std::time::{Duration, Instant};

use crate::cache::grants::backoff_after;
use crate::cache::unstorable::Unstorable;
use crate::config::keep_warm::RESEND_AFTER;

/// If upstream has accepted a key for no client, it is tried once at a random moment of this time.
pub(super) const FIRST_TRY: Duration = Duration::from_secs(5 * 60);

/// The shortest time between two calls for one request, if upstream gives its responses a shorter lifetime than the
/// settings do. A response with a lifetime below this is not kept fresh.
const MIN_INTERVAL: Duration = Duration::from_secs(30);

/// How long to wait if a call could not be made, for example because a client makes the same one.
const RECHECK: Duration = Duration::from_secs(1);

/// When something begins to be valid, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Validity {
    pub(super) begin: Instant,
    pub(super) length: Duration,
}

impl Validity {
    fn due(&self) -> Instant {
        self.begin + self.length.mul_f64(RESEND_AFTER)
    }
}

/// What memory has for a request. `None` if there is nothing that its caller may be given.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StoredState {
    pub(super) entry: Option<Validity>,
    pub(super) grant: Option<Validity>,
    /// When entries were last purged.
    pub(super) purged: Option<Instant>,
    /// Whether the gateway backs off.
    pub(super) is_backing_off: bool,
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
    /// It was sent at this time, and has proved the caller. `not_stored`: why its response was not stored.
    Proved { sent: Instant, not_stored: Option<Unstorable> },
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
pub(super) enum Next<C> {
    /// Make this call, and report how it has ended.
    Call(C),
    /// Look again at this time.
    Wait(Instant),
    /// Look again when something has changed.
    WaitForChange,
}

pub(super) struct Schedule<K, Q> {
    keys: Vec<KeySchedule<K, Q>>,
}

struct KeySchedule<K, Q> {
    id: K,
    state: KeyState,
    /// Upstream has refused a call, maybe of a client, so that a client's call must try the key first.
    needs_trial: bool,
    /// Whether there was an event for it since nothing is sent.
    is_stop_reported: bool,
    /// After failures of different requests in a row.
    backoff: Backoff,
    last_failed: Option<Q>,
    is_calling: bool,
    requests: Vec<RequestSchedule<Q>>,
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

struct RequestSchedule<Q> {
    request: Q,
    timing: Timing,
}

/// What decides when a call for a request is due.
#[derive(Clone, Copy)]
pub(super) struct Timing {
    /// The spacing of the calls that the settings lead to.
    interval: Duration,
    not_before: Instant,
    /// When the last call that upstream has answered was sent, and when it ended.
    answered: Option<(Instant, Instant)>,
    /// If its response was not stored: when that call was sent.
    unstored: Option<Instant>,
    /// Whether there was a purge during the last proof.
    was_purged: bool,
    backoff: Backoff,
}

impl Timing {
    fn new(interval: Duration, now: Instant) -> Self {
        let backoff = Backoff::none(now);
        Self { interval, not_before: now, answered: None, unstored: None, was_purged: false, backoff }
    }

    /// The shortest time between two calls. An entry with a shorter lifetime is not kept fresh.
    fn shortest(&self) -> Duration {
        MIN_INTERVAL.min(self.interval / 2)
    }

    /// Whether a call that was due is still needed, and may be made.
    pub(super) fn is_due(&self, state: StoredState, now: Instant) -> bool {
        self.due(state, now).0 <= now
    }

    /// When a call is due, and when the entry alone would need one.
    fn due(&self, state: StoredState, now: Instant) -> (Instant, Instant) {
        let earliest = self.not_before.max(self.backoff.until);
        let earliest = if state.is_backing_off { earliest.max(now + RECHECK) } else { earliest };
        let if_missing = match self.answered {
            Some((sent, ended)) if state.purged.is_none_or(|purged| purged <= sent) => ended + self.interval,
            _ => earliest,
        };
        let entry = state.entry.filter(|entry| self.can_be_fresh(entry)).map_or(if_missing, |entry| entry.due());
        let grant = state.grant.map_or(if_missing, |grant| grant.due());
        (entry.min(grant).max(earliest), entry)
    }

    /// Whether calls can keep an entry fresh. They cannot if the last one has not replaced it, or if its lifetime is too
    /// short.
    fn can_be_fresh(&self, entry: &Validity) -> bool {
        entry.length >= self.shortest() && self.unstored.is_none_or(|sent| entry.begin > sent)
    }

    fn ended(&mut self, result: CallResult, now: Instant) {
        match result {
            CallResult::Proved { sent, not_stored } => {
                let is_purged = not_stored == Some(Unstorable::Purged);
                // The next call is made at once, unless this one was already made for that reason.
                if !is_purged || self.was_purged {
                    self.not_before = now + self.shortest();
                }
                self.was_purged = is_purged;
                self.answered = Some((sent, now));
                self.unstored = not_stored.map(|_| sent);
            }
            CallResult::Answered => {
                self.not_before = now + self.interval;
                self.answered = Some((now, now));
            }
            CallResult::Refused { .. } => self.not_before = now + self.interval,
            CallResult::Failed { retry_after } => self.backoff.add_failure(retry_after, now),
            CallResult::NotSent => self.not_before = now + RECHECK,
        }
        if let CallResult::Proved { .. } | CallResult::Answered = result {
            self.backoff = Backoff::none(now);
        }
    }
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

    /// Whether nothing is sent with a key, except for its first try, until upstream accepts a client's call.
    pub(super) fn awaits_client(&self, id: &K) -> bool {
        self.keys.iter().any(|key| key.id == *id && !matches!(key.state, KeyState::Running))
    }

    /// The number of keys with which nothing is sent because upstream has refused a call: the gateway's, or a client's.
    pub(super) fn stopped_keys(&self) -> usize {
        self.keys.iter().filter(|key| key.is_stopped()).count()
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
                Some(known) => RequestSchedule { request, timing: Timing { interval, ..known.timing } },
                None => RequestSchedule { request, timing: Timing::new(interval, now) },
            };
            if let Some(key) = self.keys.iter_mut().find(|key| key.id == id) {
                key.requests.push(request);
                continue;
            }
            let key = match before.iter().find(|key| key.id == id) {
                Some(KeySchedule { state, needs_trial, is_stop_reported, backoff, is_calling, .. }) => KeySchedule {
                    id,
                    state: *state,
                    needs_trial: *needs_trial,
                    is_stop_reported: *is_stop_reported,
                    backoff: *backoff,
                    last_failed: None,
                    is_calling: *is_calling,
                    requests: vec![request],
                },
                None => KeySchedule {
                    id,
                    state: KeyState::NotStarted { try_at: now + FIRST_TRY.mul_f64(random()) },
                    needs_trial: false,
                    is_stop_reported: false,
                    backoff: Backoff::none(now),
                    last_failed: None,
                    is_calling: false,
                    requests: vec![request],
                },
            };
            self.keys.push(key);
        }
    }

    /// Records what is known about a key. Returns whether a client's refused call has stopped it, once for each stop: if
    /// a call of keep warm is in progress, after its end.
    pub(super) fn update(&mut self, id: &K, facts: KeyFacts) -> bool {
        let Some(key) = self.keys.iter_mut().find(|key| key.id == *id) else { return false };
        match key.state {
            KeyState::NotStarted { .. } if facts.accepted_call.is_some() => key.state = KeyState::Running,
            KeyState::Stopped { calls } if facts.accepted_call.is_some_and(|number| number > calls) => {
                key.state = KeyState::Running;
            }
            _ => {}
        }
        key.needs_trial = !facts.needs_no_trial;
        let is_stopped = key.is_stopped();
        // The refused call may be the one that is in progress.
        let reports = is_stopped && !key.is_stop_reported && !key.is_calling;
        key.is_stop_reported = is_stopped && (key.is_stop_reported || reports);
        reports
    }

    /// What to do now for a key. `held`: until when a limit of upstream holds back a call that is due. A call may have to
    /// wait for its turn. Its timing decides whether it is still due then.
    pub(super) fn next(
        &mut self,
        id: &K,
        state: impl Fn(&Q) -> StoredState,
        held: impl Fn(&Q) -> Option<Instant>,
        now: Instant,
    ) -> Next<(Q, Timing)> {
        let Some(key) = self.keys.iter_mut().find(|key| key.id == *id) else { return Next::WaitForChange };
        if key.is_calling || key.is_stopped() {
            return Next::WaitForChange;
        }
        if let KeyState::NotStarted { try_at } = key.state
            && try_at > now
        {
            return Next::Wait(try_at);
        }
        if key.backoff.until > now {
            return Next::Wait(key.backoff.until);
        }
        let times = key.requests.iter().map(|it| {
            let (due, entry_due) = it.timing.due(state(&it.request), now);
            let held = if due <= now { held(&it.request) } else { None };
            (held.unwrap_or(due), entry_due, it)
        });
        let times: Vec<_> = times.collect();
        // One that fails again and again must not keep the others from their turn.
        let order =
            |(_, entry_due, it): &(Instant, Instant, &RequestSchedule<Q>)| (it.timing.backoff.failures, *entry_due);
        let first = times.iter().filter(|(due, ..)| *due <= now).min_by_key(|it| order(it));
        match first {
            Some((.., it)) => {
                key.is_calling = true;
                Next::Call((it.request.clone(), it.timing))
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
            // The caller of this function has the refusal.
            key.is_stop_reported = true;
        }
        if let Some(it) = key.requests.iter_mut().find(|it| it.request == *request) {
            it.timing.ended(result, now);
        }
    }
}

impl<K, Q> KeySchedule<K, Q> {
    /// Whether nothing is sent before upstream accepts a client's call, because it has refused one.
    fn is_stopped(&self) -> bool {
        self.needs_trial || matches!(self.state, KeyState::Stopped { .. })
    }
}

#[cfg(test)]
mod tests;
