//! Slow and hostile clients, over real sockets: whoever keeps a connection and gives nothing for it loses it, and
//! nobody else notices. How long everything takes, to the second, is tested beside `src/server/activity.rs`.

use std::io::Write;

use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use workspace_gateway::testing::simulator::Simulator;

use crate::support::{PROJECT, World, raw, within};

const LIST: &str = "/v2/PROJECT/products";

/// How many connections the gateway has ended for a reason.
fn ended(cause: &str) -> String {
    format!("workspace_gateway_connections_ended_total{{cause=\"{cause}\"}}")
}

/// A connection whose first bytes are there before the gateway knows of it, so that however slow this machine is,
/// they can't be late.
fn connect(world: &World, begun: &str) -> TcpStream {
    let mut stream = std::net::TcpStream::connect(world.server.proxy_address()).unwrap();
    stream.write_all(begun.as_bytes()).unwrap();
    stream.set_nonblocking(true).unwrap();
    TcpStream::from_std(stream).unwrap()
}

fn request(world: &World) -> String {
    format!("GET {} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {}\r\n\r\n", LIST.replace("PROJECT", PROJECT), world.token)
}

/// Reads one answer to its last byte.
async fn answer(stream: &mut TcpStream) -> String {
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

/// Reads until the gateway hangs up.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    within(async { while stream.read_buf(&mut read).await.is_ok_and(|more| more > 0) {} }).await;
    read
}

#[tokio::test]
async fn who_says_nothing_or_half_of_it_is_hung_up_on() {
    let world = World::with("[limits]\nheader_timeout = \"50ms\"\nkeepalive_timeout = \"1h\"").await;
    for (count, begun) in
        ["", "GET / HTTP/1.1\r\nHost:", "PRI * HTTP/2.0\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0"].iter().enumerate()
    {
        let mut stream = connect(&world, begun);
        let said = rest(&mut stream).await;
        assert!(!String::from_utf8_lossy(&said).contains("HTTP/1.1 2"));
        world.until_metric(&ended("header-timeout"), (count + 1) as f64).await;
    }
    world.until_metric("workspace_gateway_connections", 0.0).await;
}

#[tokio::test]
async fn an_idle_connection_outlives_the_time_for_a_head() {
    let world = World::with("[limits]\nheader_timeout = \"50ms\"\nkeepalive_timeout = \"1h\"").await;
    let mut idle = connect(&world, &request(&world));
    assert!(answer(&mut idle).await.starts_with("HTTP/1.1 200 "));
    // Begun later, and over already.
    rest(&mut connect(&world, "")).await;
    idle.write_all(request(&world).as_bytes()).await.unwrap();
    assert!(answer(&mut idle).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_its_own_time() {
    let world = World::with("[limits]\nheader_timeout = \"1h\"\nkeepalive_timeout = \"50ms\"").await;
    let mut idle = connect(&world, &request(&world));
    let said = rest(&mut idle).await;
    assert!(said.starts_with(b"HTTP/1.1 200 "));
    assert_eq!((world.metric(&ended("keepalive-timeout")), world.metric(&ended("header-timeout"))), (1.0, 0.0));
}

#[tokio::test]
async fn who_waits_for_an_answer_is_not_idle() {
    let world = World::with("[limits]\nkeepalive_timeout = \"50ms\"\nwrite_timeout = \"50ms\"").await;
    world.simulator.hold();
    let mut waiting = connect(&world, &request(&world));
    within(world.simulator.arrived(1)).await;
    // Begun later, and idle for too long already.
    rest(&mut connect(&world, "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    world.simulator.release();
    assert!(answer(&mut waiting).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn an_answer_from_memory_that_is_not_read_is_given_up() {
    let world = World::with("[limits]\nwrite_timeout = \"50ms\"").await;
    let list = format!("{{\"products\":[\"{}\"]}}", "x".repeat(7_000_000));
    world.simulator.answer_with(Some(Bytes::from(list)));
    assert!(world.get(LIST).await.cache_status().contains("; stored"));
    let unread = connect(&world, &request(&world));
    world.until_metric(&ended("write-timeout"), 1.0).await;
    // The one that has filled the cache is read, and stays.
    world.until_metric("workspace_gateway_connections", 1.0).await;
    drop(unread);
    assert!(world.get(LIST).await.is_hit());
}

#[tokio::test]
async fn a_stream_that_is_not_read_is_given_up_and_was_not_gathered() {
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
    let world = World::before(simulator, &url, &url, "[limits]\nwrite_timeout = \"50ms\"").await;
    let unread = connect(&world, "GET /v2/p/desktops HTTP/1.1\r\nHost: x\r\n\r\n");
    let sent = within(sending).await.unwrap();
    // What the kernel holds for both connections, and little more.
    assert!(sent < 50_000_000, "{sent}");
    assert_eq!(world.metric(&ended("write-timeout")), 1.0);
    drop(unread);
}

#[tokio::test]
async fn one_too_many_waits_until_another_ends() {
    let world = World::with("[limits]\nmax_connections = 2").await;
    let [mut first, mut second] = [(); 2].map(|()| connect(&world, ""));
    for stream in [&mut first, &mut second] {
        stream.write_all(request(&world).as_bytes()).await.unwrap();
        assert!(answer(stream).await.starts_with("HTTP/1.1 200 "));
    }
    let mut third = connect(&world, &request(&world));
    world.until_metric("workspace_gateway_accept_pauses_total", 1.0).await;
    // No time passes for the gateway, so that those that are idle have not been so for long.
    // Others are served meanwhile, and whoever watches too.
    for stream in [&mut first, &mut second] {
        stream.write_all(request(&world).as_bytes()).await.unwrap();
        assert!(answer(stream).await.starts_with("HTTP/1.1 200 "));
    }
    let metrics = world.http.get(&world.metrics_url("/metrics")).await;
    assert!(metrics.text().contains("\nworkspace_gateway_connections 2\n"));
    for url in [world.metrics_url("/readyz"), world.metrics_url("/healthz"), world.admin_url("/mode")] {
        assert_eq!(world.http.get(&url).await.status(), StatusCode::OK, "{url}");
    }
    let nothing = third.try_read(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    drop(first);
    assert!(answer(&mut third).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(world.metric("workspace_gateway_connections"), 2.0);
    assert_eq!(world.metric("workspace_gateway_accept_pauses_total"), 1.0);
    assert_eq!(world.metric(&ended("shed")), 0.0);
}

#[tokio::test]
async fn a_crowd_at_the_operators_door_does_not_take_the_clients() {
    let world = World::with("[limits]\nheader_timeout = \"200ms\"").await;
    let crowd: Vec<_> =
        (0..200).map(|_| std::net::TcpStream::connect(world.server.metrics_address()).unwrap()).collect();
    assert!(world.get(LIST).await.status().is_success());
    // The silent ones go, and the page comes.
    assert_eq!(world.http.get(&world.metrics_url("/readyz")).await.status(), StatusCode::OK);
    drop(crowd);
}

#[tokio::test]
async fn heads_have_bounds() {
    let world = World::with("[limits]\nmax_head_size = \"8KiB\"").await;
    let ask = async |fields: String| {
        let request = format!("GET {LIST} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n");
        raw(world.server.proxy_address(), request).await
    };
    let fields = |count: usize| (0..count).map(|n| format!("a{n}: b\r\n")).collect::<String>();
    assert!(ask(fields(98)).await.starts_with("HTTP/1.1 401 "));
    assert!(ask(fields(99)).await.starts_with("HTTP/1.1 431 "));
    for listener in [world.server.metrics_address(), world.server.admin_address()] {
        let request =
            |count| format!("GET / HTTP/1.1\r\nHost: {listener}\r\nConnection: close\r\n{}\r\n", fields(count));
        assert!(!raw(listener, request(98)).await.starts_with("HTTP/1.1 431 "));
        assert!(raw(listener, request(99)).await.starts_with("HTTP/1.1 431 "));
    }
    let by_us = ask(format!("a: {}\r\n", "b".repeat(9_000))).await;
    assert!(by_us.starts_with("HTTP/1.1 431 ") && by_us.contains("limits.max_head_size"), "{by_us}");
    assert!(ask(format!("a: {}\r\n", "b".repeat(30_000))).await.starts_with("HTTP/1.1 431 "));
    assert_eq!(world.upstream_calls(), 1);
}
