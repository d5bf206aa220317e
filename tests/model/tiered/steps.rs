//! The steps of a sequence with a second tier, and how likely each is.

mod fleet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::clocks::Jump;
use super::super::domain::{CALLERS, CallerId, Change, KeyId, Ms, RequestDirectives, SCOPES, SECOND, ScopeId};
use super::super::settings::Settings;
use super::super::steps::Outcome;

/// The most gateways that run at the same time. A step for one that does not run is for another one.
pub const GATEWAYS: usize = 3;

/// The steps after the first ones.
const STEPS: usize = 16;

pub type GatewayId = usize;

/// An index, taken modulo the number of candidates.
pub type Pick = usize;

/// How the engine answers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Mode {
    #[default]
    Well,
    /// Within the time limit of a look-up.
    Slow,
    /// Never.
    Hangs,
    /// There is no connection.
    Away,
}

/// Which order the engine says that a record has.
#[derive(Clone, Copy, Debug)]
pub enum Label {
    Own,
    /// The next ticket. So it is later than whatever makes it void.
    NextTicket,
    /// Its own ticket, but of the present incarnation.
    Incarnation,
}

/// What the engine does wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    Mode(Mode),
    Lose(Pick),
    Flush,
    ForgetVoided,
    /// The notices in the log.
    LoseLog,
    Delay(bool),
    Repeat(Pick, Label),
    Swap(Pick, Pick),
    /// Its clock is set forward or back (ms).
    Clock(i64),
}

/// One millisecond passes before each step.
#[derive(Clone, Debug)]
pub enum Step {
    Request {
        gateway: GatewayId,
        key: KeyId,
        caller: CallerId,
        directives: RequestDirectives,
    },
    /// The same. If that starts a call, the call completes.
    Fetch {
        gateway: GatewayId,
        key: KeyId,
        caller: CallerId,
    },
    /// A caller sends a request with an unsafe method to the path of a key.
    Unsafe {
        gateway: GatewayId,
        key: KeyId,
        caller: CallerId,
    },
    /// A call in flight completes.
    Complete {
        gateway: GatewayId,
        call: Pick,
        outcome: Outcome,
    },
    Pass(Ms),
    /// `grant_ttl` passes, and so much more.
    PassGrant(Ms),
    /// The clocks of the machine on which the gateways run.
    Jump(Jump),
    Change(Change),
    Purge {
        gateway: GatewayId,
        operation: Option<ScopeId>,
        project: Option<ScopeId>,
    },
    /// A gateway reads so many notices in the log. If these are all, it is in sync from then on. Or it reads the log from its
    /// beginning, also what it has read before.
    Read {
        gateway: GatewayId,
        most: usize,
        again: bool,
    },
    /// The process is killed, and another one is started in its place.
    Kill(GatewayId),
    /// The process ends and leaves a snapshot to another one, which starts so much later (ms).
    Restart(GatewayId, Ms),
    Engine(Fault),
}

impl Step {
    /// The same step, if only so many gateways run.
    pub fn on(mut self, gateways: usize) -> Box<Self> {
        if let Self::Request { gateway, .. }
        | Self::Fetch { gateway, .. }
        | Self::Unsafe { gateway, .. }
        | Self::Complete { gateway, .. }
        | Self::Purge { gateway, .. }
        | Self::Read { gateway, .. }
        | Self::Kill(gateway)
        | Self::Restart(gateway, _) = &mut self
        {
            *gateway %= gateways;
        }
        Box::new(self)
    }

    /// Smaller steps to try in place of this one when a failure is shrunk.
    pub fn simpler(&self) -> Vec<Self> {
        match *self {
            Self::Pass(span) => [1, SECOND, span / 2].into_iter().filter(|less| *less < span).map(Self::Pass).collect(),
            Self::Fetch { gateway, key, caller } => {
                vec![Self::Request { gateway, key, caller, directives: RequestDirectives::None }]
            }
            _ => Vec::new(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Sequence {
    /// Index into `Settings::all`.
    pub settings: usize,
    /// How many gateways run.
    pub gateways: usize,
    pub steps: Vec<Step>,
}

/// `is_fleet`: about what gateways share besides entries.
pub fn sequence(is_fleet: bool) -> impl Strategy<Value = Sequence> {
    let steps = match is_fleet {
        true => fleet::steps().boxed(),
        false => {
            let with_first = |(mut first, rest): (Vec<Step>, Vec<Step>)| {
                first.extend(rest);
                first
            };
            (first().boxed(), vec(step().boxed(), STEPS)).prop_map(with_first).boxed()
        }
    };
    let gateways = if is_fleet {
        prop_oneof![1 => Just(2), 2 => Just(GATEWAYS)]
    } else {
        prop_oneof![3 => Just(2), 1 => Just(GATEWAYS)]
    };
    (0..Settings::all().len(), gateways, steps).prop_map(|(settings, gateways, steps)| Sequence {
        settings,
        gateways,
        steps,
    })
}

fn request(gateway: GatewayId, key: KeyId, caller: CallerId) -> Step {
    Step::Request { gateway, key, caller, directives: RequestDirectives::None }
}

fn fetch(gateway: GatewayId, key: KeyId, caller: CallerId) -> Step {
    Step::Fetch { gateway, key, caller }
}

/// One gateway has stored a response, and a caller of the other one has been proved by another key of the scope. Then
/// something happens, and the caller requests what the first gateway has stored.
fn first() -> impl Strategy<Value = Vec<Step>> {
    let before = prop_oneof![2 => Just(Vec::new()), 1 => fault().prop_map(|fault| vec![Step::Engine(fault)])];
    (0..2_usize, callers(), before, between()).prop_map(|(key, [one, other, third], before, between)| {
        let mut steps = before;
        match between {
            Between::Steps(between, proves_again) => {
                steps.extend([fetch(0, key, one), fetch(1, 1 - key, other)]);
                steps.extend(between.into_iter().map(|step| with_key(step, key)));
                steps.extend(proves_again.then(|| fetch(1, 1 - key, other)));
                steps.push(request(1, key, other));
            }
            Between::GrantEnds(after, outcome) => {
                steps.extend([fetch(1, 1 - key, other), Step::PassGrant(after)]);
                steps.extend([fetch(0, key, one), fetch(1, 1 - key, third), request(1, key, third)]);
                steps.extend([request(1, key, other), Step::Complete { gateway: 1, call: 0, outcome }]);
            }
        }
        steps
    })
}

/// Key 0 in a step of `between` stands for the key that the first gateway has stored.
fn with_key(mut step: Step, stored: KeyId) -> Step {
    if let Step::Request { key, .. } | Step::Fetch { key, .. } | Step::Unsafe { key, .. } = &mut step
        && *key < 2
    {
        *key = if *key == 0 { stored } else { 1 - stored };
    }
    step
}

#[derive(Clone, Debug)]
enum Between {
    /// And whether the caller is proved again after that.
    Steps(Vec<Step>, bool),
    /// The grant of a caller ends before the response is sent for. Then the caller's own call ends.
    GrantEnds(Ms, Outcome),
}

/// All gateways have read the log when the engine forgets what is void.
fn forget_voided() -> Vec<Step> {
    let read = |gateway| Step::Read { gateway, most: usize::MAX, again: false };
    (0..GATEWAYS).map(read).chain([Step::Engine(Fault::ForgetVoided)]).collect()
}

fn between() -> impl Strategy<Value = Between> {
    let away =
        (select(vec![Mode::Away, Mode::Hangs]), purge_or_change()).prop_map(|(mode, steps)| with_mode(mode, steps));
    let spoilt = prop_oneof![
        3 => fault().prop_map(|fault| vec![Step::Engine(fault)]),
        1 => Just(Vec::new()),
        3 => Just(forget_voided()),
        1 => Just(vec![Step::Engine(Fault::Flush), Step::Engine(Fault::Repeat(0, Label::Incarnation))]),
        2 => (0..4_usize, label()).prop_map(|(pick, label)| vec![Step::Engine(Fault::Repeat(pick, label))]),
    ];
    let voided = prop_oneof![2 => purge_or_change(), 1 => away];
    let stored_again = prop_oneof![3 => Just(None), 1 => Just(Some(fetch(0, 0, 0)))];
    let voided = (voided, spoilt, stored_again).prop_map(|(mut steps, spoilt, stored_again)| {
        steps.extend(spoilt.into_iter().chain(stored_again));
        Between::Steps(steps, false)
    });
    let set_back = prop_oneof![
        (5_i64..40).prop_map(|seconds| Step::Engine(Fault::Clock(-1000 * seconds))),
        (5 * SECOND..40 * SECOND).prop_map(|by| Step::Jump(Jump::WallBack(by))),
    ];
    let old = (set_back, 20 * SECOND..70 * SECOND)
        .prop_map(|(set_back, span)| Between::Steps(vec![set_back, Step::Pass(span)], true));
    let suspended =
        (5 * SECOND..60 * SECOND).prop_map(|span| Between::Steps(vec![Step::Jump(Jump::Suspension(span))], true));
    let lapsed = (0..7 * SECOND, failure()).prop_map(|(after, outcome)| Between::GrantEnds(after, outcome));
    prop_oneof![
        1 => Just(Between::Steps(Vec::new(), false)),
        6 => voided,
        3 => fault().prop_map(|fault| Between::Steps(vec![Step::Engine(fault)], false)),
        1 => Just(Between::Steps(vec![Step::Kill(1)], true)),
        5 => restarted(),
        3 => old,
        1 => suspended,
        3 => lapsed,
    ]
}

/// The other gateway has stored the response, too. Perhaps something makes it void. Then the gateway is restarted while the
/// engine is away, perhaps another caller stores a newer response, and a call fails or proves its caller.
fn restarted() -> impl Strategy<Value = Between> {
    let void = prop_oneof![2 => Just(Vec::new()), 1 => purge_or_change().prop_map(at_other_gateway)];
    let outcome = prop_oneof![2 => failure(), 1 => Just(Outcome::Regular { as_sent: false })];
    let down = prop_oneof![2 => Just(0), 1 => 1..40 * SECOND];
    let newer = prop_oneof![3 => Just(None), 1 => Just(Some(fetch(1, 0, 2)))];
    (0..2_usize, void, pass(), down, newer, outcome, any::<bool>()).prop_map(
        |(caller, void, span, down, newer, outcome, proves_again)| {
            let mut steps = vec![Step::Engine(Fault::Mode(Mode::Away)), fetch(1, 0, caller)];
            steps.extend(
                void.into_iter().chain([Step::Pass(span.min(40 * SECOND)), Step::Restart(1, down)]).chain(newer),
            );
            steps.extend([request(1, 0, caller), Step::Complete { gateway: 1, call: 0, outcome }]);
            Between::Steps(steps, proves_again)
        },
    )
}

fn at_other_gateway(mut steps: Vec<Step>) -> Vec<Step> {
    for step in &mut steps {
        if let Step::Request { gateway, .. }
        | Step::Fetch { gateway, .. }
        | Step::Unsafe { gateway, .. }
        | Step::Complete { gateway, .. }
        | Step::Purge { gateway, .. } = step
        {
            *gateway = 1;
        }
    }
    steps
}

/// Something makes records void.
fn purge_or_change() -> impl Strategy<Value = Vec<Step>> {
    let complete = |outcome| Step::Complete { gateway: 0, call: 0, outcome };
    let no_cache = Step::Request { gateway: 0, key: 0, caller: 1, directives: RequestDirectives::NoCache };
    prop_oneof![
        4 => purge().prop_map(|purge| vec![purge]),
        2 => caller().prop_map(move |caller| {
            let change = Step::Unsafe { gateway: 0, key: 0, caller };
            vec![fetch(0, 1, caller), change, complete(Outcome::Regular { as_sent: false })]
        }),
        2 => Just(vec![no_cache, complete(Outcome::Vary)]),
    ]
}

/// The engine is in another mode during these steps.
fn with_mode(mode: Mode, steps: Vec<Step>) -> Vec<Step> {
    let engine = |mode| Step::Engine(Fault::Mode(mode));
    std::iter::once(engine(mode)).chain(steps).chain([engine(Mode::Well)]).collect()
}

fn step() -> impl Strategy<Value = Step> {
    let requests = (gateway(), key(), caller(), directives());
    prop_oneof![
        24 => requests.prop_map(|(gateway, key, caller, directives)| Step::Request { gateway, key, caller, directives }),
        24 => (gateway(), key(), caller()).prop_map(|(gateway, key, caller)| fetch(gateway, key, caller)),
        14 => (gateway(), 0..8_usize, outcome())
            .prop_map(|(gateway, call, outcome)| Step::Complete { gateway, call, outcome }),
        4 => (gateway(), key(), caller()).prop_map(|(gateway, key, caller)| Step::Unsafe { gateway, key, caller }),
        10 => pass().prop_map(Step::Pass),
        2 => jump().prop_map(Step::Jump),
        4 => change().prop_map(Step::Change),
        4 => purge(),
        3 => gateway().prop_map(Step::Kill),
        12 => fault().prop_map(Step::Engine),
        14 => read(),
    ]
}

/// Mostly to the end of the log.
fn read() -> impl Strategy<Value = Step> {
    let most = prop_oneof![4 => Just(usize::MAX), 1 => 0..3_usize];
    (gateway(), most, prop_oneof![6 => Just(false), 1 => Just(true)]).prop_map(|(gateway, most, again)| Step::Read {
        gateway,
        most,
        again,
    })
}

fn gateway() -> impl Strategy<Value = GatewayId> {
    0..GATEWAYS
}

fn caller() -> impl Strategy<Value = CallerId> {
    prop_oneof![3 => Just(0), 3 => Just(1), 2 => Just(2), 1 => 0..CALLERS]
}

/// Three callers that differ.
fn callers() -> impl Strategy<Value = [CallerId; 3]> {
    (0..3_usize, any::<bool>()).prop_map(|(one, turns)| {
        let [next, last] = if turns { [1, 2] } else { [2, 1] };
        [one, (one + next) % 3, (one + last) % 3]
    })
}

fn key() -> impl Strategy<Value = KeyId> {
    prop_oneof![5 => Just(0), 3 => Just(1), 2 => Just(2), 1 => Just(3)]
}

fn scope() -> impl Strategy<Value = ScopeId> {
    prop_oneof![3 => Just(0), 1 => 0..SCOPES.len()]
}

fn directives() -> impl Strategy<Value = RequestDirectives> {
    prop_oneof![
        12 => Just(RequestDirectives::None),
        2 => Just(RequestDirectives::NoCache),
        1 => select(vec![3, 35]).prop_map(|seconds| RequestDirectives::MaxAge(seconds * SECOND)),
        1 => Just(RequestDirectives::OnlyIfCached),
    ]
}

fn failure() -> impl Strategy<Value = Outcome> {
    select(vec![500, 502, 503, 504]).prop_map(Outcome::Status)
}

fn denial() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        3 => Just(Outcome::Status(403)),
        3 => Just(Outcome::Status(401)),
        1 => Just(Outcome::RefusedByService),
        1 => Just(Outcome::Intermediary),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        20 => Just(Outcome::Regular { as_sent: false }),
        2 => Just(Outcome::NoStore),
        2 => Just(Outcome::Vary),
        1 => Just(Outcome::ErrorWith200),
        4 => failure(),
        5 => denial(),
        2 => select(vec![400, 404]).prop_map(Outcome::Status),
        1 => Just(Outcome::ConnectionRefused),
        1 => Just(Outcome::TimedOut),
    ]
}

fn pass() -> impl Strategy<Value = Ms> {
    prop_oneof![2 => 1..20_u64, 2 => 500..5 * SECOND, 3 => 5 * SECOND..40 * SECOND, 1 => 40 * SECOND..200 * SECOND]
}

/// Not of `CLOCK_BOOTTIME` alone: other machines, and the processes of another boot, do not see it.
fn jump() -> impl Strategy<Value = Jump> {
    let span = || SECOND..60 * SECOND;
    prop_oneof![span().prop_map(Jump::Suspension), span().prop_map(Jump::WallForward), span().prop_map(Jump::WallBack)]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => caller().prop_map(Change::Revoke),
        3 => caller().prop_map(Change::Restore),
        1 => (caller(), scope()).prop_map(|(caller, scope)| Change::Forbid(caller, scope)),
        1 => (caller(), scope()).prop_map(|(caller, scope)| Change::Permit(caller, scope)),
    ]
}

/// Of an operation, of a project, of an operation in a project, or of everything.
fn purge() -> impl Strategy<Value = Step> {
    (gateway(), scope(), scope(), 0..4_u8).prop_map(|(gateway, one, other, which)| Step::Purge {
        gateway,
        operation: (which & 1 == 1).then_some(one),
        project: (which & 2 == 2).then_some(other),
    })
}

fn label() -> impl Strategy<Value = Label> {
    prop_oneof![2 => Just(Label::Own), 2 => Just(Label::NextTicket), 1 => Just(Label::Incarnation)]
}

fn fault() -> impl Strategy<Value = Fault> {
    let pick = || 0..6_usize;
    prop_oneof![
        3 => Just(Fault::Mode(Mode::Well)),
        2 => select(vec![Mode::Slow, Mode::Hangs, Mode::Away]).prop_map(Fault::Mode),
        1 => pick().prop_map(Fault::Lose),
        1 => Just(Fault::Flush),
        1 => Just(Fault::ForgetVoided),
        1 => Just(Fault::LoseLog),
        2 => any::<bool>().prop_map(Fault::Delay),
        4 => (pick(), label()).prop_map(|(pick, label)| Fault::Repeat(pick, label)),
        6 => (pick(), pick()).prop_map(|(one, other)| Fault::Swap(one, other)),
        1 => (-60_i64..60).prop_map(|seconds| Fault::Clock(1000 * seconds)),
    ]
}
