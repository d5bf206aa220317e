//! What holds at the gate in every order in which calls come, wait, end and stop waiting. There is no runtime, so no timer
//! starts calls.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use shuttle::future::block_on;
use shuttle::thread;

use super::*;
use crate::clock::ManualClock;
use crate::sync::explore::{explore, may_switch};

/// The gate for lists and the one for relayed requests, with a number of slots, and a quota of upstream.
fn gates(slots: usize, quota: Option<(QuotaPolicy, u32)>) -> [Arc<Gate>; 2] {
    let ledger = Arc::new(Ledger::default());
    let configured = quota.map(|(policy, calls)| {
        let quota = Some(Quota { calls, window: 10 * SECOND });
        ConfiguredQuota { service: WORKSPACE, policy, operation: None, quota }
    });
    ledger.configure(configured.as_slice());
    let (limits, clock) = (GateLimits { calls: slots, per_caller: slots }, Clock::Manual(ManualClock::default()));
    let gates = [(); 2].map(|()| Arc::new(Gate::new(limits, Arc::clone(&ledger), Arc::new(|_, _| {}), clock.clone())));
    share_quotas(&gates);
    gates
}

/// Asserts that no more calls than slots are under way, and that nobody waits while a slot is free.
fn assert_slots(gate: &Gate, slots: usize) {
    let service_gate = gate.service_gate(WORKSPACE);
    let state = service_gate.state();
    let usages = Class::VARIANTS.iter().map(|class| state.schedule.usage(*class));
    let (under_way, queued) =
        usages.fold((0, 0), |(under_way, queued), usage| (under_way + usage.under_way, queued + usage.queued));
    assert!(under_way == slots || under_way < slots && queued == 0, "{under_way} under way, {queued} wait");
}

fn assert_nothing_is_left(gate: &Gate) {
    let service_gate = gate.service_gate(WORKSPACE);
    let state = service_gate.state();
    assert!(state.schedule.is_empty() && state.waiting.is_empty());
}

#[test]
fn every_call_gets_a_slot_and_gives_it_back() {
    const SLOTS: usize = 2;
    let clients = [1, 2, 3, 4].map(client);
    explore(move || {
        let [gate, _] = gates(SLOTS, None);
        let under_way = AtomicUsize::new(0);
        thread::scope(|threads| {
            for client in &clients[..3] {
                threads.spawn(|| {
                    let permit = block_on(gate.enter(WORKSPACE, call(*client, Class::Proved)));
                    assert!(under_way.fetch_add(1, SeqCst) < SLOTS, "more calls than slots");
                    assert_slots(&gate, SLOTS);
                    under_way.fetch_sub(1, SeqCst);
                    drop(permit);
                    assert_slots(&gate, SLOTS);
                });
            }
            // This one stops waiting.
            threads.spawn(|| drop(enter(&gate, clients[3], Class::Proved)));
        });
        assert_nothing_is_left(&gate);
    });
}

#[test]
fn a_call_that_waits_goes_before_one_of_a_lower_class() {
    let clients = [1, 2, 3].map(client);
    explore(move || {
        let [gate, _] = gates(1, None);
        let slot = enter(&gate, clients[0], Class::Proved).ok().unwrap();
        let (waits, served) = (AtomicBool::new(false), AtomicUsize::new(0));
        // Whether the call of the higher class waited when the slot was free.
        let must_be_first = AtomicBool::new(false);
        thread::scope(|threads| {
            threads.spawn(|| {
                let mut entering = pin!(gate.enter(WORKSPACE, call(clients[1], Class::Proved)));
                let ready = entering.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                waits.store(true, SeqCst);
                let permit = match ready {
                    Poll::Ready(permit) => permit,
                    Poll::Pending => block_on(entering),
                };
                let before = served.fetch_add(1, SeqCst);
                assert!(before == 0 || !must_be_first.load(SeqCst), "a refresh went first");
                drop(permit);
            });
            threads.spawn(|| {
                let permit = block_on(gate.enter(WORKSPACE, call(clients[2], Class::Refresh)));
                served.fetch_add(1, SeqCst);
                drop(permit);
            });
            must_be_first.store(waits.load(SeqCst), SeqCst);
            drop(slot);
        });
        assert_nothing_is_left(&gate);
    });
}

#[test]
fn a_call_whose_client_half_closes_loses_no_slot() {
    let clients = [1, 2].map(client);
    explore(move || {
        let [gate, _] = gates(1, None);
        let (half_close, under_way) = (HalfClose::default(), AtomicUsize::new(0));
        let make_call = |permit: Permit| {
            assert_eq!(under_way.fetch_add(1, SeqCst), 0, "more calls than slots");
            may_switch();
            under_way.fetch_sub(1, SeqCst);
            drop(permit);
        };
        thread::scope(|threads| {
            threads.spawn(|| {
                let call = call(clients[0], Class::Proved);
                make_call(block_on(gate.enter_unless_closed(WORKSPACE, call, &half_close)));
            });
            threads.spawn(|| make_call(block_on(gate.enter(WORKSPACE, call(clients[1], Class::Proved)))));
            threads.spawn(|| half_close.close());
        });
        assert_nothing_is_left(&gate);
    });
}

#[test]
fn a_call_that_waits_outside_the_queue_notices_each_end_of_another_one() {
    let client = client(1);
    explore(move || {
        let [gate, _] = gates(1, None);
        let permit = enter(&gate, client, Class::Proved).ok().unwrap();
        thread::scope(|threads| {
            threads.spawn(|| block_on(gate.ready(WORKSPACE, &call(client, Class::Proved))));
            threads.spawn(|| drop(permit));
        });
        assert_nothing_is_left(&gate);
    });
}

#[test]
fn two_gates_send_no_more_calls_than_their_quota_and_those_that_are_not_sent_give_it_back() {
    const QUOTA: usize = 2;
    let client = client(1);
    for policy in [QuotaPolicy::User, QuotaPolicy::Ip] {
        explore(move || {
            let gates = gates(4, Some((policy, QUOTA as u32)));
            let sent = AtomicUsize::new(0);
            let send = |gate: &Gate| {
                let permit = enter(gate, client, Class::Proved);
                permit.is_ok_and(|mut permit| {
                    permit.mark_sent();
                    sent.fetch_add(1, SeqCst) < 10
                })
            };
            thread::scope(|threads| {
                threads.spawn(|| send(&gates[0]));
                threads.spawn(|| send(&gates[1]));
                threads.spawn(|| send(&gates[1]));
                threads.spawn(|| drop(enter(&gates[0], client, Class::Proved)));
            });
            while send(&gates[0]) {}
            assert_eq!(sent.load(SeqCst), QUOTA, "calls that were sent");
        });
    }
}

#[test]
fn a_call_that_waits_for_quota_is_sent_when_one_at_the_other_gate_gives_it_back() {
    let client = client(1);
    explore(move || {
        let gates = gates(4, Some((QuotaPolicy::User, 1)));
        thread::scope(|threads| {
            threads.spawn(|| drop(block_on(gates[0].enter(WORKSPACE, call(client, Class::Proved)))));
            threads.spawn(|| drop(block_on(gates[1].enter(WORKSPACE, call(client, Class::Proved)))));
            threads.spawn(|| drop(enter(&gates[1], client, Class::Proved)));
        });
        gates.iter().for_each(|gate| assert_nothing_is_left(gate));
    });
}
