//! The limit of hyper: its HTTP/1 or HTTP/2 server on one thread, with a service that returns the same response each
//! time. The response is a recorded one of the gateway.

use std::convert::Infallible;
use std::error::Error;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{DATE, HeaderName, HeaderValue};
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use peers_servers::arguments;
use tokio::net::TcpListener;
use tokio::task::LocalSet;

fn main() -> Result<(), Box<dyn Error>> {
    let [address, answer, protocol] = arguments("bare-hyper ADDRESS ANSWER_FILE http1|http2")?;
    let is_http2 = match protocol.as_str() {
        "http1" => false,
        "http2" => true,
        _ => return Err("neither http1 nor http2".into()),
    };
    let answer = Answer::read(&std::fs::read(answer)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(&address, is_http2, Rc::new(answer)))
}

struct Answer {
    status: StatusCode,
    /// Without `Date`, which hyper adds.
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// Parses a recorded response of HTTP/1.1.
    fn read(text: &[u8]) -> Result<Self, Box<dyn Error>> {
        let end = text.windows(4).position(|four| four == b"\r\n\r\n").ok_or("an answer has a head")?;
        let mut lines = std::str::from_utf8(&text[..end])?.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).ok_or("an answer has a status")?.parse()?;
        let fields = lines.filter_map(|line| line.split_once(": "));
        let fields = fields.map(|(name, value)| Ok((name.parse::<HeaderName>()?, value.parse::<HeaderValue>()?)));
        let mut headers = fields.collect::<Result<HeaderMap, Box<dyn Error>>>()?;
        headers.remove(DATE);
        Ok(Self { status, headers, body: Bytes::copy_from_slice(&text[end + 4..]) })
    }

    fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body.clone()));
        *response.status_mut() = self.status;
        self.headers.clone_into(response.headers_mut());
        response
    }
}

/// Runs the streams of HTTP/2 on the thread of their connection.
#[derive(Clone)]
struct Local;

impl<F: Future + 'static> Executor<F> for Local {
    fn execute(&self, stream: F) {
        tokio::task::spawn_local(stream);
    }
}

async fn serve(address: &str, is_http2: bool, answer: Rc<Answer>) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (io, answer) = (TokioIo::new(stream), Rc::clone(&answer));
        let service =
            service_fn(move |_: Request<Incoming>| std::future::ready(Ok::<_, Infallible>(answer.response())));
        // A client may close the connection.
        if is_http2 {
            tokio::task::spawn_local(http2::Builder::new(Local).serve_connection(io, service));
        } else {
            tokio::task::spawn_local(http1::Builder::new().max_buf_size(256 * 1024).serve_connection(io, service));
        }
    }
}
