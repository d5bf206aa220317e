//! Callers to whom upstream has answered something well, whatever it was.
//!
//! That is no proof, and shows nobody anything: it only tells those with a token that upstream takes
//! from those with an invented one, when calls have to wait for one another.

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::StatusCode;

use super::generations::Generations;
use crate::request::caller::Caller;

/// How many are remembered. Whoever is forgotten is a stranger again, until its next answer.
const MAX_ACQUAINTANCES: usize = 10_000;

/// The callers that upstream knows.
pub struct Acquaintances(Mutex<Generations<Caller, ()>>);

impl Default for Acquaintances {
    fn default() -> Self {
        Self(Mutex::new(Generations::new(MAX_ACQUAINTANCES)))
    }
}

impl Acquaintances {
    /// Whether upstream has answered this caller well, and not refused it since.
    pub fn includes(&self, caller: &Caller) -> bool {
        self.known().get(caller).is_some()
    }

    /// Notes what a caller was answered. Statuses that say nothing of its token change nothing.
    pub fn note(&self, caller: Caller, status: StatusCode) {
        if status == StatusCode::UNAUTHORIZED {
            self.known().remove(&caller);
        } else if status.is_success() {
            self.known().insert(caller, ());
        }
    }

    fn known(&self) -> MutexGuard<'_, Generations<Caller, ()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::request::caller::Callers;

    #[test]
    fn whoever_is_answered_well_is_known_until_refused() {
        let known = Acquaintances::default();
        let caller = Callers::new([1; 32]).of_token(&HeaderValue::from_static("t"));
        for (status, is_known) in [(404, false), (200, true), (404, true), (503, true), (401, false), (204, true)] {
            known.note(caller, StatusCode::from_u16(status).unwrap());
            assert_eq!(known.includes(&caller), is_known, "{status}");
        }
    }
}
