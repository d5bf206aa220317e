//! Reads settings from the file, the environment and flags, and checks them. Nothing here puts them in force.
//!
//! The documented defaults *are* the defaults: `config/workspace-gateway.toml` is the lowest layer. `check` prints the
//! result of all layers in the same form. Every error names the setting, its value and what is allowed, but no secret.

pub(crate) mod access_keys;
pub(crate) mod changes;
mod check;
mod engine_url;
mod entries;
pub(crate) mod enums;
mod error;
pub(crate) mod exposure;
mod files;
pub(crate) mod fleet;
mod fleet_values;
mod further_errors;
pub(crate) mod insecure;
pub(crate) mod keep_warm;
mod layers;
mod locations;
pub(crate) mod names;
pub(crate) mod network;
pub(crate) mod operation;
pub(crate) mod operations;
pub(crate) mod otlp;
mod otlp_values;
pub(crate) mod quota;
mod read;
pub(crate) mod read_file;
mod redact;
pub(crate) mod secret;
mod setting_error;
pub(crate) mod settings;
pub(crate) mod table;
pub(crate) mod ttl;
pub(crate) mod units;
pub(crate) mod watch;

use std::sync::Arc;

pub(crate) use access_keys::EnvironmentKey;
pub use changes::SettingsDiff;
pub(crate) use check::distinct;
pub use enums::Mode;
pub(crate) use enums::{AccessLog, LogFormat, OnOutage};
pub use error::ConfigError;
use files::Files;
use fleet::FleetConfig;
use keep_warm::KeepWarm;
pub(crate) use layers::{metrics_address, set};
use otlp::OtlpConfig;
use secret::AdminToken;
pub(crate) use settings::Settings;
pub(crate) use units::Size;
pub(crate) use watch::SettingsSource;

use crate::catalogue::{Catalogue, ConfiguredQuota, Service};
use crate::proxy_config::ProxyConfig;
use crate::signing::ring::KeyRing;

/// The annotated reference of all settings, which is also the layer of the defaults.
pub const REFERENCE: &str = include_str!("../../config/workspace-gateway.toml");

/// A setting from a flag or an environment variable.
#[derive(Clone, Debug)]
pub struct Override {
    /// The path in the file, such as `["listen", "proxy"]`.
    pub path: &'static [&'static str],
    pub value: toml::Value,
    /// The flag or variable, for errors.
    pub origin: String,
}

/// Checked settings, and what is made of them.
#[derive(Clone, Debug)]
pub struct Config {
    pub settings: Settings,
    pub catalogue: Catalogue,
    pub keys: Arc<KeyRing>,
    pub admin_token: Option<AdminToken>,
    pub keep_warm: Vec<KeepWarm>,
    pub quotas: Vec<ConfiguredQuota>,
    /// `None` without `fleet.engine`.
    pub fleet: Option<FleetConfig>,
    /// `None` if nothing is exported.
    pub otlp: Option<OtlpConfig>,
    /// From the environment, not from the file. By default, connections are direct.
    pub proxy_config: ProxyConfig,
}

impl Config {
    /// Combines and checks the layers. `file` is the name of the file, for errors, and `text` its contents.
    ///
    /// # Errors
    /// All errors, up to a limit.
    pub fn from_layers(file: &str, text: &str, overrides: &[Override]) -> Result<Self, ConfigError> {
        Self::from_files(file, text, (overrides, None), &mut Files::default()).map_err(|(error, _)| error)
    }

    /// The settings in the form of the file. The upstream URLs, routes, access keys, operations, quotas
    /// and the cost of keep_warm are comments. As a setting, the URL of a service would stay when the region changes.
    pub fn to_toml(&self) -> String {
        // This cannot fail: every setting is a string, a number, a list or a table of these.
        let mut text = toml::to_string(&self.settings).unwrap_or_default();
        for service in Service::ALL {
            text += &format!("# upstream of {}: {}\n", service.as_str(), self.catalogue.origin(service));
        }
        for service in self.catalogue.services().filter(|_| self.proxy_config.has_proxy()) {
            let origin = self.catalogue.origin(service);
            text += &format!(
                "# {origin} is reached {}\n",
                self.proxy_config.route_to(origin.authority(), origin.is_plaintext())
            );
        }
        for entry in &self.settings.access_key {
            text += &format!("# {}\n", access_keys::describe(entry));
        }
        for operation in self.catalogue.operations() {
            text += &format!("# {}\n", operations::describe(operation, &self.catalogue));
        }
        for quota in &self.quotas {
            text += &format!("# {}\n", quota::describe(quota));
        }
        if let Some(cost) = keep_warm::describe(&self.keep_warm, &self.catalogue, &self.settings) {
            text += &format!("# {cost}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests;
