//! `check --probe`: prints a line for each upstream. It sends no request and no credential.

use std::io::{self, Write as _};
use std::process::ExitCode;

use super::runtime::block_on;
use super::{USAGE, failure};
use crate::config::Config;
use crate::gateway::probe::probe;

/// The exit code is 0 if all upstreams are reachable, 1 if one is not.
pub(super) fn run(config: &Config) -> ExitCode {
    block_on(async {
        let mut are_all_reachable = true;
        let probed = probe(config, |service, origin, probed| {
            are_all_reachable &= probed.failed.is_none();
            let result = if probed.failed.is_some() { "is not reachable" } else { "is reachable" };
            let steps = probed.steps.iter().chain(&probed.failed).map(String::as_str).collect::<Vec<_>>().join("; ");
            let _ = writeln!(io::stdout(), "# {}: {origin} {result}: {steps}", service.as_str());
        });
        match probed.await {
            Err(error) => failure(USAGE, &error),
            Ok(()) if are_all_reachable => ExitCode::SUCCESS,
            Ok(()) => ExitCode::from(1),
        }
    })
}
