//! TLS for tests: certificate authorities, a TLS listener for the simulator, and TLS clients for the gateway.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::simulator::Simulator;

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its private key, in PEM.
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate that has the name of its issuer for a self-signed one.
        parameters.distinguished_name.push(DnType::CommonName, "authority");
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    /// A server's certificate that is used to issue others, which it does not permit.
    pub fn of_server(name: &str) -> Self {
        let parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn issue(&self, name: &str) -> Identity {
        self.sign(CertificateParams::new(vec![name.to_owned()]).unwrap())
    }

    /// Valid until the first day of a year.
    pub fn issue_until_year(&self, name: &str, year: i32) -> Identity {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        self.sign(parameters)
    }

    pub fn issue_until(&self, name: &str, end: SystemTime) -> Identity {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.not_after = end.into();
        self.sign(parameters)
    }

    fn sign(&self, parameters: CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

impl Identity {
    pub fn self_signed(parameters: CertificateParams) -> Self {
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

/// A TLS client that trusts an authority.
pub struct Client<'a> {
    pub authority: &'a Authority,
    /// The client certificate.
    pub identity: Option<&'a Identity>,
    /// The protocols that it offers (ALPN).
    pub offers: &'a [&'a str],
    pub versions: &'a [&'static SupportedProtocolVersion],
}

impl<'a> Client<'a> {
    pub fn of(authority: &'a Authority) -> Self {
        Self { authority, identity: None, offers: &[], versions: rustls::ALL_VERSIONS }
    }

    pub fn connector(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.0.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match self.identity {
            None => config.with_no_client_auth(),
            Some(identity) => config.with_client_auth_cert(vec![identity.der()], identity.key()).unwrap(),
        };
        config.alpn_protocols = self.offers.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    /// Connects to an address with the server name `localhost`.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        connect_with(&self.connector(), address).await
    }
}

/// The same with an existing connector, which may resume a session.
pub async fn connect_with(connector: &TlsConnector, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    connector.connect(ServerName::try_from("localhost").unwrap(), stream).await
}

/// An acceptor with a certificate for `localhost`, and the file with its authority, which gets this name.
pub fn acceptor(name: &str) -> (TlsAcceptor, PathBuf) {
    let authority = Authority::new();
    let identity = authority.issue("localhost");
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.pem"));
    std::fs::write(&file, authority.pem()).unwrap();
    (acceptor_for(&identity), file)
}

pub fn acceptor_for(identity: &Identity) -> TlsAcceptor {
    TlsAcceptor::from(Arc::new(server(identity, None, rustls::ALL_VERSIONS)))
}

/// A server configuration with these TLS versions. It requires a client certificate of `client_authority`, if given.
pub fn server(
    identity: &Identity,
    client_authority: Option<&Authority>,
    versions: &[&'static SupportedProtocolVersion],
) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls =
        rustls::ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions).unwrap();
    let tls = match client_authority {
        None => tls.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.0.der().clone()).unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            tls.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    tls.with_single_cert(vec![identity.der()], identity.key()).unwrap()
}

/// Serves the simulator under TLS, and returns its URL.
pub async fn serve(simulator: &Simulator, acceptor: TlsAcceptor) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let simulator = simulator.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust the certificate closes the connection here.
            if let Ok(stream) = acceptor.accept(stream).await {
                let simulator = simulator.clone();
                tokio::spawn(async move { simulator.serve_stream(Service::Workspace, stream).await });
            }
        }
    });
    format!("https://localhost:{port}")
}
