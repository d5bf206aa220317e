//! The runtime that a command's futures run on, and how many threads it has.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use tokio::runtime::Builder;

use super::{USAGE, failure};

/// How many threads there are, where not one for each core. tokio reads it, too, and panics if it is wrong.
const THREADS: &str = "TOKIO_WORKER_THREADS";

/// The most threads that may be asked for.
const MOST: usize = 512;

/// Runs a future to its end on a runtime of its own.
pub(super) fn block_on(future: impl Future<Output = ExitCode>) -> ExitCode {
    let threads = match threads(env::var_os(THREADS)) {
        Ok(threads) => threads,
        Err(wrong) => return failure(USAGE, &wrong),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // With one core a pool of threads has nothing to give, and its queues are less fair: of a thousand connections
    // some were kept waiting seven times as long. A number that is set is used on one core, too.
    let has_pool = threads.is_some() || cores > 1;
    let mut builder = if has_pool { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    match builder.worker_threads(threads.unwrap_or(cores)).enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(future);
            // Not waiting for a file that is being read: it may be on a file system that hangs.
            runtime.shutdown_background();
            code
        }
        Err(error) => failure(1, &format!("cannot start: {error}")),
    }
}

/// Whether the number of threads that the environment asks for is allowed.
///
/// # Errors
/// What is allowed.
pub(super) fn check_threads() -> Result<(), String> {
    threads(env::var_os(THREADS)).map(drop)
}

/// How many threads a variable asks for. Set but empty, it asks for nothing.
fn threads(given: Option<OsString>) -> Result<Option<usize>, String> {
    let Some(given) = given.filter(|given| !given.is_empty()) else { return Ok(None) };
    let number = given.to_str().and_then(|given| given.parse().ok()).filter(|number| (1..=MOST).contains(number));
    let wrong = || format!("{THREADS}: {given:?} is not allowed: expected a number from 1 to {MOST}");
    number.map(Some).ok_or_else(wrong)
}
