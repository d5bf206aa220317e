//! The callers that upstream has answered well, and how.
//!
//! That gives nobody a grant and shows nobody anything: it only says who is served first when calls have to wait for one
//! another, and who can be told from those with an invented token.

use std::time::{Duration, Instant};

use super::generations::Generations;
use crate::request::caller::Caller;
use crate::sync::{Mutex, MutexGuard};

/// How many are remembered. A caller that is forgotten is unknown until its next good answer.
const MAX_CALLERS: usize = 10_000;

/// How long a proof counts.
const PROVED_FOR: Duration = Duration::from_secs(60 * 60);

/// How upstream knows a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KnownBy {
    /// A product list has proved it within the last hour.
    Proof,
    /// Upstream has answered it well below a project.
    Relay,
}

/// The callers that upstream knows.
pub(crate) struct KnownCallers(Mutex<Generations<Caller, KnownCaller>>);

/// What is remembered of a caller. There is a value only for one that was answered well.
#[derive(Clone, Copy, Default)]
struct KnownCaller {
    /// When the call was sent that proved it last.
    proved_at: Option<Instant>,
}

impl Default for KnownCallers {
    fn default() -> Self {
        Self(Mutex::new(Generations::new(MAX_CALLERS)))
    }
}

impl KnownCallers {
    /// How upstream knows a caller, if it does and has not refused it since.
    pub(crate) fn get(&self, caller: &Caller, now: Instant) -> Option<KnownBy> {
        let known = *self.known().get(caller)?;
        let is_proved = known.proved_at.is_some_and(|at| now.saturating_duration_since(at) < PROVED_FOR);
        Some(if is_proved { KnownBy::Proof } else { KnownBy::Relay })
    }

    /// A product list that was asked for at this moment has proved a caller.
    pub(crate) fn proved(&self, caller: Caller, sent: Instant) {
        let mut known = self.known();
        let known = known.get_or_insert_with(&caller, KnownCaller::default);
        known.proved_at = known.proved_at.max(Some(sent));
    }

    /// Upstream has answered a caller well below a project.
    pub(crate) fn relayed(&self, caller: Caller) {
        self.known().get_or_insert_with(&caller, KnownCaller::default);
    }

    /// Upstream has refused a caller (401).
    pub(crate) fn refused(&self, caller: &Caller) {
        self.known().remove(caller);
    }

    fn known(&self) -> MutexGuard<'_, Generations<Caller, KnownCaller>> {
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
        let (known, caller, begun) = (KnownCallers::default(), caller(), Clock::System.now());
        assert_eq!(known.get(&caller, begun), None);
        known.proved(caller, begun);
        // A call that was sent before is no later proof, and a relay takes nothing away.
        known.proved(caller, begun - Duration::from_secs(60));
        known.relayed(caller);
        for (passed, expected) in [(PROVED_FOR - Duration::from_secs(1), KnownBy::Proof), (PROVED_FOR, KnownBy::Relay)]
        {
            assert_eq!(known.get(&caller, begun + passed), Some(expected), "{passed:?}");
        }
        known.proved(caller, begun + PROVED_FOR);
        assert_eq!(known.get(&caller, begun + PROVED_FOR), Some(KnownBy::Proof));
    }

    #[test]
    fn a_refused_caller_is_unknown_until_its_next_good_answer() {
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
