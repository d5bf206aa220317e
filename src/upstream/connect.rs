//! Opens connections to upstream: DNS, TCP, a tunnel through a proxy if one is configured, and TLS. One timeout covers
//! all of these.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tower_service::Service;

use super::fault::{Attributed, Fault};
use super::read_after_write_error::ReadAfterWriteError;
use super::resolve::{ResolveProgress, Resolver};
use super::stall_limit::StallLimit;
use super::trust::{Authorities, tls};
use super::tunnel::HostConnector;
use crate::net::{Buffers, Network};
use crate::proxy_config::ProxyConfig;
use crate::stream::BoxError;

/// A connection to an origin.
pub(super) type OriginStream = <HttpsConnector<HostConnector> as Service<Uri>>::Response;

/// Connects to http and https origins, with a timeout.
#[derive(Clone)]
pub(super) struct OriginConnector {
    inner: HttpsConnector<HostConnector>,
    /// A clone of the connector in `inner`, which does not give access to it.
    hosts: HostConnector,
    limit: Duration,
    idle: Duration,
}

impl OriginConnector {
    /// The system's certificate authorities and those in `upstream.ca_file` are trusted, for upstream and for proxies.
    /// `limit` is the connect timeout, and `idle` the idle timeout of the connections.
    pub(super) fn new(
        named: Option<Authorities<'_>>,
        (limit, idle): (Duration, Duration),
        proxy_config: ProxyConfig,
        network: &Network,
    ) -> io::Result<Self> {
        let tls = tls(named)?;
        let tcp = network.connector(Resolver::new(), limit, BUFFERS);
        // Only HTTP/1.1: one response per connection, so that one stream cannot block another one.
        let https = || HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http().enable_http1();
        let hosts = HostConnector::new(tcp.clone(), https().wrap_connector(tcp), proxy_config);
        Ok(Self { inner: https().wrap_connector(hosts.clone()), hosts, limit, idle })
    }

    /// Connects to a URI's origin, including TLS.
    pub(super) async fn connect(&self, uri: Uri) -> Result<OriginStream, BoxError> {
        let mut this = self.clone();
        poll_fn(|context| this.inner.poll_ready(context)).await?;
        this.open(uri).await
    }

    fn open(&mut self, uri: Uri) -> impl Future<Output = Result<OriginStream, BoxError>> + Send + use<> {
        let through = self.hosts.proxy_to(&uri).map(|proxy| format!(" through the proxy {proxy}")).unwrap_or_default();
        with_timeout(self.limit, through, self.inner.call(uri))
    }
}

impl Service<Uri> for OriginConnector {
    type Response = SmallReads<ReadAfterWriteError<StallLimit<OriginStream>>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, idle) = (self.open(uri), self.idle);
        Box::pin(async move {
            let mut stream = connecting.await?;
            if let MaybeHttpsStream::Https(tls) = &mut stream {
                tls.inner_mut().get_mut().1.set_buffer_limit(Some(MAX_UNSENT));
            }
            Ok(SmallReads(ReadAfterWriteError::new(StallLimit::new(stream, idle))))
        })
    }
}

/// The kernel's socket buffers of a connection to upstream. By default the kernel buffers megabytes of a response that
/// the client does not read. With 64 KiB, the throughput is 2 MB/s at a round-trip time of 30 ms.
const BUFFERS: Buffers = Buffers { send: 64 * 1024, receive: 64 * 1024 };

/// How many bytes rustls encrypts and buffers while upstream does not read: one record (RFC 8446 §5.1). The default is
/// 64 KiB.
const MAX_UNSENT: usize = 16 * 1024;

/// How many bytes are read at once. hyper's buffer starts with 8 KiB and grows whenever one read fills it.
const MAX_READ: usize = 8 * 1024 - 1;

/// A connection that limits the size of reads. hyper's buffer becomes as large as the largest read, and a relayed
/// response holds two more such pieces for a slow reader.
pub(super) struct SmallReads<S>(S);

impl<S: Read + Unpin> Read for SmallReads<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() <= MAX_READ {
            return Pin::new(&mut self.0).poll_read(context, buffer);
        }
        // Not filled with zeros: most reads find that nothing has arrived.
        let mut space = [MaybeUninit::uninit(); MAX_READ];
        let mut piece = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.0).poll_read(context, piece.unfilled()))?;
        buffer.put_slice(piece.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S: Write + Unpin> Write for SmallReads<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl<S: Connection> Connection for SmallReads<S> {
    fn connected(&self) -> Connected {
        self.0.connected()
    }
}

/// Connects within the limit. The error says whether the host name had been resolved.
async fn with_timeout<T>(
    limit: Duration,
    through: String,
    connecting: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    let progress = ResolveProgress::default();
    tokio::time::timeout(limit, progress.of(connecting)).await.unwrap_or_else(|_| {
        let (fault, why) = if progress.is_resolving() {
            (Fault::Unreachable, ": the host name was not resolved")
        } else {
            (Fault::Outside, "")
        };
        let message = format!("not connected{through} within {limit:?} (upstream.connect_timeout){why}");
        Err(Attributed { message, fault }.into())
    })
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use hyper_util::client::legacy::connect::dns::Name;

    use super::*;

    /// A resolver that never answers, or answers immediately.
    #[derive(Clone)]
    struct Stub {
        hangs: bool,
    }

    impl Service<Name> for Stub {
        type Response = ();
        type Error = io::Error;
        type Future = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Name) -> Self::Future {
            if self.hangs { Box::pin(pending()) } else { Box::pin(std::future::ready(Ok(()))) }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connect_timeout_tells_whether_the_name_was_resolved() {
        let expected = "not connected through a proxy within 3s (upstream.connect_timeout)";
        for (hangs, fault, why) in
            [(true, Fault::Unreachable, ": the host name was not resolved"), (false, Fault::Outside, "")]
        {
            let connecting = async {
                Resolver::with(Stub { hangs }).call("upstream.example".parse()?).await?;
                pending().await
            };
            let limited = with_timeout::<()>(Duration::from_secs(3), " through a proxy".to_owned(), connecting);
            let error = limited.await.unwrap_err().downcast::<Attributed>().unwrap();
            assert_eq!((error.fault, error.message.as_str()), (fault, &*format!("{expected}{why}")));
        }
    }

    #[tokio::test]
    async fn a_connection_that_resolves_no_name_is_not_resolving() {
        let progress = ResolveProgress::default();
        progress.of(async { assert!(!progress.is_resolving()) }).await;
    }
}
