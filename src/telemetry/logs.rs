//! Sets up logging: one line per event on standard error, for people or for machines.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, registry};

use crate::config::LogFormat;
use crate::config::settings::Log;

/// What is written. The form of a line is the one that it was begun with.
pub struct Verbosity(Handle<Targets, Registry>);

impl Verbosity {
    /// Writes what is as serious as these settings say, from now on.
    pub fn set(&self, settings: &Log) {
        // Fails only if something else logs in this process, which then knows what.
        let _ = self.0.reload(filter(settings));
    }
}

/// Begins to log. Does nothing if something in this process logs already.
pub fn init(settings: &Log) -> Verbosity {
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = match settings.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let (filter, handle) = reload::Layer::new(filter(settings));
    let _ = registry().with(lines.with_filter(filter)).try_init();
    Verbosity(handle)
}

/// Only this program's own events: a library's debug output could show what it handles.
fn filter(settings: &Log) -> Targets {
    Targets::new().with_target("workspace_gateway", LevelFilter::from_level(settings.level.0))
}
