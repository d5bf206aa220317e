//! All settings with their types, in the order of the reference file, and their rows in the table (`table.rs`). What
//! each setting means is explained once, in `config/workspace-gateway.toml`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::access_keys::AccessKeySettings;
use super::engine_url::EngineUrl;
use super::entries;
use super::enums::{AccessLog, Level, LogFormat, Mode, OnOutage};
use super::fleet_values::{FleetName, LookUpBudget, SharedSize, SyncTime};
use super::insecure::Insecure;
use super::keep_warm::KeepWarmSettings;
use super::names::{Address, BaseUrl, HeaderField, Region};
use super::network::Network;
use super::operation::OperationSettings;
use super::otlp_values::{OtlpProtocol, OtlpUrl, Rate, ResourceAttributes, SamplerName, ServiceLabel};
use super::quota::QuotaSettings;
use super::secret::Secret;
use super::table::FollowUp::{LogUpstream, SetLogLevel, WarnAboutCertificate, WarnAboutPlaintext};
use super::table::{RESTART, RUN_TIME, Setting, settings};
use super::ttl::Ttl;
use super::units::{Count, Percent, Size, Span, Window};
use crate::catalogue::Sharing;
use crate::catalogue::prefix::PathPrefix;

settings! {
    pub struct Settings [] {
        pub mode: Mode = RUN_TIME.with_flag("mode", "MODE", "cache: answer from memory; bypass: relay everything"),
        pub region: Option<Region> = RUN_TIME
            .with_flag("region", "NAME", "The region whose public endpoints are the upstreams, such as cn-north-4")
            .with_follow_ups(&[LogUpstream]),
        pub listen: ListenSettings,
        pub upstream: UpstreamSettings,
        pub cache: CacheSettings,
        pub grants: GrantsSettings,
        pub fleet: FleetSettings,
        #[serde(default, deserialize_with = "entries::read", skip_serializing_if = "Vec::is_empty")]
        pub operation: Vec<OperationSettings> = RUN_TIME.with_follow_ups(&[LogUpstream]),
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub access_key: Vec<AccessKeySettings> = RUN_TIME,
        #[serde(default, deserialize_with = "entries::read", skip_serializing_if = "Vec::is_empty")]
        pub keep_warm: Vec<KeepWarmSettings> = RUN_TIME,
        #[serde(default, deserialize_with = "entries::read", skip_serializing_if = "Vec::is_empty")]
        pub quota: Vec<QuotaSettings> = RUN_TIME,
        pub limits: LimitsSettings,
        pub log: LogSettings,
        pub otlp: OtlpSettings,
    }

    pub struct ListenSettings ["listen"] {
        pub proxy: Address = RESTART.with_flag("listen", "ADDRESS", "The address for clients"),
        pub metrics: Address = RESTART
            .with_flag("metrics-listen", "ADDRESS", "The address for Prometheus and health checks"),
        pub admin: Address = RESTART.with_flag("admin-listen", "ADDRESS", "The address for the operator"),
        pub admin_token: Option<Secret> = RUN_TIME,
        pub insecure_plaintext: Insecure = RUN_TIME
            .with_flag("insecure-plaintext", "BOOL", "true allows plaintext beyond loopback: others can read tokens")
            .with_follow_ups(&[WarnAboutPlaintext]),
        pub cert_file: Option<PathBuf> = RUN_TIME
            .with_flag("cert-file", "FILE", "PEM file with the certificate for clients, which must then use TLS")
            .with_follow_ups(&[WarnAboutPlaintext, WarnAboutCertificate]),
        pub key_file: Option<PathBuf> = RUN_TIME
            .with_flag("key-file", "FILE", "PEM file with the private key of --cert-file"),
        pub client_ca_file: Option<PathBuf> = RUN_TIME
            .with_flag("client-ca-file", "FILE", "PEM file with the authorities of client certificates, which are then required"),
        pub path_prefixes: Vec<PathPrefix> = RUN_TIME,
        pub shared_addresses: Vec<Network> = RUN_TIME,
        pub fast_path: bool = RUN_TIME,
    }

    pub struct UpstreamSettings ["upstream"] {
        pub workspace_url: Option<BaseUrl> = RUN_TIME
            .with_flag("workspace-url", "URL", "The URL of Workspace, if not the region's public endpoint")
            .with_follow_ups(&[LogUpstream]),
        pub appstream_url: Option<BaseUrl> = RUN_TIME
            .with_flag("appstream-url", "URL", "The URL of Workspace Application, if not the region's public endpoint")
            .with_follow_ups(&[LogUpstream]),
        pub ca_file: Option<PathBuf> = RUN_TIME
            .with_flag("upstream-ca-file", "FILE", "PEM file with authorities to trust in addition to the system's"),
        pub connect_timeout: Span = RUN_TIME,
        pub first_byte_timeout: Span = RUN_TIME,
        pub answer_timeout: Span = RUN_TIME,
        pub idle_timeout: Span = RUN_TIME,
        pub connection_max_age: Span = RUN_TIME,
        pub max_calls: Count = RESTART,
        pub max_calls_per_caller: Count = RESTART,
    }

    pub struct CacheSettings ["cache"] {
        pub max_size: Size = RESTART,
        pub max_body_size: Size = RUN_TIME,
        pub ttl: Ttl = RUN_TIME.with_flag("ttl", "DURATION", "How long a response is fresh, unless upstream says otherwise"),
        pub ttl_jitter: Percent = RUN_TIME,
        pub stale_while_revalidate: Window = RUN_TIME,
        pub stale_if_error: Window = RUN_TIME,
        pub negative_ttl: Window = RUN_TIME,
        pub backoff: Window = RUN_TIME,
        pub stale_if_slow: Span = RUN_TIME,
        pub sharing: Sharing = RUN_TIME,
        pub keyed_headers: Vec<HeaderField> = RUN_TIME,
        pub snapshot: Option<PathBuf> = RESTART,
    }

    pub struct GrantsSettings ["grants"] {
        pub grant_ttl: Span = RUN_TIME,
        pub renew_ahead: Window = RUN_TIME,
        pub denial_ttl: Span = RUN_TIME,
        pub outage_grace: Span = RUN_TIME,
        pub on_outage: OnOutage = RUN_TIME,
        pub max_grants: Count = RUN_TIME,
    }

    pub struct FleetSettings ["fleet"] {
        pub engine: Option<EngineUrl> = RESTART,
        pub name: FleetName = RESTART,
        pub secret: Option<Secret> = RESTART,
        pub password: Option<Secret> = RESTART,
        pub ca_file: Option<PathBuf> = RESTART,
        pub cert_file: Option<PathBuf> = RESTART,
        pub key_file: Option<PathBuf> = RESTART,
        pub budget: LookUpBudget = RESTART,
        pub sync: SyncTime = RESTART,
        pub grants: bool = RESTART,
        pub max_body_size: SharedSize = RESTART,
        pub insecure_plaintext: Insecure = RESTART,
    }

    pub struct LimitsSettings ["limits"] {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub memory: Option<Size> = RUN_TIME,
        pub max_head_size: Size = RUN_TIME,
        pub header_timeout: Span = RUN_TIME,
        pub keepalive_timeout: Span = RUN_TIME,
        pub write_timeout: Span = RUN_TIME,
        pub half_close: Window = RUN_TIME,
        pub max_connections: Count = RESTART,
        pub max_flights: Count = RUN_TIME,
        pub max_waiters: Count = RUN_TIME,
        pub shutdown_timeout: Span = RUN_TIME,
    }

    pub struct LogSettings ["log"] {
        pub format: LogFormat = RESTART.with_flag("log-format", "FORMAT", "text or json"),
        pub level: Level = RUN_TIME
            .with_flag("log-level", "LEVEL", "error, warn, info, debug or trace")
            .with_follow_ups(&[SetLogLevel]),
        pub access: AccessLog = RUN_TIME,
    }

    pub struct OtlpSettings ["otlp"] {
        pub endpoint: Option<OtlpUrl> = RESTART,
        pub traces_endpoint: Option<OtlpUrl> = RESTART,
        pub metrics_endpoint: Option<OtlpUrl> = RESTART,
        pub protocol: OtlpProtocol = RESTART,
        pub headers: Option<Secret> = RESTART,
        pub ca_file: Option<PathBuf> = RESTART,
        pub timeout: Span = RESTART,
        pub traces: bool = RESTART,
        pub sampler: SamplerName = RESTART,
        pub sampling_rate: Rate = RESTART,
        pub max_queue: Count = RESTART,
        pub max_batch: Count = RESTART,
        pub batch_delay: Span = RESTART,
        pub retry_for: Span = RESTART,
        pub metrics: bool = RESTART,
        pub metrics_interval: Span = RESTART,
        pub service_name: ServiceLabel = RESTART,
        pub resource_attributes: Option<ResourceAttributes> = RESTART,
    }
}
