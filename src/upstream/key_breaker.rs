//! A circuit breaker for access keys whose signatures upstream refuses.
//!
//! Upstream locks a key after six consecutive failures, for all its users. The gateway must not cause this. Until
//! upstream has accepted a signature with a key, no more calls are under way with it than may fail. After three
//! consecutive refusals the key is suspended for five minutes, and then one call tries it again. After five refusals it
//! is suspended until its secret changes or the operator requests a retry (SIGHUP). Once upstream has accepted a key,
//! its calls are not limited until the next refusal.
//!
//! Upstream counts failures by key id. So refusals of different secrets of one id add up, and removing a key from the
//! configuration for a while does not reset the count. A call whose response is lost does not count.
//!
//! Upstream counts over all gateways, too. So the gateways of a fleet tell each other their refusals, and the acceptances
//! that change something ([`KeyNews`]). These count like the outcomes of own calls. In a fleet, each gateway has one call
//! at a time under way with a secret that upstream has not accepted. After a suspension the gateways try the key one after
//! the other, those without refusals first: the clock of one machine may be wrong.
//!
//! While the engine of a fleet can be used, one call at a time tries a secret for all gateways (`gateway/key_trial.rs`).
//! Otherwise each gateway may send a call before it knows of a refusal of another one. So all of them may send one while
//! two refusals are known. Two or three gateways that tell each other do not lock a key then, but more can. The same holds
//! for the calls that are under way with a secret that upstream has accepted until then.

mod key_state;
mod refusals;

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use tokio::sync::Notify;

use self::key_state::{Admission, KeyState, MAX_REFUSALS, SecretFingerprint};
pub(crate) use self::key_state::{KeyChange, KeyNews, Suspended};
pub(crate) use self::refusals::ProcessId;
use crate::catalogue::{Service, error_code};
use crate::clock::Clock;
use crate::random::HashMap;
use crate::signing::AccessKey;
use crate::signing::ring::KeyRing;
use crate::sync::{Mutex, MutexGuard};

/// The most keys of which other gateways may tell.
const MAX_TOLD_KEYS: usize = 1024;

/// The state of all keys that have been used.
pub(crate) struct KeyBreaker {
    key_states: Mutex<HashMap<BreakerId, KeyState>>,
    call_ended: Notify,
    /// `None` without a fleet.
    process: Option<ProcessId>,
    clock: Clock,
}

/// A key id, and the service if it is an operator's own upstream. The two built-in services have one counter in common.
type BreakerId = (String, Option<Service>);

/// Permission to use a key for one call. Dropping it without [`KeyPermit::ended`] counts neither as accepted nor as
/// refused.
pub(crate) struct KeyPermit {
    key_breaker: Arc<KeyBreaker>,
    key_id: BreakerId,
    fingerprint: SecretFingerprint,
    /// The value of [`KeyState::refusals`] when the permit was issued.
    refusals: u64,
    /// The permits of a key are numbered in order of issue, from 1.
    number: u64,
}

/// What a response reveals about the signature of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignatureOutcome {
    /// Upstream has authenticated the caller by it.
    Accepted,
    Refused,
    /// Upstream may not have checked it.
    Unknown,
}

impl SignatureOutcome {
    /// Determines the outcome from a response. Only the bodies of errors are examined.
    pub(crate) fn of(status: StatusCode, body: &[u8]) -> Self {
        if status.as_u16() < 400 || status == StatusCode::FORBIDDEN {
            return Self::Accepted;
        }
        // Upstream's API gateway checks the signature first, so an error code of the service itself means that it was
        // accepted.
        match status {
            _ if error_code::is_services_own(body) => Self::Accepted,
            StatusCode::UNAUTHORIZED => Self::Refused,
            _ => Self::Unknown,
        }
    }
}

impl KeyBreaker {
    /// `process`: if it belongs to a fleet.
    pub(crate) fn new(process: Option<ProcessId>, clock: Clock) -> Arc<Self> {
        Arc::new(Self { key_states: Mutex::default(), call_ended: Notify::new(), process, clock })
    }

    /// Waits until a permit for a key can be issued, or the key is suspended. The caller holds nothing meanwhile.
    pub(crate) async fn ready(&self, key: &AccessKey, service: Service) {
        loop {
            let mut call_ended = pin!(self.call_ended.notified());
            // Before the state is read, or a call that ends in between would be missed.
            call_ended.as_mut().enable();
            if !self.is_busy(key, service) {
                return;
            }
            call_ended.await;
        }
    }

    /// Issues a permit for one call with a key. `None` if this depends on the outcome of calls that are under way.
    ///
    /// # Errors
    /// If the key is suspended.
    pub(crate) fn try_enter(
        self: &Arc<Self>,
        key: &AccessKey,
        service: Service,
    ) -> Result<Option<KeyPermit>, Suspended> {
        let key_id = key_id(key, service);
        let mut key_states = self.key_states();
        let key_state = key_states.entry(key_id.clone()).or_insert_with(|| self.new_state());
        match key_state.admission(key.fingerprint(), self.process.is_some(), self.clock.now()) {
            Admission::Allowed => Ok(Some(self.issue(key_id, *key.fingerprint(), key_state))),
            Admission::Suspended => Err(key_state.suspended(&key_id.0)),
            Admission::Wait => Ok(None),
        }
    }

    /// Issues a permit for a call that no client needs. `None` if the call would have to wait, or if a refusal of it
    /// could suspend or lock the key: after a refusal, only a client's call may try the key again.
    pub(crate) fn enter_without_trial(self: &Arc<Self>, key: &AccessKey, service: Service) -> Option<KeyPermit> {
        let key_id = key_id(key, service);
        let mut key_states = self.key_states();
        let key_state = key_states.entry(key_id.clone()).or_insert_with(|| self.new_state());
        let is_allowed = matches!(
            key_state.admission(key.fingerprint(), self.process.is_some(), self.clock.now()),
            Admission::Allowed
        );
        (is_allowed && key_state.needs_no_trial(key.fingerprint()))
            .then(|| self.issue(key_id, *key.fingerprint(), key_state))
    }

    /// The number of the permit of the latest client's call that upstream has accepted, and whether
    /// [`Self::enter_without_trial`] may issue a permit. If `awaits_client`, or if the key needs a trial, the next
    /// [`KeyPermit::accepted_for_client`] returns true.
    pub(crate) fn for_keep_warm(&self, key: &AccessKey, service: Service, awaits_client: bool) -> (Option<u64>, bool) {
        let mut key_states = self.key_states();
        let key_state = key_states.entry(key_id(key, service)).or_insert_with(|| self.new_state());
        let needs_no_trial = key_state.needs_no_trial(key.fingerprint());
        key_state.is_acceptance_awaited |= awaits_client || !needs_no_trial;
        let accepted = key_state.accepted_for_client.filter(|(fingerprint, _)| fingerprint == key.fingerprint());
        (accepted.map(|(_, number)| number), needs_no_trial)
    }

    /// The number of the latest permit.
    pub(crate) fn issued(&self, key: &AccessKey, service: Service) -> u64 {
        self.key_states().get(&key_id(key, service)).map_or(0, |key_state| key_state.issued)
    }

    fn issue(
        self: &Arc<Self>,
        key_id: BreakerId,
        fingerprint: SecretFingerprint,
        key_state: &mut KeyState,
    ) -> KeyPermit {
        key_state.under_way += 1;
        key_state.issued += 1;
        let (refusals, number) = (key_state.refusals, key_state.issued);
        KeyPermit { key_breaker: Arc::clone(self), key_id, fingerprint, refusals, number }
    }

    pub(crate) fn is_suspended(&self, key: &AccessKey, service: Service) -> bool {
        matches!(self.admission(key, service), Admission::Suspended)
    }

    /// Whether a call with a key would have to wait for other calls with it.
    pub(crate) fn is_busy(&self, key: &AccessKey, service: Service) -> bool {
        matches!(self.admission(key, service), Admission::Wait)
    }

    /// Allows one call with each suspended key.
    pub(crate) fn retry_suspended(&self) {
        for ((id, _), key_state) in self.key_states().iter_mut() {
            if key_state.last_refusal.take().is_some() && key_state.in_a_row() >= MAX_REFUSALS {
                tracing::info!(
                    access_key = id,
                    in_a_row = key_state.in_a_row(),
                    "one call is allowed with a suspended access key"
                );
            }
        }
    }

    /// Removes the state of keys that are no longer in the ring. The state of keys that upstream has refused is kept.
    pub(crate) fn keep_only(&self, ring: &KeyRing) {
        let is_known = |id: &str| ring.keys().any(|key| key.id() == id);
        self.key_states()
            .retain(|(id, _), key_state| key_state.under_way > 0 || key_state.in_a_row() > 0 || is_known(id));
    }

    fn admission(&self, key: &AccessKey, service: Service) -> Admission {
        let key_states = self.key_states();
        let key_state = key_states.get(&key_id(key, service));
        key_state.map_or(Admission::Allowed, |key_state| {
            key_state.admission(key.fingerprint(), self.process.is_some(), self.clock.now())
        })
    }

    /// Takes what another gateway has told of a key at this time.
    pub(crate) fn told(&self, news: &KeyNews, own_upstream: Option<Service>, at: Instant) -> KeyChange {
        let mut key_states = self.key_states();
        let key_id = (news.access_key.clone(), own_upstream);
        if key_states.len() >= MAX_TOLD_KEYS && !key_states.contains_key(&key_id) {
            return KeyChange::default();
        }
        let key_state = key_states.entry(key_id).or_insert_with(|| self.new_state());
        let change = key_state.told(news, at);
        drop(key_states);
        // Calls that wait may be sent now, or never.
        self.call_ended.notify_waiters();
        change
    }

    fn new_state(&self) -> KeyState {
        KeyState::new(self.process.unwrap_or_default())
    }

    fn key_states(&self) -> MutexGuard<'_, HashMap<BreakerId, KeyState>> {
        self.key_states.lock()
    }
}

fn key_id(key: &AccessKey, service: Service) -> BreakerId {
    (key.id().to_owned(), own_upstream(service))
}

/// The service, if upstream counts its refusals separately from those of the built-in services.
pub(crate) fn own_upstream(service: Service) -> Option<Service> {
    (!Service::ALL.contains(&service)).then_some(service)
}

impl KeyPermit {
    /// Whether nobody knows that upstream accepts the secret.
    pub(crate) fn is_trial(&self) -> bool {
        let key_states = self.key_breaker.key_states();
        key_states.get(&self.key_id).is_none_or(|key_state| key_state.accepted != Some(self.fingerprint))
    }

    /// The call has not been sent yet, and other gateways may have told something since the permit was issued. Returns
    /// whether it may be sent now.
    pub(crate) fn renew(&mut self) -> bool {
        let key_states = self.key_breaker.key_states();
        let Some(key_state) = key_states.get(&self.key_id) else { return false };
        self.refusals = key_state.refusals;
        let admission =
            key_state.admission(&self.fingerprint, self.key_breaker.process.is_some(), self.key_breaker.clock.now());
        !matches!(admission, Admission::Suspended)
    }

    /// Records that upstream has accepted the call, which was a client's.
    pub(crate) fn accepted_for_client(self) -> KeyChange {
        let is_awaited = self.key_breaker.key_states().get_mut(&self.key_id).is_some_and(|key_state| {
            let number = key_state.accepted_for_client.map_or(0, |(_, number)| number).max(self.number);
            key_state.accepted_for_client = Some((self.fingerprint, number));
            std::mem::take(&mut key_state.is_acceptance_awaited)
        });
        KeyChange { is_awaited, ..self.ended(SignatureOutcome::Accepted) }
    }

    /// Records the outcome of the call.
    pub(crate) fn ended(self, outcome: SignatureOutcome) -> KeyChange {
        let now = self.key_breaker.clock.now();
        let mut key_states = self.key_breaker.key_states();
        let Some(key_state) = key_states.get_mut(&self.key_id) else { return KeyChange::default() };
        let mut change = KeyChange::default();
        let is_news = match outcome {
            // An acceptance does not cancel refusals that arrived after this call was sent.
            SignatureOutcome::Accepted => key_state.refusals == self.refusals && key_state.accepted(self.fingerprint),
            SignatureOutcome::Unknown => false,
            SignatureOutcome::Refused => {
                key_state.refused(self.fingerprint, now);
                change.suspended = (key_state.in_a_row() >= MAX_REFUSALS).then(|| key_state.suspended(&self.key_id.0));
                true
            }
        };
        change.news = (is_news && self.key_breaker.process.is_some()).then(|| {
            let (is_accepted, refusals) = (outcome == SignatureOutcome::Accepted, key_state.consecutive.known());
            let (access_key, own_upstream) = self.key_id.clone();
            (own_upstream, KeyNews { access_key, fingerprint: self.fingerprint, is_accepted, refusals })
        });
        change
    }
}

impl Drop for KeyPermit {
    fn drop(&mut self) {
        if let Some(key_state) = self.key_breaker.key_states().get_mut(&self.key_id) {
            key_state.under_way = key_state.under_way.saturating_sub(1);
        }
        self.key_breaker.call_ended.notify_waiters();
    }
}

#[cfg(test)]
mod fleet_tests;
#[cfg(test)]
mod tests;
