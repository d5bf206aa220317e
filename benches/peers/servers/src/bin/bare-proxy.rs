//! The limit of hyper for requests that go upstream: its HTTP/1 server and hyper-util's client with its pool, on one
//! thread. It forwards each request as it is. It checks and stores nothing, and has no timeouts.

use std::error::Error;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use peers_servers::arguments;
use tokio::net::TcpListener;
use tokio::task::LocalSet;

fn main() -> Result<(), Box<dyn Error>> {
    let [address, origin] = arguments("bare-proxy ADDRESS ORIGIN")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(&address, &origin))
}

async fn serve(address: &str, origin: &str) -> Result<(), Box<dyn Error>> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Incoming> = Client::builder(TokioExecutor::new()).build(connector);
    let origin = format!("http://{origin}").parse::<Uri>()?;
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (client, origin) = (client.clone(), origin.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            let target = target(&origin, request.uri());
            let client = client.clone();
            async move {
                *request.uri_mut() = target?;
                Ok::<_, Box<dyn Error + Send + Sync>>(client.request(request).await?)
            }
        });
        let connection = http1::Builder::new().max_buf_size(256 * 1024).serve_connection(TokioIo::new(stream), service);
        // A client may close the connection.
        tokio::task::spawn_local(connection);
    }
}

/// The path and query of a request at the origin.
fn target(origin: &Uri, uri: &Uri) -> Result<Uri, hyper::http::uri::InvalidUriParts> {
    let mut parts = origin.clone().into_parts();
    parts.path_and_query = uri.path_and_query().cloned();
    Uri::from_parts(parts)
}
