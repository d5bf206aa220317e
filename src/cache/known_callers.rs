//! The known callers: those to which upstream has sent a successful response.
//!
//! A known caller does not get a grant, and may not see any entry. It is only served before unknown callers, whose
//! tokens may be invented.

use std::time::{Duration, Instant};

use super::lru_map::LruMap;
use crate::request::caller::Caller;
use crate::sync::{Mutex, MutexGuard};

/// The maximum number of known callers. A caller that is removed is unknown until its next successful response.
const MAX_CALLERS: usize = 10_000;

/// How long a caller is known by a proof.
const PROVED_FOR: Duration = Duration::from_secs(60 * 60);

/// The reason why a caller is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KnownBy {
    /// A call for a product list has proved it within the last hour.
    Proof,
    /// A relayed request below a project succeeded, or its last proof is older than an hour.
    Relay,
}

pub(crate) struct KnownCallers(Mutex<LruMap<Caller, KnownCaller>>);

#[derive(Clone, Copy, Default)]
struct KnownCaller {
    /// When the latest call that proved the caller was sent.
    proved_at: Option<Instant>,
}

impl Default for KnownCallers {
    fn default() -> Self {
        Self(Mutex::new(LruMap::new(MAX_CALLERS)))
    }
}

impl KnownCallers {
    /// Why a caller is known. `None` if it is not known, or upstream has refused it since.
    pub(crate) fn get(&self, caller: &Caller, now: Instant) -> Option<KnownBy> {
        let known = *self.known().get(caller)?;
        let is_proved = known.proved_at.is_some_and(|at| now.saturating_duration_since(at) < PROVED_FOR);
        Some(if is_proved { KnownBy::Proof } else { KnownBy::Relay })
    }

    /// Notes that a call for a product list has proved a caller. `sent` is when the call was sent.
    pub(crate) fn proved(&self, caller: Caller, sent: Instant) {
        let mut known = self.known();
        let known = known.get_or_insert_with(&caller, KnownCaller::default);
        known.proved_at = known.proved_at.max(Some(sent));
    }

    /// Notes that a relayed request of a caller, below a project, succeeded.
    pub(crate) fn relayed(&self, caller: Caller) {
        self.known().get_or_insert_with(&caller, KnownCaller::default);
    }

    /// Notes that upstream has refused a caller (401). The caller is then unknown.
    pub(crate) fn refused(&self, caller: &Caller) {
        self.known().remove(caller);
    }

    fn known(&self) -> MutexGuard<'_, LruMap<Caller, KnownCaller>> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::clock::Clock;
    use crate::request::caller::Callers;

    fn caller() -> Caller {
        Callers::new([1; 32]).of_token(&HeaderValue::from_static("t"))
    }

    #[test]
    fn a_proof_counts_for_an_hour_and_then_the_caller_is_known_by_relay() {
        let (known, caller, start) = (KnownCallers::default(), caller(), Clock::System.now());
        assert_eq!(known.get(&caller, start), None);
        known.proved(caller, start);
        // A call that was sent earlier, or a relayed request, does not change the time of the proof.
        known.proved(caller, start - Duration::from_secs(60));
        known.relayed(caller);
        for (passed, expected) in [(PROVED_FOR - Duration::from_secs(1), KnownBy::Proof), (PROVED_FOR, KnownBy::Relay)]
        {
            assert_eq!(known.get(&caller, start + passed), Some(expected), "{passed:?}");
        }
        known.proved(caller, start + PROVED_FOR);
        assert_eq!(known.get(&caller, start + PROVED_FOR), Some(KnownBy::Proof));
    }

    #[test]
    fn a_refused_caller_is_unknown_until_its_next_successful_response() {
        let (known, caller, now) = (KnownCallers::default(), caller(), Clock::System.now());
        let notes: [&dyn Fn(); 2] = [&|| known.proved(caller, now), &|| known.relayed(caller)];
        for note in notes {
            note();
            known.refused(&caller);
            assert_eq!(known.get(&caller, now), None);
        }
        known.relayed(caller);
        assert_eq!(known.get(&caller, now), Some(KnownBy::Relay));
    }
}
