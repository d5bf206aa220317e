//! The whole program on one seed: one to three gateways, upstream and clients in one thread, with a simulated network,
//! clocks and randomness. Hours pass in seconds, because the runtime's clock skips the time in which nothing happens.
//!
//! Upstream is in turn healthy, slow, stuck, failing, throttling, resetting and dead; tokens are revoked, and the
//! catalogue changes. Links are cut, slow or reset. Gateways are killed, restarted, suspended, reloaded and purged, their
//! clocks jump, and they run out of descriptors and memory. The engine of a fleet hangs, is full, is cut off, and loses
//! what it had. The storm's judge judges each response. At the end nothing may be in use.
//!
//! The same seed gives the same run: the digest of all bytes that arrive, with their times, is printed.
//!
//! `cargo bench --bench simulation` runs the seeds that have found a violation and some others, and fails if a response is
//! wrong, late or missing. Flags: `-- --seed 7`, `--runs 10`, `--minutes 60` (simulated, of each run), `--repeat` (each run
//! twice in this process: they must be the same; needs `RUSTFLAGS="--cfg tokio_unstable"`), `--list` (all kinds of
//! responses), `--trace FILE` (all bytes that arrive, with their times; of one seed).
//!
//! ```text
//! net           the simulated network              process   a gateway's machine and its processes
//! network       connections of the clients         faults    of machines and links
//! settings      the gateways' settings             run       one seed
//! connection    its connections                   crowd     strangers who use up memory
//! engine        the host of a fleet's engine       resp_engine   the engine
//! ```
//!
//! The rest is the storm's (`benches/storm`).

#![allow(missing_docs, clippy::expect_used)]

#[path = "../storm/cache_status.rs"]
mod cache_status;
#[path = "../storm/client.rs"]
mod client;
mod connection;
mod crowd;
#[allow(dead_code)]
#[path = "../storm/endpoint.rs"]
mod endpoint;
mod engine;
mod faults;
#[allow(dead_code)]
#[path = "../storm/judge.rs"]
mod judge;
#[path = "../support/metrics.rs"]
mod metrics;
mod net;
mod network;
mod process;
#[path = "../storm/report.rs"]
mod report;
mod resp_engine;
mod run;
mod settings;
#[allow(dead_code)]
#[path = "../storm/faults.rs"]
mod upstream_faults;
#[allow(dead_code)]
#[path = "../storm/world.rs"]
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use workspace_gateway::testing::random::fix_hash_seeds;

use run::{Run, RunResult};

/// Seeds that have found a violation. They run first.
const KEPT: [u64; 2] = [
    // The engine had lost the record of a proof, so a denial at another gateway was told to nobody (deploy/fleet.md).
    3, 4,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("not a test: run cargo bench --bench simulation");
        return ExitCode::SUCCESS;
    }
    fix_hash_seeds();
    let first = number(&arguments, "--seed", 1);
    let span = Duration::from_secs(60 * number(&arguments, "--minutes", 60));
    let lists = arguments.iter().any(|argument| argument == "--list");
    let trace = arguments.iter().position(|argument| argument == "--trace").and_then(|at| arguments.get(at + 1));
    let trace = trace.map(PathBuf::from);
    let is_repeated = arguments.iter().any(|argument| argument == "--repeat");
    if is_repeated && !cfg!(tokio_unstable) {
        println!("--repeat needs RUSTFLAGS=\"--cfg tokio_unstable\": tokio's random numbers have no seed otherwise");
        return ExitCode::FAILURE;
    }
    let run = |seed| {
        let trace = trace.clone();
        // In a thread of its own, because some things are of a thread.
        std::thread::spawn(move || Run { seed, span, lists, trace }.run()).join().ok()
    };
    let (mut wrongs, mut hours, begun) = (0, 0.0, cpu_time());
    let kept = if first == 1 { &KEPT[..] } else { &[] };
    let further = (first..).filter(|seed| !kept.contains(seed)).take(number(&arguments, "--runs", 4));
    for seed in kept.iter().copied().chain(further) {
        let result = run(seed);
        wrongs += result.as_ref().map_or(1, |result| result.wrongs);
        hours += span.as_secs_f64() / 3600.0;
        if is_repeated {
            let digest = |result: Option<RunResult>| result.map(|result| result.digest);
            let is_same = digest(run(seed)) == digest(result);
            wrongs += usize::from(!is_same);
            println!("seed {seed}: {} again", if is_same { "the same" } else { "WRONG: not the same" });
            hours += span.as_secs_f64() / 3600.0;
        }
    }
    let cpu = (cpu_time() - begun).as_secs_f64() / 3600.0;
    println!("{hours} simulated hours in {:.0} s of CPU: {:.0} for each", cpu * 3600.0, hours / cpu);
    println!("{wrongs} violations");
    if wrongs == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The CPU time of this process.
fn cpu_time() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("a clock");
    time.into()
}

fn number<T: FromStr>(arguments: &[String], flag: &str, default: T) -> T {
    let at = arguments.iter().position(|argument| argument == flag);
    let given = at.map(|at| arguments.get(at + 1).and_then(|text| text.parse().ok()));
    given.map_or(default, |given| given.unwrap_or_else(|| panic!("{flag} NUMBER")))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
