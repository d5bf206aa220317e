//! The settings, as in the reference file: what there is, and what each is made of.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::access_keys::AccessKeySettings;
use super::exposure::Insecure;
use super::operations::{self, OperationSettings};
use super::prefix::PathPrefix;
use super::secret::Secret;
use super::units::{
    Address, BaseUrl, Count, HeaderField, Level, LogFormat, Mode, OnOutage, Percent, Region, Size, Span, Window,
};
use crate::catalogue::Sharing;

/// The settings, as in the reference file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of settings")]
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
    /// Who may see it.
    pub grants: Grants,
    /// More operations, and what differs for single ones.
    #[serde(default, deserialize_with = "operations::entries", skip_serializing_if = "Vec::is_empty")]
    pub operation: Vec<OperationSettings>,
    /// The access keys that clients may sign with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub access_key: Vec<AccessKeySettings>,
    /// What clients may do.
    pub limits: Limits,
    /// What is written down.
    pub log: Log,
}

/// `[listen]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of settings")]
pub struct Listen {
    /// For clients.
    pub proxy: Address,
    /// For Prometheus and health checks.
    pub metrics: Address,
    /// For the operator.
    pub admin: Address,
    /// What the operator has to show.
    pub admin_token: Option<Secret>,
    /// Whether plain text may be spoken to other machines.
    pub insecure_plaintext: Insecure,
    /// The certificate of this gateway, and those that lead to its authority; with it there is TLS.
    pub cert_file: Option<PathBuf>,
    /// The certificate's private key.
    pub key_file: Option<PathBuf>,
    /// The authorities of clients' certificates; with it clients need one.
    pub client_ca_file: Option<PathBuf>,
    /// What paths may have in front, and upstream doesn't get.
    pub path_prefixes: Vec<PathPrefix>,
}

/// `[upstream]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of settings")]
pub struct Upstream {
    /// Where Workspace is.
    pub workspace_url: Option<BaseUrl>,
    /// Where Workspace Application is.
    pub appstream_url: Option<BaseUrl>,
    /// Authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// For DNS, TCP, the tunnel through a proxy and TLS together.
    pub connect_timeout: Span,
    /// For the head of one.
    pub first_byte_timeout: Span,
    /// For a whole product list.
    pub answer_timeout: Span,
    /// For a pass-through on which nothing moves.
    pub idle_timeout: Span,
    /// For a connection to be used again.
    pub connection_max_age: Span,
    /// Calls under way to each service.
    pub max_calls: Count,
    /// Those of one caller.
    pub max_calls_per_caller: Count,
}

/// `[cache]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of settings")]
pub struct Cache {
    /// Memory for entries.
    pub max_size: Size,
    /// The largest answer that is kept.
    pub max_body_size: Size,
    /// How long an answer is fresh.
    pub ttl: Span,
    /// By how much that is shortened at random.
    pub ttl_jitter: Percent,
    /// How much longer it may be given while upstream is asked again.
    pub stale_while_revalidate: Window,
    /// How much longer than its ttl it may be given when upstream fails.
    pub stale_if_error: Window,
    /// How long a negative answer is given again, and a failed upstream is left alone.
    pub error_ttl: Window,
    /// How long one waits who could be given a stale answer.
    pub patience: Span,
    /// Between whom answers are shared.
    pub sharing: Sharing,
    /// Request headers that answers depend on.
    pub keyed_headers: Vec<HeaderField>,
}

/// `[grants]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of settings")]
pub struct Grants {
    /// How long a caller may be answered from memory after proof.
    pub grant_ttl: Span,
    /// How long upstream's refusal is given again without asking.
    pub denial_ttl: Span,
    /// How long after the last proof an outage is bridged.
    pub outage_grace: Span,
    /// Whether it is.
    pub on_outage: OnOutage,
    /// How many grants there may be.
    pub max_grants: Count,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of settings")]
pub struct Limits {
    /// Request line and headers together.
    pub max_head_size: Size,
    /// For a client to send them.
    pub head_timeout: Span,
    /// For a connection without a request.
    pub keepalive_timeout: Span,
    /// For a client to make room for more of an answer.
    pub write_timeout: Span,
    /// Open connections of clients.
    pub max_connections: Count,
    /// Upstream calls that others may wait for.
    pub max_flights: Count,
    /// Requests that wait for another's upstream call.
    pub max_waiters: Count,
    /// For what is in flight when the gateway stops.
    pub drain_timeout: Span,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of settings")]
pub struct Log {
    /// The form of a line.
    pub format: LogFormat,
    /// The least serious level that is written.
    pub level: Level,
}
