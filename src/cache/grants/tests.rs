//! The states of grants over time.

mod schedules;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::*;

use crate::cache::freshness::{FreshnessInfo, Lifetime};
use crate::catalogue::Catalogue;
use crate::clock::Clock;
use crate::request::caller::Callers;
use crate::request::key::RequestKey;

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const SETTINGS: GrantPolicy = GrantPolicy {
    grant_ttl: Duration::from_secs(300),
    denial_ttl: Duration::from_secs(2),
    outage_grace: Some(Duration::from_secs(3600)),
    renewal: RenewalPolicy { max_lead: Duration::from_secs(60), jitter: 0 },
    max_grants: 10,
};

pub(super) fn caller_scope(token: &str, path: &str) -> CallerScope {
    let catalogue = Catalogue::for_tests(Vec::new());
    let (operation, project_id) = catalogue.operation(path).unwrap();
    let key = RequestKey::read(&catalogue, operation, project_id, None, &HeaderMap::new(), false).unwrap();
    let caller = Callers::new([0; 32]).of_token(&HeaderValue::from_str(token).unwrap());
    CallerScope { caller, scope: key.scope().clone() }
}

pub(super) fn refusal(body: &'static [u8], now: Instant) -> Option<Entry> {
    let mut response = Response::new(Bytes::from_static(body));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    let freshness_info = FreshnessInfo { sent: now, initial_age: Duration::ZERO, lifetime: Lifetime::default() };
    Some(Entry::new(&response, freshness_info, None))
}

impl PendingGrant {
    /// Records the head and the body of a 401.
    pub(super) fn denied_and_refused(mut self, by: RefusedBy, refusal: Option<Entry>, now: Instant) {
        self.denied(StatusCode::UNAUTHORIZED);
        self.refused(by, refusal, now);
    }
}

/// The grant state as a word.
pub(super) fn grant_state(grants: &Grants, caller_scope: &CallerScope, now: Instant) -> &'static str {
    match grants.grant_state(caller_scope, now) {
        GrantState::Granted => "granted",
        GrantState::Lapsed { .. } => "grace",
        GrantState::Unknown => "unknown",
        GrantState::Denied { .. } => "denied",
    }
}

#[test]
fn the_lifetime_of_a_grant_begins_when_its_proof_was_sent() {
    let grants = Arc::new(Grants::new(SETTINGS, Arc::default()));
    let (me, start) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    let at = |second: u32| start + second * SECOND;
    assert_eq!(grant_state(&grants, &me, start), "unknown");
    assert_eq!(grants.begin_call(me.clone(), start).proved(at(30)), Proof::Granted);
    let expected = [(30, "granted"), (299, "granted"), (300, "grace"), (3599, "grace"), (3600, "unknown")];
    for (second, expected) in expected {
        assert_eq!(grant_state(&grants, &me, at(second)), expected, "{second}");
    }
    assert!(matches!(grants.grant_state(&me, at(3599)), GrantState::Lapsed { ended } if ended == at(300)));
    assert_eq!((grants.live(at(299)), grants.live(at(300))), (1, 0));
    for other in
        [caller_scope("b", "/v2/p/products"), caller_scope("a", "/v2/q/products"), caller_scope("a", "/v1/p/product")]
    {
        assert_eq!(grant_state(&grants, &other, start), "unknown", "{other:?}");
    }
    // A proof that was sent earlier and received later does not shorten the grant.
    assert_eq!(grants.begin_call(me.clone(), at(200)).proved(at(201)), Proof::Renewed);
    assert_eq!(grants.begin_call(me.clone(), at(100)).proved(at(202)), Proof::Renewed);
    assert_eq!(grant_state(&grants, &me, at(499)), "granted");
}

#[test]
fn without_outage_grace_a_lapsed_grant_is_unknown() {
    let grants = Arc::new(Grants::new(GrantPolicy { outage_grace: None, ..SETTINGS }, Arc::default()));
    let (me, start) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    grants.begin_call(me.clone(), start).proved(start);
    assert_eq!(grant_state(&grants, &me, start + 300 * SECOND), "unknown");
}

#[test]
fn a_denial_ends_the_grant_and_earlier_calls_are_late() {
    let grants = Arc::new(Grants::new(SETTINGS, Arc::default()));
    let (me, start) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    let at = |second: u32| start + second * SECOND;
    grants.begin_call(me.clone(), start).proved(start);
    let [early, same, denied, later] = [1, 2, 2, 3].map(|second| grants.begin_call(me.clone(), at(second)));
    denied.denied_and_refused(RefusedBy::ApiGateway, refusal(b"no", at(4)), at(4));
    assert_eq!((early.proved(at(5)), same.proved(at(5))), (Proof::Late, Proof::Late));
    assert_eq!(grant_state(&grants, &me, at(5)), "denied");
    assert_eq!(later.proved(at(5)), Proof::Granted);
    assert_eq!(grant_state(&grants, &me, at(5)), "granted");
    let tables = grants.tables();
    assert!(tables.calls.is_empty() && tables.service_calls.is_empty(), "calls that have ended are removed");
}

#[test]
fn a_denial_of_an_older_call_ends_the_grant_and_is_not_repeated() {
    let grants = Arc::new(Grants::new(SETTINGS, Arc::default()));
    let (me, start) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    let older = grants.begin_call(me.clone(), start);
    grants.begin_call(me.clone(), start + SECOND).proved(start + SECOND);
    older.denied_and_refused(RefusedBy::ApiGateway, refusal(b"no", start), start + 2 * SECOND);
    assert_eq!(grant_state(&grants, &me, start + 2 * SECOND), "unknown");
}

#[test]
fn a_denial_is_repeated_for_its_ttl() {
    let grants = Arc::new(Grants::new(SETTINGS, Arc::default()));
    let (me, start) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    grants.begin_call(me.clone(), start).denied_and_refused(
        RefusedBy::ApiGateway,
        refusal(b"no", start),
        start + SECOND,
    );
    assert_eq!(grant_state(&grants, &me, start + 2 * SECOND), "denied");
    assert_eq!(grant_state(&grants, &caller_scope("a", "/v2/q/products"), start + 2 * SECOND), "unknown");
    assert_eq!(grant_state(&grants, &me, start + 3 * SECOND), "unknown");
}

#[test]
fn a_large_refusal_is_not_stored() {
    let grants = Arc::new(Grants::new(SETTINGS, Arc::default()));
    let (me, start) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    grants.begin_call(me.clone(), start).denied_and_refused(
        RefusedBy::ApiGateway,
        refusal(&[b'x'; MAX_REFUSAL_SIZE], start),
        start,
    );
    assert_eq!(grant_state(&grants, &me, start), "unknown");
}

#[test]
fn new_settings_apply_to_existing_grants() {
    let grants = Arc::new(Grants::new(SETTINGS, Arc::default()));
    let (me, start) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    grants.begin_call(me.clone(), start).proved(start);
    grants.begin_call(caller_scope("b", "/v2/p/products"), start).denied_and_refused(
        RefusedBy::ApiGateway,
        refusal(b"no", start),
        start,
    );
    grants.set_settings(GrantPolicy {
        grant_ttl: SECOND,
        denial_ttl: 9 * SECOND,
        outage_grace: None,
        max_grants: 2,
        ..SETTINGS
    });
    assert_eq!(grant_state(&grants, &me, start), "granted");
    assert_eq!((grant_state(&grants, &me, start + SECOND), grants.live(start + SECOND)), ("unknown", 0));
    let refused = grant_state(&grants, &caller_scope("b", "/v2/p/products"), start + 3 * SECOND);
    assert_eq!(refused, "unknown", "the refusal keeps its old end");
    for number in 0..100 {
        grants.begin_call(caller_scope(&number.to_string(), "/v2/p/products"), start).proved(start);
    }
    assert_eq!(grants.live(start), 2);
}

#[test]
fn the_number_of_grants_is_bounded_and_used_ones_stay() {
    let grants = Arc::new(Grants::new(SETTINGS, Arc::default()));
    let (me, start) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    grants.begin_call(me.clone(), start).proved(start);
    for number in 0..100 {
        grants.begin_call(caller_scope(&number.to_string(), "/v2/p/products"), start).proved(start);
        assert!(grants.is_granted(&me, start) && grants.live(start) <= SETTINGS.max_grants);
    }
    assert!(!grants.is_granted(&caller_scope("0", "/v2/p/products"), start));
}

#[test]
fn grants_are_counted_in_short_steps_and_the_lock_is_free_between_them() {
    const MANY: usize = 100_000;
    let grants = Arc::new(Grants::new(GrantPolicy { max_grants: MANY, ..SETTINGS }, Arc::default()));
    let (me, start) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    let callers = Callers::new([0; 32]);
    for number in 0..MANY {
        let caller = callers.of_token(&HeaderValue::from(number));
        grants.begin_call(CallerScope { caller, ..me.clone() }, start).proved(start);
    }
    let (mut steps, mut most) = (0, 0);
    let live = grants.live_in_steps(start, |visited| {
        steps += 1;
        most = most.max(visited);
        assert!(grants.tables.try_lock().is_some(), "a hit can take the lock");
    });
    assert_eq!(live, MANY);
    assert!(most <= 128 && steps <= 2 + MANY / 128, "{most} grants in one of {steps} steps");
}

/// A request of the caller "a" that is relayed to a service.
fn relayed_call(grants: &Arc<Grants>, service: Service, sent: Instant) -> PendingGrant {
    grants.begin_unscoped_call(caller_scope("a", "/v2/p/products").caller, service, sent)
}

#[test]
fn a_401_on_any_path_ends_all_grants_of_its_caller_in_that_service() {
    let grants = Arc::new(Grants::new(SETTINGS, Arc::default()));
    let start = Clock::System.now();
    let paths = ["/v2/p/products", "/v2/q/products", "/v1/p/product"];
    let prove = |token| paths.map(|path| grants.begin_call(caller_scope(token, path), start).proved(start));
    let grant_states = |token| paths.map(|path| grant_state(&grants, &caller_scope(token, path), start));
    prove("a");
    prove("b");
    let earlier = grants.begin_call(caller_scope("a", "/v2/r/products"), start);
    let mut denial = relayed_call(&grants, Service::Workspace, start);
    denial.denied(StatusCode::UNAUTHORIZED);
    assert_eq!(grant_states("a"), ["unknown", "unknown", "granted"], "a 401 suspends at its head");
    assert_eq!((grant_states("b"), grants.live(start)), (["granted"; 3], 4));
    assert_eq!(earlier.proved(start), Proof::Late);
    let later = grants.begin_call(caller_scope("a", paths[0]), start + SECOND);
    assert_eq!(later.proved(start + SECOND), Proof::Granted);
    denial.refused(RefusedBy::ApiGateway, None, start);
    assert_eq!(grant_states("a"), ["granted", "unknown", "granted"]);
    assert_eq!(grants.live(start), 5);
}

#[test]
fn a_401_with_the_services_own_code_ends_the_grant_of_its_scope_only() {
    let grants = Arc::new(Grants::new(SETTINGS, Arc::default()));
    let start = Clock::System.now();
    let (here, there) = (caller_scope("a", "/v2/p/products"), caller_scope("a", "/v2/q/products"));
    for caller_scope in [&here, &there] {
        grants.begin_call(caller_scope.clone(), start).proved(start);
    }
    let call_elsewhere = grants.begin_call(caller_scope("a", "/v2/r/products"), start);
    let denials = [grants.begin_call(here.clone(), start), relayed_call(&grants, Service::Workspace, start)];
    for mut denial in denials {
        denial.denied(StatusCode::UNAUTHORIZED);
        assert_eq!([grant_state(&grants, &here, start), grant_state(&grants, &there, start)], ["unknown"; 2]);
        denial.refused(RefusedBy::Service, None, start);
    }
    assert_eq!([grant_state(&grants, &here, start), grant_state(&grants, &there, start)], ["unknown", "granted"]);
    assert_eq!(call_elsewhere.proved(start), Proof::Granted);
    assert!(grants.tables().suspensions == 0 && grants.tables().service_calls.is_empty());
}

#[test]
fn a_403_ends_the_grant_of_its_scope_only() {
    let grants = Arc::new(Grants::new(SETTINGS, Arc::default()));
    let start = Clock::System.now();
    let (here, there) = (caller_scope("a", "/v2/p/products"), caller_scope("a", "/v2/q/products"));
    for caller_scope in [&here, &there] {
        grants.begin_call(caller_scope.clone(), start).proved(start);
    }
    let mut denial = grants.begin_call(here.clone(), start);
    denial.denied(StatusCode::FORBIDDEN);
    assert_eq!([grant_state(&grants, &here, start), grant_state(&grants, &there, start)], ["unknown", "granted"]);
}

#[test]
fn a_401_that_is_not_read_to_its_end_ends_all_grants() {
    let grants = Arc::new(Grants::new(SETTINGS, Arc::default()));
    let (me, start) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    grants.begin_call(me.clone(), start).proved(start);
    let mut denial = relayed_call(&grants, Service::Workspace, start);
    denial.denied(StatusCode::UNAUTHORIZED);
    drop(denial);
    assert_eq!((grant_state(&grants, &me, start), grants.live(start)), ("unknown", 0));
}

#[test]
fn a_caller_that_was_removed_from_the_table_gets_no_grant_back() {
    let grants = Arc::new(Grants::new(SETTINGS, Arc::default()));
    let (me, start) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    grants.begin_call(me.clone(), start).proved(start);
    let mut denial = relayed_call(&grants, Service::Workspace, start);
    denial.denied(StatusCode::UNAUTHORIZED);
    denial.refused(RefusedBy::ApiGateway, None, start);
    grants.tables().caller_services.retain(|_| false);
    assert_eq!(grant_state(&grants, &me, start), "unknown");
    grants.begin_call(caller_scope("a", "/v2/q/products"), start + SECOND).proved(start + SECOND);
    assert_eq!(grant_state(&grants, &me, start + SECOND), "unknown");
}

/// What another process would be told, by path.
pub(super) fn proofs(grants: &Grants, now: Instant) -> Vec<RestoredProof> {
    let mut all = Vec::new();
    grants.visit_proofs(now, |proofs| all.extend_from_slice(proofs));
    all.sort_by(|one, other| one.caller_scope.scope.path().cmp(other.caller_scope.scope.path()));
    all
}

#[test]
fn a_proof_of_an_earlier_process_is_a_lapsed_grant_until_the_caller_proves_itself() {
    let (first, second, third) = [(); 3].map(|()| Arc::new(Grants::new(SETTINGS, Arc::default()))).into();
    let (me, start) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    let at = |seconds: u32| start + seconds * SECOND;
    first.begin_call(me.clone(), start).proved(start);
    assert!(second.restore(proofs(&first, at(10)), at(10)));
    let covers = |grants: &Grants, now| match grants.grant_state(&me, now) {
        GrantState::Lapsed { ended } => Some(ended),
        _ => None,
    };
    assert_eq!(covers(&second, at(20)), Some(at(10)), "nothing later than the snapshot");
    assert_eq!((second.use_grant(&me, at(20)), second.live(at(20))), (GrantUse::NotGranted, 0));
    assert_eq!((second.lifetime(&me, at(20)), second.ends_soon(&me, at(20))), (None, true));
    // The next process keeps the bound, and the time of the proof.
    assert!(third.restore(proofs(&second, at(200)), at(200)));
    assert_eq!((covers(&third, at(3599)), covers(&third, at(3600))), (Some(at(10)), None));
    assert_eq!(second.begin_call(me.clone(), at(20)).proved(at(21)), Proof::Granted);
    assert_eq!((grant_state(&second, &me, at(21)), second.live(at(21))), ("granted", 1));
    assert!(!second.restore(proofs(&first, at(10)), at(10)), "too late");
}

#[test]
fn another_process_is_told_of_no_grant_that_has_ended_or_is_suspended() {
    let grants = Arc::new(Grants::new(SETTINGS, Arc::default()));
    let start = Clock::System.now();
    for path in ["/v2/p/products", "/v2/q/products", "/v1/p/product"] {
        grants.begin_call(caller_scope("a", path), start).proved(start);
    }
    let told = || proofs(&grants, start).iter().map(|proof| proof.caller_scope.scope.path().to_owned()).collect();
    let mut denial = grants.begin_call(caller_scope("a", "/v2/p/products"), start);
    denial.denied(StatusCode::UNAUTHORIZED);
    let suspended: Vec<String> = told();
    denial.refused(RefusedBy::ApiGateway, None, start);
    let ended: Vec<String> = told();
    assert_eq!((suspended, ended), (vec!["/v1/p/product".to_owned()], vec!["/v1/p/product".to_owned()]));
    assert!(proofs(&grants, start + 3600 * SECOND).is_empty(), "no failure could extend it");
}

#[test]
fn the_denial_of_a_caller_is_a_revocation_only_if_it_ends_a_grant() {
    let revocations = Arc::<Revocations>::default();
    let grants = Arc::new(Grants::new(SETTINGS, Arc::clone(&revocations)));
    let (me, start) = (caller_scope("a", "/v2/p/products"), Clock::System.now());
    let deny = |caller_scope: &CallerScope| {
        let before = revocations.count();
        grants.begin_call(caller_scope.clone(), start).denied_and_refused(RefusedBy::ApiGateway, None, start);
        revocations.count() - before
    };
    assert_eq!(deny(&me), 0);
    grants.begin_call(me.clone(), start + SECOND).proved(start + SECOND);
    assert_eq!([deny(&caller_scope("b", "/v2/p/products")), deny(&caller_scope("a", "/v2/q/products"))], [0, 1]);
    assert_eq!([deny(&me), deny(&caller_scope("a", "/v2/q/products"))], [1, 0]);
    grants.begin_call(me.clone(), start + 2 * SECOND).proved(start + 2 * SECOND);
    assert_eq!([deny(&me), deny(&me)], [1, 0]);
    grants.begin_call(me.clone(), start + 3 * SECOND).proved(start + 3 * SECOND);
    let before = revocations.count();
    grants.begin_call(caller_scope("a", "/v2/q/products"), start + 3 * SECOND).denied(StatusCode::FORBIDDEN);
    assert_eq!(revocations.count(), before, "a 403 ends the grant of its scope only");
}

#[test]
fn a_look_up_may_be_remembered_until_a_renewal_may_be_due_or_grants_end() {
    let revocations = Arc::<Revocations>::default();
    let grants = Arc::new(Grants::new(SETTINGS, Arc::clone(&revocations)));
    let start = Clock::System.now();
    let prove = |token: &str| grants.begin_call(caller_scope(token, "/v2/p/products"), start).proved(start);
    // Whether a denial of the caller changes the revision.
    let denial_counts = |token: &str| {
        let before = revocations.revision();
        grants.begin_call(caller_scope(token, "/v2/p/products"), start).denied(StatusCode::FORBIDDEN);
        revocations.revision() != before
    };
    prove("a");
    let until = start + 180 * SECOND;
    assert_eq!(grants.use_grant(&caller_scope("a", "/v2/p/products"), start), GrantUse::Granted { until });
    assert!(denial_counts("a") && !denial_counts("a"), "only a caller with a grant has something to lose");
    for number in 0..2 * SETTINGS.max_grants {
        prove(&number.to_string());
    }
    let snapshots = revocations.count();
    assert!(!denial_counts("invented"), "it has never had a grant");
    assert!(denial_counts("0"), "its grant was removed because the table was full");
    assert_ne!(revocations.count(), snapshots, "a snapshot may have its proof");
    assert!(!denial_counts("1"), "what had the proof of 0 had that of 1, too, and has ended");
    let before = (revocations.revision(), revocations.count());
    grants.lapse_all(start);
    assert_ne!(revocations.revision(), before.0);
    assert_eq!(revocations.count(), before.1, "a snapshot stays valid");
}

#[test]
fn denials_of_callers_that_only_the_snapshot_knows_are_revocations() {
    let deny = |grants: &Arc<Grants>, token: &str, status| {
        let (before, start) = (grants.revocations.count(), Clock::System.now());
        grants.begin_call(caller_scope(token, "/v2/p/products"), start).denied(status);
        grants.revocations.count() - before
    };
    let first = Arc::new(Grants::new(SETTINGS, Arc::default()));
    let start = Clock::System.now();
    let tokens = ["a", "b", "c", "d", "e", "f"];
    for token in tokens {
        first.begin_call(caller_scope(token, "/v2/p/products"), start).proved(start);
    }
    for status in [StatusCode::FORBIDDEN, StatusCode::UNAUTHORIZED] {
        let second = Arc::new(Grants::new(GrantPolicy { max_grants: 4, ..SETTINGS }, Arc::default()));
        assert!(second.restore(proofs(&first, start), start));
        let lost = |token: &&str| second.tables().grants.peek(&caller_scope(token, "/v2/p/products")).is_none();
        let lost = tokens.into_iter().find(lost).unwrap();
        assert_eq!([deny(&second, "invented", status), deny(&second, lost, status)], [0, 1], "{status}");
        assert_eq!(deny(&second, "invented", status), 0);
        second.lose_track();
        assert_eq!([deny(&second, "invented", status), deny(&second, "invented", status)], [1, 0]);
    }
}

#[test]
fn a_refused_credential_is_a_revocation_if_its_grants_in_other_scopes_were_removed() {
    let grants = Arc::new(Grants::new(SETTINGS, Arc::default()));
    let start = Clock::System.now();
    let mut tokens = vec!["lost".to_owned()];
    tokens.extend((0..SETTINGS.max_grants).map(|number| number.to_string()));
    for token in &tokens {
        grants.begin_call(caller_scope(token, "/v2/p/products"), start).proved(start);
    }
    let elsewhere = |token: &str| caller_scope(token, "/v2/q/products");
    for (token, expected) in [("invented", 0), ("lost", 1)] {
        let before = grants.revocations.count();
        grants.begin_call(elsewhere(token), start).denied(StatusCode::FORBIDDEN);
        assert_eq!(grants.revocations.count(), before, "a 403 is about its scope only");
        grants.told_refused(elsewhere(token).caller, Service::AppStream, start);
        assert_eq!(grants.revocations.count(), before);
        grants.begin_call(elsewhere(token), start).denied(StatusCode::UNAUTHORIZED);
        assert_eq!(grants.revocations.count() - before, expected, "{token}");
    }
    for token in &tokens {
        grants.begin_call(caller_scope(token, "/v2/p/products"), start + SECOND).proved(start + SECOND);
    }
    let before = grants.revocations.count();
    assert!(!grants.told_refused(elsewhere("lost").caller, Service::Workspace, start));
    assert_eq!(grants.revocations.count() - before, 1);
}
