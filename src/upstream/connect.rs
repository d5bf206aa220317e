//! Connecting: DNS, TCP, a proxy's tunnel if it takes one, and TLS, all within one limit.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
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
use crate::net::{self, Buffers};
use crate::proxy_config::ProxyConfig;
use crate::stream::BoxError;

/// A connection to an origin.
pub(super) type OriginStream = <HttpsConnector<HostConnector> as Service<Uri>>::Response;

/// Connects to http and https origins, giving up after a while.
#[derive(Clone)]
pub(super) struct OriginConnector {
    inner: HttpsConnector<HostConnector>,
    /// The same that `inner` goes by, which keeps it to itself.
    reach: HostConnector,
    limit: Duration,
    /// For a connection on which nothing moves.
    idle: Duration,
}

impl OriginConnector {
    /// Trusts the system's authorities and those that are named, proxies' certificates included.
    pub(super) fn new(
        named: Option<Authorities<'_>>,
        (limit, idle): (Duration, Duration),
        proxy_config: ProxyConfig,
    ) -> io::Result<Self> {
        let tls = tls(named)?;
        let tcp = net::connector(Resolver::new(), limit, BUFFERS);
        // HTTP/1 only: one answer, one connection, nothing another's stream could hold up.
        let https = || HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http().enable_http1();
        let reach = HostConnector::new(tcp.clone(), https().wrap_connector(tcp), proxy_config);
        Ok(Self { inner: https().wrap_connector(reach.clone()), reach, limit, idle })
    }

    /// Connects to a URI's origin, TLS included.
    pub(super) async fn connect(&self, uri: Uri) -> Result<OriginStream, BoxError> {
        let mut this = self.clone();
        poll_fn(|context| this.inner.poll_ready(context)).await?;
        this.begin(uri).await
    }

    fn begin(&mut self, uri: Uri) -> impl Future<Output = Result<OriginStream, BoxError>> + Send + use<> {
        let through = self.reach.proxy_to(&uri).map(|proxy| format!(" through the proxy {proxy}")).unwrap_or_default();
        within(self.limit, through, self.inner.call(uri))
    }
}

impl Service<Uri> for OriginConnector {
    type Response = InPieces<ReadAfterWriteError<StallLimit<OriginStream>>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, idle) = (self.begin(uri), self.idle);
        Box::pin(async move {
            let mut reached = connecting.await?;
            if let MaybeHttpsStream::Https(tls) = &mut reached {
                tls.inner_mut().get_mut().1.set_buffer_limit(Some(UNSENT));
            }
            Ok(InPieces(ReadAfterWriteError::new(StallLimit::new(reached, idle))))
        })
    }
}

/// The kernel's buffers of a connection to upstream. Left to itself it holds megabytes of a response that a client does not
/// read. With 64 KiB, 2 MB/s pass at a round trip of 30 ms.
const BUFFERS: Buffers = Buffers { send: 64 * 1024, receive: 64 * 1024 };

/// How much rustls encrypts while upstream does not read, in bytes: one record (RFC 8446 §5.1). Its default is 64 KiB.
const UNSENT: usize = 16 * 1024;

/// How much is read at once, in bytes. hyper's buffer has 8 KiB, and grows whenever one read fills it.
const PIECE: usize = 8 * 1024 - 1;

/// A connection that is read in small pieces. hyper has a buffer of the size of the largest piece, and a relayed response
/// has two more pieces for a client that reads slowly.
pub(super) struct InPieces<S>(S);

impl<S: Read + Unpin> Read for InPieces<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() <= PIECE {
            return Pin::new(&mut self.0).poll_read(context, buffer);
        }
        let mut space = [0; PIECE];
        let mut piece = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut self.0).poll_read(context, piece.unfilled()))?;
        buffer.put_slice(piece.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S: Write + Unpin> Write for InPieces<S> {
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

impl<S: Connection> Connection for InPieces<S> {
    fn connected(&self) -> Connected {
        self.0.connected()
    }
}

/// Connects within the limit, or says how far it has come.
async fn within<T>(
    limit: Duration,
    through: String,
    connecting: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    let progress = ResolveProgress::default();
    tokio::time::timeout(limit, progress.of(connecting)).await.unwrap_or_else(|_| {
        let (fault, why) = if progress.is_resolving() {
            (Fault::Unreachable, ": the name is still being resolved")
        } else {
            (Fault::Outside, "")
        };
        let words = format!("not connected{through} within {limit:?} (upstream.connect_timeout){why}");
        Err(Attributed { words, fault }.into())
    })
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use hyper_util::client::legacy::connect::dns::Name;

    use super::*;

    /// A resolver that takes for ever, or none at all.
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
        let said = "not connected through a proxy within 3s (upstream.connect_timeout)";
        for (hangs, fault, why) in
            [(true, Fault::Unreachable, ": the name is still being resolved"), (false, Fault::Outside, "")]
        {
            let connecting = async {
                Resolver::by(Stub { hangs }).call("upstream.example".parse()?).await?;
                pending().await
            };
            let limited = within::<()>(Duration::from_secs(3), " through a proxy".to_owned(), connecting);
            let error = limited.await.unwrap_err().downcast::<Attributed>().unwrap();
            assert_eq!((error.fault, error.words.as_str()), (fault, &*format!("{said}{why}")));
        }
    }

    #[tokio::test]
    async fn who_need_not_resolve_a_name_is_not_resolving() {
        let progress = ResolveProgress::default();
        progress.of(async { assert!(!progress.is_resolving()) }).await;
    }
}
