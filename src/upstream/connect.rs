//! Connecting: DNS, TCP, a proxy's tunnel if it takes one, and TLS, all within one limit.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tower_service::Service;

use super::tunnel::Reach;
use crate::egress::Egress;
use crate::stream::BoxError;

/// Connects to http and https origins, giving up after a while.
#[derive(Clone)]
pub(super) struct Connector {
    inner: HttpsConnector<Reach>,
    /// The same that `inner` goes by, which keeps it to itself.
    reach: Reach,
    limit: Duration,
}

impl Connector {
    /// Trusts the system's authorities and those in `ca_file`, proxies' certificates included.
    pub(super) fn new(ca_file: Option<&Path>, limit: Duration, egress: Egress) -> io::Result<Self> {
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots(ca_file)?)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // Shared out among a host's addresses, so that one dead address doesn't use it all up.
        tcp.set_connect_timeout(Some(limit));
        // HTTP/1 only: one answer, one connection, nothing another's stream could hold up.
        let https = || HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http().enable_http1();
        let reach = Reach::new(tcp.clone(), https().wrap_connector(tcp), egress);
        Ok(Self { inner: https().wrap_connector(reach.clone()), reach, limit })
    }
}

fn roots(ca_file: Option<&Path>) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "cannot load some of the system's certificate authorities");
    }
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = ca_file {
        let unusable =
            |error: &dyn std::fmt::Display| io::Error::other(format!("upstream.ca_file {}: {error}", path.display()));
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| unusable(&error))?;
        if certificates.is_empty() {
            return Err(unusable(&"expected a PEM file with at least one certificate, found none"));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| unusable(&error))?;
        }
    }
    Ok(roots)
}

impl Service<Uri> for Connector {
    type Response = <HttpsConnector<Reach> as Service<Uri>>::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let through = self.reach.proxy_to(&uri).map(|proxy| format!(" through the proxy {proxy}")).unwrap_or_default();
        let connecting = self.inner.call(uri);
        let limit = self.limit;
        Box::pin(async move {
            tokio::time::timeout(limit, connecting).await.unwrap_or_else(|_| {
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("not connected{through} within {limit:?} (upstream.connect_timeout)"),
                )
                .into())
            })
        })
    }
}
