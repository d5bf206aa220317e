//! TLS towards clients: what it is made of, which is read from files again and again, and how a connection comes to
//! speak it.
//!
//! A connection keeps what it began with. What a private key is like is told to nobody: not what is in its file, and not
//! what a library says of it.

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
use crate::config::bounded::{read_regular, secret_path, shown_path};
use crate::config::settings::Listen;
use crate::sync::{Mutex, MutexGuard};

/// How much rustls encrypts for a client that does not read, in bytes: one record (RFC 8446 §5.1). It would take 64 KiB.
const UNSENT: usize = 16 * 1024;

/// What a client is answered that speaks plain HTTP here. It may be read by a program that knows upstream's errors, or
/// by a person.
const PLAIN_HTTP: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 115\r\n\
    connection: close\r\n\r\n\
    {\"error_code\":\"APIGW.0201\",\"error_msg\":\"workspace-gateway: plain HTTP where TLS is spoken: expected an https URL\"}\n";

/// How many sessions are remembered, for clients that come again: as many as in rustls by itself.
const SESSIONS: usize = 256;

/// TLS on one listener.
#[derive(Clone)]
pub(super) struct Tls(Arc<ServerConfig>);

/// What a listener speaks from now on: TLS, or plain text.
pub(super) type TlsReceiver = watch::Receiver<Option<Tls>>;

/// Why a connection has come to nothing.
pub(super) enum HandshakeError {
    /// The client hung up without a word.
    Silent(io::Error),
    /// It spoke something else, or the two don't agree.
    Handshake(io::Error),
}

impl Tls {
    /// Has a client speak TLS.
    pub(super) async fn accept<IO>(self, mut io: IO) -> Result<Box<TlsStream<IO>>, HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let first = io.read_u8().await.map_err(HandshakeError::Silent)?;
        if first.is_ascii_alphabetic() || b"\r\n".contains(&first) {
            let told = tell_of_tls(&mut io).await;
            return Err(HandshakeError::Handshake(
                told.err().unwrap_or_else(|| io::Error::other("the client speaks plain HTTP")),
            ));
        }
        let handshake = async {
            let mut acceptor = Acceptor::default();
            acceptor.read_tls(&mut [first].as_slice())?;
            let start = LazyConfigAcceptor::new(acceptor, io).await?;
            start.into_stream_with(self.0, |connection| connection.set_buffer_limit(Some(UNSENT))).await
        };
        handshake.await.map(Box::new).map_err(HandshakeError::Handshake)
    }
}

/// Answers plain HTTP. What else the client sends is read until it hangs up: to close before would be to reset the
/// connection, and the answer might be lost.
async fn tell_of_tls<IO: AsyncRead + AsyncWrite + Unpin>(io: &mut IO) -> io::Result<()> {
    io.write_all(PLAIN_HTTP.as_bytes()).await?;
    io.shutdown().await?;
    let mut rest = [0; 512];
    while io.read(&mut rest).await? > 0 {}
    Ok(())
}

/// TLS that has been read, and is not in force yet.
pub(super) struct Prepared {
    /// For clients, and for an operator elsewhere.
    tls: Option<[Tls; 2]>,
    files: Vec<TlsFile>,
    /// When the certificate ends.
    not_after: Option<NotAfter>,
}

impl Prepared {
    /// When the certificate ends, or one of those with it if it ends sooner. `None` without TLS.
    pub(super) fn not_after(&self) -> Option<NotAfter> {
        self.not_after
    }
}

/// A file, and what is in it.
#[derive(Clone, PartialEq)]
struct TlsFile {
    setting: &'static str,
    path: PathBuf,
    contents: blake3::Hash,
}

/// Reads what the settings name.
///
/// # Errors
/// Which files are unusable, and why.
pub(super) fn prepare(listen: &Listen) -> Result<Prepared, Vec<io::Error>> {
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
    // All that is unusable is told in one run.
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
    // What keeps a key from being read could show what is there.
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

/// TLS for clients, and for an operator elsewhere.
fn server_config(
    listen: &Listen,
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
    let mut for_operator = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    for_operator.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut for_clients = for_operator.clone();
    for_clients.alpn_protocols.insert(0, b"h2".to_vec());
    for config in [&mut for_clients, &mut for_operator] {
        if has_client_ca {
            // Who comes again would be known by its session, whatever has become of its certificate since.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        } else {
            // Each its own.
            config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        }
    }
    Ok([for_clients, for_operator].map(|config| Tls(Arc::new(config))))
}

/// What the metric of the certificate's end is without TLS, and if the end cannot be read. No certificate ends then: 0 and −1
/// are in 1970 and 1969.
const NO_TLS: i64 = 0;
const NOT_READ: i64 = -1;

const CERT: &str = "listen.cert_file";
const KEY: &str = "listen.key_file";
const CLIENT_CA: &str = "listen.client_ca_file";

fn unusable(setting: &str, path: &Path, why: &dyn Display) -> io::Error {
    // In place of a key's path somebody may have given the key.
    let path = if setting == KEY { secret_path(path) } else { shown_path(path) };
    io::Error::other(format!("{setting}: {path}: {why}"))
}

fn certificates(setting: &str, path: &Path, pem: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    // Nor do these errors show what is there: somebody may have named the key's file.
    let not_pem = |_| unusable(setting, path, &"expected a PEM file of certificates");
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(not_pem)?;
    if certificates.is_empty() {
        return Err(unusable(setting, path, &"expected a PEM file with at least one certificate, found none"));
    }
    Ok(certificates)
}

/// What the listeners speak, and will.
pub(super) struct TlsState {
    proxy: SocketAddr,
    admin: SocketAddr,
    clients: watch::Sender<Option<Tls>>,
    operator: watch::Sender<Option<Tls>>,
    /// What that was made of.
    files: Mutex<Vec<TlsFile>>,
    /// When its certificate ends, as Unix time in seconds; 0 without TLS, −1 if that cannot be read.
    not_after: IntGauge,
}

impl TlsState {
    /// For listeners at these addresses, which aren't always those that the settings name: they stay until a restart.
    ///
    /// # Errors
    /// If a file is unusable, or plain text not allowed where it would be spoken.
    pub(super) fn new(listen: &Listen, proxy: SocketAddr, admin: SocketAddr, not_after: IntGauge) -> io::Result<Self> {
        let [clients, operator] = [(); 2].map(|()| watch::channel(None).0);
        let tls_state = Self { proxy, admin, clients, operator, files: Mutex::default(), not_after };
        tls_state.turn(listen)?.take();
        Ok(tls_state)
    }

    /// For clients, and for the operator.
    pub(super) fn tls(&self) -> [TlsReceiver; 2] {
        [self.clients.subscribe(), self.operator.subscribe()]
    }

    /// When the certificate ends. `None` without TLS.
    pub(super) fn not_after(&self) -> Option<NotAfter> {
        match self.not_after.get() {
            NO_TLS => None,
            NOT_READ => Some(NotAfter::Unknown),
            seconds => Some(NotAfter::At(seconds)),
        }
    }

    /// Where plain text is spoken with other machines.
    pub(super) fn exposed(&self, listen: &Listen) -> Vec<(&'static str, SocketAddr)> {
        listen.exposed(self.proxy, self.admin).collect()
    }

    /// Prepares for other settings. Until the turn is over nobody else has one.
    ///
    /// # Errors
    /// As at the beginning. What is spoken stays then.
    pub(super) fn turn(&self, listen: &Listen) -> io::Result<PendingTls<'_>> {
        let files = self.files.lock();
        let prepared = prepare(listen)
            .map_err(|wrong| io::Error::other(wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
        listen.may_be_at(self.proxy, self.admin).map_err(io::Error::other)?;
        Ok(PendingTls { tls_state: self, files, prepared })
    }
}

/// What is going to be spoken, unless it isn't taken.
pub(super) struct PendingTls<'s> {
    tls_state: &'s TlsState,
    files: MutexGuard<'s, Vec<TlsFile>>,
    prepared: Prepared,
}

impl PendingTls<'_> {
    /// Has it spoken from now on. Gives the settings whose file has something else in it, though it is the same file.
    pub(super) fn take(mut self) -> Vec<String> {
        let Prepared { tls, files, not_after } = self.prepared;
        self.tls_state.not_after.set(match not_after {
            None => NO_TLS,
            Some(NotAfter::Unknown) => NOT_READ,
            Some(NotAfter::At(seconds)) => seconds,
        });
        // What is the same goes on: it knows the clients that come again.
        if files == *self.files {
            return Vec::new();
        }
        let is_other = |now: &&TlsFile| {
            self.files.iter().any(|known| known.path == now.path && known.setting == now.setting && known != *now)
        };
        let others = files.iter().filter(is_other).map(|file| format!("{} (what is in it)", file.setting)).collect();
        let [clients, operator] = tls.map_or([None, None], |tls| tls.map(Some));
        self.tls_state.clients.send_replace(clients);
        // Whoever is on this machine needs none.
        self.tls_state.operator.send_replace(operator.filter(|_| !self.tls_state.admin.ip().is_loopback()));
        *self.files = files;
        others
    }
}
