//! Sets up logging: one line per event on standard error, for people or for machines. There is one log in a process, and
//! its level may change.

use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, registry};

use crate::config::LogFormat;
use crate::config::settings::Log;
use crate::config::units::Level;

/// What decides on each event, and by which level at present.
struct Verbosity {
    handle: Handle<Targets, Registry>,
    level: Mutex<Level>,
}

/// Of this process' log, once it has begun.
static VERBOSITY: OnceLock<Verbosity> = OnceLock::new();

/// Begins to log. Does nothing if something in this process logs already.
pub fn init(settings: &Log) {
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = match settings.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let (filter, handle) = reload::Layer::new(filter(settings.level));
    if registry().with(lines.with_filter(filter)).try_init().is_ok() {
        let _ = VERBOSITY.set(Verbosity { handle, level: Mutex::new(settings.level) });
    }
}

/// The least serious level that is written; none if this is not what logs in this process.
pub fn level() -> Option<Level> {
    VERBOSITY.get().map(|verbosity| *verbosity.level.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Writes what is as serious as that from now on. False if this is not what logs in this process.
pub fn set_level(level: Level) -> bool {
    let Some(verbosity) = VERBOSITY.get() else { return false };
    let mut present = verbosity.level.lock().unwrap_or_else(PoisonError::into_inner);
    let is_set = verbosity.handle.reload(filter(level)).is_ok();
    if is_set {
        *present = level;
    }
    is_set
}

/// Only this program's own events: a library's debug output could show what it handles.
fn filter(level: Level) -> Targets {
    Targets::new().with_target("workspace_gateway", LevelFilter::from_level(level.0))
}
