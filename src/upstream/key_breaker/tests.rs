//! When a key is suspended, and when it is tried again.

use http::uri::{Authority, Scheme};

use std::time::Duration;

use super::key_state::{SUSPENSION, TURN};
use super::*;
use crate::catalogue::{Catalogue, Origin};
use crate::clock::ManualClock;
use crate::signing::Projects;

const SECOND: Duration = Duration::from_secs(1);

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
async fn enter(key_breaker: &Arc<KeyBreaker>, key: &AccessKey, service: Service) -> Result<KeyPermit, Suspended> {
    loop {
        key_breaker.ready(key, service).await;
        if let Some(permit) = key_breaker.try_enter(key, service)? {
            return Ok(permit);
        }
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

/// What a call of a gateway tells the others.
fn told(breaker: &Arc<KeyBreaker>, key: &AccessKey, outcome: SignatureOutcome) -> Option<KeyNews> {
    let permit = breaker.try_enter(key, Service::Workspace).unwrap().unwrap();
    permit.ended(outcome).news.map(|(_, news)| news)
}

/// The gateways of a fleet, numbered from 1, at a time that a test moves.
fn fleet<const N: usize>() -> ([Arc<KeyBreaker>; N], ManualClock) {
    let clock = ManualClock::default();
    let mut numbers = 1..;
    let breakers = [(); N].map(|()| KeyBreaker::new(numbers.next(), Clock::Manual(clock.clone())));
    (breakers, clock)
}

fn tell(breakers: &[Arc<KeyBreaker>], news: &KeyNews) {
    breakers.iter().for_each(|breaker| drop(breaker.told(news, None, breaker.clock.now())));
}

fn in_a_row(breaker: &KeyBreaker) -> u32 {
    breaker.key_states().get(&("AK".to_owned(), None)).map_or(0, KeyState::in_a_row)
}

#[test]
fn refusals_at_all_gateways_suspend_a_key_and_are_counted_once_in_any_order() {
    let ([one, two, three, late], clock) = fleet();
    let wrong = key("wrong");
    let mut all = Vec::new();
    for breaker in [&one, &two, &one] {
        assert!(!three.is_suspended(&wrong, Service::Workspace));
        let news = told(breaker, &wrong, SignatureOutcome::Refused).unwrap();
        tell(&[one.clone(), two.clone(), three.clone()], &news);
        tell(std::slice::from_ref(&three), &news);
        all.push(news);
        assert_eq!([&one, &two, &three].map(|it| in_a_row(it)), [all.len() as u32; 3]);
    }
    all.iter().rev().chain(&all).for_each(|news| tell(std::slice::from_ref(&late), news));
    for breaker in [&one, &two, &three, &late] {
        assert_eq!(in_a_row(breaker), 3);
        assert!(breaker.is_suspended(&wrong, Service::Workspace));
        assert!(!breaker.is_suspended(&key("new"), Service::Workspace));
    }
    // A hint that is told again does not suspend a key for longer.
    clock.advance(SUSPENSION + TURN * 9);
    tell(std::slice::from_ref(&late), &all[0]);
    assert!([&one, &two, &three, &late].iter().all(|it| !it.is_suspended(&wrong, Service::Workspace)));
}

#[test]
fn an_acceptance_at_one_gateway_ends_the_refusals_that_were_known_there() {
    let ([one, two, late], _) = fleet();
    let key = key("s");
    let refused = told(&one, &key, SignatureOutcome::Refused).unwrap();
    tell(std::slice::from_ref(&two), &refused);
    let accepted = told(&two, &key, SignatureOutcome::Accepted).unwrap();
    assert!(told(&two, &key, SignatureOutcome::Accepted).is_none(), "nothing has changed");
    // Meanwhile upstream has refused another call.
    let refused_again = told(&one, &key, SignatureOutcome::Refused).unwrap();
    tell(std::slice::from_ref(&one), &accepted);
    assert_eq!(in_a_row(&one), 1, "the one that was not known");
    let _permit = one.try_enter(&key, Service::Workspace).unwrap().unwrap();
    assert!(one.is_busy(&key, Service::Workspace), "it is not accepted");
    for news in [&accepted, &refused_again, &refused, &accepted, &refused] {
        tell(std::slice::from_ref(&late), news);
    }
    assert_eq!(in_a_row(&late), 1);
    let accepted = told(&late, &key, SignatureOutcome::Accepted).unwrap();
    for breaker in [&one, &two] {
        [&refused_again, &accepted, &refused_again].iter().for_each(|news| tell(std::slice::from_ref(breaker), news));
        assert_eq!(in_a_row(breaker), 0);
        let permits: Vec<_> = (0..9).map(|_| breaker.try_enter(&key, Service::Workspace).unwrap().unwrap()).collect();
        assert_eq!(permits.len(), 9, "its calls are not limited");
    }
}

#[test]
fn an_acceptance_does_not_end_refusals_that_were_told_after_its_call_was_sent() {
    let ([one, two], _) = fleet();
    let key = key("s");
    let permit = two.try_enter(&key, Service::Workspace).unwrap().unwrap();
    tell(std::slice::from_ref(&two), &told(&one, &key, SignatureOutcome::Refused).unwrap());
    assert!(permit.ended(SignatureOutcome::Accepted).news.is_none());
    assert_eq!(in_a_row(&two), 1);
}

#[test]
fn in_a_fleet_one_call_at_a_time_tries_a_secret_and_a_refusal_of_an_accepted_one_ends_that() {
    let ([one, two], _) = fleet();
    let key = key("s");
    let enter = |breaker: &Arc<KeyBreaker>| breaker.try_enter(&key, Service::Workspace).unwrap();
    let first = enter(&one).unwrap();
    assert!(enter(&one).is_none());
    let (_, accepted) = first.ended(SignatureOutcome::Accepted).news.unwrap();
    assert!(enter(&one).and(enter(&one)).is_some());
    let _first = enter(&two).unwrap();
    let mut waiting = poll_once(super::tests::enter(&two, &key, Service::Workspace));
    assert!(waiting().is_none());
    tell(std::slice::from_ref(&two), &accepted);
    assert!(waiting().unwrap().is_ok(), "a told acceptance wakes those that wait");
    let refused = told(&one, &key, SignatureOutcome::Refused).unwrap();
    tell(std::slice::from_ref(&two), &refused);
    assert!(enter(&two).is_none(), "a call is under way");
}

#[test]
fn after_a_suspension_gateways_try_one_after_the_other_and_those_without_refusals_first() {
    let ([one, two, three], clock) = fleet();
    let all = [one.clone(), two.clone(), three.clone()];
    let wrong = key("wrong");
    for breaker in [&one, &one, &two] {
        tell(&all, &told(breaker, &wrong, SignatureOutcome::Refused).unwrap());
    }
    let tries = || [&one, &two, &three].map(|it| !it.is_suspended(&wrong, Service::Workspace));
    clock.advance(SUSPENSION + TURN * 3);
    assert_eq!(tries(), [false, false, true], "the place of a gateway without refusals is its number modulo 8");
    clock.advance(TURN * 5);
    assert_eq!(tries(), [true, false, true]);
    clock.advance(TURN);
    assert_eq!(tries(), [true, true, true]);
    // Three gateways with the wrong secret do not lock the key, though each tries it whenever it may.
    let mut refusals = 3;
    for _ in 0..10_000 {
        for breaker in &all {
            if let Ok(Some(permit)) = breaker.try_enter(&wrong, Service::Workspace) {
                let (_, news) = permit.ended(SignatureOutcome::Refused).news.unwrap();
                refusals += 1;
                tell(&all, &news);
            }
        }
        clock.advance(SECOND);
    }
    assert_eq!(refusals, 5);
}

#[test]
fn gateways_that_send_at_once_fail_at_most_once_each_after_two_known_refusals() {
    let (all, clock) = fleet::<3>();
    let wrong = key("wrong");
    // The worst case: nobody is told before everybody has sent.
    for breaker in [&all[0], &all[1]] {
        tell(&all, &told(breaker, &wrong, SignatureOutcome::Refused).unwrap());
    }
    let permits = all.each_ref().map(|it| it.try_enter(&wrong, Service::Workspace).unwrap().unwrap());
    assert!(all.iter().all(|it| it.is_busy(&wrong, Service::Workspace)), "each has one call under way");
    permits.into_iter().for_each(|permit| tell(&all, &permit.ended(SignatureOutcome::Refused).news.unwrap().1));
    clock.advance(SUSPENSION * 1_000);
    assert!(all.iter().all(|it| in_a_row(it) == 5 && it.is_suspended(&wrong, Service::Workspace)));
}

#[test]
fn other_gateways_cannot_make_the_state_grow_without_limit() {
    let ([one, two], clock) = fleet();
    let now = clock_now(&clock);
    for number in 0..2 * MAX_TOLD_KEYS {
        let key = AccessKey::new(format!("AK{number}"), b"s", None, Projects::Any);
        let news = told(&one, &key, SignatureOutcome::Refused).unwrap();
        two.told(&news, None, now);
    }
    assert_eq!(two.key_states().len(), MAX_TOLD_KEYS);
    // Each restart of a gateway is another process.
    let ([_, other], key) = (fleet::<2>().0, key("s"));
    for process in 10..1_000 {
        let restarted = KeyBreaker::new(Some(process), Clock::Manual(clock.clone()));
        other.told(&told(&restarted, &key, SignatureOutcome::Refused).unwrap(), None, now);
        other.told(&told(&restarted, &key, SignatureOutcome::Accepted).unwrap(), None, now);
    }
    assert_eq!(in_a_row(&other), 0);
    assert!(told(&other, &key, SignatureOutcome::Refused).is_some());
}

#[test]
fn without_a_fleet_nothing_is_told() {
    let (bench, key) = (Bench::new(), key("s"));
    for outcome in [SignatureOutcome::Refused, SignatureOutcome::Accepted, SignatureOutcome::Unknown] {
        assert!(bench.call(&key).unwrap().unwrap().ended(outcome).news.is_none());
    }
}

fn clock_now(clock: &ManualClock) -> Instant {
    Clock::Manual(clock.clone()).now()
}
