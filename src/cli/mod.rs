//! The command line: parses it, runs the command and sets the exit code. The commands themselves are in the other
//! files.

mod announce;
mod check_fleet;
mod demo;
mod flags;
mod generate;
mod health;
mod inherit;
mod init;
mod otel_variables;
mod probe;
mod reload;
mod runtime;
mod secrets;
mod serve;
mod signals;
mod simulate;
mod supervisor;
mod warnings;
mod watchdog;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use flags::{FlagSettings, known_variables, unknown_variables};
use http::{HeaderMap, Method};
use init::Init;
use simulate::Simulation;

use crate::certificate::NotAfter;
use crate::clock::Clock;
use crate::config::{Config, Mode, SettingsSource};
use crate::explain::{self, Context, ExplainRequest};
use crate::request::decide::Rules;
use crate::request::hop::Via;
use crate::server::{ConnectionLimit, Server};
use crate::telemetry::logs;

/// The version and, if it is known, the commit (`deploy/build.rs`).
const VERSION: &str = match option_env!("WORKSPACE_GATEWAY_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// A caching reverse proxy for the product-list APIs of Huawei Cloud Workspace.
// No Debug for this type and `Command`: a header may be a credential.
#[derive(Parser)]
#[command(name = "workspace-gateway", version = VERSION)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway.
    Serve(FlagSettings),
    /// Check the configuration and print the effective settings.
    Check {
        /// Also resolve each upstream, connect to it, do the TLS handshake, and print a line for each. Sends no request
        /// and no credential. The exit code is 0 if all are reachable, 1 if one is not.
        #[arg(long)]
        probe: bool,
        /// Also connect to fleet.engine, run each command that the gateway needs, and print how long look-ups take. The
        /// exit code is 1 if the engine cannot be used, or is full, and 2 if no engine is configured.
        #[arg(long)]
        fleet: bool,
        #[command(flatten)]
        settings: FlagSettings,
    },
    /// Show what the gateway does with a GET request for a path or URL, and why.
    Explain {
        /// A path or a URL. A URL is treated as a request to an HTTP proxy, so a foreign host is refused.
        url: String,
        /// A header of the request, such as 'X-Auth-Token: x'. Can be repeated.
        #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
        headers: Vec<String>,
        #[command(flatten)]
        settings: FlagSettings,
    },
    /// Check the local gateway: exit code 0 if it is alive, 1 if not. Needs the settings of that gateway.
    Health {
        /// Check readiness instead: a gateway that is stopping is not ready.
        #[arg(long)]
        ready: bool,
        #[command(flatten)]
        settings: FlagSettings,
    },
    /// Run a demonstration: the gateway with simulated upstreams and a short load.
    Demo {
        /// Exit after the load: code 0 if the upstreams received exactly the expected requests, 1 if not.
        #[arg(long)]
        once: bool,
        /// cache or bypass. With bypass nothing is answered from memory, and the demo reports the difference.
        #[arg(long, value_name = "MODE", default_value = "cache")]
        mode: String,
    },
    /// Write a configuration file, check it, probe upstream, and print what a client must change. Asks for what the flags
    /// do not say. Further flags, such as --listen, become settings in the file.
    Init(Init),
    /// Run only the simulated upstreams, and print how to use them with a gateway. Flags choose faults.
    Simulate(Simulation),
    /// Print the completions of a shell, such as: workspace-gateway completions bash
    Completions { shell: Shell },
    /// Write man pages, one for each command, to a folder.
    Man {
        /// The folder, such as /usr/local/share/man/man1. It is created if it does not exist.
        #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
}

/// The exit code for wrong usage or configuration. Other failures exit with 1.
const USAGE: u8 = 2;

pub fn run() -> ExitCode {
    signals::unblock();
    match Cli::parse().command {
        Command::Serve(settings) => with_config(settings, |config, source| serve::run(&config, source)),
        Command::Check { probe, fleet, settings } => {
            with_config(settings, |config, source| check(&config, source.file(), probe, fleet))
        }
        Command::Explain { url, headers, settings } => with_config(settings.or_any_region(), |config, _| {
            let headers = headers.iter().map(|text| explain::header(text)).collect::<Result<HeaderMap, _>>();
            let explanation = headers.map_err(|error| format!("--header: {error}")).and_then(|headers| {
                let Config { settings, catalogue, keys, .. } = &config;
                let rules = Rules {
                    catalogue,
                    path_prefixes: &settings.listen.path_prefixes,
                    keys,
                    // Any id: the explained request has passed no gateway.
                    via: &Via::new(0),
                    max_head_size: settings.limits.max_head_size.bytes(),
                    is_bypassing: settings.mode == Mode::Bypass,
                };
                let (listen, date) = (settings.listen.proxy.0, Clock::System.date());
                let context = Context { rules, listen, date, is_suspended: &|_, _| false };
                explain::explain(context, ExplainRequest { method: Method::GET, url: &url, headers }, |_, _, _| None)
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
        Command::Init(init) => init::run(init),
        Command::Simulate(simulation) => simulate::run(&simulation),
        Command::Completions { shell } => generate::completions(shell, Cli::command()),
        Command::Man { folder } => generate::man(&folder, Cli::command()),
    }
}

fn with_config(settings: FlagSettings, command: impl FnOnce(Config, SettingsSource) -> ExitCode) -> ExitCode {
    for name in unknown_variables(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())) {
        let known = known_variables().collect::<Vec<_>>().join(", ");
        print_error(format!("workspace-gateway: {name} is not a setting and is ignored: expected one of {known}"));
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
            // Also checks the files that the settings name, so that all errors are reported in one run.
            if let Some(repaired) = source.as_ref().and_then(SettingsSource::repaired) {
                report_unusable_files(repaired);
            }
            if let Err(error) = runtime::check_threads() {
                failure(USAGE, &error);
            }
            ExitCode::from(USAGE)
        }
    }
}

/// Prints an error for each unusable file that the settings name. True if there is one.
fn report_unusable_files(config: &Config) -> bool {
    let errors = Server::check(config).err().unwrap_or_default();
    for error in &errors {
        failure(USAGE, error);
    }
    !errors.is_empty()
}

/// Prints the effective settings, errors in the files that they name, with `probe` whether the upstreams are reachable,
/// and with `fleet` whether the engine can be used.
fn check(config: &Config, file: Option<&Path>, probe: bool, fleet: bool) -> ExitCode {
    // Checks the files that the settings name, such as certificates.
    let checked = Server::check(config);
    let unusable = checked.as_ref().err().into_iter().flatten().map(ToString::to_string);
    let errors: Vec<String> = unusable.chain(runtime::check_threads().err()).collect();
    if !errors.is_empty() {
        for error in &errors {
            failure(USAGE, error);
        }
        return ExitCode::from(USAGE);
    }
    warn(config, file, checked.ok().and_then(|checked| checked.certificate_not_after));
    let printed = print(&config.to_toml());
    let probed = if probe { probe::run(config) } else { printed };
    match fleet {
        true if probed == ExitCode::SUCCESS => check_fleet::run(config),
        true => {
            check_fleet::run(config);
            probed
        }
        false => probed,
    }
}

/// Prints the warnings that `serve` would log at start with these settings.
fn warn(config: &Config, file: Option<&Path>, certificate_not_after: Option<NotAfter>) {
    let listen = &config.settings.listen;
    let exposed = listen.exposed(listen.proxy.0, listen.admin.0);
    let exposed = exposed.map(|(setting, address)| format!("{setting}: clients send tokens in plaintext to {address}"));
    let upstream = warnings::plaintext_upstreams(&config.catalogue)
        .map(|url| format!("upstream: the gateway sends tokens in plaintext to {url}"));
    let limit = ConnectionLimit::after_raising(config);
    let limit = limit.is_reduced().then(|| format!("if started here, {limit}"));
    let certificate = warnings::certificate(certificate_not_after, Clock::System.date());
    for warning in exposed.chain(upstream).chain(warnings::of(config, file)).chain(limit).chain(certificate) {
        print_error(format!("workspace-gateway: warning: {warning}"));
    }
}

/// Prints to standard output. A reader that closes the pipe early, such as `head`, is no error.
fn print(result: &dyn std::fmt::Display) -> ExitCode {
    match write!(io::stdout(), "{result}").and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => failure(1, &format!("cannot print: {error}")),
        _ => ExitCode::SUCCESS,
    }
}

fn failure(code: u8, message: &dyn std::fmt::Display) -> ExitCode {
    print_error(format!("workspace-gateway: {message}"));
    ExitCode::from(code)
}

/// How long to wait until a line is written to standard error, before the log has started.
const STDERR_TIMEOUT: Duration = Duration::from_secs(1);

/// Writes a line to the log, or to standard error if the log has not started. A reader of standard error that hangs
/// must not keep the gateway from starting or ending.
fn print_error(line: String) {
    static STALLED: AtomicBool = AtomicBool::new(false);
    if logs::say(&line) || STALLED.load(Ordering::Relaxed) {
        return;
    }
    let (done, written) = mpsc::channel();
    let writing = thread::Builder::new().spawn(move || {
        let _ = writeln!(io::stderr(), "{line}");
        let _ = done.send(());
    });
    if writing.is_ok() && written.recv_timeout(STDERR_TIMEOUT).is_err() {
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
