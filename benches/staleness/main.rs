//! Judges the estimate of stale answers and the adaptive ttl in simulated time, with fixed seeds.
//!
//! `cargo bench --bench staleness` takes about a minute. It fails if a figure is beyond its limit. The gateway is
//! simulated: only the estimator and the choice of the ttl are the real ones.

#![allow(unreachable_pub, missing_docs, clippy::expect_used)]

mod gateway;
mod keys;
mod world;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use workspace_gateway::testing::cache::staleness::StaleAnswers;
use workspace_gateway::testing::catalogue::AdaptiveTtl;
use workspace_gateway::testing::clock::Clock;

use crate::gateway::{First, Load, SimulatedGateway};
use crate::keys::names;
use crate::world::{Change, World};

const HOUR: f64 = 3600.0;
const CHANGES: [Change; 3] = [Change::Whole, Change::Some(0.4), Change::Alone];
const LOAD: Load = Load { lists: 12, callers: 20, requests_per_hour: 1000.0, first: First::AsOthers };
/// The default ttl of the gateway, in seconds.
const TTL: f64 = 300.0;
/// Hours that are judged for each catalogue.
const HOURS: usize = 80;

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("not a test: run cargo bench --bench staleness");
        return ExitCode::SUCCESS;
    }
    let passed = [judge_intervals(), judge_odd_callers(), judge_ttl()];
    if passed.iter().all(|passed| *passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a function for each input on all cores, and returns the results in the order of the inputs.
fn on_all_cores<I: Sync, R: Send>(inputs: &[I], run: impl Fn(&I) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((index, input)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    inputs.get(index).map(|input| (index, input))
                } {
                    let result = run(input);
                    results.lock().expect("no thread has panicked").push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no thread has panicked");
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Prints a figure with its limits. Returns whether it is within them.
fn judge(what: &str, value: f64, unit: &str, least: f64, most: f64) -> bool {
    let passed = value >= least && value <= most;
    let verdict = if passed { "" } else { "  BEYOND ITS LIMIT" };
    println!("{what}: {value:.2}{unit} (from {least} to {most}){verdict}");
    passed
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What was measured in the hours of a catalogue.
#[derive(Default)]
struct Hours {
    unknown: usize,
    covered: usize,
    widths: Vec<f64>,
    truth: f64,
    estimate: f64,
    slowest: Duration,
}

fn judge_intervals() -> bool {
    let periods = [("1 min", 60.0), ("5 min", 300.0), ("15 min", 900.0), ("1 h", HOUR), ("4 h", 4.0 * HOUR)];
    let periods = periods.into_iter().chain([("1 d", 24.0 * HOUR), ("1 w", 168.0 * HOUR)]);
    let cases: Vec<_> = periods.flat_map(|period| CHANGES.map(|change| (period, change))).collect();
    let hours = on_all_cores(&cases, |&((_, period), change)| {
        let world = World::new(change, period, LOAD.lists, (HOURS + 2) as f64 * HOUR, 1);
        let names = names(LOAD.lists, LOAD.callers, None);
        let mut gateway = SimulatedGateway::new(&world, LOAD, names, Some(TTL), change.rate(period), 2);
        let mut hours = Hours::default();
        for hour in 1..=HOURS {
            gateway.run(hour as f64 * HOUR);
            let begun = Clock::System.now();
            let measured = gateway.measured().stale;
            hours.slowest = hours.slowest.max(Clock::System.now() - begun);
            let Some(StaleAnswers { ratio, lower, upper }) = measured else {
                hours.unknown += 1;
                continue;
            };
            let truth = gateway.true_ratio();
            hours.truth += truth;
            hours.estimate += ratio;
            hours.covered += usize::from(truth >= lower && truth <= upper);
            hours.widths.push(100.0 * (upper - lower));
        }
        hours
    });
    println!("Share of stale answers in the last hour: {} requests an hour, ttl {TTL} s", LOAD.requests_per_hour);
    println!("  a change each | affects           | truth   | estimate | covered | median width | slowest estimate");
    let mut all = Hours::default();
    let mut passed = true;
    for (((name, _), change), mut hours) in cases.into_iter().zip(hours) {
        let known = hours.widths.len();
        let percent = |sum: f64| 100.0 * sum / known as f64;
        let covered = percent(hours.covered as f64);
        println!(
            "  {name:13} | {:17} | {:5.2} % | {:6.2} % | {covered:5.1} % | {:8.2} pts | {:.0} ms",
            change.name(),
            percent(hours.truth),
            percent(hours.estimate),
            median(&mut hours.widths),
            hours.slowest.as_secs_f64() * 1e3,
        );
        passed &= covered >= 88.0;
        all.unknown += hours.unknown;
        all.covered += hours.covered;
        all.widths.append(&mut hours.widths);
    }
    let known = all.widths.len() as f64;
    passed &= judge("hours that the interval covers", 100.0 * all.covered as f64 / known, " %", 93.5, 99.0);
    passed &= judge("median width of the interval", median(&mut all.widths), " points", 0.0, 2.0);
    passed &=
        judge("hours that are unknown", 100.0 * all.unknown as f64 / (all.unknown as f64 + known), " %", 0.0, 10.0);
    passed
}

fn adaptive_ttl() -> AdaptiveTtl {
    AdaptiveTtl { max_stale: 0.01, min: Duration::from_secs(30), max: Duration::from_secs(3600) }
}

fn judge_odd_callers() -> bool {
    let periods = [("1 h", HOUR), ("4 h", 4.0 * HOUR), ("1 d", 24.0 * HOUR)];
    let cases: Vec<_> =
        periods.into_iter().flat_map(|period| [Change::Whole, Change::Alone].map(|change| (period, change))).collect();
    let results = on_all_cores(&cases, |&((_, period), change)| {
        let world = World::new(change, period, LOAD.lists, (HOURS + 2) as f64 * HOUR, 3);
        [First::AsOthers, First::LimitedView, First::Timestamp].map(|first| {
            let load = Load { first, ..LOAD };
            let names = names(load.lists, load.callers, Some(adaptive_ttl()));
            // The ttl is fixed, so that the requests and calls are the same in all three cases.
            let mut gateway = SimulatedGateway::new(&world, load, names, Some(TTL), change.rate(period), 4);
            let (mut ratio, mut known, mut ttl) = (0.0, 0.0, 0.0);
            for hour in 1..=HOURS {
                gateway.run(hour as f64 * HOUR);
                if let Some(stale) = gateway.measured().stale {
                    ratio += stale.ratio;
                    known += 1.0;
                    ttl += gateway.chosen_ttl().ln();
                }
            }
            (100.0 * ratio / known, (ttl / known).exp())
        })
    });
    println!("\nOne of {} callers is odd: mean estimate, and mean of the ttl that is chosen by it", LOAD.callers);
    println!("  a change each | affects           | none is odd     | limited view    | timestamps");
    let mut passed = true;
    for (((name, _), change), results) in cases.into_iter().zip(results) {
        let shown = results.map(|(ratio, ttl)| format!("{ratio:.3} % / {ttl:4.0} s"));
        println!("  {name:13} | {:17} | {}", change.name(), shown.join(" | "));
        let [(ratio, ttl), others @ ..] = results;
        passed &= others.iter().all(|other| (other.0 - ratio).abs() < 0.1 && (other.1 / ttl - 1.0).abs() < 0.05);
    }
    println!("limits: 0.1 points, and 5 % of the ttl{}", if passed { "" } else { "  BEYOND ITS LIMIT" });
    passed
}

/// The ttl with which a gateway that knows the rate of changes reaches `max_stale`.
fn oracle_ttl(load: Load, rate: f64) -> f64 {
    let (mut low, mut high) = (30.0_f64, 3600.0_f64);
    for _ in 0..8 {
        let ttl = (low * high).sqrt();
        let world = World::constant(load.lists);
        let mut gateway =
            SimulatedGateway::new(&world, load, names(load.lists, load.callers, None), Some(ttl), rate, 5);
        gateway.run(20.0 * HOUR);
        if gateway.expected_wrong / gateway.answers as f64 > 0.01 { high = ttl } else { low = ttl }
    }
    (low * high).sqrt()
}

fn judge_ttl() -> bool {
    const DAYS: usize = 10;
    let few = Load { callers: 3, ..LOAD };
    let cases = [
        (LOAD, "2 h", 2.0 * HOUR, Change::Whole),
        (LOAD, "2 h", 2.0 * HOUR, Change::Alone),
        (LOAD, "4 h", 4.0 * HOUR, Change::Whole),
        (few, "2 h", 2.0 * HOUR, Change::Whole),
        (few, "4 h", 4.0 * HOUR, Change::Whole),
        (few, "4 h", 4.0 * HOUR, Change::Alone),
        (few, "8 h", 8.0 * HOUR, Change::Whole),
        (few, "1 d", 24.0 * HOUR, Change::Whole),
    ];
    let results = on_all_cores(&cases, |&(load, _, period, change)| {
        let rate = change.rate(period);
        let best = oracle_ttl(load, rate);
        let world = World::new(change, period, load.lists, DAYS as f64 * 24.0 * HOUR, 6);
        let run = |ttl: Option<f64>| {
            let names = names(load.lists, load.callers, Some(adaptive_ttl()));
            let mut gateway = SimulatedGateway::new(&world, load, names, ttl, rate, 7);
            for quarter in 1..=DAYS * 24 * 4 {
                gateway.run(quarter as f64 * HOUR / 4.0);
                if ttl.is_none() {
                    gateway.measured();
                }
            }
            let answers = gateway.answers as f64;
            let ratios = [gateway.wrong as f64, gateway.expected_wrong].map(|wrong| 100.0 * wrong / answers);
            (ratios, gateway.upstream_calls as f64, gateway.ttl())
        };
        (best, run(None), run(Some(best)))
    });
    println!(
        "\nmax_stale = 1 %, from the first hour on, {DAYS} days: true ratio (expected by the ages of the answers)"
    );
    println!(
        "  a change each | affects           | callers | ratio           | oracle's ratio  | calls   | ttl, oracle's"
    );
    let (mut passed, mut sum) = (true, [0.0; 3]);
    let count = cases.len() as f64;
    for ((load, name, _, change), (best, ours, oracle)) in cases.into_iter().zip(results) {
        let calls = ours.1 / oracle.1;
        let show = |[ratio, expected]: [f64; 2]| format!("{ratio:.2} % ({expected:.2} %)");
        println!(
            "  {name:13} | {:17} | {:7} | {} | {} | × {calls:.3} | {:.0} s, {best:.0} s",
            change.name(),
            load.callers,
            show(ours.0),
            show(oracle.0),
            ours.2
        );
        passed &= ours.0[1] <= 1.2 && calls <= 1.3;
        [ours.0[0], ours.0[1], calls].iter().zip(&mut sum).for_each(|(value, sum)| *sum += value / count);
    }
    passed &= judge("mean true ratio", sum[0], " %", 0.0, 1.2);
    passed &= judge("mean expected ratio", sum[1], " %", 0.0, 1.2);
    passed &= judge("mean calls, compared with the oracle's", sum[2], "", 0.0, 1.3);
    passed
}
