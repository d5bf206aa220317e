//! Sends one request to a gateway through a pipe, and parses the bytes of the response with its framing.

use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use workspace_gateway::testing::gateway::Gateway;

/// A response as it was framed.
pub struct WireResponse {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body ended as its framing says.
    pub is_complete: bool,
}

impl std::fmt::Debug for WireResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = String::from_utf8_lossy(&self.body[..self.body.len().min(200)]);
        write!(f, "{} {:?} {body} (complete: {})", self.status, self.headers, self.is_complete)
    }
}

impl WireResponse {
    /// Fails if the header occurs more than once.
    pub fn header(&self, name: &str) -> Result<Option<&str>, String> {
        let mut values = self.headers.iter().filter(|(given, _)| given == name).map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => Err(format!("{name} twice: {self:?}")),
        }
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).into_owned();
        let end = bytes.windows(4).position(|end| end == b"\r\n\r\n").ok_or_else(|| format!("no head: {}", shown()))?;
        let (head, body) = (String::from_utf8_lossy(&bytes[..end]).into_owned(), &bytes[end + 4..]);
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| format!("no status: {}", shown()))?;
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut response = Self { status, headers, body: body.to_vec(), is_complete: true };
        let length = response.header("content-length")?.map(|length| length.parse::<usize>());
        match (length, response.header("transfer-encoding")?) {
            _ if matches!(status, 204 | 304) && body.is_empty() => {}
            (Some(Ok(length)), None) if body.len() <= length => response.is_complete = body.len() == length,
            (None, Some("chunked")) => (response.body, response.is_complete) = decode_chunks(body),
            _ => return Err(format!("wrongly framed: {}", shown())),
        }
        Ok(response)
    }
}

/// The decoded bytes, and whether the last chunk was received with nothing after it.
fn decode_chunks(mut chunks: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    let next = |chunks: &[u8]| {
        let end = chunks.windows(2).position(|end| end == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&chunks[..end]).ok()?, 16).ok()?;
        (chunks.len() >= end + 2 + size + 2).then_some((end + 2, size))
    };
    while let Some((begin, size)) = next(chunks) {
        body.extend_from_slice(&chunks[begin..begin + size]);
        chunks = &chunks[begin + size + 2..];
        if size == 0 {
            return (body, chunks.is_empty());
        }
    }
    (body, false)
}

/// Sends the only request of a connection, and reads the response until the connection is closed.
pub async fn exchange(gateway: &Arc<Gateway>, request: &str) -> Result<WireResponse, String> {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let connection = Arc::new(gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into()));
    let gateway = Arc::clone(gateway);
    let service = service_fn(move |request| {
        let (gateway, connection) = (Arc::clone(&gateway), Arc::clone(&connection));
        async move { Ok::<_, std::convert::Infallible>(gateway.handle(request, &connection).await) }
    });
    // The connection breaks where upstream's does.
    let serving = async { drop(http1::Builder::new().serve_connection(TokioIo::new(server), service).await) };
    let mut bytes = Vec::new();
    let exchange = async {
        client.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        client.read_to_end(&mut bytes).await.map_err(|error| error.to_string())
    };
    tokio::join!(serving, exchange).1?;
    WireResponse::read(&bytes)
}
