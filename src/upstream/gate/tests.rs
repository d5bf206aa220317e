//! How calls wait at the gate, and that nothing is left of those that give up.

use std::future::Future;
use std::task::Waker;

use http::HeaderValue;
use proptest::prelude::*;
use strum::VariantArray;

use super::*;
use crate::request::caller::Callers;

const WORKSPACE: Service = Service::Workspace;

fn client(number: u32) -> GateClient {
    let caller = Callers::new([1; 32]).of_token(&HeaderValue::from(number));
    GateClient { caller: Some(caller), peer: None, connection: u64::from(number) }
}

fn gate(calls: usize, per_caller: usize) -> Gate {
    Gate::new(GateLimits { calls, per_caller })
}

fn usage(gate: &Gate, service: Service) -> GateUsage {
    Class::VARIANTS.iter().copied().map(|class| gate.usage(service, class)).fold(GateUsage::default(), |all, usage| {
        GateUsage { under_way: all.under_way + usage.under_way, queued: all.queued + usage.queued }
    })
}

/// A call that has come to the gate.
type Entering<'g> = Pin<Box<dyn Future<Output = Permit> + 'g>>;

/// Has a call come to the gate. It is in the queue when this returns, or through.
fn come(gate: &Gate, client: GateClient, class: Class) -> Result<Permit, Entering<'_>> {
    let mut entering: Entering = Box::pin(gate.enter(WORKSPACE, client, class));
    through(&mut entering).ok_or(entering)
}

/// Whether it is a queued call's turn.
fn through(entering: &mut Entering) -> Option<Permit> {
    match entering.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(permit) => Some(permit),
        Poll::Pending => None,
    }
}

#[test]
fn a_call_that_gives_up_leaves_nothing_behind() {
    let gate = gate(2, 1);
    // One waits for its own caller's call, one for its class, one for the service.
    let own = come(&gate, client(1), Class::Proved);
    let unknown = come(&gate, client(2), Class::Unknown);
    let given_up = [
        come(&gate, client(1), Class::Proved),
        come(&gate, client(3), Class::Unknown),
        come(&gate, client(4), Class::Proved),
    ];
    assert!(given_up.iter().all(Result::is_err));
    assert_eq!(usage(&gate, WORKSPACE), GateUsage { under_way: 2, queued: 3 });
    drop(given_up);
    assert_eq!(usage(&gate, WORKSPACE), GateUsage { under_way: 2, queued: 0 });
    // Also when its turn has come and it has not looked yet.
    let unaware = [come(&gate, client(5), Class::Proved), come(&gate, client(5), Class::Proved)];
    drop((own, unknown));
    drop(unaware);
    assert!(gate.side(WORKSPACE).state().schedule.is_empty());
    assert!(gate.side(WORKSPACE).state().waiting.is_empty());
    assert!(come(&gate, client(1), Class::Unknown).is_ok());
}

#[test]
fn a_slot_that_its_owner_has_not_looked_at_goes_to_the_next_when_the_owner_gives_up() {
    let gate = gate(1, 1);
    let first = come(&gate, client(1), Class::Proved);
    let unaware = come(&gate, client(2), Class::Proved);
    let Err(mut next) = come(&gate, client(3), Class::Proved) else { panic!("two at a time") };
    drop(first);
    assert!(through(&mut next).is_none());
    drop(unaware);
    assert!(through(&mut next).is_some());
}

#[test]
fn the_services_do_not_wait_for_each_other() {
    let gate = gate(1, 1);
    let _held = come(&gate, client(1), Class::Proved);
    let mut entering: Entering = Box::pin(gate.enter(Service::AppStream, client(1), Class::Proved));
    assert!(through(&mut entering).is_some());
    let only = GateUsage { under_way: 1, queued: 0 };
    assert_eq!((usage(&gate, WORKSPACE), usage(&gate, Service::AppStream)), (only, GateUsage::default()));
}

proptest! {
    #[test]
    fn no_waiter_is_lost_when_others_are_dropped_at_any_moment(
        calls in 1..4usize,
        steps in prop::collection::vec((0..6u32, 0..3usize, any::<prop::sample::Index>()), 1..60),
    ) {
        let gate = gate(calls, 2);
        let (mut waiting, mut through_gate): (Vec<Entering<'_>>, Vec<Permit>) = (Vec::new(), Vec::new());
        for (number, what, index) in steps {
            match what {
                0 => match come(&gate, client(number), Class::VARIANTS[number as usize % 3]) {
                    Ok(permit) => through_gate.push(permit),
                    Err(entering) => waiting.push(entering),
                },
                // Whether its turn has come or not: nobody has looked.
                1 if !waiting.is_empty() => drop(waiting.swap_remove(index.index(waiting.len()))),
                _ if !through_gate.is_empty() => drop(through_gate.swap_remove(index.index(through_gate.len()))),
                _ => {}
            }
        }
        // Whoever is left gets a turn as calls end.
        for _ in 0..=waiting.len() {
            through_gate.clear();
            waiting.retain_mut(|entering| {
                let permit = through(entering);
                let waits = permit.is_none();
                through_gate.extend(permit);
                waits
            });
        }
        prop_assert_eq!(waiting.len(), 0);
        drop(through_gate);
        prop_assert!(gate.side(WORKSPACE).state().schedule.is_empty());
    }
}
