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

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::sync::Notify;

use crate::catalogue::{Service, error_code};
use crate::clock::Clock;
use crate::signing::AccessKey;
use crate::signing::ring::KeyRing;
use crate::sync::{Mutex, MutexGuard};

/// How many consecutive refusals suspend a key.
const MAX_REFUSALS: u32 = 3;

/// How long this suspension lasts.
const SUSPENSION: Duration = Duration::from_secs(5 * 60);

/// How many consecutive refusals suspend a key until its secret changes. The next one would lock it.
const FINAL_REFUSAL: u32 = 5;

/// How many refused secrets are remembered for each key id.
const MAX_SECRETS: usize = 8;

/// The state of all keys that have been used.
pub(crate) struct KeyBreaker {
    key_states: Mutex<HashMap<BreakerId, KeyState>>,
    call_ended: Notify,
    clock: Clock,
}

/// A key id, and the service if it is an operator's own upstream. The two built-in services have one counter in common.
type BreakerId = (String, Option<Service>);

/// Identifies a secret without revealing it.
type SecretFingerprint = [u8; 32];

#[derive(Default)]
struct KeyState {
    /// The secret that upstream has accepted and has not refused since.
    accepted: Option<SecretFingerprint>,
    /// The secrets that upstream has refused since it last accepted one.
    refused: Vec<SecretFingerprint>,
    consecutive_refusals: u32,
    /// When upstream last refused the key. `None` if the key may be tried.
    last_refusal: Option<Instant>,
    /// The total number of refusals, which never decreases.
    refusals: u64,
    /// How many permits were issued.
    issued: u64,
    /// The secret and the number of the permit of the latest client's call that upstream has accepted.
    accepted_for_client: Option<(SecretFingerprint, u64)>,
    /// Whether keep warm waits until upstream accepts a client's call.
    is_acceptance_awaited: bool,
    under_way: u32,
}

/// The error for a key that is suspended, because upstream has refused its signatures too often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Suspended {
    access_key: String,
    is_until_changed: bool,
}

impl fmt::Display for Suspended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = match self.is_until_changed {
            true => "until its secret changes or SIGHUP allows one more call",
            false => "for five minutes",
        };
        let Self { access_key, .. } = self;
        write!(f, "access key {access_key} is suspended {span}: upstream refuses its signatures. ")?;
        f.write_str("Check its secret in the configuration and this machine's clock")
    }
}

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

enum Admission {
    Allowed,
    Suspended,
    Wait,
}

impl KeyBreaker {
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { key_states: Mutex::default(), call_ended: Notify::new(), clock })
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
        let key_state = key_states.entry(key_id.clone()).or_default();
        match key_state.admission(key.fingerprint(), self.clock.now()) {
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
        let key_state = key_states.entry(key_id.clone()).or_default();
        let is_allowed = matches!(key_state.admission(key.fingerprint(), self.clock.now()), Admission::Allowed);
        (is_allowed && key_state.needs_no_trial(key.fingerprint()))
            .then(|| self.issue(key_id, *key.fingerprint(), key_state))
    }

    /// The number of the permit of the latest client's call that upstream has accepted, and whether
    /// [`Self::enter_without_trial`] may issue a permit. If `awaits_client`, or if the key needs a trial, the next
    /// [`KeyPermit::accepted_for_client`] returns true.
    pub(crate) fn for_keep_warm(&self, key: &AccessKey, service: Service, awaits_client: bool) -> (Option<u64>, bool) {
        let mut key_states = self.key_states();
        let key_state = key_states.entry(key_id(key, service)).or_default();
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
            if key_state.last_refusal.take().is_some() && key_state.consecutive_refusals >= MAX_REFUSALS {
                tracing::info!(
                    access_key = id,
                    in_a_row = key_state.consecutive_refusals,
                    "one call is allowed with a suspended access key"
                );
            }
        }
    }

    /// Removes the state of keys that are no longer in the ring. The state of keys that upstream has refused is kept.
    pub(crate) fn keep_only(&self, ring: &KeyRing) {
        let is_known = |id: &str| ring.keys().any(|key| key.id() == id);
        self.key_states()
            .retain(|(id, _), key_state| key_state.under_way > 0 || key_state.consecutive_refusals > 0 || is_known(id));
    }

    fn admission(&self, key: &AccessKey, service: Service) -> Admission {
        let key_states = self.key_states();
        let key_state = key_states.get(&key_id(key, service));
        key_state.map_or(Admission::Allowed, |key_state| key_state.admission(key.fingerprint(), self.clock.now()))
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

impl KeyState {
    fn admission(&self, fingerprint: &SecretFingerprint, now: Instant) -> Admission {
        if self.accepted.as_ref() == Some(fingerprint) {
            return Admission::Allowed;
        }
        let is_in_force =
            |at| self.consecutive_refusals >= FINAL_REFUSAL || now.saturating_duration_since(at) < SUSPENSION;
        let was_refused = self.consecutive_refusals >= MAX_REFUSALS && self.refused.contains(fingerprint);
        if was_refused && self.last_refusal.is_some_and(is_in_force) {
            return Admission::Suspended;
        }
        // A retry of a refused secret, or a new secret after refusals, may add only one refusal at a time.
        let room = MAX_REFUSALS.saturating_sub(self.consecutive_refusals).max(1);
        if self.under_way < room { Admission::Allowed } else { Admission::Wait }
    }

    /// Whether a call with the secret is no trial: upstream has accepted it, or has refused no secret since it last
    /// accepted one.
    fn needs_no_trial(&self, fingerprint: &SecretFingerprint) -> bool {
        self.accepted.as_ref() == Some(fingerprint) || self.consecutive_refusals == 0
    }

    fn refused(&mut self, fingerprint: SecretFingerprint, now: Instant) {
        if self.accepted == Some(fingerprint) {
            self.accepted = None;
        }
        if !self.refused.contains(&fingerprint) {
            self.refused.push(fingerprint);
            // The oldest secret is probably not used any more.
            let excess = self.refused.len().saturating_sub(MAX_SECRETS);
            self.refused.drain(..excess);
        }
        self.refusals += 1;
        self.consecutive_refusals = self.consecutive_refusals.saturating_add(1);
        self.last_refusal = Some(now);
    }

    fn suspended(&self, access_key: &str) -> Suspended {
        Suspended { access_key: access_key.to_owned(), is_until_changed: self.consecutive_refusals >= FINAL_REFUSAL }
    }

    fn accepted(&mut self, fingerprint: SecretFingerprint) {
        self.accepted = Some(fingerprint);
        self.refused.clear();
        self.consecutive_refusals = 0;
        self.last_refusal = None;
    }
}

impl KeyPermit {
    /// Records that upstream has accepted the call, which was a client's. Returns whether keep warm waits for this.
    pub(crate) fn accepted_for_client(self) -> bool {
        let is_awaited = self.key_breaker.key_states().get_mut(&self.key_id).is_some_and(|key_state| {
            let number = key_state.accepted_for_client.map_or(0, |(_, number)| number).max(self.number);
            key_state.accepted_for_client = Some((self.fingerprint, number));
            std::mem::take(&mut key_state.is_acceptance_awaited)
        });
        let suspended = self.ended(SignatureOutcome::Accepted);
        debug_assert!(suspended.is_none(), "an acceptance suspends nothing");
        is_awaited
    }

    /// Records the outcome of the call. Returns the suspension if the key is suspended now.
    pub(crate) fn ended(self, outcome: SignatureOutcome) -> Option<Suspended> {
        let now = self.key_breaker.clock.now();
        let mut key_states = self.key_breaker.key_states();
        let key_state = key_states.get_mut(&self.key_id)?;
        match outcome {
            SignatureOutcome::Unknown => None,
            // An acceptance does not cancel refusals that arrived after this call was sent.
            SignatureOutcome::Accepted if key_state.refusals == self.refusals => {
                key_state.accepted(self.fingerprint);
                None
            }
            SignatureOutcome::Accepted => None,
            SignatureOutcome::Refused => {
                key_state.refused(self.fingerprint, now);
                (key_state.consecutive_refusals >= MAX_REFUSALS).then(|| key_state.suspended(&self.key_id.0))
            }
        }
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
mod tests;
