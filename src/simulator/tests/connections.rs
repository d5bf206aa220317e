//! Tests of the simulator's connections: injected failures, raw bytes, start and stop.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::process::Command;

use tokio::task::JoinHandle;

use super::*;

#[tokio::test]
async fn connections_can_be_closed_and_cut_off() {
    let bench = Bench::new().await;
    let whole = bench.body().await;
    let request = bench.raw_request();
    let exchange = || {
        let (mut stream, request) = (bench.raw(), request.clone());
        tokio::task::spawn_blocking(move || {
            stream.write_all(request.as_bytes()).unwrap();
            let mut received = Vec::new();
            // The kernel decides whether the connection ends with FIN or RST.
            let _ = stream.read_to_end(&mut received);
            String::from_utf8(received).unwrap()
        })
    };
    bench.simulator.reset_connections(true);
    assert_eq!(exchange().await.unwrap(), "");
    bench.simulator.reset_connections(false);

    bench.simulator.truncate(true);
    let received = exchange().await.unwrap();
    let (head, body) = received.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.contains(&format!("content-length: {}", whole.len())), "{head}");
    assert_eq!(body.as_bytes(), &whole[..whole.len() / 2]);
    bench.simulator.truncate(false);
    assert_eq!(bench.body().await, whole);
}

#[tokio::test]
async fn other_paths_echo_the_body_frame_by_frame() {
    let bench = Bench::new().await;
    let (mut stream, token) = (bench.raw(), bench.token.clone());
    let exchange = tokio::task::spawn_blocking(move || {
        let mut read_until = {
            let (mut stream, mut text) = (stream.try_clone().unwrap(), String::new());
            move |end: &str| {
                while !text.contains(end) {
                    let mut buffer = [0; 1024];
                    let n = stream.read(&mut buffer).unwrap();
                    assert!(n > 0, "closed after {text:?}");
                    text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
                }
                text.clone()
            }
        };
        let head = format!(
            "POST /v2/p/desktops HTTP/1.1\r\nhost: w\r\nx-auth-token: {token}\r\ncontent-type: text/x-odd\r\n\
             transfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        // The second half is sent after the first has been received.
        read_until("first");
        stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n").unwrap();
        read_until("second")
    });
    assert!(exchange.await.unwrap().contains("content-type: text/x-odd"));
    assert!(bench.simulator.requests_seen()[0].has_body);
}

#[tokio::test]
async fn streams_of_other_listeners_are_served() {
    let bench = Bench::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}{V1}", listener.local_addr().unwrap());
    let request = Request::get(uri).header(X_AUTH_TOKEN, &bench.token).body(Full::default()).unwrap();
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        bench.simulator.serve_stream(AppStream, stream).await;
    };
    tokio::select! {
        response = bench.client.request(request) => assert_eq!(response.unwrap().status(), StatusCode::OK),
        () = serving => panic!("closed before the response"),
    }
}

#[tokio::test]
async fn it_stops_when_shut_down_or_dropped() {
    let bench = Bench::new().await;
    bench.get(Workspace, PRODUCTS).await;
    let uri = bench.simulator.url(Workspace) + PRODUCTS;
    bench.simulator.shut_down().await;
    assert!(bench.client.get(uri.parse().unwrap()).await.is_err());

    bench.simulator.restart().unwrap();
    for service in Service::ALL {
        assert_eq!(bench.get(service, "/v2/p/products").await.status() == StatusCode::OK, service == Workspace);
    }
    assert!(bench.simulator.restart().is_err(), "it is running");

    let simulator = Simulator::start().await.unwrap();
    let mut stream = TcpStream::connect(simulator.url(AppStream).strip_prefix("http://").unwrap()).unwrap();
    let other = simulator.clone();
    drop(simulator);
    assert!(bench.client.get(other.url(AppStream).parse().unwrap()).await.is_ok());
    drop(other);
    let end = tokio::task::spawn_blocking(move || stream.read(&mut [0; 16]));
    assert_eq!(end.await.unwrap().unwrap_or(0), 0);
}

/// A process that is being started has copies of the listening sockets until it executes its program.
#[tokio::test]
async fn it_keeps_its_addresses_while_it_is_shut_down_and_processes_are_being_started() {
    let bench = Bench::new().await;
    let addresses =
        Service::ALL.map(|service| bench.simulator.url(service).strip_prefix("http://").unwrap().to_owned());
    let starting = || (0..300).for_each(|_| assert!(Command::new("true").status().unwrap().success()));
    let starting = [tokio::task::spawn_blocking(starting), tokio::task::spawn_blocking(starting)];
    while !starting.iter().all(JoinHandle::is_finished) {
        bench.simulator.shut_down().await;
        for address in &addresses {
            assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            assert_eq!(TcpListener::bind(address).unwrap_err().kind(), ErrorKind::AddrInUse);
        }
        bench.simulator.restart().unwrap();
        addresses.iter().for_each(|address| drop(TcpStream::connect(address).unwrap()));
    }
}
