//! Who may ask, by signature: access keys as they are created, refused, locked and forgotten.
//!
//! Every signature is held against the request as it arrived here, its `Host` as well: whoever has changed
//! anything on the way, or signed for another place, is found out, and it is counted.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method};

use super::errors::{self, ErrorReply};
use super::tokens::{Bearer, TokenState};
use crate::signing::ring::{self, KeyRing, leaves_body_unsigned};
use crate::signing::{self, Authorization, Payload, Projects, SignedTarget, X_PROJECT_ID};

/// How many failures in a row a key survives.
const FAILURES_ALLOWED: u32 = 5;

/// For how long it is locked by one more.
const LOCKED_FOR: Duration = Duration::from_secs(5 * 60);

/// Of how many ids that belong to nobody the failures are told apart.
const STRANGERS: usize = 1_000;

/// What ids are written in. Secrets have small letters as well.
const ALPHABET: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";

/// An access key as its owner has it; `Debug` leaves the secrets out.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedKey {
    /// Its id, which is public.
    pub id: String,
    /// What it signs with.
    pub secret: String,
    /// The other half of temporary credentials.
    pub security_token: Option<String>,
}

impl fmt::Debug for IssuedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IssuedKey({})", self.id)
    }
}

/// A signed request, as it arrived.
#[derive(Clone, Copy)]
pub(super) struct SignedRequest<'a> {
    pub(super) method: &'a Method,
    pub(super) target: SignedTarget<'a>,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
}

/// How a key has fared lately.
#[derive(Default)]
struct Row {
    failures: u32,
    locked_at: Option<SystemTime>,
}

impl Row {
    fn is_locked(&self, now: SystemTime) -> bool {
        // Before the moment it was locked at is before the five minutes are over, too.
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
    standing: TokenState,
    row: Row,
}

/// All access keys.
pub(super) struct Keys {
    seed: [u8; 32],
    created: u64,
    known: HashMap<String, KeyRecord>,
    /// By a hash of what they are called: a name can be as long as a head.
    strangers: HashMap<blake3::Hash, Row>,
    failures: usize,
}

impl Keys {
    /// With a random seed, so that the key of one simulator means nothing to another.
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { seed, created: 0, known: HashMap::new(), strangers: HashMap::new(), failures: 0 }
    }

    /// Creates a key for a project.
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

    /// Makes a key known that has been created elsewhere.
    pub(super) fn add(&mut self, project_id: &str, key: &IssuedKey) {
        // One that is no header's value is nobody's token, so nobody will ever present it.
        let token = key.security_token.as_ref().and_then(|token| HeaderValue::try_from(token).ok());
        let ring = signing::AccessKey::new(key.id.clone(), key.secret.as_bytes(), token, Projects::Any);
        let known = KeyRecord {
            ring: KeyRing::new([ring]),
            bearer: Bearer::of(project_id),
            standing: TokenState::Valid,
            row: Row::default(),
        };
        self.known.insert(key.id.clone(), known);
    }

    /// Changes what a key is worth.
    pub(super) fn judge(&mut self, id: &str, standing: TokenState) {
        if let Some(key) = self.known.get_mut(id) {
            key.standing = standing;
        }
    }

    pub(super) fn narrow_view(&mut self, id: &str) {
        if let Some(key) = self.known.get_mut(id) {
            key.bearer.narrow_view = true;
        }
    }

    /// Whoever signs with this key.
    pub(super) fn known(&self, id: &str) -> Option<Bearer> {
        self.known.get(id).map(|key| key.bearer.clone())
    }

    /// How many signatures were not taken, whosever they were.
    pub(super) fn failures(&self) -> usize {
        self.failures
    }

    pub(super) fn failures_in_a_row(&self, id: &str) -> u32 {
        self.row(id).map_or(0, |row| row.failures)
    }

    pub(super) fn is_locked(&self, id: &str, now: SystemTime) -> bool {
        self.row(id).is_some_and(|row| row.is_locked(now))
    }

    fn row(&self, id: &str) -> Option<&Row> {
        self.known.get(id).map(|key| &key.row).or_else(|| self.strangers.get(&blake3::hash(id.as_bytes())))
    }

    fn row_mut(&mut self, id: &str) -> &mut Row {
        if let Some(key) = self.known.get_mut(id) {
            return &mut key.row;
        }
        let name = blake3::hash(id.as_bytes());
        if self.strangers.len() == STRANGERS && !self.strangers.contains_key(&name) {
            self.strangers.clear();
        }
        self.strangers.entry(name).or_default()
    }

    /// Whoever has signed a request, if the signature is good and the key is not locked.
    pub(super) fn check(&mut self, request: SignedRequest<'_>, now: SystemTime) -> Result<Bearer, ErrorReply> {
        let said = request.headers.get(AUTHORIZATION).and_then(Authorization::read);
        let Some(id) = said.map(|said| said.access) else {
            // Another scheme, or another spelling: nobody's.
            self.failures += 1;
            return Err(errors::BAD_SIGNATURE);
        };
        let row = self.row_mut(id);
        if row.is_locked(now) {
            self.failures += 1;
            return Err(errors::LOCKED);
        }
        if row.locked_at.is_some() {
            *row = Row::default();
        }
        let verdict = self.known.get(id).ok_or(errors::BAD_SIGNATURE).and_then(|key| verify(key, request, now));
        if verdict.is_ok() {
            *self.row_mut(id) = Row::default();
        } else {
            self.failures += 1;
            self.row_mut(id).fails(now);
        }
        let (bearer, standing) = verdict?;
        let project = request.headers.get(X_PROJECT_ID);
        match standing {
            TokenState::Denied => Err(errors::DENIED),
            _ if project.is_some_and(|project| project != &*bearer.project_id) => Err(errors::OTHER_PROJECT),
            _ => Ok(bearer),
        }
    }
}

fn verify(key: &KeyRecord, request: SignedRequest<'_>, now: SystemTime) -> Result<(Bearer, TokenState), ErrorReply> {
    let SignedRequest { method, target, headers, body } = request;
    if matches!(key.standing, TokenState::Expired | TokenState::Revoked) {
        return Err(errors::BAD_SIGNATURE);
    }
    let payload = if leaves_body_unsigned(headers) { Ok(Payload::unsigned()) } else { ring::payload(headers, body) };
    let claim = key.ring.claim(headers).ok_or(errors::BAD_SIGNATURE)?;
    let examined = claim.examine(headers, now);
    let verdict = payload.and_then(|payload| examined?.verify(method, target, payload));
    verdict.map(|_| (key.bearer.clone(), key.standing)).map_err(|refusal| match refusal {
        ring::SignatureRejection::Skew => errors::EXPIRED_SIGNATURE,
        _ => errors::BAD_SIGNATURE,
    })
}

#[cfg(test)]
mod tests;
