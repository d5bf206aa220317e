//! What a gateway is given to ask upstream with: the client, and the gates before it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::catalogue::Service;
use crate::clock::Clock;
use crate::config::{Config, Settings, settings};
use crate::request::hop::Via;
use crate::telemetry::lanes::Lane;
use crate::telemetry::metrics::Metrics;
use crate::upstream::client::{HttpClient, Limits};
use crate::upstream::gate::{self, Gate};

/// What a client is made by. Another is made only where this has changed, for it has connections of its own.
#[derive(Clone, PartialEq)]
pub(super) struct Blueprint {
    limits: Limits,
    /// What the file of certificates has in it.
    trusted: Option<blake3::Hash>,
}

impl Blueprint {
    /// Whether it is other authorities that are trusted besides the system's.
    pub(super) fn trusts_others_than(&self, other: &Self) -> bool {
        self.trusted != other.trusted
    }
}

/// What the client of these settings is made by.
pub(super) fn blueprint(settings: &Settings) -> io::Result<Blueprint> {
    let upstream = &settings.upstream;
    // Before the client reads it: should it change in between, it will be seen to differ.
    let hash = |path: &PathBuf| match std::fs::read(path) {
        Ok(bytes) => Ok(blake3::hash(&bytes)),
        Err(error) => Err(io::Error::other(format!("upstream.ca_file {}: {error}", path.display()))),
    };
    let limits = Limits {
        connect: upstream.connect_timeout.0,
        first_byte: upstream.first_byte_timeout.0,
        answer: upstream.answer_timeout.0,
        idle: upstream.idle_timeout.0,
        age: upstream.connection_max_age.0,
        max_body: settings.cache.max_body_size.bytes(),
    };
    Ok(Blueprint { limits, trusted: upstream.ca_file.as_ref().map(hash).transpose()? })
}

/// The client of both services.
pub(super) fn client(
    config: &Config,
    blueprint: &Blueprint,
    via: Via,
    clock: Clock,
    metrics: &Metrics,
) -> io::Result<HttpClient> {
    let (ca_file, egress) = (config.settings.upstream.ca_file.as_deref(), config.egress.clone());
    HttpClient::new(ca_file, egress, blueprint.limits, via, clock, metrics.retry_counter())
}

/// The gates before upstream: for product lists, and for what is relayed.
pub(super) fn gates(settings: &settings::Upstream, metrics: &Metrics) -> io::Result<[Arc<Gate>; 2]> {
    let bounds = gate::Bounds { calls: settings.max_calls.0, per_caller: settings.max_calls_per_caller.0 };
    let gates = [bounds; 2].map(|bounds| Arc::new(Gate::new(bounds)));
    let watched = gates.clone();
    let read = move || {
        let kinds = ["product-list", "relay"].into_iter().zip(&watched);
        kinds.flat_map(|(kind, gate)| lanes(kind, gate)).collect()
    };
    metrics.watch_lanes(read).map_err(io::Error::other)?;
    Ok(gates)
}

/// The calls of one kind, by service; those to an operator's own services under one name.
fn lanes(kind: &'static str, gate: &Gate) -> Vec<Lane> {
    let lane = |service: Service| Lane { kind, service: service.as_str(), under_way: 0, queued: 0 };
    let mut lanes: Vec<_> = Service::ALL.map(lane).into();
    for service in gate.services() {
        let usage = gate.usage(service);
        let place = lanes.iter().position(|lane| lane.service == service.as_str()).unwrap_or_else(|| {
            lanes.push(lane(service));
            lanes.len() - 1
        });
        lanes[place].under_way += usage.under_way;
        lanes[place].queued += usage.queued;
    }
    lanes
}
