//! Renewals of grants before their end, and requests that wait for their caller's proof.

use super::super::domain::{
    CacheRequest, ExtraHeader, Ms, RequestDirectives, RequestId, SECOND, UpstreamResult, scope_of,
};
use super::super::scripted_upstream::UpstreamRequest;
use super::super::settings::Settings;
use super::look_up::Action;
use super::{CacheKey, Call, CallerScope, Effect, FlightId, Grant, Rules, Waiter};

/// How many proofs of its caller a request waits for. After that it makes its own call.
pub(super) const MAX_PROOFS: u32 = 3;

const FIRST_BACKOFF: Ms = 5 * SECOND;

impl Call {
    /// Whether a request of the same caller and scope waits for this call.
    pub(super) fn proves(&self, request: &CacheRequest) -> bool {
        self.is_proof && self.caller == request.caller && scope_of(self.key) == scope_of(request.key)
    }
}

impl Rules {
    fn counting_grant(&mut self, caller_scope: CallerScope) -> Option<&mut Grant> {
        self.grants.iter_mut().find(|grant| grant.caller_scope == caller_scope && grant.suspended_by.is_empty())
    }

    /// A request arrives that can be answered from memory. Whether its caller's grant should be renewed.
    pub(super) fn use_grant(&mut self, request: &CacheRequest) -> bool {
        let CacheRequest { caller, key, directives, is_unsafe, .. } = *request;
        let caller_scope = (caller, scope_of(key));
        let is_refused = self.refusals.iter().any(|it| it.caller_scope == caller_scope && it.until > self.now);
        if is_unsafe || directives == RequestDirectives::NoStore || is_refused || !self.is_granted(caller_scope) {
            return false;
        }
        let (now, grant_ttl, (shortest, longest)) = (self.now, self.settings.grant_ttl, self.settings.renewal_leads());
        let grant = self.counting_grant(caller_scope).expect("the caller is granted");
        grant.longest_gap = grant.longest_gap.max(now.saturating_sub(grant.last_used));
        grant.last_used = grant.last_used.max(now);
        let left = grant.proved + grant_ttl - now;
        longest > 0 && left <= grant.longest_gap.clamp(shortest, longest) && grant.no_renewal_until <= now
    }

    /// When renewals can become due.
    pub(super) fn renewal_times(&self) -> impl Iterator<Item = Ms> {
        let (shortest, longest) = self.settings.renewal_leads();
        self.grants.iter().flat_map(move |grant| {
            let end = grant.proved + self.settings.grant_ttl;
            [end - grant.longest_gap.clamp(shortest, longest), grant.no_renewal_until]
        })
    }

    /// Renews a grant for a hit, if that may be done now.
    pub(super) fn renew(&mut self, waiter: &Waiter) -> Option<UpstreamRequest> {
        let CacheRequest { caller, key, directives, .. } = waiter.request;
        if directives == RequestDirectives::OnlyIfCached {
            self.count("no renewal for only-if-cached");
            return None;
        }
        self.postpone_renewal((caller, scope_of(key)));
        if self.is_backing_off_for(caller, self.cache_key(caller, key)) {
            self.count("no renewal during a backoff");
            return None;
        }
        let own = CacheKey { key, owner: Some(caller) };
        if self.proof(&waiter.request).is_some() || !self.has_room_for_proof() || !self.may_begin(own) {
            self.count("no renewal beside another call");
            return None;
        }
        self.count("renewal");
        let flight = self.new_flight(&waiter.request, own, true);
        let call = self.start_call(waiter, own, flight, false);
        let started = self.calls.last_mut().expect("it has started");
        (started.is_proof, started.is_renewal) = (true, true);
        Some(call)
    }

    /// Whether or not a renewal begins now, none begins soon.
    pub(super) fn postpone_renewal(&mut self, caller_scope: CallerScope) {
        let now = self.now;
        let grant = self.counting_grant(caller_scope).expect("the caller is granted");
        grant.no_renewal_until = grant.no_renewal_until.max(now + FIRST_BACKOFF);
    }

    /// Whether a flight of a caller's own key can begin.
    fn may_begin(&self, own: CacheKey) -> bool {
        let open = self.flights.iter().filter(|flight| flight.is_open && flight.cache_key.owner.is_some());
        let (mut same, open) = (open.clone().filter(|flight| flight.cache_key == own), open.count());
        same.next().is_none() && open < self.settings.max_flights
    }

    /// A renewal has ended.
    pub(super) fn end_renewal(&mut self, call: &Call, result: &UpstreamResult) {
        if !call.is_renewal {
            return;
        }
        if result.list(call.key, call.validator).is_some() {
            return self.count("renewed grant");
        }
        self.count("failed renewal");
        let retry_after = match result {
            UpstreamResult::Complete { extra_header: ExtraHeader::RetryAfter(after), .. } => after.unwrap_or(0),
            _ => 0,
        };
        let now = self.now;
        let Some(grant) = self.counting_grant((call.caller, scope_of(call.key))) else { return };
        grant.failed_renewals += 1;
        let doubled = (FIRST_BACKOFF << (grant.failed_renewals - 1).min(8)).min(60 * SECOND);
        let backoff = doubled.max(retry_after.min(Settings::MAX_BACKOFF));
        grant.no_renewal_until = grant.no_renewal_until.max(now + backoff);
    }

    /// The call that may prove a request's caller in its scope.
    pub(super) fn proof(&self, request: &CacheRequest) -> Option<&Call> {
        self.calls.iter().find(|call| call.proves(request))
    }

    pub(super) fn has_room_for_proof(&self) -> bool {
        self.calls.iter().filter(|call| call.is_proof).count() < self.settings.max_flights
    }

    /// Whether a request without a grant waits for a proof of its caller. `own` is its flight, if there is one.
    pub(super) fn waits_for_proof(&self, waiter: &Waiter, own: Option<FlightId>) -> bool {
        self.may_wait_for_proof(waiter, own)
            && self.proof(&waiter.request).is_some()
            && self.proof_waiters() < self.settings.max_waiters
    }

    pub(super) fn proof_waiters(&self) -> usize {
        self.waiters.iter().filter(|waiter| waiter.awaits_proof).count()
    }

    /// Whether the call of a request without a grant is one for which its caller's other requests wait.
    pub(super) fn leads_proof(&self, waiter: &Waiter, own: Option<FlightId>) -> bool {
        self.may_wait_for_proof(waiter, own) && self.proof(&waiter.request).is_none() && self.has_room_for_proof()
    }

    fn may_wait_for_proof(&self, waiter: &Waiter, own: Option<FlightId>) -> bool {
        let CacheRequest { caller, key, .. } = waiter.request;
        !self.is_granted((caller, scope_of(key)))
            && own.is_none()
            && waiter.proof_waits < MAX_PROOFS
            && !waiter.proof_was_slow
    }

    /// Whether a request whose caller has a flight for the same key has perhaps looked up before that flight began, at
    /// the same moment. Then it waits for a proof instead.
    pub(super) fn may_wait_instead(&self, waiter: &Waiter) -> bool {
        let own = CacheKey { key: waiter.request.key, owner: Some(waiter.request.caller) };
        let is_own = |id: FlightId| {
            self.flights.iter().any(|flight| flight.id == id && flight.is_open && flight.cache_key == own)
        };
        let began_now = |call: &Call| call.sent == self.now && !call.is_proof && is_own(call.flight);
        self.calls.iter().any(began_now) && !self.calls_alone(waiter, own) && self.waits_for_proof(waiter, None)
    }

    /// When a request no longer waits for its caller's proof.
    pub(super) fn proof_wait_end(&self, waiter: &Waiter) -> Option<Ms> {
        waiter.awaits_proof.then_some(waiter.arrived + self.settings.stale_if_slow)
    }

    /// Requests that have waited too long for a proof make their own calls. `started` has the requests whose calls
    /// started, in order. `before` has the waiters in flights of one caller and in shared flights, with those that have
    /// just left.
    pub(super) fn end_proof_waits(&mut self, started: &[RequestId], before: [usize; 2]) -> Result<Vec<Effect>, String> {
        let now = self.now;
        let left =
            [false, true].map(|are_shared| before[usize::from(are_shared)].saturating_sub(self.followers(are_shared)));
        let (mut due, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition(|waiter| self.proof_wait_end(waiter).is_some_and(|end| end <= now));
        self.waiters = waiting;
        let position = |waiter: &Waiter| started.iter().position(|id| *id == waiter.request.id);
        due.sort_by_key(|waiter| position(waiter).unwrap_or(usize::MAX));
        let (mut effects, mut others) = (Vec::new(), due.len());
        for mut waiter in due {
            self.count("proof too slow");
            others -= 1;
            (waiter.awaits_proof, waiter.proof_was_slow, waiter.had_no_stale) = (false, true, true);
            waiter.end_proof_wait(now);
            let (caller, fetch_key) = (waiter.request.caller, self.fetch_key(&waiter.request));
            let is_shared = fetch_key.owner.is_none();
            let followers = self.followers(is_shared) + others + left[usize::from(is_shared)];
            let action = match self.action(&waiter) {
                // It makes an additional call at once.
                Action::Join(flight) if self.is_slow_for(caller, flight) => Action::Join(flight),
                // Others may have joined before it, or have not left yet.
                Action::Join(_) if position(&waiter).is_some() && followers >= self.settings.max_waiters => {
                    Action::Solo(fetch_key)
                }
                action => action,
            };
            let is_additional = matches!(action, Action::Join(flight) if self.is_slow_for(caller, flight));
            if action.starts_call() != position(&waiter).is_some() && !is_additional {
                return Err(format!("#{} waited for its caller's proof, expected {action:?}", waiter.request.id));
            }
            effects.extend(self.perform(waiter, action));
        }
        Ok(effects)
    }
}
