//! What holds for grants in every order in which calls end and requests look.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use shuttle::thread;

use super::*;
use crate::clock::ManualClock;
use crate::sync::explore::{explore, may_switch};

/// Two scopes of one caller in one service, and a time.
fn scopes() -> ([CallerScope; 2], Instant) {
    let scopes = ["/v2/p/products", "/v2/q/products"].map(|path| caller_scope("a", path));
    (scopes, Clock::Manual(ManualClock::default()).now())
}

fn grants() -> (Arc<Revocations>, Arc<Grants>) {
    let revocations = Arc::<Revocations>::default();
    (Arc::clone(&revocations), Arc::new(Grants::new(SETTINGS, revocations)))
}

#[test]
fn a_denial_that_is_recorded_has_ended_every_earlier_look_up() {
    let ([me, _], start) = scopes();
    explore(move || {
        let (revocations, grants) = grants();
        let now = start + 3 * SECOND;
        grants.begin_call(me.clone(), start).proved(start);
        let denials = [1, 2].map(|second| grants.begin_call(me.clone(), start + second * SECOND));
        let is_denied = AtomicBool::new(false);
        thread::scope(|threads| {
            for mut denial in denials {
                let (grants, me, is_denied) = (&grants, &me, &is_denied);
                threads.spawn(move || {
                    denial.denied(StatusCode::FORBIDDEN);
                    is_denied.store(true, SeqCst);
                    assert!(!grants.is_granted(me, now));
                });
            }
            // As the fast path does.
            threads.spawn(|| {
                let revision = revocations.revision();
                let was_granted = grants.is_granted(&me, now);
                may_switch();
                let was_denied = is_denied.load(SeqCst);
                let is_shown = was_granted && revocations.revision() == revision;
                assert!(!(was_denied && is_shown), "a look-up from before the denial is still used");
            });
        });
    });
}

#[test]
fn after_a_401_no_call_that_was_sent_before_proves_the_caller() {
    let ([me, other], start) = scopes();
    explore(move || {
        let (_, grants) = grants();
        let now = start + 3 * SECOND;
        let proof = grants.begin_call(me.clone(), start);
        let mut denial = grants.begin_call(other.clone(), start + SECOND);
        thread::scope(|threads| {
            threads.spawn(|| proof.proved(now));
            threads.spawn(|| {
                denial.denied(StatusCode::UNAUTHORIZED);
                assert!(!grants.is_granted(&me, now));
                // Its body has not come.
                drop(denial);
                assert!(!grants.is_granted(&me, now));
            });
        });
        assert!(!grants.is_granted(&me, now));
        let tables = grants.tables();
        assert!(tables.suspensions == 0 && tables.calls.is_empty() && tables.service_calls.is_empty());
    });
}

#[test]
fn a_401_of_one_request_alone_leaves_the_other_grants_as_they_were() {
    let ([me, other], start) = scopes();
    explore(move || {
        let (_, grants) = grants();
        let now = start + 3 * SECOND;
        grants.begin_call(me.clone(), start).proved(start);
        let denials = [1, 2].map(|second| grants.begin_call(other.clone(), start + second * SECOND));
        thread::scope(|threads| {
            for mut denial in denials {
                let (grants, me) = (&grants, &me);
                threads.spawn(move || {
                    denial.denied(StatusCode::UNAUTHORIZED);
                    assert!(!grants.is_granted(me, now), "it is suspended");
                    denial.refused(RefusedBy::Service, None, now);
                });
            }
        });
        assert!(grants.is_granted(&me, now));
    });
}
