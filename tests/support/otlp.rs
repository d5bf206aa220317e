//! A receiver of OTLP, made of the messages and services of `opentelemetry-proto`: over HTTP, and over gRPC with tonic.

use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tonic::codegen::Service;

use super::within;

/// What the receiver does with an export.
#[derive(Clone, Copy, PartialEq)]
pub enum Reception {
    Accept,
    /// This status over HTTP, and UNAVAILABLE over gRPC.
    Refuse(StatusCode),
    /// 503 with `Retry-After` in seconds, over HTTP.
    RetryAfter(u64),
    /// So many of its spans are rejected.
    Reject(i64),
    /// No answer.
    Hang,
}

/// The text of an attribute's value.
pub fn attribute(attributes: &[KeyValue], name: &str) -> Option<String> {
    let mut named = attributes.iter().filter(|pair| pair.key == name);
    let value = named.next()?.value.clone();
    assert!(named.next().is_none(), "{name} twice");
    Some(match value {
        Some(AnyValue { value: Some(Value::StringValue(text)) }) => text,
        Some(AnyValue { value: Some(Value::IntValue(number)) }) => number.to_string(),
        other => panic!("{name}: {other:?}"),
    })
}

/// An export that has been received.
pub struct Export {
    pub path: String,
    pub headers: HeaderMap,
    pub message: Vec<u8>,
}

pub struct Collector {
    pub url: String,
    pub is_grpc: bool,
    reception: Arc<Mutex<Reception>>,
    exports: mpsc::UnboundedReceiver<Export>,
    /// All that has been received.
    pub seen: Vec<Export>,
    spans: Vec<Span>,
}

#[derive(Clone)]
struct Handler {
    reception: Arc<Mutex<Reception>>,
    exports: mpsc::UnboundedSender<Export>,
}

impl Collector {
    pub async fn http() -> Self {
        Self::start(false, None).await
    }

    pub async fn grpc() -> Self {
        Self::start(true, None).await
    }

    /// With a certificate for `localhost`.
    pub async fn with_tls(is_grpc: bool, acceptor: TlsAcceptor) -> Self {
        Self::start(is_grpc, Some(acceptor)).await
    }

    async fn start(is_grpc: bool, acceptor: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (scheme, port) = (if acceptor.is_some() { "https" } else { "http" }, listener.local_addr().unwrap().port());
        let url = format!("{scheme}://localhost:{port}");
        let (sender, exports) = mpsc::unbounded_channel();
        let reception = Arc::new(Mutex::new(Reception::Accept));
        let handler = Handler { reception: Arc::clone(&reception), exports: sender };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (handler, acceptor) = (handler.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let Some(acceptor) = acceptor else { return handler.serve(is_grpc, stream).await };
                    // A client that does not trust the certificate ends here.
                    if let Ok(stream) = acceptor.accept(stream).await {
                        handler.serve(is_grpc, stream).await;
                    }
                });
            }
        });
        Self { url, is_grpc, reception, exports, seen: Vec::new(), spans: Vec::new() }
    }

    /// Settings with this receiver, which gets spans soon.
    pub fn settings(&self, more: &str) -> String {
        let protocol = if self.is_grpc { "grpc" } else { "http/protobuf" };
        let where_to = format!("[otlp]\nendpoint = \"{}\"\nprotocol = \"{protocol}\"\n", self.url);
        format!("{where_to}batch_delay = \"5ms\"\nmetrics_interval = \"1h\"\n{more}")
    }

    /// The same, but two spans at a time, as a miss has, however long that takes.
    pub fn settings_for_pairs(&self, more: &str) -> String {
        self.settings(&format!("max_batch = 2\n{more}")).replace("5ms", "1h")
    }

    pub fn set(&self, reception: Reception) {
        *self.reception.lock().unwrap() = reception;
    }

    /// The next export of spans or metrics.
    pub async fn export(&mut self) -> &Export {
        let export = within(self.exports.recv()).await.unwrap();
        self.seen.push(export);
        self.seen.last().unwrap()
    }

    /// The next message of a signal.
    async fn export_of(&mut self, signal: &str) -> Vec<u8> {
        loop {
            let export = self.export().await;
            if export.path.ends_with(signal) {
                return export.message.clone();
            }
        }
    }

    /// The next spans, when there are so many.
    pub async fn spans(&mut self, number: usize) -> Vec<Span> {
        while self.spans.len() < number {
            let resource_spans = self.resource_spans().await;
            let spans = resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
            self.spans.extend(spans.flat_map(|scope| scope.spans));
        }
        assert_eq!(self.spans.len(), number, "{:?}", self.spans);
        std::mem::take(&mut self.spans)
    }

    pub async fn resource_spans(&mut self) -> Vec<ResourceSpans> {
        let message = self.export_of("traces").await;
        ExportTraceServiceRequest::decode(&*message).unwrap().resource_spans
    }

    /// The metrics of the next export.
    pub async fn metrics(&mut self) -> Vec<Metric> {
        let message = self.export_of("metrics").await;
        let request = ExportMetricsServiceRequest::decode(&*message).unwrap();
        let scopes = request.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
        scopes.flat_map(|scope| scope.metrics).collect()
    }
}

impl Handler {
    async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, is_grpc: bool, stream: S) {
        let stream = TokioIo::new(stream);
        if !is_grpc {
            let service = service_fn(move |request| over_http(self.clone(), request));
            let _ = http1::Builder::new().serve_connection(stream, service).await;
            return;
        }
        let service = service_fn(move |request: Request<Incoming>| {
            let handler = self.clone();
            async move {
                if request.uri().path().contains(".trace.") {
                    TraceServiceServer::new(handler).call(request).await
                } else {
                    MetricsServiceServer::new(handler).call(request).await
                }
            }
        });
        let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await;
    }

    async fn receive(&self, path: &str, headers: &HeaderMap, message: Vec<u8>) -> Reception {
        let reception = *self.reception.lock().unwrap();
        let _ = self.exports.send(Export { path: path.to_owned(), headers: headers.clone(), message });
        if reception == Reception::Hang {
            pending::<()>().await;
        }
        reception
    }
}

fn trace_response(reception: Reception) -> ExportTraceServiceResponse {
    let rejected = if let Reception::Reject(spans) = reception { spans } else { 0 };
    let partial = ExportTracePartialSuccess { rejected_spans: rejected, error_message: "too old".to_owned() };
    ExportTraceServiceResponse { partial_success: (rejected > 0).then_some(partial) }
}

async fn over_http(handler: Handler, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let reception = handler.receive(head.uri.path(), &head.headers, body.to_vec()).await;
    let mut response = Response::new(Full::from(trace_response(reception).encode_to_vec()));
    match reception {
        Reception::Refuse(status) => *response.status_mut() = status,
        Reception::RetryAfter(seconds) => {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        Reception::Accept | Reception::Reject(_) | Reception::Hang => {}
    }
    Ok(response)
}

#[tonic::async_trait]
impl TraceService for Handler {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let (metadata, _, message) = request.into_parts();
        let reception = self.receive("traces", &metadata.into_headers(), message.encode_to_vec()).await;
        match reception {
            Reception::Refuse(_) | Reception::RetryAfter(_) => Err(tonic::Status::unavailable("try again")),
            reception => Ok(tonic::Response::new(trace_response(reception))),
        }
    }
}

#[tonic::async_trait]
impl MetricsService for Handler {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        let (metadata, _, message) = request.into_parts();
        self.receive("metrics", &metadata.into_headers(), message.encode_to_vec()).await;
        Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
    }
}
