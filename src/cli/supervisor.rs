//! Telling a supervisor how it goes (sd_notify(3)): when the gateway can be asked, while its settings are read again,
//! that it is alive (`watchdog.rs` decides), and that it stops. Without a supervisor that wants to know, nothing is told.

use std::ffi::OsStr;
use std::io;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

/// How long a supervisor may keep the gateway waiting. It never should.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whoever has started the gateway.
#[derive(Clone)]
pub(super) struct Supervisor(Option<SocketAddr>);

impl Supervisor {
    /// The one that the environment names, if any.
    pub(super) fn from_environment() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Self(None) };
        Self(match address(&name) {
            Ok(address) => Some(address),
            Err(error) => {
                tracing::warn!(NOTIFY_SOCKET = %name.display(), %error, "the supervisor is told nothing");
                None
            }
        })
    }

    /// Whether there is somebody to tell.
    pub(super) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Everything listens, by the settings that this tells of.
    pub(super) fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// Settings are about to be read again. It is ready after that, whatever comes of it.
    pub(super) fn reloading(&self) {
        if !self.is_there() {
            return;
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "cannot tell the supervisor"),
        }
    }

    /// The gateway has just answered a request.
    pub(super) fn alive(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    /// The gateway stops.
    pub(super) fn stopping(&self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status("finishing what is in flight")]);
    }

    /// sd-notify's own way to tell knows only sockets with a path, and would wait for ever.
    fn tell(&self, states: &[NotifyState<'_>]) {
        let Some(address) = &self.0 else { return };
        let text: String = states.iter().map(|state| format!("{state}\n")).collect();
        if let Err(error) = send(address, text.as_bytes(), PATIENCE) {
            tracing::warn!(%error, "cannot tell the supervisor");
        }
    }
}

fn send(address: &SocketAddr, text: &[u8], stale_if_slow: Duration) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(stale_if_slow))?;
    socket.send_to_addr(text, address).map(|_| ())
}

/// What NOTIFY_SOCKET may be: a path, or a name in no file system, which then begins with `@`.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "expected a path from / on, or a name after @")),
    }
}

/// A line is what ends a word here, and an error may have several.
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
    fn nobody_is_waited_for_long_who_does_not_listen() {
        let name = format!("workspace-gateway-mute-{}", std::process::id());
        let mute = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        let address = mute.local_addr().unwrap();
        // As many as it takes until there is no room for more, which the system bounds.
        let full = (0..100_000).find_map(|_| send(&address, b"READY=1\n", Duration::from_millis(1)).err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
    }
}
