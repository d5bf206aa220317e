//! A connection to a host, before TLS: of our own, or through a proxy that is asked to lead there.
//!
//! The CONNECT is written and its answer read here: hyper takes only a 200 for the beginning of a tunnel, and every 2xx is
//! one (RFC 9110 §9.3.6). (hyper-util has a ready-made `Tunnel`, but that tells no status apart from 200 and 407, and throws
//! away what comes right behind the answer.)

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
use super::hint::explained;
use super::resolve::Resolver;
use crate::net::{self, Connector};
use crate::proxy_config::{Proxy, ProxyConfig, ProxyRoute};
use crate::stream::BoxError;

/// As far as a proxy's answer may go, in bytes. What else it says is not read.
const MAX_ANSWER_SIZE: usize = 16 * 1024;

/// How many fields a proxy's answer may have: as many as hyper allows by itself.
const MAX_FIELDS: usize = 100;

/// Bytes to and from a host; to and from a proxy they may be encrypted.
type TunnelStream = MaybeHttpsStream<net::Stream>;

/// Reaches hosts by the way that is set for them.
#[derive(Clone)]
pub(super) struct HostConnector {
    direct: Connector<Resolver>,
    proxies: HttpsConnector<Connector<Resolver>>,
    proxy_config: Arc<ProxyConfig>,
}

impl HostConnector {
    /// With a connector for hosts, and one for proxies.
    pub(super) fn new(
        direct: Connector<Resolver>,
        proxies: HttpsConnector<Connector<Resolver>>,
        proxy_config: ProxyConfig,
    ) -> Self {
        Self { direct, proxies, proxy_config: Arc::new(proxy_config) }
    }

    /// The proxy on the way to a host.
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
        self.direct.poll_ready(context).map_err(BoxError::from)
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
            // It names no cause, so that nobody takes what the proxy's own TLS failed of for upstream's.
            tunnel.await.map_err(|Attributed { words, fault }| {
                Attributed { words: format!("the proxy {proxy}: {words}"), fault }.into()
            })
        })
    }
}

/// What is wrong with a proxy, in words, and whose fault that is.
fn failure(error: &(dyn std::error::Error + 'static), stage: CallStage) -> Attributed {
    Attributed { words: explained(error), fault: Fault::of(error, stage) }
}

/// Asks a proxy to lead to a host, and gives the connection back once it does.
async fn connect_tunnel(mut stream: TunnelStream, proxy: &Proxy, to: &Uri) -> Result<TunnelStream, Attributed> {
    let because = |words: String, fault| Err(Attributed { words, fault });
    let mut io = TokioIo::new(&mut stream);
    let exchange = async {
        io.write_all(&connect(proxy, to)).await?;
        io.flush().await?;
        answer(&mut io).await
    };
    let answer = exchange.await.map_err(|error| failure(&error, CallStage::Exchanging))?;
    match answer.status {
        status if status.is_success() => {}
        // The words in its answer are anybody's: only what the status means is passed on.
        StatusCode::PROXY_AUTHENTICATION_REQUIRED if proxy.credentials().is_none() => {
            let words = "407 Proxy Authentication Required, and HTTPS_PROXY has no USER:PASSWORD@";
            return because(words.to_owned(), Fault::Local);
        }
        // It can't reach upstream either.
        status if status.is_server_error() => return because(format!("it answers {status}"), Fault::Outside),
        // It does not let the gateway through.
        status => return because(format!("it answers {status}"), Fault::Local),
    }
    if answer.is_followed {
        // In TLS the client begins.
        return because("it says more than it was asked".to_owned(), Fault::Outside);
    }
    Ok(stream)
}

/// The request for a tunnel. There is always a port in it (RFC 9110 §9.3.6).
fn connect(proxy: &Proxy, to: &Uri) -> Vec<u8> {
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

/// What a proxy has answered.
struct ConnectResponse {
    status: StatusCode,
    /// Whether more came with the head.
    is_followed: bool,
}

/// Reads the head of a proxy's final answer. Whatever its fields say, a 2xx has no body (RFC 9110 §9.3.6).
async fn answer(io: &mut (impl AsyncRead + Unpin)) -> io::Result<ConnectResponse> {
    let mut read = Vec::new();
    loop {
        while let Some((status, size)) = head(&read)? {
            if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                read.drain(..size);
            } else {
                return Ok(ConnectResponse { status, is_followed: read.len() > size });
            }
        }
        if read.len() >= MAX_ANSWER_SIZE {
            // A limit of ours, and no fault of the proxy's.
            return Err(io::Error::other("its answer has a head of more than 16 KiB"));
        }
        let mut piece = [0; 1024];
        match io.read(&mut piece).await? {
            0 => return Err(io::Error::new(ErrorKind::UnexpectedEof, "connection closed before message completed")),
            more => read.extend_from_slice(&piece[..more]),
        }
    }
}

/// The status and the size of a response's head, if it is whole.
fn head(bytes: &[u8]) -> io::Result<Option<(StatusCode, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = match httparse::ParserConfig::default().parse_response(&mut response, bytes) {
        Err(httparse::Error::TooManyHeaders) => return Err(io::Error::other("its answer has more than 100 fields")),
        parsed => parsed.map_err(|error| no_http(&error))?,
    };
    let (httparse::Status::Complete(size), Some(code)) = (parsed, response.code) else { return Ok(None) };
    let status = StatusCode::from_u16(code).map_err(|error| no_http(&error))?;
    Ok(Some((status, size)))
}

/// The proxy's fault.
fn no_http(error: &dyn Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("its answer is no HTTP: {error}"))
}
