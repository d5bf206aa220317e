//! From a file, the environment and flags to settings that have been checked.
//!
//! The documented defaults *are* the defaults: `config/workspace-gateway.toml` is the lowest layer,
//! and `check` prints what all layers together amount to, in the same form. Every error names the
//! setting, its value and what is allowed.

pub mod access_keys;
pub mod changes;
pub mod exposure;
mod files;
pub mod operations;
pub mod prefix;
pub mod secret;
pub mod settings;
pub mod units;
pub mod watch;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use toml::{Table, Value};

use crate::catalogue::{Catalogue, Origin, Service};
use crate::egress::{Egress, WrongProxy};
use crate::signing::ring::KeyRing;
pub use changes::Changes;
use files::Files;
use secret::AdminToken;
pub use settings::Settings;
use units::{Address, BaseUrl};
pub use units::{LogFormat, Mode, OnOutage};
pub use watch::Source;

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
        "region is not set, and neither are both upstream URLs: expected --region cn-north-4, or --workspace-url and \
         --appstream-url, or the same in the environment or the file"
    )]
    NoUpstream,
    /// The file is not TOML, or a setting is unknown or has a value that is not allowed.
    #[error("{origin}: {message}")]
    Invalid {
        /// Where the wrong value comes from.
        origin: String,
        /// Which setting, its value, what is allowed.
        message: String,
    },
    /// The environment names a proxy that can't be used.
    #[error(transparent)]
    Proxy(#[from] WrongProxy),
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
    /// The settings.
    pub settings: Settings,
    /// The operations and where they are asked.
    pub catalogue: Catalogue,
    /// The access keys whose signatures are verified here.
    pub keys: Arc<KeyRing>,
    /// What the admin listener asks for, if it does.
    pub admin_token: Option<AdminToken>,
    /// The way there, which no file tells: direct, until whoever has read the environment says otherwise.
    pub egress: Egress,
}

impl Config {
    /// Puts the layers together, with this text as the file's, and checks the result.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn from_layers(file: &str, text: &str, overrides: &[Override]) -> Result<Self, ConfigError> {
        Self::from_files(file, text, overrides, &mut Files::default())
    }

    /// The same with secrets from these files.
    fn from_files(file: &str, text: &str, overrides: &[Override], files: &mut Files) -> Result<Self, ConfigError> {
        let invalid = |origin: &str, message: &dyn fmt::Display| ConfigError::Invalid {
            origin: origin.to_owned(),
            message: message.to_string().trim_end().replace('\n', " "),
        };
        let mut table: Table = toml::from_str(REFERENCE).map_err(|error| invalid("built-in defaults", &error))?;
        let given: Table = toml::from_str(text)
            .map_err(|error| ConfigError::Invalid { origin: file.to_owned(), message: not_toml(&error, text) })?;
        merge(&mut table, given);
        // Layer by layer, so that an error is blamed on the layer that brought it.
        let mut checked = check(&table).map_err(|wrong| (wrong, file));
        for given in overrides {
            set(&mut table, given.path, Value::String(given.value.clone()));
            checked = check(&table).map_err(|wrong| match checked {
                Err((earlier, origin)) if earlier == wrong => (wrong, origin),
                _ => (wrong, given.origin.as_str()),
            });
        }
        let mut config = checked.map_err(|(wrong, origin)| match wrong {
            Wrong::NoUpstream => ConfigError::NoUpstream,
            Wrong::Setting(message) => invalid(origin, &message),
        })?;
        let keys = access_keys::ring(&config.settings.access_key, files);
        config.keys = Arc::new(keys.map_err(|message| invalid(file, &message))?);
        let token = config.settings.listen.admin_token.as_ref();
        let token = token.map(|secret| AdminToken::look_up(secret, files)).transpose();
        config.admin_token = token.map_err(|message| invalid(file, &message))?;
        Ok(config)
    }

    /// The settings in the form of the file. Where upstream is in the region is told in a comment (as
    /// a setting it would outlive a change of region), and so are the way there and what there is to be asked.
    pub fn to_toml(&self) -> String {
        // Every setting is a string, a list or a table of these, which TOML can always express.
        let mut text = toml::to_string(&self.settings).unwrap_or_default();
        for service in Service::ALL {
            text += &format!("# {} is asked at {}\n", service.as_str(), self.catalogue.origin(service));
        }
        for service in self.catalogue.services().filter(|_| self.egress.has_proxy()) {
            let origin = self.catalogue.origin(service);
            text +=
                &format!("# {origin} is reached {}\n", self.egress.way_to(origin.authority(), origin.is_plaintext()));
        }
        for entry in &self.settings.access_key {
            text += &format!("# {}\n", access_keys::describe(entry));
        }
        for operation in self.catalogue.operations() {
            text += &format!("# {}\n", operations::describe(operation, &self.catalogue));
        }
        text
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

/// Where the metrics listener is, of all settings the only one: as given outside the file (by which flag or variable),
/// as the file says, or by default. A file that can't be read, or is wrong, says nothing.
///
/// # Errors
/// If what is given is no address.
pub fn metrics_address(given: Option<&Override>, file: Option<&Path>) -> Result<SocketAddr, ConfigError> {
    if let Some(Override { value, origin, .. }) = given {
        let wrong =
            |message| ConfigError::Invalid { origin: origin.clone(), message: format!("listen.metrics: {message}") };
        return Ok(value.parse::<Address>().map_err(wrong)?.0);
    }
    let named = |text: &str| {
        let table: Table = toml::from_str(text).ok()?;
        Some(table.get("listen")?.get("metrics")?.as_str()?.parse::<Address>().ok()?.0)
    };
    let in_file = file.and_then(|path| named(&std::fs::read_to_string(path).ok()?));
    in_file.or_else(|| named(REFERENCE)).ok_or_else(|| ConfigError::Invalid {
        origin: "built-in defaults".to_owned(),
        message: "listen.metrics: is not there".to_owned(),
    })
}

/// What is wrong with the layers so far.
#[derive(PartialEq)]
enum Wrong {
    NoUpstream,
    Setting(String),
}

/// Reads and checks the layers so far.
fn check(table: &Table) -> Result<Config, Wrong> {
    let settings = read(table).map_err(Wrong::Setting)?;
    consistent(&settings).map_err(Wrong::Setting)?;
    let workspace = locate(&settings, Service::Workspace, settings.upstream.workspace_url.as_ref());
    let appstream = locate(&settings, Service::AppStream, settings.upstream.appstream_url.as_ref());
    // Last, for it is the one mistake that a later layer mends: the others are its own who made them.
    let is_told = workspace.is_ok() && appstream.is_ok();
    let [workspace, appstream] = [workspace, appstream].map(|origin| match origin {
        Err(Wrong::NoUpstream) => locate_anywhere(),
        origin => origin,
    });
    let catalogue = operations::catalogue(&settings, workspace?, appstream?).map_err(Wrong::Setting)?;
    if !is_told {
        return Err(Wrong::NoUpstream);
    }
    Ok(Config { settings, catalogue, keys: Arc::default(), admin_token: None, egress: Egress::default() })
}

/// What keeps a file from being TOML, and where. Not what is there: it may be a secret, however its setting is spelled.
fn not_toml(error: &toml::de::Error, text: &str) -> String {
    let before = text.get(..error.span().map_or(0, |span| span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let what = error.message().trim_end().replace('\n', " ");
    format!("not TOML: line {line}, column {column}: {what}")
}

/// Reads a table, naming the setting first in what it says is wrong.
fn read(table: &Table) -> Result<Settings, String> {
    access_keys::are_entries(table)?;
    serde_path_to_error::deserialize(Value::Table(table.clone())).map_err(|error| {
        let path = by_name(&error.path().to_string(), table);
        let message = error.into_inner();
        let message = message.message();
        if path == "." { message.to_owned() } else { format!("{path}: {message}") }
    })
}

/// Names an entry in a path by what it is called, not by its place in the file.
fn by_name(path: &str, table: &Table) -> String {
    let find = |list: &str, name: &str| {
        let (index, field) = path.strip_prefix(list)?.strip_prefix('[')?.split_once(']')?;
        let entry = table.get(list)?.get(index.parse::<usize>().ok()?)?;
        Some(format!("{list}.{}{field}", entry.get(name)?.as_str()?))
    };
    find("operation", "name").or_else(|| find("access_key", "id")).unwrap_or_else(|| path.to_owned())
}

/// Where a service is: as given, or in the region.
fn locate(settings: &Settings, service: Service, given: Option<&BaseUrl>) -> Result<Origin, Wrong> {
    if let Some(url) = given {
        return Ok(url.0.clone());
    }
    let region = settings.region.as_ref().ok_or(Wrong::NoUpstream)?;
    let url: BaseUrl = service.url_in(&region.to_string()).parse().map_err(Wrong::Setting)?;
    Ok(url.0)
}

/// Where a service would be, to see whether anything else is wrong.
fn locate_anywhere() -> Result<Origin, Wrong> {
    let url: BaseUrl = "https://nowhere.invalid".parse().map_err(Wrong::Setting)?;
    Ok(url.0)
}

/// What no setting can tell alone.
fn consistent(settings: &Settings) -> Result<(), String> {
    let listen = &settings.listen;
    listen.files_are_consistent()?;
    listen.may_be_at(listen.proxy.0, listen.admin.0)?;
    distinct(&[
        ("listen.proxy", listen.proxy.0),
        ("listen.metrics", listen.metrics.0),
        ("listen.admin", listen.admin.0),
    ])?;
    let mut headers = settings.cache.keyed_headers.clone();
    headers.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
    if let Some(twice) = headers.windows(2).find(|two| two[0] == two[1]) {
        return Err(format!("cache.keyed_headers: {:?} is there twice: expected each once", twice[0]));
    }
    if settings.cache.max_body_size.0 > settings.cache.max_size.0 {
        return Err(format!(
            "cache.max_body_size: {:?} is not allowed: expected at most cache.max_size, {:?}",
            settings.cache.max_body_size, settings.cache.max_size
        ));
    }
    let upstream = &settings.upstream;
    for (shorter, one, longer, other) in [
        ("connect_timeout", upstream.connect_timeout, "first_byte_timeout", upstream.first_byte_timeout),
        ("first_byte_timeout", upstream.first_byte_timeout, "answer_timeout", upstream.answer_timeout),
    ] {
        if one.0 > other.0 {
            return Err(format!(
                "upstream.{longer}: {other:?} is not allowed: expected at least upstream.{shorter}, {one:?}"
            ));
        }
    }
    Ok(())
}

/// Whether no two listeners have one address, but for ports that the system is to choose.
///
/// # Errors
/// Which of them have.
pub fn distinct(addresses: &[(&str, SocketAddr)]) -> Result<(), String> {
    for (index, (name, address)) in addresses.iter().enumerate() {
        let same = addresses[..index].iter().find(|(_, other)| other == address && address.port() != 0);
        if let Some((other, _)) = same {
            return Err(format!("{name}: {address:?} is not allowed: {other} listens there already"));
        }
    }
    Ok(())
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
    fn a_mistake_is_blamed_on_the_layer_that_made_it() {
        let region = given(&["region"], "r");
        for text in [
            "[[operation]]\nname = \"Foo\"",
            "[listen]\ncert_file = \"/x\"",
            "[cache]\nmax_body_size = \"1GiB\"",
            "[listen]\nproxy = \"0.0.0.0:1\"",
        ] {
            let error = Config::from_layers("file.toml", text, std::slice::from_ref(&region)).unwrap_err().to_string();
            assert!(error.starts_with("file.toml: "), "{error}");
        }
        let address = given(&["listen", "proxy"], "0.0.0.0:1");
        let error = Config::from_layers("file.toml", "", &[address, region]).unwrap_err().to_string();
        assert!(error.starts_with("--listen-proxy: listen.proxy: "), "{error}");
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
        let text = "region = \"r\"\n[[operation]]\nname = \"ListProduct\"\nttl = \"1h 30m\"\n[[operation]]\nname = \"Zones\"\n\
                    path = \"/v2/{project_id}/zones/{id}\"\nforward_headers = [\"tracestate\"]\n\
                    defaults = { limit = \"10\" }\nbody = \"field:zones\"\nstale_if_error = \"0s\"\n[cache]\nmax_size = \"100MiB\"";
        let config = Config::from_layers("f", text, &[]).unwrap();
        let again = Config::from_layers("f", &config.to_toml(), &[]).unwrap();
        assert_eq!(config.settings, again.settings);
        let ttl =
            |name: &str| config.catalogue.operations().iter().find(|operation| *operation.name == *name).map(|o| o.ttl);
        assert_eq!(ttl("ListProduct"), Some(std::time::Duration::from_secs(5400)));
        assert_eq!(ttl("ListProducts"), Some(crate::catalogue::DEFAULT_TTL));
    }

    #[test]
    fn a_region_can_be_changed_over_an_effective_configuration() {
        let config = Config::from_layers("f", "region = \"r-1\"", &[]).unwrap();
        let moved = Config::from_layers("f", &config.to_toml(), &[given(&["region"], "r-2")]).unwrap();
        assert!(moved.catalogue.origin(Service::Workspace).to_string().contains(".r-2."));
        assert!(moved.to_toml().contains("# workspace is asked at https://workspace.r-2.myhuaweicloud.com"));
    }

    #[test]
    fn errors_name_the_setting_the_value_and_what_is_allowed() {
        for (text, expected) in [
            ("", &["region", "--region cn-north-4"][..]),
            ("region = \"x\"\nmode = \"on\"", &["mode", "\"on\"", "cache or bypass"]),
            ("region = \"x\"\nmode = true", &["mode", "`true`", "cache or bypass"]),
            ("region = \"x\"\nlisten = \"y\"", &["listen", "\"y\"", "a table of settings"]),
            ("region = \"CN North\"", &["region", "CN North", "a-z 0-9 -"]),
            ("region = \"x\"\nmood = 1", &["unknown field `mood`", "`mode`"]),
            ("region = \"x\"\n[listen]\nprox = \"y\"", &["listen", "`prox`", "`proxy`"]),
            ("region = \"x\"\n[cache]\nttl = 300", &["cache.ttl", "300", "\"5m\""]),
            ("region = \"x\"\n[cache]\nttl = \"300\"", &["cache.ttl", "300", "\"5m\""]),
            ("region = \"x\"\n[cache]\nttl = \"0s\"", &["cache.ttl", "0s", "1ms"]),
            ("region = \"x\"\n[cache]\nttl = \"2000y\"", &["cache.ttl", "2000y", "a year"]),
            ("region = \"x\"\n[cache]\nmax_size = \"64\"", &["cache.max_size", "64", "\"64MiB\""]),
            ("region = \"x\"\n[cache]\nmax_size = \"1MiB\"", &["cache.max_body_size", "at most cache.max_size"]),
            (
                "region = \"x\"\n[cache]\nkeyed_headers = [\"a b\"]",
                &["cache.keyed_headers[0]", "a b", "name of a header"],
            ),
            (
                "region = \"x\"\n[cache]\nkeyed_headers = [\"X-Auth-Token\"]",
                &["keyed_headers[0]", "X-Auth-Token", "no credential"],
            ),
            ("region = \"x\"\n[cache]\nkeyed_headers = [\"via\"]", &["keyed_headers[0]", "via"]),
            ("region = \"x\"\n[cache]\nkeyed_headers = [\"x-a\", \"X-A\"]", &["keyed_headers", "x-a", "each once"]),
            ("region = \"x\"\n[listen]\nproxy = \"localhost\"", &["listen.proxy", "localhost", "127.0.0.1:8080"]),
            (
                "region = \"x\"\n[listen]\npath_prefixes = [\"/a\", \"b\"]",
                &["listen.path_prefixes[1]", "\"b\" is not", "\"/workspace\""],
            ),
            ("region = \"x\"\n[listen]\nadmin = \"0.0.0.0:9091\"", &["listen.admin", "0.0.0.0:9091", "loopback"]),
            (
                "region = \"x\"\n[listen]\nproxy = \"0.0.0.0:8080\"",
                &["listen.proxy", "\"0.0.0.0:8080\"", "loopback", "listen.cert_file", "insecure_plaintext = true"],
            ),
            (
                "region = \"x\"\n[listen]\nproxy = \"[::ffff:127.0.0.1]:1\"\ninsecure_plaintext = false",
                &["listen.proxy", "\"[::ffff:127.0.0.1]:1\"", "loopback"],
            ),
            (
                "region = \"x\"\n[listen]\ninsecure_plaintext = \"yes\"",
                &["listen.insecure_plaintext", "\"yes\"", "true or false"],
            ),
            ("region = \"x\"\n[listen]\ninsecure_plaintext = 1", &["insecure_plaintext", "`1`", "true or false"]),
            ("region = \"x\"\n[listen]\ncert_file = \"c.pem\"", &["listen.cert_file", "c.pem", "listen.key_file"]),
            ("region = \"x\"\n[listen]\nkey_file = \"k.pem\"", &["listen.key_file", "k.pem", "listen.cert_file"]),
            (
                "region = \"x\"\n[listen]\nclient_ca_file = \"a.pem\"",
                &["listen.client_ca_file", "a.pem", "listen.cert_file and listen.key_file"],
            ),
            ("region = \"x\"\n[listen]\nadmin = \"127.0.0.1:8080\"", &["listen.admin", "8080", "listen.proxy"]),
            ("region = \"x\"\n[upstream]\nworkspace_url = \"ftp://x\"", &["upstream.workspace_url", "ftp://x", "http"]),
            ("region = \"x\"\n[upstream]\nworkspace_url = \"https://x/y\"", &["upstream.workspace_url", "no path"]),
            (
                "region = \"x\"\n[upstream]\nanswer_timeout = \"20s\"",
                &["upstream.answer_timeout: \"20s\"", "at least upstream.first_byte_timeout, \"32s\""],
            ),
            (
                "region = \"x\"\n[upstream]\nfirst_byte_timeout = \"2s\"",
                &["upstream.first_byte_timeout: \"2s\"", "at least upstream.connect_timeout, \"3s\""],
            ),
            ("region = \"x\"\n[cache]\nstale_if_error = \"0\"", &["cache.stale_if_error", "\"0\"", "from 0s"]),
            ("region = \"x\"\n[grants]\non_outage = \"x\"", &["grants.on_outage", "\"x\"", "serve or refuse"]),
            ("region = \"x\"\n[grants]\nmax_grants = 0", &["grants.max_grants", "0", "from 1 to 1000000"]),
            ("region = \"x\"\n[limits]\nmax_waiters = \"9\"", &["limits.max_waiters", "9", "a number from 1"]),
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
    fn a_syntax_error_is_told_by_its_place_and_never_by_what_is_there() {
        // Whatever a secret's setting was meant to be called.
        for (line, place) in [
            ("secert = \"hush", "line 3, column 15: "),
            ("sk = hush", "line 3, column 6: "),
            ("\"ä\" = hush", "line 3, column 7: "),
            ("hush", "line 3, column 5: "),
            ("hush = 1\n\nhush = 2", "line 5, column 1: duplicate key"),
        ] {
            let message = error(&format!("region = \"r\"\n[[acces_key]]\n{line}"));
            assert!(message.starts_with(&format!("test.toml: not TOML: {place}")), "{message}");
            assert!(!message.contains("hush") && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn a_wrong_override_is_blamed_on_where_it_came_from() {
        let wrong = [given(&["region"], "r"), given(&["listen", "proxy"], "8080")];
        let message = Config::from_layers("f", "", &wrong).unwrap_err().to_string();
        assert!(message.starts_with("--listen-proxy: listen.proxy: "), "{message}");
        // So is one that is only wrong beside the others.
        let wrong = [given(&["listen", "admin"], "0.0.0.0:1"), given(&["region"], "r"), given(&["mode"], "cache")];
        let message = Config::from_layers("f", "region = \"r\"", &wrong).unwrap_err().to_string();
        assert!(message.starts_with("--listen-admin: listen.admin: "), "{message}");
    }

    #[test]
    fn plain_text_leaves_this_machine_only_if_somebody_says_so() {
        let accepted = |text: &str| Config::from_layers("f", &format!("region = \"r\"\n[listen]\n{text}"), &[]).is_ok();
        for proxy in ["proxy = \"0.0.0.0:1\"\n", "proxy = \"[::]:1\"\n", "proxy = \"192.0.2.1:1\"\n"] {
            assert!(!accepted(proxy));
            assert!(accepted(&format!("{proxy}insecure_plaintext = true")));
            assert!(accepted(&format!("{proxy}cert_file = \"c\"\nkey_file = \"k\"")));
        }
        for proxy in ["proxy = \"127.1.2.3:1\"", "proxy = \"[::1]:1\"", "metrics = \"0.0.0.0:1\""] {
            assert!(accepted(proxy), "{proxy}");
        }
        let flags = [given(&["listen", "proxy"], "0.0.0.0:1"), given(&["listen", "insecure_plaintext"], "true")];
        assert!(Config::from_layers("f", "region = \"r\"", &flags).unwrap().settings.listen.insecure_plaintext.0);
        // The operator's address is as much of a matter, wherever it may be.
        let listen = Config::from_layers("f", "region = \"r\"", &[]).unwrap().settings.listen;
        let [here, there] = ["127.0.0.1:1", "192.0.2.1:1"].map(|address| address.parse().unwrap());
        assert_eq!(listen.may_be_at(here, here), Ok(()));
        assert!(listen.may_be_at(here, there).unwrap_err().starts_with("listen.admin: \"192.0.2.1:1\""));
    }
}
