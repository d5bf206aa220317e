//! The limit of hyper: its HTTP/1 server on one thread, with a service that returns the same response each time. The
//! response is a recorded one of the gateway.

use std::convert::Infallible;
use std::error::Error;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{DATE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use peers_servers::arguments;
use tokio::net::TcpListener;
use tokio::task::LocalSet;

fn main() -> Result<(), Box<dyn Error>> {
    let [address, answer] = arguments("bare-hyper ADDRESS ANSWER_FILE")?;
    let answer = std::fs::read(answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or("an answer has a head")?;
    let head = head(std::str::from_utf8(&answer[..end])?)?;
    let body = Bytes::copy_from_slice(&answer[end + 4..]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(&address, Rc::new(head), body))
}

/// The headers without `Date`, which hyper adds.
fn head(text: &str) -> Result<HeaderMap, Box<dyn Error>> {
    let fields = text.lines().skip(1).filter_map(|line| line.split_once(": "));
    let fields = fields.map(|(name, value)| Ok((name.parse::<HeaderName>()?, value.parse::<HeaderValue>()?)));
    let mut head = fields.collect::<Result<HeaderMap, Box<dyn Error>>>()?;
    head.remove(DATE);
    Ok(head)
}

async fn serve(address: &str, head: Rc<HeaderMap>, body: Bytes) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (head, body) = (Rc::clone(&head), body.clone());
        let service = service_fn(move |_: Request<Incoming>| {
            let mut response = Response::new(Full::new(body.clone()));
            head.as_ref().clone_into(response.headers_mut());
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let connection = http1::Builder::new().max_buf_size(256 * 1024).serve_connection(TokioIo::new(stream), service);
        // A client may close the connection.
        tokio::task::spawn_local(connection);
    }
}
