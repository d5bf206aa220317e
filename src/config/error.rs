//! Errors of the configuration, for the operator. No message contains a secret.

use std::path::PathBuf;

use thiserror::Error;

use crate::proxy_config::InvalidProxy;

#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error(
        "region is not set, and neither are both upstream URLs: expected --region cn-north-4, or --workspace-url and \
         --appstream-url, or the same in the environment or the file"
    )]
    NoUpstream,
    /// The file is not TOML, or a setting is unknown or has a value that is not allowed.
    #[error("{origin}: {message}")]
    Invalid {
        /// The file, flag or environment variable that the value comes from.
        origin: String,
        /// The setting, its value and what is allowed.
        message: String,
    },
    #[error("{}", one_line(.0))]
    Several(Vec<ConfigError>),
    /// `HTTPS_PROXY` is invalid.
    #[error(transparent)]
    Proxy(#[from] InvalidProxy),
}

impl ConfigError {
    /// Combines errors into one. `None` if there are none.
    pub(super) fn together(mut all: Vec<Self>) -> Option<Self> {
        match all.len() {
            0 | 1 => all.pop(),
            _ => Some(Self::Several(all)),
        }
    }

    /// Each single error.
    pub fn each(&self) -> &[Self] {
        match self {
            Self::Several(all) => all,
            one => std::slice::from_ref(one),
        }
    }
}

fn one_line(errors: &[ConfigError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
