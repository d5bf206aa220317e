//! When a key is suspended, and when it is tried again.

use http::uri::{Authority, Scheme};

use std::time::Duration;

use super::key_state::SUSPENSION;
use super::*;
use crate::catalogue::{Catalogue, Origin};
use crate::clock::ManualClock;
use crate::signing::Projects;

struct Bench {
    key_breaker: Arc<KeyBreaker>,
    clock: ManualClock,
}

impl Bench {
    fn new() -> Self {
        let clock = ManualClock::default();
        Self { key_breaker: KeyBreaker::new(None, Clock::Manual(clock.clone())), clock }
    }

    fn is_suspended(&self, key: &AccessKey) -> bool {
        self.key_breaker.is_suspended(key, Service::Workspace)
    }

    /// The result of one more call now: a permit, a suspension, or `None` if it waits.
    fn call(&self, key: &AccessKey) -> Option<Result<KeyPermit, Suspended>> {
        let mut entering = poll_once(enter(&self.key_breaker, key, Service::Workspace));
        entering()
    }
}

/// Waits for a permit, as a call does.
pub(super) async fn enter(
    key_breaker: &Arc<KeyBreaker>,
    key: &AccessKey,
    service: Service,
) -> Result<KeyPermit, Suspended> {
    loop {
        key_breaker.ready(key, service).await;
        if let Some(permit) = key_breaker.try_enter(key, service)? {
            return Ok(permit);
        }
    }
}

/// Polls a future once.
pub(super) fn poll_once<F: Future>(future: F) -> impl FnMut() -> Option<F::Output> {
    let mut future = Box::pin(future);
    move || match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

pub(super) fn key(secret: &str) -> AccessKey {
    AccessKey::new("AK".to_owned(), secret.as_bytes(), None, Projects::Any)
}

#[test]
fn no_more_calls_are_under_way_than_may_fail_and_then_the_key_is_suspended() {
    let (bench, wrong) = (Bench::new(), key("wrong"));
    let key_permits: Vec<_> = (0..3).map(|_| bench.call(&wrong).unwrap().unwrap()).collect();
    assert!(bench.call(&wrong).is_none(), "the fourth waits");
    for key_permit in key_permits {
        assert!(!bench.is_suspended(&wrong));
        key_permit.ended(SignatureOutcome::Refused);
    }
    assert!(bench.is_suspended(&wrong) && bench.call(&wrong).unwrap().is_err());
    bench.clock.advance(SUSPENSION - Duration::from_millis(1));
    assert!(bench.call(&wrong).unwrap().is_err());
    // Then one call tries it, and the others wait for its outcome.
    bench.clock.advance(Duration::from_millis(1));
    let key_permit = bench.call(&wrong).unwrap().unwrap();
    assert!(bench.call(&wrong).is_none());
    key_permit.ended(SignatureOutcome::Refused);
    assert!(bench.call(&wrong).unwrap().is_err());
    bench.clock.advance(SUSPENSION);
    bench.call(&wrong).unwrap().unwrap().ended(SignatureOutcome::Refused);
    // The next refusal would lock the key.
    bench.clock.advance(SUSPENSION * 1_000);
    assert!(bench.call(&wrong).unwrap().is_err());
    bench.key_breaker.retry_suspended();
    let key_permit = bench.call(&wrong).unwrap().unwrap();
    assert!(bench.call(&wrong).is_none());
    key_permit.ended(SignatureOutcome::Accepted);
    let free: Vec<_> = (0..100).map(|_| bench.call(&wrong).unwrap().unwrap()).collect();
    assert_eq!(free.len(), 100);
}

#[test]
fn waiting_calls_continue_when_one_is_accepted() {
    let (bench, good) = (Bench::new(), key("good"));
    let mut key_permits: Vec<_> = (0..3).map(|_| bench.call(&good).unwrap().unwrap()).collect();
    let mut waiting = poll_once(enter(&bench.key_breaker, &good, Service::AppStream));
    assert!(waiting().is_none());
    key_permits.pop().unwrap().ended(SignatureOutcome::Accepted);
    assert!(waiting().unwrap().is_ok());
    assert!((0..10).all(|_| bench.call(&good).unwrap().is_ok()));
}

#[test]
fn refusals_far_apart_count_and_calls_without_outcome_do_not() {
    let (bench, wrong) = (Bench::new(), key("wrong"));
    for _ in 0..3 {
        drop(bench.call(&wrong).unwrap().unwrap());
        bench.call(&wrong).unwrap().unwrap().ended(SignatureOutcome::Unknown);
        assert!(!bench.is_suspended(&wrong));
        bench.clock.advance(SUSPENSION * 2);
        bench.call(&wrong).unwrap().unwrap().ended(SignatureOutcome::Refused);
    }
    assert!(bench.is_suspended(&wrong), "consecutive refusals count at any interval");
}

#[test]
fn a_new_secret_gets_one_attempt() {
    let (bench, wrong, right) = (Bench::new(), key("wrong"), key("right"));
    for _ in 0..3 {
        bench.call(&wrong).unwrap().unwrap().ended(SignatureOutcome::Refused);
    }
    assert!(bench.is_suspended(&wrong) && !bench.is_suspended(&right));
    let key_permit = bench.call(&right).unwrap().unwrap();
    assert!(bench.call(&right).is_none(), "one at a time");
    key_permit.ended(SignatureOutcome::Accepted);
    assert!(bench.call(&right).unwrap().is_ok() && !bench.is_suspended(&right));
}

#[test]
fn an_acceptance_resets_the_count_and_a_refusal_limits_the_calls_again() {
    let (bench, key) = (Bench::new(), key("s"));
    for outcome in
        [SignatureOutcome::Refused, SignatureOutcome::Refused, SignatureOutcome::Accepted, SignatureOutcome::Refused]
    {
        bench.call(&key).unwrap().unwrap().ended(outcome);
    }
    let key_permits = [bench.call(&key), bench.call(&key)].map(|key_permit| key_permit.unwrap().unwrap());
    assert!(bench.call(&key).is_none(), "two more may fail");
    key_permits.into_iter().for_each(|key_permit| drop(key_permit.ended(SignatureOutcome::Refused)));
    assert!(bench.is_suspended(&key));
}

#[test]
fn a_new_secret_is_not_accepted_because_the_old_one_was() {
    let (bench, old, new) = (Bench::new(), key("old"), key("new"));
    bench.call(&old).unwrap().unwrap().ended(SignatureOutcome::Accepted);
    let key_permits: Vec<_> = (0..3).map(|_| bench.call(&new).unwrap().unwrap()).collect();
    assert!(bench.call(&new).is_none());
    drop(key_permits);
}

#[test]
fn refusals_of_all_secrets_of_an_id_add_up() {
    let (bench, one, two) = (Bench::new(), key("one"), key("two"));
    let key_permits: Vec<_> = (0..3).map(|_| bench.call(&one).unwrap().unwrap()).collect();
    assert!(bench.call(&two).is_none(), "they may all fail");
    assert!(bench.key_breaker.is_busy(&two, Service::Workspace));
    key_permits.into_iter().for_each(|key_permit| drop(key_permit.ended(SignatureOutcome::Refused)));
    assert!(bench.is_suspended(&one) && !bench.is_suspended(&two));
    bench.call(&two).unwrap().unwrap().ended(SignatureOutcome::Refused);
    // Clients with the old secret and clients with the new one, in turn.
    for _ in 0..100 {
        assert!(bench.call(&one).unwrap().is_err() && bench.call(&two).unwrap().is_err());
    }
    // Removing the key from the configuration for a while does not reset the count.
    bench.key_breaker.keep_only(&KeyRing::default());
    assert!(bench.is_suspended(&one) && bench.is_suspended(&two));
}

#[test]
fn an_acceptance_of_a_call_that_was_sent_before_a_refusal_does_not_end_the_suspension() {
    let (bench, key) = (Bench::new(), key("s"));
    bench.call(&key).unwrap().unwrap().ended(SignatureOutcome::Accepted);
    let mut key_permits: Vec<_> = (0..4).map(|_| bench.call(&key).unwrap().unwrap()).collect();
    let late = key_permits.pop().unwrap();
    key_permits.into_iter().for_each(|key_permit| drop(key_permit.ended(SignatureOutcome::Refused)));
    late.ended(SignatureOutcome::Accepted);
    assert!(bench.is_suspended(&key));
}

#[test]
fn an_operators_own_upstream_has_its_own_count() {
    let (bench, key) = (Bench::new(), key("s"));
    let mut catalogue = Catalogue::for_tests(Vec::new());
    let origin = Origin::new(Scheme::HTTPS, Authority::from_static("own.example"));
    let own = catalogue.service_at(origin).unwrap();
    for _ in 0..3 {
        poll_once(enter(&bench.key_breaker, &key, own))().unwrap().unwrap().ended(SignatureOutcome::Refused);
    }
    assert!(bench.key_breaker.is_suspended(&key, own));
    assert!(!bench.is_suspended(&key) && !bench.key_breaker.is_suspended(&key, Service::AppStream));
}

#[test]
fn a_response_reveals_whether_the_signature_was_accepted() {
    let of = |status, body: &str| SignatureOutcome::of(StatusCode::from_u16(status).unwrap(), body.as_bytes());
    let [gateway, service] = [r#"{"error_code":"APIGW.0301"}"#, r#"{"error_code":"WKS.00211302"}"#];
    for (status, body, expected) in [
        (200, "", SignatureOutcome::Accepted),
        (304, "", SignatureOutcome::Accepted),
        (401, gateway, SignatureOutcome::Refused),
        (401, "", SignatureOutcome::Refused),
        (401, "<html>", SignatureOutcome::Refused),
        (401, service, SignatureOutcome::Accepted),
        (403, "", SignatureOutcome::Accepted),
        (404, "", SignatureOutcome::Unknown),
        (404, gateway, SignatureOutcome::Unknown),
        (404, service, SignatureOutcome::Accepted),
        (429, "", SignatureOutcome::Unknown),
        (503, gateway, SignatureOutcome::Unknown),
    ] {
        assert_eq!(of(status, body), expected, "{status} {body}");
    }
}

#[test]
fn the_state_of_removed_keys_is_removed() {
    let (bench, key) = (Bench::new(), key("s"));
    let key_permit = bench.call(&key).unwrap().unwrap();
    bench.key_breaker.keep_only(&KeyRing::default());
    assert_eq!(bench.key_breaker.key_states().len(), 1, "a call is under way");
    drop(key_permit);
    bench.key_breaker.keep_only(&KeyRing::default());
    assert_eq!(bench.key_breaker.key_states().len(), 0);
}

#[test]
fn a_call_without_a_client_is_never_a_trial() {
    let (bench, other) = (Bench::new(), key("other"));
    let key = key("s");
    let enter = || bench.key_breaker.enter_without_trial(&key, Service::Workspace);
    let needs_none = || bench.key_breaker.for_keep_warm(&key, Service::Workspace, false).1;
    assert!(needs_none(), "upstream has refused nothing");
    enter().unwrap().ended(SignatureOutcome::Refused);
    for _ in 1..MAX_REFUSALS {
        assert!(!needs_none() && enter().is_none());
        bench.call(&key).unwrap().unwrap().ended(SignatureOutcome::Refused);
    }
    // The suspension has run out, and the next call is a trial.
    bench.clock.advance(SUSPENSION);
    assert!(!bench.is_suspended(&key) && enter().is_none() && !needs_none());
    bench.key_breaker.retry_suspended();
    assert!(enter().is_none(), "nor after SIGHUP");
    assert!(!bench.key_breaker.for_keep_warm(&other, Service::Workspace, false).1, "another secret of the key");
    bench.call(&key).unwrap().unwrap().ended(SignatureOutcome::Accepted);
    assert!(needs_none() && enter().is_some());
    // It does not wait for other calls.
    let new = self::key("new");
    let held: Vec<_> = (0..MAX_REFUSALS).map(|_| bench.call(&new).unwrap().unwrap()).collect();
    assert!(bench.key_breaker.enter_without_trial(&new, Service::Workspace).is_none() && held.len() == 3);
}

#[test]
fn acceptances_of_clients_are_numbered_like_the_permits() {
    let (bench, key) = (Bench::new(), key("s"));
    let accepted = || bench.key_breaker.for_keep_warm(&key, Service::AppStream, false).0;
    let issued = || bench.key_breaker.issued(&key, Service::Workspace);
    assert_eq!((accepted(), issued()), (None, 0));
    bench.key_breaker.enter_without_trial(&key, Service::Workspace).unwrap().ended(SignatureOutcome::Accepted);
    assert_eq!((accepted(), issued()), (None, 1), "it was no client's");
    let (early, late) = (bench.call(&key).unwrap().unwrap(), bench.call(&key).unwrap().unwrap());
    late.accepted_for_client();
    early.accepted_for_client();
    assert_eq!((accepted(), issued()), (Some(3), 3));
    assert_eq!(bench.key_breaker.for_keep_warm(&self::key("new"), Service::Workspace, false).0, None);
}

#[test]
fn only_an_acceptance_that_keep_warm_waits_for_is_reported() {
    let (bench, key) = (Bench::new(), key("s"));
    let ask = |awaits_client| bench.key_breaker.for_keep_warm(&key, Service::Workspace, awaits_client);
    let accepted = || bench.call(&key).unwrap().unwrap().accepted_for_client().is_awaited;
    ask(false);
    assert!(!accepted(), "nobody waits");
    ask(true);
    assert_eq!((accepted(), accepted()), (true, false), "the first one");
    // After a refusal, only a client's call may try the key.
    bench.call(&key).unwrap().unwrap().ended(SignatureOutcome::Refused);
    assert!(!ask(false).1);
    assert_eq!((accepted(), ask(false).1, accepted()), (true, true, false));
}

#[test]
fn without_a_fleet_nothing_is_told() {
    let (bench, key) = (Bench::new(), key("s"));
    for outcome in [SignatureOutcome::Refused, SignatureOutcome::Accepted, SignatureOutcome::Unknown] {
        assert!(bench.call(&key).unwrap().unwrap().ended(outcome).news.is_none());
    }
}
