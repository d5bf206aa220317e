//! Slow and hostile clients, over real sockets: the gateway closes connections without progress, and other clients are
//! not affected. The exact times are tested in `src/server/activity.rs`.

use std::io::Write;

use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use workspace_gateway::testing::simulator::Simulator;

use crate::support::{PROJECT, World, send_raw, within};

const LIST: &str = "/v2/PROJECT/products";

/// The series that counts the connections that the gateway has ended for a cause.
fn ended(cause: &str) -> String {
    format!("workspace_gateway_connections_ended_total{{cause=\"{cause}\"}}")
}

/// A connection whose first bytes are sent before the gateway accepts it. So they cannot be late, even on a slow
/// machine.
fn connect(world: &World, sent_bytes: &str) -> TcpStream {
    let mut stream = std::net::TcpStream::connect(world.server.proxy_address()).unwrap();
    stream.write_all(sent_bytes.as_bytes()).unwrap();
    stream.set_nonblocking(true).unwrap();
    TcpStream::from_std(stream).unwrap()
}

fn request(world: &World) -> String {
    format!("GET {} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {}\r\n\r\n", LIST.replace("PROJECT", PROJECT), world.token)
}

/// Reads one complete response.
async fn response(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let is_whole = |read: &[u8]| {
        let text = String::from_utf8_lossy(read).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head.split_once("content-length: ")?.1.split("\r\n").next()?.parse::<usize>().ok()?;
        Some(body.len() >= length)
    };
    within(async {
        while is_whole(&read) != Some(true) {
            assert!(stream.read_buf(&mut read).await.unwrap() > 0, "{}", String::from_utf8_lossy(&read));
        }
    })
    .await;
    String::from_utf8(read).unwrap()
}

/// Reads until the gateway closes the connection.
async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    within(async { while stream.read_buf(&mut read).await.is_ok_and(|more| more > 0) {} }).await;
    read
}

#[tokio::test]
async fn header_timeout_closes_connections_without_a_complete_head() {
    let world = World::with("[limits]\nheader_timeout = \"50ms\"\nkeepalive_timeout = \"1h\"").await;
    for (count, sent_bytes) in
        ["", "GET / HTTP/1.1\r\nHost:", "PRI * HTTP/2.0\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0"].iter().enumerate()
    {
        let mut stream = connect(&world, sent_bytes);
        let received = read_to_end(&mut stream).await;
        assert!(!String::from_utf8_lossy(&received).contains("HTTP/1.1 2"));
        world.until_metric(&ended("header-timeout"), (count + 1) as f64).await;
    }
    world.until_metric("workspace_gateway_connections", 0.0).await;
}

#[tokio::test]
async fn header_timeout_does_not_close_idle_connections() {
    let world = World::with("[limits]\nheader_timeout = \"50ms\"\nkeepalive_timeout = \"1h\"").await;
    let mut idle = connect(&world, &request(&world));
    assert!(response(&mut idle).await.starts_with("HTTP/1.1 200 "));
    // A later connection has already been closed.
    read_to_end(&mut connect(&world, "")).await;
    idle.write_all(request(&world).as_bytes()).await.unwrap();
    assert!(response(&mut idle).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn keepalive_timeout_closes_idle_connections() {
    let world = World::with("[limits]\nheader_timeout = \"1h\"\nkeepalive_timeout = \"50ms\"").await;
    let mut idle = connect(&world, &request(&world));
    let received = read_to_end(&mut idle).await;
    assert!(received.starts_with(b"HTTP/1.1 200 "));
    assert_eq!((world.metric(&ended("keepalive-timeout")), world.metric(&ended("header-timeout"))), (1.0, 0.0));
}

#[tokio::test]
async fn a_connection_that_awaits_a_response_is_not_idle() {
    let world = World::with("[limits]\nkeepalive_timeout = \"50ms\"\nwrite_timeout = \"50ms\"").await;
    world.simulator.hold();
    let mut waiting = connect(&world, &request(&world));
    within(world.simulator.wait_for_requests(1)).await;
    // A later connection has already been closed as idle.
    read_to_end(&mut connect(&world, "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    world.simulator.release();
    assert!(response(&mut waiting).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn write_timeout_ends_an_unread_response_from_memory() {
    let world = World::with("[limits]\nwrite_timeout = \"50ms\"").await;
    let list = format!("{{\"products\":[\"{}\"]}}", "x".repeat(7_000_000));
    world.simulator.set_list_body(Some(Bytes::from(list)));
    assert!(world.get(LIST).await.cache_status().contains("; stored"));
    let unread = connect(&world, &request(&world));
    world.until_metric(&ended("write-timeout"), 1.0).await;
    // The connection that has filled the cache stays open.
    world.until_metric("workspace_gateway_connections", 1.0).await;
    drop(unread);
    assert!(world.get(LIST).await.is_hit());
}

#[tokio::test]
async fn write_timeout_ends_an_unread_stream_that_was_not_buffered() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", upstream.local_addr().unwrap());
    let sending = tokio::spawn(async move {
        let (mut stream, _) = upstream.accept().await.unwrap();
        let mut head = [0; 4096];
        assert!(stream.read(&mut head).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await.unwrap();
        let part = vec![b'x'; 100_000];
        let mut sent = 0;
        while let Ok(more) = stream.write(&part).await {
            sent += more;
        }
        sent
    });
    let simulator = Simulator::start().await.unwrap();
    let world = World::with_upstreams(simulator, &url, &url, "[limits]\nwrite_timeout = \"50ms\"").await;
    let unread = connect(&world, "GET /v2/p/desktops HTTP/1.1\r\nHost: x\r\n\r\n");
    let sent = within(sending).await.unwrap();
    // Little more than the kernel buffers of both connections.
    assert!(sent < 50_000_000, "{sent}");
    assert_eq!(world.metric(&ended("write-timeout")), 1.0);
    drop(unread);
}

#[tokio::test]
async fn a_connection_beyond_the_limit_waits_until_another_ends() {
    let world = World::with("[limits]\nmax_connections = 2").await;
    let [mut first, mut second] = [(); 2].map(|()| connect(&world, ""));
    for stream in [&mut first, &mut second] {
        stream.write_all(request(&world).as_bytes()).await.unwrap();
        assert!(response(stream).await.starts_with("HTTP/1.1 200 "));
    }
    let mut third = connect(&world, &request(&world));
    world.until_metric("workspace_gateway_accept_pauses_total", 1.0).await;
    // The gateway's clock stands still, so the idle connections are not closed.
    // Meanwhile the other connections and the other listeners are served.
    for stream in [&mut first, &mut second] {
        stream.write_all(request(&world).as_bytes()).await.unwrap();
        assert!(response(stream).await.starts_with("HTTP/1.1 200 "));
    }
    let metrics = world.http.get(&world.metrics_url("/metrics")).await;
    assert!(metrics.text().contains("\nworkspace_gateway_connections 2\n"));
    for url in [world.metrics_url("/readyz"), world.metrics_url("/healthz"), world.admin_url("/mode")] {
        assert_eq!(world.http.get(&url).await.status(), StatusCode::OK, "{url}");
    }
    let nothing = third.try_read(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    drop(first);
    assert!(response(&mut third).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(world.metric("workspace_gateway_connections"), 2.0);
    assert_eq!(world.metric("workspace_gateway_accept_pauses_total"), 1.0);
    assert_eq!(world.metric(&ended("shed")), 0.0);
}

#[tokio::test]
async fn idle_metrics_connections_do_not_block_clients() {
    let world = World::with("[limits]\nheader_timeout = \"200ms\"").await;
    let silent: Vec<_> =
        (0..200).map(|_| std::net::TcpStream::connect(world.server.metrics_address()).unwrap()).collect();
    assert!(world.get(LIST).await.status().is_success());
    // header_timeout closes the silent connections, and the page is served.
    assert_eq!(world.http.get(&world.metrics_url("/readyz")).await.status(), StatusCode::OK);
    drop(silent);
}

#[tokio::test]
async fn heads_are_limited_in_size_and_number_of_fields() {
    let world = World::with("[limits]\nmax_head_size = \"8KiB\"").await;
    let ask = async |fields: String| {
        let request = format!("GET {LIST} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n");
        send_raw(world.server.proxy_address(), request).await
    };
    let fields = |count: usize| (0..count).map(|n| format!("a{n}: b\r\n")).collect::<String>();
    assert!(ask(fields(98)).await.starts_with("HTTP/1.1 401 "));
    assert!(ask(fields(99)).await.starts_with("HTTP/1.1 431 "));
    for listener in [world.server.metrics_address(), world.server.admin_address()] {
        let request =
            |count| format!("GET / HTTP/1.1\r\nHost: {listener}\r\nConnection: close\r\n{}\r\n", fields(count));
        assert!(!send_raw(listener, request(98)).await.starts_with("HTTP/1.1 431 "));
        assert!(send_raw(listener, request(99)).await.starts_with("HTTP/1.1 431 "));
    }
    let by_gateway = ask(format!("a: {}\r\n", "b".repeat(9_000))).await;
    assert!(by_gateway.starts_with("HTTP/1.1 431 ") && by_gateway.contains("limits.max_head_size"), "{by_gateway}");
    assert!(ask(format!("a: {}\r\n", "b".repeat(30_000))).await.starts_with("HTTP/1.1 431 "));
    assert_eq!(world.upstream_calls(), 1);
}
