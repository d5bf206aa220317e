//! The tokio runtime of a command, and its number of threads.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use tokio::runtime::Builder;

use super::{USAGE, failure};

/// Sets the number of threads (default: one per core). tokio reads it, too, and panics on a wrong value, so it is
/// checked first.
const THREADS: &str = "TOKIO_WORKER_THREADS";

const MAX_THREADS: usize = 512;

pub(super) fn block_on(future: impl Future<Output = ExitCode>) -> ExitCode {
    let threads = match threads(env::var_os(THREADS)) {
        Ok(threads) => threads,
        Err(error) => return failure(USAGE, &error),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // On one core a thread pool has no advantage, and its queues are less fair: of a thousand connections some waited
    // seven times as long. If the variable is set, a pool is used on one core, too.
    let has_pool = threads.is_some() || cores > 1;
    let mut builder = if has_pool { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    match builder.worker_threads(threads.unwrap_or(cores)).enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(future);
            // Does not wait for blocking tasks: one may be reading a file on a file system that hangs.
            runtime.shutdown_background();
            code
        }
        Err(error) => failure(1, &format!("cannot start: {error}")),
    }
}

/// Checks the number of threads in the environment.
///
/// # Errors
/// What is allowed.
pub(super) fn check_threads() -> Result<(), String> {
    threads(env::var_os(THREADS)).map(drop)
}

/// A variable that is set but empty counts as not set.
fn threads(given: Option<OsString>) -> Result<Option<usize>, String> {
    let Some(given) = given.filter(|given| !given.is_empty()) else { return Ok(None) };
    let number =
        given.to_str().and_then(|given| given.parse().ok()).filter(|number| (1..=MAX_THREADS).contains(number));
    let not_allowed = || format!("{THREADS}: {given:?} is not allowed: expected a number from 1 to {MAX_THREADS}");
    number.map(Some).ok_or_else(not_allowed)
}
