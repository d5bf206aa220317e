//! The state of one access key: how often upstream has refused it, and whether it may be used. Pure: the time is an
//! argument.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::refusals::{OfProcess, ProcessId, Refusals};
use crate::catalogue::Service;

/// How many consecutive refusals suspend a key.
pub(super) const MAX_REFUSALS: u32 = 3;

/// How long this suspension lasts.
pub(super) const SUSPENSION: Duration = Duration::from_secs(5 * 60);

/// How many consecutive refusals suspend a key until its secret changes. The next one would lock it.
const FINAL_REFUSAL: u32 = 5;

/// How many refused secrets are remembered for each key id.
const MAX_SECRETS: usize = 8;

/// How long a gateway of a fleet waits for those that try a suspended key before it. Enough for a call, and for what it
/// shows to be told.
pub(super) const TURN: Duration = Duration::from_secs(10);

/// Identifies a secret without revealing it.
pub(super) type SecretFingerprint = [u8; 32];

/// What a call of another gateway has shown about a key. As secret as the key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyNews {
    pub(super) access_key: String,
    pub(super) fingerprint: SecretFingerprint,
    pub(super) is_accepted: bool,
    /// All that are known: by a refusal, which is that of the first process; or when the accepted call was sent.
    pub(super) refusals: Vec<OfProcess>,
}

/// What the end of a call has changed.
#[derive(Default)]
pub(crate) struct KeyChange {
    /// If the key is suspended now.
    pub(crate) suspended: Option<Suspended>,
    /// Whether keep warm waits for this.
    pub(crate) is_awaited: bool,
    /// For the other gateways of the fleet, with the service if it is an operator's own upstream.
    pub(crate) news: Option<(Option<Service>, KeyNews)>,
}

pub(super) struct KeyState {
    /// The secret that upstream has accepted and has not refused since.
    pub(super) accepted: Option<SecretFingerprint>,
    /// The secrets that upstream has refused since it last accepted one.
    pub(super) refused: Vec<SecretFingerprint>,
    pub(super) consecutive: Refusals,
    /// When upstream last refused the key. `None` if the key may be tried.
    pub(super) last_refusal: Option<Instant>,
    /// The total number of refusals that are known, which never decreases.
    pub(super) refusals: u64,
    /// How many permits were issued.
    pub(super) issued: u64,
    /// The secret and the number of the permit of the latest client's call that upstream has accepted.
    pub(super) accepted_for_client: Option<(SecretFingerprint, u64)>,
    /// Whether keep warm waits until upstream accepts a client's call.
    pub(super) is_acceptance_awaited: bool,
    pub(super) under_way: u32,
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

pub(super) enum Admission {
    Allowed,
    Suspended,
    Wait,
}

impl KeyState {
    pub(super) fn new(process: ProcessId) -> Self {
        Self {
            accepted: None,
            refused: Vec::new(),
            consecutive: Refusals::new(process),
            last_refusal: None,
            refusals: 0,
            issued: 0,
            accepted_for_client: None,
            is_acceptance_awaited: false,
            under_way: 0,
        }
    }

    pub(super) fn in_a_row(&self) -> u32 {
        self.consecutive.in_a_row()
    }

    pub(super) fn admission(&self, fingerprint: &SecretFingerprint, in_fleet: bool, now: Instant) -> Admission {
        if self.accepted.as_ref() == Some(fingerprint) {
            return Admission::Allowed;
        }
        let suspension = if in_fleet { SUSPENSION + TURN * self.consecutive.place() } else { SUSPENSION };
        let is_in_force = |at| self.in_a_row() >= FINAL_REFUSAL || now.saturating_duration_since(at) < suspension;
        let was_refused = self.in_a_row() >= MAX_REFUSALS && self.refused.contains(fingerprint);
        if was_refused && self.last_refusal.is_some_and(is_in_force) {
            return Admission::Suspended;
        }
        // A retry of a refused secret, or a new secret after refusals, may add only one refusal at a time.
        let room = MAX_REFUSALS.saturating_sub(self.in_a_row()).max(1);
        let room = if in_fleet { 1 } else { room };
        if self.under_way < room { Admission::Allowed } else { Admission::Wait }
    }

    /// Whether a call with the secret is no trial: upstream has accepted it, or has refused no secret since it last
    /// accepted one.
    pub(super) fn needs_no_trial(&self, fingerprint: &SecretFingerprint) -> bool {
        self.accepted.as_ref() == Some(fingerprint) || self.in_a_row() == 0
    }

    /// Upstream has refused a call of this gateway.
    pub(super) fn refused(&mut self, fingerprint: SecretFingerprint, now: Instant) {
        self.add_refused(fingerprint);
        self.refusals += 1;
        self.last_refusal = Some(now);
        self.consecutive.add_own();
    }

    fn add_refused(&mut self, fingerprint: SecretFingerprint) {
        if self.accepted == Some(fingerprint) {
            self.accepted = None;
        }
        if !self.refused.contains(&fingerprint) {
            self.refused.push(fingerprint);
            // The oldest secret is probably not used any more.
            let excess = self.refused.len().saturating_sub(MAX_SECRETS);
            self.refused.drain(..excess);
        }
    }

    pub(super) fn suspended(&self, access_key: &str) -> Suspended {
        Suspended { access_key: access_key.to_owned(), is_until_changed: self.in_a_row() >= FINAL_REFUSAL }
    }

    /// Upstream has accepted a call of this gateway. Returns whether this changes something.
    pub(super) fn accepted(&mut self, fingerprint: SecretFingerprint) -> bool {
        let changes = self.accepted != Some(fingerprint) || self.in_a_row() > 0;
        self.accepted = Some(fingerprint);
        self.consecutive.end_all();
        self.end_refusals();
        changes
    }

    fn end_refusals(&mut self) {
        self.refused.clear();
        self.last_refusal = None;
    }

    pub(super) fn told(&mut self, news: &KeyNews, at: Instant) -> KeyChange {
        let mut change = KeyChange::default();
        if news.is_accepted {
            let is_latest = self.consecutive.told_acceptance(&news.refusals);
            if self.in_a_row() == 0 {
                self.end_refusals();
                change.is_awaited = std::mem::take(&mut self.is_acceptance_awaited);
            }
            if is_latest {
                self.accepted = Some(news.fingerprint);
            }
            return change;
        }
        let (new, counts) = self.consecutive.told_refusal(&news.refusals);
        if counts {
            self.add_refused(news.fingerprint);
        }
        if new > 0 {
            self.refusals = self.refusals.saturating_add(new);
            self.last_refusal = self.last_refusal.max(Some(at));
            change.suspended = (self.in_a_row() >= MAX_REFUSALS).then(|| self.suspended(&news.access_key));
        }
        change
    }
}

impl KeyNews {
    pub(crate) fn access_key(&self) -> &str {
        &self.access_key
    }

    pub(crate) fn is_accepted(&self) -> bool {
        self.is_accepted
    }
}
