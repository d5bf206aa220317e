//! A bare hyper server for comparison: the cost of connections without a proxy. It runs in a process of its own, which
//! is this bench started with a flag.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;

use crate::upstream::HANG;

/// The flag that starts it.
pub(crate) const FLAG: &str = "--bare-hyper";

/// Serves until the process is killed. Its first line has the address.
pub(crate) fn serve() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        eprintln!("proxy={0} metrics={0}", listener.local_addr().expect("an address"));
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    });
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().query().is_some_and(|query| query.contains(HANG)) {
        return std::future::pending().await;
    }
    Ok(Response::new(Full::new(Bytes::from_static(&[b'x'; 1024]))))
}
