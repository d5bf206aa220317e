//! Which limits may hold back a caller, and what they forbid. Calls are not counted exactly: a limit holds nobody back
//! for longer than is said here, and lets no more calls through.

use super::super::super::domain::{
    CacheRequest, CallerId, Failure, Ms, RequestId, SECOND, UpstreamResult, scope_of, service_of,
};
use super::super::super::limits::{Limit, Policy, asked_wait};
use super::super::{FlightId, Rules};
use super::{Paced, Request, State};

/// How long the gateway may not notice that a clock has jumped, by timers.
const UNNOTICED: Ms = 10 * SECOND;

/// A limit that upstream has named. It may have ended since.
pub(super) struct Known {
    limit: Limit,
    service: usize,
    /// The callers that have met it.
    met_by: Vec<CallerId>,
    refused: Ms,
}

/// A 429 that names no limit has asked a caller to wait.
pub(super) struct Asked {
    caller: CallerId,
    service: usize,
    at: Ms,
    until: Ms,
    /// Whether the gateway has followed it: it holds the caller's calls.
    is_followed: bool,
}

/// A call, or a relayed request.
pub(super) struct Sent {
    flight: FlightId,
    caller: CallerId,
    service: usize,
    /// An unsafe method is another API than the list.
    is_unsafe: bool,
    at: Ms,
    /// Whether it may not count: it was answered with a 429, or there was no connection to upstream.
    may_not_count: bool,
}

impl Sent {
    pub(super) fn new(flight: FlightId, request: &CacheRequest, at: Ms) -> Self {
        let CacheRequest { caller, key, is_unsafe, .. } = *request;
        Self { flight, caller, service: service_of(key), is_unsafe, at, may_not_count: false }
    }
}

/// How long a call counts at most: a little longer than the window.
fn span(limit: Limit) -> Ms {
    limit.window + (limit.window / 50).min(100) + limit.window / 512 + 1
}

/// Whether a limit counts the calls of a caller. `of`: the caller whose limit it is, if it is one caller's.
fn counts(limit: Limit, of: CallerId, sent: &Sent) -> bool {
    match limit.policy {
        Policy::User => sent.caller == of,
        Policy::Ip => true,
        Policy::Api => !sent.is_unsafe,
    }
}

impl Paced {
    pub(super) fn note_jump(&mut self) {
        self.unnoticed_until = self.now - self.jumped + UNNOTICED;
    }

    /// Whether the gateway may not have noticed that a clock has jumped.
    pub(super) fn is_unnoticed(&self) -> bool {
        self.now - self.jumped <= self.unnoticed_until
    }

    /// A call ends, perhaps with a 429 that names a limit.
    pub(super) fn learn(&mut self, flight: FlightId, caller: CallerId, service: usize, result: &UpstreamResult) {
        let is_unreached = matches!(result, UpstreamResult::Failed(Failure::Connect | Failure::Unreachable));
        let is_throttled = matches!(result, UpstreamResult::Complete { status: 429, .. });
        let now = self.now;
        if is_unreached || is_throttled {
            self.sent.iter_mut().filter(|sent| sent.flight == flight).for_each(|sent| sent.may_not_count = true);
        }
        if !is_throttled {
            return;
        }
        if let Some(after) = asked_wait(result) {
            self.count("asked to wait without a limit");
            self.asked.push(Asked { caller, service, at: now, until: now + after, is_followed: false });
        }
        let Some(limit) = Limit::named_in(result) else { return };
        let is_same = |known: &&Known| {
            let (is_policy, is_service) = (known.limit.policy == limit.policy, known.service == service);
            is_policy && is_service && (limit.policy.is_shared() || known.met_by == [caller])
        };
        let latest = self.known.iter().filter(is_same).max_by_key(|known| known.refused).map(|known| known.limit);
        self.count(match latest {
            None => "learnt limit",
            Some(latest) if latest == limit => "met a known limit",
            Some(_) => "changed limit",
        });
        let is_it = |known: &&mut Known| known.limit == limit && (limit.policy.is_shared() || known.met_by == [caller]);
        match self.known.iter_mut().filter(|known| known.service == service).find(is_it) {
            Some(known) => {
                known.refused = now;
                if !known.met_by.contains(&caller) {
                    known.met_by.push(caller);
                }
            }
            None => self.known.push(Known { limit, service, met_by: vec![caller], refused: now }),
        }
    }

    /// The limits that may bind a caller, and when each last refused a call. A learnt limit of all callers binds a
    /// proved caller only if that caller has met it, or two callers have.
    fn binding(&self, caller: CallerId, service: usize, is_proved: bool) -> impl Iterator<Item = (Limit, Option<Ms>)> {
        let learnt = self.known.iter().filter(move |known| {
            let has_met = known.met_by.contains(&caller);
            let binds = match known.limit.policy {
                Policy::User => has_met,
                Policy::Ip | Policy::Api => has_met || !is_proved || self.is_known_to_two(known),
            };
            known.service == service && binds
        });
        let learnt = learnt.map(|known| (known.limit, Some(known.refused)));
        // What upstream says does not change a configured limit, but may block it.
        let configured = self.configured.map(|limit| {
            let is_it = |known: &&Known| known.limit.policy == limit.policy && known.service == service;
            let concerns = |known: &&Known| limit.policy.is_shared() || known.met_by == [caller];
            (limit, self.known.iter().filter(is_it).filter(concerns).map(|known| known.refused).max())
        });
        learnt.chain(configured)
    }

    /// Whether two callers have met a limit. If its numbers have changed between, it is still the same.
    fn is_known_to_two(&self, known: &Known) -> bool {
        let is_same = |other: &&Known| other.limit.policy == known.limit.policy && other.service == known.service;
        let mut callers: Vec<_> = self.known.iter().filter(is_same).flat_map(|other| other.met_by.clone()).collect();
        callers.sort_unstable();
        callers.dedup();
        callers.len() >= 2
    }

    /// Whether a limit may hold back the call for a request.
    pub(super) fn may_be_held(&self, it: &Request, rules: &Rules) -> bool {
        let (caller, service) = (it.request.caller, service_of(it.request.key));
        let is_asked = |asked: &Asked| {
            let is_over = asked.until + 1 < self.now && !self.is_unnoticed();
            (asked.caller, asked.service) == (caller, service) && !is_over
        };
        self.asked.iter().any(is_asked) || self.may_be_held_by(it, rules, |_| true)
    }

    /// Whether a request may wait for the call of another one that a limit of all callers holds back. Such a limit may
    /// bind that caller only. A caller that a limit of its own holds back leads nobody.
    pub(super) fn may_share_held_call(&self, it: &Request, rules: &Rules) -> bool {
        let may_share = |other: &&Request| {
            let is_waiting = other.state == State::Waiting && !other.is_relay() && other.request.id != it.request.id;
            is_waiting && other.fetch_keys.iter().any(|key| it.fetch_keys.contains(key))
        };
        let mut others = self.requests.iter().filter(may_share);
        others.any(|other| self.may_be_held_by(other, rules, Policy::is_shared))
    }

    /// Whether one of some limits may hold back the call for a request.
    fn may_be_held_by(&self, it: &Request, rules: &Rules, is_one: fn(Policy) -> bool) -> bool {
        let (caller, service) = (it.request.caller, service_of(it.request.key));
        // The limits of relayed requests are no matter of these rules: they may be held back at any time.
        let is_relayed = it.is_relay() || it.may_be_relayed;
        let is_unnoticed = self.is_unnoticed() || is_relayed;
        let is_proved = it.was_granted && !is_relayed && rules.is_granted((caller, scope_of(it.request.key)));
        // Other calls that wait may go before it.
        let others = self.requests.iter().filter(|other| {
            let may_call =
                other.state == State::Waiting || other.state == State::Disconnected || other.background.is_some();
            other.request.id != it.request.id && service_of(other.request.key) == service && may_call
        });
        // A limit of all callers may hold back a call of this caller as that of an unproved one. The caller's own limit
        // counts that call, and holds back the others.
        let is_shared = |known: &Known| known.limit.policy.is_shared() && known.service == service;
        let is_unsent = |id: RequestId| rules.calls.iter().all(|call| call.id != id);
        let is_unproved =
            |other: &Request| other.request.caller == caller && !other.was_granted && is_unsent(other.request.id);
        let is_behind = self.known.iter().any(is_shared) && others.clone().any(is_unproved);
        let others: Vec<_> = others.map(|other| other.request.caller).collect();
        let mut binding = self.binding(caller, service, is_proved).filter(|(limit, _)| is_one(limit.policy));
        binding.any(|(limit, refused)| {
            let Limit { policy, calls, .. } = limit;
            let span = span(limit);
            let is_recent =
                |sent: &&Sent| sent.service == service && counts(limit, caller, sent) && sent.at + span > self.now;
            let sent = self.sent.iter().filter(is_recent).count();
            let ahead = others.iter().filter(|other| policy.is_shared() || **other == caller).count();
            let most = if policy.is_shared() && !is_proved { (calls / 4).max(1) } else { calls };
            let is_full = (sent > 0 || is_behind && !policy.is_shared()) && sent + ahead >= most;
            is_full || refused.is_some_and(|refused| refused + span > self.now) || is_unnoticed
        })
    }

    /// A request waits after a 429 that has just come.
    pub(super) fn follow_wait(&mut self, caller: CallerId, service: usize) {
        let now = self.now;
        let is_it = |asked: &&mut Asked| (asked.caller, asked.service, asked.at) == (caller, service, now);
        self.asked.iter_mut().filter(is_it).for_each(|asked| asked.is_followed = true);
    }

    /// When limits may let calls through again.
    pub(super) fn release_times(&self) -> impl Iterator<Item = Ms> {
        let limits = self.known.iter().map(|known| known.limit).chain(self.configured);
        let windows: Vec<_> = limits.map(|limit| limit.window + (limit.window / 50).min(100)).collect();
        let latest = self.sent.iter().rev().take(4).map(|sent| sent.at);
        let asked = self.asked.iter().rev().take(4).map(|asked| asked.until);
        let ends = latest.flat_map(move |at| windows.iter().map(move |window| at + window).collect::<Vec<_>>());
        ends.chain(asked)
    }

    /// A call for a list starts.
    ///
    /// # Errors
    /// If upstream would refuse it because of a limit that the gateway knows: a configured one, or one of this caller
    /// that was in force until now.
    pub(super) fn check_limits(&self, id: RequestId, caller: CallerId, service: usize) -> Result<(), String> {
        let of_caller = |known: &&Known| known.limit.policy == Policy::User && known.met_by == [caller];
        let latest = self.known.iter().filter(of_caller).filter(|known| known.service == service);
        let latest = latest.max_by_key(|known| known.refused);
        let in_force = latest.filter(|known| known.refused + 2 * known.limit.window >= self.now);
        let is_followed = |asked: &Asked| {
            (asked.caller, asked.service) == (caller, service) && asked.is_followed && asked.until > self.now
        };
        // A call that a limit of all callers holds back has passed this.
        let is_shared =
            self.known.iter().map(|known| known.limit).chain(self.configured).any(|it| it.policy.is_shared());
        if !is_shared && self.asked.iter().any(is_followed) {
            return Err(format!("#{id} starts a call although upstream has asked caller {caller} to wait"));
        }
        let is_configured = self.configured.is_some_and(|configured| configured.policy == Policy::User);
        let learnt = in_force.filter(|_| !is_configured).map(|known| known.limit);
        for limit in self.configured.into_iter().chain(learnt) {
            let counting = self.sent.iter().filter(|sent| {
                let is_recent = sent.service == service && sent.at + limit.window > self.now;
                is_recent && counts(limit, caller, sent) && !sent.may_not_count
            });
            if counting.count() >= limit.calls {
                return Err(format!("#{id} starts a call that {limit:?} does not allow"));
            }
        }
        Ok(())
    }
}
