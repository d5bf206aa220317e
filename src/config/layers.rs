//! Combines the layers: defaults, file, environment and flags. Each error names the layer that caused it.

use std::cell::LazyCell;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize as _;
use toml::{Table, Value};

use super::access_keys::AccessKeySettings;
use super::check::{CheckError, check};
use super::files::Files;
use super::fleet::FleetConfig;
use super::further_errors::MAX_REPORTED;
use super::locations::Locations;
use super::names::Address;
use super::otlp::OtlpConfig;
use super::read::not_toml;
use super::secret::{AdminToken, Secret};
use super::setting_error::SettingError;
use super::{
    Config, ConfigError, EnvironmentKey, Override, REFERENCE, access_keys, further_errors, keep_warm, read_file,
};
use crate::signing::ring::KeyRing;

/// Replaces a missing region. The resulting configuration is only used to check the files that settings name.
const PLACEHOLDER_REGION: &str = "nowhere";

impl Config {
    /// Combines and checks all layers, and reads the secrets. An error comes with the configuration without its wrong
    /// settings, if that is valid: the caller can then check the files that it names in the same run.
    pub(super) fn from_files(
        file: &str,
        text: &str,
        (overrides, key): (&[Override], Option<&EnvironmentKey>),
        files: &mut Files,
    ) -> Result<Self, (ConfigError, Option<Box<Self>>)> {
        let invalid = |origin: &str, message: &dyn fmt::Display| ConfigError::Invalid {
            origin: origin.to_owned(),
            message: message.to_string().trim_end().replace('\n', " "),
        };
        let defaults: Table =
            toml::from_str(REFERENCE).map_err(|error| (invalid("built-in defaults", &error), None))?;
        let mut table = defaults.clone();
        let given: Table = toml::from_str(text)
            .map_err(|error| ConfigError::Invalid { origin: file.to_owned(), message: not_toml(&error, text) })
            .map_err(|error| (error, None))?;
        merge(&mut table, given);
        // After each layer, so that an error names the layer that caused it.
        let mut checked = check(&table).map_err(|error| (error, file));
        let mut check_again = |table: &Table, origin| {
            let before = checked.as_ref().err().cloned();
            checked = check(table).map_err(|error| match before {
                Some((earlier, origin)) if earlier == error => (error, origin),
                _ => (error, origin),
            });
        };
        if let Some(key) = key {
            key.put_into(&mut table);
            check_again(&table, key.origin);
        }
        for given in overrides {
            set(&mut table, given.path, given.value.clone());
            check_again(&table, given.origin.as_str());
        }
        // An error in the file is reported with its line and column.
        let locations = LazyCell::new(|| Locations::of(text));
        let report = |origin: &str, error: &SettingError| {
            let location = locations.find(error).filter(|_| origin == file).map(|location| format!(" ({location})"));
            let named = error.clone().by_names(&table);
            invalid(origin, &format!("{named}{}", location.unwrap_or_default()))
        };
        let origin_of = |error: &SettingError| {
            let given = overrides.iter().rev().find(|given| error.is_about(given.path));
            let from_key = || key.and_then(|key| key.origin_of(&error.clone().by_names(&table)));
            given.map(|given| given.origin.as_str()).or_else(from_key).unwrap_or(file)
        };
        let (mut all, config) = match checked {
            Ok(config) => (Vec::new(), Some(config)),
            Err((CheckError::NoUpstream, _)) => {
                let mut table = table.clone();
                set(&mut table, &["region"], Value::String(PLACEHOLDER_REGION.to_owned()));
                (vec![ConfigError::NoUpstream], check(&table).ok())
            }
            Err((CheckError::Setting(first), origin)) => {
                let (others, config) = further_errors::find(table.clone(), &defaults, &first);
                let others = others.iter().map(|error| report(origin_of(error), error));
                (std::iter::once(report(origin, &first)).chain(others).collect(), config)
            }
        };
        // Secrets are read despite other errors, so that all errors are reported in one run.
        let (entries, token) = secrets(&table);
        let token = token.map(|secret| AdminToken::look_up(&secret, files)).transpose();
        let keys = access_keys::ring(&entries, files);
        let fleet = config.as_ref().map(|config| FleetConfig::look_up(&config.settings.fleet, files)).transpose();
        let otlp = config.as_ref().map(|config| OtlpConfig::look_up(&config.settings.otlp, files)).transpose();
        let (keys, token, fleet, otlp) = match (keys, token, fleet, otlp) {
            (Ok(keys), Ok(token), Ok(fleet), Ok(otlp)) => (keys, token, fleet.flatten(), otlp.flatten()),
            (keys, token, fleet, otlp) => {
                let keys = keys.err().into_iter().flatten().take(MAX_REPORTED);
                let errors = keys.chain(token.err()).chain(fleet.err()).chain(otlp.err());
                all.extend(errors.map(SettingError::from).map(|error| report(origin_of(&error), &error)));
                (KeyRing::default(), None, None, None)
            }
        };
        match (ConfigError::together(all), config) {
            (None, Some(config)) => {
                let keep_warm = keep_warm::expand(&config.settings.keep_warm, &keys);
                Ok(Self { keys: Arc::new(keys), admin_token: token, keep_warm, fleet, otlp, ..config })
            }
            (error, config) => Err((error.unwrap_or(ConfigError::NoUpstream), config.map(Box::new))),
        }
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

/// Sets the value at a path.
pub(crate) fn set(table: &mut Table, path: &[&str], value: Value) {
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

/// The address of the metrics listener, and no other setting: from a flag or variable, the file, or the defaults. A
/// file that can't be read or is invalid is ignored.
///
/// # Errors
/// If the flag or variable is not an address.
pub(crate) fn metrics_address(given: Option<&Override>, file: Option<&Path>) -> Result<SocketAddr, ConfigError> {
    if let Some(Override { value, origin, .. }) = given {
        let wrong =
            |message| ConfigError::Invalid { origin: origin.clone(), message: format!("listen.metrics: {message}") };
        return Ok(value.as_str().unwrap_or_default().parse::<Address>().map_err(wrong)?.0);
    }
    let named = |text: &str| {
        let table: Table = toml::from_str(text).ok()?;
        Some(table.get("listen")?.get("metrics")?.as_str()?.parse::<Address>().ok()?.0)
    };
    let in_file = file.and_then(|path| named(&String::from_utf8(read_file::read(path).ok()?).ok()?));
    in_file.or_else(|| named(REFERENCE)).ok_or_else(|| ConfigError::Invalid {
        origin: "built-in defaults".to_owned(),
        message: "listen.metrics: is missing".to_owned(),
    })
}

/// The secrets of a table. Invalid ones are left out.
fn secrets(table: &Table) -> (Vec<AccessKeySettings>, Option<Secret>) {
    let entries = table.get("access_key").and_then(Value::as_array).into_iter().flatten();
    let entries = entries.filter_map(|entry| AccessKeySettings::deserialize(entry.clone()).ok()).collect();
    let token = table.get("listen").and_then(|listen| listen.get("admin_token"));
    (entries, token.and_then(|token| Secret::deserialize(token.clone()).ok()))
}
