//! A connection to a host, before TLS: of our own, or through a proxy that is asked to lead there.
//!
//! hyper speaks the CONNECT. (hyper-util has a ready-made `Tunnel`, but that tells no status apart from 200 and 407,
//! and throws away what comes right behind the answer.)

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{HOST, PROXY_AUTHORIZATION, USER_AGENT};
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tower_service::Service;

use super::AGENT;
use super::error::root_cause;
use crate::egress::{Egress, Proxy, Way};
use crate::stream::BoxError;

/// As far as a proxy's answer may go. What else it says is not read.
const MAX_ANSWER_SIZE: usize = 16 * 1024;

/// Bytes to and from a host; to and from a proxy they may be encrypted.
type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Reaches hosts by the way that is set for them.
#[derive(Clone)]
pub(super) struct Reach {
    direct: HttpConnector,
    proxies: HttpsConnector<HttpConnector>,
    egress: Arc<Egress>,
}

impl Reach {
    /// With a connector for hosts, and one for proxies.
    pub(super) fn new(direct: HttpConnector, proxies: HttpsConnector<HttpConnector>, egress: Egress) -> Self {
        Self { direct, proxies, egress: Arc::new(egress) }
    }

    /// The proxy on the way to a host.
    pub(super) fn proxy_to(&self, uri: &Uri) -> Option<Proxy> {
        match self.egress.way_to(uri.authority()?, uri.scheme() != Some(&Scheme::HTTPS)) {
            Way::Through(proxy) => Some(proxy.clone()),
            Way::Direct | Way::Exempt | Way::Plaintext => None,
        }
    }
}

impl Service<Uri> for Reach {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

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
                let stream = connecting.await.map_err(|error| reason(&*error))?;
                lead(stream, &proxy, &uri).await
            };
            tunnel.await.map_err(|reason| ProxyError { proxy: proxy.to_string(), reason }.into())
        })
    }
}

/// What is wrong with a proxy, in words. It names no cause, so that nobody takes what the proxy's own TLS failed of for
/// upstream's.
#[derive(Debug, Error)]
#[error("the proxy {proxy}: {reason}")]
struct ProxyError {
    proxy: String,
    reason: String,
}

fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    root_cause(error).to_string()
}

/// Asks a proxy to lead to a host, and gives the connection back once it does.
async fn lead(stream: Stream, proxy: &Proxy, to: &Uri) -> Result<Stream, String> {
    let request = connect(proxy, to).map_err(|error| error.to_string())?;
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_ANSWER_SIZE);
    let (mut sender, connection) = builder.handshake(stream).await.map_err(|error| reason(&error))?;
    // It works beside the request, and ends with it.
    let mut driving = JoinSet::new();
    driving.spawn(connection.with_upgrades());
    let answer = sender.send_request(request).await.map_err(|error| reason(&error))?;
    match answer.status() {
        status if status.is_success() => {}
        // The words in its answer are anybody's: only what the status means is passed on.
        StatusCode::PROXY_AUTHENTICATION_REQUIRED if proxy.credentials().is_none() => {
            return Err("407 Proxy Authentication Required, and HTTPS_PROXY has no USER:PASSWORD@".to_owned());
        }
        status => return Err(format!("it answers {status}")),
    }
    let upgraded = hyper::upgrade::on(answer).await.map_err(|error| reason(&error))?;
    match upgraded.downcast::<Stream>() {
        Ok(parts) if parts.read_buf.is_empty() => Ok(parts.io),
        // In TLS the client begins.
        Ok(_) => Err("it says more than it was asked".to_owned()),
        Err(_) => Err("its connection is lost".to_owned()),
    }
}

/// The request for a tunnel. There is always a port in it (RFC 9110 §9.3.6).
fn connect(proxy: &Proxy, to: &Uri) -> Result<Request<Empty<Bytes>>, http::Error> {
    let host = to.host().unwrap_or_default();
    let authority = format!("{host}:{}", to.port_u16().unwrap_or(443)).parse::<Authority>()?;
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::CONNECT;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_str(authority.as_str())?);
    headers.insert(USER_AGENT, AGENT);
    if let Some(credentials) = proxy.credentials() {
        headers.insert(PROXY_AUTHORIZATION, credentials.clone());
    }
    *request.uri_mut() = Uri::builder().authority(authority).build()?;
    Ok(request)
}
