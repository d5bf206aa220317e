//! Settings from flags and from the environment variables named after them. The table of settings says which exist
//! (`config/table.rs`). A flag takes precedence over the variable, and the variable over the file.
//!
//! clap renders variables and defaults in the help, but only flags are taken from it. clap would read the environment
//! of the process (tests pass one of their own), take a variable that is set but empty for a value, and name the flag,
//! not the variable, in errors.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::error::{Error, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, ValueHint, value_parser};
use toml::Table;

use super::{otel_variables, secrets};
use crate::config::table::{Flag, Setting};
use crate::config::{self, ConfigError, Override, REFERENCE, SettingsSource};
use crate::proxy_config::ProxyConfig;

#[derive(Clone, Debug)]
pub(super) struct FlagSettings {
    config: Option<PathBuf>,
    /// The name and value of each flag that is given.
    flags: Vec<(&'static str, String)>,
}

impl FlagSettings {
    /// Adds a placeholder if the region is missing. For commands that call no upstream.
    pub(super) fn or_any_region(mut self) -> Self {
        let loaded = self.clone().source(|name| std::env::var_os(name)).and_then(|mut source| source.load());
        if matches!(loaded, Err(ConfigError::NoUpstream)) {
            super::print_error("workspace-gateway: no region is set: give the flags of serve".to_owned());
            self.flags.push(("region", "no-region-set".to_owned()));
        }
        self
    }

    /// The address of the metrics listener. Errors elsewhere in the file are ignored: the file may have become invalid
    /// after the gateway read it.
    pub(super) fn metrics_address(
        self,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<SocketAddr, ConfigError> {
        let overrides = self.overrides(&environment);
        let given = overrides.iter().find(|given| given.path == ["listen", "metrics"]);
        let file = self.config.or_else(|| from_environment(CONFIG, &environment).map(|(_, value)| value.into()));
        config::metrics_address(given, file.as_deref())
    }

    /// Combines flags, environment and file. The proxy for upstream calls is read from the environment, too.
    pub(super) fn source(self, environment: impl Fn(&str) -> Option<OsString>) -> Result<SettingsSource, ConfigError> {
        let mut overrides = self.overrides(&environment);
        overrides.extend(secrets::admin_token(&environment)?);
        overrides.extend(otel_variables::overrides(&environment)?);
        let file = self.config.or_else(|| from_environment(CONFIG, &environment).map(|(_, value)| value.into()));
        let key = secrets::access_key(&environment)?;
        Ok(SettingsSource::new(file, overrides, ProxyConfig::read(environment)?).with_key(key))
    }

    /// The path for a new file, if one is given, and the settings for it.
    pub(super) fn for_new_file(
        self,
        environment: &impl Fn(&str) -> Option<OsString>,
    ) -> (Option<PathBuf>, Vec<Override>) {
        let given = self.overrides(environment);
        (self.config.or_else(|| from_environment(CONFIG, environment).map(|(_, value)| value.into())), given)
    }

    fn overrides(&self, environment: &impl Fn(&str) -> Option<OsString>) -> Vec<Override> {
        let find = |(setting, flag): (&Setting, Flag)| {
            let given = self.flags.iter().find(|(name, _)| *name == flag.name);
            let given = given.map(|(name, value)| (format!("--{name}"), value.clone()));
            let (origin, value) = given.or_else(|| {
                let (variable, value) = from_environment(flag.name, environment)?;
                Some((variable, value.to_string_lossy().into_owned()))
            })?;
            Some(Override { path: setting.path, value: value.into(), origin })
        };
        flags().into_iter().filter_map(find).collect()
    }
}

impl Args for FlagSettings {
    fn augment_args(command: Command) -> Command {
        let defaults: Table = toml::from_str(REFERENCE).unwrap_or_default();
        let config = argument(CONFIG, "FILE", "The configuration file (TOML)");
        command.arg(config).args(flags().into_iter().map(|(setting, flag)| {
            let argument = argument(flag.name, flag.value, flag.help);
            match setting.value_in(&defaults) {
                Some(default) => argument.default_value(default),
                None => argument,
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// The variable and the default are only for the help.
fn argument(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    let hint = if value == "FILE" { ValueHint::FilePath } else { ValueHint::Other };
    let argument = Arg::new(name).long(name).value_name(value).help(help).value_parser(value_parser!(OsString));
    argument.env(variable(name)).hide_env_values(true).value_hint(hint).help_heading("Settings")
}

impl FromArgMatches for FlagSettings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = |name: &str| {
            let is_given = matches.value_source(name) == Some(ValueSource::CommandLine);
            matches.get_one::<OsString>(name).filter(|_| is_given)
        };
        let config = given(CONFIG).map(PathBuf::from);
        if config.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err(Error::raw(
                ErrorKind::InvalidValue,
                "--config: \"\" is not allowed: expected the path of a file",
            ));
        }
        let flag = |(_, flag): (&Setting, Flag)| Some((flag.name, given(flag.name)?.to_string_lossy().into_owned()));
        Ok(Self { config, flags: flags().into_iter().filter_map(flag).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The flag of the configuration file, which is not a setting itself.
const CONFIG: &str = "config";

/// The settings with a flag, in the order of the help. `mode` comes last, because it is rarely used.
fn flags() -> Vec<(&'static Setting, Flag)> {
    let mut all: Vec<_> = Setting::all().iter().filter_map(|setting| Some((setting, setting.flag?))).collect();
    all.sort_by_key(|(setting, _)| setting.path == ["mode"]);
    all
}

const VARIABLE_PREFIX: &str = "WORKSPACE_GATEWAY_";

/// The environment variable of a flag.
pub(super) fn variable(flag: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", flag.to_ascii_uppercase().replace('-', "_"))
}

/// The name and value of a flag's variable. A variable that is set but empty counts as not set: templates produce
/// these.
fn from_environment(flag: &str, environment: &impl Fn(&str) -> Option<OsString>) -> Option<(String, OsString)> {
    let name = variable(flag);
    environment(&name).filter(|value| !value.is_empty()).map(|value| (name, value))
}

/// All variables that the gateway reads, with this prefix.
pub(super) fn known_variables() -> impl Iterator<Item = String> {
    let flags = flags().into_iter().map(|(_, flag)| flag.name);
    std::iter::once(CONFIG).chain(flags).map(variable).chain(secrets::VARIABLES.map(str::to_owned))
}

/// The variables that have the prefix but are no settings. Kubernetes sets its own for a Service named
/// `workspace-gateway`: these are ignored.
pub(super) fn unknown_variables(names: impl Iterator<Item = String>) -> Vec<String> {
    let is_kubernetes = |rest: &str| rest.starts_with("PORT") || rest.starts_with("SERVICE_");
    let is_unknown = |name: &String| {
        let rest = name.strip_prefix(VARIABLE_PREFIX);
        let is_test = |rest: &str| rest.starts_with("TEST_");
        rest.is_some_and(|rest| !is_kubernetes(rest) && !is_test(rest))
            && !known_variables().any(|known| known == *name)
    };
    names.filter(is_unknown).collect()
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::config::Config;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        settings: FlagSettings,
    }

    fn load(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let line = Line::try_parse_from(["serve"].iter().chain(arguments)).unwrap();
        let find = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        line.settings.source(find)?.load()
    }

    #[test]
    fn a_flag_takes_precedence_over_its_variable() {
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
            ("--cert-file", "c.pem"),
            ("--key-file", "k.pem"),
            ("--client-ca-file", "a.pem"),
            ("--upstream-ca-file", "u.pem"),
            ("--ttl", "7m"),
            ("--log-format", "json"),
            ("--log-level", "warn"),
        ];
        assert_eq!(flags.len(), super::flags().len());
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
    fn a_variable_of_no_setting_is_reported() {
        let names = ["WORKSPACE_GATEWAY_LISTN", "WORKSPACE_GATEWAY_CACHE_TTL", "WORKSPACE_GATEWAY_LISTEN", "PATH"];
        let kubernetes = ["WORKSPACE_GATEWAY_PORT_8080_TCP", "WORKSPACE_GATEWAY_SERVICE_HOST"];
        let unknown = unknown_variables(names.iter().chain(&kubernetes).map(ToString::to_string));
        assert_eq!(unknown, ["WORKSPACE_GATEWAY_LISTN", "WORKSPACE_GATEWAY_CACHE_TTL"]);
    }

    #[test]
    fn an_empty_variable_counts_as_not_set_and_a_wrong_one_is_named() {
        assert!(load(&["--region", "r"], &[("WORKSPACE_GATEWAY_MODE", "")]).is_ok());
        let error = load(&["--region", "r"], &[("WORKSPACE_GATEWAY_MODE", "off")]).unwrap_err().to_string();
        assert!(error.starts_with("WORKSPACE_GATEWAY_MODE: mode: ") && error.contains("\"off\""), "{error}");
    }

    #[test]
    fn what_a_flag_or_variable_cannot_have_is_not_offered() {
        for (arguments, variables) in [(&["--ttl", "5"][..], &[][..]), (&[], &[("WORKSPACE_GATEWAY_TTL", "5")])] {
            let error = load(&[&["--region", "r"], arguments].concat(), variables).unwrap_err().to_string();
            assert!(error.contains("expected a duration from 1ms") && !error.contains("table"), "{error}");
        }
    }

    #[test]
    fn the_help_shows_the_variable_and_the_default_of_each_flag() {
        let help = Line::command().render_help().to_string();
        for part in [
            "[env: WORKSPACE_GATEWAY_CONFIG]",
            "[env: WORKSPACE_GATEWAY_REGION]",
            "[env: WORKSPACE_GATEWAY_LISTEN] [default: 127.0.0.1:8080]",
            "[env: WORKSPACE_GATEWAY_INSECURE_PLAINTEXT] [default: false]",
        ] {
            assert!(help.contains(part), "{part}: {help}");
        }
    }
}
