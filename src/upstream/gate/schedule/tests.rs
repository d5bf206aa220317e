//! Which call is next, as properties of random sequences and in single cases.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use http::HeaderValue;
use proptest::prelude::*;
use strum::VariantArray;

use super::*;
use crate::request::caller::{Caller, Callers};
use crate::request::peer::Peer;
use crate::upstream::quota::Share;

/// The classes of calls for clients, and of those that keep responses warm.
const CLASSES: [Class; 5] = [Class::Proved, Class::Relayed, Class::Unknown, Class::HalfClosed, Class::KeepWarm];

/// No limit of upstream is known.
struct Free;

impl Pace for Free {
    fn now(&self) -> Instant {
        crate::clock::Clock::System.now()
    }

    fn hold(&self, _: &Draw, _: LimitKind, _: u32) -> Option<Hold> {
        None
    }

    fn is_shared(&self, _: &Draw) -> bool {
        false
    }

    fn take(&self, _: &Draw) {}
}

fn draw(client: GateClient) -> Draw {
    Draw { caller: client.caller, api: None, share: Share::Known, is_proved: true, has_client: true }
}

impl Schedule {
    fn put(&mut self, client: GateClient, class: Class) -> Ticket {
        self.add(client, class, draw(client), Duration::from_secs(30), &Free)
    }

    fn end(&mut self, ticket: Ticket) {
        self.remove(ticket, &Free);
    }

    fn must_wait(&self, client: GateClient) -> bool {
        self.has_to_wait(client, Class::Proved, &draw(client), &Free)
    }
}

/// The usage of each of [`CLASSES`].
fn usage(schedule: &Schedule) -> [GateUsage; 5] {
    CLASSES.map(|class| schedule.usage(class))
}

fn caller(number: u32) -> Caller {
    Callers::new([1; 32]).of_token(&HeaderValue::from(number))
}

fn peer(number: u32) -> Option<Peer> {
    Some(Peer::V4(Ipv4Addr::from_bits(number)))
}

/// A client with its own caller, peer address and connection.
fn client(number: u32) -> GateClient {
    GateClient { caller: Some(caller(number)), peer: peer(number), connection: u64::from(number) }
}

fn schedule(calls: usize, per_caller: usize) -> Schedule {
    Schedule::new(GateLimits { calls, per_caller })
}

/// Starts all calls that can have a slot.
fn start_all(schedule: &mut Schedule) -> Vec<Ticket> {
    std::iter::from_fn(|| schedule.start_next(&Free)).collect()
}

/// Adds this number of calls of a client.
fn add(schedule: &mut Schedule, client: GateClient, class: Class, calls: usize) -> Vec<Ticket> {
    (0..calls).map(|_| schedule.put(client, class)).collect()
}

/// Ends the calls under way one at a time, the oldest first. Returns how many of them end until one of the `wanted`
/// calls has a slot.
fn turns_until(schedule: &mut Schedule, under_way: &mut Vec<Ticket>, wanted: &[Ticket]) -> usize {
    for turns in 1.. {
        schedule.end(under_way.remove(0));
        let started = start_all(schedule);
        under_way.extend(&started);
        if started.iter().any(|ticket| wanted.contains(ticket)) {
            return turns;
        }
        assert!(turns < 10_000, "it never gets one");
    }
    unreachable!()
}

#[test]
fn a_client_with_nothing_gets_the_next_slot_however_much_another_has_queued() {
    for class in CLIENT_CLASSES {
        let mut schedule = schedule(8, 100);
        add(&mut schedule, client(1), class, 100);
        let mut under_way = start_all(&mut schedule);
        let victim = add(&mut schedule, client(2), class, 1);
        assert_eq!(turns_until(&mut schedule, &mut under_way, &victim), 1, "{class:?}");
    }
}

#[test]
fn invented_tokens_of_one_peer_or_connection_are_one_client() {
    let invented = |number| GateClient { caller: Some(caller(number)), ..client(1) };
    // From one address, from one connection of this machine, and without a credential.
    let from_one_peer = |number| GateClient { connection: u64::from(number), ..invented(number) };
    let from_one_connection = |number| GateClient { peer: None, ..invented(number) };
    let without_credential = |_| GateClient { caller: None, ..client(1) };
    let victims =
        [client(2000), GateClient { peer: None, ..client(2000) }, GateClient { caller: None, ..client(2000) }];
    let clients: [&dyn Fn(u32) -> GateClient; 3] = [&from_one_peer, &from_one_connection, &without_credential];
    for (attacker, victim) in clients.into_iter().zip(victims) {
        let mut schedule = schedule(8, 4);
        (0..1000).for_each(|number| _ = schedule.put(attacker(number), Class::Unknown));
        let mut under_way = start_all(&mut schedule);
        assert_eq!(under_way.len(), 4, "half is kept for other clients");
        let calls = add(&mut schedule, victim, Class::Unknown, 4);
        assert_eq!(turns_until(&mut schedule, &mut under_way, &calls[..1]), 1);
        assert_eq!(turns_until(&mut schedule, &mut under_way, &calls[1..2]), 1, "up to as many as the other");
    }
}

#[test]
fn a_client_with_many_connections_addresses_or_callers_is_one_client() {
    // A known caller on many connections and from many addresses, and an unknown address with many of both.
    let known = |number| GateClient { caller: Some(caller(1)), ..client(number) };
    let unknown = |number| GateClient { peer: peer(1), ..client(number) };
    let attackers: [(Class, &dyn Fn(u32) -> GateClient); 2] = [(Class::Relayed, &known), (Class::Unknown, &unknown)];
    for (class, attacker) in attackers {
        let mut schedule = schedule(8, 100);
        (10..100).for_each(|number| _ = schedule.put(attacker(number), class));
        let mut under_way = start_all(&mut schedule);
        let calls = add(&mut schedule, client(2), class, 2);
        for call in calls {
            assert_eq!(turns_until(&mut schedule, &mut under_way, &[call]), 1, "{class:?}");
        }
    }
}

#[test]
fn each_lower_class_gets_half_of_what_the_higher_classes_do_not_hold() {
    for (calls, proved, relayed, expected) in [
        (8, 0, 0, [0, 0, 4, 0, 0]),
        (8, 0, 9, [0, 4, 2, 0, 0]),
        (8, 2, 9, [2, 3, 2, 0, 0]),
        (8, 9, 9, [8, 0, 0, 0, 0]),
        (1, 0, 0, [0, 0, 1, 0, 0]),
    ] {
        let mut schedule = schedule(calls, 1);
        for (class, count) in CLASSES.into_iter().zip([proved, relayed, 9]) {
            (0..count).for_each(|number| _ = schedule.put(client(class as u32 * 100 + number), class));
        }
        start_all(&mut schedule);
        assert_eq!(usage(&schedule).map(|usage| usage.under_way), expected, "{calls} {proved} {relayed}");
    }
}

#[test]
fn higher_classes_delay_a_lower_one_and_do_not_block_it() {
    let mut schedule = schedule(4, 1);
    for number in 0..1000 {
        schedule.put(client(number), Class::Proved);
    }
    let mut under_way = start_all(&mut schedule);
    let relayed = add(&mut schedule, client(2000), Class::Relayed, 1);
    let unknown = add(&mut schedule, client(2001), Class::Unknown, 1);
    let passed_over = MAX_PASSED_OVER as usize;
    assert_eq!(turns_until(&mut schedule, &mut under_way, &relayed), passed_over + 1);
    assert_eq!(turns_until(&mut schedule, &mut under_way, &unknown), 1);
}

#[test]
fn a_client_that_holds_half_waits_for_all_others_and_uses_slots_that_they_cannot_use() {
    let mut schedule = schedule(8, 100);
    add(&mut schedule, client(1), Class::Proved, 4);
    assert_eq!(start_all(&mut schedule).len(), 4);
    assert!(!schedule.must_wait(client(1)), "no other call waits");
    add(&mut schedule, client(1), Class::Proved, 4);
    for number in 10..20 {
        schedule.put(client(number), Class::Unknown);
    }
    assert!(schedule.must_wait(client(1)));
    start_all(&mut schedule);
    // Unknown callers get half of the four slots that the proved caller does not hold. They cannot have the other two.
    assert_eq!(usage(&schedule).map(|usage| usage.under_way), [6, 0, 2, 0, 0]);
}

#[test]
fn a_caller_at_its_limit_delays_only_itself() {
    let mut schedule = schedule(4, 2);
    let many = add(&mut schedule, client(1), Class::Proved, 1000);
    assert_eq!(start_all(&mut schedule), many[..2]);
    assert!(schedule.must_wait(client(1)) && !schedule.must_wait(client(2)));
    let others = [add(&mut schedule, client(2), Class::Proved, 1), add(&mut schedule, client(3), Class::Proved, 1)];
    assert_eq!(start_all(&mut schedule), others.concat());
    // When one ends, the next of the same caller starts, in order of arrival. One that has stopped waiting is skipped.
    schedule.end(many[2]);
    schedule.end(many[0]);
    assert_eq!(start_all(&mut schedule), many[3..4]);
}

#[test]
fn equal_clients_are_served_in_turn_and_the_calls_of_one_client_in_order() {
    let mut schedule = schedule(1, 10);
    let [a, b, c] = [1, 2, 3].map(|number| add(&mut schedule, client(number), Class::Proved, 3));
    let mut order = Vec::new();
    while let Some(ticket) = schedule.start_next(&Free) {
        order.push(ticket);
        schedule.end(ticket);
    }
    let expected: Vec<_> = (0..3).flat_map(|turn| [a[turn], b[turn], c[turn]]).collect();
    assert_eq!(order, expected);
}

#[derive(Clone, Debug)]
enum Step {
    Arrive {
        caller: Option<u32>,
        peer: Option<u32>,
        connection: u64,
        class: Class,
    },
    /// One of the present calls ends or stops waiting.
    End(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let class = prop_oneof![Just(Class::Proved), Just(Class::Relayed), Just(Class::Unknown)];
    let parties = (prop::option::weighted(0.8, 0..4u32), prop::option::weighted(0.8, 0..3u32), 0..4u64, class);
    let arrive = parties.prop_map(|(caller, peer, connection, class)| {
        // A caller without a credential is not known.
        let class = if caller.is_some() { class } else { Class::Unknown };
        Step::Arrive { caller, peer, connection, class }
    });
    prop_oneof![3 => arrive, 2 => any::<prop::sample::Index>().prop_map(Step::End)]
}

/// The calls as the test expects them.
#[derive(Default)]
struct ExpectedCalls {
    calls: BTreeMap<Ticket, (GateClient, Class, bool)>,
}

impl ExpectedCalls {
    fn under_way(&self, counts: impl Fn(&GateClient, Class) -> bool) -> usize {
        self.calls.values().filter(|(client, class, under_way)| *under_way && counts(client, *class)).count()
    }

    /// The maximum number of slots of a class.
    fn share(&self, class: Class, limits: GateLimits) -> usize {
        match class {
            Class::Proved => limits.calls,
            _ => (limits.calls - self.under_way(|_, other| other < class)).div_ceil(2),
        }
    }

    /// Whether a waiting call could get a free slot.
    fn is_admissible(&self, ticket: Ticket, limits: GateLimits) -> bool {
        let (client, class, under_way) = self.calls[&ticket];
        let before = self.calls.range(..ticket).filter(|(_, call)| call.0.identity() == client.identity()).count();
        !under_way && before < limits.per_caller && self.under_way(|_, of| of == class) < self.share(class, limits)
    }
}

proptest! {
    #[test]
    fn slots_are_assigned_within_the_rules_and_none_stays_unused(
        calls in 1..9usize,
        per_caller in 1..5usize,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let limits = GateLimits { calls, per_caller };
        let (mut schedule, mut expected) = (Schedule::new(limits), ExpectedCalls::default());
        for step in steps {
            match step {
                Step::Arrive { caller: number, peer: address, connection, class } => {
                    let client = GateClient { caller: number.map(caller), peer: address.and_then(peer), connection };
                    expected.calls.insert(schedule.put(client, class), (client, class, false));
                }
                Step::End(_) if expected.calls.is_empty() => {}
                Step::End(index) => {
                    let ticket = *index.get(&expected.calls.keys().copied().collect::<Vec<_>>());
                    expected.calls.remove(&ticket);
                    schedule.end(ticket);
                }
            }
            while let Some(ticket) = schedule.start_next(&Free) {
                let (client, class, under_way) = expected.calls[&ticket];
                prop_assert!(!under_way, "started twice");
                expected.calls.insert(ticket, (client, class, true));
                prop_assert!(expected.under_way(|_, _| true) <= calls);
                prop_assert!(expected.under_way(|other, _| other.identity() == client.identity()) <= per_caller);
                let held = expected.under_way(|_, of| of == class);
                prop_assert!(held <= expected.share(class, limits).max(1), "{class:?} holds {held}");
            }
            if expected.under_way(|_, _| true) < calls {
                let waiting = expected.calls.keys().find(|ticket| expected.is_admissible(**ticket, limits));
                prop_assert_eq!(waiting, None, "a slot is free and this call waits");
            }
            for &class in Class::VARIANTS {
                let present = expected.calls.values().filter(|call| call.1 == class).count();
                let under_way = expected.under_way(|_, of| of == class);
                prop_assert_eq!(schedule.usage(class), GateUsage { under_way, queued: present - under_way });
            }
        }
        // As calls end, all others start, and in the end no call is left.
        while let Some(ticket) = expected.calls.iter().find(|(_, call)| call.2).map(|(ticket, _)| *ticket) {
            expected.calls.remove(&ticket);
            schedule.end(ticket);
            while let Some(ticket) = schedule.start_next(&Free) {
                expected.calls.entry(ticket).and_modify(|call| call.2 = true);
            }
        }
        prop_assert_eq!(expected.calls.len(), 0, "these calls never start");
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
            add(&mut schedule, client(number), class, *calls);
        }
        let mut under_way = start_all(&mut schedule);
        let victim = schedule.put(client(1000), class);
        under_way.extend(start_all(&mut schedule));
        let mut turns = 0;
        for end in ends {
            if under_way.contains(&victim) {
                break;
            }
            schedule.end(under_way.swap_remove(end.index(under_way.len())));
            let started = start_all(&mut schedule);
            turns += started.len();
            under_way.extend(started);
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
            && self.held_callers.is_empty()
            && self.under_way == 0
            && self.queues.iter().all(|class| {
                class.queue.is_empty()
                    && class.by_api.is_empty()
                    && class.at_caller_limit == 0
                    && class.deadlines.is_empty()
            })
    }
}

#[test]
fn calls_of_clients_that_have_closed_their_sending_side_come_last_and_get_a_quarter() {
    let mut schedule = schedule(8, 100);
    for number in 0..9 {
        schedule.put(client(number), Class::HalfClosed);
    }
    let started = start_all(&mut schedule);
    assert_eq!(started.len(), 2, "a quarter, although no other call waits");
    for number in 10..19 {
        schedule.put(client(number), Class::Proved);
    }
    start_all(&mut schedule);
    assert_eq!(usage(&schedule).map(|usage| usage.under_way), [6, 0, 0, 2, 0]);
    schedule.end(started[0]);
    start_all(&mut schedule);
    assert_eq!(usage(&schedule).map(|usage| usage.under_way), [7, 0, 0, 1, 0], "a proved caller goes first");
}

#[test]
fn a_half_closed_call_under_way_keeps_its_slot_if_the_quarter_has_room_or_no_other_call_waits() {
    let mut schedule = schedule(8, 100);
    let calls: Vec<Ticket> = (0..10).map(|number| schedule.put(client(number), Class::Proved)).collect();
    start_all(&mut schedule);
    assert_eq!([0, 1, 2].map(|call| schedule.move_to_half_closed(calls[call])), [true, true, false]);
    assert!(schedule.move_to_half_closed(calls[0]), "it has been moved before");
    assert_eq!(usage(&schedule).map(|usage| usage.under_way), [6, 0, 0, 2, 0]);
    schedule.end(calls[0]);
    assert!(schedule.move_to_half_closed(calls[0]), "it has ended");
    assert!(schedule.move_to_half_closed(calls[2]));
    assert!(!schedule.move_to_half_closed(calls[3]));
    calls[8..].iter().for_each(|waiting| schedule.end(*waiting));
    assert!(schedule.move_to_half_closed(calls[3]), "no call waits");
    calls.into_iter().for_each(|call| schedule.end(call));
    assert_eq!(usage(&schedule), [GateUsage::default(); 5]);
}

#[test]
fn calls_that_keep_responses_warm_wait_for_all_others_and_get_an_eighth() {
    let mut schedule = schedule(16, 100);
    let own = GateClient { caller: None, peer: None, connection: 5_000 };
    add(&mut schedule, own, Class::KeepWarm, 3);
    let mut under_way = start_all(&mut schedule);
    assert_eq!(under_way.len(), 2, "an eighth, although no other call waits");
    // One client has more calls than half of the slots, and one has closed its sending side.
    add(&mut schedule, client(1), Class::Unknown, 7);
    add(&mut schedule, client(1), Class::Proved, 30);
    add(&mut schedule, client(2), Class::HalfClosed, 1);
    assert!(!schedule.must_wait(own));
    let clients = start_all(&mut schedule);
    assert_eq!((clients.len(), schedule.usage(Class::KeepWarm).under_way), (14, 2));
    under_way.extend(clients);
    // It is not passed over for a while and then served, like a class of clients.
    while schedule.usage(Class::Proved).queued + schedule.usage(Class::Unknown).queued > 0 {
        schedule.end(under_way.remove(0));
        under_way.extend(start_all(&mut schedule));
        let waits = schedule.usage(Class::KeepWarm).queued == 1;
        assert!(waits || schedule.usage(Class::HalfClosed).queued == 0);
    }
    assert_eq!(schedule.usage(Class::KeepWarm).queued, 0);
}

#[test]
fn a_call_that_keeps_a_response_warm_delays_no_caller() {
    let mut schedule = schedule(1, 1);
    let own = GateClient { caller: None, peer: None, connection: 5_000 };
    add(&mut schedule, client(1), Class::Proved, 1);
    let mut under_way = start_all(&mut schedule);
    let warm = add(&mut schedule, own, Class::KeepWarm, 1);
    assert!(!schedule.must_wait(client(2)));
    add(&mut schedule, client(2), Class::Unknown, 1);
    for number in 100..200 {
        schedule.put(client(number), Class::Proved);
    }
    assert_eq!(turns_until(&mut schedule, &mut under_way, &warm), 102, "after all clients");
}
