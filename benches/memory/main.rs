//! Measures the memory that clients can make the program hold. The program is a process of its own, measured from
//! outside.
//!
//! `cargo bench --bench memory` prints a table. Each load has a fresh process. The columns are the cost of one
//! connection (stream, download), the peak, and the memory 30 s after the load has ended. A cost above its target is a
//! failure. `-- --only NAME` runs one load, `-- --short` waits less, `-- --program PATH` measures another build.
//!
//! `cargo bench --bench memory -- --limit` tests the program with the settings and memory limits of `deploy/`
//! (`limit.rs`). This needs root.
//!
//! ```text
//! ../loads   the loads, with their connections   gateway    the program and its memory
//! upstream   both upstream services              cgroup     its memory limit
//! limit      the test under a memory limit       bare       a bare hyper server for comparison
//! victim     a legitimate caller                 deployed   settings and limits of deploy/
//! ```

#![allow(missing_docs, clippy::expect_used)]

mod bare;
mod cgroup;
mod deployed;
mod gateway;
mod limit;
#[path = "../loads/mod.rs"]
mod loads;
mod upstream;
mod victim;

use std::process::ExitCode;
use std::time::Duration;

use gateway::Gateway;
use loads::{LOADS, Load, Running};
use tokio::time::sleep;
use upstream::Upstream;

/// The program's allocator, so that the comparison with bare hyper does not compare allocators.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The largest resident memory of an idle process, in KiB.
const IDLE: usize = 12 * 1024;

/// The time before the cost of a load is read, and the time after the load has ended.
#[derive(Clone, Copy)]
struct Waits {
    held: Duration,
    gone: Duration,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if has(bare::FLAG) {
        bare::serve();
        return ExitCode::SUCCESS;
    }
    if !has("--bench") {
        println!("not a test: run cargo bench --bench memory");
        return ExitCode::SUCCESS;
    }
    let only = arguments.iter().position(|argument| argument == "--only").map(|flag| arguments[flag + 1].clone());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let passed = if has("--limit") {
        runtime.block_on(limit::judge(has("--short"), only.as_deref()))
    } else {
        let [held, gone] = if has("--short") { [2, 5] } else { [5, 30] }.map(Duration::from_secs);
        runtime.block_on(measure(Waits { held, gone }, only.as_deref()))
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn measure(waits: Waits, only: Option<&str>) -> bool {
    let upstream = Upstream::start(Duration::ZERO).await;
    println!(
        "KiB of RssAnon. idle: resident, before the first request. sockets: TCP buffers of the process ({}). left: {} s after the load has ended",
        cgroup::SOCKETS,
        waits.gone.as_secs()
    );
    println!(
        "{:>22}{:>8}{:>7}{:>9}{:>9}{:>9}{:>9}{:>9}{:>10}{:>11}{:>8}",
        "load", "units", "idle", "before", "held", "peak", "left", "each", "sockets", "each", "target"
    );
    let mut passed = true;
    for load in LOADS.iter().filter(|load| only.is_none_or(|only| only == load.name)) {
        let gateway = Gateway::start(&upstream, load.tls);
        passed &= row(load.name, load, gateway, waits).await;
        if let Some(name) = load.compared_as {
            row(name, &load.without_target(), Gateway::bare(), waits).await;
        }
    }
    passed
}

/// Measures a load with a fresh process and prints a row of the table. Returns whether the cost is within its target.
async fn row(name: &str, load: &Load, mut gateway: Gateway, waits: Waits) -> bool {
    let target = gateway.target();
    let idle = gateway.memory();
    loads::prime(&target).await;
    sleep(waits.held).await;
    let before = gateway.memory();
    let peak = gateway.watch();
    let running = Running::begin(load, &target, false);
    running.in_place().await;
    sleep(waits.held).await;
    let (held, placed) = (gateway.memory(), running.placed());
    let peak = peak.end();
    drop(running);
    sleep(waits.gone).await;
    let left = gateway.memory();
    #[allow(clippy::cast_precision_loss)]
    let each = |all: usize, before: usize| all.saturating_sub(before) as f64 / placed.max(1) as f64;
    let cost = each(held.anon, before.anon);
    println!(
        "{name:>22}{placed:>8}{:>7}{:>9}{:>9}{:>9}{:>9}{cost:>9.1}{:>10}{:>11.1}{:>8}",
        idle.resident,
        before.anon,
        held.anon,
        peak.max(held.anon),
        left.anon,
        held.sockets,
        each(held.sockets, before.sockets),
        load.target.map_or("-".to_owned(), |target| target.to_string()),
    );
    let mut failures = Vec::new();
    if gateway.has_ended() {
        failures.push("the process has ended".to_owned());
    }
    if placed < load.units() {
        println!("note: {placed} of {} units are in place, the others were refused or closed", load.units());
    }
    if load.target.is_some_and(|target| cost > target) {
        failures.push("the cost is above the target".to_owned());
    }
    if load.target.is_some() && idle.resident > IDLE {
        failures.push(format!("the idle process uses {} KiB, {IDLE} KiB are allowed", idle.resident));
    }
    failures.iter().for_each(|failure| println!("FAILED: {name}: {failure}"));
    failures.is_empty()
}
