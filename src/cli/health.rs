//! `health`: sends a request to the metrics listener of the local gateway. It is for health checks of containers that
//! have no other HTTP client. It reads no setting but the listener's address.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::failure;
use super::runtime::block_on;
use crate::net::Network;
use crate::stream::BoxError;

/// For the whole request. A gateway that is alive answers immediately, also under load.
const LIMIT: Duration = Duration::from_secs(2);

/// Checks `/readyz` or `/healthz` on the metrics listener, and sets the exit code.
pub(super) fn run(listener: SocketAddr, checks_readiness: bool) -> ExitCode {
    if listener.port() == 0 {
        return failure(1, &format!("listen.metrics: \"{listener}\" has port 0: expected a fixed port"));
    }
    let address = reachable(listener);
    let path = if checks_readiness { "/readyz" } else { "/healthz" };
    block_on(async {
        match check(address, path, LIMIT).await {
            Ok(()) => match writeln!(io::stdout(), "http://{address}{path} answers 200") {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    failure(1, &format!("cannot print: {error}"))
                }
                _ => ExitCode::SUCCESS,
            },
            Err(error) => failure(1, &error),
        }
    })
}

/// Checks whether the gateway with this metrics listener is alive.
///
/// # Errors
/// If it does not answer 200 within the limit.
pub(super) async fn check_alive(listener: SocketAddr, limit: Duration) -> Result<(), String> {
    check(reachable(listener), "/healthz", limit).await
}

async fn check(address: SocketAddr, path: &str, limit: Duration) -> Result<(), String> {
    let url = format!("http://{address}{path}");
    match timeout(limit, get(address, path)).await {
        Ok(Ok(StatusCode::OK)) => Ok(()),
        // Of a gateway that is stopping.
        Ok(Ok(StatusCode::SERVICE_UNAVAILABLE)) => Err(format!("{url} answers 503 Service Unavailable")),
        Ok(Ok(status)) => Err(format!("{url} answers {status}; is this the metrics listener (listen.metrics)?")),
        Ok(Err(error)) => Err(format!("{url} does not answer: {error}")),
        Err(_) => Err(format!("{url} does not answer within {limit:?}")),
    }
}

/// The address to connect to. For a listener on all addresses this is loopback.
pub(super) fn reachable(listener: SocketAddr) -> SocketAddr {
    let ip = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listener.port())
}

async fn get(address: SocketAddr, path: &str) -> Result<StatusCode, BoxError> {
    let stream = TokioIo::new(Network::System.connect(address).await?);
    let (mut sender, connection) = http1::handshake(stream).await?;
    let request = Request::get(path).header(HOST, address.to_string()).body(Empty::<Bytes>::new())?;
    tokio::select! {
        response = sender.send_request(request) => Ok(response?.status()),
        ended = connection => Err(ended.err().map_or_else(|| "the connection ended".into(), Into::into)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_checked_on_loopback() {
        for (listener, expected) in [
            ("0.0.0.0:9090", "127.0.0.1:9090"),
            ("[::]:9090", "[::1]:9090"),
            ("10.0.0.1:9090", "10.0.0.1:9090"),
            ("127.0.0.2:1", "127.0.0.2:1"),
        ] {
            assert_eq!(reachable(listener.parse().unwrap()).to_string(), expected);
        }
    }
}
