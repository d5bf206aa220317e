//! Checks whether upstream is reachable: resolves the name, connects and completes the TLS handshake as a call does. It
//! sends no request.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::Uri;
use hyper_rustls::MaybeHttpsStream;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;
use tower_service::Service as _;

use super::UpstreamError;
use super::connect::OriginConnector;
use super::hint::describe_error;
use super::resolve::Resolver;
use super::trust::Authorities;
use crate::catalogue::Origin;
use crate::certificate::Certificate;
use crate::net::{self, Network};
use crate::proxy_config::{ProxyConfig, ProxyRoute};

/// How long the probe waits for an alert or the end of the connection after the handshake. A TLS 1.3 server demands a
/// missing client certificate only then (RFC 8446 §4.4.2.4).
const ALERT_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) struct Probe {
    connector: OriginConnector,
    limit: Duration,
    proxy_config: ProxyConfig,
}

/// The result of a probe of one upstream.
pub(crate) struct Probed {
    /// The steps that succeeded, in order, as text for an operator.
    pub steps: Vec<String>,
    /// Why the next step failed, if it did.
    pub failed: Option<String>,
}

impl Probe {
    /// Uses the same authorities, routes and timeout (`upstream.connect_timeout`) as the HTTP client.
    ///
    /// # Errors
    /// If `upstream.ca_file` contains no usable certificates.
    pub(crate) fn new(named: Option<Authorities<'_>>, limit: Duration, proxy_config: ProxyConfig) -> io::Result<Self> {
        Ok(Self {
            connector: OriginConnector::new(named, (limit, limit), proxy_config.clone(), &Network::System)?,
            limit,
            proxy_config,
        })
    }

    /// Probes an upstream. Takes at most twice the timeout plus 1 s.
    pub(crate) async fn reach(&self, origin: &Origin) -> Probed {
        let mut steps = Vec::new();
        let failed = self.steps(origin, &mut steps).await.err();
        Probed { steps, failed }
    }

    async fn steps(&self, origin: &Origin, steps: &mut Vec<String>) -> Result<(), String> {
        let route = self.proxy_config.route_to(origin.authority(), origin.is_plaintext());
        let (host, through) = match route {
            ProxyRoute::Through(proxy) => (proxy.uri().host().unwrap_or_default(), format!(" (the proxy {proxy})")),
            _ => (origin.authority().host(), String::new()),
        };
        if host.trim_matches(['[', ']']).parse::<IpAddr>().is_err() {
            let addresses = self.resolve(host).await.map_err(|why| format!("cannot resolve {host}{through}: {why}"))?;
            steps.push(format!("{host} resolves to {addresses}"));
        }
        let uri = Uri::builder().scheme(if origin.is_plaintext() { "http" } else { "https" });
        let uri = uri.authority(origin.authority().clone()).path_and_query("/").build();
        let uri = uri.map_err(|error| error.to_string())?;
        let stream = self.connector.connect(uri).await;
        let stream = stream.map_err(|error| UpstreamError::of_connecting(&*error, origin.authority()).to_string())?;
        match stream {
            MaybeHttpsStream::Http(stream) => steps.push(connected(&stream, &through)),
            MaybeHttpsStream::Https(mut stream) => {
                let (inner, tls) = stream.inner().get_ref();
                steps.push(connected(inner.inner(), &through));
                let version = tls.protocol_version().and_then(|version| version.as_str());
                steps.push(version.unwrap_or("TLS").to_owned());
                let certificate = tls.peer_certificates().and_then(|chain| Certificate::read(chain.first()?));
                steps.extend(certificate.map(|certificate| certificate.to_string()));
                let mut first = [0; 1];
                let reading = stream.inner_mut().read(&mut first);
                match timeout(ALERT_TIMEOUT.min(self.limit), reading).await {
                    Ok(Ok(0)) => return Err("upstream closed the connection after the TLS handshake".to_owned()),
                    Ok(Err(error)) => {
                        return Err(format!(
                            "the connection failed after the TLS handshake: {}",
                            describe_error(&error)
                        ));
                    }
                    Ok(Ok(_)) | Err(_) => {}
                }
            }
        }
        Ok(())
    }

    async fn resolve(&self, host: &str) -> Result<String, String> {
        let resolving = async {
            let name = host.parse().map_err(|_| "expected a host name".to_owned())?;
            let addresses = Resolver::new().call(name).await.map_err(|error| error.to_string())?;
            Ok(addresses.map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", "))
        };
        let in_time = timeout(self.limit, resolving).await;
        in_time.unwrap_or_else(|_| Err(format!("no DNS answer within {:?} (upstream.connect_timeout)", self.limit)))
    }
}

/// Says to which address the socket is connected.
fn connected(stream: &MaybeHttpsStream<TokioIo<net::Stream>>, through: &str) -> String {
    let tcp = match stream {
        MaybeHttpsStream::Http(stream) => stream.inner(),
        MaybeHttpsStream::Https(stream) => stream.inner().get_ref().0.inner().inner(),
    };
    let address = tcp.peer_addr().as_ref().map_or_else(ToString::to_string, SocketAddr::to_string);
    format!("connected to {address}{through}")
}
