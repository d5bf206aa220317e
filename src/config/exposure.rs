//! Who may come to hear what clients say. Their tokens travel on the listeners for clients and for the operator: in
//! the clear on this machine alone, unless somebody has said that it may be elsewhere.

use std::net::SocketAddr;

use super::bounded::{secret_path, shown_path};
use super::settings::Listen;

impl Listen {
    /// Whether clients have to speak TLS, and so has the operator who isn't on this machine.
    pub fn has_tls(&self) -> bool {
        self.cert_file.is_some()
    }

    /// Whether these may be the addresses: of plain text on one that isn't loopback somebody has to have said that it may be,
    /// and the operator's is not open to everyone there.
    ///
    /// # Errors
    /// The first of them where it isn't.
    pub fn may_be_at(&self, proxy: SocketAddr, admin: SocketAddr) -> Result<(), String> {
        if !admin.ip().is_loopback() && self.admin_token.is_none() {
            return Err(format!(
                "listen.admin: \"{admin}\" is not allowed: expected a loopback address, or a listen.admin_token"
            ));
        }
        for (setting, address) in self.exposed(proxy, admin) {
            if !self.insecure_plaintext.0 {
                return Err(format!(
                    "{setting}: \"{address}\" is not allowed in plain text, for tokens travel on it: expected a \
                     loopback address, or TLS (listen.cert_file and listen.key_file), or listen.insecure_plaintext = true"
                ));
            }
        }
        Ok(())
    }

    /// The addresses at which plain text would be spoken to other machines, by their settings.
    pub fn exposed(&self, proxy: SocketAddr, admin: SocketAddr) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        let has_tls = self.has_tls();
        let spoken = [("listen.proxy", proxy), ("listen.admin", admin)];
        spoken.into_iter().filter(move |(_, address)| !has_tls && !address.ip().is_loopback())
    }

    /// What the files of TLS can't tell each for itself.
    pub(super) fn files_are_consistent(&self) -> Result<(), String> {
        let alone = |setting: &str, path: String, missing: &str| {
            Err(format!("listen.{setting}: {path} is not allowed alone: expected {missing} with it"))
        };
        match (&self.cert_file, &self.key_file, &self.client_ca_file) {
            (Some(cert), None, _) => alone("cert_file", shown_path(cert), "listen.key_file"),
            (None, Some(key), _) => alone("key_file", secret_path(key), "listen.cert_file"),
            (None, None, Some(ca)) => alone("client_ca_file", shown_path(ca), "listen.cert_file and listen.key_file"),
            _ => Ok(()),
        }
    }
}
