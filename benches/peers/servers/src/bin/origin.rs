//! The origin of all proxies. It answers any request with a product list of a given size that is fresh for an hour and
//! has an entity tag, after the milliseconds in the query's `delay`. `/calls` returns the number of all other requests.

use std::cell::Cell;
use std::convert::Infallible;
use std::error::Error;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use peers_servers::arguments;
use tokio::net::TcpListener;
use tokio::task::LocalSet;

fn main() -> Result<(), Box<dyn Error>> {
    let [address, size] = arguments("origin ADDRESS BODY_BYTES")?;
    let list = Bytes::from(product_list(size.parse()?)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(&address, list))
}

async fn serve(address: &str, list: Bytes) -> Result<(), Box<dyn Error>> {
    let calls = Rc::new(Cell::new(0_u64));
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (calls, list) = (Rc::clone(&calls), list.clone());
        let service = service_fn(move |request| answer(request, Rc::clone(&calls), list.clone()));
        // A proxy may close the connection.
        tokio::task::spawn_local(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(
    request: Request<Incoming>,
    calls: Rc<Cell<u64>>,
    list: Bytes,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() == "/calls" {
        return Ok(Response::new(Full::from(calls.get().to_string())));
    }
    calls.set(calls.get() + 1);
    if let Some(delay) = request.uri().query().and_then(delay) {
        tokio::time::sleep(delay).await;
    }
    let mut response = Response::new(Full::new(list));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("max-age=3600"));
    response.headers_mut().insert(ETAG, HeaderValue::from_static("\"0123456789abcdef\""));
    Ok(response)
}

fn delay(query: &str) -> Option<Duration> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("delay="))?;
    value.parse().map(Duration::from_millis).ok()
}

/// A product list of exactly this size.
fn product_list(size: usize) -> Result<String, String> {
    let (head, tail) =
        (r#"{"total_count":1,"products":[{"product_id":"workspace.x86.2c4g","descriptions":""#, r#""}]}"#);
    let padding = size.checked_sub(head.len() + tail.len()).ok_or("too small for a product list")?;
    Ok(format!("{head}{}{tail}", "p".repeat(padding)))
}
