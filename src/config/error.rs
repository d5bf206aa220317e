//! What is wrong with a configuration, for whoever started the gateway.

use std::path::PathBuf;

use thiserror::Error;

use crate::proxy_config::InvalidProxy;

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
    /// More than one thing is wrong.
    #[error("{}", one_line(.0))]
    Several(Vec<ConfigError>),
    /// The environment names a proxy that can't be used.
    #[error(transparent)]
    Proxy(#[from] InvalidProxy),
}

impl ConfigError {
    /// Of one or several errors: if there are several, these.
    pub(super) fn together(mut all: Vec<Self>) -> Option<Self> {
        match all.len() {
            0 | 1 => all.pop(),
            _ => Some(Self::Several(all)),
        }
    }

    /// Each thing that is wrong.
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
