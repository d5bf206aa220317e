//! FlagSettings that are given outside the file: by flags, and by the environment variables named after them. The table of
//! settings tells which there are.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::error::Error;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use toml::Table;

use super::access_key;
use crate::config::table::{Flag, Setting};
use crate::config::{self, ConfigError, Override, REFERENCE, SettingsSource};
use crate::proxy_config::ProxyConfig;

/// A flag beats the environment, which beats the file.
#[derive(Clone, Debug, Args)]
pub(super) struct FlagSettings {
    /// The configuration file (TOML). [env: WORKSPACE_GATEWAY_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

impl FlagSettings {
    /// For a question that no upstream will be asked about: where upstream is need not be said.
    pub(super) fn or_any_region(mut self) -> Self {
        let loaded = self.clone().source(|name| std::env::var_os(name)).and_then(|mut source| source.load());
        if matches!(loaded, Err(ConfigError::NoUpstream)) {
            self.flags.0.push(("region", "no-region-set".to_owned()));
        }
        self
    }

    /// Where the metrics listener is. Nothing else is looked at: a gateway that has refused what is wrong with its file by
    /// now is well.
    pub(super) fn metrics_address(
        self,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<SocketAddr, ConfigError> {
        let overrides = self.flags.overrides(&environment);
        let given = overrides.iter().find(|given| given.path == ["listen", "metrics"]);
        let file = self.config.or_else(|| from_environment("config", &environment).map(|(_, value)| value.into()));
        config::metrics_address(given, file.as_deref())
    }

    /// Flags, environment and file together. The environment also tells the way to upstream.
    pub(super) fn source(self, environment: impl Fn(&str) -> Option<OsString>) -> Result<SettingsSource, ConfigError> {
        let overrides = self.flags.overrides(&environment);
        let file = self.config.or_else(|| from_environment("config", &environment).map(|(_, value)| value.into()));
        let key = access_key::read(&environment)?;
        Ok(SettingsSource::new(file, overrides, ProxyConfig::read(environment)?).with_key(key))
    }
}

/// The flags of settings that are given, by their names.
#[derive(Clone, Debug)]
struct Flags(Vec<(&'static str, String)>);

impl Flags {
    fn overrides(&self, environment: &impl Fn(&str) -> Option<OsString>) -> Vec<Override> {
        let given = |(setting, flag): (&Setting, Flag)| {
            let given = self.0.iter().find(|(name, _)| *name == flag.name);
            let given = given.map(|(name, value)| (format!("--{name}"), value.clone()));
            let (origin, value) = given.or_else(|| {
                let (variable, value) = from_environment(flag.name, environment)?;
                Some((variable, value.to_string_lossy().into_owned()))
            })?;
            Some(Override { path: setting.path, value, origin })
        };
        flags().into_iter().filter_map(given).collect()
    }
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let defaults: Table = toml::from_str(REFERENCE).unwrap_or_default();
        command.args(flags().into_iter().map(|(setting, flag)| {
            let default = setting.value_in(&defaults).map(|default| format!(" [default: {default}]"));
            let help = format!("{}{}. [env: {}]", flag.help, default.unwrap_or_default(), variable(flag.name));
            Arg::new(flag.name).long(flag.name).value_name(flag.value).help(help)
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = |(_, flag): (&Setting, Flag)| Some((flag.name, matches.get_one::<String>(flag.name)?.clone()));
        Ok(Self(flags().into_iter().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The settings that have a flag, in the order of the help: `mode` comes last, as it is rarely given.
fn flags() -> Vec<(&'static Setting, Flag)> {
    let mut all: Vec<_> = Setting::all().iter().filter_map(|setting| Some((setting, setting.flag?))).collect();
    all.sort_by_key(|(setting, _)| setting.path == ["mode"]);
    all
}

/// What the names of variables begin with.
const VARIABLE: &str = "WORKSPACE_GATEWAY_";

/// The environment variable that stands for a flag.
pub(super) fn variable(flag: &str) -> String {
    format!("{VARIABLE}{}", flag.to_ascii_uppercase().replace('-', "_"))
}

/// A variable and its value. Set but empty is how a template says "not set".
fn from_environment(flag: &str, environment: &impl Fn(&str) -> Option<OsString>) -> Option<(String, OsString)> {
    let name = variable(flag);
    environment(&name).filter(|value| !value.is_empty()).map(|value| (name, value))
}

/// All variables that are settings.
pub(super) fn known_variables() -> impl Iterator<Item = String> {
    let flags = flags().into_iter().map(|(_, flag)| flag.name);
    std::iter::once("config").chain(flags).map(variable).chain(access_key::VARIABLES.map(str::to_owned))
}

/// The variables that look like settings and are none. Kubernetes makes some of its own where a
/// service has this program's name.
pub(super) fn unknown_variables(names: impl Iterator<Item = String>) -> Vec<String> {
    let is_kubernetes = |rest: &str| rest.starts_with("PORT") || rest.starts_with("SERVICE_");
    let is_unknown = |name: &String| {
        let rest = name.strip_prefix(VARIABLE);
        let is_test = |rest: &str| rest.starts_with("TEST_");
        rest.is_some_and(|rest| !is_kubernetes(rest) && !is_test(rest))
            && !known_variables().any(|known| known == *name)
    };
    names.filter(is_unknown).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Config;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        settings: FlagSettings,
    }

    fn load(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let line = Line::parse_from(["serve"].iter().chain(arguments));
        let find = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        line.settings.source(find)?.load()
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
}
