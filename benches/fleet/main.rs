//! The figures of a fleet, each with its limit: gateways that share a real engine.
//!
//! - `hang`: what requests wait while the engine hangs.
//! - `sharing`: how many upstream calls sixteen gateways make for what one of them knows, and for one question.
//! - `outage`: what gateways that were all restarted during an outage of upstream still answer.
//! - `denials`: how long a token that was denied at one gateway is accepted at another one.
//! - `invented`: what a client with invented tokens does to the others, and to the memory of the engine.
//!
//! `cargo bench --bench fleet` takes about two minutes, and needs redis-server on the PATH. It fails if a figure is beyond its
//! limit. Names of parts as arguments run these parts alone. The gateways are real ones in one process, on the clocks of the
//! machine, and without sockets to clients. Upstream is simulated.

#![allow(missing_docs, clippy::expect_used)]

mod denials;
#[path = "../support/engine.rs"]
mod engine;
mod hang;
mod invented;
#[path = "../support/limits.rs"]
mod limits;
#[path = "../support/metrics.rs"]
mod metrics;
mod outage;
mod sharing;
mod world;

use std::process::ExitCode;

use limits::Limits;

/// The same allocator as the program's.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("not a test: run cargo bench --bench fleet");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let parts: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| *wanted == part);
    let mut limits = Limits::default();
    runtime.block_on(async {
        if is_wanted("hang") {
            hang::measure(&mut limits).await;
        }
        if is_wanted("sharing") {
            sharing::measure(&mut limits).await;
        }
        if is_wanted("outage") {
            outage::measure(&mut limits).await;
        }
        if is_wanted("denials") {
            denials::measure(&mut limits).await;
        }
        if is_wanted("invented") {
            invented::measure(&mut limits).await;
        }
    });
    if limits.has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
