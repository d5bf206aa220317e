//! The access keys, and the verification of signatures.
//!
//! A signature is verified over the request as it was received, including `Host`. So a request that was changed on the
//! way, or was signed for another host, is rejected. Failures are counted, and lock the key.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method};

use super::errors::{self, ErrorReply};
use super::tokens::{Bearer, CredentialState};
use crate::signing::ring::{self, KeyRing, leaves_body_unsigned};
use crate::signing::{self, Authorization, Payload, Projects, SignedTarget, X_PROJECT_ID};

/// The number of consecutive failures that do not lock a key.
const FAILURES_ALLOWED: u32 = 5;

/// How long a key stays locked after one more failure.
const LOCKED_FOR: Duration = Duration::from_secs(5 * 60);

/// The number of unknown key ids whose failures are counted one by one.
const MAX_UNKNOWN_IDS: usize = 1_000;

/// The characters of ids. Secrets have lower-case letters.
const ALPHABET: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";

/// An access key. `Debug` hides its secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedKey {
    pub id: String,
    pub secret: String,
    /// Only of temporary keys.
    pub security_token: Option<String>,
}

impl fmt::Debug for IssuedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IssuedKey({})", self.id)
    }
}

#[derive(Clone, Copy)]
pub(super) struct SignedRequest<'a> {
    pub(super) method: &'a Method,
    pub(super) target: SignedTarget<'a>,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
}

/// The consecutive failures of a key.
#[derive(Default)]
struct FailureStreak {
    failures: u32,
    locked_at: Option<SystemTime>,
}

impl FailureStreak {
    fn is_locked(&self, now: SystemTime) -> bool {
        // A clock that was set back before `locked_at` does not unlock the key.
        self.locked_at.is_some_and(|at| now.duration_since(at).unwrap_or_default() < LOCKED_FOR)
    }

    fn fails(&mut self, now: SystemTime) {
        self.failures += 1;
        if self.failures > FAILURES_ALLOWED {
            self.locked_at = Some(now);
        }
    }
}

struct KeyRecord {
    ring: KeyRing,
    bearer: Bearer,
    state: CredentialState,
    streak: FailureStreak,
}

pub(super) struct Keys {
    seed: [u8; 32],
    created: u64,
    known: HashMap<String, KeyRecord>,
    /// The failures of unknown ids, by a hash of the id: an id can be as long as a head.
    unknown_ids: HashMap<blake3::Hash, FailureStreak>,
    failures: usize,
}

impl Keys {
    /// `seed` is random, so that keys of one simulator are not valid in another.
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { seed, created: 0, known: HashMap::new(), unknown_ids: HashMap::new(), failures: 0 }
    }

    pub(super) fn create(&mut self, project_id: &str, is_temporary: bool) -> IssuedKey {
        self.created += 1;
        let mut bytes = [0; 20 + 40 + 400];
        blake3::Hasher::new_keyed(&self.seed).update(&self.created.to_le_bytes()).finalize_xof().fill(&mut bytes);
        let text: String = bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
        let (id, rest) = text.split_at(20);
        let (secret, token) = rest.split_at(40);
        let key = IssuedKey {
            id: id.to_owned(),
            secret: secret.to_ascii_lowercase(),
            security_token: is_temporary.then(|| token.to_owned()),
        };
        self.add(project_id, &key);
        key
    }

    pub(super) fn add(&mut self, project_id: &str, key: &IssuedKey) {
        // A token that is no valid field value can never be received, so it is left out.
        let token = key.security_token.as_ref().and_then(|token| HeaderValue::try_from(token).ok());
        let ring = signing::AccessKey::new(key.id.clone(), key.secret.as_bytes(), token, Projects::Any);
        let known = KeyRecord {
            ring: KeyRing::new([ring]),
            bearer: Bearer::of(project_id),
            state: CredentialState::Valid,
            streak: FailureStreak::default(),
        };
        self.known.insert(key.id.clone(), known);
    }

    pub(super) fn set_state(&mut self, id: &str, state: CredentialState) {
        if let Some(key) = self.known.get_mut(id) {
            key.state = state;
        }
    }

    pub(super) fn restrict_view(&mut self, id: &str, now: Instant) {
        if let Some(key) = self.known.get_mut(id) {
            key.bearer.restrict_view(now);
        }
    }

    pub(super) fn known(&self, id: &str) -> Option<Bearer> {
        self.known.get(id).map(|key| key.bearer.clone())
    }

    /// The number of rejected signatures of all keys.
    pub(super) fn failures(&self) -> usize {
        self.failures
    }

    pub(super) fn failures_in_a_row(&self, id: &str) -> u32 {
        self.streak(id).map_or(0, |streak| streak.failures)
    }

    pub(super) fn is_locked(&self, id: &str, now: SystemTime) -> bool {
        self.streak(id).is_some_and(|streak| streak.is_locked(now))
    }

    fn streak(&self, id: &str) -> Option<&FailureStreak> {
        self.known.get(id).map(|key| &key.streak).or_else(|| self.unknown_ids.get(&blake3::hash(id.as_bytes())))
    }

    fn streak_mut(&mut self, id: &str) -> &mut FailureStreak {
        if let Some(key) = self.known.get_mut(id) {
            return &mut key.streak;
        }
        let name = blake3::hash(id.as_bytes());
        if self.unknown_ids.len() == MAX_UNKNOWN_IDS && !self.unknown_ids.contains_key(&name) {
            self.unknown_ids.clear();
        }
        self.unknown_ids.entry(name).or_default()
    }

    /// The owner of a request's key, if the signature is valid and the key is not locked.
    pub(super) fn check(&mut self, request: SignedRequest<'_>, now: SystemTime) -> Result<Bearer, ErrorReply> {
        let authorization = request.headers.get(AUTHORIZATION).and_then(Authorization::read);
        let Some(id) = authorization.map(|authorization| authorization.access) else {
            // Another scheme, or invalid syntax: no key is charged with it.
            self.failures += 1;
            return Err(errors::BAD_SIGNATURE);
        };
        let streak = self.streak_mut(id);
        if streak.is_locked(now) {
            self.failures += 1;
            return Err(errors::LOCKED);
        }
        if streak.locked_at.is_some() {
            *streak = FailureStreak::default();
        }
        let verdict = self.known.get(id).ok_or(errors::BAD_SIGNATURE).and_then(|key| verify(key, request, now));
        if verdict.is_ok() {
            *self.streak_mut(id) = FailureStreak::default();
        } else {
            self.failures += 1;
            self.streak_mut(id).fails(now);
        }
        let (bearer, state) = verdict?;
        let project = request.headers.get(X_PROJECT_ID);
        match state {
            CredentialState::Denied => Err(errors::DENIED),
            _ if project.is_some_and(|project| project != &*bearer.project_id) => Err(errors::OTHER_PROJECT),
            _ => Ok(bearer),
        }
    }
}

fn verify(
    key: &KeyRecord,
    request: SignedRequest<'_>,
    now: SystemTime,
) -> Result<(Bearer, CredentialState), ErrorReply> {
    let SignedRequest { method, target, headers, body } = request;
    if matches!(key.state, CredentialState::Expired | CredentialState::Revoked) {
        return Err(errors::BAD_SIGNATURE);
    }
    let payload = if leaves_body_unsigned(headers) { Ok(Payload::unsigned()) } else { ring::payload(headers, body) };
    let claim = key.ring.claim(headers).ok_or(errors::BAD_SIGNATURE)?;
    let examined = claim.examine(headers, now);
    let verdict = payload.and_then(|payload| examined?.verify(method, target, payload));
    verdict.map(|_| (key.bearer.clone(), key.state)).map_err(|refusal| match refusal {
        ring::SignatureRejection::Skew => errors::EXPIRED_SIGNATURE,
        _ => errors::BAD_SIGNATURE,
    })
}

#[cfg(test)]
mod tests;
