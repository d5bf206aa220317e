//! Idle connections do not block clients, probes or the operator, even when file descriptors run out. Which connection is
//! closed for another is tested beside `src/server/shed.rs`.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::server::{Server, raise_open_files};
use workspace_gateway::testing::simulator::Simulator;

use crate::support::process::{Process, folder};
use crate::support::{Http, PROJECT, World, config, send_raw, within};

const LIST: &str = "/v2/PROJECT/products";
const SHED: &str = "workspace_gateway_connections_ended_total{cause=\"shed\"}";
const HEALTHZ: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// So many that most of them wait in the kernel.
const FLOOD: usize = 400;

/// More than the metrics listener and the admin listener accept at once.
const CROWD: usize = 100;

/// Connections on which nothing is sent.
fn silent(address: SocketAddr, count: usize) -> Vec<std::net::TcpStream> {
    (0..count).map(|_| std::net::TcpStream::connect(address).unwrap()).collect()
}

/// Opens a connection, sends these bytes, reads until the connection is closed, and starts again. Counts the connections.
async fn reconnect_forever(address: SocketAddr, first_bytes: &'static str, opened: Arc<AtomicUsize>) {
    loop {
        let Ok(mut stream) = TcpStream::connect(address).await else { continue };
        opened.fetch_add(1, Ordering::Relaxed);
        let _ = stream.write_all(first_bytes.as_bytes()).await;
        while stream.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {}
    }
}

#[tokio::test]
async fn idle_connections_do_not_block_the_next_client() {
    let world = World::with("[limits]\nmax_connections = 20").await;
    let crowd = silent(world.server.proxy_address(), 20);
    world.until_metric("workspace_gateway_connections", 20.0).await;
    world.seconds_pass(1_000);
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    assert_eq!(world.metric(SHED), 1.0);
    assert_eq!(world.metric("workspace_gateway_connections"), 20.0);
    drop(crowd);
}

#[tokio::test]
async fn idle_connections_on_the_metrics_listener_do_not_block_probes() {
    let simulator = Simulator::start().await.unwrap();
    let [workspace, appstream] = Service::ALL.map(|service| simulator.url(service));
    // In real time: a connection must be idle for 100 ms before it is closed for another.
    let server = Server::start(&config(&workspace, &appstream, ""), Clock::System).await.unwrap();
    let address = server.metrics_address();
    let crowd = silent(address, CROWD);
    for _ in 0..CROWD {
        assert!(send_raw(address, HEALTHZ).await.starts_with("HTTP/1.1 200 "));
    }
    drop(crowd);
    for first_bytes in ["", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let (mut crowd, opened) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
        for _ in 0..FLOOD {
            crowd.spawn(reconnect_forever(address, first_bytes, Arc::clone(&opened)));
        }
        within(async {
            while opened.load(Ordering::Relaxed) < 2 * FLOOD {
                tokio::task::yield_now().await;
            }
        })
        .await;
        for _ in 0..10 {
            assert!(send_raw(address, HEALTHZ).await.starts_with("HTTP/1.1 200 "), "{first_bytes}");
        }
    }
}

#[tokio::test]
async fn idle_connections_on_the_admin_listener_do_not_block_the_operator() {
    let file = folder("listeners").join("token");
    std::fs::write(&file, "0123456789abcdef").unwrap();
    let world = World::with(&format!("[listen]\nadmin_token = {{ file = {file:?} }}")).await;
    let address = world.server.admin_address();
    let operator = Http::new();
    let ask = async |http: &Http, token: &str| {
        http.send(Method::GET, &world.admin_url("/mode"), &[("authorization", token)], "").await.status()
    };
    assert_eq!(ask(&operator, "Bearer 0123456789abcdef").await, StatusCode::OK);
    world.seconds_pass(1_000);
    // These connections have been idle for less time than the operator's. They are closed first nevertheless.
    let crowd = silent(address, CROWD);
    let pages: Vec<_> = (0..CROWD).map(|_| connect(address, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")).collect();
    assert_eq!(ask(&Http::new(), "Bearer 0123456789abcdef").await, StatusCode::OK);
    assert_eq!(ask(&operator, "Bearer 0123456789abcdef").await, StatusCode::OK);
    drop((crowd, pages));
}

/// A connection whose first bytes arrive before the gateway accepts it.
fn connect(address: SocketAddr, first_bytes: &str) -> std::net::TcpStream {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(first_bytes.as_bytes()).unwrap();
    stream
}

#[tokio::test]
async fn accept_errors_are_logged_once_and_all_counted() {
    let simulator = Simulator::start().await.unwrap();
    let mut process = Process::start(&simulator, &settings("listeners-errors")).await;
    let http = Http::new();
    let metrics = async || http.get(&format!("{}/metrics", process.metrics)).await.text().to_owned();
    let errors = "workspace_gateway_accept_errors_total{listener=\"proxy\"} ";
    let count = |page: &str| page.lines().find_map(|line| line.strip_prefix(errors)?.parse::<u64>().ok()).unwrap();
    assert_eq!(count(&metrics().await), 0);
    process.limit_open_files(1);
    let address = process.proxy.trim_start_matches("http://").parse().unwrap();
    let client = connect(address, "GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    within(async { while count(&metrics().await) < 3 {} }).await;
    process.limit_open_files(1024);
    let mut client = tokio_stream(client);
    let mut response = String::new();
    within(client.read_to_string(&mut response)).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 404 "), "{response}");
    let event = process.wait_for_log("cannot accept connections").await;
    assert_eq!((event["listener"].as_str(), event["errors"].as_u64()), (Some("proxy"), Some(1)), "{event}");
    let (_, log) = process.terminate().await;
    assert_eq!(log.matches("cannot accept connections").count(), 1, "{log}");
}

fn tokio_stream(stream: std::net::TcpStream) -> TcpStream {
    stream.set_nonblocking(true).unwrap();
    TcpStream::from_std(stream).unwrap()
}

/// Settings for a process whose log the test reads.
fn settings(name: &str) -> std::path::PathBuf {
    let file = folder(name).join("settings.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n").unwrap();
    file
}

#[tokio::test]
async fn more_idle_clients_than_file_descriptors_block_neither_probes_nor_misses() {
    // This process holds the client ends of all connections.
    raise_open_files().unwrap();
    let simulator = Simulator::start().await.unwrap();
    let process = Process::start_with_open_files(&simulator, &settings("listeners-files"), (1024, 1024)).await;
    let [proxy, metrics] =
        [&process.proxy, &process.metrics].map(|url| url.trim_start_matches("http://").parse().unwrap());
    let (http, token) = (Http::new(), simulator.token(PROJECT));
    let ask = async |http: &Http, query: &str| {
        let url = format!("{}/v2/{PROJECT}/products?{query}", process.proxy);
        http.send(Method::GET, &url, &[("x-auth-token", &token)], "").await
    };
    assert_eq!(ask(&http, "limit=1").await.status(), StatusCode::OK);
    let crowd = silent(proxy, 1_100);
    for limit in 2..12 {
        assert!(send_raw(metrics, HEALTHZ).await.starts_with("HTTP/1.1 200 "));
        // On a connection that was open before, and to both services.
        assert!(ask(&http, &format!("limit={limit}")).await.cache_status().contains("; stored"));
    }
    let groups = format!("{}/v1/{PROJECT}/app-groups", process.proxy);
    assert_eq!(http.send(Method::GET, &groups, &[("x-auth-token", &token)], "").await.status(), StatusCode::OK);
    // On a connection that is newer than all of them.
    assert_eq!(ask(&Http::new(), "limit=12").await.status(), StatusCode::OK);
    let page = http.get(&format!("{}/metrics", process.metrics)).await;
    assert!(page.text().contains("workspace_gateway_accept_errors_total{listener=\"proxy\"} 0\n"), "{}", page.text());
    let settings = http.get(&format!("{}/config", process.admin)).await;
    let reduced = "# limits.max_connections is reduced from 4096 to 256: the open file limit is 1024";
    assert!(settings.text().contains(reduced), "{}", settings.text());
    let (_, log) = process.terminate().await;
    assert_eq!(log.matches("limits.max_connections is reduced from 4096 to 256").count(), 1, "{log}");
    drop(crowd);
}

#[tokio::test]
async fn the_open_file_limit_is_raised_at_start() {
    let simulator = Simulator::start().await.unwrap();
    let process = Process::start_with_open_files(&simulator, &settings("listeners-raise"), (300, 1500)).await;
    let page = Http::new().get(&format!("{}/metrics", process.metrics)).await;
    assert!(page.text().contains("\nprocess_max_fds 1500\n"), "{}", page.text());
    let (_, log) = process.terminate().await;
    assert!(log.contains("limits.max_connections is reduced from 4096 to 732"), "{log}");
}

#[test]
fn check_reports_by_how_much_the_open_file_limit_reduces_connections() {
    let check = |limit: &str| {
        let mut command = std::process::Command::new("prlimit");
        command
            .args([limit, env!("CARGO_BIN_EXE_workspace-gateway"), "check", "--region", "cn-north-4"])
            .output()
            .unwrap()
    };
    let reduced = check("--nofile=1024:1024");
    assert!(reduced.status.success());
    let message = String::from_utf8(reduced.stderr).unwrap();
    assert!(message.contains("if started here, limits.max_connections is reduced from 4096 to 256"), "{message}");
    assert!(String::from_utf8(reduced.stdout).unwrap().contains("max_connections = 4096"));
    // The limit that counts is the one to which `serve` raises it.
    assert_eq!(String::from_utf8(check("--nofile=1024:8192").stderr).unwrap(), "");
}
