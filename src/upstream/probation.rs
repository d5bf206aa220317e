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
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::Deserialize;
use tokio::sync::Notify;

use crate::catalogue::Service;
use crate::clock::Clock;
use crate::signing::AccessKey;
use crate::signing::ring::KeyRing;

/// How many refusals in a row there may be before a key is held.
const MAX_REFUSALS: u32 = 3;

/// How long it is held then.
const HOLD: Duration = Duration::from_secs(5 * 60);

/// How many there may be before it is held for good. The next one would lock it.
const LAST_REFUSAL: u32 = 5;

/// How many secrets that were refused for one id are told apart.
const MAX_SECRETS: usize = 8;

/// All keys that have been used, and how upstream has taken them.
pub struct Probation {
    trials: Mutex<HashMap<Office, Trial>>,
    ended: Notify,
    clock: Clock,
}

/// Who judges which key: the two services have one judge, and an operator's own upstream has its own.
type Office = (String, Option<Service>);

/// Tells one secret from another.
type Fingerprint = [u8; 32];

/// How upstream takes one key.
#[derive(Default)]
struct Trial {
    /// The secret that upstream has accepted, and not refused since.
    accepted: Option<Fingerprint>,
    /// Those that it has refused since it accepted one.
    refused: Vec<Fingerprint>,
    in_a_row: u32,
    /// Since this was told last, if it holds.
    last_refusal: Option<Instant>,
    /// How many there have been at all.
    refusals: u64,
    under_way: u32,
}

/// A key is held: upstream has refused what it has signed too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held;

/// Leave to use a key once. How that ended is to be said; unsaid, it changes nothing.
pub struct Leave {
    probation: Arc<Probation>,
    office: Office,
    fingerprint: Fingerprint,
    /// How many refusals there had been when it was given.
    refusals: u64,
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
    /// Reads it off an answer. Of bodies only those of errors are looked at.
    pub fn of(status: StatusCode, body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Error {
            error_code: String,
        }
        if status.as_u16() < 400 || status == StatusCode::FORBIDDEN {
            return Self::Accepted;
        }
        // The service's own codes come from behind the API gateway, which has checked the signature.
        let error = serde_json::from_slice::<Error>(body);
        let is_service = error.is_ok_and(|error| !error.error_code.starts_with("APIGW."));
        match status {
            _ if is_service => Self::Accepted,
            StatusCode::UNAUTHORIZED => Self::Refused,
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
    pub async fn enter(self: &Arc<Self>, key: &AccessKey, service: Service) -> Result<Leave, Held> {
        let office = office(key, service);
        loop {
            let mut ended = pin!(self.ended.notified());
            // Before looking, or an end in between would be missed.
            ended.as_mut().enable();
            {
                let mut trials = self.trials();
                let trial = trials.entry(office.clone()).or_default();
                match trial.attempt(key.fingerprint(), self.clock.now()) {
                    Attempt::Granted => {
                        trial.under_way += 1;
                        let (fingerprint, refusals) = (*key.fingerprint(), trial.refusals);
                        drop(trials);
                        return Ok(Leave { probation: Arc::clone(self), office, fingerprint, refusals });
                    }
                    Attempt::Held => return Err(Held),
                    Attempt::Later => {}
                }
            }
            ended.await;
        }
    }

    /// Whether a key is held at present.
    pub fn holds(&self, key: &AccessKey, service: Service) -> bool {
        matches!(self.attempt(key, service), Attempt::Held)
    }

    /// Whether a call with a key would have to wait for others.
    pub fn is_busy(&self, key: &AccessKey, service: Service) -> bool {
        matches!(self.attempt(key, service), Attempt::Later)
    }

    /// Lets each key that is held be tried once more.
    pub fn try_again(&self) {
        for ((id, _), trial) in self.trials().iter_mut() {
            if trial.last_refusal.take().is_some() && trial.in_a_row >= MAX_REFUSALS {
                tracing::info!(
                    access_key = id,
                    in_a_row = trial.in_a_row,
                    "a key that was held is going to be tried once"
                );
            }
        }
    }

    /// Forgets keys that are not in the ring any more, and of which upstream has nothing against.
    pub fn keep_only(&self, ring: &KeyRing) {
        let is_known = |id: &str| ring.keys().any(|key| key.id() == id);
        self.trials().retain(|(id, _), trial| trial.under_way > 0 || trial.in_a_row > 0 || is_known(id));
    }

    fn attempt(&self, key: &AccessKey, service: Service) -> Attempt {
        let trials = self.trials();
        let trial = trials.get(&office(key, service));
        trial.map_or(Attempt::Granted, |trial| trial.attempt(key.fingerprint(), self.clock.now()))
    }

    fn trials(&self) -> MutexGuard<'_, HashMap<Office, Trial>> {
        self.trials.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn office(key: &AccessKey, service: Service) -> Office {
    let own = (!Service::ALL.contains(&service)).then_some(service);
    (key.id().to_owned(), own)
}

impl Trial {
    fn attempt(&self, fingerprint: &Fingerprint, now: Instant) -> Attempt {
        if self.accepted.as_ref() == Some(fingerprint) {
            return Attempt::Granted;
        }
        let holds = |at| self.in_a_row >= LAST_REFUSAL || now.saturating_duration_since(at) < HOLD;
        let is_known = self.in_a_row >= MAX_REFUSALS && self.refused.contains(fingerprint);
        if is_known && self.last_refusal.is_some_and(holds) {
            return Attempt::Held;
        }
        // Tried though it was refused, or in place of one that was: one more refusal at a time.
        let room = MAX_REFUSALS.saturating_sub(self.in_a_row).max(1);
        if self.under_way < room { Attempt::Granted } else { Attempt::Later }
    }

    fn refused(&mut self, fingerprint: Fingerprint, now: Instant) {
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

    fn accepted(&mut self, fingerprint: Fingerprint) {
        self.accepted = Some(fingerprint);
        self.refused.clear();
        self.in_a_row = 0;
        self.last_refusal = None;
    }
}

impl Leave {
    /// Says what upstream made of the signature.
    pub fn ended(self, reception: Reception) {
        let now = self.probation.clock.now();
        let mut trials = self.probation.trials();
        let Some(trial) = trials.get_mut(&self.office) else { return };
        match reception {
            Reception::Unknown => {}
            // What has been refused since it was presented is later news.
            Reception::Accepted if trial.refusals == self.refusals => trial.accepted(self.fingerprint),
            Reception::Accepted => {}
            Reception::Refused => {
                trial.refused(self.fingerprint, now);
                let for_how_long = match trial.in_a_row {
                    LAST_REFUSAL.. => "until its secret is changed, or SIGHUP has it tried once more",
                    MAX_REFUSALS.. => "for five minutes",
                    _ => return,
                };
                tracing::error!(
                    access_key = self.office.0,
                    in_a_row = trial.in_a_row,
                    "upstream refuses the signature of this access key: it is not used {for_how_long}. Check its secret \
                     in the configuration, and the clock"
                );
            }
        }
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        if let Some(trial) = self.probation.trials().get_mut(&self.office) {
            trial.under_way = trial.under_way.saturating_sub(1);
        }
        self.probation.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use http::uri::{Authority, Scheme};

    use super::*;
    use crate::catalogue::{Catalogue, Origin};
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

        fn holds(&self, key: &AccessKey) -> bool {
            self.probation.holds(key, Service::Workspace)
        }

        /// What becomes of one more call now: let through, held, or to wait.
        fn call(&self, key: &AccessKey) -> Option<Result<Leave, Held>> {
            let mut entering = poll_once(self.probation.enter(key, Service::Workspace));
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
            assert!(!bench.holds(&wrong));
            leave.ended(Reception::Refused);
        }
        assert!(bench.holds(&wrong) && bench.call(&wrong).unwrap().is_err());
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
        bench.probation.try_again();
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
        let mut waiting = poll_once(bench.probation.enter(&good, Service::AppStream));
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
            assert!(!bench.holds(&wrong));
            bench.clock.advance(HOLD * 2);
            bench.call(&wrong).unwrap().unwrap().ended(Reception::Refused);
        }
        assert!(bench.holds(&wrong), "in a row, however far apart");
    }

    #[test]
    fn another_secret_is_worth_one_try() {
        let (bench, wrong, right) = (Bench::new(), key("wrong"), key("right"));
        for _ in 0..3 {
            bench.call(&wrong).unwrap().unwrap().ended(Reception::Refused);
        }
        assert!(bench.holds(&wrong) && !bench.holds(&right));
        let leave = bench.call(&right).unwrap().unwrap();
        assert!(bench.call(&right).is_none(), "one");
        leave.ended(Reception::Accepted);
        assert!(bench.call(&right).unwrap().is_ok() && !bench.holds(&right));
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
        assert!(bench.holds(&key));
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
    fn refusals_count_from_one_secret_to_the_next() {
        let (bench, one, two) = (Bench::new(), key("one"), key("two"));
        let leaves: Vec<_> = (0..3).map(|_| bench.call(&one).unwrap().unwrap()).collect();
        assert!(bench.call(&two).is_none(), "they may all fail");
        assert!(bench.probation.is_busy(&two, Service::Workspace));
        leaves.into_iter().for_each(|leave| leave.ended(Reception::Refused));
        assert!(bench.holds(&one) && !bench.holds(&two));
        bench.call(&two).unwrap().unwrap().ended(Reception::Refused);
        // Whoever still has the old one, and whoever has the new one, by turns.
        for _ in 0..100 {
            assert!(bench.call(&one).unwrap().is_err() && bench.call(&two).unwrap().is_err());
        }
        // Nor is it forgotten when the key is taken out for a while.
        bench.probation.keep_only(&KeyRing::default());
        assert!(bench.holds(&one) && bench.holds(&two));
    }

    #[test]
    fn what_was_presented_before_a_refusal_lifts_nothing() {
        let (bench, key) = (Bench::new(), key("s"));
        bench.call(&key).unwrap().unwrap().ended(Reception::Accepted);
        let mut leaves: Vec<_> = (0..4).map(|_| bench.call(&key).unwrap().unwrap()).collect();
        let late = leaves.pop().unwrap();
        leaves.into_iter().for_each(|leave| leave.ended(Reception::Refused));
        late.ended(Reception::Accepted);
        assert!(bench.holds(&key));
    }

    #[test]
    fn an_operators_own_upstream_judges_for_itself() {
        let (bench, key) = (Bench::new(), key("s"));
        let mut catalogue = Catalogue::for_tests(Vec::new());
        let origin = Origin::new(Scheme::HTTPS, Authority::from_static("own.example"));
        let own = catalogue.service_at(origin).unwrap();
        for _ in 0..3 {
            poll_once(bench.probation.enter(&key, own))().unwrap().unwrap().ended(Reception::Refused);
        }
        assert!(bench.probation.holds(&key, own));
        assert!(!bench.holds(&key) && !bench.probation.holds(&key, Service::AppStream));
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
            (404, gateway, Reception::Unknown),
            (404, service, Reception::Accepted),
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
        bench.probation.keep_only(&KeyRing::default());
        assert_eq!(bench.probation.trials().len(), 1, "a call is under way");
        drop(leave);
        bench.probation.keep_only(&KeyRing::default());
        assert_eq!(bench.probation.trials().len(), 0);
    }
}
