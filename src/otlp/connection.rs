//! One export: a POST over HTTP/1.1, or a unary call of gRPC, which is one over HTTP/2 with trailers
//! (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER, TE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::protobuf::{find_bytes, find_number};
use crate::config::otlp::{OtlpProtocol, OtlpUrl};
use crate::net::Network;
use crate::telemetry::outcome::ExportFault;

/// A longer response is not read. A receiver answers with a few bytes.
const MAX_RESPONSE: usize = 64 * 1024;

/// A longer text of a receiver is cut.
const MAX_TEXT: usize = 200;

const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("OTel-OTLP-Exporter-workspace-gateway/", env!("CARGO_PKG_VERSION")));

/// Why an export has failed.
#[derive(Debug)]
pub(super) struct ExportError {
    pub(super) fault: ExportFault,
    pub(super) details: String,
    /// The receiver asks to wait this long.
    pub(super) retry_after: Option<Duration>,
}

impl ExportError {
    fn new(fault: ExportFault, details: impl Display) -> Self {
        Self { fault, details: details.to_string(), retry_after: None }
    }

    fn unreachable(error: impl Display) -> Self {
        Self::new(ExportFault::Unreachable, error)
    }
}

/// The receiver of one kind of data.
pub(super) struct Receiver {
    network: Network,
    url: OtlpUrl,
    protocol: OtlpProtocol,
    path: String,
    headers: HeaderMap,
    limit: Duration,
    tls: Option<Arc<ClientConfig>>,
    connection: Option<Connection>,
}

/// An open connection. Its driver ends with it.
struct Connection {
    sender: Sender,
    driver: AbortHandle,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Receiver {
    /// Does not connect. `method` is the method of gRPC.
    pub(super) fn new(
        network: Network,
        url: OtlpUrl,
        (protocol, method): (OtlpProtocol, &str),
        headers: HeaderMap,
        limit: Duration,
        tls: Option<Arc<ClientConfig>>,
    ) -> Self {
        let path = match protocol {
            OtlpProtocol::Http if url.path.is_empty() => "/".to_owned(),
            OtlpProtocol::Http => url.path.clone(),
            OtlpProtocol::Grpc => method.to_owned(),
        };
        Self { network, url, protocol, path, headers, limit, tls, connection: None }
    }

    /// Exports a message, and returns how many items of it the receiver has rejected.
    pub(super) async fn export(&mut self, message: &Bytes) -> Result<u64, ExportError> {
        let limit = self.limit;
        let result = timeout(limit, self.exchange(message)).await;
        let result = result.unwrap_or_else(|_| {
            // Without a connection nothing was sent.
            let (fault, what) = match self.connection {
                Some(_) => (ExportFault::Timeout, "answer"),
                None => (ExportFault::Unreachable, "connection"),
            };
            Err(ExportError::new(fault, format!("no {what} within {limit:?} (otlp.timeout)")))
        });
        if result.as_ref().is_err_and(|error| matches!(error.fault, ExportFault::Unreachable | ExportFault::Timeout)) {
            self.connection = None;
        }
        result
    }

    async fn exchange(&mut self, message: &Bytes) -> Result<u64, ExportError> {
        let request = self.request(message)?;
        let response = match &mut self.connection {
            // The receiver may have closed it meanwhile. An export can be repeated without harm.
            Some(connection) => match connection.sender.send(request.clone()).await {
                Ok(response) => response,
                Err(_) => {
                    self.connection = None;
                    self.connect().await?.send(request).await?
                }
            },
            None => self.connect().await?.send(request).await?,
        };
        match self.protocol {
            OtlpProtocol::Http => read_http(response, self.headers.is_empty()).await,
            OtlpProtocol::Grpc => read_grpc(response, self.headers.is_empty()).await,
        }
    }

    fn request(&self, message: &Bytes) -> Result<Request<Full<Bytes>>, ExportError> {
        let refused = |error: http::Error| ExportError::new(ExportFault::Refused, error);
        let is_grpc = self.protocol == OtlpProtocol::Grpc;
        let authority = self.url.authority.as_str();
        let builder = Request::builder().method(Method::POST);
        let mut request = if is_grpc {
            let scheme = if self.url.is_tls { "https" } else { "http" };
            // A prefix: not compressed, and the length.
            let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
            let body = [&[0], &length[..], message].concat();
            let builder = builder.uri(format!("{scheme}://{authority}{}", self.path)).header(TE, "trailers");
            builder.header(CONTENT_TYPE, "application/grpc").body(Full::from(body)).map_err(refused)?
        } else {
            let builder = builder.uri(&self.path).header(HOST, authority);
            let body = Full::from(message.clone());
            builder.header(CONTENT_TYPE, "application/x-protobuf").body(body).map_err(refused)?
        };
        request.headers_mut().insert(USER_AGENT, AGENT);
        request.headers_mut().extend(self.headers.clone());
        Ok(request)
    }

    async fn connect(&mut self) -> Result<&mut Sender, ExportError> {
        let tcp = self.network.dial(self.url.host(), self.url.port()).await.map_err(ExportError::unreachable)?;
        let connection = match self.tls.as_ref().filter(|_| self.url.is_tls) {
            Some(tls) => {
                let name = ServerName::try_from(self.url.host().to_owned()).map_err(ExportError::unreachable)?;
                let stream = TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await;
                Connection::open(stream.map_err(ExportError::unreachable)?, self.protocol).await?
            }
            None => Connection::open(tcp, self.protocol).await?,
        };
        Ok(&mut self.connection.insert(connection).sender)
    }
}

impl Connection {
    async fn open<S>(stream: S, protocol: OtlpProtocol) -> Result<Self, ExportError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = TokioIo::new(stream);
        let (sender, driver) = match protocol {
            OtlpProtocol::Http => {
                let (sender, driver) = http1::handshake(stream).await.map_err(ExportError::unreachable)?;
                (Sender::Http1(sender), tokio::spawn(driver))
            }
            OtlpProtocol::Grpc => {
                let handshake = http2::handshake(TokioExecutor::new(), stream);
                let (sender, driver) = handshake.await.map_err(ExportError::unreachable)?;
                (Sender::Http2(sender), tokio::spawn(driver))
            }
        };
        Ok(Self { sender, driver: driver.abort_handle() })
    }
}

impl Sender {
    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ExportError> {
        let sending = async {
            match self {
                Self::Http1(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
                Self::Http2(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
            }
        };
        sending.await.map_err(ExportError::unreachable)
    }
}

/// The body and the trailers of a response.
async fn read(body: Incoming) -> Result<(Bytes, Option<HeaderMap>), ExportError> {
    let collected = Limited::new(body, MAX_RESPONSE).collect().await.map_err(ExportError::unreachable)?;
    let trailers = collected.trailers().cloned();
    Ok((collected.to_bytes(), trailers))
}

/// `shows_text`: whether an error may have the receiver's text. It may repeat the headers of the export, which may be
/// credentials.
async fn read_http(response: Response<Incoming>, shows_text: bool) -> Result<u64, ExportError> {
    let (head, body) = response.into_parts();
    let body = read(body).await;
    if head.status.is_success() {
        // The receiver has accepted the export, whatever else it says.
        return Ok(body.map_or(0, |(body, _)| rejected(&body)));
    }
    let (body, _) = body?;
    let fault = match head.status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => ExportFault::Busy,
        _ => ExportFault::Refused,
    };
    // The body of an error is a `Status` with a message.
    let text = find_bytes(&body, 2).filter(|_| shows_text).map(|text| format!(": {}", shown(text))).unwrap_or_default();
    let seconds = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let retry_after = seconds.map(Duration::from_secs);
    Err(ExportError { fault, details: format!("{}{text}", head.status), retry_after })
}

/// The codes of gRPC.
const OK: &str = "0";
/// CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE and DATA_LOSS can be repeated (OTLP 1).
const BUSY: [&str; 6] = ["1", "4", "10", "11", "14", "15"];

async fn read_grpc(response: Response<Incoming>, shows_text: bool) -> Result<u64, ExportError> {
    let (head, body) = response.into_parts();
    let (body, trailers) = read(body).await?;
    if head.status != StatusCode::OK {
        let is_busy = head.status.is_server_error() || head.status == StatusCode::TOO_MANY_REQUESTS;
        let fault = if is_busy { ExportFault::Busy } else { ExportFault::Refused };
        return Err(ExportError::new(fault, format!("{} in place of gRPC", head.status)));
    }
    // An error without a message has its status in the head.
    let field =
        |name: &str| trailers.as_ref().and_then(|trailers| trailers.get(name)).or_else(|| head.headers.get(name));
    let code = field("grpc-status").and_then(|code| code.to_str().ok()).unwrap_or("2");
    if code == OK {
        return Ok(rejected(body.get(5..).unwrap_or_default()));
    }
    let text = field("grpc-message")
        .filter(|_| shows_text)
        .map(|text| format!(": {}", shown(text.as_bytes())))
        .unwrap_or_default();
    let fault = if BUSY.contains(&code) { ExportFault::Busy } else { ExportFault::Refused };
    Err(ExportError::new(fault, format!("gRPC status {}{text}", shown(code.as_bytes()))))
}

/// The number in the `partial_success` of a response.
fn rejected(response: &[u8]) -> u64 {
    find_bytes(response, 1).and_then(|partial| find_number(partial, 1)).unwrap_or_default()
}

/// A text of the receiver, for the log.
fn shown(text: &[u8]) -> String {
    text.iter().take(MAX_TEXT).flat_map(|byte| byte.escape_ascii()).map(char::from).collect()
}
