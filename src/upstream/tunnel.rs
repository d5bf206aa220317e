//! Connections to hosts before TLS: direct ones, and tunnels through a proxy (CONNECT).
//!
//! This file writes the CONNECT request and reads the response itself. hyper accepts only a 200 as the start of a
//! tunnel, but every 2xx is one (RFC 9110 §9.3.6). hyper-util has a `Tunnel`, but it recognizes only the statuses 200
//! and 407, and discards bytes that follow the response head. No text from the proxy's response may get into a message.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{PROXY_AUTHORIZATION, USER_AGENT};
use http::uri::Scheme;
use http::{StatusCode, Uri};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tower_service::Service;

use super::AGENT;
use super::fault::{Attributed, CallStage, Fault};
use super::hint::describe_error;
use super::resolve::Resolver;
use crate::net::{self, Connector};
use crate::proxy_config::{Proxy, ProxyConfig, ProxyRoute};
use crate::stream::BoxError;

/// The maximum size of the head of a proxy's response, in bytes.
const MAX_HEAD_SIZE: usize = 16 * 1024;

/// The maximum number of fields in a proxy's response: hyper's default.
const MAX_FIELDS: usize = 100;

/// A stream to a host. The connection to a proxy may use TLS.
type TunnelStream = MaybeHttpsStream<TokioIo<net::Stream>>;

/// Connects to hosts, directly or through the proxy that is configured for them.
#[derive(Clone)]
pub(super) struct HostConnector {
    direct: Connector<Resolver>,
    proxies: HttpsConnector<Connector<Resolver>>,
    proxy_config: Arc<ProxyConfig>,
}

impl HostConnector {
    /// `direct` connects to hosts, `proxies` to proxies.
    pub(super) fn new(
        direct: Connector<Resolver>,
        proxies: HttpsConnector<Connector<Resolver>>,
        proxy_config: ProxyConfig,
    ) -> Self {
        Self { direct, proxies, proxy_config: Arc::new(proxy_config) }
    }

    /// The proxy for this URI, if there is one.
    pub(super) fn proxy_to(&self, uri: &Uri) -> Option<Proxy> {
        match self.proxy_config.route_to(uri.authority()?, uri.scheme() != Some(&Scheme::HTTPS)) {
            ProxyRoute::Through(proxy) => Some(proxy.clone()),
            ProxyRoute::Direct | ProxyRoute::NoProxy | ProxyRoute::Plaintext => None,
        }
    }
}

impl Service<Uri> for HostConnector {
    type Response = TunnelStream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<TunnelStream, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.direct.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Some(proxy) = self.proxy_to(&uri) else {
            let connecting = self.direct.call(uri);
            return Box::pin(async { Ok(MaybeHttpsStream::Http(connecting.await?)) });
        };
        let connecting = self.proxies.call(proxy.uri().clone());
        Box::pin(async move {
            let tunnel = async {
                let stream = connecting.await.map_err(|error| failure(&*error, CallStage::Connecting))?;
                connect_tunnel(stream, &proxy, &uri).await
            };
            // The error has no source, or a TLS error of the proxy would be reported as one of upstream.
            tunnel.await.map_err(|Attributed { message, fault }| {
                Attributed { message: format!("the proxy {proxy}: {message}"), fault }.into()
            })
        })
    }
}

fn failure(error: &(dyn std::error::Error + 'static), stage: CallStage) -> Attributed {
    Attributed { message: describe_error(error), fault: Fault::of(error, stage) }
}

/// Opens a tunnel to a host through a connection to a proxy.
async fn connect_tunnel(mut stream: TunnelStream, proxy: &Proxy, to: &Uri) -> Result<TunnelStream, Attributed> {
    let failed = |message: String, fault| Err(Attributed { message, fault });
    let mut io = TokioIo::new(&mut stream);
    let exchange = async {
        io.write_all(&connect_request(proxy, to)).await?;
        io.flush().await?;
        read_response(&mut io).await
    };
    let response = exchange.await.map_err(|error| failure(&error, CallStage::Exchanging))?;
    match response.status {
        status if status.is_success() => {}
        // The text of the response is not trusted. Only the meaning of the status is passed on.
        StatusCode::PROXY_AUTHENTICATION_REQUIRED if proxy.credentials().is_none() => {
            let message = "it answers 407 Proxy Authentication Required: add USER:PASSWORD@ to HTTPS_PROXY";
            return failed(message.to_owned(), Fault::Local);
        }
        // The proxy cannot reach upstream.
        status if status.is_server_error() => return failed(format!("it answers {status}"), Fault::Outside),
        // The proxy refuses the tunnel.
        status => return failed(format!("it answers {status}"), Fault::Local),
    }
    if response.is_followed {
        // In TLS the client sends first.
        return failed("it sent data before the TLS handshake".to_owned(), Fault::Outside);
    }
    Ok(stream)
}

/// The CONNECT request. Its target always has a port (RFC 9110 §9.3.6).
fn connect_request(proxy: &Proxy, to: &Uri) -> Vec<u8> {
    let (host, port) = (to.host().unwrap_or_default(), to.port_u16().unwrap_or(443));
    let mut head = format!("CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n").into_bytes();
    let credentials = proxy.credentials().map(|credentials| (PROXY_AUTHORIZATION, credentials));
    for (name, value) in [(USER_AGENT, &AGENT)].into_iter().chain(credentials) {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

struct ConnectResponse {
    status: StatusCode,
    /// Whether bytes were received after the head.
    is_followed: bool,
}

/// Reads the head of a proxy's final response. A 2xx has no body, even if its fields declare one (RFC 9110 §9.3.6).
async fn read_response(io: &mut (impl AsyncRead + Unpin)) -> io::Result<ConnectResponse> {
    let mut read = Vec::new();
    loop {
        while let Some((status, size)) = parse_head(&read)? {
            if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                read.drain(..size);
            } else {
                return Ok(ConnectResponse { status, is_followed: read.len() > size });
            }
        }
        if read.len() >= MAX_HEAD_SIZE {
            // This is a limit of the gateway, so the error must not count as the proxy's fault.
            return Err(io::Error::other("its response header is larger than 16 KiB"));
        }
        let mut piece = [0; 1024];
        match io.read(&mut piece).await? {
            0 => return Err(io::Error::new(ErrorKind::UnexpectedEof, "connection closed before message completed")),
            more => read.extend_from_slice(&piece[..more]),
        }
    }
}

/// The status of a proxy's final response, and whether bytes followed its head. For fuzz targets.
///
/// # Errors
/// If the stream fails, or has no such head.
pub async fn connect_status(io: &mut (impl AsyncRead + Unpin)) -> io::Result<(StatusCode, bool)> {
    read_response(io).await.map(|ConnectResponse { status, is_followed }| (status, is_followed))
}

/// The status and the size of a response head, if it is complete.
fn parse_head(bytes: &[u8]) -> io::Result<Option<(StatusCode, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = match httparse::ParserConfig::default().parse_response(&mut response, bytes) {
        Err(httparse::Error::TooManyHeaders) => return Err(io::Error::other("its response has more than 100 fields")),
        parsed => parsed.map_err(|error| not_http(&error))?,
    };
    let (httparse::Status::Complete(size), Some(code)) = (parsed, response.code) else { return Ok(None) };
    let status = StatusCode::from_u16(code).map_err(|error| not_http(&error))?;
    Ok(Some((status, size)))
}

/// An error that counts as the proxy's fault.
fn not_http(error: &dyn Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("its response is not HTTP: {error}"))
}
