//! Both upstream services, in this process. They accept every token.
//!
//! - product list: about `offset` bytes; with `os_type=hang` there is no response
//! - `…/stream`: a body of 256 MiB; `…/hang`: no response, and the body is not read; any other path: a short 404

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

const STREAM: usize = 256 << 20;
/// A query with this is never answered.
pub(crate) const HANG: &str = "os_type=hang";

/// A list of at least this many bytes is large.
const LARGE_SIZE: usize = 64 * 1024;
const ERROR: &str = r#"{"error_code":"APIGW.0101","error_msg":"The API does not exist or has not been published in the environment","request_id":"5d2fc7b35a32a2ec7e2a4de7b5b0b8d7"}"#;

pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
}

impl Upstream {
    /// With a delay before each response.
    pub(crate) async fn start(delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        // On its own thread, so that the loads do not delay it.
        std::thread::spawn(move || {
            let listener = listener.into_std().expect("a socket");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a socket");
                loop {
                    // It may fail for a moment, if no descriptor is free.
                    match listener.accept().await {
                        Ok((stream, _)) => drop(tokio::spawn(serve(stream, delay))),
                        Err(_) => sleep(Duration::from_millis(10)).await,
                    }
                }
            });
        });
        Self { address }
    }
}

async fn serve(stream: TcpStream, delay: Duration) {
    let _ = stream.set_nodelay(true);
    let (reading, mut writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    while let Some(path) = request(&mut reading).await {
        sleep(delay).await;
        if answer(&path, &mut writing).await.is_none() {
            return;
        }
    }
}

/// Reads a request with its body, and returns the path.
async fn request(reading: &mut BufReader<OwnedReadHalf>) -> Option<String> {
    let (mut path, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        if reading.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        if path.is_none() {
            path = line.split(' ').nth(1).map(str::to_owned);
        } else if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.trim().parse().ok()?;
        }
    }
    if path.as_deref().is_some_and(|path| path.ends_with("/hang")) {
        return path;
    }
    tokio::io::copy(&mut reading.take(length), &mut tokio::io::sink()).await.ok()?;
    path
}

/// Writes the response. `None` if the connection has ended.
async fn answer(path: &str, writing: &mut OwnedWriteHalf) -> Option<()> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    if path.ends_with("/hang") || query.contains(HANG) {
        return std::future::pending().await;
    }
    if path.ends_with("/stream") {
        head(writing, "200 OK", STREAM).await?;
        let piece = [b'x'; 16 * 1024];
        for _ in 0..STREAM / piece.len() {
            writing.write_all(&piece).await.ok()?;
        }
        return Some(());
    }
    let is_list = path.ends_with("/products") || path.ends_with("/product");
    let (status, body) = if is_list { ("200 OK", list(query)) } else { ("404 Not Found", Arc::from(ERROR)) };
    head(writing, status, body.len()).await?;
    writing.write_all(body.as_bytes()).await.ok()
}

async fn head(writing: &mut OwnedWriteHalf, status: &str, length: usize) -> Option<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\ndate: Mon, 01 Sep 2025 08:00:00 GMT\r\ncontent-type: application/json\r\n\
         x-request-id: 5d2fc7b35a32a2ec7e2a4de7b5b0b8d7\r\ncontent-length: {length}\r\n\r\n"
    );
    writing.write_all(head.as_bytes()).await.ok()
}

/// A product list of about as many bytes as the query asks for. Large ones are made once: a hundred of 7 MiB take a
/// second of this thread, which would delay all other responses.
fn list(query: &str) -> Arc<str> {
    static LARGE: LazyLock<Mutex<HashMap<usize, Arc<str>>>> = LazyLock::new(Mutex::default);
    let size = query.split('&').find_map(|pair| pair.strip_prefix("offset=")?.parse().ok()).unwrap_or(1024_usize);
    if size < LARGE_SIZE {
        return make_list(size);
    }
    let mut large = LARGE.lock().expect("not poisoned");
    Arc::clone(large.entry(size).or_insert_with(|| make_list(size)))
}

fn make_list(size: usize) -> Arc<str> {
    let product = r#"{"product_id":"workspace.x86.ultimate.large2","flavor_id":"s3.xlarge.2","type":"BASE","cpu":"4","memory":"8192","charge_mode":"1"},"#;
    let products = product.repeat(1 + size / product.len());
    format!(r#"{{"products":[{}],"total_count":1}}"#, products.trim_end_matches(',')).into()
}
