//! The command line: which command, with which settings, and how it ends.

mod announce;
mod demo;
mod health;
mod inherit;
mod reload;
mod serve;
mod supervisor;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use http::HeaderMap;
use tokio::runtime::Builder;

use crate::clock::Clock;
use crate::config::{self, Config, ConfigError, Override, Source};
use crate::egress::Egress;
use crate::explain::{self, Asked, Rules};
use crate::server::Server;

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
    Serve(Settings),
    /// Check a configuration and print what it amounts to.
    Check(Settings),
    /// Show what would be done with a GET of a path or URL, and why.
    Explain {
        /// A path, or a URL; its host counts only for a signature, where no header says another.
        url: String,
        /// A header of the request, such as 'X-Auth-Token: x'. Can be given more than once.
        #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
        headers: Vec<String>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Ask a gateway that runs here with the same settings whether it is alive: exit 0 if so, 1 if not.
    Health {
        /// Whether it takes requests, which it no longer does when it is stopping.
        #[arg(long)]
        ready: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// See it work: both upstream services simulated, the gateway before them, and a short load.
    Demo {
        /// Exit after the load: 0 if upstream saw what it should have seen, 1 if not.
        #[arg(long)]
        once: bool,
        /// cache, or bypass to see the demo notice that nothing is answered from memory.
        #[arg(long, value_name = "MODE", default_value = "cache")]
        mode: String,
    },
}

/// A flag beats the environment, which beats the file.
#[derive(Clone, Debug, Args)]
struct Settings {
    /// The configuration file (TOML). [env: WORKSPACE_GATEWAY_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The region whose public endpoints are asked, such as cn-north-4. [env: WORKSPACE_GATEWAY_REGION]
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// Where clients connect [default: 127.0.0.1:8080]. [env: WORKSPACE_GATEWAY_LISTEN]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Where Prometheus and health checks connect [default: 127.0.0.1:9090]. [env: WORKSPACE_GATEWAY_METRICS_LISTEN]
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<String>,
    /// Where the operator connects [default: 127.0.0.1:9091]. [env: WORKSPACE_GATEWAY_ADMIN_LISTEN]
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<String>,
    /// true to speak plain text beyond loopback, where tokens can be read [default: false]. [env: WORKSPACE_GATEWAY_INSECURE_PLAINTEXT]
    #[arg(long, value_name = "BOOL")]
    insecure_plaintext: Option<String>,
    /// Where Workspace is, if not at the region's public endpoint. [env: WORKSPACE_GATEWAY_WORKSPACE_URL]
    #[arg(long, value_name = "URL")]
    workspace_url: Option<String>,
    /// Where Workspace Application is, if not at the region's public endpoint. [env: WORKSPACE_GATEWAY_APPSTREAM_URL]
    #[arg(long, value_name = "URL")]
    appstream_url: Option<String>,
    /// cache or bypass [default: cache]. [env: WORKSPACE_GATEWAY_MODE]
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,
}

impl Settings {
    /// For a question that no upstream will be asked about: where upstream is need not be said.
    fn or_any_region(self) -> Self {
        match self.clone().source(|name| std::env::var_os(name)).and_then(|mut source| source.load()) {
            Err(ConfigError::NoUpstream) => Self { region: Some("no-region-set".to_owned()), ..self },
            _ => self,
        }
    }

    /// Where the metrics listener is. Nothing else is looked at: a gateway that has refused what is wrong with its file by
    /// now is well.
    fn metrics_address(self, environment: impl Fn(&str) -> Option<OsString>) -> Result<SocketAddr, ConfigError> {
        let from_environment = |flag: &str| environment(&variable(flag)).filter(|value| !value.is_empty());
        let origin = || "--metrics-listen".to_owned();
        let given = self.metrics_listen.map(|value| (value, origin())).or_else(|| {
            let value = from_environment("metrics-listen")?;
            Some((value.to_string_lossy().into_owned(), variable("metrics-listen")))
        });
        let given = given.map(|(value, origin)| Override { path: &["listen", "metrics"], value, origin });
        let file = self.config.or_else(|| from_environment("config").map(PathBuf::from));
        config::metrics_address(given.as_ref(), file.as_deref())
    }

    /// Flags, environment and file together. The environment also tells the way to upstream.
    fn source(self, environment: impl Fn(&str) -> Option<OsString>) -> Result<Source, ConfigError> {
        let from_environment = |flag: &str| {
            let name = variable(flag);
            // Set but empty is how a template says "not set".
            environment(&name).filter(|value| !value.is_empty()).map(|value| (name, value))
        };
        let given: [(Option<String>, &'static str, &'static [&'static str]); 8] = [
            (self.region, "region", &["region"]),
            (self.listen, "listen", &["listen", "proxy"]),
            (self.metrics_listen, "metrics-listen", &["listen", "metrics"]),
            (self.admin_listen, "admin-listen", &["listen", "admin"]),
            (self.insecure_plaintext, "insecure-plaintext", &["listen", "insecure_plaintext"]),
            (self.workspace_url, "workspace-url", &["upstream", "workspace_url"]),
            (self.appstream_url, "appstream-url", &["upstream", "appstream_url"]),
            (self.mode, "mode", &["mode"]),
        ];
        let overrides = given.into_iter().filter_map(|(value, flag, path)| {
            let from_flag = value.map(|value| Override { path, value, origin: format!("--{flag}") });
            from_flag.or_else(|| {
                let (origin, value) = from_environment(flag)?;
                Some(Override { path, value: value.to_string_lossy().into_owned(), origin })
            })
        });
        let file = self.config.or_else(|| from_environment("config").map(|(_, value)| value.into()));
        Ok(Source::new(file, overrides.collect(), Egress::read(environment)?))
    }
}

/// Flags that may be given in the environment.
const IN_ENVIRONMENT: [&str; 9] = [
    "config",
    "region",
    "listen",
    "metrics-listen",
    "admin-listen",
    "insecure-plaintext",
    "workspace-url",
    "appstream-url",
    "mode",
];

/// The variables that look like settings and are none. Kubernetes makes some of its own where a
/// service has this program's name.
fn unknown_variables(names: impl Iterator<Item = String>) -> Vec<String> {
    let is_kubernetes = |rest: &str| rest.starts_with("PORT") || rest.starts_with("SERVICE_");
    let is_unknown = |name: &String| {
        let rest = name.strip_prefix(VARIABLE);
        let is_test = |rest: &str| rest.starts_with("TEST_");
        rest.is_some_and(|rest| !is_kubernetes(rest) && !is_test(rest))
            && !IN_ENVIRONMENT.iter().any(|flag| variable(flag) == *name)
    };
    names.filter(is_unknown).collect()
}

/// What the names of variables begin with.
const VARIABLE: &str = "WORKSPACE_GATEWAY_";

/// The environment variable that stands for a flag.
fn variable(flag: &str) -> String {
    format!("{VARIABLE}{}", flag.to_ascii_uppercase().replace('-', "_"))
}

/// What the user got wrong, as opposed to what failed.
const USAGE: u8 = 2;

/// Runs the command line to its end.
pub fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(settings) => with(settings, |config, source| serve::run(&config, source)),
        Command::Check(settings) => with(settings, |config, _| match Server::check(&config) {
            Ok(()) => print(&config.to_toml()),
            // What only shows when it is used, such as a file of certificates.
            Err(error) => failure(USAGE, &error),
        }),
        Command::Explain { url, headers, settings } => with(settings.or_any_region(), |config, _| {
            let headers = headers.iter().map(|text| explain::header(text)).collect::<Result<HeaderMap, _>>();
            let explanation = headers.map_err(|wrong| format!("--header: {wrong}")).and_then(|headers| {
                let rules = Rules {
                    catalogue: &config.catalogue,
                    path_prefixes: &config.settings.listen.path_prefixes,
                    keys: &config.keys,
                    mode: config.settings.mode,
                    date: Clock::System.date(),
                };
                explain::explain(rules, Asked { url: &url, headers }, |_, _| None)
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

fn with(settings: Settings, command: impl FnOnce(Config, Source) -> ExitCode) -> ExitCode {
    for name in unknown_variables(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())) {
        let known = IN_ENVIRONMENT.map(variable).join(", ");
        let _ =
            writeln!(io::stderr(), "workspace-gateway: {name} is no setting and is ignored: expected one of {known}");
    }
    let loaded = settings.source(|name| std::env::var_os(name)).and_then(|mut source| Ok((source.load()?, source)));
    match loaded {
        Ok((config, source)) => command(config, source),
        Err(error) => failure(USAGE, &error),
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
    // If even this can't be said, the exit code says it.
    let _ = writeln!(io::stderr(), "workspace-gateway: {message}");
    ExitCode::from(code)
}

/// Runs a future to its end on a runtime of its own.
fn block_on(future: impl Future<Output = ExitCode>) -> ExitCode {
    // With one core a pool of threads has nothing to give, and its queues are less fair: of a thousand connections
    // some were kept waiting seven times as long.
    let has_one_core = std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1);
    let mut builder = if has_one_core { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    match builder.enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(future);
            // Not waiting for a file that is being read: it may be on a file system that hangs.
            runtime.shutdown_background();
            code
        }
        Err(error) => failure(1, &format!("cannot start: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let line = ["workspace-gateway", "serve"].iter().chain(arguments);
        let Command::Serve(settings) = Cli::parse_from(line).command else { unreachable!() };
        let find = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        settings.source(find)?.load()
    }

    #[test]
    fn a_flag_beats_the_environment() {
        let environment = [("WORKSPACE_GATEWAY_REGION", "env"), ("WORKSPACE_GATEWAY_LISTEN", "127.0.0.1:1")];
        let config = load(&["--listen", "127.0.0.1:2"], &environment).unwrap();
        assert_eq!(config.settings.listen.proxy.to_string(), "127.0.0.1:2");
        assert_eq!(config.settings.region.map(|region| region.to_string()).as_deref(), Some("env"));
    }

    #[test]
    fn every_flag_and_variable_reaches_its_setting() {
        let flags = [
            ("--region", "r-1"),
            ("--listen", "127.0.0.1:1"),
            ("--metrics-listen", "127.0.0.1:2"),
            ("--admin-listen", "127.0.0.1:3"),
            ("--insecure-plaintext", "true"),
            ("--workspace-url", "https://w.example"),
            ("--appstream-url", "https://a.example"),
            ("--mode", "bypass"),
        ];
        let arguments: Vec<&str> = flags.iter().flat_map(|&(flag, value)| [flag, value]).collect();
        let variables: Vec<String> = flags.iter().map(|(flag, _)| variable(flag.trim_start_matches('-'))).collect();
        let environment: Vec<(&str, &str)> =
            variables.iter().map(String::as_str).zip(flags.iter().map(|&(_, value)| value)).collect();
        for config in [load(&arguments, &[]), load(&[], &environment)] {
            let text = config.unwrap().to_toml();
            for (flag, value) in flags {
                let shown = if value == "true" { "insecure_plaintext = true" } else { &format!("\"{value}\"") };
                assert!(text.contains(shown), "{flag}: {text}");
            }
        }
    }

    #[test]
    fn a_variable_that_is_no_setting_is_told() {
        let names = ["WORKSPACE_GATEWAY_LISTN", "WORKSPACE_GATEWAY_CACHE_TTL", "WORKSPACE_GATEWAY_LISTEN", "PATH"];
        let kubernetes = ["WORKSPACE_GATEWAY_PORT_8080_TCP", "WORKSPACE_GATEWAY_SERVICE_HOST"];
        let unknown = unknown_variables(names.iter().chain(&kubernetes).map(ToString::to_string));
        assert_eq!(unknown, ["WORKSPACE_GATEWAY_LISTN", "WORKSPACE_GATEWAY_CACHE_TTL"]);
    }

    #[test]
    fn an_empty_variable_is_not_set_and_a_wrong_one_is_named() {
        assert!(load(&["--region", "r"], &[("WORKSPACE_GATEWAY_MODE", "")]).is_ok());
        let error = load(&["--region", "r"], &[("WORKSPACE_GATEWAY_MODE", "off")]).unwrap_err().to_string();
        assert!(error.starts_with("WORKSPACE_GATEWAY_MODE: mode: ") && error.contains("\"off\""), "{error}");
    }

    #[test]
    fn a_wrong_header_is_refused_without_being_shown() {
        assert!(explain::header("X-Language: en-us").is_ok());
        for wrong in ["secret", "a b: secret", "x: a\nsecret"] {
            assert!(!explain::header(wrong).unwrap_err().contains("secret"));
        }
    }
}
