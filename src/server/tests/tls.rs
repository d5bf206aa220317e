//! Timeouts of TLS connections: the same as without TLS. The handshake is part of the header timeout.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use prometheus::IntGauge;
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::fast_path::{HEAD, WarmGateway};
use super::*;
use crate::config::Config;
use crate::server::tls::TlsState;

/// A TLS configuration, and a client that trusts it.
fn tls(name: &str) -> (Option<Tls>, TlsConnector) {
    let folder = std::env::temp_dir().join(format!("workspace-gateway-tls-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let parameters = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
    let file = |name: &str, text: String| -> PathBuf {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name)
    };
    let (cert, key) = (file("cert", issuer.pem()), file("key", issuer.key().serialize_pem()));
    let settings = format!("region = \"r\"\n[listen]\ncert_file = {cert:?}\nkey_file = {key:?}\n");
    let config = Config::from_layers("test.toml", &settings, &[]).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let gauge = IntGauge::new("end", "A test.").unwrap();
    let [tls, _] = TlsState::new(&config.settings.listen, address, address, gauge).unwrap().tls();
    std::fs::remove_dir_all(folder).unwrap();

    let mut roots = RootCertStore::empty();
    roots.add(issuer.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = tls.borrow().clone();
    (tls, TlsConnector::from(Arc::new(client)))
}

async fn handshake(served: &mut ServedConnection, connector: &TlsConnector) -> TlsStream<DuplexStream> {
    let name = ServerName::try_from("localhost").unwrap();
    connector.connect(name, served.client.take().unwrap()).await.unwrap()
}

async fn send_request(client: &mut TlsStream<DuplexStream>, path: &str) {
    client.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    client.flush().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_handshake_is_part_of_the_header_timeout() {
    let (tls, connector) = tls("handshake");
    // Nothing, a partial record header, and a partial handshake message.
    for first_bytes in ["", "\u{16}", "\u{16}\u{3}\u{1}\0\u{7f}", "\u{16}\u{3}\u{1}\0\u{7f}\u{1}\0\0\u{7b}\u{3}\u{3}"] {
        let mut served = ServedConnection::with_tls(tls.clone());
        sleep(Duration::from_secs(4)).await;
        served.write(first_bytes).await;
        assert_eq!(served.ended().await, (10, vec![("header-timeout", 1)]), "{first_bytes:?}");
    }
    // The handshake succeeds, and then no request arrives, or a part of one.
    for head in ["", "GET / HT"] {
        let mut served = ServedConnection::with_tls(tls.clone());
        sleep(Duration::from_secs(4)).await;
        let mut client = handshake(&mut served, &connector).await;
        sleep(Duration::from_secs(4)).await;
        client.write_all(head.as_bytes()).await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(served.ended().await, (10, vec![("header-timeout", 1)]), "{head:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_invalid_handshake_ends_the_connection_immediately() {
    let (tls, _) = tls("nonsense");
    for nonsense in ["\u{15}\u{3}\u{3}\0\u{2}\u{2}\u{28}", "\u{16}\u{3}\u{1}\0\u{4}\u{2}\0\0\0", "\0\0\0\0\0\0"] {
        let mut served = ServedConnection::with_tls(tls.clone());
        served.write(nonsense).await;
        assert_eq!(served.ended().await, (0, vec![("handshake", 1)]), "{nonsense:?}");
    }
    // A client that closes without sending a byte is not a failed handshake: port probes do that.
    let mut served = ServedConnection::with_tls(tls.clone());
    drop(served.client.take());
    assert_eq!(served.ended().await, (0, vec![]));
}

#[tokio::test(start_paused = true)]
async fn plain_http_gets_a_400_and_the_header_timeout_still_applies() {
    let (tls, _) = tls("plain");
    for ends in [true, false] {
        let mut served = ServedConnection::with_tls(tls.clone());
        served.write("POST /small HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n").await;
        let mut response = String::new();
        served.client().read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
        assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())), "{head}");
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(json["error_code"] == "APIGW.0201", "{json}");
        assert!(json["error_msg"].as_str().unwrap().starts_with("workspace-gateway: plain HTTP"), "{json}");
        // The rest of the request is read, so that the client gets to read the response.
        served.write(&"x".repeat(10 * BETWEEN)).await;
        if ends {
            drop(served.client.take());
            assert_eq!(served.ended().await, (0, vec![("handshake", 1)]));
        } else {
            assert_eq!(served.ended().await, (10, vec![("header-timeout", 1)]));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_not_read_ends_the_connection() {
    let (tls, connector) = tls("unread");
    // More than TLS buffers, and less. With less, everything was written when the wait starts.
    for path in ["/large", "/medium"] {
        let mut served = ServedConnection::with_tls(tls.clone());
        let mut client = handshake(&mut served, &connector).await;
        send_request(&mut client, path).await;
        assert_eq!(served.ended().await, (30, vec![("write-timeout", 1)]), "{path}");
    }
    let warm = WarmGateway::of(MEDIUM).await;
    let mut served = warm.serve_with_tls(tls);
    let mut client = handshake(&mut served, &connector).await;
    client.write_all(HEAD.as_bytes()).await.unwrap();
    client.flush().await.unwrap();
    sleep(Duration::from_secs(29)).await;
    assert_eq!(warm.in_flight(), 1, "bytes buffered by TLS are not sent");
    assert_eq!(
        (served.ended().await, warm.fast_path_hits()),
        ((30, vec![("write-timeout", 1)]), 1),
        "by the fast path"
    );
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_read_slowly_arrives_completely() {
    let (tls, connector) = tls("slow");
    let mut served = ServedConnection::with_tls(tls.clone());
    let mut client = handshake(&mut served, &connector).await;
    send_request(&mut client, "/large").await;
    let mut read = 0;
    while read < LARGE {
        // A TLS record is four times as large, arrives as a whole, and may take five reads.
        sleep(Duration::from_secs(5)).await;
        read += client.read(&mut [0; BETWEEN]).await.unwrap();
    }
    assert!(served.seconds() > 300 && served.causes().is_empty());

    for size in [MEDIUM, LARGE] {
        let warm = WarmGateway::of(size).await;
        let mut served = warm.serve_with_tls(tls.clone());
        let mut client = handshake(&mut served, &connector).await;
        for sent in 1..3 {
            client.write_all(HEAD.as_bytes()).await.unwrap();
            client.flush().await.unwrap();
            warm.read_response_from(&mut client, Duration::from_secs(5)).await;
            assert_eq!((served.causes(), warm.fast_path_hits()), (vec![], sent));
        }
        assert_eq!(served.ended().await.1, [("keepalive-timeout", 1)]);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "with close_notify");
    }
}

#[tokio::test(start_paused = true)]
async fn draining_finishes_requests_in_progress() {
    let (tls, connector) = tls("drain");
    // During the handshake.
    for first_bytes in ["", "\u{16}\u{3}\u{1}"] {
        let mut served = ServedConnection::with_tls(tls.clone());
        served.write(first_bytes).await;
        served.shutdown_control.drain();
        assert_eq!(served.ended().await, (0, vec![]), "{first_bytes:?}");
    }
    for path in ["/small", "/medium"] {
        let mut served = ServedConnection::with_tls(tls.clone());
        let mut client = handshake(&mut served, &connector).await;
        send_request(&mut client, path).await;
        sleep(Duration::from_secs(1)).await;
        served.shutdown_control.drain();
        sleep(Duration::from_secs(20)).await;
        // The close_notify alert must arrive. Without it, a client cannot detect truncation.
        let mut response = Vec::new();
        client.read_to_end(&mut response).await.unwrap();
        assert!(response.ends_with(b"\r\n0\r\n\r\n") && response.len() > if path == "/small" { 5 } else { MEDIUM });
        assert_eq!(served.ended().await.1, [], "{path}");
    }
    let warm = WarmGateway::of(MEDIUM).await;
    let mut served = warm.serve_with_tls(tls);
    let mut client = handshake(&mut served, &connector).await;
    client.write_all(HEAD.as_bytes()).await.unwrap();
    client.flush().await.unwrap();
    sleep(Duration::from_secs(1)).await;
    served.shutdown_control.drain();
    sleep(Duration::from_secs(20)).await;
    warm.read_response_from(&mut client, Duration::ZERO).await;
    assert_eq!((client.read(&mut [0]).await.unwrap(), warm.fast_path_hits()), (0, 1));
    assert_eq!(served.ended().await.1, []);
}
