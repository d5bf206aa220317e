//! Opens connections to upstream and to proxies, for hyper.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::GaiResolver;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use super::{Buffers, SimulatedNetwork, Stream, simulated};
use crate::stream::BoxError;

/// The system's resolver: `getaddrinfo`.
pub(crate) type SystemResolver = GaiResolver;

/// Resolves a host name and connects to it.
#[derive(Clone)]
pub(crate) enum Connector<R> {
    System(HttpConnector<R>),
    Simulated(Arc<dyn SimulatedNetwork>),
}

impl<R> Connector<R> {
    pub(super) fn system(resolver: R, limit: Duration, buffers: Buffers) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(resolver);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_recv_buffer_size(Some(buffers.receive));
        tcp.set_send_buffer_size(Some(buffers.send));
        tcp.set_connect_timeout(Some(limit));
        Self::System(tcp)
    }
}

impl<R> Service<Uri> for Connector<R>
where
    HttpConnector<R>: Service<Uri, Response = TokioIo<TcpStream>>,
    <HttpConnector<R> as Service<Uri>>::Error: Into<BoxError>,
    <HttpConnector<R> as Service<Uri>>::Future: Send + 'static,
{
    type Response = TokioIo<Stream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Self::System(tcp) => tcp.poll_ready(context).map_err(Into::into),
            Self::Simulated(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        match self {
            Self::System(tcp) => {
                let connecting = tcp.call(uri);
                Box::pin(async move {
                    let stream = connecting.await.map_err(Into::into)?.into_inner();
                    Ok(TokioIo::new(Stream::System(stream)))
                })
            }
            Self::Simulated(network) => {
                let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
                let to = simulated::address(uri.host().unwrap_or_default(), port);
                let connecting = to.map(|to| network.connect(to));
                Box::pin(async move { Ok(TokioIo::new(Stream::Simulated(connecting?.await?))) })
            }
        }
    }
}
