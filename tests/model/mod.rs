//! The sharing rules, held against a model of them.
//!
//! Random sequences of fifty steps run in process against the real gateway and a reference model: requests
//! of several callers, alone and at once, with wishes or without; answers that come out of order;
//! revocations, catalogue changes, failures, purges, clients that hang up, time, and clocks that jump. Model and gateway have
//! to agree on every answer and every call to upstream; and whatever both of them say, everything that is
//! served is judged by what upstream held to be true. Who changes a rule changes `rules` with it.
//!
//! Nothing in here may use code of the gateway to say what the gateway should do.
//!
//! - [`world`]: callers, scopes, keys, and what is true upstream.
//! - [`settings`]: the limits.
//! - [`clocks`]: what a jump of one clock means.
//! - [`steps`]: what can happen.
//! - [`script`]: upstream, as told.
//! - [`rules`]: the model.
//! - [`property`]: the judge.
//! - [`driver`]: runs a sequence.
//!
//! A failure prints its seed, to be given back in `WORKSPACE_GATEWAY_TEST_MODEL_SEED`.
//! `WORKSPACE_GATEWAY_TEST_MODEL_SEQUENCES` says how many sequences to run, and with
//! `WORKSPACE_GATEWAY_TEST_MODEL_AS_FOUND` a failure is told as it was found, not made smaller first. That there
//! is no rule that could be broken unnoticed is shown by `tests/mutants.py`.

mod clocks;
mod driver;
mod property;
mod rules;
mod script;
mod settings;
mod steps;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rules::Tally;
use steps::Sequence;

const SEED: &str = "WORKSPACE_GATEWAY_TEST_MODEL_SEED";
const NUMBER: &str = "WORKSPACE_GATEWAY_TEST_MODEL_SEQUENCES";
const AS_FOUND: &str = "WORKSPACE_GATEWAY_TEST_MODEL_AS_FOUND";

/// How many sequences run unless the environment says otherwise.
const SEQUENCES: u64 = 10_000;

/// So many share a seed: few enough to run again in a moment.
const BATCH: u64 = 100;

/// What has to happen often in so many sequences, or they have gone blind to a rule.
const RULES: [&str; 80] = [
    "304",
    "304 for nothing",
    "a stranger's change",
    "ambiguous",
    "answered after a change",
    "answered after a purge",
    "asked by wish",
    "asked to confirm",
    "boarded",
    "boarded what nobody waits for",
    "body without an end after a head",
    "caller's pause",
    "caller's pause by 503",
    "came back",
    "changed nothing",
    "denial",
    "denial elsewhere",
    "denial of a grant",
    "drift",
    "elected",
    "everybody's pause",
    "failure",
    "failure here",
    "followed",
    "given while revalidated",
    "goes again after a change",
    "hit",
    "hung up",
    "invalidated",
    "jump of the boot clock",
    "jump of the wall clock",
    "known to the client",
    "late",
    "late while suspended",
    "led",
    "lone pause",
    "negative",
    "negative from memory",
    "newer than the grant",
    "not a list",
    "not as wished",
    "not cached",
    "not to be kept",
    "out of time",
    "outdated",
    "own mark",
    "passed through",
    "stale-if-slow",
    "patient for nothing",
    "backoff",
    "paused by grace",
    "private after a purge",
    "proof",
    "purged",
    "refreshed",
    "refusal without an end",
    "refused at the head",
    "refused from memory",
    "relayed at once",
    "relayed by wish",
    "released at the head",
    "repeated",
    "second leader",
    "served by another call",
    "slot's pause",
    "slot's pause of a caller",
    "solo",
    "solo after elections",
    "spoken against",
    "stale by grace",
    "stale for a grant",
    "step back",
    "suspended",
    "suspension",
    "throttled in turn",
    "throttled leader",
    "too large",
    "tripped",
    "turned private as a whole",
    "withheld at release",
];

#[test]
fn every_sequence_keeps_to_the_rules() {
    let given = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (first, batches) = match given(SEED) {
        Some(seed) => (seed, 1),
        None => {
            let sequences = given(NUMBER).unwrap_or(SEQUENCES);
            (u64::from(getrandom::u32().unwrap()), sequences.div_ceil(BATCH))
        }
    };
    let next = AtomicU64::new(0);
    let tally = Mutex::new(Tally::new());
    let failure = Mutex::new(None);
    let work = || {
        loop {
            let batch = next.fetch_add(1, Ordering::Relaxed);
            if batch >= batches || failure.lock().unwrap().is_some() {
                return;
            }
            if let Err(told) = run_batch(first + batch, &tally) {
                failure.lock().unwrap().get_or_insert(told);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    if let Some(told) = failure.into_inner().unwrap() {
        panic!("{told}");
    }
    let tally = tally.into_inner().unwrap();
    println!("{tally:#?}");
    if batches * BATCH >= SEQUENCES {
        for rule in RULES {
            assert!(tally.get(rule).is_some_and(|&times| times >= 20), "hardly ever {rule}: {tally:#?}");
        }
    }
}

/// Runs the sequences of a seed; says what is wrong with the first that fails, made as small as can be.
fn run_batch(seed: u64, tally: &Mutex<Tally>) -> Result<(), String> {
    // A cheap one: proptest makes a generator for each choice.
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &[seed.to_le_bytes(), (!seed).to_le_bytes()].concat());
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    for _ in 0..BATCH {
        let sequence = steps::sequence().new_tree(&mut runner).expect("a sequence").current();
        match driver::run(&sequence) {
            Ok(happened) => {
                let mut tally = tally.lock().unwrap();
                happened.into_iter().for_each(|(rule, times)| *tally.entry(rule).or_default() += times);
            }
            Err(told) => {
                let told = if std::env::var_os(AS_FOUND).is_some() { told } else { shrink(sequence, told) };
                return Err(format!("{SEED}={seed}\n{told}"));
            }
        }
    }
    Ok(())
}

/// What is wrong with a sequence. Who of many wakes up first is left to chance, so it gets several.
fn fails(sequence: &Sequence) -> Option<String> {
    (0..3).find_map(|_| driver::run(sequence).err())
}

/// Leaves out what a failure doesn't need: runs of steps, long ones first, then parts of steps. By hand,
/// for proptest goes step by step, and a sequence takes as long as many small cases.
fn shrink(mut failing: Sequence, mut told: String) -> String {
    let mut length = failing.steps.len();
    while length > 0 {
        let before = failing.steps.len();
        let mut from = 0;
        while from < failing.steps.len() {
            let mut less = failing.clone();
            less.steps.drain(from..(from + length).min(failing.steps.len()));
            match fails(&less) {
                None => from += length,
                Some(wrong) => (failing, told) = (less, wrong),
            }
        }
        // What was needed may no longer be.
        length = if failing.steps.len() < before { length.min(failing.steps.len()) } else { length / 2 };
    }
    for place in 0..failing.steps.len() {
        let mut simpler = failing.steps[place].simpler();
        while let Some(step) = simpler.pop() {
            let mut less = failing.clone();
            less.steps[place] = step.clone();
            if let Some(wrong) = fails(&less) {
                (failing, told) = (less, wrong);
                simpler = step.simpler();
            }
        }
    }
    told
}
