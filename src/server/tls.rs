//! TLS with clients: loads the configured files, again on each reload, and does the handshake.
//!
//! A connection keeps the configuration that it started with. Nothing about a private key may appear in a message:
//! neither the content of its file nor what a library reports about it.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prometheus::IntGauge;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{Acceptor, NoServerSessionStorage, ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{Error, InconsistentKeys, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use crate::certificate::NotAfter;
use crate::config::read_file::{read_regular, secret_path, shown_path};
use crate::config::settings::ListenSettings;
use crate::sync::{Mutex, MutexGuard};

/// How much rustls encrypts for a client that does not read, in bytes: one record (RFC 8446 §5.1). Its default is 64
/// KiB.
const MAX_UNSENT: usize = 16 * 1024;

/// The response to plain HTTP on a TLS listener, in upstream's error format.
const PLAIN_HTTP: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 116\r\n\
    connection: close\r\n\r\n\
    {\"error_code\":\"APIGW.0201\",\"error_msg\":\"workspace-gateway: plain HTTP request on a TLS listener: use an https URL\"}\n";

/// The size of the session cache: the default of rustls.
const SESSIONS: usize = 256;

/// The TLS configuration of one listener.
#[derive(Clone)]
pub(super) struct Tls(Arc<ServerConfig>);

/// The current TLS configuration of a listener; `None` for plaintext.
pub(super) type TlsReceiver = watch::Receiver<Option<Tls>>;

/// Why a handshake failed.
pub(super) enum HandshakeError {
    /// The client closed without sending a byte.
    NoBytes(io::Error),
    /// The client did not speak TLS, or there was no agreement.
    Failed(io::Error),
}

impl Tls {
    /// Does the handshake.
    pub(super) async fn accept<IO>(self, mut io: IO) -> Result<Box<TlsStream<IO>>, HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let first = io.read_u8().await.map_err(HandshakeError::NoBytes)?;
        if first.is_ascii_alphabetic() || b"\r\n".contains(&first) {
            let rejected = reject_plain_http(&mut io).await;
            return Err(HandshakeError::Failed(
                rejected.err().unwrap_or_else(|| io::Error::other("plain HTTP client on a TLS listener")),
            ));
        }
        let handshake = async {
            let mut acceptor = Acceptor::default();
            acceptor.read_tls(&mut [first].as_slice())?;
            let start = LazyConfigAcceptor::new(acceptor, io).await?;
            start.into_stream_with(self.0, |connection| connection.set_buffer_limit(Some(MAX_UNSENT))).await
        };
        handshake.await.map(Box::new).map_err(HandshakeError::Failed)
    }
}

/// Answers plain HTTP. The rest of the request is read until the client closes: closing earlier would reset the
/// connection, and the client might not get the response.
async fn reject_plain_http<IO: AsyncRead + AsyncWrite + Unpin>(io: &mut IO) -> io::Result<()> {
    io.write_all(PLAIN_HTTP.as_bytes()).await?;
    io.shutdown().await?;
    let mut rest = [0; 512];
    while io.read(&mut rest).await? > 0 {}
    Ok(())
}

/// TLS configurations that were loaded and are not in force yet.
pub(super) struct Prepared {
    /// For the proxy listener and for the admin listener.
    tls: Option<[Tls; 2]>,
    files: Vec<TlsFile>,
    not_after: Option<NotAfter>,
}

impl Prepared {
    /// The earliest end of validity in the certificate chain. `None` without TLS.
    pub(super) fn not_after(&self) -> Option<NotAfter> {
        self.not_after
    }
}

/// A file and the hash of its content.
#[derive(Clone, PartialEq)]
struct TlsFile {
    setting: &'static str,
    path: PathBuf,
    contents: blake3::Hash,
}

/// Loads the configured files.
///
/// # Errors
/// All files that are unusable, each with its reason.
pub(super) fn prepare(listen: &ListenSettings) -> Result<Prepared, Vec<io::Error>> {
    let mut files = Vec::new();
    let mut read = |setting, path: &Path| {
        let bytes = read_regular(path).map_err(|error| unusable(setting, path, &error))?;
        files.push(TlsFile { setting, path: path.to_owned(), contents: blake3::hash(&bytes) });
        Ok::<_, io::Error>(bytes)
    };
    let (Some(cert_file), Some(key_file)) = (&listen.cert_file, &listen.key_file) else {
        return Ok(Prepared { tls: None, files, not_after: None });
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = read(CERT, cert_file).and_then(|pem| certificates(CERT, cert_file, &pem));
    let key = read(KEY, key_file).and_then(|pem| private_key(key_file, &pem, &provider));
    let client_ca = listen.client_ca_file.as_ref();
    let verifier = client_ca
        .map(|path| read(CLIENT_CA, path).and_then(|pem| client_verifier(path, &pem, Arc::clone(&provider))))
        .transpose();
    // All unusable files are reported at once.
    let (chain, key, verifier) = match (chain, key, verifier) {
        (Ok(chain), Ok(key), Ok(verifier)) => (chain, key, verifier),
        (chain, key, verifier) => {
            return Err([chain.err(), key.err(), verifier.err()].into_iter().flatten().collect());
        }
    };
    let not_after = Some(NotAfter::of(&chain));
    let config = server_config(listen, chain, key, verifier, provider).map_err(|error| vec![error])?;
    Ok(Prepared { tls: Some(config), files, not_after })
}

fn private_key(path: &Path, pem: &[u8], provider: &CryptoProvider) -> io::Result<Arc<dyn SigningKey>> {
    // The parser's error could contain parts of the key.
    let key = PrivateKeyDer::from_pem_slice(pem)
        .map_err(|_| unusable(KEY, path, &"expected a PEM file with a private key that is not encrypted"))?;
    provider.key_provider.load_private_key(key).map_err(|_| {
        unusable(KEY, path, &"expected an RSA key of 2048 bits or more, ECDSA on P-256 or P-384, or Ed25519")
    })
}

fn client_verifier(path: &Path, pem: &[u8], provider: Arc<CryptoProvider>) -> io::Result<Arc<dyn ClientCertVerifier>> {
    let mut authorities = RootCertStore::empty();
    for certificate in certificates(CLIENT_CA, path, pem)? {
        authorities.add(certificate).map_err(|error| unusable(CLIENT_CA, path, &error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider).build();
    verifier.map_err(|error| unusable(CLIENT_CA, path, &error))
}

/// For the proxy listener and for the admin listener.
fn server_config(
    listen: &ListenSettings,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    provider: Arc<CryptoProvider>,
) -> io::Result<[Tls; 2]> {
    let none = PathBuf::new();
    let [cert_file, key_file] = [&listen.cert_file, &listen.key_file].map(|path| path.as_ref().unwrap_or(&none));
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(Error::InconsistentKeys(_)) => {
            let other = format!("not the key of the certificate in listen.cert_file {}", shown_path(cert_file));
            return Err(unusable(KEY, key_file, &other));
        }
        Err(error) => {
            return Err(unusable(CERT, cert_file, &format!("expected an X.509 certificate of version 3: {error}")));
        }
    }
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let has_client_ca = verifier.is_some();
    let builder = match verifier {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    };
    let mut for_admin = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    for_admin.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut for_clients = for_admin.clone();
    for_clients.alpn_protocols.insert(0, b"h2".to_vec());
    for config in [&mut for_clients, &mut for_admin] {
        if has_client_ca {
            // A resumed session would skip the check of the client certificate.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        } else {
            // Each listener has its own cache.
            config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        }
    }
    Ok([for_clients, for_admin].map(|config| Tls(Arc::new(config))))
}

/// Values of the metric for the end of the certificate: without TLS, and if the end cannot be read. No certificate ends
/// then: 0 and −1 are in 1970 and 1969.
const NO_TLS: i64 = 0;
const NOT_READ: i64 = -1;

const CERT: &str = "listen.cert_file";
const KEY: &str = "listen.key_file";
const CLIENT_CA: &str = "listen.client_ca_file";

fn unusable(setting: &str, path: &Path, why: &dyn Display) -> io::Error {
    // The operator may have set the key itself instead of its path.
    let path = if setting == KEY { secret_path(path) } else { shown_path(path) };
    io::Error::other(format!("{setting}: {path}: {why}"))
}

fn certificates(setting: &str, path: &Path, pem: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    // The parser's error is not shown: the operator may have named the key's file.
    let not_pem = |_| unusable(setting, path, &"expected a PEM file of certificates");
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(not_pem)?;
    if certificates.is_empty() {
        return Err(unusable(setting, path, &"expected a PEM file with at least one certificate, found none"));
    }
    Ok(certificates)
}

/// The TLS configurations in force, and how they are replaced.
pub(super) struct TlsState {
    proxy: SocketAddr,
    admin: SocketAddr,
    proxy_tls: watch::Sender<Option<Tls>>,
    admin_tls: watch::Sender<Option<Tls>>,
    /// What they were made from.
    files: Mutex<Vec<TlsFile>>,
    /// Unix time in seconds; [`NO_TLS`] or [`NOT_READ`].
    not_after: IntGauge,
}

impl TlsState {
    /// For listeners at these addresses. They may differ from the configured ones, and stay until a restart.
    ///
    /// # Errors
    /// If a file is unusable, or plaintext is not allowed at an address.
    pub(super) fn new(
        listen: &ListenSettings,
        proxy: SocketAddr,
        admin: SocketAddr,
        not_after: IntGauge,
    ) -> io::Result<Self> {
        let [proxy_tls, admin_tls] = [(); 2].map(|()| watch::channel(None).0);
        let tls_state = Self { proxy, admin, proxy_tls, admin_tls, files: Mutex::default(), not_after };
        tls_state.load(listen)?.apply();
        Ok(tls_state)
    }

    /// For the proxy listener and for the admin listener.
    pub(super) fn tls(&self) -> [TlsReceiver; 2] {
        [self.proxy_tls.subscribe(), self.admin_tls.subscribe()]
    }

    /// The end of validity of the certificate. `None` without TLS.
    pub(super) fn not_after(&self) -> Option<NotAfter> {
        match self.not_after.get() {
            NO_TLS => None,
            NOT_READ => Some(NotAfter::Unknown),
            seconds => Some(NotAfter::At(seconds)),
        }
    }

    /// The settings and addresses of listeners that speak plaintext with other machines.
    pub(super) fn exposed(&self, listen: &ListenSettings) -> Vec<(&'static str, SocketAddr)> {
        listen.exposed(self.proxy, self.admin).collect()
    }

    /// Loads another configuration. There is only one pending configuration at a time: others wait for the lock.
    ///
    /// # Errors
    /// As [`Self::new`]. Then nothing changes.
    pub(super) fn load(&self, listen: &ListenSettings) -> io::Result<PendingTls<'_>> {
        let files = self.files.lock();
        let prepared = prepare(listen).map_err(|errors| {
            io::Error::other(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        })?;
        listen.check_addresses(self.proxy, self.admin).map_err(io::Error::other)?;
        Ok(PendingTls { tls_state: self, files, prepared })
    }
}

/// A loaded configuration. Dropping it changes nothing.
pub(super) struct PendingTls<'s> {
    tls_state: &'s TlsState,
    files: MutexGuard<'s, Vec<TlsFile>>,
    prepared: Prepared,
}

impl PendingTls<'_> {
    /// Puts the configuration in force. Returns the settings whose path is the same and whose file has other content.
    pub(super) fn apply(mut self) -> Vec<String> {
        let Prepared { tls, files, not_after } = self.prepared;
        self.tls_state.not_after.set(match not_after {
            None => NO_TLS,
            Some(NotAfter::Unknown) => NOT_READ,
            Some(NotAfter::At(seconds)) => seconds,
        });
        // An unchanged configuration stays, with its session cache.
        if files == *self.files {
            return Vec::new();
        }
        let has_changed = |new: &&TlsFile| {
            self.files.iter().any(|old| old.path == new.path && old.setting == new.setting && old != *new)
        };
        let changed = files.iter().filter(has_changed).map(|file| format!("{} (file content)", file.setting)).collect();
        let [proxy_tls, admin_tls] = tls.map_or([None, None], |tls| tls.map(Some));
        self.tls_state.proxy_tls.send_replace(proxy_tls);
        // Local operators need no TLS.
        self.tls_state.admin_tls.send_replace(admin_tls.filter(|_| !self.tls_state.admin.ip().is_loopback()));
        *self.files = files;
        changed
    }
}
