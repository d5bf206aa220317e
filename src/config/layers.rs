//! The layers put together: defaults, file, environment and flags. Each mistake is blamed on the layer that made it.

use std::cell::LazyCell;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize as _;
use toml::{Table, Value};

use super::access_keys::AccessKeySettings;
use super::check::{Wrong, check};
use super::files::Files;
use super::mistake::Mistake;
use super::mistakes::MOST;
use super::names::Address;
use super::places::Places;
use super::read::not_toml;
use super::secret::{AdminToken, Secret};
use super::{Config, ConfigError, GivenKey, Override, REFERENCE, access_keys, bounded, mistakes};
use crate::signing::ring::KeyRing;

/// The region in place of the one that is missing, where only the files that settings name are looked at.
const NOWHERE: &str = "nowhere";

impl Config {
    /// The same with an access key of the environment's, and with secrets from these files. With an error comes what the
    /// settings amount to without their mistakes, as far as that is known: the files that they name can be looked at, too.
    pub(super) fn from_files(
        file: &str,
        text: &str,
        (overrides, key): (&[Override], Option<&GivenKey>),
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
        // Layer by layer, so that an error is blamed on the layer that brought it.
        let mut checked = check(&table).map_err(|wrong| (wrong, file));
        let mut check_again = |table: &Table, origin| {
            let before = checked.as_ref().err().cloned();
            checked = check(table).map_err(|wrong| match before {
                Some((earlier, origin)) if earlier == wrong => (wrong, origin),
                _ => (wrong, origin),
            });
        };
        if let Some(key) = key {
            key.put_into(&mut table);
            check_again(&table, key.origin);
        }
        for given in overrides {
            set(&mut table, given.path, Value::String(given.value.clone()));
            check_again(&table, given.origin.as_str());
        }
        // A mistake in the file is told with its place there.
        let places = LazyCell::new(|| Places::of(text));
        let tell = |origin: &str, mistake: &Mistake| {
            let place = places.find(mistake).filter(|_| origin == file).map(|place| format!(" ({place})"));
            let named = mistake.clone().by_names(&table);
            invalid(origin, &format!("{named}{}", place.unwrap_or_default()))
        };
        let origin_of = |mistake: &Mistake| {
            let given = overrides.iter().rev().find(|given| mistake.is_about(given.path));
            let from_key = || key.and_then(|key| key.origin_of(&mistake.clone().by_names(&table)));
            given.map(|given| given.origin.as_str()).or_else(from_key).unwrap_or(file)
        };
        let (mut all, config) = match checked {
            Ok(config) => (Vec::new(), Some(config)),
            Err((Wrong::NoUpstream, _)) => {
                let mut table = table.clone();
                set(&mut table, &["region"], Value::String(NOWHERE.to_owned()));
                (vec![ConfigError::NoUpstream], check(&table).ok())
            }
            Err((Wrong::Setting(first), origin)) => {
                let (others, config) = mistakes::others(table.clone(), &defaults, &first);
                let others = others.iter().map(|mistake| tell(origin_of(mistake), mistake));
                (std::iter::once(tell(origin, &first)).chain(others).collect(), config)
            }
        };
        // Whatever else is wrong, secrets are looked up, so that all mistakes are told in one run.
        let (entries, token) = secrets(&table);
        let token = token.map(|secret| AdminToken::look_up(&secret, files)).transpose();
        let keys = access_keys::ring(&entries, files);
        let (keys, token) = match (keys, token) {
            (Ok(keys), Ok(token)) => (keys, token),
            (keys, token) => {
                let wrong = keys.err().into_iter().flatten().take(MOST).chain(token.err()).map(Mistake::from);
                all.extend(wrong.map(|mistake| tell(origin_of(&mistake), &mistake)));
                (KeyRing::default(), None)
            }
        };
        match (ConfigError::together(all), config) {
            (None, Some(config)) => Ok(Self { keys: Arc::new(keys), admin_token: token, ..config }),
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
pub(crate) fn metrics_address(given: Option<&Override>, file: Option<&Path>) -> Result<SocketAddr, ConfigError> {
    if let Some(Override { value, origin, .. }) = given {
        let wrong =
            |message| ConfigError::Invalid { origin: origin.clone(), message: format!("listen.metrics: {message}") };
        return Ok(value.parse::<Address>().map_err(wrong)?.0);
    }
    let named = |text: &str| {
        let table: Table = toml::from_str(text).ok()?;
        Some(table.get("listen")?.get("metrics")?.as_str()?.parse::<Address>().ok()?.0)
    };
    let in_file = file.and_then(|path| named(&String::from_utf8(bounded::read(path).ok()?).ok()?));
    in_file.or_else(|| named(REFERENCE)).ok_or_else(|| ConfigError::Invalid {
        origin: "built-in defaults".to_owned(),
        message: "listen.metrics: is not there".to_owned(),
    })
}

/// Where the secrets are, as far as a table tells it well.
fn secrets(table: &Table) -> (Vec<AccessKeySettings>, Option<Secret>) {
    let entries = table.get("access_key").and_then(Value::as_array).into_iter().flatten();
    let entries = entries.filter_map(|entry| AccessKeySettings::deserialize(entry.clone()).ok()).collect();
    let token = table.get("listen").and_then(|listen| listen.get("admin_token"));
    (entries, token.and_then(|token| Secret::deserialize(token.clone()).ok()))
}
