//! Whose turn it is, as properties of random sequences and in single cases.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use http::HeaderValue;
use proptest::prelude::*;
use strum::VariantArray;

use super::*;
use crate::request::caller::{Caller, Callers};
use crate::request::peer::Peer;

/// The usage of each class, in order.
fn usage(schedule: &Schedule) -> [GateUsage; 4] {
    std::array::from_fn(|class| schedule.usage(Class::VARIANTS[class]))
}

fn caller(number: u32) -> Caller {
    Callers::new([1; 32]).of_token(&HeaderValue::from(number))
}

fn peer(number: u32) -> Option<Peer> {
    Some(Peer::V4(Ipv4Addr::from_bits(number)))
}

/// A client with a caller, a peer address and a connection of its own.
fn client(number: u32) -> GateClient {
    GateClient { caller: Some(caller(number)), peer: peer(number), connection: u64::from(number) }
}

fn schedule(calls: usize, per_caller: usize) -> Schedule {
    Schedule::new(GateLimits { calls, per_caller })
}

/// Grants all that can be granted.
fn granted(schedule: &mut Schedule) -> Vec<Ticket> {
    std::iter::from_fn(|| schedule.grant()).collect()
}

/// Has so many calls of a client come.
fn arrive(schedule: &mut Schedule, client: GateClient, class: Class, calls: usize) -> Vec<Ticket> {
    (0..calls).map(|_| schedule.arrive(client, class)).collect()
}

/// Ends the calls under way one at a time, the oldest first. Says how many slots are granted until one of these calls
/// gets one.
fn turns_until(schedule: &mut Schedule, under_way: &mut Vec<Ticket>, wanted: &[Ticket]) -> usize {
    for turns in 1.. {
        schedule.leave(under_way.remove(0));
        let granted = granted(schedule);
        under_way.extend(&granted);
        if granted.iter().any(|ticket| wanted.contains(ticket)) {
            return turns;
        }
        assert!(turns < 10_000, "it never gets one");
    }
    unreachable!()
}

#[test]
fn a_client_with_nothing_gets_the_next_slot_however_much_another_has_queued() {
    for &class in Class::VARIANTS {
        let mut schedule = schedule(8, 100);
        arrive(&mut schedule, client(1), class, 100);
        let mut under_way = granted(&mut schedule);
        let victim = arrive(&mut schedule, client(2), class, 1);
        assert_eq!(turns_until(&mut schedule, &mut under_way, &victim), 1, "{class:?}");
    }
}

#[test]
fn invented_tokens_of_one_peer_or_connection_are_one_client() {
    let invented = |number| GateClient { caller: Some(caller(number)), ..client(1) };
    // From one address, from one connection of this machine, and without any credential.
    let from_one_peer = |number| GateClient { connection: u64::from(number), ..invented(number) };
    let from_one_connection = |number| GateClient { peer: None, ..invented(number) };
    let without_credential = |_| GateClient { caller: None, ..client(1) };
    let victims =
        [client(2000), GateClient { peer: None, ..client(2000) }, GateClient { caller: None, ..client(2000) }];
    let clients: [&dyn Fn(u32) -> GateClient; 3] = [&from_one_peer, &from_one_connection, &without_credential];
    for (attacker, victim) in clients.into_iter().zip(victims) {
        let mut schedule = schedule(8, 4);
        (0..1000).for_each(|number| _ = schedule.arrive(attacker(number), Class::Unknown));
        let mut under_way = granted(&mut schedule);
        assert_eq!(under_way.len(), 4, "half is kept for others");
        let calls = arrive(&mut schedule, victim, Class::Unknown, 4);
        assert_eq!(turns_until(&mut schedule, &mut under_way, &calls[..1]), 1);
        assert_eq!(turns_until(&mut schedule, &mut under_way, &calls[1..2]), 1, "up to as many as the other");
    }
}

#[test]
fn a_client_that_spreads_over_callers_connections_or_addresses_is_measured_by_what_it_cannot_change() {
    // A known caller on many connections and from many addresses, and an unknown address with many of both.
    let known = |number| GateClient { caller: Some(caller(1)), ..client(number) };
    let unknown = |number| GateClient { peer: peer(1), ..client(number) };
    let ways: [(Class, &dyn Fn(u32) -> GateClient); 2] = [(Class::Relayed, &known), (Class::Unknown, &unknown)];
    for (class, attacker) in ways {
        let mut schedule = schedule(8, 100);
        (10..100).for_each(|number| _ = schedule.arrive(attacker(number), class));
        let mut under_way = granted(&mut schedule);
        let calls = arrive(&mut schedule, client(2), class, 2);
        for call in calls {
            assert_eq!(turns_until(&mut schedule, &mut under_way, &[call]), 1, "{class:?}");
        }
    }
}

#[test]
fn each_lower_class_gets_half_of_what_the_higher_leave() {
    for (calls, proved, relayed, expected) in [
        (8, 0, 0, [0, 0, 4, 0]),
        (8, 0, 9, [0, 4, 2, 0]),
        (8, 2, 9, [2, 3, 2, 0]),
        (8, 9, 9, [8, 0, 0, 0]),
        (1, 0, 0, [0, 0, 1, 0]),
    ] {
        let mut schedule = schedule(calls, 1);
        for (class, count) in Class::VARIANTS.iter().copied().zip([proved, relayed, 9]) {
            (0..count).for_each(|number| _ = schedule.arrive(client(class as u32 * 100 + number), class));
        }
        granted(&mut schedule);
        assert_eq!(usage(&schedule).map(|usage| usage.under_way), expected, "{calls} {proved} {relayed}");
    }
}

#[test]
fn higher_classes_slow_a_lower_one_down_and_do_not_stop_it() {
    let mut schedule = schedule(4, 1);
    for number in 0..1000 {
        schedule.arrive(client(number), Class::Proved);
    }
    let mut under_way = granted(&mut schedule);
    let relayed = arrive(&mut schedule, client(2000), Class::Relayed, 1);
    let unknown = arrive(&mut schedule, client(2001), Class::Unknown, 1);
    let passed_over = MAX_PASSED_OVER as usize;
    assert_eq!(turns_until(&mut schedule, &mut under_way, &relayed), passed_over + 1);
    assert_eq!(turns_until(&mut schedule, &mut under_way, &unknown), 1);
}

#[test]
fn a_client_that_holds_half_waits_for_all_others_and_uses_what_they_cannot() {
    let mut schedule = schedule(8, 100);
    arrive(&mut schedule, client(1), Class::Proved, 4);
    assert_eq!(granted(&mut schedule).len(), 4);
    assert!(!schedule.has_to_wait(client(1)), "nobody else waits");
    arrive(&mut schedule, client(1), Class::Proved, 4);
    for number in 10..20 {
        schedule.arrive(client(number), Class::Unknown);
    }
    assert!(schedule.has_to_wait(client(1)));
    granted(&mut schedule);
    // Half of the four that the proved caller leaves is for unknown ones, and they can't have the rest.
    assert_eq!(usage(&schedule).map(|usage| usage.under_way), [6, 0, 2, 0]);
}

#[test]
fn a_caller_waits_behind_itself_alone() {
    let mut schedule = schedule(4, 2);
    let looping = arrive(&mut schedule, client(1), Class::Proved, 1000);
    assert_eq!(granted(&mut schedule), looping[..2]);
    assert!(schedule.has_to_wait(client(1)) && !schedule.has_to_wait(client(2)));
    let others =
        [arrive(&mut schedule, client(2), Class::Proved, 1), arrive(&mut schedule, client(3), Class::Proved, 1)];
    assert_eq!(granted(&mut schedule), others.concat());
    // In order of arrival among its own, as one ends; one that gives up is passed over.
    schedule.leave(looping[2]);
    schedule.leave(looping[0]);
    assert_eq!(granted(&mut schedule), looping[3..4]);
}

#[test]
fn equal_clients_are_served_in_turn_and_one_clients_calls_in_order() {
    let mut schedule = schedule(1, 10);
    let [a, b, c] = [1, 2, 3].map(|number| arrive(&mut schedule, client(number), Class::Proved, 3));
    let mut order = Vec::new();
    while let Some(ticket) = schedule.grant() {
        order.push(ticket);
        schedule.leave(ticket);
    }
    let expected: Vec<_> = (0..3).flat_map(|turn| [a[turn], b[turn], c[turn]]).collect();
    assert_eq!(order, expected);
}

/// What may happen.
#[derive(Clone, Debug)]
enum Step {
    Arrive {
        caller: Option<u32>,
        peer: Option<u32>,
        connection: u64,
        class: Class,
    },
    /// One of the present calls ends or gives up, whichever state it is in.
    KeyPermit(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let class = prop_oneof![Just(Class::Proved), Just(Class::Relayed), Just(Class::Unknown)];
    let parties = (prop::option::weighted(0.8, 0..4u32), prop::option::weighted(0.8, 0..3u32), 0..4u64, class);
    let arrive = parties.prop_map(|(caller, peer, connection, class)| {
        // Without a credential nobody is known.
        let class = if caller.is_some() { class } else { Class::Unknown };
        Step::Arrive { caller, peer, connection, class }
    });
    prop_oneof![3 => arrive, 2 => any::<prop::sample::Index>().prop_map(Step::KeyPermit)]
}

/// What a test knows of the calls, kept in its own way.
#[derive(Default)]
struct Known {
    calls: BTreeMap<Ticket, (GateClient, Class, bool)>,
}

impl Known {
    fn under_way(&self, counts: impl Fn(&GateClient, Class) -> bool) -> usize {
        self.calls.values().filter(|(client, class, under_way)| *under_way && counts(client, *class)).count()
    }

    /// How many slots a class may hold at most.
    fn share(&self, class: Class, bounds: GateLimits) -> usize {
        match class {
            Class::Proved => bounds.calls,
            _ => (bounds.calls - self.under_way(|_, other| other < class)).div_ceil(2),
        }
    }

    /// Whether a call that waits could be given a free slot.
    fn is_admissible(&self, ticket: Ticket, bounds: GateLimits) -> bool {
        let (client, class, under_way) = self.calls[&ticket];
        let before = self.calls.range(..ticket).filter(|(_, call)| call.0.identity() == client.identity()).count();
        !under_way && before < bounds.per_caller && self.under_way(|_, of| of == class) < self.share(class, bounds)
    }
}

proptest! {
    #[test]
    fn slots_are_granted_within_the_rules_and_never_left_idle(
        calls in 1..9usize,
        per_caller in 1..5usize,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let bounds = GateLimits { calls, per_caller };
        let (mut schedule, mut known) = (Schedule::new(bounds), Known::default());
        for step in steps {
            match step {
                Step::Arrive { caller: number, peer: address, connection, class } => {
                    let client = GateClient { caller: number.map(caller), peer: address.and_then(peer), connection };
                    known.calls.insert(schedule.arrive(client, class), (client, class, false));
                }
                Step::KeyPermit(_) if known.calls.is_empty() => {}
                Step::KeyPermit(index) => {
                    let ticket = *index.get(&known.calls.keys().copied().collect::<Vec<_>>());
                    known.calls.remove(&ticket);
                    schedule.leave(ticket);
                }
            }
            while let Some(ticket) = schedule.grant() {
                let (client, class, under_way) = known.calls[&ticket];
                prop_assert!(!under_way, "granted twice");
                known.calls.insert(ticket, (client, class, true));
                prop_assert!(known.under_way(|_, _| true) <= calls);
                prop_assert!(known.under_way(|other, _| other.identity() == client.identity()) <= per_caller);
                let held = known.under_way(|_, of| of == class);
                prop_assert!(held <= known.share(class, bounds).max(1), "{class:?} holds {held}");
            }
            if known.under_way(|_, _| true) < calls {
                let idle = known.calls.keys().find(|ticket| known.is_admissible(**ticket, bounds));
                prop_assert_eq!(idle, None, "a slot is free and this call waits");
            }
            for &class in Class::VARIANTS {
                let present = known.calls.values().filter(|call| call.1 == class).count();
                let under_way = known.under_way(|_, of| of == class);
                prop_assert_eq!(schedule.usage(class), GateUsage { under_way, queued: present - under_way });
            }
        }
        // As calls end, all others get their turn, and in the end nothing is left of anybody.
        while let Some(ticket) = known.calls.iter().find(|(_, call)| call.2).map(|(ticket, _)| *ticket) {
            known.calls.remove(&ticket);
            schedule.leave(ticket);
            while let Some(ticket) = schedule.grant() {
                known.calls.entry(ticket).and_modify(|call| call.2 = true);
            }
        }
        prop_assert_eq!(known.calls.len(), 0, "these are never granted");
        prop_assert!(schedule.is_empty());
    }

    #[test]
    fn a_client_with_nothing_waits_for_at_most_one_call_of_each_other(
        calls in 1..9usize,
        others in prop::collection::vec(1..20usize, 1..6),
        class in prop_oneof![Just(Class::Proved), Just(Class::Relayed), Just(Class::Unknown)],
        ends in prop::collection::vec(any::<prop::sample::Index>(), 64),
    ) {
        let mut schedule = schedule(calls, 1000);
        for (number, calls) in (0..).zip(&others) {
            arrive(&mut schedule, client(number), class, *calls);
        }
        let mut under_way = granted(&mut schedule);
        let victim = schedule.arrive(client(1000), class);
        under_way.extend(granted(&mut schedule));
        let mut turns = 0;
        for end in ends {
            if under_way.contains(&victim) {
                break;
            }
            schedule.leave(under_way.swap_remove(end.index(under_way.len())));
            let granted = granted(&mut schedule);
            turns += granted.len();
            under_way.extend(granted);
        }
        prop_assert!(under_way.contains(&victim) && turns <= others.len() + 1, "{turns} turns");
    }
}

impl Schedule {
    pub(in crate::upstream::gate) fn is_empty(&self) -> bool {
        self.calls.is_empty()
            && self.callers.is_empty()
            && self.held.is_empty()
            && self.heavy.is_empty()
            && self.under_way == 0
            && self.queues.iter().all(|class| class.queue.is_empty() && class.behind_itself == 0)
    }
}

#[test]
fn calls_of_clients_that_have_closed_their_sending_side_come_last_and_get_a_quarter() {
    let mut schedule = schedule(8, 100);
    for number in 0..9 {
        schedule.arrive(client(number), Class::HalfClosed);
    }
    let held = granted(&mut schedule);
    assert_eq!(held.len(), 2, "a quarter, though nobody else wants the rest");
    for number in 10..19 {
        schedule.arrive(client(number), Class::Proved);
    }
    granted(&mut schedule);
    assert_eq!(usage(&schedule).map(|usage| usage.under_way), [6, 0, 0, 2]);
    schedule.leave(held[0]);
    granted(&mut schedule);
    assert_eq!(usage(&schedule).map(|usage| usage.under_way), [7, 0, 0, 1], "a proved caller goes first");
}

#[test]
fn a_call_under_way_whose_client_closes_its_sending_side_needs_room_in_that_quarter_while_others_wait() {
    let mut schedule = schedule(8, 100);
    let calls: Vec<Ticket> = (0..10).map(|number| schedule.arrive(client(number), Class::Proved)).collect();
    granted(&mut schedule);
    assert_eq!([0, 1, 2].map(|call| schedule.give_way(calls[call])), [true, true, false]);
    assert!(schedule.give_way(calls[0]), "it has done so before");
    assert_eq!(usage(&schedule).map(|usage| usage.under_way), [6, 0, 0, 2]);
    schedule.leave(calls[0]);
    assert!(schedule.give_way(calls[0]), "it is over");
    assert!(schedule.give_way(calls[2]));
    assert!(!schedule.give_way(calls[3]));
    calls[8..].iter().for_each(|waiting| schedule.leave(*waiting));
    assert!(schedule.give_way(calls[3]), "nobody waits");
    calls.into_iter().for_each(|call| schedule.leave(call));
    assert_eq!(usage(&schedule), [GateUsage::default(); 4]);
}
