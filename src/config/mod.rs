//! From a file, the environment and flags to settings that have been checked.
//!
//! The documented defaults *are* the defaults: `config/workspace-gateway.toml` is the lowest layer,
//! and `check` prints what all layers together amount to, in the same form. Every error names the
//! setting, its value and what is allowed.

pub(crate) mod access_keys;
pub(crate) mod bounded;
pub(crate) mod changes;
mod check;
pub(crate) mod choices;
mod error;
pub(crate) mod exposure;
mod files;
pub(crate) mod insecure;
mod layers;
mod mistake;
mod mistakes;
pub(crate) mod names;
pub(crate) mod network;
pub(crate) mod operation;
pub(crate) mod operations;
mod places;
mod read;
pub(crate) mod secret;
pub(crate) mod settings;
mod shown;
pub(crate) mod table;
pub(crate) mod units;
pub(crate) mod watch;

use std::sync::Arc;

pub(crate) use access_keys::GivenKey;
pub use changes::SettingsDiff;
pub(crate) use check::distinct;
pub use choices::Mode;
pub(crate) use choices::{AccessLog, LogFormat, OnOutage};
pub use error::ConfigError;
use files::Files;
pub(crate) use layers::metrics_address;
use secret::AdminToken;
pub(crate) use settings::Settings;
pub(crate) use units::Size;
pub(crate) use watch::SettingsSource;

use crate::catalogue::{Catalogue, Service};
use crate::proxy_config::ProxyConfig;
use crate::signing::ring::KeyRing;

/// All settings with their defaults, as documented.
pub const REFERENCE: &str = include_str!("../../config/workspace-gateway.toml");

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
    pub proxy_config: ProxyConfig,
}

impl Config {
    /// Puts the layers together, with this text as the file's, and checks the result.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn from_layers(file: &str, text: &str, overrides: &[Override]) -> Result<Self, ConfigError> {
        Self::from_files(file, text, (overrides, None), &mut Files::default()).map_err(|(error, _)| error)
    }

    /// The settings in the form of the file. Where upstream is in the region is told in a comment (as
    /// a setting it would outlive a change of region), and so are the way there and what there is to be asked.
    pub fn to_toml(&self) -> String {
        // Every setting is a string, a list or a table of these, which TOML can always express.
        let mut text = toml::to_string(&self.settings).unwrap_or_default();
        for service in Service::ALL {
            text += &format!("# {} is asked at {}\n", service.as_str(), self.catalogue.origin(service));
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
        text
    }
}

#[cfg(test)]
mod tests;
