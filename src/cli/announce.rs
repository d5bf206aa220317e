//! What `serve` logs at start and after a reload: listeners, upstreams and warnings. It shows no secret.

use std::path::Path;

use super::warnings;
use crate::catalogue::Catalogue;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::settings::ListenSettings;
use crate::proxy_config::ProxyConfig;
use crate::server::{Reloading, Server};

/// Logs the upstreams, all warnings and then `ready`. `file` is the configuration file.
pub(super) fn ready(config: &Config, file: Option<&Path>, server: &Server) {
    upstream(&config.catalogue, &config.proxy_config);
    exposed(server.reloading());
    certificate(server.reloading());
    for warning in warnings::of(config, file) {
        tracing::warn!("{warning}");
    }
    let limit = server.connection_limit();
    if limit.is_reduced() {
        tracing::warn!(connections = limit.effective, open_files = limit.open_files, "{limit}");
    }
    for (listener, address) in server.inherited() {
        tracing::info!(listener, %address, "listening on an inherited socket");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        mode = config.settings.mode.into_str(),
        access_keys = config.keys.keys().count(),
        proxy = %server.proxy_address(),
        metrics = %server.metrics_address(),
        admin = %server.admin_address(),
        tls = tls_mode(&config.settings.listen),
        "ready"
    );
}

/// Warns about listeners that use plaintext beyond loopback.
pub(super) fn exposed(reloading: &Reloading) {
    for (setting, address) in reloading.exposed() {
        tracing::warn!(
            setting,
            %address,
            "clients send tokens in plaintext to this address: use it only in a pod or a trusted network"
        );
    }
}

/// Warns about a certificate that has expired or expires soon.
pub(super) fn certificate(reloading: &Reloading) {
    if let Some(warning) = warnings::certificate(reloading.certificate_not_after(), Clock::System.date()) {
        tracing::warn!("{warning}");
    }
}

fn tls_mode(listen: &ListenSettings) -> &'static str {
    match (listen.has_tls(), &listen.client_ca_file) {
        (false, _) => "off",
        (true, None) => "on",
        (true, Some(_)) => "on, with client certificates",
    }
}

/// Logs the URL of each upstream, and the proxy if there is one.
pub(super) fn upstream(catalogue: &Catalogue, proxy_config: &ProxyConfig) {
    for service in catalogue.services() {
        let origin = catalogue.origin(service);
        let route = proxy_config.route_to(origin.authority(), origin.is_plaintext());
        tracing::info!(service = service.as_str(), url = %origin, reached = %route, "upstream");
    }
    for url in warnings::plaintext_upstreams(catalogue) {
        tracing::warn!(url, "the gateway sends tokens in plaintext to this upstream");
    }
}
