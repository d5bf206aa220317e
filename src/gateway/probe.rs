//! `check --probe`: checks whether each upstream can be reached with these settings. No request is sent.

use std::io;

use super::upstream_setup;
use crate::catalogue::{Origin, Service};
use crate::config::Config;
use crate::upstream::probe::{Probe, Probed};

/// Probes the upstreams one after the other, and reports each result at once.
///
/// # Errors
/// If `upstream.ca_file` is unusable.
pub(crate) async fn probe(config: &Config, mut report: impl FnMut(Service, &Origin, &Probed)) -> io::Result<()> {
    let client_config = upstream_setup::client_config(&config.settings)?;
    let limit = config.settings.upstream.connect_timeout.0;
    let probe =
        Probe::new(upstream_setup::extra_authorities(config, &client_config), limit, config.proxy_config.clone())?;
    for service in config.catalogue.services() {
        let origin = config.catalogue.origin(service);
        report(service, origin, &probe.reach(origin).await);
    }
    Ok(())
}
