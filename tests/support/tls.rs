//! The simulator behind TLS, under a certificate of an authority of its own; and what it takes to be the gateway's client
//! in TLS.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::simulator::Simulator;

/// Who certifies.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as they stand in files.
pub struct Certified {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    /// A server that issues certificates, though its own does not allow that.
    pub fn of_a_server(name: &str) -> Self {
        let parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certifies that somebody is who has this name.
    pub fn certifies(&self, name: &str) -> Certified {
        self.sign(CertificateParams::new(vec![name.to_owned()]).unwrap())
    }

    /// The same until the first day of a year.
    pub fn certifies_until(&self, name: &str, year: i32) -> Certified {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        self.sign(parameters)
    }

    /// The same until a moment.
    pub fn certifies_until_moment(&self, name: &str, end: SystemTime) -> Certified {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.not_after = end.into();
        self.sign(parameters)
    }

    fn sign(&self, parameters: CertificateParams) -> Certified {
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        Certified { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

impl Certified {
    /// By its own key.
    pub fn by_itself(parameters: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        Self { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }
}

/// Somebody who trusts an authority.
pub struct Client<'a> {
    pub authority: &'a Authority,
    /// Its own certificate, if it has one.
    pub certified: Option<&'a Certified>,
    /// What it offers to speak (ALPN).
    pub offers: &'a [&'a str],
    pub versions: &'a [&'static SupportedProtocolVersion],
}

impl<'a> Client<'a> {
    pub fn of(authority: &'a Authority) -> Self {
        Self { authority, certified: None, offers: &[], versions: rustls::ALL_VERSIONS }
    }

    pub fn connector(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.0.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match self.certified {
            None => config.with_no_client_auth(),
            Some(certified) => config.with_client_auth_cert(vec![certified.der()], certified.key()).unwrap(),
        };
        config.alpn_protocols = self.offers.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    /// Connects to `localhost` at an address.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        connect_by(&self.connector(), address).await
    }
}

/// The same as somebody who may have been there before.
pub async fn connect_by(connector: &TlsConnector, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    connector.connect(ServerName::try_from("localhost").unwrap(), stream).await
}

/// What it takes to be `localhost`, and the authority's file, which has this name.
pub fn acceptor(name: &str) -> (TlsAcceptor, PathBuf) {
    let authority = Authority::new();
    let certified = authority.certifies("localhost");
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.pem"));
    std::fs::write(&file, authority.pem()).unwrap();
    (acceptor_of(&certified), file)
}

/// What it takes to be whom a certificate names.
pub fn acceptor_of(certified: &Certified) -> TlsAcceptor {
    TlsAcceptor::from(Arc::new(server(certified, None, rustls::ALL_VERSIONS)))
}

/// The same in these versions; it demands a certificate of clients, if that is to be from an authority.
pub fn server(
    certified: &Certified,
    of_clients: Option<&Authority>,
    versions: &[&'static SupportedProtocolVersion],
) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls =
        rustls::ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions).unwrap();
    let tls = match of_clients {
        None => tls.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.0.der().clone()).unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            tls.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    tls.with_single_cert(vec![certified.der()], certified.key()).unwrap()
}

/// Serves the simulator, and gives its URL.
pub async fn serve(simulator: &Simulator, acceptor: TlsAcceptor) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let simulator = simulator.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust us hangs up here.
            if let Ok(stream) = acceptor.accept(stream).await {
                let simulator = simulator.clone();
                tokio::spawn(async move { simulator.serve_stream(Service::Workspace, stream).await });
            }
        }
    });
    format!("https://localhost:{port}")
}
