//! Notifies a supervisor such as systemd (sd_notify(3)) when the gateway is ready, reloads, is alive (`watchdog.rs`)
//! and stops. It does nothing if `NOTIFY_SOCKET` is not set. A supervisor that does not read must not block the
//! gateway.

use std::ffi::OsStr;
use std::io;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

/// For sending one message.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(super) struct Supervisor(Option<SocketAddr>);

impl Supervisor {
    pub(super) fn from_environment() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Self(None) };
        Self(match address(&name) {
            Ok(address) => Some(address),
            Err(error) => {
                tracing::warn!(NOTIFY_SOCKET = %name.display(), %error, "sd_notify disabled: invalid NOTIFY_SOCKET");
                None
            }
        })
    }

    pub(super) fn is_configured(&self) -> bool {
        self.0.is_some()
    }

    /// All listeners are open, or a reload has ended.
    pub(super) fn ready(&self, status: &str) {
        self.notify(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// A reload begins. `ready` must follow, whether the reload succeeds or fails.
    pub(super) fn reloading(&self) {
        if !self.is_configured() {
            return;
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.notify(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "sd_notify failed"),
        }
    }

    /// Resets the supervisor's watchdog timer.
    pub(super) fn alive(&self) {
        self.notify(&[NotifyState::Watchdog]);
    }

    pub(super) fn stopping(&self) {
        self.notify(&[NotifyState::Stopping, NotifyState::Status("waiting for requests in progress")]);
    }

    /// Not sd-notify's own function: that supports only sockets with a path, and has no timeout.
    fn notify(&self, states: &[NotifyState<'_>]) {
        let Some(address) = &self.0 else { return };
        let text: String = states.iter().map(|state| format!("{state}\n")).collect();
        if let Err(error) = send(address, text.as_bytes(), SEND_TIMEOUT) {
            tracing::warn!(%error, "sd_notify failed");
        }
    }
}

fn send(address: &SocketAddr, text: &[u8], limit: Duration) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(limit))?;
    socket.send_to_addr(text, address).map(|_| ())
}

/// The address in NOTIFY_SOCKET: an absolute path, or `@` and the name of an abstract socket.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "expected an absolute path, or @ and a name")),
    }
}

/// In the protocol a line break ends a field.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_a_path_or_a_name() {
        assert_eq!(address(OsStr::new("/run/x")).unwrap().as_pathname().unwrap(), "/run/x");
        assert_eq!(address(OsStr::new("@x/y")).unwrap().as_abstract_name().unwrap(), b"x/y");
        for wrong in ["x", "vsock:2:1234", &format!("/{}", "x".repeat(200))] {
            assert!(address(OsStr::new(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sending_to_a_supervisor_that_does_not_read_fails_after_the_limit() {
        let name = format!("workspace-gateway-silent-{}", std::process::id());
        let silent = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        let address = silent.local_addr().unwrap();
        // Until the socket's queue is full.
        let full = (0..100_000).find_map(|_| send(&address, b"READY=1\n", Duration::from_millis(1)).err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
    }
}
