//! Sequences about proofs, denials and calls that gateways share.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::super::domain::{CallerId, KeyId, RequestDirectives, SECOND};
use super::super::super::steps::Outcome;
use super::{Fault, GatewayId, Mode, Step, caller, callers, denial, failure, fault, fetch, pass, purge, request, step};

/// A caller, another one, and a key.
#[derive(Clone, Copy, Debug)]
struct Subject {
    one: CallerId,
    other: CallerId,
    key: KeyId,
}

fn read(gateway: GatewayId) -> Step {
    Step::Read { gateway, most: usize::MAX, again: false }
}

fn complete(gateway: GatewayId, outcome: Outcome) -> Step {
    Step::Complete { gateway, call: 0, outcome }
}

/// A caller is denied at a gateway.
fn denied(gateway: GatewayId, caller: CallerId, key: KeyId, outcome: Outcome) -> [Step; 2] {
    let directives = RequestDirectives::NoCache;
    [Step::Request { gateway, key, caller, directives }, complete(gateway, outcome)]
}

fn regular() -> Outcome {
    Outcome::Regular { as_sent: true }
}

/// One of the ways in which gateways share proofs, denials or calls, and then anything.
pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let subject = (callers(), 0..2_usize).prop_map(|([one, other, _], key)| Subject { one, other, key });
    let first = prop_oneof![
        5 => borrowed().boxed(),
        5 => denied_elsewhere().boxed(),
        3 => denied_in_flight().boxed(),
        2 => denied_during_look_up().boxed(),
        3 => calls().boxed(),
        4 => out_of_sync().boxed(),
        1 => proved_earlier().boxed(),
        1 => hits_out_of_sync().boxed(),
        2 => strangers().boxed(),
        2 => told_of_entries().boxed(),
    ];
    (subject, first.boxed(), vec(step().boxed(), 6)).prop_map(|(subject, first, rest)| {
        let mut steps = (first.0)(subject);
        steps.extend(rest);
        steps
    })
}

/// The steps for a subject.
struct Template(Box<dyn Fn(Subject) -> Vec<Step>>);

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Template")
    }
}

/// A caller is proved at one gateway. Something happens, and it sends a request to another one.
fn borrowed() -> impl Strategy<Value = Template> {
    let between = prop_oneof![
        3 => Just(Vec::new()),
        2 => fault().prop_map(|fault| vec![Step::Engine(fault)]),
        2 => pass().prop_map(|span| vec![Step::Pass(span)]),
        2 => (0..3 * SECOND).prop_map(|more| vec![Step::PassGrant(more)]),
        1 => Just(vec![Step::Kill(0)]),
    ];
    let late = prop_oneof![2 => Just(0), 1 => 1..60 * SECOND];
    (between, any::<bool>(), late, any::<bool>()).prop_map(|(between, reads, later, again)| {
        Template(Box::new(move |Subject { one, key, other }| {
            let mut steps = vec![fetch(0, key, one)];
            steps.extend(between.clone());
            steps.extend(reads.then(|| read(1)));
            steps.push(request(1, key, one));
            steps.extend((later > 0).then_some(Step::Pass(later)));
            steps.extend([read(1), request(1, key, one)]);
            if again {
                steps.extend([Step::PassGrant(0), read(1), request(1, key, one), request(1, key, other)]);
            }
            steps
        }))
    })
}

/// A caller is proved at one gateway, or at two. It is denied, and sends a request to a gateway that has read this, or not.
fn denied_elsewhere() -> impl Strategy<Value = Template> {
    let mode = prop_oneof![3 => Just(None), 1 => Just(Some(Mode::Away)), 1 => Just(Some(Mode::Hangs))];
    let forgotten = prop_oneof![3 => Just(None), 2 => Just(Some(Fault::ForgetVoided)), 1 => fault().prop_map(Some)];
    let choices = (any::<bool>(), any::<bool>(), any::<bool>(), 0..3_usize);
    (choices, mode, forgotten, denial(), 1..3 * SECOND).prop_map(
        |((borrows, reads, proves, at), mode, forgotten, denial, span)| {
            Template(Box::new(move |Subject { one, key, .. }| {
                let mut steps = vec![fetch(0, key, one), read(1), read(2)];
                steps.extend(borrows.then(|| request(1, key, one)));
                steps.extend(proves.then(|| fetch(2, 1 - key, one)));
                steps.extend(mode.map(|mode| Step::Engine(Fault::Mode(mode))));
                // A refused credential ends the grants of the other scope, too.
                steps.extend(denied(at, one, if proves { key } else { 2 }, denial.clone()));
                steps.extend(mode.map(|_| Step::Engine(Fault::Mode(Mode::Well))));
                steps.extend(reads.then(|| read(1)));
                steps.extend(forgotten.clone().map(Step::Engine));
                steps.extend([Step::Pass(span), request(1, key, one), read(1), request(1, key, one)]);
                steps.extend([complete(1, regular()), request(1, key, one), read(2), request(2, key, one)]);
                steps
            }))
        },
    )
}

/// A caller is denied at one gateway while its call is in flight at another one.
fn denied_in_flight() -> impl Strategy<Value = Template> {
    (denial(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(denial, knows, reads, loses)| {
        Template(Box::new(move |Subject { one, key, .. }| {
            let mut steps = Vec::new();
            steps.extend(knows.then(|| fetch(0, key, one)));
            // Without the records, it makes its own call.
            let directives = RequestDirectives::NoCache;
            steps.push(Step::Request { gateway: 1, key, caller: one, directives });
            steps.extend(denied(0, one, key, denial.clone()));
            steps.extend(loses.then_some(Step::Engine(Fault::LoseLog)));
            steps.extend(reads.then(|| read(1)));
            steps.extend([complete(1, regular()), request(1, key, one)]);
            steps.extend([read(1), read(2), request(1, key, one), request(2, key, one)]);
            steps
        }))
    })
}

/// A denial becomes known while a look-up is under way.
fn denied_during_look_up() -> impl Strategy<Value = Template> {
    (denial(), 0..2_usize, any::<bool>()).prop_map(|(denial, at, loses)| {
        Template(Box::new(move |Subject { one, key, .. }| {
            let mut steps = vec![fetch(0, key, one), read(1)];
            // A call of the gateway that looks up is under way.
            let directives = RequestDirectives::NoCache;
            steps.push(Step::Request { gateway: at, key, caller: one, directives });
            steps.push(Step::Engine(Fault::Mode(Mode::Slow)));
            steps.push(Step::Pass(8));
            steps.extend([request(1, 1 - key, one), complete(at, denial.clone())]);
            steps.extend(loses.then_some(Step::Engine(Fault::LoseLog)));
            steps.extend([read(1), Step::Pass(10), request(1, key, one), request(1, 1 - key, one)]);
            steps
        }))
    })
}

/// The same question is asked at several gateways.
fn calls() -> impl Strategy<Value = Template> {
    let end = prop_oneof![
        4 => Just(complete(0, regular())),
        2 => Just(Step::Kill(0)),
        2 => failure().prop_map(|failure| complete(0, failure)),
        1 => Just(complete(0, Outcome::NoStore)),
        1 => denial().prop_map(|denial| complete(0, denial)),
    ];
    (end, 1..4 * SECOND, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(end, span, is_proved, is_same, is_third)| {
            Template(Box::new(move |Subject { one, other, key }| {
                let other = if is_same { one } else { other };
                let mut steps = Vec::new();
                if is_proved {
                    steps.extend([fetch(0, 1 - key, one), fetch(1, 1 - key, other), fetch(2, 1 - key, other)]);
                }
                steps.extend([read(0), read(1), request(0, key, one), request(1, key, other)]);
                steps.extend(is_third.then(|| request(2, key, other)));
                steps.extend([Step::Pass(span), read(1), end.clone(), Step::Pass(50), Step::Pass(1200)]);
                steps
            }))
        },
    )
}

/// A gateway that has borrowed a grant is out of sync, and may miss notices. A newer entry may be there, also after a
/// restart. The caller's own call ends.
fn out_of_sync() -> impl Strategy<Value = Template> {
    let end = prop_oneof![3 => failure(), 1 => Just(regular()), 1 => denial()];
    let lost = prop_oneof![3 => Just(false), 1 => Just(true)];
    let restart = prop_oneof![3 => Just(None), 1 => Just(Some(Step::Restart(1, 1)))];
    (end, 900..4 * SECOND, any::<bool>(), any::<bool>(), any::<bool>(), lost, restart).prop_map(
        |(end, span, is_newer, is_denied, is_away, is_lost, restart)| {
            Template(Box::new(move |Subject { one, other, key }| {
                let mut steps = vec![fetch(0, key, one), read(1), request(1, key, one)];
                steps.extend(is_denied.then(|| denied(0, one, key, Outcome::Status(403))).into_iter().flatten());
                steps.push(Step::Pass(span));
                if is_lost {
                    let purge = Step::Purge { gateway: 0, operation: None, project: Some(1) };
                    steps.extend([purge, Step::Engine(Fault::LoseLog), read(1)]);
                }
                steps.extend(is_newer.then(|| [Step::Pass(45 * SECOND), fetch(1, key, other)]).into_iter().flatten());
                steps.extend(restart.clone());
                steps.extend(is_away.then_some(Step::Engine(Fault::Mode(Mode::Away))));
                steps.extend([request(1, key, one), complete(1, end.clone()), request(1, key, one)]);
                steps
            }))
        },
    )
}

/// A gateway borrows a proof that is later than the caller's own call there, which then proves the caller, too.
fn proved_earlier() -> impl Strategy<Value = Template> {
    (SECOND..15 * SECOND, SECOND..20 * SECOND).prop_map(|(later, span)| {
        Template(Box::new(move |Subject { one, key, .. }| {
            // Without the records, each gateway makes its own call.
            let own = |gateway| Step::Request { gateway, key, caller: one, directives: RequestDirectives::NoCache };
            let mut steps = vec![own(1), Step::Pass(later), own(0), complete(0, regular()), read(1)];
            steps.extend([request(1, 1 - key, one), complete(1, regular()), Step::Pass(span), request(1, key, one)]);
            steps
        }))
    })
}

/// A gateway has a hit on the fast path while it is in sync, and the same request comes again when it is not.
fn hits_out_of_sync() -> impl Strategy<Value = Template> {
    (500..950_u64, 100..900_u64).prop_map(|(span, later)| {
        Template(Box::new(move |Subject { one, key, .. }| {
            let hit = || request(1, key, one);
            let mut steps = vec![fetch(0, key, one), read(1), hit(), hit()];
            steps.extend([Step::Pass(span), hit(), Step::Pass(later), hit()]);
            steps
        }))
    })
}

/// A caller that has no grant at a gateway is denied there, while others may know it.
fn strangers() -> impl Strategy<Value = Template> {
    (denial(), any::<bool>(), caller()).prop_map(|(denial, is_known, third)| {
        Template(Box::new(move |Subject { one, key, .. }| {
            let mut steps = Vec::new();
            steps.extend(is_known.then(|| fetch(1, key, one)));
            steps.extend(denied(0, one, key, denial.clone()));
            steps.extend([read(1), request(1, key, one), read(2), request(2, key, third)]);
            steps
        }))
    })
}

/// A gateway has an entry, and another one tells that it is void.
fn told_of_entries() -> impl Strategy<Value = Template> {
    let void = prop_oneof![2 => purge().prop_map(|purge| vec![purge]), 1 => Just(Vec::new())];
    (void, 0..3_usize, any::<bool>(), any::<bool>()).prop_map(|(void, kind, reads, loses)| {
        Template(Box::new(move |Subject { one, other, key }| {
            let mut steps = vec![fetch(0, key, one), fetch(1, key, one), fetch(1, 1 - key, other), read(1)];
            match kind {
                0 => steps.extend(void.clone()),
                1 => steps.extend([
                    Step::Unsafe { gateway: 0, key, caller: one },
                    complete(0, Outcome::Regular { as_sent: false }),
                ]),
                _ => steps.extend(denied(0, one, key, Outcome::Vary)),
            }
            steps.extend(reads.then(|| read(1)));
            if loses {
                let purge = Step::Purge { gateway: 0, operation: None, project: Some(1) };
                steps.extend([purge, Step::Engine(Fault::LoseLog), read(1), fetch(1, key, one)]);
                steps.extend([fetch(1, 1 - key, other), fetch(1, key, one)]);
            }
            steps.extend([request(1, key, one), request(1, key, other)]);
            steps
        }))
    })
}
