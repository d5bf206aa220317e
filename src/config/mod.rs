//! From a file, the environment and flags to settings that have been checked.
//!
//! The documented defaults *are* the defaults: `config/workspace-gateway.toml` is the lowest layer,
//! and `check` prints what all layers together amount to, in the same form. Every error names the
//! setting, its value and what is allowed.

pub mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use toml::{Table, Value};

use crate::catalogue::{Catalogue, Service, operation_names};
use units::{Address, BaseUrl, HeaderField, Level, Region, Size, Span};

/// All settings with their defaults, as documented.
pub const REFERENCE: &str = include_str!("../../config/workspace-gateway.toml");

/// What is wrong with a configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody has said where upstream is.
    #[error(
        "region is not set, and neither is upstream.{0}_url: expected one of them, for example --region cn-north-4 or \
         --{0}-url https://{0}.example.com"
    )]
    NoUpstream(&'static str),
    /// The file is not TOML, or a setting is unknown or has a value that is not allowed.
    #[error("{origin}: {message}")]
    Invalid {
        /// Where the wrong value comes from.
        origin: String,
        /// Which setting, its value, what is allowed.
        message: String,
    },
}

/// Whether the cache is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Product lists are answered from memory.
    Cache,
    /// Everything is forwarded, nothing is kept.
    Bypass,
}

impl Mode {
    /// The name used in the configuration, on the admin listener and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Bypass => "bypass",
        }
    }
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Cache, Self::Bypass]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| format!("mode = {text:?} is not allowed: expected cache or bypass"))
    }
}

/// The settings, as in the reference file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Whether the cache is in use at start.
    pub mode: Mode,
    /// The region whose public endpoints are asked.
    pub region: Option<Region>,
    /// Addresses to listen on.
    pub listen: Listen,
    /// Where and how to ask.
    pub upstream: Upstream,
    /// What is kept.
    pub cache: Cache,
    /// What differs for single operations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub operation: BTreeMap<String, OperationSettings>,
    /// What clients may do.
    pub limits: Limits,
    /// What is written down.
    pub log: Log,
}

/// `[listen]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// For clients.
    pub proxy: Address,
    /// For Prometheus and health checks.
    pub metrics: Address,
    /// For the operator.
    pub admin: Address,
}

/// `[upstream]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Where Workspace is.
    pub workspace_url: Option<BaseUrl>,
    /// Where Workspace Application is.
    pub appstream_url: Option<BaseUrl>,
    /// Authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// For DNS, TCP and TLS together.
    pub connect_timeout: Span,
    /// For a whole product list.
    pub answer_timeout: Span,
    /// For a pass-through on which nothing moves.
    pub idle_timeout: Span,
}

/// `[cache]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// Memory for entries.
    pub max_size: Size,
    /// The largest answer that is kept.
    pub max_body_size: Size,
    /// How long an answer is fresh.
    pub ttl: Span,
    /// Request headers that answers depend on.
    pub keyed_headers: Vec<HeaderField>,
}

/// `[operation.NAME]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationSettings {
    /// How long its answers are fresh.
    pub ttl: Span,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Request line and headers together.
    pub max_head_size: Size,
    /// For a client to send them.
    pub head_timeout: Span,
    /// For what is in flight when the gateway stops.
    pub drain_timeout: Span,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// The form of a line.
    pub format: LogFormat,
    /// The least serious level that is written.
    pub level: Level,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// A setting given outside the file, and where.
#[derive(Clone, Debug)]
pub struct Override {
    /// The setting's place in the file, such as `["listen", "proxy"]`.
    pub path: &'static [&'static str],
    /// Its value.
    pub value: String,
    /// The flag or variable it comes from.
    pub origin: String,
}

/// Checked settings, and the catalogue they amount to.
#[derive(Clone, Debug)]
pub struct Config {
    /// The settings, with the upstream URLs filled in.
    pub settings: Settings,
    /// The operations and where they are asked.
    pub catalogue: Catalogue,
}

impl Config {
    /// Puts the layers together and checks the result.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(file: Option<PathBuf>, overrides: &[Override]) -> Result<Self, ConfigError> {
        let text = match &file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?,
            None => String::new(),
        };
        let name = file.map_or_else(|| "configuration".to_owned(), |path| path.display().to_string());
        Self::from_layers(&name, &text, overrides)
    }

    /// The same from a file's text.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn from_layers(file: &str, text: &str, overrides: &[Override]) -> Result<Self, ConfigError> {
        let invalid = |origin: &str, message: &dyn fmt::Display| ConfigError::Invalid {
            origin: origin.to_owned(),
            message: message.to_string().trim_end().replace('\n', " "),
        };
        let mut table: Table = toml::from_str(REFERENCE).map_err(|error| invalid("built-in defaults", &error))?;
        // A syntax error keeps its many lines: they point at the place.
        let given: Table = toml::from_str(text)
            .map_err(|error| ConfigError::Invalid { origin: file.to_owned(), message: format!("not TOML\n{error}") })?;
        merge(&mut table, given);
        // Layer by layer, so that an error is blamed on the layer that brought it.
        let mut settings = read(&table).map_err(|error| invalid(file, &error))?;
        for given in overrides {
            set(&mut table, given.path, Value::String(given.value.clone()));
            settings = read(&table).map_err(|error| invalid(&given.origin, &error))?;
        }
        locate(&mut settings)?;
        complete(settings).map_err(|message| invalid(file, &message))
    }

    /// The settings in the form of the file.
    pub fn to_toml(&self) -> String {
        // Every setting is a string, a list or a table of these, which TOML can always express.
        toml::to_string(&self.settings).unwrap_or_default()
    }
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn set(table: &mut Table, path: &[&str], value: Value) {
    match path {
        [] => {}
        [name] => {
            table.insert((*name).to_owned(), value);
        }
        [name, rest @ ..] => {
            if let Value::Table(inner) = table.entry(*name).or_insert_with(|| Value::Table(Table::new())) {
                set(inner, rest, value);
            }
        }
    }
}

/// Reads a table, naming the setting first in what it says is wrong.
fn read(table: &Table) -> Result<Settings, String> {
    serde_path_to_error::deserialize(Value::Table(table.clone())).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner();
        let message = message.message();
        if path == "." { message.to_owned() } else { format!("{path}: {message}") }
    })
}

/// Fills in where upstream is, from the region, where it is not said.
fn locate(settings: &mut Settings) -> Result<(), ConfigError> {
    let upstream = &mut settings.upstream;
    for (service, url) in
        [(Service::Workspace, &mut upstream.workspace_url), (Service::AppStream, &mut upstream.appstream_url)]
    {
        if url.is_none() {
            let region = settings.region.as_ref().ok_or(ConfigError::NoUpstream(service.as_str()))?;
            *url = service.url_in(&region.to_string()).parse().ok();
        }
    }
    Ok(())
}

/// What no setting can tell alone.
fn complete(settings: Settings) -> Result<Config, String> {
    if !settings.listen.admin.0.ip().is_loopback() {
        return Err(format!("listen.admin: {:?} is not allowed: expected a loopback address", settings.listen.admin));
    }
    distinct(&[
        ("listen.proxy", settings.listen.proxy.0),
        ("listen.metrics", settings.listen.metrics.0),
        ("listen.admin", settings.listen.admin.0),
    ])?;
    if settings.cache.max_body_size.0 > settings.cache.max_size.0 {
        return Err(format!(
            "cache.max_body_size: {:?} is not allowed: expected at most cache.max_size, {:?}",
            settings.cache.max_body_size, settings.cache.max_size
        ));
    }
    let catalogue = catalogue(&settings)?;
    Ok(Config { settings, catalogue })
}

fn distinct(addresses: &[(&str, SocketAddr)]) -> Result<(), String> {
    for (index, (name, address)) in addresses.iter().enumerate() {
        let same = addresses[..index].iter().find(|(_, other)| other == address && address.port() != 0);
        if let Some((other, _)) = same {
            return Err(format!("{name}: {address:?} is not allowed: {other} listens there already"));
        }
    }
    Ok(())
}

fn catalogue(settings: &Settings) -> Result<Catalogue, String> {
    let url = |url: &Option<BaseUrl>| url.clone().map(|url| url.0).ok_or("an upstream URL is missing");
    let headers = settings.cache.keyed_headers.iter().map(|header| header.0.clone()).collect();
    let mut catalogue =
        Catalogue::new(url(&settings.upstream.workspace_url)?, url(&settings.upstream.appstream_url)?, headers);
    for name in operation_names() {
        catalogue.set_ttl(name, settings.cache.ttl.0);
    }
    for (name, operation) in &settings.operation {
        if !catalogue.set_ttl(name, operation.ttl.0) {
            let known: Vec<_> = operation_names().collect();
            return Err(format!("operation.{name} is not an operation: expected one of {}", known.join(", ")));
        }
    }
    Ok(catalogue)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::from_layers("test.toml", text, &[]).unwrap_err().to_string()
    }

    fn given(path: &'static [&'static str], value: &str) -> Override {
        Override { path, value: value.to_owned(), origin: format!("--{}", path.join("-")) }
    }

    #[test]
    fn a_region_is_all_it_takes() {
        let config = Config::from_layers("f", "", &[given(&["region"], "cn-north-4")]).unwrap();
        let origin = |service| config.catalogue.origin(service).to_string();
        assert_eq!(origin(Service::Workspace), "https://workspace.cn-north-4.myhuaweicloud.com");
        assert_eq!(origin(Service::AppStream), "https://appstream.cn-north-4.myhuaweicloud.com");
        assert_eq!(config.settings.listen.proxy.to_string(), "127.0.0.1:8080");
    }

    #[test]
    fn an_override_beats_the_file_and_the_file_beats_the_default() {
        let text = "region = \"r\"\n[listen]\nproxy = \"127.0.0.1:1\"\nmetrics = \"127.0.0.1:2\"";
        let config = Config::from_layers("f", text, &[given(&["listen", "proxy"], "127.0.0.1:3")]).unwrap();
        let listen = config.settings.listen;
        assert_eq!(
            [listen.proxy, listen.metrics, listen.admin].map(|address| address.to_string()),
            ["127.0.0.1:3", "127.0.0.1:2", "127.0.0.1:9091"]
        );
    }

    #[test]
    fn the_effective_configuration_can_be_fed_back() {
        let text = "region = \"r\"\n[operation.ListProduct]\nttl = \"1h 30m\"\n[cache]\nmax_size = \"100MiB\"";
        let config = Config::from_layers("f", text, &[]).unwrap();
        let again = Config::from_layers("f", &config.to_toml(), &[]).unwrap();
        assert_eq!(config.settings, again.settings);
        let ttl = |name| config.catalogue.operations().iter().find(|operation| operation.name == name).map(|o| o.ttl);
        assert_eq!(ttl("ListProduct"), Some(std::time::Duration::from_secs(5400)));
        assert_eq!(ttl("ListProducts"), Some(crate::catalogue::DEFAULT_TTL));
    }

    #[test]
    fn errors_name_the_setting_the_value_and_what_is_allowed() {
        for (text, expected) in [
            ("", &["region", "--region cn-north-4"][..]),
            ("region = \"x\"\nmode = \"on\"", &["mode", "`on`", "`cache` or `bypass`"]),
            ("region = \"CN North\"", &["region", "CN North", "a-z 0-9 -"]),
            ("region = \"x\"\nmood = 1", &["unknown field `mood`", "`mode`"]),
            ("region = \"x\"\n[listen]\nprox = \"y\"", &["listen", "`prox`", "`proxy`"]),
            ("region = \"x\"\n[cache]\nttl = 300", &["cache.ttl", "300", "\"5m\""]),
            ("region = \"x\"\n[cache]\nttl = \"300\"", &["cache.ttl", "300", "\"5m\""]),
            ("region = \"x\"\n[cache]\nttl = \"0s\"", &["cache.ttl", "0s", "more than zero"]),
            ("region = \"x\"\n[cache]\nmax_size = \"64\"", &["cache.max_size", "64", "\"64MiB\""]),
            ("region = \"x\"\n[cache]\nmax_size = \"1MiB\"", &["cache.max_body_size", "at most cache.max_size"]),
            ("region = \"x\"\n[cache]\nkeyed_headers = [\"a b\"]", &["cache.keyed_headers[0]", "a b", "header name"]),
            (
                "region = \"x\"\n[cache]\nkeyed_headers = [\"X-Auth-Token\"]",
                &["keyed_headers[0]", "X-Auth-Token", "not of a credential"],
            ),
            ("region = \"x\"\n[listen]\nproxy = \"localhost\"", &["listen.proxy", "localhost", "127.0.0.1:8080"]),
            ("region = \"x\"\n[listen]\nadmin = \"0.0.0.0:9091\"", &["listen.admin", "0.0.0.0:9091", "loopback"]),
            ("region = \"x\"\n[listen]\nadmin = \"127.0.0.1:8080\"", &["listen.admin", "8080", "listen.proxy"]),
            ("region = \"x\"\n[upstream]\nworkspace_url = \"ftp://x\"", &["upstream.workspace_url", "ftp://x", "http"]),
            ("region = \"x\"\n[upstream]\nworkspace_url = \"https://x/y\"", &["upstream.workspace_url", "no path"]),
            ("region = \"x\"\n[operation.ListDesktops]\nttl = \"5m\"", &["operation.ListDesktops", "ListProducts"]),
            ("region = \"x\"\n[log]\nlevel = \"loud\"", &["log.level", "loud", "error, warn, info, debug or trace"]),
            ("region = ", &["test.toml", "line 1"]),
        ] {
            let message = error(text);
            for part in expected {
                assert!(message.contains(part), "{text:?}: {message:?} lacks {part:?}");
            }
        }
    }

    #[test]
    fn a_wrong_override_is_blamed_on_where_it_came_from() {
        let wrong = [given(&["region"], "r"), given(&["listen", "proxy"], "8080")];
        let message = Config::from_layers("f", "", &wrong).unwrap_err().to_string();
        assert!(message.starts_with("--listen-proxy: listen.proxy: "), "{message}");
    }
}
