//! Grants, second by second.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::*;

use crate::cache::freshness::{Life, Lifetime};
use crate::catalogue::Catalogue;
use crate::clock::Clock;
use crate::request::caller::Callers;
use crate::request::key::RequestKey;

const SECOND: Duration = Duration::from_secs(1);
const TERMS: GrantSettings = GrantSettings {
    grant_ttl: Duration::from_secs(300),
    denial_ttl: Duration::from_secs(2),
    outage_grace: Some(Duration::from_secs(3600)),
    max_grants: 10,
};

fn caller_scope(token: &str, path: &str) -> CallerScope {
    let catalogue = Catalogue::for_tests(Vec::new());
    let (operation, project_id) = catalogue.operation(path).unwrap();
    let key = RequestKey::read(&catalogue, operation, project_id, None, &HeaderMap::new(), false).unwrap();
    let caller = Callers::new([0; 32]).of_token(&HeaderValue::from_str(token).unwrap());
    CallerScope { caller, scope: key.scope().clone() }
}

fn refusal(body: &'static [u8], now: Instant) -> Option<Entry> {
    let mut answer = Response::new(Bytes::from_static(body));
    *answer.status_mut() = StatusCode::UNAUTHORIZED;
    let life = Life { sent: now, initial_age: Duration::ZERO, lifetime: Lifetime::default() };
    Some(Entry::new(&answer, life, None))
}

impl PendingGrant {
    /// Head and body of a 401 come at once.
    fn denied_and_refused(mut self, by: RefusedBy, refusal: Option<Entry>, now: Instant) {
        self.denied(StatusCode::UNAUTHORIZED);
        self.refused(by, refusal, now);
    }
}

/// How the standing reads, second by second.
fn grant_state(grants: &Grants, caller_scope: &CallerScope, now: Instant) -> &'static str {
    match grants.grant_state(caller_scope, now) {
        GrantState::Granted => "granted",
        GrantState::Grace { .. } => "lapsed",
        GrantState::Unknown => "unproved",
        GrantState::Denied { .. } => "denied",
    }
}

#[test]
fn a_grant_lives_from_when_its_proof_was_sent() {
    let grants = Arc::new(Grants::new(TERMS));
    let (me, begun) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    let at = |second: u32| begun + second * SECOND;
    assert_eq!(grant_state(&grants, &me, begun), "unproved");
    assert_eq!(grants.begin_call(me.clone(), begun).proved(at(30)), Proof::Granted);
    let expected = [(30, "granted"), (299, "granted"), (300, "lapsed"), (3599, "lapsed"), (3600, "unproved")];
    for (second, expected) in expected {
        assert_eq!(grant_state(&grants, &me, at(second)), expected, "{second}");
    }
    assert!(matches!(grants.grant_state(&me, at(3599)), GrantState::Grace { ended } if ended == at(300)));
    assert_eq!((grants.live(at(299)), grants.live(at(300))), (1, 0));
    for other in
        [caller_scope("b", "/v2/p/products"), caller_scope("a", "/v2/q/products"), caller_scope("a", "/v1/p/product")]
    {
        assert_eq!(grant_state(&grants, &other, begun), "unproved", "{other:?}");
    }
    // What was sent earlier and lands later shortens nothing.
    assert_eq!(grants.begin_call(me.clone(), at(200)).proved(at(201)), Proof::Renewed);
    assert_eq!(grants.begin_call(me.clone(), at(100)).proved(at(202)), Proof::Renewed);
    assert_eq!(grant_state(&grants, &me, at(499)), "granted");
}

#[test]
fn without_grace_a_lapsed_grant_is_none() {
    let grants = Arc::new(Grants::new(GrantSettings { outage_grace: None, ..TERMS }));
    let (me, begun) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    grants.begin_call(me.clone(), begun).proved(begun);
    assert_eq!(grant_state(&grants, &me, begun + 300 * SECOND), "unproved");
}

#[test]
fn a_denial_ends_the_grant_and_what_was_sent_before_it() {
    let grants = Arc::new(Grants::new(TERMS));
    let (me, begun) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    let at = |second: u32| begun + second * SECOND;
    grants.begin_call(me.clone(), begun).proved(begun);
    let [early, same, denied, later] = [1, 2, 2, 3].map(|second| grants.begin_call(me.clone(), at(second)));
    denied.denied_and_refused(RefusedBy::ApiGateway, refusal(b"no", at(4)), at(4));
    assert_eq!((early.proved(at(5)), same.proved(at(5))), (Proof::Late, Proof::Late));
    assert_eq!(grant_state(&grants, &me, at(5)), "denied");
    assert_eq!(later.proved(at(5)), Proof::Granted);
    assert_eq!(grant_state(&grants, &me, at(5)), "granted");
    let tables = grants.tables();
    assert!(
        tables.calls.is_empty() && tables.service_calls.is_empty(),
        "nothing is remembered of calls that have ended"
    );
}

#[test]
fn a_denial_that_an_older_call_brings_ends_the_grant_and_is_not_repeated() {
    let grants = Arc::new(Grants::new(TERMS));
    let (me, begun) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    let older = grants.begin_call(me.clone(), begun);
    grants.begin_call(me.clone(), begun + SECOND).proved(begun + SECOND);
    older.denied_and_refused(RefusedBy::ApiGateway, refusal(b"no", begun), begun + 2 * SECOND);
    assert_eq!(grant_state(&grants, &me, begun + 2 * SECOND), "unproved");
}

#[test]
fn a_denial_is_repeated_for_a_while() {
    let grants = Arc::new(Grants::new(TERMS));
    let (me, begun) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    grants.begin_call(me.clone(), begun).denied_and_refused(
        RefusedBy::ApiGateway,
        refusal(b"no", begun),
        begun + SECOND,
    );
    assert_eq!(grant_state(&grants, &me, begun + 2 * SECOND), "denied");
    assert_eq!(grant_state(&grants, &caller_scope("a", "/v2/q/products"), begun + 2 * SECOND), "unproved");
    assert_eq!(grant_state(&grants, &me, begun + 3 * SECOND), "unproved");
}

#[test]
fn a_large_refusal_is_not_remembered() {
    let grants = Arc::new(Grants::new(TERMS));
    let (me, begun) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    grants.begin_call(me.clone(), begun).denied_and_refused(
        RefusedBy::ApiGateway,
        refusal(&[b'x'; MAX_REFUSAL_SIZE], begun),
        begun,
    );
    assert_eq!(grant_state(&grants, &me, begun), "unproved");
}

#[test]
fn other_terms_hold_for_the_grants_there_are() {
    let grants = Arc::new(Grants::new(TERMS));
    let (me, begun) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    grants.begin_call(me.clone(), begun).proved(begun);
    grants.begin_call(caller_scope("b", "/v2/p/products"), begun).denied_and_refused(
        RefusedBy::ApiGateway,
        refusal(b"no", begun),
        begun,
    );
    grants.set_terms(GrantSettings { grant_ttl: SECOND, denial_ttl: 9 * SECOND, outage_grace: None, max_grants: 2 });
    assert_eq!(grant_state(&grants, &me, begun), "granted");
    assert_eq!((grant_state(&grants, &me, begun + SECOND), grants.live(begun + SECOND)), ("unproved", 0));
    let refused = grant_state(&grants, &caller_scope("b", "/v2/p/products"), begun + 3 * SECOND);
    assert_eq!(refused, "unproved", "said again for longer than it was going to be");
    for number in 0..100 {
        grants.begin_call(caller_scope(&number.to_string(), "/v2/p/products"), begun).proved(begun);
    }
    assert_eq!(grants.live(begun), 2);
}

#[test]
fn grants_are_bounded_and_the_used_ones_stay() {
    let grants = Arc::new(Grants::new(TERMS));
    let (me, begun) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    grants.begin_call(me.clone(), begun).proved(begun);
    for number in 0..100 {
        grants.begin_call(caller_scope(&number.to_string(), "/v2/p/products"), begun).proved(begun);
        assert!(grants.is_granted(&me, begun) && grants.live(begun) <= TERMS.max_grants);
    }
    assert!(!grants.is_granted(&caller_scope("0", "/v2/p/products"), begun));
}

#[test]
fn grants_are_counted_in_short_steps_between_which_the_lock_is_free() {
    const MANY: usize = 100_000;
    let grants = Arc::new(Grants::new(GrantSettings { max_grants: MANY, ..TERMS }));
    let (me, begun) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    let callers = Callers::new([0; 32]);
    for number in 0..MANY {
        let caller = callers.of_token(&HeaderValue::from(number));
        grants.begin_call(CallerScope { caller, ..me.clone() }, begun).proved(begun);
    }
    let (mut steps, mut most) = (0, 0);
    let live = grants.live_in_steps(begun, |visited| {
        steps += 1;
        most = most.max(visited);
        assert!(grants.tables.try_lock().is_some(), "a hit can have it");
    });
    assert_eq!(live, MANY);
    assert!(most <= 128 && steps <= 2 + MANY / 128, "{most} grants in one of {steps} steps");
}

/// A request of the caller "a" that passes through to a service.
fn pass_through(grants: &Arc<Grants>, service: Service, sent: Instant) -> PendingGrant {
    grants.begin_unscoped_call(caller_scope("a", "/v2/p/products").caller, service, sent)
}

#[test]
fn a_401_on_any_path_ends_all_grants_of_its_caller_in_that_service() {
    let grants = Arc::new(Grants::new(TERMS));
    let begun = Clock::System.now();
    let paths = ["/v2/p/products", "/v2/q/products", "/v1/p/product"];
    let prove = |token| paths.map(|path| grants.begin_call(caller_scope(token, path), begun).proved(begun));
    let grant_states = |token| paths.map(|path| grant_state(&grants, &caller_scope(token, path), begun));
    prove("a");
    prove("b");
    let earlier = grants.begin_call(caller_scope("a", "/v2/r/products"), begun);
    let mut denial = pass_through(&grants, Service::Workspace, begun);
    denial.denied(StatusCode::UNAUTHORIZED);
    assert_eq!(grant_states("a"), ["unproved", "unproved", "granted"], "suspended at the head");
    assert_eq!((grant_states("b"), grants.live(begun)), (["granted"; 3], 4));
    assert_eq!(earlier.proved(begun), Proof::Late);
    let later = grants.begin_call(caller_scope("a", paths[0]), begun + SECOND);
    assert_eq!(later.proved(begun + SECOND), Proof::Granted);
    denial.refused(RefusedBy::ApiGateway, None, begun);
    assert_eq!(grant_states("a"), ["granted", "unproved", "granted"]);
    assert_eq!(grants.live(begun), 5);
}

#[test]
fn a_401_with_the_services_own_code_ends_the_grant_of_its_scope_only() {
    let grants = Arc::new(Grants::new(TERMS));
    let begun = Clock::System.now();
    let (here, there) = (caller_scope("a", "/v2/p/products"), caller_scope("a", "/v2/q/products"));
    for caller_scope in [&here, &there] {
        grants.begin_call(caller_scope.clone(), begun).proved(begun);
    }
    let call_elsewhere = grants.begin_call(caller_scope("a", "/v2/r/products"), begun);
    let denials = [grants.begin_call(here.clone(), begun), pass_through(&grants, Service::Workspace, begun)];
    for mut denial in denials {
        denial.denied(StatusCode::UNAUTHORIZED);
        assert_eq!([grant_state(&grants, &here, begun), grant_state(&grants, &there, begun)], ["unproved"; 2]);
        denial.refused(RefusedBy::Service, None, begun);
    }
    assert_eq!([grant_state(&grants, &here, begun), grant_state(&grants, &there, begun)], ["unproved", "granted"]);
    assert_eq!(call_elsewhere.proved(begun), Proof::Granted);
    assert!(grants.tables().suspensions == 0 && grants.tables().service_calls.is_empty());
}

#[test]
fn a_403_ends_the_grant_of_its_scope_only() {
    let grants = Arc::new(Grants::new(TERMS));
    let begun = Clock::System.now();
    let (here, there) = (caller_scope("a", "/v2/p/products"), caller_scope("a", "/v2/q/products"));
    for caller_scope in [&here, &there] {
        grants.begin_call(caller_scope.clone(), begun).proved(begun);
    }
    let mut denial = grants.begin_call(here.clone(), begun);
    denial.denied(StatusCode::FORBIDDEN);
    assert_eq!([grant_state(&grants, &here, begun), grant_state(&grants, &there, begun)], ["unproved", "granted"]);
}

#[test]
fn a_401_that_nobody_reads_to_its_end_is_one_of_the_credential() {
    let grants = Arc::new(Grants::new(TERMS));
    let (me, begun) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    grants.begin_call(me.clone(), begun).proved(begun);
    let mut denial = pass_through(&grants, Service::Workspace, begun);
    denial.denied(StatusCode::UNAUTHORIZED);
    drop(denial);
    assert_eq!((grant_state(&grants, &me, begun), grants.live(begun)), ("unproved", 0));
}

#[test]
fn an_account_that_was_forgotten_brings_no_grant_back() {
    let grants = Arc::new(Grants::new(TERMS));
    let (me, begun) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    grants.begin_call(me.clone(), begun).proved(begun);
    let mut denial = pass_through(&grants, Service::Workspace, begun);
    denial.denied(StatusCode::UNAUTHORIZED);
    denial.refused(RefusedBy::ApiGateway, None, begun);
    grants.tables().accounts.retain(|_| false);
    assert_eq!(grant_state(&grants, &me, begun), "unproved");
    grants.begin_call(caller_scope("a", "/v2/q/products"), begun + SECOND).proved(begun + SECOND);
    assert_eq!(grant_state(&grants, &me, begun + SECOND), "unproved");
}
