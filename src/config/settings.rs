//! The settings, as in the reference file: what there is, what each is made of, and its row of the table.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::access_keys::AccessKeySettings;
use super::choices::{AccessLog, Level, LogFormat, Mode, OnOutage};
use super::insecure::Insecure;
use super::names::{Address, BaseUrl, HeaderField, Region};
use super::network::Network;
use super::operation::{self, OperationSettings};
use super::secret::Secret;
use super::table::FollowUp::{SetLogLevel, TellUpstream, WarnOfCertificate, WarnOfPlaintext};
use super::table::{RESTART, RUN_TIME, Setting, settings};
use super::units::{Count, Percent, Size, Span, Window};
use crate::catalogue::Sharing;
use crate::catalogue::prefix::PathPrefix;

settings! {
    /// The settings, as in the reference file.
    pub struct Settings [] {
        /// Whether the cache is in use at start.
        pub mode: Mode = RUN_TIME.with_flag("mode", "MODE", "cache or bypass"),
        /// The region whose public endpoints are asked.
        pub region: Option<Region> = RUN_TIME
            .with_flag("region", "NAME", "The region whose public endpoints are asked, such as cn-north-4")
            .calls_for(&[TellUpstream]),
        /// Addresses to listen on.
        pub listen: Listen,
        /// Where and how to ask.
        pub upstream: Upstream,
        /// What is kept.
        pub cache: Cache,
        /// Who may see it.
        pub grants: Grants,
        /// More operations, and what differs for single ones.
        #[serde(default, deserialize_with = "operation::entries", skip_serializing_if = "Vec::is_empty")]
        pub operation: Vec<OperationSettings> = RUN_TIME.calls_for(&[TellUpstream]),
        /// The access keys that clients may sign with.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub access_key: Vec<AccessKeySettings> = RUN_TIME,
        /// What clients may do.
        pub limits: Limits,
        /// What is written down.
        pub log: Log,
    }

    /// `[listen]`
    pub struct Listen ["listen"] {
        /// For clients.
        pub proxy: Address = RESTART.with_flag("listen", "ADDRESS", "Where clients connect"),
        /// For Prometheus and health checks.
        pub metrics: Address = RESTART
            .with_flag("metrics-listen", "ADDRESS", "Where Prometheus and health checks connect"),
        /// For the operator.
        pub admin: Address = RESTART.with_flag("admin-listen", "ADDRESS", "Where the operator connects"),
        /// What the operator has to show.
        pub admin_token: Option<Secret> = RUN_TIME,
        /// Whether plain text may be spoken to other machines.
        pub insecure_plaintext: Insecure = RUN_TIME
            .with_flag("insecure-plaintext", "BOOL", "true to speak plain text beyond loopback, where tokens can be read")
            .calls_for(&[WarnOfPlaintext]),
        /// The certificate of this gateway, and those that lead to its authority; with it there is TLS.
        pub cert_file: Option<PathBuf> = RUN_TIME.calls_for(&[WarnOfPlaintext, WarnOfCertificate]),
        /// The certificate's private key.
        pub key_file: Option<PathBuf> = RUN_TIME,
        /// The authorities of clients' certificates; with it clients need one.
        pub client_ca_file: Option<PathBuf> = RUN_TIME,
        /// What paths may have in front, and upstream doesn't get.
        pub path_prefixes: Vec<PathPrefix> = RUN_TIME,
        /// Addresses that many clients have in common, so that they tell nobody apart.
        pub shared_addresses: Vec<Network> = RUN_TIME,
        /// Whether heads that have come before are answered without reading them again.
        pub fast_path: bool = RUN_TIME,
    }

    /// `[upstream]`
    pub struct Upstream ["upstream"] {
        /// Where Workspace is.
        pub workspace_url: Option<BaseUrl> = RUN_TIME
            .with_flag("workspace-url", "URL", "Where Workspace is, if not at the region's public endpoint")
            .calls_for(&[TellUpstream]),
        /// Where Workspace Application is.
        pub appstream_url: Option<BaseUrl> = RUN_TIME
            .with_flag("appstream-url", "URL", "Where Workspace Application is, if not at the region's public endpoint")
            .calls_for(&[TellUpstream]),
        /// Authorities to trust besides the system's.
        pub ca_file: Option<PathBuf> = RUN_TIME,
        /// For DNS, TCP, the tunnel through a proxy and TLS together.
        pub connect_timeout: Span = RUN_TIME,
        /// For the head of one.
        pub first_byte_timeout: Span = RUN_TIME,
        /// For a whole product list.
        pub answer_timeout: Span = RUN_TIME,
        /// For a pass-through on which nothing moves.
        pub idle_timeout: Span = RUN_TIME,
        /// For a connection to be used again.
        pub connection_max_age: Span = RUN_TIME,
        /// Calls under way to each service.
        pub max_calls: Count = RESTART,
        /// Those of one caller.
        pub max_calls_per_caller: Count = RESTART,
    }

    /// `[cache]`
    pub struct Cache ["cache"] {
        /// Memory for entries.
        pub max_size: Size = RESTART,
        /// The largest answer that is kept.
        pub max_body_size: Size = RUN_TIME,
        /// How long an answer is fresh.
        pub ttl: Span = RUN_TIME,
        /// By how much that is shortened at random.
        pub ttl_jitter: Percent = RUN_TIME,
        /// How much longer it may be given while upstream is asked again.
        pub stale_while_revalidate: Window = RUN_TIME,
        /// How much longer than its ttl it may be given when upstream fails.
        pub stale_if_error: Window = RUN_TIME,
        /// How long a 400, 404 or 405 is given again.
        pub negative_ttl: Window = RUN_TIME,
        /// How long a caller whose call failed makes no other call for what it can be given stale.
        pub backoff: Window = RUN_TIME,
        /// How long one waits who could be given a stale answer.
        pub stale_if_slow: Span = RUN_TIME,
        /// Between whom answers are shared.
        pub sharing: Sharing = RUN_TIME,
        /// Request headers that answers depend on.
        pub keyed_headers: Vec<HeaderField> = RUN_TIME,
    }

    /// `[grants]`
    pub struct Grants ["grants"] {
        /// How long a caller may be answered from memory after proof.
        pub grant_ttl: Span = RUN_TIME,
        /// How long upstream's refusal is given again without asking.
        pub denial_ttl: Span = RUN_TIME,
        /// How long after the last proof an outage is bridged.
        pub outage_grace: Span = RUN_TIME,
        /// Whether it is.
        pub on_outage: OnOutage = RUN_TIME,
        /// How many grants there may be.
        pub max_grants: Count = RUN_TIME,
    }

    /// `[limits]`
    pub struct Limits ["limits"] {
        /// All that is held for clients, the cache apart. Absent: half of the smallest memory limit of the process's cgroups,
        /// or 256 MiB if there is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub memory: Option<Size> = RUN_TIME,
        /// Request line and headers together.
        pub max_head_size: Size = RUN_TIME,
        /// For a client to send them.
        pub header_timeout: Span = RUN_TIME,
        /// For a connection without a request.
        pub keepalive_timeout: Span = RUN_TIME,
        /// For a client to make room for more of an answer.
        pub write_timeout: Span = RUN_TIME,
        /// For a client of HTTP/1 that has closed its sending side to be written something. Zero: its connection ends at once.
        pub half_close: Window = RUN_TIME,
        /// Open connections of clients.
        pub max_connections: Count = RESTART,
        /// Upstream calls that others may wait for.
        pub max_flights: Count = RUN_TIME,
        /// Requests that wait for another's upstream call.
        pub max_waiters: Count = RUN_TIME,
        /// For what is in flight when the gateway stops.
        pub shutdown_timeout: Span = RUN_TIME,
    }

    /// `[log]`
    pub struct Log ["log"] {
        /// The form of a line.
        pub format: LogFormat = RESTART,
        /// The least serious level that is written.
        pub level: Level = RUN_TIME.calls_for(&[SetLogLevel]),
        /// Which requests have a line.
        pub access: AccessLog = RUN_TIME,
    }
}
