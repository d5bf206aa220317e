//! Building the HTTP client and the gates that limit its calls. No call is made here.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use strum::VariantArray;

use crate::catalogue::{QuotaPolicy, Service};
use crate::clock::Clock;
use crate::config::read_file::{read_regular, shown_path};
use crate::config::{Config, Settings, settings};
use crate::machine::Machine;
use crate::request::hop::Via;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::sources::{QueueUsage, QuotaUsage};
use crate::upstream::Authorities;
use crate::upstream::client::{CallLimits, HttpClient};
use crate::upstream::gate::{self, Class, Gate, GateUsage, HeldCalls, OnQuotaWait};
use crate::upstream::quota::Ledger;

/// What a client is built from. A reload builds a new client only if this has changed, because a new client has to open
/// new connections.
#[derive(Clone, PartialEq)]
pub(super) struct UpstreamClientConfig {
    limits: CallLimits,
    /// The content of `upstream.ca_file`.
    ca_pem: Option<Arc<[u8]>>,
}

impl UpstreamClientConfig {
    pub(super) fn has_other_authorities(&self, other: &Self) -> bool {
        self.ca_pem != other.ca_pem
    }
}

/// Reads `upstream.ca_file`.
pub(super) fn client_config(settings: &Settings) -> io::Result<UpstreamClientConfig> {
    let upstream = &settings.upstream;
    let contents = |path: &PathBuf| match read_regular(path) {
        Ok(bytes) => Ok(Arc::from(bytes)),
        Err(error) => Err(io::Error::other(format!("upstream.ca_file {}: {error}", shown_path(path)))),
    };
    let limits = CallLimits {
        connect: upstream.connect_timeout.0,
        first_byte: upstream.first_byte_timeout.0,
        answer: upstream.answer_timeout.0,
        idle: upstream.idle_timeout.0,
        age: upstream.connection_max_age.0,
        max_body: settings.cache.max_body_size.bytes(),
    };
    Ok(UpstreamClientConfig { limits, ca_pem: upstream.ca_file.as_ref().map(contents).transpose()? })
}

/// The authorities of `upstream.ca_file`, which are trusted besides the system's.
pub(super) fn extra_authorities<'c>(
    config: &'c Config,
    client_config: &'c UpstreamClientConfig,
) -> Option<Authorities<'c>> {
    let file = config.settings.upstream.ca_file.as_deref().zip(client_config.ca_pem.as_deref());
    file.map(|(path, pem)| Authorities { setting: "upstream.ca_file", path, pem })
}

/// One client calls all services.
pub(super) fn client(
    config: &Config,
    client_config: &UpstreamClientConfig,
    via: Via,
    machine: &Machine,
    metrics: &Metrics,
) -> io::Result<HttpClient> {
    HttpClient::new(
        extra_authorities(config, client_config),
        config.proxy_config.clone(),
        client_config.limits,
        via,
        machine,
        metrics.retry_counter(),
    )
}

/// The gates before upstream: one for fetches, one for relayed requests.
pub(super) fn gates(
    settings: &settings::UpstreamSettings,
    metrics: &Metrics,
    ledger: &Arc<Ledger>,
    clock: &Clock,
) -> [Arc<Gate>; 2] {
    let limits = gate::GateLimits { calls: settings.max_calls.0, per_caller: settings.max_calls_per_caller.0 };
    let on_quota_wait: OnQuotaWait = Arc::new(metrics.quota_wait_recorder());
    let gates =
        [(); 2].map(|()| Arc::new(Gate::new(limits, Arc::clone(ledger), Arc::clone(&on_quota_wait), clock.clone())));
    gate::share_quotas(&gates);
    let observed = gates.clone();
    let read = move || {
        let kinds = ["product-list", "relay"].into_iter().zip(&observed);
        kinds.flat_map(|(kind, gate)| queue_usage(kind, gate)).collect()
    };
    metrics.watch_queues(read);
    gates
}

/// Shows the limits that are known, and the calls that they hold back, in the metrics.
pub(super) fn watch_quotas(ledger: &Arc<Ledger>, gates: &[Arc<Gate>; 2], clock: &Clock, metrics: &Metrics) {
    let (ledger, gates, clock) = (Arc::downgrade(ledger), gates.clone(), clock.clone());
    metrics.watch_quotas(move || {
        let known = ledger.upgrade().map(|ledger| ledger.states(clock.now())).unwrap_or_default();
        let held: Vec<_> = gates.iter().flat_map(|gate| gate.held_calls()).collect();
        let usage = |service: Service, policy: QuotaPolicy| {
            let states = known.iter().filter(|(of, _)| of.as_str() == service.as_str()).flat_map(|(_, states)| states);
            let fewest = states.filter(|state| state.policy == policy).min_by_key(|state| state.remaining);
            let (calls, remaining) = (fewest.map(|state| state.quota.calls), fewest.map(|state| state.remaining));
            let is_held = |(of, held): &&(Service, HeldCalls)| of.as_str() == service.as_str() && held.policy == policy;
            let waiting = held.iter().filter(is_held).map(|(_, held)| held.calls).sum();
            QuotaUsage { service: service.as_str(), policy, calls, remaining, waiting }
        };
        let policies = || QuotaPolicy::VARIANTS.iter().copied();
        Service::ALL
            .into_iter()
            .flat_map(|service| policies().map(move |policy| (service, policy)))
            .map(|(service, policy)| usage(service, policy))
            .collect()
    });
}

/// The calls of one kind, by service and class. All services that an operator has added have the same name.
fn queue_usage(kind: &'static str, gate: &Gate) -> Vec<QueueUsage> {
    let zeros = Service::ALL.into_iter().flat_map(|service| queue_usage_of(kind, service, |_| GateUsage::default()));
    let services = gate.services();
    let queue_usage =
        services.into_iter().flat_map(|service| queue_usage_of(kind, service, move |class| gate.usage(service, class)));
    zeros.chain(queue_usage).collect()
}

fn queue_usage_of(
    kind: &'static str,
    service: Service,
    usage: impl Fn(Class) -> GateUsage,
) -> impl Iterator<Item = QueueUsage> {
    Class::VARIANTS.iter().map(move |&class| {
        let GateUsage { under_way, queued } = usage(class);
        QueueUsage { kind, service: service.as_str(), class: class.into_str(), under_way, queued }
    })
}
