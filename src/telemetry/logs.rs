//! Sets up logging: one line per log event, as text or JSON, on standard error, or to another target. A process has one
//! log, whose level can change.
//!
//! Logging must not wait for the reader of the log. One thread writes the lines (`logs/queue.rs`). It uses a duplicate
//! of the descriptor of standard error, because it would otherwise hold the lock of [`std::io::Stderr`] while the reader
//! stalls. Nothing else may write there after the log has begun. [`say`] is for lines that are no log event.

mod queue;
mod text;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use nix::sys::signal::SigSet;
use strum::VariantArray;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, registry};

use crate::config::LogFormat;
use crate::config::enums::{AccessLog, Level};
use crate::config::settings::LogSettings;
use crate::sync::Mutex;
pub(crate) use queue::CAPACITY;
use queue::Queue;

/// How long the process waits for queued lines when it ends.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The filter of the log, and its present level.
struct Verbosity {
    handle: Handle<Targets, Registry>,
    level: Mutex<Level>,
}

/// Set when the log has begun.
static VERBOSITY: OnceLock<Verbosity> = OnceLock::new();

/// Which requests are logged: the number of an [`AccessLog`].
static ACCESS: AtomicU8 = AtomicU8::new(AccessLog::All as u8);

/// Set when the log has begun.
static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();

/// A log that has begun. When this is dropped, it waits up to one second for queued lines to be written.
#[must_use]
pub struct LogGuard(());

impl Drop for LogGuard {
    fn drop(&mut self) {
        if let Some(queue) = QUEUE.get() {
            // If not all lines were written, this cannot be reported anywhere.
            queue.wait_until_written(LAST_LINES);
        }
    }
}

/// Begins to log on standard error, panics included. Does nothing if something else in this process logs already.
///
/// # Errors
/// If standard error cannot be duplicated, or the writing thread cannot be started.
pub fn begin(settings: &LogSettings) -> io::Result<LogGuard> {
    let is_coloured = is_coloured(io::stderr().is_terminal(), |name| env::var_os(name));
    let target = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    if write_to(target, is_coloured, settings)? {
        panic::set_hook(Box::new(log_panic));
    }
    Ok(LogGuard(()))
}

/// Begins to log to a target, which may block, as the simulation's does. Panics are not logged. Does nothing if something
/// else in this process logs already.
///
/// # Errors
/// If the writing thread cannot be started.
pub fn begin_to(target: impl Write + Send + 'static, settings: &LogSettings) -> io::Result<LogGuard> {
    write_to(target, false, settings).map(|_| LogGuard(()))
}

/// Returns whether the log has begun.
fn write_to(target: impl Write + Send + 'static, is_coloured: bool, settings: &LogSettings) -> io::Result<bool> {
    // Otherwise the layer would print formatting errors to standard error.
    let lines = fmt::layer().with_writer(|| LogLine).with_ansi(is_coloured).log_internal_errors(false);
    let lines = match settings.format {
        LogFormat::Text => lines.fmt_fields(text::Logfmt).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    if tracing::dispatcher::has_been_set() {
        return Ok(false);
    }
    let queue = Arc::new(Queue::default());
    let written = Arc::clone(&queue);
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        // This thread must handle no signal. SIGXFSZ would end the process if it is not ignored yet.
        let _ = SigSet::all().thread_block();
        written.write_to(target, |lines| tracing::warn!(lines, "log lines were dropped"));
    })?;
    // After the thread has started, so that queued lines are written.
    let _ = QUEUE.set(queue);
    let (filter, handle) = reload::Layer::new(filter(settings.level));
    let has_begun = registry().with(lines.with_filter(filter)).try_init().is_ok();
    if has_begun {
        let _ = VERBOSITY.set(Verbosity { handle, level: Mutex::new(settings.level) });
        set_access(settings.access);
    }
    Ok(has_begun)
}

/// Follows <https://no-color.org> and <https://bixense.com/clicolors>. Otherwise lines have colours on a terminal.
fn is_coloured(is_terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let value = |name| variable(name).filter(|value| !value.is_empty());
    value("NO_COLOR").is_none() && (is_terminal || value("CLICOLOR_FORCE").is_some_and(|value| value != "0"))
}

/// Queues a line that is no log event, such as why the process ends. Returns false if this process has no log.
pub(crate) fn say(line: &str) -> bool {
    let Some(queue) = QUEUE.get() else { return false };
    queue.push(format!("{line}\n").as_bytes());
    true
}

/// Queues log events. The layer writes each event with one call.
struct LogLine;

impl Write for LogLine {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(queue) = QUEUE.get() {
            queue.push(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The standard library's hook would wait for the reader of standard error.
fn log_panic(info: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let place = info.location().map(ToString::to_string);
    // Only captured if RUST_BACKTRACE is set.
    let backtrace = Some(Backtrace::capture()).filter(|backtrace| backtrace.status() == BacktraceStatus::Captured);
    let backtrace = backtrace.map(tracing::field::debug);
    tracing::error!(thread, place, backtrace, "panic: {}", info.payload_as_str().unwrap_or("no message"));
}

/// How many lines of this process' log were dropped so far.
pub(crate) fn dropped() -> u64 {
    QUEUE.get().map_or(0, |queue| queue.dropped())
}

/// Whether lines of this process' log are dropped, or will be soon.
pub fn is_stalled() -> bool {
    QUEUE.get().is_some_and(|queue| queue.is_stalled())
}

/// `None` if this process does not use this log.
pub(crate) fn level() -> Option<Level> {
    VERBOSITY.get().map(|verbosity| *verbosity.level.lock())
}

/// Returns false if this process does not use this log.
pub(crate) fn set_level(level: Level) -> bool {
    let Some(verbosity) = VERBOSITY.get() else { return false };
    let mut current = verbosity.level.lock();
    let is_set = verbosity.handle.reload(filter(level)).is_ok();
    if is_set {
        *current = level;
    }
    is_set
}

/// Which requests are logged.
pub(crate) fn access() -> AccessLog {
    let number = usize::from(ACCESS.load(Ordering::Relaxed));
    AccessLog::VARIANTS.get(number).copied().unwrap_or(AccessLog::All)
}

/// Does nothing if this process has no log.
pub(crate) fn set_access(access: AccessLog) {
    if VERBOSITY.get().is_some() {
        ACCESS.store(access as u8, Ordering::Relaxed);
    }
}

/// Only log events of this program: a library's debug output could show credentials.
fn filter(level: Level) -> Targets {
    Targets::new().with_target("workspace_gateway", LevelFilter::from_level(level.0))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn lines_have_colours_on_a_terminal_unless_the_environment_says_otherwise() {
        let cases = [
            (false, &[][..], false),
            (true, &[], true),
            (true, &[("NO_COLOR", "1")], false),
            (true, &[("NO_COLOR", "0")], false),
            (true, &[("NO_COLOR", "")], true),
            (false, &[("CLICOLOR_FORCE", "1")], true),
            (false, &[("CLICOLOR_FORCE", "0")], false),
            (false, &[("CLICOLOR_FORCE", "")], false),
            (true, &[("CLICOLOR_FORCE", "0")], true),
            (true, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false),
        ];
        for (is_terminal, environment, expected) in cases {
            let find = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            assert_eq!(is_coloured(is_terminal, find), expected, "{is_terminal}, {environment:?}");
        }
    }

    /// Environment variable of the process that panics.
    const ROLE: &str = "WORKSPACE_GATEWAY_TEST_PANICS";

    /// Printed after the panic.
    const PAST: &str = "after the panic";

    #[test]
    fn a_panic_is_logged_and_does_not_wait_for_the_reader() {
        if std::env::var_os(ROLE).is_some() {
            return panics_while_the_log_stalls();
        }
        let name = "telemetry::logs::tests::a_panic_is_logged_and_does_not_wait_for_the_reader";
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--nocapture"]).env(ROLE, "1");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            // Read to the end, because the process prints more.
            for line in BufReader::new(stdout).lines().map_while(Result::ok).filter(|line| line.contains(PAST)) {
                let _ = sender.send(line);
            }
        });
        let is_past = receiver.recv_timeout(Duration::from_secs(20));
        if is_past.is_err() {
            child.kill().unwrap();
            panic!("the thread that panicked waited for the log: {is_past:?}");
        }
        let mut log = String::new();
        stderr.read_to_string(&mut log).unwrap();
        assert!(child.wait().unwrap().success(), "{log}");
        let line = log.lines().find(|line| line.contains("panic: on purpose")).unwrap();
        assert!(line.contains("ERROR") && line.contains("logs.rs:"), "{line}");
    }

    /// Logs more than a pipe takes (64 KiB) and less than the queue takes, then panics.
    fn panics_while_the_log_stalls() {
        let _log =
            begin(&LogSettings { level: Level(tracing::Level::INFO), format: LogFormat::Text, access: AccessLog::All })
                .unwrap();
        for _ in 0..1_000 {
            assert!(say(&"x".repeat(200)));
        }
        assert!(thread::spawn(|| panic!("on purpose")).join().is_err());
        println!("{PAST}");
    }
}
