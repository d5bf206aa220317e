//! The command line: which command, with which settings, and how it ends.

mod access_key;
mod announce;
mod demo;
mod flags;
mod health;
mod inherit;
mod probe;
mod reload;
mod runtime;
mod serve;
mod signals;
mod supervisor;
mod warnings;
mod watchdog;

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::{Parser, Subcommand};
use flags::{FlagSettings, known_variables, unknown_variables};
use http::HeaderMap;

use crate::certificate::NotAfter;
use crate::clock::Clock;
use crate::config::{Config, Mode, SettingsSource};
use crate::explain::{self, Context, ExplainRequest};
use crate::request::decide::Rules;
use crate::request::hop::Via;
use crate::server::{ConnectionLimit, Server};
use crate::telemetry::logs;

/// A caching reverse proxy for the product-list APIs of Huawei Cloud Workspace.
// No Debug from here to the headers: one of them may be a credential.
#[derive(Parser)]
#[command(name = "workspace-gateway", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway.
    Serve(FlagSettings),
    /// Check a configuration and print what it amounts to.
    Check {
        /// Also resolve, connect to and complete TLS with each upstream, and print a line for each. No request and no
        /// credential is sent. ShutdownControl 0 if all are reachable, 1 if one is not.
        #[arg(long)]
        probe: bool,
        #[command(flatten)]
        settings: FlagSettings,
    },
    /// Show what would be done with a GET of a path or URL, and why.
    Explain {
        /// A path. A URL is explained as a request to an HTTP proxy, so that another host is refused.
        url: String,
        /// A header of the request, such as 'X-Auth-Token: x'. Can be given more than once.
        #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
        headers: Vec<String>,
        #[command(flatten)]
        settings: FlagSettings,
    },
    /// Ask a gateway that runs here with the same settings whether it is alive: exit 0 if so, 1 if not.
    Health {
        /// Whether it takes requests, which it no longer does when it is stopping.
        #[arg(long)]
        ready: bool,
        #[command(flatten)]
        settings: FlagSettings,
    },
    /// See it work: both upstream services simulated, the gateway before them, and a short load.
    Demo {
        /// ShutdownControl after the load: 0 if upstream saw what it should have seen, 1 if not.
        #[arg(long)]
        once: bool,
        /// cache, or bypass to see the demo notice that nothing is answered from memory.
        #[arg(long, value_name = "MODE", default_value = "cache")]
        mode: String,
    },
}

/// What the user got wrong, as opposed to what failed.
const USAGE: u8 = 2;

/// Runs the command line to its end.
pub fn run() -> ExitCode {
    signals::unblock();
    match Cli::parse().command {
        Command::Serve(settings) => with(settings, |config, source| serve::run(&config, source)),
        Command::Check { probe, settings } => with(settings, |config, source| check(&config, source.file(), probe)),
        Command::Explain { url, headers, settings } => with(settings.or_any_region(), |config, _| {
            let headers = headers.iter().map(|text| explain::header(text)).collect::<Result<HeaderMap, _>>();
            let explanation = headers.map_err(|wrong| format!("--header: {wrong}")).and_then(|headers| {
                let Config { settings, catalogue, keys, .. } = &config;
                let rules = Rules {
                    catalogue,
                    path_prefixes: &settings.listen.path_prefixes,
                    keys,
                    // No request has passed a gateway that does not run.
                    via: &Via::new(0),
                    max_head_size: settings.limits.max_head_size.bytes(),
                    is_bypassing: settings.mode == Mode::Bypass,
                };
                let context = Context { rules, listen: settings.listen.proxy.0, date: Clock::System.date() };
                explain::explain(context, ExplainRequest { url: &url, headers }, |_, _| None)
            });
            match explanation {
                Ok(explanation) => print(&explanation),
                Err(message) => failure(USAGE, &message),
            }
        }),
        Command::Health { ready, settings } => match settings.metrics_address(|name| std::env::var_os(name)) {
            Ok(address) => health::run(address, ready),
            Err(error) => failure(1, &error),
        },
        Command::Demo { once, mode } => match mode.parse() {
            Ok(mode) => demo::run(once, mode),
            Err(message) => failure(USAGE, &format!("--mode: {message}")),
        },
    }
}

fn with(settings: FlagSettings, command: impl FnOnce(Config, SettingsSource) -> ExitCode) -> ExitCode {
    for name in unknown_variables(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())) {
        let known = known_variables().collect::<Vec<_>>().join(", ");
        tell(format!("workspace-gateway: {name} is no setting and is ignored: expected one of {known}"));
    }
    let source = settings.source(|name| std::env::var_os(name));
    let (loaded, source) = match source {
        Ok(mut source) => (source.load(), Some(source)),
        Err(error) => (Err(error), None),
    };
    match (loaded, source) {
        (Ok(config), Some(source)) => command(config, source),
        (Ok(_), None) => ExitCode::from(USAGE),
        (Err(error), source) => {
            for error in error.each() {
                failure(USAGE, error);
            }
            // The files that the settings name, too, so that all mistakes are told in one run.
            if let Some(mended) = source.as_ref().and_then(SettingsSource::mended) {
                unusable_files(mended);
            }
            if let Err(wrong) = runtime::check_threads() {
                failure(USAGE, &wrong);
            }
            ExitCode::from(USAGE)
        }
    }
}

/// Tells which of the files are unusable that the settings name. True if there is one.
fn unusable_files(config: &Config) -> bool {
    let wrong = Server::check(config).err().unwrap_or_default();
    for wrong in &wrong {
        failure(USAGE, wrong);
    }
    !wrong.is_empty()
}

/// Tells what the settings amount to, what is wrong with the files that they name, and with `probe` whether upstream is
/// reached.
fn check(config: &Config, file: Option<&Path>, probe: bool) -> ExitCode {
    // What only shows when it is used, such as a file of certificates.
    let checked = Server::check(config);
    let unusable = checked.as_ref().err().into_iter().flatten().map(ToString::to_string);
    let wrong: Vec<String> = unusable.chain(runtime::check_threads().err()).collect();
    if !wrong.is_empty() {
        for wrong in &wrong {
            failure(USAGE, wrong);
        }
        return ExitCode::from(USAGE);
    }
    warn(config, file, checked.ok().and_then(|checked| checked.certificate_not_after));
    let printed = print(&config.to_toml());
    if probe { probe::run(config) } else { printed }
}

/// Tells what `serve` would warn of at start, if it had these settings from this file.
fn warn(config: &Config, file: Option<&Path>, certificate_not_after: Option<NotAfter>) {
    let listen = &config.settings.listen;
    let exposed = listen.exposed(listen.proxy.0, listen.admin.0);
    let exposed = exposed.map(|(setting, address)| format!("{setting}: tokens travel in the clear to {address}"));
    let upstream = warnings::plaintext_upstreams(&config.catalogue)
        .map(|url| format!("upstream: tokens will travel to {url} in the clear"));
    let limit = ConnectionLimit::after_raising(config);
    let limit = limit.is_reduced().then(|| format!("started from here, {limit}"));
    let certificate = warnings::certificate(certificate_not_after, Clock::System.date());
    for warning in exposed.chain(upstream).chain(warnings::of(config, file)).chain(limit).chain(certificate) {
        tell(format!("workspace-gateway: warning: {warning}"));
    }
}

/// Prints a result. Whoever reads only its beginning has what they wanted.
fn print(result: &dyn std::fmt::Display) -> ExitCode {
    match write!(io::stdout(), "{result}").and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => failure(1, &format!("cannot print: {error}")),
        _ => ExitCode::SUCCESS,
    }
}

fn failure(code: u8, message: &dyn std::fmt::Display) -> ExitCode {
    tell(format!("workspace-gateway: {message}"));
    // If even this can't be said, the exit code says it.
    ExitCode::from(code)
}

/// How long standard error may take, where there is no log that has a thread of its own.
const STANDARD_ERROR: Duration = Duration::from_secs(1);

/// Writes a line to the log or to standard error. A reader that has stopped must not keep the gateway from starting or ending.
fn tell(line: String) {
    static STALLED: AtomicBool = AtomicBool::new(false);
    if logs::say(&line) || STALLED.load(Ordering::Relaxed) {
        return;
    }
    let (done, written) = mpsc::channel();
    let writing = thread::Builder::new().spawn(move || {
        let _ = writeln!(io::stderr(), "{line}");
        let _ = done.send(());
    });
    if writing.is_ok() && written.recv_timeout(STANDARD_ERROR).is_err() {
        STALLED.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_header_is_refused_without_being_shown() {
        assert!(explain::header("X-Language: en-us").is_ok());
        for wrong in ["secret", "a b: secret", "x: a\nsecret"] {
            assert!(!explain::header(wrong).unwrap_err().contains("secret"));
        }
    }
}
