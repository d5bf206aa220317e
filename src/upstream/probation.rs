//! How often upstream may refuse what is signed with an access key before the key is left alone.
//!
//! Upstream locks a key at the sixth failure in a row, for everyone who uses it. So a key is on probation until
//! upstream has accepted its signature: no more calls are under way with it than may still fail. After three
//! failures in a row it is held for five minutes, and then one call tries it; after five it is held until its
//! secret is changed, or the settings are read again. A key that upstream has accepted is free, until it is refused
//! again.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::Deserialize;
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::signing::AccessKey;
use crate::signing::ring::KeyRing;

/// How many failures in a row there may be before a key is held.
const MAX_REFUSALS: u32 = 3;

/// How long it is held then.
const HOLD: Duration = Duration::from_secs(5 * 60);

/// How many there may be before it is held for good. Held for a while each time, it would be locked all the same.
const LAST_REFUSAL: u32 = 5;

/// All keys that have been used, and how upstream has taken it.
pub struct Probation {
    trials: Mutex<HashMap<String, Trial>>,
    ended: Notify,
    clock: Clock,
}

/// How upstream takes one key.
struct Trial {
    /// Of the credential that was used last: another secret for the same id is worth another try.
    fingerprint: [u8; 32],
    /// Whether upstream has accepted it since it was last refused.
    is_accepted: bool,
    refusals: u32,
    last_refusal: Option<Instant>,
    under_way: u32,
}

/// A key is held: upstream has refused what it has signed too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held;

/// Leave to use a key once. How that ended is to be said; unsaid, it changes nothing.
pub struct Leave {
    probation: Arc<Probation>,
    id: String,
    fingerprint: [u8; 32],
}

/// What an answer says of the signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reception {
    /// Upstream knows by it who asks.
    Accepted,
    /// Upstream doesn't take it.
    Refused,
    /// Upstream has not looked at it, for all one knows.
    Unknown,
}

impl Reception {
    /// Reads it off an answer, of whose body only a refusal's is looked at.
    pub fn of(status: StatusCode, body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Error {
            error_code: String,
        }
        match status {
            StatusCode::UNAUTHORIZED => {
                // The service's own codes come from behind the API gateway, which has checked the signature.
                let error = serde_json::from_slice::<Error>(body);
                let is_service = error.is_ok_and(|error| !error.error_code.starts_with("APIGW."));
                if is_service { Self::Accepted } else { Self::Refused }
            }
            StatusCode::FORBIDDEN => Self::Accepted,
            status if status.as_u16() < 400 => Self::Accepted,
            _ => Self::Unknown,
        }
    }
}

enum Attempt {
    Granted,
    Held,
    Later,
}

impl Probation {
    /// With no key known yet.
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { trials: Mutex::default(), ended: Notify::new(), clock })
    }

    /// Asks for leave to use a key, and waits while it depends on calls that are under way.
    ///
    /// # Errors
    /// If the key is held.
    pub async fn enter(self: &Arc<Self>, key: &AccessKey) -> Result<Leave, Held> {
        loop {
            let mut ended = pin!(self.ended.notified());
            // Before looking, or an end in between would be missed.
            ended.as_mut().enable();
            match self.attempt(key) {
                Attempt::Granted => {
                    let (id, fingerprint) = (key.id().to_owned(), *key.fingerprint());
                    return Ok(Leave { probation: Arc::clone(self), id, fingerprint });
                }
                Attempt::Held => return Err(Held),
                Attempt::Later => ended.await,
            }
        }
    }

    /// Whether a key is held at present.
    pub fn holds(&self, key: &AccessKey) -> bool {
        let now = self.clock.now();
        self.trials().get(key.id()).is_some_and(|trial| trial.is_held(key, now))
    }

    /// Forgets keys that are not in the ring any more, and lets those that are held be tried once.
    pub fn settings_were_read(&self, ring: &KeyRing) {
        let is_known = |id: &str| ring.keys().any(|key| key.id() == id);
        let mut trials = self.trials();
        trials.retain(|id, trial| trial.under_way > 0 || is_known(id));
        trials.values_mut().for_each(|trial| trial.last_refusal = None);
    }

    fn attempt(&self, key: &AccessKey) -> Attempt {
        let now = self.clock.now();
        let mut trials = self.trials();
        let trial = trials.entry(key.id().to_owned()).or_insert_with(|| Trial {
            fingerprint: *key.fingerprint(),
            is_accepted: false,
            refusals: 0,
            last_refusal: None,
            under_way: 0,
        });
        if trial.is_held(key, now) {
            return Attempt::Held;
        }
        if trial.fingerprint != *key.fingerprint() {
            trial.fingerprint = *key.fingerprint();
            trial.is_accepted = false;
            trial.last_refusal = None;
        }
        // Refused before, and tried again: one more failure at a time.
        let room = if trial.is_accepted { u32::MAX } else { MAX_REFUSALS.saturating_sub(trial.refusals).max(1) };
        if trial.under_way >= room {
            return Attempt::Later;
        }
        trial.under_way += 1;
        Attempt::Granted
    }

    fn trials(&self) -> MutexGuard<'_, HashMap<String, Trial>> {
        self.trials.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trial {
    fn is_held(&self, key: &AccessKey, now: Instant) -> bool {
        let is_recent = |at: Instant| self.refusals >= LAST_REFUSAL || now.saturating_duration_since(at) < HOLD;
        self.refusals >= MAX_REFUSALS
            && self.fingerprint == *key.fingerprint()
            && self.last_refusal.is_some_and(is_recent)
    }
}

impl Leave {
    /// Says what upstream made of the signature.
    pub fn ended(self, reception: Reception) {
        let now = self.probation.clock.now();
        let mut trials = self.probation.trials();
        // Of a secret that has been replaced meanwhile, nothing is learned about the new one.
        let Some(trial) = trials.get_mut(&self.id).filter(|trial| trial.fingerprint == self.fingerprint) else {
            return;
        };
        match reception {
            Reception::Unknown => {}
            Reception::Accepted => {
                trial.is_accepted = true;
                trial.refusals = 0;
            }
            Reception::Refused => {
                trial.is_accepted = false;
                trial.refusals = trial.refusals.saturating_add(1);
                trial.last_refusal = Some(now);
                if trial.refusals >= MAX_REFUSALS {
                    let for_how_long = match trial.refusals {
                        LAST_REFUSAL.. => "until its secret is changed or the settings are read again (SIGHUP)",
                        _ => "for five minutes",
                    };
                    tracing::error!(
                        access_key = self.id,
                        in_a_row = trial.refusals,
                        "upstream refuses the signature of this access key: it is not used {for_how_long}. Check its \
                         secret in the configuration, and the clock"
                    );
                }
            }
        }
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        if let Some(trial) = self.probation.trials().get_mut(&self.id) {
            trial.under_way = trial.under_way.saturating_sub(1);
        }
        self.probation.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::signing::Projects;

    struct Bench {
        probation: Arc<Probation>,
        clock: ManualClock,
    }

    impl Bench {
        fn new() -> Self {
            let clock = ManualClock::default();
            Self { probation: Probation::new(Clock::Manual(clock.clone())), clock }
        }

        /// What becomes of one more call now: let through, held, or to wait.
        fn call(&self, key: &AccessKey) -> Option<Result<Leave, Held>> {
            let mut entering = poll_once(self.probation.enter(key));
            entering()
        }
    }

    /// Polls a future once.
    fn poll_once<F: Future>(future: F) -> impl FnMut() -> Option<F::Output> {
        let mut future = Box::pin(future);
        move || match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    fn key(secret: &str) -> AccessKey {
        AccessKey::new("AK".to_owned(), secret.as_bytes(), None, Projects::Any)
    }

    #[test]
    fn no_more_are_under_way_than_may_fail_and_then_the_key_is_held() {
        let (bench, wrong) = (Bench::new(), key("wrong"));
        let leaves: Vec<_> = (0..3).map(|_| bench.call(&wrong).unwrap().unwrap()).collect();
        assert!(bench.call(&wrong).is_none(), "the fourth waits");
        for leave in leaves {
            assert!(!bench.probation.holds(&wrong));
            leave.ended(Reception::Refused);
        }
        assert!(bench.probation.holds(&wrong) && bench.call(&wrong).unwrap().is_err());
        bench.clock.advance(HOLD - Duration::from_millis(1));
        assert!(bench.call(&wrong).unwrap().is_err());
        // Then one tries it, and the others wait for how that ends.
        bench.clock.advance(Duration::from_millis(1));
        let leave = bench.call(&wrong).unwrap().unwrap();
        assert!(bench.call(&wrong).is_none());
        leave.ended(Reception::Refused);
        assert!(bench.call(&wrong).unwrap().is_err());
        bench.clock.advance(HOLD);
        bench.call(&wrong).unwrap().unwrap().ended(Reception::Refused);
        // The next one would lock it.
        bench.clock.advance(HOLD * 1_000);
        assert!(bench.call(&wrong).unwrap().is_err());
        bench.probation.settings_were_read(&KeyRing::new([key("wrong")]));
        let leave = bench.call(&wrong).unwrap().unwrap();
        assert!(bench.call(&wrong).is_none());
        leave.ended(Reception::Accepted);
        let free: Vec<_> = (0..100).map(|_| bench.call(&wrong).unwrap().unwrap()).collect();
        assert_eq!(free.len(), 100);
    }

    #[test]
    fn who_waits_goes_on_when_one_is_accepted() {
        let (bench, good) = (Bench::new(), key("good"));
        let mut leaves: Vec<_> = (0..3).map(|_| bench.call(&good).unwrap().unwrap()).collect();
        let mut waiting = poll_once(bench.probation.enter(&good));
        assert!(waiting().is_none());
        leaves.pop().unwrap().ended(Reception::Accepted);
        assert!(waiting().unwrap().is_ok());
        assert!((0..10).all(|_| bench.call(&good).unwrap().is_ok()));
    }

    #[test]
    fn slow_failures_count_too_and_unsaid_ends_do_not() {
        let (bench, wrong) = (Bench::new(), key("wrong"));
        for _ in 0..3 {
            drop(bench.call(&wrong).unwrap().unwrap());
            bench.call(&wrong).unwrap().unwrap().ended(Reception::Unknown);
            assert!(!bench.probation.holds(&wrong));
            bench.clock.advance(HOLD * 2);
            bench.call(&wrong).unwrap().unwrap().ended(Reception::Refused);
        }
        assert!(bench.probation.holds(&wrong), "in a row, however far apart");
    }

    #[test]
    fn another_secret_is_worth_one_try() {
        let (bench, wrong, right) = (Bench::new(), key("wrong"), key("right"));
        for _ in 0..3 {
            bench.call(&wrong).unwrap().unwrap().ended(Reception::Refused);
        }
        assert!(bench.probation.holds(&wrong) && !bench.probation.holds(&right));
        let leave = bench.call(&right).unwrap().unwrap();
        assert!(bench.call(&right).is_none(), "one");
        leave.ended(Reception::Accepted);
        assert!(bench.call(&right).unwrap().is_ok() && !bench.probation.holds(&right));
    }

    #[test]
    fn what_is_accepted_begins_anew_and_a_refusal_ends_that() {
        let (bench, key) = (Bench::new(), key("s"));
        for reception in [Reception::Refused, Reception::Refused, Reception::Accepted, Reception::Refused] {
            bench.call(&key).unwrap().unwrap().ended(reception);
        }
        let leaves = [bench.call(&key), bench.call(&key)].map(|leave| leave.unwrap().unwrap());
        assert!(bench.call(&key).is_none(), "two more may fail");
        leaves.into_iter().for_each(|leave| leave.ended(Reception::Refused));
        assert!(bench.probation.holds(&key));
    }

    #[test]
    fn a_new_secret_is_not_accepted_because_the_old_one_was() {
        let (bench, old, new) = (Bench::new(), key("old"), key("new"));
        bench.call(&old).unwrap().unwrap().ended(Reception::Accepted);
        let leaves: Vec<_> = (0..3).map(|_| bench.call(&new).unwrap().unwrap()).collect();
        assert!(bench.call(&new).is_none());
        drop(leaves);
    }

    #[test]
    fn what_the_old_secret_meets_late_tells_nothing_of_the_new_one() {
        let (bench, old, new) = (Bench::new(), key("old"), key("new"));
        for _ in 0..2 {
            bench.call(&old).unwrap().unwrap().ended(Reception::Refused);
        }
        let late = bench.call(&old).unwrap().unwrap();
        assert!(bench.call(&new).is_none(), "it may be the third that fails");
        late.ended(Reception::Refused);
        assert!(bench.call(&new).unwrap().is_ok() && !bench.probation.holds(&new));
    }

    #[test]
    fn an_answer_tells_whether_the_signature_was_taken() {
        let of = |status, body: &str| Reception::of(StatusCode::from_u16(status).unwrap(), body.as_bytes());
        let [gateway, service] = [r#"{"error_code":"APIGW.0301"}"#, r#"{"error_code":"WKS.00211302"}"#];
        for (status, body, expected) in [
            (200, "", Reception::Accepted),
            (304, "", Reception::Accepted),
            (401, gateway, Reception::Refused),
            (401, "", Reception::Refused),
            (401, "<html>", Reception::Refused),
            (401, service, Reception::Accepted),
            (403, "", Reception::Accepted),
            (404, "", Reception::Unknown),
            (429, "", Reception::Unknown),
            (503, gateway, Reception::Unknown),
        ] {
            assert_eq!(of(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn keys_that_are_gone_are_forgotten() {
        let (bench, key) = (Bench::new(), key("s"));
        let leave = bench.call(&key).unwrap().unwrap();
        bench.probation.settings_were_read(&KeyRing::default());
        assert_eq!(bench.probation.trials().len(), 1, "a call is under way");
        drop(leave);
        bench.probation.settings_were_read(&KeyRing::default());
        assert_eq!(bench.probation.trials().len(), 0);
    }
}
