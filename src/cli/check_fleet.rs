//! `check --fleet`: prints whether the engine that gateways share can be used.

use std::io::{self, Write as _};
use std::process::ExitCode;

use super::runtime::block_on;
use super::{USAGE, failure};
use crate::clock::Clock;
use crate::config::Config;
use crate::gateway::check_fleet;

/// The exit code is 0 if the engine can be used, 1 if it cannot, and 2 without an engine.
pub(super) fn run(config: &Config) -> ExitCode {
    let Some(fleet) = &config.fleet else {
        return failure(USAGE, &"check --fleet: there is no fleet.engine in the configuration");
    };
    let engine = &fleet.engine;
    block_on(async {
        let (result, code) = match check_fleet(fleet, Clock::System.into()).await {
            Ok(checked) => (format!("can be used: {checked}"), ExitCode::SUCCESS),
            Err((fault, details)) => (format!("cannot be used: {}: {details}", fault.describe()), ExitCode::from(1)),
        };
        let _ = writeln!(io::stdout(), "# fleet: {engine} {result}");
        code
    })
}
