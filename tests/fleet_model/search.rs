//! Breadth-first search: the first violation that it finds is one of the shortest.
//!
//! Only a fingerprint of 64 bits is kept of each state that was seen. With ten million states the probability that two
//! of them share one, so that one would not be searched, is about 3 in a million. SipHash in place of `Fingerprint`
//! finds as many states (4,109,208 within the first bounds of `benches/fleet_model.rs`' `LARGE`).

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use super::property::violation;
use super::rules::Rules;
use super::state::{Budget, MAX_GATEWAYS, State};
use super::steps::{Bounds, Step, Steps};

#[derive(Default)]
struct Fingerprint(u64);

impl Fingerprint {
    fn add(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value ^ 0x9e37_79b9_7f4a_7c15)
            * u128::from(0xd6e8_feb8_6659_fd93_u64 ^ self.0.rotate_left(32));
        self.0 = (product as u64) ^ ((product >> 64) as u64) ^ self.0.rotate_left(23);
    }
}

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.add(u64::from(value));
    }
    fn write_usize(&mut self, value: usize) {
        self.add(value as u64);
    }
    fn write_isize(&mut self, value: isize) {
        self.add(value as u64);
    }
    fn write_u64(&mut self, value: u64) {
        self.add(value);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// The fingerprints are hashes already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only fingerprints are kept");
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

fn fingerprint(state: &State) -> u64 {
    let mut hasher = Fingerprint::default();
    state.hash(&mut hasher);
    hasher.finish()
}

pub(crate) struct Found {
    pub(crate) states: usize,
    pub(crate) depth: usize,
    /// What happened, line by line, if the property was violated.
    pub(crate) trace: Option<Vec<String>>,
}

pub(crate) fn search(bounds: &Bounds, rules: Rules) -> Found {
    let left = Budget { calls: bounds.calls, faults: bounds.faults, breaks: bounds.breaks, copies: bounds.copies };
    let first = State::first(bounds.gateways, left);
    // For each state, by its number: the number of the one before it, and which of its steps leads here.
    let mut seen: HashSet<u64, BuildHasherDefault<AsIs>> = HashSet::default();
    let mut parents: Vec<(u32, u8)> = vec![(0, 0)];
    seen.insert(fingerprint(&first));
    let mut layer = vec![(0_u32, first)];
    let mut steps = Steps { bounds, rules, out: Vec::new() };
    let mut depth = 0;
    while !layer.is_empty() {
        let mut next_layer = Vec::new();
        for (number, state) in layer.drain(..) {
            steps.collect(&state);
            for (choice, (_, next)) in steps.out.iter().enumerate() {
                let mut next = *next;
                next.sort(bounds.gateways);
                if !seen.insert(fingerprint(&next)) {
                    continue;
                }
                let own = parents.len() as u32;
                parents.push((number, choice as u8));
                if violation(&next, bounds, rules).is_some() {
                    let trace = Some(explain(bounds, rules, &parents, own, first));
                    return Found { states: parents.len(), depth: depth + 1, trace };
                }
                if !next.is_over() {
                    next_layer.push((own, next));
                }
            }
        }
        layer = next_layer;
        depth += 1;
    }
    Found { states: parents.len(), depth, trace: None }
}

/// The steps to a state, with the names that gateways had at first.
fn explain(bounds: &Bounds, rules: Rules, parents: &[(u32, u8)], last: u32, first: State) -> Vec<String> {
    let mut choices = Vec::new();
    let mut number = last;
    while number != 0 {
        let (parent, choice) = parents[number as usize];
        choices.push(choice);
        number = parent;
    }
    let mut steps = Steps { bounds, rules, out: Vec::new() };
    let (mut state, mut names) = (first, ['A', 'B', 'C']);
    let mut lines = Vec::new();
    for choice in choices.into_iter().rev() {
        steps.collect(&state);
        let (step, next) = steps.out[usize::from(choice)];
        lines.push(describe(step, &names));
        state = next;
        let order: [usize; MAX_GATEWAYS] = state.sort(bounds.gateways);
        names = order.map(|place| names[place]);
    }
    if let Some((place, is_borrowed)) = violation(&state, bounds, rules) {
        let kind = if is_borrowed { "a borrowed grant" } else { "its own grant" };
        lines.push(format!("=> {} shows answers on {kind} that is older than a denial", names[place]));
    }
    lines
}

fn describe(step: Step, names: &[char; MAX_GATEWAYS]) -> String {
    let denial = |number: u8| format!("D{}", number + 1);
    let call = |number: usize| format!("call {}", number + 1);
    match step {
        Step::SendsCall(g) => format!("{}: sends a call", names[g]),
        Step::Proves(g, n) => format!("{}: {} proves the caller", names[g], call(n)),
        Step::IsDenied(g, n, 0) => format!("{}: {} is denied (scope)", names[g], call(n)),
        Step::IsDenied(g, n, _) => format!("{}: {} is denied (service)", names[g], call(n)),
        Step::Stores(g, n) => format!("{}: the engine stores the record of {}", names[g], call(n)),
        Step::Tells(g, d) => format!("{}: tells {}", names[g], denial(d)),
        Step::TellsAgain(g) => format!("{}: tells again what it knows", names[g]),
        Step::LooksUp(g) => format!("{}: the engine answers its look-up", names[g]),
        Step::Borrows(g) => format!("{}: reads the answer to its look-up", names[g]),
        Step::Polls(g) => format!("{}: the engine answers its poll", names[g]),
        Step::ReadsPoll(g) => format!("{}: reads the answer to its poll", names[g]),
        Step::LosesLink(g) => format!("{}: its link breaks", names[g]),
        Step::IsCutOff(g) => format!("{}: stays cut off", names[g]),
        Step::Links(g) => format!("{}: opens a link", names[g]),
        Step::Settles(g) => format!("{}: has settled", names[g]),
        Step::Restarts(g) => format!("{}: crashes, and begins anew", names[g]),
        Step::SecondAfterDenial(d) => format!("fleet.sync has passed since {} was told", denial(d)),
        Step::SecondWhileFull => "fleet.sync has passed since the engine was full".to_owned(),
        Step::Copy => "the master's data are copied to the replica".to_owned(),
        Step::FailsOver => "engine: fails over to the replica, and all links break".to_owned(),
        Step::Splits => "engine: fails over to the replica, and the links still lead to the old master".to_owned(),
        Step::IsEmptied => "engine: restarts empty".to_owned(),
        Step::EvictsControl => "engine: evicts the control hash".to_owned(),
        Step::EvictsRecord => "engine: evicts the record".to_owned(),
        Step::LosesLog => "engine: evicts the log".to_owned(),
        Step::TrimsLog => "engine: trims the log to its last entry".to_owned(),
        Step::Squeezes => "engine: removes voids, for there are too many".to_owned(),
        Step::Fills => "engine: is full".to_owned(),
        Step::Drains => "engine: accepts writes again".to_owned(),
    }
}
