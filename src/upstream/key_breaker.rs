//! How often upstream may refuse what is signed with an access key before the key is left alone.
//!
//! Upstream locks a key at the sixth failure in a row, for everyone who uses it. So a key is on probation until
//! upstream has accepted its signature: no more calls are under way with it than may fail. After three refusals in a
//! row it is held for five minutes, and then one call tries it; after five it is held until its secret is changed, or
//! the operator says so. A key that upstream has accepted is free, until it is refused again.
//!
//! What upstream counts is an id, whatever the secret was: so refusals count from one secret to the next, and
//! though a key is taken out of the configuration for a while. (What comes of a call whose answer is lost isn't known,
//! and counts for nothing.)

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

/// How many refusals in a row there may be before a key is held.
const MAX_REFUSALS: u32 = 3;

/// How long it is held then.
const SUSPENSION: Duration = Duration::from_secs(5 * 60);

/// How many there may be before it is held for good. The next one would lock it.
const LAST_REFUSAL: u32 = 5;

/// How many secrets that were refused for one id are told apart.
const MAX_SECRETS: usize = 8;

/// All keys that have been used, and how upstream has taken them.
pub(crate) struct KeyBreaker {
    key_states: Mutex<HashMap<BreakerId, KeyState>>,
    ended: Notify,
    clock: Clock,
}

/// Who judges which key: the two services have one judge, and an operator's own upstream has its own.
type BreakerId = (String, Option<Service>);

/// Tells one secret from another.
type SecretFingerprint = [u8; 32];

/// How upstream takes one key.
#[derive(Default)]
struct KeyState {
    /// The secret that upstream has accepted, and not refused since.
    accepted: Option<SecretFingerprint>,
    /// Those that it has refused since it accepted one.
    refused: Vec<SecretFingerprint>,
    in_a_row: u32,
    /// Since this was told last, if it holds.
    last_refusal: Option<Instant>,
    /// How many there have been at all.
    refusals: u64,
    under_way: u32,
}

/// A key is held: upstream has refused what it has signed too often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Suspended {
    access_key: String,
    is_until_changed: bool,
}

impl fmt::Display for Suspended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = match self.is_until_changed {
            true => "until its secret is changed, or SIGHUP has it tried once more",
            false => "for five minutes",
        };
        let Self { access_key, .. } = self;
        write!(f, "access key {access_key} is suspended {span}: upstream refuses its signatures. ")?;
        f.write_str("Check its secret in the configuration, and the clock")
    }
}

/// KeyPermit to use a key once. How that ended is to be said; unsaid, it changes nothing.
pub(crate) struct KeyPermit {
    key_breaker: Arc<KeyBreaker>,
    key_id: BreakerId,
    fingerprint: SecretFingerprint,
    /// How many refusals there had been when it was given.
    refusals: u64,
}

/// What an answer says of the signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignatureOutcome {
    /// Upstream knows by it who asks.
    Accepted,
    /// Upstream doesn't take it.
    Refused,
    /// Upstream has not looked at it, for all one knows.
    Unknown,
}

impl SignatureOutcome {
    /// Reads it off an answer. Of bodies only those of errors are looked at.
    pub(crate) fn of(status: StatusCode, body: &[u8]) -> Self {
        if status.as_u16() < 400 || status == StatusCode::FORBIDDEN {
            return Self::Accepted;
        }
        // The service's own codes come from behind the API gateway, which has checked the signature.
        match status {
            _ if error_code::is_services_own(body) => Self::Accepted,
            StatusCode::UNAUTHORIZED => Self::Refused,
            _ => Self::Unknown,
        }
    }
}

enum Admission {
    Granted,
    Suspended,
    Later,
}

impl KeyBreaker {
    /// With no key known yet.
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { key_states: Mutex::default(), ended: Notify::new(), clock })
    }

    /// Asks for leave to use a key, and waits while it depends on calls that are under way.
    ///
    /// # Errors
    /// If the key is held.
    pub(crate) async fn enter(self: &Arc<Self>, key: &AccessKey, service: Service) -> Result<KeyPermit, Suspended> {
        let key_id = key_id(key, service);
        loop {
            let mut ended = pin!(self.ended.notified());
            // Before looking, or an end in between would be missed.
            ended.as_mut().enable();
            {
                let mut key_states = self.key_states();
                let key_state = key_states.entry(key_id.clone()).or_default();
                match key_state.attempt(key.fingerprint(), self.clock.now()) {
                    Admission::Granted => {
                        key_state.under_way += 1;
                        let (fingerprint, refusals) = (*key.fingerprint(), key_state.refusals);
                        drop(key_states);
                        return Ok(KeyPermit { key_breaker: Arc::clone(self), key_id, fingerprint, refusals });
                    }
                    Admission::Suspended => return Err(key_state.suspended(&key_id.0)),
                    Admission::Later => {}
                }
            }
            ended.await;
        }
    }

    /// Whether a key is held at present.
    pub(crate) fn holds(&self, key: &AccessKey, service: Service) -> bool {
        matches!(self.attempt(key, service), Admission::Suspended)
    }

    /// Whether a call with a key would have to wait for others.
    pub(crate) fn is_busy(&self, key: &AccessKey, service: Service) -> bool {
        matches!(self.attempt(key, service), Admission::Later)
    }

    /// Lets each key that is held be tried once more.
    pub(crate) fn try_again(&self) {
        for ((id, _), key_state) in self.key_states().iter_mut() {
            if key_state.last_refusal.take().is_some() && key_state.in_a_row >= MAX_REFUSALS {
                tracing::info!(
                    access_key = id,
                    in_a_row = key_state.in_a_row,
                    "a key that was held is going to be tried once"
                );
            }
        }
    }

    /// Forgets keys that are not in the ring any more, and of which upstream has nothing against.
    pub(crate) fn keep_only(&self, ring: &KeyRing) {
        let is_known = |id: &str| ring.keys().any(|key| key.id() == id);
        self.key_states()
            .retain(|(id, _), key_state| key_state.under_way > 0 || key_state.in_a_row > 0 || is_known(id));
    }

    fn attempt(&self, key: &AccessKey, service: Service) -> Admission {
        let key_states = self.key_states();
        let key_state = key_states.get(&key_id(key, service));
        key_state.map_or(Admission::Granted, |key_state| key_state.attempt(key.fingerprint(), self.clock.now()))
    }

    fn key_states(&self) -> MutexGuard<'_, HashMap<BreakerId, KeyState>> {
        self.key_states.lock()
    }
}

fn key_id(key: &AccessKey, service: Service) -> BreakerId {
    let own = (!Service::ALL.contains(&service)).then_some(service);
    (key.id().to_owned(), own)
}

impl KeyState {
    fn attempt(&self, fingerprint: &SecretFingerprint, now: Instant) -> Admission {
        if self.accepted.as_ref() == Some(fingerprint) {
            return Admission::Granted;
        }
        let holds = |at| self.in_a_row >= LAST_REFUSAL || now.saturating_duration_since(at) < SUSPENSION;
        let is_known = self.in_a_row >= MAX_REFUSALS && self.refused.contains(fingerprint);
        if is_known && self.last_refusal.is_some_and(holds) {
            return Admission::Suspended;
        }
        // Tried though it was refused, or in place of one that was: one more refusal at a time.
        let room = MAX_REFUSALS.saturating_sub(self.in_a_row).max(1);
        if self.under_way < room { Admission::Granted } else { Admission::Later }
    }

    fn refused(&mut self, fingerprint: SecretFingerprint, now: Instant) {
        if self.accepted == Some(fingerprint) {
            self.accepted = None;
        }
        if !self.refused.contains(&fingerprint) {
            self.refused.push(fingerprint);
            // The oldest is no one's any more.
            let old = self.refused.len().saturating_sub(MAX_SECRETS);
            self.refused.drain(..old);
        }
        self.refusals += 1;
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.last_refusal = Some(now);
    }

    fn suspended(&self, access_key: &str) -> Suspended {
        Suspended { access_key: access_key.to_owned(), is_until_changed: self.in_a_row >= LAST_REFUSAL }
    }

    fn accepted(&mut self, fingerprint: SecretFingerprint) {
        self.accepted = Some(fingerprint);
        self.refused.clear();
        self.in_a_row = 0;
        self.last_refusal = None;
    }
}

impl KeyPermit {
    /// Says what upstream made of the signature. Gives the suspension that this begins.
    pub(crate) fn ended(self, reception: SignatureOutcome) -> Option<Suspended> {
        let now = self.key_breaker.clock.now();
        let mut key_states = self.key_breaker.key_states();
        let key_state = key_states.get_mut(&self.key_id)?;
        match reception {
            SignatureOutcome::Unknown => None,
            // What has been refused since it was presented is later news.
            SignatureOutcome::Accepted if key_state.refusals == self.refusals => {
                key_state.accepted(self.fingerprint);
                None
            }
            SignatureOutcome::Accepted => None,
            SignatureOutcome::Refused => {
                key_state.refused(self.fingerprint, now);
                (key_state.in_a_row >= MAX_REFUSALS).then(|| key_state.suspended(&self.key_id.0))
            }
        }
    }
}

impl Drop for KeyPermit {
    fn drop(&mut self) {
        if let Some(key_state) = self.key_breaker.key_states().get_mut(&self.key_id) {
            key_state.under_way = key_state.under_way.saturating_sub(1);
        }
        self.key_breaker.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
