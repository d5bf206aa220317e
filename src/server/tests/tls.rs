//! What a client of TLS may take how long for: as long as any other, and the handshake is a part of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use prometheus::IntGauge;
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::fast_path::{HEAD, Knowing};
use super::*;
use crate::config::Config;
use crate::server::tls::TlsState;

/// TLS, and who trusts it.
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

/// The client's end, once the two have agreed.
async fn agree(served: &mut Served, connector: &TlsConnector) -> TlsStream<DuplexStream> {
    let name = ServerName::try_from("localhost").unwrap();
    connector.connect(name, served.client.take().unwrap()).await.unwrap()
}

async fn ask(client: &mut TlsStream<DuplexStream>, path: &str) {
    client.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    client.flush().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_handshake_has_as_long_as_a_head() {
    let (tls, connector) = tls("handshake");
    // Nothing, the beginning of a record, and the beginning of what is in it.
    for begun in ["", "\u{16}", "\u{16}\u{3}\u{1}\0\u{7f}", "\u{16}\u{3}\u{1}\0\u{7f}\u{1}\0\0\u{7b}\u{3}\u{3}"] {
        let mut served = Served::new_in(tls.clone());
        sleep(Duration::from_secs(4)).await;
        served.write(begun).await;
        assert_eq!(served.ended().await, (10, vec![("header-timeout", 1)]), "{begun:?}");
    }
    // They agree, and then nothing more comes, or not all of it.
    for head in ["", "GET / HT"] {
        let mut served = Served::new_in(tls.clone());
        sleep(Duration::from_secs(4)).await;
        let mut client = agree(&mut served, &connector).await;
        sleep(Duration::from_secs(4)).await;
        client.write_all(head.as_bytes()).await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(served.ended().await, (10, vec![("header-timeout", 1)]), "{head:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_handshake_ends_at_once() {
    let (tls, _) = tls("nonsense");
    for nonsense in ["\u{15}\u{3}\u{3}\0\u{2}\u{2}\u{28}", "\u{16}\u{3}\u{1}\0\u{4}\u{2}\0\0\0", "\0\0\0\0\0\0"] {
        let mut served = Served::new_in(tls.clone());
        served.write(nonsense).await;
        assert_eq!(served.ended().await, (0, vec![("handshake", 1)]), "{nonsense:?}");
    }
    // Who says nothing and goes has not failed: so do probes of a port.
    let mut served = Served::new_in(tls.clone());
    drop(served.client.take());
    assert_eq!(served.ended().await, (0, vec![]));
}

#[tokio::test(start_paused = true)]
async fn plain_http_is_answered_and_then_not_waited_for_for_ever() {
    let (tls, _) = tls("plain");
    for ends in [true, false] {
        let mut served = Served::new_in(tls.clone());
        served.write("POST /small HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n").await;
        let mut answer = String::new();
        served.client().read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
        assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())), "{head}");
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(json["error_code"] == "APIGW.0201", "{json}");
        assert!(json["error_msg"].as_str().unwrap().starts_with("workspace-gateway: plain HTTP"), "{json}");
        // What it goes on sending is taken, so that it comes to read the answer.
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
async fn an_answer_that_is_not_read_ends_the_connection() {
    let (tls, connector) = tls("unread");
    // More than TLS takes at once, and less: there, everything has been written once it begins to wait.
    for path in ["/large", "/medium"] {
        let mut served = Served::new_in(tls.clone());
        let mut client = agree(&mut served, &connector).await;
        ask(&mut client, path).await;
        assert_eq!(served.ended().await, (30, vec![("write-timeout", 1)]), "{path}");
    }
    let knowing = Knowing::of(MEDIUM).await;
    let mut served = knowing.served_in(tls);
    let mut client = agree(&mut served, &connector).await;
    client.write_all(HEAD.as_bytes()).await.unwrap();
    client.flush().await.unwrap();
    sleep(Duration::from_secs(29)).await;
    assert_eq!(knowing.in_flight(), 1, "what only TLS has taken is not sent");
    assert_eq!(
        (served.ended().await, knowing.fast_path_hits()),
        ((30, vec![("write-timeout", 1)]), 1),
        "by the fast path"
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_read_slowly_goes_on_and_comes_whole() {
    let (tls, connector) = tls("slow");
    let mut served = Served::new_in(tls.clone());
    let mut client = agree(&mut served, &connector).await;
    ask(&mut client, "/large").await;
    let mut read = 0;
    while read < LARGE {
        // A record has four times as much, comes as a whole, and may take five reads.
        sleep(Duration::from_secs(5)).await;
        read += client.read(&mut [0; BETWEEN]).await.unwrap();
    }
    assert!(served.seconds() > 300 && served.causes().is_empty());

    for size in [MEDIUM, LARGE] {
        let knowing = Knowing::of(size).await;
        let mut served = knowing.served_in(tls.clone());
        let mut client = agree(&mut served, &connector).await;
        for asked in 1..3 {
            client.write_all(HEAD.as_bytes()).await.unwrap();
            client.flush().await.unwrap();
            knowing.answers(&mut client, Duration::from_secs(5)).await;
            assert_eq!((served.causes(), knowing.fast_path_hits()), (vec![], asked));
        }
        assert_eq!(served.ended().await.1, [("keepalive-timeout", 1)]);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "and it was told that this is the end");
    }
}

#[tokio::test(start_paused = true)]
async fn to_drain_is_to_finish_what_is_under_way() {
    let (tls, connector) = tls("drain");
    // Not agreed yet.
    for begun in ["", "\u{16}\u{3}\u{1}"] {
        let mut served = Served::new_in(tls.clone());
        served.write(begun).await;
        served.exit.drain();
        assert_eq!(served.ended().await, (0, vec![]), "{begun:?}");
    }
    for path in ["/small", "/medium"] {
        let mut served = Served::new_in(tls.clone());
        let mut client = agree(&mut served, &connector).await;
        ask(&mut client, path).await;
        sleep(Duration::from_secs(1)).await;
        served.exit.drain();
        sleep(Duration::from_secs(20)).await;
        // Without the word that it is over, what was cut off could not be told from what is whole.
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer.ends_with(b"\r\n0\r\n\r\n") && answer.len() > if path == "/small" { 5 } else { MEDIUM });
        assert_eq!(served.ended().await.1, [], "{path}");
    }
    let knowing = Knowing::of(MEDIUM).await;
    let mut served = knowing.served_in(tls);
    let mut client = agree(&mut served, &connector).await;
    client.write_all(HEAD.as_bytes()).await.unwrap();
    client.flush().await.unwrap();
    sleep(Duration::from_secs(1)).await;
    served.exit.drain();
    sleep(Duration::from_secs(20)).await;
    knowing.answers(&mut client, Duration::ZERO).await;
    assert_eq!((client.read(&mut [0]).await.unwrap(), knowing.fast_path_hits()), (0, 1));
    assert_eq!(served.ended().await.1, []);
}
