//! A quota: how many calls upstream accepts in a window, and what it counts. Data only: calls are paced elsewhere.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use super::Service;

/// What upstream counts together, in the words of its refusals ("policy user over ratelimit").
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr, VariantArray, Serialize, Deserialize,
)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum QuotaPolicy {
    /// All calls of one API, whoever makes them.
    Api,
    /// The calls of one user. The gateway knows users by their credentials only.
    User,
    /// The calls of one application. The gateway knows applications by their credentials only.
    App,
    /// The calls from one source address. All calls of the gateway have the same.
    Ip,
}

impl QuotaPolicy {
    /// Whether the calls of different callers count together.
    pub fn is_shared(self) -> bool {
        match self {
            Self::Api | Self::Ip => true,
            Self::User | Self::App => false,
        }
    }
}

/// How many calls upstream accepts in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// At least 1.
    pub calls: u32,
    /// Longer than zero.
    pub window: Duration,
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.calls, humantime::format_duration(self.window))
    }
}

/// A quota that is configured.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfiguredQuota {
    pub service: Service,
    pub policy: QuotaPolicy,
    /// With [`QuotaPolicy::Api`]: the operation, or `None` for each.
    pub operation: Option<Arc<str>>,
    /// `None`: there is no such limit, whatever upstream's refusals say.
    pub quota: Option<Quota>,
}
