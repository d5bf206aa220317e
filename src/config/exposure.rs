//! Where plaintext is allowed. Clients send tokens to the proxy and admin listeners. Tokens must not travel in
//! plaintext beyond loopback unless `listen.insecure_plaintext` allows it.

use std::net::SocketAddr;

use super::read_file::{secret_path, shown_path};
use super::settings::ListenSettings;

impl ListenSettings {
    /// Whether the proxy listener uses TLS. The admin listener then uses it, too, unless it is on loopback.
    pub fn has_tls(&self) -> bool {
        self.cert_file.is_some()
    }

    /// Checks the addresses of the listeners. Beyond loopback, plaintext needs `insecure_plaintext`, and the admin
    /// listener needs `admin_token`.
    ///
    /// # Errors
    /// The first address that is not allowed.
    pub fn check_addresses(&self, proxy: SocketAddr, admin: SocketAddr) -> Result<(), String> {
        if !admin.ip().is_loopback() && self.admin_token.is_none() {
            return Err(format!(
                "listen.admin: \"{admin}\" is not allowed: expected a loopback address, or a listen.admin_token"
            ));
        }
        for (setting, address) in self.exposed(proxy, admin) {
            if !self.insecure_plaintext.0 {
                return Err(format!(
                    "{setting}: \"{address}\" is not allowed in plaintext, because clients send tokens to it: expected a \
                     loopback address, or TLS (listen.cert_file and listen.key_file), or listen.insecure_plaintext = true"
                ));
            }
        }
        Ok(())
    }

    /// The addresses beyond loopback that would use plaintext, with the names of their settings.
    pub fn exposed(&self, proxy: SocketAddr, admin: SocketAddr) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        let has_tls = self.has_tls();
        let listeners = [("listen.proxy", proxy), ("listen.admin", admin)];
        listeners.into_iter().filter(move |(_, address)| !has_tls && !address.ip().is_loopback())
    }

    /// Checks that no TLS file is set without the others that it needs.
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
