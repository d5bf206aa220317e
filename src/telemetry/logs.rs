//! Sets up logging: one line per event on standard error, for people or for machines.

use std::io::IsTerminal;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, registry};

use crate::config::LogFormat;
use crate::config::settings::Log;

/// Begins to log. Does nothing if something in this process logs already.
pub fn init(settings: &Log) {
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = match settings.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // Only this program's own events: a library's debug output could show what it handles.
    let filter = tracing_subscriber::filter::Targets::new()
        .with_target("workspace_gateway", LevelFilter::from_level(settings.level.0));
    let _ = registry().with(lines.with_filter(filter)).try_init();
}
