//! The whole program on one seed: one to three gateways, upstream and clients in one thread, with a simulated network,
//! clocks and randomness. Hours pass in seconds, because the runtime's clock skips the time in which nothing happens.
//!
//! Upstream is in turn healthy, slow, stuck, failing, throttling, resetting and dead; tokens are revoked, and the
//! catalogue changes. Links are cut, slow or reset. Gateways are killed, restarted, suspended, reloaded and purged, their
//! clocks jump, and they run out of descriptors and memory. The engine of a fleet hangs, is full, is cut off, and loses
//! what it had. The reader of the log stalls. Faults of upstream, of each gateway and of the engine overlap. The storm's
//! judge judges each response. At the end nothing may be in use.
//!
//! The same seed gives the same run: the digest of all bytes that arrive, with their times, is printed.
//!
//! `cargo bench --bench simulation` runs the seeds that have found something and some others, and fails if a response is
//! wrong, late or missing. Flags: `-- --seed 7`, `--runs 10`, `--minutes 60` (simulated, of each run), `--no-crowds`,
//! `--list` (all kinds of responses), `--trace FILE` (all bytes that arrive, with their times: 700 MB for an hour).
//!
//! The same seed and program give the same run, byte for byte, if tokio's random numbers have a seed
//! (`RUSTFLAGS="--cfg tokio_unstable"`). One thing is not simulated: the cache (moka) frees memory at times of the machine's
//! clock. This matters only when memory is used up, so runs with crowds can differ on a busy machine.
//!
//! ```text
//! net             the simulated network            faults           what all faults concern
//! connection      its connections                  gateway_faults   of a gateway, its machine and its links
//! network         connections of the clients       engine_faults    of the engine, and of its links
//! process         a gateway's machine and          crowd            strangers who use up memory
//!                 its processes                    log              the log, and its reader
//! engine          the host of a fleet's engine     settings         the gateways' settings
//! resp_engine     the engine                       run              one seed
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
mod engine_faults;
mod faults;
mod gateway_faults;
#[allow(dead_code)]
#[path = "../storm/judge/mod.rs"]
mod judge;
#[path = "../storm/lifetimes.rs"]
mod lifetimes;
mod log;
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

use log::Log;
use run::Run;

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
    let flags = match Flags::read(&arguments) {
        Ok(flags) => flags,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    if !cfg!(tokio_unstable) {
        println!("NOT REPEATABLE: tokio's random numbers have a seed only with RUSTFLAGS=\"--cfg tokio_unstable\"");
    }
    fix_hash_seeds();
    let log = Log::begin();
    let Flags { seed: first, runs, minutes, lists, has_crowds, trace } = flags;
    let span = Duration::from_secs(60 * minutes);
    let run = |seed| {
        let trace = trace.clone();
        // In a thread of its own, because some things are of a thread.
        std::thread::spawn(move || Run { seed, span, lists, has_crowds, trace }.run()).join().ok()
    };
    let (mut wrongs, mut hours, begun) = (0, 0.0, cpu_time());
    let kept = if first == 1 { &KEPT[..] } else { &[] };
    let further = (first..).filter(|seed| !kept.contains(seed));
    for seed in kept.iter().copied().chain(further).take(runs) {
        wrongs += run(seed).unwrap_or(1);
        hours += span.as_secs_f64() / 3600.0;
    }
    if !log.end() {
        println!("WRONG: the log still stalls although its reader has gone on");
        wrongs += 1;
    }
    let cpu = (cpu_time() - begun).as_secs_f64() / 3600.0;
    println!("{hours:.1} simulated hours in {:.0} s of CPU: {:.0} times as fast", cpu * 3600.0, hours / cpu);
    println!("{wrongs} violations");
    if wrongs == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The CPU time of this process.
fn cpu_time() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("a clock");
    time.into()
}

struct Flags {
    seed: u64,
    runs: usize,
    minutes: u64,
    lists: bool,
    has_crowds: bool,
    trace: Option<PathBuf>,
}

impl Flags {
    fn read(arguments: &[String]) -> Result<Self, String> {
        let mut flags = Self { seed: 1, runs: 6, minutes: 60, lists: false, has_crowds: true, trace: None };
        let mut rest = arguments.iter().skip(1);
        while let Some(flag) = rest.next() {
            match flag.as_str() {
                "--bench" => {}
                "--seed" => flags.seed = number(flag, rest.next())?,
                "--runs" => flags.runs = number(flag, rest.next())?,
                "--minutes" => flags.minutes = number(flag, rest.next())?,
                "--list" => flags.lists = true,
                "--no-crowds" => flags.has_crowds = false,
                "--trace" => flags.trace = Some(rest.next().ok_or("--trace: expected a file")?.into()),
                _ => {
                    return Err(format!(
                        "unknown flag {flag:?}: expected --seed NUMBER, --runs NUMBER, --minutes NUMBER, --list, \
                         --no-crowds, --trace FILE"
                    ));
                }
            }
        }
        match (&flags.trace, flags.runs) {
            (Some(_), 2..) => Err("--trace needs --runs 1: each run would replace the file".to_owned()),
            _ => Ok(flags),
        }
    }
}

fn number<T: FromStr + Default + PartialEq>(flag: &str, text: Option<&String>) -> Result<T, String> {
    let number = text.and_then(|text| text.parse().ok()).filter(|number| *number != T::default());
    number.ok_or_else(|| format!("{flag}: {text:?} is not allowed: expected a whole number above 0"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
