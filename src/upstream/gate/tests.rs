//! How calls wait at the gate, and that a call that stops waiting leaves no state behind.

mod schedules;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use proptest::prelude::*;
use strum::VariantArray;
use tokio::task::JoinHandle;

use super::*;
use crate::catalogue::{ConfiguredQuota, Quota};
use crate::request::caller::Callers;

const WORKSPACE: Service = Service::Workspace;

fn client(number: u32) -> GateClient {
    let caller = Callers::new([1; 32]).of_token(&HeaderValue::from(number));
    GateClient { caller: Some(caller), peer: None, connection: u64::from(number) }
}

fn gate(calls: usize, per_caller: usize) -> Gate {
    let ledger = Arc::new(Ledger::default());
    Gate::new(GateLimits { calls, per_caller }, ledger, Arc::new(|_, _| {}), Clock::System)
}

const SECOND: Duration = Duration::from_secs(1);

/// A gate for lists and one for relayed requests. Upstream has this quota.
fn gates(policy: QuotaPolicy, calls: u32, on_quota_wait: OnQuotaWait) -> [Arc<Gate>; 2] {
    gates_with(&[(policy, calls)], on_quota_wait)
}

fn gates_with(quotas: &[(QuotaPolicy, u32)], on_quota_wait: OnQuotaWait) -> [Arc<Gate>; 2] {
    let quota = |(policy, calls): &(QuotaPolicy, u32)| {
        let quota = Some(Quota { calls: *calls, window: 10 * SECOND });
        ConfiguredQuota { service: WORKSPACE, policy: *policy, operation: None, quota }
    };
    let ledger = Arc::new(Ledger::default());
    ledger.configure(&quotas.iter().map(quota).collect::<Vec<_>>());
    let limits = GateLimits { calls: 100, per_caller: 100 };
    let gates =
        [(); 2].map(|()| Arc::new(Gate::new(limits, Arc::clone(&ledger), Arc::clone(&on_quota_wait), Clock::System)));
    share_quotas(&gates);
    gates
}

fn usage(gate: &Gate, service: Service) -> GateUsage {
    Class::VARIANTS.iter().copied().map(|class| gate.usage(service, class)).fold(GateUsage::default(), |all, usage| {
        GateUsage { under_way: all.under_way + usage.under_way, queued: all.queued + usage.queued }
    })
}

fn call(client: GateClient, class: Class) -> GateCall {
    GateCall { client, class, caller: client.caller, api: None, kind: CallKind::List, max_wait: 30 * SECOND }
}

fn relay(client: GateClient) -> GateCall {
    GateCall { kind: CallKind::Relay, ..call(client, Class::Proved) }
}

/// A call that waits at the gate.
type Entering<'g> = Pin<Box<dyn Future<Output = Permit> + 'g>>;

/// Starts a call. When this returns, it has a slot or is in the queue.
fn enter(gate: &Gate, client: GateClient, class: Class) -> Result<Permit, Entering<'_>> {
    enter_with(gate, call(client, class))
}

fn enter_with(gate: &Gate, call: GateCall) -> Result<Permit, Entering<'_>> {
    let mut entering: Entering = Box::pin(gate.enter(WORKSPACE, call));
    poll(&mut entering).ok_or(entering)
}

/// The permit of a queued call, if it has a slot.
fn poll(entering: &mut Entering) -> Option<Permit> {
    match entering.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(permit) => Some(permit),
        Poll::Pending => None,
    }
}

#[test]
fn a_call_that_stops_waiting_leaves_no_state_behind() {
    let gate = gate(2, 1);
    // One waits for its own caller, one for its class, one for the service.
    let own = enter(&gate, client(1), Class::Proved);
    let unknown = enter(&gate, client(2), Class::Unknown);
    let waiting = [
        enter(&gate, client(1), Class::Proved),
        enter(&gate, client(3), Class::Unknown),
        enter(&gate, client(4), Class::Proved),
    ];
    assert!(waiting.iter().all(Result::is_err));
    assert_eq!(usage(&gate, WORKSPACE), GateUsage { under_way: 2, queued: 3 });
    drop(waiting);
    assert_eq!(usage(&gate, WORKSPACE), GateUsage { under_way: 2, queued: 0 });
    // The same for a call that has got a slot but has not been polled since.
    let unclaimed = [enter(&gate, client(5), Class::Proved), enter(&gate, client(5), Class::Proved)];
    drop((own, unknown));
    drop(unclaimed);
    assert!(gate.service_gate(WORKSPACE).state().schedule.is_empty());
    assert!(gate.service_gate(WORKSPACE).state().waiting.is_empty());
    assert!(enter(&gate, client(1), Class::Unknown).is_ok());
}

#[test]
fn an_unclaimed_slot_goes_to_the_next_call_when_its_owner_is_dropped() {
    let gate = gate(1, 1);
    let first = enter(&gate, client(1), Class::Proved);
    let unclaimed = enter(&gate, client(2), Class::Proved);
    let Err(mut next) = enter(&gate, client(3), Class::Proved) else { panic!("two calls under way") };
    drop(first);
    assert!(poll(&mut next).is_none());
    drop(unclaimed);
    assert!(poll(&mut next).is_some());
}

#[test]
fn the_services_do_not_wait_for_each_other() {
    let gate = gate(1, 1);
    let _held = enter(&gate, client(1), Class::Proved);
    let mut entering: Entering = Box::pin(gate.enter(Service::AppStream, call(client(1), Class::Proved)));
    assert!(poll(&mut entering).is_some());
    let only = GateUsage { under_way: 1, queued: 0 };
    assert_eq!((usage(&gate, WORKSPACE), usage(&gate, Service::AppStream)), (only, GateUsage::default()));
}

#[test]
fn a_call_that_was_not_sent_makes_room_for_a_call_at_the_other_gate() {
    for relay_waits in [true, false] {
        let [lists, relays] = gates(QuotaPolicy::Ip, 4, Arc::new(|_, _| {}));
        let list = |number| (&lists, call(client(number), Class::Proved));
        let relayed = |number| (&relays, relay(client(number)));
        for (gate, call) in [list(1), list(2), if relay_waits { relayed(3) } else { list(3) }] {
            let Ok(mut permit) = enter_with(gate, call) else { panic!("held") };
            permit.mark_sent();
        }
        let (unsent, waiting) = if relay_waits { (list(4), relayed(6)) } else { (relayed(4), list(6)) };
        let unsent = enter_with(unsent.0, unsent.1);
        // Relayed requests are held back only if lists have been held back lately.
        assert!(unsent.is_ok() && enter(&lists, client(5), Class::Proved).is_err());
        let Err(mut waiting) = enter_with(waiting.0, waiting.1) else { panic!("not held") };
        assert!(poll(&mut waiting).is_none());
        drop(unsent);
        assert!(poll(&mut waiting).is_some(), "relay_waits: {relay_waits}");
    }
}

#[test]
fn only_a_list_for_which_a_client_waits_holds_back_relayed_requests() {
    for class in Class::VARIANTS.iter().copied() {
        let [lists, relays] = gates(QuotaPolicy::User, 2, Arc::new(|_, _| {}));
        for (gate, call) in [(&lists, call(client(1), Class::Proved)), (&relays, relay(client(1)))] {
            let Ok(mut permit) = enter_with(gate, call) else { panic!("held") };
            permit.mark_sent();
        }
        // A look at the limit holds back nothing.
        assert!(lists.has_to_wait(WORKSPACE, &call(client(1), class)));
        assert!(enter_with(&relays, relay(client(1))).is_ok());
        let held = enter(&lists, client(1), class);
        assert!(held.is_err());
        let is_relay_held = enter_with(&relays, relay(client(1))).is_err();
        let is_known = !matches!(class, Class::Unknown | Class::HalfClosed);
        assert_eq!(is_relay_held, is_known && class.has_client(), "{class:?}");
    }
}

#[test]
fn unknown_callers_get_a_quarter_of_a_limit_of_all_callers_for_lists_and_relayed_requests() {
    let [lists, relays] = gates(QuotaPolicy::Ip, 8, Arc::new(|_, _| {}));
    let unknown = |number| GateCall { class: Class::Unknown, ..relay(client(number)) };
    let mut held = Vec::new();
    let mut permits: Vec<_> = [1, 2, 3, 4]
        .into_iter()
        .filter_map(|number| enter_with(&relays, unknown(number)).map_err(|it| held.push(it)).ok())
        .collect();
    assert_eq!(permits.len(), 2);
    assert!(enter(&lists, client(5), Class::Unknown).is_err());
    permits.extend((6..20).filter_map(|number| enter(&lists, client(number), Class::Proved).ok()));
    assert_eq!(permits.len(), 8);
}

#[test]
fn a_call_that_a_limit_of_all_callers_holds_back_does_not_delay_its_callers_calls_of_a_higher_class() {
    let [lists, _] = gates_with(&[(QuotaPolicy::Ip, 4), (QuotaPolicy::User, 2)], Arc::new(|_, _| {}));
    // Unknown callers may make one call in a window.
    let Ok(mut permit) = enter(&lists, client(1), Class::Unknown) else { panic!("held") };
    permit.mark_sent();
    let Err(mut unknown) = enter(&lists, client(1), Class::Unknown) else { panic!("not held") };
    let Ok(mut permit) = enter(&lists, client(1), Class::Proved) else { panic!("the other call was counted") };
    permit.mark_sent();
    assert!(poll(&mut unknown).is_none());
    assert!(enter(&lists, client(1), Class::Proved).is_err());
}

#[test]
fn a_caller_must_not_lead_if_a_limit_of_all_callers_holds_it_back_but_no_proved_caller() {
    let gate = gate(100, 100);
    // One proved caller has met the limit.
    let Ok(mut permit) = enter(&gate, client(1), Class::Proved) else { panic!("held") };
    permit.mark_sent();
    let body = br#"{"error_code":"APIGW.0308","error_msg":"policy ip over ratelimit,limit:4,time:1 minute"}"#;
    permit.learn((StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new(), body), None);
    for (class, must_wait) in [(Class::Proved, false), (Class::Relayed, true), (Class::Unknown, true)] {
        assert_eq!(gate.has_to_wait(WORKSPACE, &call(client(2), class)), must_wait, "{class:?}");
    }
}

/// A call that is sent as soon as it may be.
fn begin(gate: &Arc<Gate>, call: GateCall) -> JoinHandle<()> {
    let gate = Arc::clone(gate);
    tokio::spawn(async move { gate.enter(WORKSPACE, call).await.mark_sent() })
}

fn sent(calls: &[JoinHandle<()>]) -> usize {
    calls.iter().filter(|call| call.is_finished()).count()
}

#[tokio::test(start_paused = true)]
async fn lists_and_relayed_requests_that_wait_get_half_each() {
    for policy in [QuotaPolicy::User, QuotaPolicy::Ip] {
        let [lists, relays] = gates(policy, 4, Arc::new(|_, _| {}));
        let waiting_lists: Vec<_> = (0..20).map(|_| begin(&lists, call(client(1), Class::Proved))).collect();
        tokio::time::sleep(SECOND).await;
        let waiting_relays: Vec<_> = (0..4).map(|_| begin(&relays, relay(client(1)))).collect();
        for (second, lists_sent, relays_sent) in [(1, 4, 0), (11, 6, 2), (21, 8, 4), (31, 12, 4)] {
            tokio::task::yield_now().await;
            let all_sent = (sent(&waiting_lists), sent(&waiting_relays));
            assert_eq!(all_sent, (lists_sent, relays_sent), "{policy:?}, {second} s");
            tokio::time::sleep(10 * SECOND + Duration::from_millis(200)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn lists_use_what_they_left_for_a_relayed_request_as_soon_as_it_is_sent() {
    let tenth = SECOND / 10;
    let [lists, relays] = gates(QuotaPolicy::Ip, 4, Arc::new(|_, _| {}));
    let mut waiting = Vec::new();
    for _ in 0..5 {
        waiting.push(begin(&lists, call(client(1), Class::Proved)));
        tokio::time::sleep(3 * tenth).await;
    }
    let relayed = begin(&relays, relay(client(1)));
    // A call counts for 10.1 s. The relayed request takes the place of the first list.
    tokio::time::sleep(102 * tenth - 15 * tenth).await;
    assert!(relayed.is_finished() && sent(&waiting) == 4);
    tokio::time::sleep(3 * tenth).await;
    assert_eq!(sent(&waiting), 5);
}

#[test]
fn a_call_is_not_held_back_by_a_call_of_its_caller_that_has_another_share() {
    let gate = gate(3, 3);
    // The limit binds this caller alone. Its calls that prove it in another scope get a quarter.
    let Ok(mut permit) = enter(&gate, client(1), Class::Proved) else { panic!("held") };
    permit.mark_sent();
    let limit = HeaderValue::from_static("remain:6,limit:7,time:1 minute");
    let headers = HeaderMap::from_iter([(HeaderName::from_static("x-apig-ratelimit-ip"), limit)]);
    permit.learn((StatusCode::OK, &headers, b""), None);
    drop(permit);
    assert!(gate.hold(WORKSPACE, &call(client(1), Class::Proved)).is_none());
    let others = [2, 3, 4].map(|number| enter(&gate, client(number), Class::Proved));
    let Err(mut proved) = enter(&gate, client(1), Class::Proved) else { panic!("four calls under way") };
    let Err(mut unknown) = enter(&gate, client(1), Class::Unknown) else { panic!("five calls under way") };
    drop(others);
    let (proved, unknown) = (poll(&mut proved), poll(&mut unknown));
    assert!(proved.is_some() && unknown.is_some());
}

#[tokio::test(start_paused = true)]
async fn lists_at_the_gate_of_relayed_requests_hold_back_no_relayed_request() {
    // These lists are too large to be stored.
    let api = Some(Arc::from("products"));
    let list = || GateCall { api: api.clone(), ..call(client(1), Class::Proved) };
    let relay = || GateCall { api: api.clone(), ..relay(client(1)) };
    for policy in [QuotaPolicy::User, QuotaPolicy::Ip] {
        let [_, relays] = gates(policy, 4, Arc::new(|_, _| {}));
        let lists: Vec<_> = (0..20).map(|_| begin(&relays, list())).collect();
        tokio::time::sleep(SECOND).await;
        let relayed: Vec<_> = (0..2).map(|_| begin(&relays, relay())).collect();
        tokio::time::sleep(10 * SECOND).await;
        assert!(sent(&relayed) >= 1 && sent(&lists) + sent(&relayed) == 8, "{policy:?}");
        tokio::time::sleep(10 * SECOND).await;
        assert_eq!((sent(&lists), sent(&relayed)), (10, 2), "{policy:?}");
    }
}

#[test]
fn a_list_at_the_gate_of_relayed_requests_waits_for_its_quota_whatever_waits_before_it() {
    let quotas = [(QuotaPolicy::Ip, 2)];
    let [_, relays] = gates_with(&quotas, Arc::new(|_, _| {}));
    let relays = Gate::new(
        GateLimits { calls: 2, per_caller: 4 },
        Arc::clone(&relays.ledger),
        Arc::new(|_, _| {}),
        Clock::System,
    );
    let Ok(mut first) = enter(&relays, client(1), Class::Proved) else { panic!("held") };
    let Ok(mut second) = enter(&relays, client(2), Class::Proved) else { panic!("held") };
    first.mark_sent();
    second.mark_sent();
    // Both slots are in use, and so is the quota.
    let Err(mut relayed) = enter_with(&relays, relay(client(3))) else { panic!("three calls under way") };
    let Err(mut list) = enter(&relays, client(4), Class::Proved) else { panic!("three calls under way") };
    drop((first, second));
    assert!(poll(&mut list).is_none());
    drop(poll(&mut relayed));
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_quota_goes_on_if_the_client_closes_its_sending_side() {
    let waits = Arc::new(Mutex::new(Vec::new()));
    let recorded = Arc::clone(&waits);
    let on_quota_wait = move |policy, time| recorded.lock().push((policy, time));
    let [lists, _] = gates(QuotaPolicy::User, 1, Arc::new(on_quota_wait));
    let first = lists.enter(WORKSPACE, call(client(1), Class::Proved)).await;
    { first }.mark_sent();
    let half_close = Arc::new(HalfClose::default());
    let held = tokio::spawn({
        let (lists, half_close) = (Arc::clone(&lists), Arc::clone(&half_close));
        async move { lists.enter_unless_closed(WORKSPACE, call(client(1), Class::Proved), &half_close).await.mark_sent() }
    });
    tokio::time::sleep(4 * SECOND).await;
    half_close.close();
    held.await.unwrap();
    assert_eq!(*waits.lock(), [(QuotaPolicy::User, 10 * SECOND + Duration::from_millis(100))]);
}

proptest! {
    #[test]
    fn no_waiter_is_lost_when_others_are_dropped_at_any_moment(
        calls in 1..4usize,
        steps in prop::collection::vec((0..6u32, 0..3usize, any::<prop::sample::Index>()), 1..60),
    ) {
        let gate = gate(calls, 2);
        let (mut waiting, mut under_way): (Vec<Entering<'_>>, Vec<Permit>) = (Vec::new(), Vec::new());
        for (number, what, index) in steps {
            match what {
                0 => match enter(&gate, client(number), Class::VARIANTS[number as usize % 3]) {
                    Ok(permit) => under_way.push(permit),
                    Err(entering) => waiting.push(entering),
                },
                // It may have a slot already that it has not polled for.
                1 if !waiting.is_empty() => drop(waiting.swap_remove(index.index(waiting.len()))),
                _ if !under_way.is_empty() => drop(under_way.swap_remove(index.index(under_way.len()))),
                _ => {}
            }
        }
        // All waiting calls get a slot as others end.
        for _ in 0..=waiting.len() {
            under_way.clear();
            waiting.retain_mut(|entering| {
                let permit = poll(entering);
                let waits = permit.is_none();
                under_way.extend(permit);
                waits
            });
        }
        prop_assert_eq!(waiting.len(), 0);
        drop(under_way);
        prop_assert!(gate.service_gate(WORKSPACE).state().schedule.is_empty());
    }
}
