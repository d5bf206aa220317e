//! `health`: whether a gateway that runs here with the same settings is well, as a health check asks that has no other
//! program to ask with.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use tokio::time::timeout;

use super::failure;
use super::runtime::block_on;
use crate::net;
use crate::stream::BoxError;

/// For everything. A gateway answers this at once, whatever else it has to do.
const LIMIT: Duration = Duration::from_secs(2);

/// Asks the metrics listener whether the gateway is alive, or whether it takes requests.
pub(super) fn run(listens: SocketAddr, is_ready_wanted: bool) -> ExitCode {
    if listens.port() == 0 {
        return failure(1, &format!("listen.metrics: \"{listens}\" names no port that could be asked"));
    }
    let address = reachable(listens);
    let path = if is_ready_wanted { "/readyz" } else { "/healthz" };
    block_on(async {
        match answers(address, path, LIMIT).await {
            Ok(()) => match writeln!(io::stdout(), "http://{address}{path} answers 200") {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    failure(1, &format!("cannot print: {error}"))
                }
                _ => ExitCode::SUCCESS,
            },
            Err(wrong) => failure(1, &wrong),
        }
    })
}

/// Whether the gateway whose metrics listener is there is alive.
///
/// # Errors
/// Why not.
pub(super) async fn is_alive(listens: SocketAddr, limit: Duration) -> Result<(), String> {
    answers(reachable(listens), "/healthz", limit).await
}

/// Whether it answers 200 in time.
async fn answers(address: SocketAddr, path: &str, limit: Duration) -> Result<(), String> {
    let url = format!("http://{address}{path}");
    match timeout(limit, ask(address, path)).await {
        Ok(Ok(StatusCode::OK)) => Ok(()),
        Ok(Ok(status)) => Err(format!("{url} answers {status}")),
        Ok(Err(error)) => Err(format!("{url} gives no answer: {error}")),
        Err(_) => Err(format!("{url} gives no answer in {limit:?}")),
    }
}

/// Where to connect to reach who listens there. "All addresses" is none that can be connected to everywhere.
fn reachable(listens: SocketAddr) -> SocketAddr {
    let ip = match listens.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listens.port())
}

async fn ask(address: SocketAddr, path: &str) -> Result<StatusCode, BoxError> {
    let stream = net::connect(address).await?;
    let (mut sender, connection) = http1::handshake(stream).await?;
    let request = Request::get(path).header(HOST, address.to_string()).body(Empty::<Bytes>::new())?;
    tokio::select! {
        answer = sender.send_request(request) => Ok(answer?.status()),
        ended = connection => Err(ended.err().map_or_else(|| "the connection ended".into(), Into::into)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_are_asked_on_this_machine() {
        for (listens, asked) in [
            ("0.0.0.0:9090", "127.0.0.1:9090"),
            ("[::]:9090", "[::1]:9090"),
            ("10.0.0.1:9090", "10.0.0.1:9090"),
            ("127.0.0.2:1", "127.0.0.2:1"),
        ] {
            assert_eq!(reachable(listens.parse().unwrap()).to_string(), asked);
        }
    }
}
