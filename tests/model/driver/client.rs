//! A client: it sends a request to a gateway and reads the response.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::response;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::fast_path::{Responder, ResponderState};
use workspace_gateway::testing::gateway::{Connection, Gateway};

use super::super::domain::{CacheRequest, KEYS, Ms};
use super::super::scripted_upstream::{X_REQUEST_NUMBER, via_header};
use super::ClientResponse;

/// A connection that can take the next request.
const FREE: ResponderState = ResponderState { is_free: true, is_closing: false };

/// Sends a request in a task of its own. `start` is when the sequence began, and `arrived` is now, by timers. `deliver`
/// gets the response.
pub fn send(
    (gateway, connection): (&Arc<Gateway>, &Arc<Connection>),
    request: CacheRequest,
    start: Instant,
    arrived: Ms,
    deliver: impl FnOnce(ClientResponse) + Send + 'static,
) -> AbortHandle {
    let (gateway, connection) = (Arc::clone(gateway), Arc::clone(connection));
    let method = match request.id % 3 {
        _ if !request.is_unsafe => Method::GET,
        0 => Method::POST,
        1 => Method::DELETE,
        _ => Method::from_bytes(b"PURGE").unwrap(),
    };
    let http_request = Request::builder()
        .method(method)
        .uri(KEYS[request.key].1)
        .version(request.spelling.version())
        .header("host", "gateway.test")
        .header(X_REQUEST_NUMBER, request.id);
    let mut http_request = http_request.body(Empty::<Bytes>::new()).unwrap();
    for (name, value) in request.spelling.fields(request.caller) {
        http_request.headers_mut().append(name, value.parse().unwrap());
    }
    http_request.headers_mut().extend(via_header(request.is_direct));
    for (name, value) in request.headers() {
        http_request.headers_mut().insert(name, value.parse().unwrap());
    }
    // The header fields on the wire. The number belongs to the test, not to the client.
    let mut headers = http_request.headers().clone();
    headers.remove(X_REQUEST_NUMBER);
    let lines = headers.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap()));
    let (uri, version) = (http_request.uri(), http_request.version());
    let bytes = format!("GET {uri} {version:?}\r\n{}\r\n", lines.collect::<String>());
    let client = tokio::spawn(async move {
        let mut responder = Responder::new(Arc::clone(&gateway), Arc::clone(&connection));
        let is_hit = !request.is_unsafe && responder.take(bytes.as_bytes(), FREE);
        let (head, body) = if is_hit {
            let mut written = Vec::new();
            poll_fn(|context| responder.poll_write(&mut written, context)).await.unwrap();
            let end = written.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
            (read_head(&written[..end]), Bytes::copy_from_slice(&written[end + 4..]))
        } else {
            let (head, body) = gateway.handle(http_request, &connection).await.into_parts();
            (head, body.collect().await.unwrap().to_bytes())
        };
        let at = milliseconds(Clock::System.timer_now() - start);
        let text = |name| head.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        deliver(ClientResponse {
            request,
            waited: at - arrived,
            at,
            status: head.status.as_u16(),
            body: String::from_utf8(body.to_vec()).unwrap(),
            retry_after: text("retry-after").parse().ok(),
            cache_status: text("cache-status"),
            has_cookie: !text("set-cookie").is_empty(),
        });
    });
    client.abort_handle()
}

pub fn milliseconds(span: Duration) -> Ms {
    Ms::try_from(span.as_millis()).unwrap()
}

/// The head of a response that was written as text.
fn read_head(text: &[u8]) -> response::Parts {
    let mut lines = std::str::from_utf8(text).unwrap().lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let fields = lines.filter_map(|line| line.split_once(": "));
    let response =
        fields.fold(Response::builder().status(status), |response, (name, value)| response.header(name, value));
    response.body(()).unwrap().into_parts().0
}
