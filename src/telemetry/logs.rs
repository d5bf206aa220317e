//! Sets up logging: one line per event on standard error, for people or for machines. There is one log in a process, and
//! its level may change.
//!
//! Nothing that logs waits for whoever reads the log. One thread of its own writes the lines (`logs/queue.rs`), to a
//! descriptor of its own: it would hold the lock of [`std::io::Stderr`] for as long as the reader stalls. Nothing else may
//! write to standard error once the log has begun; [`say`] is for what is no event.

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
use prometheus::IntCounter;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use strum::VariantArray;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, registry};

use crate::config::LogFormat;
use crate::config::choices::{AccessLog, Level};
use crate::config::settings::Log;
use crate::sync::Mutex;
pub(crate) use queue::CAPACITY;
use queue::Queue;

/// How long the end of the process waits for lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// What decides on each event, and by which level at present.
struct Verbosity {
    handle: Handle<Targets, Registry>,
    level: Mutex<Level>,
}

/// Of this process' log, once it has begun.
static VERBOSITY: OnceLock<Verbosity> = OnceLock::new();

/// Which requests have a line, by its number.
static ACCESS: AtomicU8 = AtomicU8::new(AccessLog::All as u8);

/// What this process' log is still to write, once it has begun.
static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();

/// A log that has begun. When this is dropped, it waits up to one second for queued lines to be written.
#[must_use]
pub struct LogGuard(());

impl Drop for LogGuard {
    fn drop(&mut self) {
        if let Some(queue) = QUEUE.get() {
            // If not all could be written, there is nobody to tell.
            queue.wait_until_written(LAST_LINES);
        }
    }
}

/// Begins to log. Does nothing if something in this process logs already. Panics are logged, too.
///
/// # Errors
/// If standard error can't be duplicated, or the thread that writes can't be started.
pub fn begin(settings: &Log) -> io::Result<LogGuard> {
    let is_coloured = is_coloured(io::stderr().is_terminal(), |name| env::var_os(name));
    let target = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    // What the layer itself cannot format, it would print to standard error.
    let lines = fmt::layer().with_writer(|| LogLine).with_ansi(is_coloured).log_internal_errors(false);
    let lines = match settings.format {
        LogFormat::Text => lines.fmt_fields(text::Logfmt).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    if tracing::dispatcher::has_been_set() {
        return Ok(LogGuard(()));
    }
    let queue = Arc::new(Queue::default());
    let written = Arc::clone(&queue);
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        // No signal is handled here. SIGXFSZ would end the process where nothing ignores it yet.
        let _ = SigSet::all().thread_block();
        written.write_to(target, |lines| tracing::warn!(lines, "log lines were dropped"));
    })?;
    // Only now: what is queued has a thread that writes it.
    let _ = QUEUE.set(queue);
    let (filter, handle) = reload::Layer::new(filter(settings.level));
    if registry().with(lines.with_filter(filter)).try_init().is_ok() {
        let _ = VERBOSITY.set(Verbosity { handle, level: Mutex::new(settings.level) });
        set_access(settings.access);
        panic::set_hook(Box::new(panicked));
    }
    Ok(LogGuard(()))
}

/// Whether lines have colours: as <https://no-color.org> and <https://bixense.com/clicolors> say, on a terminal otherwise.
fn is_coloured(is_terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let value = |name| variable(name).filter(|value| !value.is_empty());
    value("NO_COLOR").is_none() && (is_terminal || value("CLICOLOR_FORCE").is_some_and(|value| value != "0"))
}

/// Queues a line that is no event, such as why the process ends. False if this process has no log.
pub(crate) fn say(line: &str) -> bool {
    let Some(queue) = QUEUE.get() else { return false };
    queue.push(format!("{line}\n").as_bytes());
    true
}

/// Where an event is written: as a whole, for the layer writes each at once.
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

/// Logs a panic. The standard library's own hook would wait for whoever reads standard error.
fn panicked(info: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let place = info.location().map(ToString::to_string);
    // Captured only where RUST_BACKTRACE asks for it.
    let backtrace = Some(Backtrace::capture()).filter(|backtrace| backtrace.status() == BacktraceStatus::Captured);
    let backtrace = backtrace.map(tracing::field::debug);
    tracing::error!(thread, place, backtrace, "panic: {}", info.payload_as_str().unwrap_or("no message"));
}

/// Counts the lines of the process' log that were not written.
pub(super) struct DroppedLines {
    counter: IntCounter,
    /// Held while the counter is set: two at once would count the same lines twice.
    collecting: Mutex<()>,
}

impl DroppedLines {
    pub(super) fn new() -> prometheus::Result<Self> {
        let counter = IntCounter::new(
            "workspace_gateway_log_lines_dropped_total",
            "Log lines that were dropped. A rise: whoever reads the log is too slow or has stopped, the disk is full, or the \
             pipe is closed.",
        )?;
        Ok(Self { counter, collecting: Mutex::default() })
    }
}

impl Collector for DroppedLines {
    fn desc(&self) -> Vec<&Desc> {
        self.counter.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _one = self.collecting.lock();
        let dropped = QUEUE.get().map_or(0, |queue| queue.dropped());
        self.counter.inc_by(dropped.saturating_sub(self.counter.get()));
        self.counter.collect()
    }
}

/// The least serious level that is written; none if this is not what logs in this process.
pub(crate) fn level() -> Option<Level> {
    VERBOSITY.get().map(|verbosity| *verbosity.level.lock())
}

/// Writes what is as serious as that from now on. False if this is not what logs in this process.
pub(crate) fn set_level(level: Level) -> bool {
    let Some(verbosity) = VERBOSITY.get() else { return false };
    let mut present = verbosity.level.lock();
    let is_set = verbosity.handle.reload(filter(level)).is_ok();
    if is_set {
        *present = level;
    }
    is_set
}

/// Which requests have a line at present.
pub(crate) fn access() -> AccessLog {
    let number = usize::from(ACCESS.load(Ordering::Relaxed));
    AccessLog::VARIANTS.get(number).copied().unwrap_or(AccessLog::All)
}

/// Has these requests have a line from now on, if this process has a log.
pub(crate) fn set_access(access: AccessLog) {
    if VERBOSITY.get().is_some() {
        ACCESS.store(access as u8, Ordering::Relaxed);
    }
}

/// Only this program's own events: a library's debug output could show what it handles.
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
    fn colours_are_for_terminals_unless_the_environment_says_otherwise() {
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

    /// Set in the process that panics.
    const ROLE: &str = "WORKSPACE_GATEWAY_TEST_PANICS";

    /// Printed after the panic.
    const PAST: &str = "past the panic";

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
            // To the end, for the process prints more.
            for line in BufReader::new(stdout).lines().map_while(Result::ok).filter(|line| line.contains(PAST)) {
                let _ = sender.send(line);
            }
        });
        let is_past = receiver.recv_timeout(Duration::from_secs(20));
        if is_past.is_err() {
            child.kill().unwrap();
            panic!("the thread that panicked has waited: {is_past:?}");
        }
        let mut log = String::new();
        stderr.read_to_string(&mut log).unwrap();
        assert!(child.wait().unwrap().success(), "{log}");
        let line = log.lines().find(|line| line.contains("panic: on purpose")).unwrap();
        assert!(line.contains("ERROR") && line.contains("logs.rs:"), "{line}");
    }

    /// Logs more than a pipe holds (64 KiB) and less than the queue does, then panics.
    fn panics_while_the_log_stalls() {
        let _log = begin(&Log { level: Level(tracing::Level::INFO), format: LogFormat::Text, access: AccessLog::All })
            .unwrap();
        for _ in 0..1_000 {
            assert!(say(&"x".repeat(200)));
        }
        assert!(thread::spawn(|| panic!("on purpose")).join().is_err());
        println!("{PAST}");
    }
}
