//! Where a server listens: on sockets that were handed down to it, and for the rest on addresses that its settings name.

use std::io;
use std::net::SocketAddr;

use super::StartError;
use super::memory::BUFFERS;
use crate::config::distinct;
use crate::config::settings::Listen;
use crate::net;

/// The names of the listeners, in the order in which sockets without names stand for them.
pub const NAMES: [&str; 3] = ["proxy", "metrics", "admin"];

/// Sockets that listen already, one for a listener at most. Others may accept from them, too: whoever had them before,
/// until it ends, and whoever will be handed them next.
#[derive(Default)]
pub struct Inherited([Option<std::net::TcpListener>; 3]);

impl Inherited {
    /// Takes over a socket for the listener of this name.
    ///
    /// # Errors
    /// If there is no such listener, it has one already, or the socket is none that connections can be accepted from.
    pub fn add(&mut self, name: &str, socket: std::net::TcpListener) -> Result<(), String> {
        let index = NAMES.iter().position(|known| *known == name);
        let place = index.and_then(|index| self.0.get_mut(index));
        let place = place.ok_or_else(|| format!("{name:?} is no listener: expected {}", NAMES.join(", ")))?;
        if place.is_some() {
            return Err(format!("{name:?} is there twice: expected each once"));
        }
        match net::listens(&socket) {
            Ok(true) => {}
            Ok(false) => return Err(format!("the socket for {name:?} does not listen")),
            Err(error) => return Err(format!("the socket for {name:?} is unusable: {error}")),
        }
        *place = Some(socket);
        Ok(())
    }
}

/// One of the three.
pub(super) struct ServerListener {
    pub(super) socket: net::Listener,
    pub(super) address: SocketAddr,
    /// Whether others may go on accepting from it.
    pub(super) is_inherited: bool,
}

/// Opens all three: for clients, for probes and for the operator.
pub(super) fn open(settings: &Listen, inherited: Inherited) -> Result<[ServerListener; 3], StartError> {
    let Inherited([proxy, metrics, admin]) = inherited;
    let listeners = [
        one("listen.proxy", settings.proxy.0, proxy)?,
        one("listen.metrics", settings.metrics.0, metrics)?,
        one("listen.admin", settings.admin.0, admin)?,
    ];
    // Handed down as two, one socket would give each of them a part of the connections.
    let addresses = NAMES.iter().zip(&listeners).map(|(name, listener)| (*name, listener.address));
    let addresses: Vec<_> = addresses.collect();
    distinct(&addresses).map_err(io::Error::other)?;
    Ok(listeners)
}

fn one(
    setting: &'static str,
    address: SocketAddr,
    inherited: Option<std::net::TcpListener>,
) -> Result<ServerListener, StartError> {
    let failed = |source| StartError::Listen { setting, address, source };
    let is_inherited = inherited.is_some();
    let socket = match inherited {
        Some(socket) => net::Listener::adopt(socket, BUFFERS),
        None => net::Listener::bind(address, BUFFERS),
    };
    let socket = socket.map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    Ok(ServerListener { socket, address, is_inherited })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(address: &str) -> std::net::TcpListener {
        std::net::TcpListener::bind(address).unwrap()
    }

    fn settings(text: &str) -> Listen {
        let text = format!("region = \"r\"\n[listen]\n{text}");
        crate::config::Config::from_layers("f", &text, &[]).unwrap().settings.listen
    }

    const ANY_PORT: &str = "proxy = \"127.0.0.1:0\"\nmetrics = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"";

    #[tokio::test]
    async fn what_is_handed_down_is_used_and_the_rest_is_bound() {
        let (metrics, mut inherited) = (listening("127.0.0.1:0"), Inherited::default());
        let address = metrics.local_addr().unwrap();
        inherited.add("metrics", metrics).unwrap();
        let listeners = open(&settings(ANY_PORT), inherited).unwrap();
        assert_eq!(listeners.each_ref().map(|listener| listener.is_inherited), [false, true, false]);
        assert_eq!(listeners[1].address, address);
    }

    #[tokio::test]
    async fn one_socket_is_no_two() {
        let (proxy, mut inherited) = (listening("127.0.0.1:0"), Inherited::default());
        inherited.add("admin", proxy.try_clone().unwrap()).unwrap();
        inherited.add("proxy", proxy).unwrap();
        let refused = open(&settings(ANY_PORT), inherited).err().unwrap().to_string();
        assert!(refused.starts_with("admin: ") && refused.ends_with("proxy listens there already"), "{refused}");
    }

    #[test]
    fn a_socket_that_nobody_can_use_is_refused() {
        let mut inherited = Inherited::default();
        inherited.add("proxy", listening("127.0.0.1:0")).unwrap();
        let twice = inherited.add("proxy", listening("127.0.0.1:0")).unwrap_err();
        assert_eq!(twice, "\"proxy\" is there twice: expected each once");
        let unknown = inherited.add("http", listening("127.0.0.1:0")).unwrap_err();
        assert_eq!(unknown, "\"http\" is no listener: expected proxy, metrics, admin");
        let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        assert_eq!(inherited.add("admin", silent.into()).unwrap_err(), "the socket for \"admin\" does not listen");
    }
}
