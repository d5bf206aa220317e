//! What `serve` tells of itself: where it listens, whom it asks, and what is exposed by that.

use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::config::settings::Listen;
use crate::egress::Egress;
use crate::server::{Reloading, Server};

/// Tells everything that an operator should know at start.
pub(super) fn ready(config: &Config, server: &Server) {
    upstream(&config.catalogue, &config.egress);
    exposed(server.reloading());
    for (listener, address) in server.inherited() {
        tracing::info!(listener, %address, "listening on a socket that was handed down");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        mode = config.settings.mode.as_str(),
        access_keys = config.keys.keys().count(),
        proxy = %server.proxy_address(),
        metrics = %server.metrics_address(),
        admin = %server.admin_address(),
        tls = spoken(&config.settings.listen),
        "ready"
    );
}

/// Warns of what the operator has allowed.
pub(super) fn exposed(reloading: &Reloading) {
    for (setting, address) in reloading.exposed() {
        tracing::warn!(
            setting,
            %address,
            "tokens travel in the clear to this address: keep it inside a pod or a trusted network"
        );
    }
}

fn spoken(listen: &Listen) -> &'static str {
    match (listen.has_tls(), &listen.client_ca_file) {
        (false, _) => "off",
        (true, None) => "on",
        (true, Some(_)) => "on, with clients' certificates",
    }
}

/// Tells where upstream is, and how it is reached.
pub(super) fn upstream(catalogue: &Catalogue, egress: &Egress) {
    for service in catalogue.services() {
        let origin = catalogue.origin(service);
        let way = egress.way_to(origin.authority(), origin.is_plaintext());
        tracing::info!(service = service.as_str(), url = %origin, reached = %way, "upstream");
        if origin.is_plaintext() && !is_this_machine(origin.authority().host()) {
            tracing::warn!(url = %origin, "tokens will travel to upstream in the clear");
        }
    }
}

fn is_this_machine(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
