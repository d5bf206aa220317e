//! Borrowed grants and told denials over time.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::super::tests::{SECOND, SETTINGS, caller_scope, grant_state, proofs, refusal};
use super::super::{GrantPolicy, GrantState, GrantUse, PendingGrant, Proof, RefusedBy};
use super::*;
use crate::cache::fleet_sync::FleetSync;
use crate::cache::revocations::Revocations;
use crate::clock::Clock;

/// The grants of a gateway in a fleet, and a caller's scope.
struct Bench {
    grants: Arc<Grants>,
    sync: Arc<FleetSync>,
    revocations: Arc<Revocations>,
    me: CallerScope,
    start: Instant,
}

impl Bench {
    /// Out of sync.
    fn new(settings: GrantPolicy) -> Self {
        let start = Clock::System.now();
        let (sync, revocations) = (Arc::new(FleetSync::new(start)), Arc::<Revocations>::default());
        let grants = Arc::new(Grants::new(settings, Arc::clone(&revocations)).in_fleet(Arc::clone(&sync)));
        Self { grants, sync, revocations, me: caller_scope("a", "/v2/p/products"), start }
    }

    /// Out of sync, in a process that has begun at this second.
    fn begun_at(second: u32) -> Self {
        let other = Self::new(SETTINGS);
        let sync = Arc::new(FleetSync::new(other.at(second)));
        let grants = Grants::new(SETTINGS, Arc::clone(&other.revocations)).in_fleet(Arc::clone(&sync));
        Self { grants: Arc::new(grants), sync, ..other }
    }

    fn in_sync_until(second: u32) -> Self {
        let bench = Self::new(SETTINGS);
        bench.sync.extend(bench.at(second));
        bench
    }

    fn at(&self, second: u32) -> Instant {
        self.start + second * SECOND
    }

    fn begin_call(&self, second: u32) -> PendingGrant {
        self.grants.begin_call(self.me.clone(), self.at(second))
    }

    fn prove(&self, second: u32) -> Proof {
        self.begin_call(second).proved(self.at(second))
    }

    fn borrow(&self, proved: u32, now: u32) -> bool {
        self.grants.borrow(&self.me, self.at(proved), || true, self.at(now))
    }

    fn state(&self, now: u32) -> &'static str {
        grant_state(&self.grants, &self.me, self.at(now))
    }

    /// Until when a lapsed grant covers entries, in seconds.
    fn covers(&self, now: u32) -> Option<u64> {
        match self.grants.grant_state(&self.me, self.at(now)) {
            GrantState::Lapsed { ended } => Some(ended.saturating_duration_since(self.start).as_secs()),
            _ => None,
        }
    }
}

/// When the latest proof on which the grant rests was sent. `None` if the grant counts as lapsed.
fn proved_at(grants: &Grants, caller_scope: &CallerScope) -> Option<Instant> {
    let mut tables = grants.tables();
    let grant = tables.grant(caller_scope).filter(|grant| !matches!(grant.basis, Basis::Lapsed { .. }));
    grant.map(|grant| grant.proved)
}

#[test]
fn a_borrowed_grant_is_live_only_while_the_process_is_in_sync() {
    let bench = Bench::in_sync_until(100);
    assert!(bench.borrow(10, 20));
    assert_eq!([bench.state(20), bench.state(99), bench.state(100)], ["granted", "granted", "grace"]);
    assert_eq!([bench.grants.live(bench.at(99)), bench.grants.live(bench.at(100))], [1, 0]);
    assert_eq!(bench.grants.use_grant(&bench.me, bench.at(100)), GrantUse::NotGranted);
    let looked_up_each_time = GrantUse::Granted { until: bench.at(99) };
    assert_eq!(bench.grants.use_grant(&bench.me, bench.at(99)), looked_up_each_time);
    assert_eq!(bench.covers(100), Some(100), "nothing after the end of being in sync");
    bench.sync.extend(bench.at(400));
    assert_eq!([bench.state(101), bench.state(309), bench.state(310)], ["granted", "granted", "grace"]);
    assert_eq!(bench.covers(310), Some(310), "the age counts from the proof");
    bench.sync.end(bench.at(200));
    assert_eq!((bench.covers(250), bench.state(3610)), (Some(200), "unknown"));
}

#[test]
fn a_grant_that_was_borrowed_out_of_sync_covers_nothing_later_than_its_proof() {
    let bench = Bench::in_sync_until(10);
    assert!(bench.borrow(15, 30));
    assert_eq!(bench.covers(40), Some(15));
    let never = Bench::begun_at(20);
    assert!(never.borrow(15, 30));
    assert_eq!(never.covers(40), Some(15), "the process has begun after the proof, and was never in sync");
    let alone = Bench::new(SETTINGS);
    let grants = Grants::new(SETTINGS, Arc::default());
    assert!(grants.borrow(&alone.me, alone.at(15), || true, alone.at(30)));
    assert_eq!(grant_state(&grants, &alone.me, alone.at(30)), "grace", "without a fleet it is never live");
    assert!(!Bench::new(GrantPolicy { outage_grace: None, ..SETTINGS }).borrow(15, 30), "it would be of no use");
}

#[test]
fn a_borrowed_grant_is_better_than_an_older_one_or_none() {
    let bench = Bench::in_sync_until(10_000);
    assert_eq!([bench.borrow(100, 110), bench.borrow(100, 120), bench.borrow(90, 120)], [true, false, false]);
    assert_eq!(proved_at(&bench.grants, &bench.me), Some(bench.at(100)));
    assert_eq!([bench.borrow(120, 130), bench.borrow(200, 130)], [true, true]);
    assert_eq!(proved_at(&bench.grants, &bench.me), Some(bench.at(130)), "no proof comes from the future");
    assert_eq!(bench.prove(300), Proof::Renewed);
    assert_eq!([bench.borrow(300, 310), bench.borrow(301, 310)], [false, true]);
    let other = Bench::in_sync_until(10_000);
    assert_eq!([other.borrow(0, 3600), other.borrow(0, 3599), other.borrow(0, 3599)], [false, true, false]);
    assert_eq!(other.covers(3599), Some(300));
}

#[test]
fn an_own_proof_replaces_a_borrowed_grant_and_takes_nothing_from_it() {
    let bench = Bench::in_sync_until(100);
    let call = bench.begin_call(50);
    bench.borrow(60, 61);
    assert_eq!(call.proved(bench.at(62)), Proof::Renewed);
    assert_eq!(proved_at(&bench.grants, &bench.me), Some(bench.at(50)));
    assert_eq!([bench.state(349), bench.state(350)], ["granted", "grace"], "whether in sync or not");
}

#[test]
fn a_denied_caller_borrows_nothing_until_a_later_proof() {
    let bench = Bench::in_sync_until(1000);
    let [mut in_scope, _later] = [10, 30].map(|second| bench.begin_call(second));
    in_scope.denied(StatusCode::FORBIDDEN);
    assert_eq!([bench.borrow(9, 20), bench.borrow(10, 20), bench.borrow(11, 20)], [false, false, true]);

    let bench = Bench::in_sync_until(1000);
    let mut in_service = bench.grants.begin_unscoped_call(bench.me.caller, Service::Workspace, bench.at(10));
    in_service.denied(StatusCode::UNAUTHORIZED);
    assert_eq!([bench.borrow(10, 20), bench.borrow(11, 20)], [false, true]);

    let bench = Bench::in_sync_until(1000);
    bench.begin_call(10).denied_and_refused(RefusedBy::ApiGateway, refusal(b"no", bench.at(10)), bench.at(12));
    assert_eq!([bench.borrow(13, 13), bench.borrow(13, 14)], [false, true], "a refusal is repeated for its time");
}

#[test]
fn a_proof_is_borrowed_only_if_it_is_valid_while_the_grants_are_locked() {
    let bench = Bench::in_sync_until(1000);
    let borrow = |is_valid: bool| {
        bench.grants.borrow(
            &bench.me,
            bench.start,
            || {
                assert!(bench.grants.tables.try_lock().is_none(), "a denial could come between");
                is_valid
            },
            bench.start,
        )
    };
    assert_eq!((borrow(false), bench.state(0)), (false, "unknown"));
    assert_eq!((borrow(true), bench.state(0)), (true, "granted"));
}

#[test]
fn a_told_denial_ends_grants_of_all_kinds_and_earlier_calls_are_late() {
    let (own, borrowed, restored) =
        (Bench::in_sync_until(1000), Bench::in_sync_until(1000), Bench::in_sync_until(1000));
    let there = caller_scope("a", "/v2/q/products");
    own.prove(50);
    borrowed.borrow(50, 50);
    restored.grants.restore(proofs(&own.grants, own.at(60)), restored.at(60));
    for bench in [&own, &borrowed, &restored] {
        bench.grants.begin_call(there.clone(), bench.at(50)).proved(bench.at(50));
        let [early, same, later] = [60, 70, 71].map(|second| bench.begin_call(second));
        assert!(bench.grants.told_denied(&bench.me, bench.at(70)));
        assert!(!bench.grants.told_denied(&bench.me, bench.at(70)), "there is none any more");
        assert_eq!((bench.state(70), bench.revocations.count()), ("unknown", 1));
        assert!(bench.grants.is_granted(&there, bench.at(70)), "another scope");
        assert_eq!([early, same].map(|call| call.proved(bench.at(72))), [Proof::Late; 2]);
        assert!(!bench.borrow(70, 72));
        assert_eq!(later.proved(bench.at(72)), Proof::Granted);
    }
}

#[test]
fn a_told_refusal_ends_all_grants_of_the_caller_in_the_service() {
    let bench = Bench::in_sync_until(1000);
    let there = caller_scope("a", "/v2/q/products");
    let kept = [caller_scope("b", "/v2/p/products"), caller_scope("a", "/v1/p/product")];
    for caller_scope in [&bench.me, &there, &kept[0], &kept[1]] {
        bench.grants.begin_call(caller_scope.clone(), bench.at(50)).proved(bench.at(50));
    }
    bench.borrow(55, 55);
    let [early, later] = [60, 71].map(|second| bench.begin_call(second));
    assert!(bench.grants.told_refused(bench.me.caller, Service::Workspace, bench.at(70)));
    assert!(!bench.grants.told_refused(bench.me.caller, Service::Workspace, bench.at(70)), "there is none any more");
    assert_eq!((bench.state(70), grant_state(&bench.grants, &there, bench.at(70))), ("unknown", "unknown"));
    assert!(kept.iter().all(|caller_scope| bench.grants.is_granted(caller_scope, bench.at(70))));
    assert_eq!((bench.revocations.count(), bench.grants.live(bench.at(70))), (1, 2));
    assert!(!bench.borrow(70, 72), "while a call is in flight that was sent before");
    assert_eq!([early, later].map(|call| call.proved(bench.at(72))), [Proof::Late, Proof::Granted]);
    assert_eq!(grant_state(&bench.grants, &there, bench.at(72)), "unknown");
}

#[test]
fn a_told_denial_keeps_the_refusal_that_is_repeated_and_comes_before_a_snapshot() {
    let bench = Bench::in_sync_until(1000);
    let (now, me) = (bench.at(10), &bench.me);
    bench.begin_call(10).denied_and_refused(RefusedBy::ApiGateway, refusal(b"no", now), now);
    bench.grants.told_denied(me, now);
    bench.grants.told_refused(me.caller, Service::Workspace, now);
    assert_eq!((bench.state(11), bench.revocations.count()), ("denied", 0));
    let first = Bench::new(SETTINGS);
    first.prove(5);
    for tell in [
        (|grants, me, now| grants.told_denied(me, now)) as fn(&Grants, &CallerScope, Instant) -> bool,
        |grants, me, now| grants.told_refused(me.caller, Service::Workspace, now),
    ] {
        let second = Bench::new(SETTINGS);
        tell(&second.grants, &second.me, second.at(10));
        assert!(!second.grants.restore(proofs(&first.grants, first.at(7)), second.at(7)), "it may have that caller");
    }
}

#[test]
fn after_lost_notices_every_grant_counts_as_lapsed_until_its_next_proof() {
    let own = Bench::in_sync_until(1000);
    let (borrowed, restored) = (Bench::in_sync_until(1000), Bench::in_sync_until(1000));
    own.prove(50);
    borrowed.borrow(50, 50);
    restored.grants.restore(proofs(&own.grants, own.at(60)), restored.at(60));
    for (bench, covers) in [(&own, 80), (&borrowed, 80), (&restored, 60)] {
        let [early, later] = [70, 81].map(|second| bench.begin_call(second));
        bench.grants.lapse_all(bench.at(80));
        assert_eq!((bench.state(80), bench.covers(80)), ("grace", Some(covers)));
        bench.grants.lapse_all(bench.at(90));
        assert_eq!(bench.covers(90), Some(covers), "it covers no more by a second loss");
        assert_eq!(proved_at(&bench.grants, &bench.me), None);
        assert_eq!(early.proved(bench.at(90)), Proof::Late);
        assert_eq!(later.proved(bench.at(91)), Proof::Late, "sent before the second loss");
        assert_eq!((bench.prove(91), bench.state(91)), (Proof::Granted, "granted"));
    }
    own.grants.lapse_all(own.at(400));
    assert_eq!(own.covers(400), Some(391), "not beyond its regular end");
    // What the engine still has is valid.
    let again = Bench::in_sync_until(1000);
    again.prove(50);
    again.grants.lapse_all(again.at(80));
    assert!(again.borrow(50, 81) && again.state(81) == "granted");
}

#[test]
fn a_denied_call_says_which_grants_there_were_and_a_refused_one_whether_all_have_ended() {
    let deny = |prepare: &dyn Fn(&Bench), path: &str, status, by| {
        let bench = Bench::in_sync_until(1000);
        prepare(&bench);
        let mut denial = bench.grants.begin_call(caller_scope("a", path), bench.at(400));
        let had = denial.denied(status);
        (had.in_scope, had.in_service, denial.refused(by, None, bench.at(400)))
    };
    let (here, there) = ("/v2/p/products", "/v2/q/products");
    let (api_gateway, service) = (RefusedBy::ApiGateway, RefusedBy::Service);
    let stranger: &dyn Fn(&Bench) = &|_| ();
    let lapsed: &dyn Fn(&Bench) = &|bench| _ = bench.prove(50);
    let borrowed: &dyn Fn(&Bench) = &|bench| _ = bench.borrow(350, 360);
    let told: &dyn Fn(&Bench) = &|bench| {
        bench.prove(350);
        bench.grants.told_refused(bench.me.caller, Service::Workspace, bench.at(360));
        bench.grants.told_denied(&bench.me, bench.at(360));
    };
    let (unauthorized, forbidden) = (StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN);
    assert_eq!(deny(stranger, here, unauthorized, api_gateway), (false, false, true));
    assert_eq!(deny(told, here, unauthorized, api_gateway), (false, false, true));
    assert_eq!(deny(lapsed, here, unauthorized, api_gateway), (true, true, true));
    assert_eq!(deny(lapsed, there, unauthorized, api_gateway), (false, true, true));
    assert_eq!(deny(borrowed, here, unauthorized, service), (true, true, false));
    assert_eq!(deny(borrowed, there, forbidden, api_gateway), (false, true, false));
    assert_eq!(deny(borrowed, "/v1/p/product", unauthorized, api_gateway), (false, false, true));
}

#[test]
fn a_borrowed_grant_is_renewed_like_an_own_one() {
    let bench = Bench::in_sync_until(270);
    let (grants, me) = (&bench.grants, &bench.me);
    bench.borrow(0, 200);
    // A request each second, so the shortest lead: a quarter of 60 s.
    let due: Vec<u32> = (200..270)
        .filter(|second| !matches!(grants.use_grant(me, bench.at(*second)), GrantUse::Granted { .. }))
        .collect();
    assert_eq!(due, Vec::<u32>::new(), "the pace is counted from the time when it was borrowed");
    assert_eq!([grants.ends_soon(me, bench.at(179)), grants.ends_soon(me, bench.at(180))], [false, true]);
    let lifetime = Some((bench.start, Duration::from_secs(300)));
    assert_eq!((grants.lifetime(me, bench.at(269)), grants.lifetime(me, bench.at(270))), (lifetime, None));
    assert!(grants.ends_soon(me, bench.at(270)), "out of sync");
    bench.sync.extend(bench.at(1000));
    let due: Vec<u32> =
        (270..300).filter(|second| grants.use_grant(me, bench.at(*second)) == GrantUse::RenewalDue).collect();
    assert_eq!(due, (285..300).collect::<Vec<_>>());
}

#[test]
fn a_borrowed_grant_goes_into_a_snapshot_and_covers_nothing_later_than_the_end_of_being_in_sync() {
    let bench = Bench::in_sync_until(70);
    bench.borrow(50, 55);
    let covers = |now| proofs(&bench.grants, bench.at(now))[0].covers_until;
    assert_eq!((covers(60), covers(90)), (Some(bench.at(60)), Some(bench.at(70))));
    let next = Bench::new(SETTINGS);
    assert!(next.grants.restore(proofs(&bench.grants, bench.at(90)), next.at(90)));
    let until = |grants: &Grants| match grants.grant_state(&bench.me, bench.at(100)) {
        GrantState::Lapsed { ended } => Some(ended),
        _ => None,
    };
    assert_eq!((until(&next.grants), proved_at(&next.grants, &bench.me)), (Some(bench.at(70)), None));
}
