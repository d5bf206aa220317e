//! What a gateway is given to ask upstream with: the client, and the gates before it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use strum::VariantArray;

use crate::catalogue::Service;
use crate::clock::Clock;
use crate::config::bounded::{read_regular, shown_path};
use crate::config::{Config, Settings, settings};
use crate::request::hop::Via;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::queue_metrics::QueueUsage;
use crate::upstream::Authorities;
use crate::upstream::client::{CallLimits, HttpClient};
use crate::upstream::gate::{self, Class, Gate, GateUsage};

/// What a client is made by. Another is made only where this has changed, for it has connections of its own.
#[derive(Clone, PartialEq)]
pub(super) struct ClientConfig {
    limits: CallLimits,
    /// What the file of certificates has in it.
    trusted: Option<Arc<[u8]>>,
}

impl ClientConfig {
    /// Whether it is other authorities that are trusted besides the system's.
    pub(super) fn trusts_others_than(&self, other: &Self) -> bool {
        self.trusted != other.trusted
    }
}

/// What the client of these settings is made by.
pub(super) fn client_config(settings: &Settings) -> io::Result<ClientConfig> {
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
    Ok(ClientConfig { limits, trusted: upstream.ca_file.as_ref().map(contents).transpose()? })
}

/// What is trusted besides the system's authorities.
pub(super) fn named<'c>(config: &'c Config, client_config: &'c ClientConfig) -> Option<Authorities<'c>> {
    let named = config.settings.upstream.ca_file.as_deref().zip(client_config.trusted.as_deref());
    named.map(|(path, pem)| Authorities { path, pem })
}

/// The client of both services.
pub(super) fn client(
    config: &Config,
    client_config: &ClientConfig,
    via: Via,
    clock: Clock,
    metrics: &Metrics,
) -> io::Result<HttpClient> {
    HttpClient::new(
        named(config, client_config),
        config.proxy_config.clone(),
        client_config.limits,
        via,
        clock,
        metrics.retry_counter(),
    )
}

/// The gates before upstream: for product lists, and for what is relayed.
pub(super) fn gates(settings: &settings::Upstream, metrics: &Metrics) -> io::Result<[Arc<Gate>; 2]> {
    let bounds = gate::GateLimits { calls: settings.max_calls.0, per_caller: settings.max_calls_per_caller.0 };
    let gates = [bounds; 2].map(|bounds| Arc::new(Gate::new(bounds)));
    let watched = gates.clone();
    let read = move || {
        let kinds = ["product-list", "relay"].into_iter().zip(&watched);
        kinds.flat_map(|(kind, gate)| queue_usage(kind, gate)).collect()
    };
    metrics.watch_queues(read).map_err(io::Error::other)?;
    Ok(gates)
}

/// The calls of one kind, by service and class; those to an operator's own services under one name.
fn queue_usage(kind: &'static str, gate: &Gate) -> Vec<QueueUsage> {
    let none = Service::ALL.into_iter().flat_map(|service| queue_usage_of(kind, service, |_| GateUsage::default()));
    let services = gate.services();
    let queue_usage =
        services.into_iter().flat_map(|service| queue_usage_of(kind, service, move |class| gate.usage(service, class)));
    none.chain(queue_usage).collect()
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
