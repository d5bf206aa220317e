//! Whether upstream can be reached: resolves, connects and completes TLS as a call does, and sends nothing more.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::Uri;
use hyper_rustls::MaybeHttpsStream;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;
use tower_service::Service as _;

use super::UpstreamError;
use super::connect::OriginConnector;
use super::hint::explained;
use super::resolve::Resolver;
use super::trust::Authorities;
use crate::catalogue::Origin;
use crate::certificate::Certificate;
use crate::net;
use crate::proxy_config::{ProxyConfig, ProxyRoute};

/// How long the probe waits for upstream to end a connection whose TLS is complete. In TLS 1.3 that is how a server says that
/// it demands a client certificate (RFC 8446 §4.4.2.4).
const OBJECTION: Duration = Duration::from_secs(1);

/// Probes upstreams.
pub(crate) struct Probe {
    connector: OriginConnector,
    limit: Duration,
    proxy_config: ProxyConfig,
}

/// What a probe of one upstream has come to: each step that succeeded, and why the next one did not.
pub(crate) struct Probed {
    /// In words, in order.
    pub steps: Vec<String>,
    /// Why it is not reached.
    pub failed: Option<String>,
}

impl Probe {
    /// By the rules of the client: the same authorities, the same way, the same limit (`upstream.connect_timeout`).
    ///
    /// # Errors
    /// If the file that is named has no usable certificates.
    pub(crate) fn new(named: Option<Authorities<'_>>, limit: Duration, proxy_config: ProxyConfig) -> io::Result<Self> {
        Ok(Self { connector: OriginConnector::new(named, (limit, limit), proxy_config.clone())?, limit, proxy_config })
    }

    /// Probes an upstream. Takes at most twice the limit, and a second.
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
            steps.push(format!("{host} is {addresses}"));
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
                let objection = stream.inner_mut().read(&mut first);
                match timeout(OBJECTION.min(self.limit), objection).await {
                    Ok(Ok(0)) => return Err("upstream closed the connection after TLS".to_owned()),
                    Ok(Err(error)) => {
                        return Err(format!("the connection was closed after TLS: {}", explained(&error)));
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
        in_time.unwrap_or_else(|_| Err(format!("no answer within {:?} (upstream.connect_timeout)", self.limit)))
    }
}

/// Where a connection leads, as the kernel has it.
fn connected(stream: &MaybeHttpsStream<net::Stream>, through: &str) -> String {
    let tcp = match stream {
        MaybeHttpsStream::Http(stream) => stream.inner(),
        MaybeHttpsStream::Https(stream) => stream.inner().get_ref().0.inner().inner(),
    };
    let address = tcp.peer_addr().as_ref().map_or_else(ToString::to_string, SocketAddr::to_string);
    format!("connected to {address}{through}")
}
