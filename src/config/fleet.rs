//! `[fleet]`: the engine that several gateways share, and the secrets for it. Nothing here connects.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::engine_url::EngineUrl;
pub(crate) use super::engine_url::Topology;
use super::files::Files;
use super::read_file::{read, secret_path, shown_path};
use super::secret::Secret;
use super::settings::FleetSettings;

/// The largest part of a record besides its body, in bytes.
const MAX_RECORD_HEAD: usize = 128 * 1024;

/// The shortest `fleet.secret`, in characters.
const MIN_SECRET: usize = 32;

/// Checked settings of a fleet, with its secret.
#[derive(Clone)]
pub struct FleetConfig {
    pub(crate) engine: EngineUrl,
    pub(crate) name: String,
    pub(crate) budget: Duration,
    /// After so long without the log, the gateway is out of sync.
    pub(crate) sync: Duration,
    /// Whether proofs are shared, too.
    pub(crate) shares_grants: bool,
    /// Larger bodies are not stored there, in bytes.
    pub(crate) max_body_size: usize,
    /// Whether the engine may be beyond this machine without TLS.
    pub(crate) allows_plaintext: bool,
    /// Records are sealed with it.
    pub(crate) secret: String,
    password: Option<Secret>,
    ca_file: Option<PathBuf>,
    client: Option<(PathBuf, PathBuf)>,
}

impl fmt::Debug for FleetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FleetConfig({}, …)", self.engine)
    }
}

/// What a connection needs, as the files are now.
pub(crate) struct EngineFiles {
    pub(crate) password: Option<String>,
    /// In PEM, and the name of its file.
    pub(crate) ca: Option<(String, Vec<u8>)>,
    /// The certificate and the key, in PEM.
    pub(crate) client: Option<(Vec<u8>, Vec<u8>)>,
}

/// Those of [`EngineFiles`].
type TlsFiles = (Option<(String, Vec<u8>)>, Option<(Vec<u8>, Vec<u8>)>);

/// Whether a text seems to be a path. Base64 of 32 random bytes nearly always has capital letters, `+` or `=`; a path with
/// one of these is not recognised.
fn is_path(text: &str) -> bool {
    text.starts_with('/') && !text.bytes().any(|byte| byte.is_ascii_uppercase() || byte == b'+' || byte == b'=')
}

impl FleetConfig {
    /// Reads the secret. `None` without an engine.
    pub(super) fn look_up(settings: &FleetSettings, files: &mut Files) -> Result<Option<Self>, String> {
        let Some(engine) = settings.engine.clone() else { return Ok(None) };
        let named = |name: &'static str| move |error| format!("fleet.{name}: {error}");
        // `check` reports it if it is missing.
        let Some(secret) = settings.secret.as_ref() else { return Ok(None) };
        if matches!(secret, Secret::Inline(text) if is_path(text)) {
            return Err("fleet.secret: (not shown, may be a secret) is a path: expected { file = \"/path\" } for a secret in a \
                        file. Otherwise everybody who can guess the path has the secret"
                .to_owned());
        }
        let secret = secret.look_up(files).map_err(named("secret"))?;
        if secret.len() < MIN_SECRET {
            return Err(format!("fleet.secret: is too short: expected at least {MIN_SECRET} characters"));
        }
        if let Some(password) = &settings.password {
            password.look_up(files).map_err(named("password"))?;
        }
        Ok(Some(Self {
            engine,
            name: settings.name.0.clone(),
            budget: settings.budget.0,
            sync: settings.sync.0,
            shares_grants: settings.grants,
            max_body_size: settings.max_body_size.0.bytes(),
            allows_plaintext: settings.insecure_plaintext.0,
            secret,
            password: settings.password.clone(),
            ca_file: settings.ca_file.clone(),
            client: settings.cert_file.clone().zip(settings.key_file.clone()),
        }))
    }

    /// Whether the files for TLS can be read now. They are read for each connection.
    ///
    /// # Errors
    /// Names the setting and the file.
    pub(crate) fn check_tls_files(&self) -> Result<(), String> {
        self.read_tls_files().map(drop)
    }

    /// For tests on busy machines: how long a request waits for the engine.
    pub fn set_budget(&mut self, budget: Duration) {
        self.budget = budget;
    }

    /// The longest record, in bytes.
    pub(crate) fn max_record(&self) -> usize {
        self.max_body_size.saturating_add(MAX_RECORD_HEAD)
    }

    /// Reads the password and the TLS files again, for they may have been replaced.
    pub(crate) fn read_files(&self) -> Result<EngineFiles, String> {
        let password = self.password.as_ref().map(|password| password.look_up(&mut Files::default())).transpose();
        let (ca, client) = self.read_tls_files()?;
        Ok(EngineFiles { password: password.map_err(|error| format!("fleet.password: {error}"))?, ca, client })
    }

    fn read_tls_files(&self) -> Result<TlsFiles, String> {
        let contents = |name: &str, path: &PathBuf, shown: String| {
            read(path).map_err(|error| format!("fleet.{name}: cannot read {shown}: {error}"))
        };
        let ca = self.ca_file.as_ref().map(|path| {
            let shown = shown_path(path);
            contents("ca_file", path, shown.clone()).map(|pem| (shown, pem))
        });
        let client = self.client.as_ref().map(|(cert, key)| {
            let cert = contents("cert_file", cert, shown_path(cert))?;
            Ok::<_, String>((cert, contents("key_file", key, secret_path(key))?))
        });
        Ok((ca.transpose()?, client.transpose()?))
    }
}

/// Checks the settings against each other.
pub(super) fn check(fleet: &FleetSettings) -> Result<(), String> {
    let Some(engine) = &fleet.engine else { return Ok(()) };
    if fleet.secret.is_none() {
        return Err(
            "fleet.secret: is missing: expected a secret of at least 32 characters, the same for all gateways of \
                    the fleet, because fleet.engine is set"
                .to_owned(),
        );
    }
    if engine.user.is_some() && fleet.password.is_none() {
        return Err("fleet.password: is missing: expected one with the user in fleet.engine".to_owned());
    }
    match (&fleet.cert_file, &fleet.key_file) {
        (Some(cert), None) => {
            return Err(format!(
                "fleet.cert_file: {} is not allowed alone: expected fleet.key_file with it",
                shown_path(cert)
            ));
        }
        (None, Some(key)) => {
            return Err(format!(
                "fleet.key_file: {} is not allowed alone: expected fleet.cert_file with it",
                secret_path(key)
            ));
        }
        _ => {}
    }
    if engine.is_tls {
        return Ok(());
    }
    for (name, file) in [("ca_file", &fleet.ca_file), ("cert_file", &fleet.cert_file)] {
        if let Some(path) = file {
            let path = shown_path(path);
            return Err(format!("fleet.{name}: {path} is not allowed: expected a fleet.engine with TLS (rediss…://)"));
        }
    }
    let is_local =
        |host: &str| host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if !fleet.insecure_plaintext.0 && !engine.hosts.iter().all(|(host, _)| is_local(host)) {
        return Err(format!(
            "fleet.engine: \"{engine}\" is not allowed in plaintext, because others could read the password and void \
             entries: expected loopback addresses, or TLS (rediss…://), or fleet.insecure_plaintext = true"
        ));
    }
    Ok(())
}
