//! Opens the listeners: on inherited sockets where there are any, else on the configured addresses. No connection is
//! accepted here.

use std::io;
use std::net::SocketAddr;

use super::StartError;
use super::memory::BUFFERS;
use crate::config::distinct;
use crate::config::settings::ListenSettings;
use crate::net::{self, Network};

/// The names of the listeners. Inherited sockets without names are assigned in this order.
pub const NAMES: [&str; 3] = ["proxy", "metrics", "admin"];

/// Inherited listening sockets, at most one for each listener. Other processes may accept from the same sockets: the
/// previous one until it ends, and the next one.
#[derive(Default)]
pub struct Inherited([Option<std::net::TcpListener>; 3]);

impl Inherited {
    /// Assigns a socket to the listener of this name.
    ///
    /// # Errors
    /// If there is no such listener, if it already has a socket, or if the socket does not accept connections.
    pub fn add(&mut self, name: &str, socket: std::net::TcpListener) -> Result<(), String> {
        let index = NAMES.iter().position(|known| *known == name);
        let place = index.and_then(|index| self.0.get_mut(index));
        let place = place.ok_or_else(|| format!("{name:?} is not a listener: expected one of {}", NAMES.join(", ")))?;
        if place.is_some() {
            return Err(format!("{name:?} is given twice: expected each listener once"));
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

pub(super) struct ServerListener {
    pub(super) socket: net::Listener,
    pub(super) address: SocketAddr,
    /// Whether other processes may accept from the same socket.
    pub(super) is_inherited: bool,
}

/// Opens the listeners in the order of [`NAMES`].
pub(super) fn open(
    settings: &ListenSettings,
    inherited: Inherited,
    network: &Network,
) -> Result<[ServerListener; 3], StartError> {
    let Inherited([proxy, metrics, admin]) = inherited;
    let listeners = [
        open_one("listen.proxy", settings.proxy.0, proxy, network)?,
        open_one("listen.metrics", settings.metrics.0, metrics, network)?,
        open_one("listen.admin", settings.admin.0, admin, network)?,
    ];
    // If one socket were inherited for two listeners, each would get only a part of the connections.
    let addresses = NAMES.iter().zip(&listeners).map(|(name, listener)| (*name, listener.address));
    let addresses: Vec<_> = addresses.collect();
    distinct(&addresses).map_err(io::Error::other)?;
    Ok(listeners)
}

fn open_one(
    setting: &'static str,
    address: SocketAddr,
    inherited: Option<std::net::TcpListener>,
    network: &Network,
) -> Result<ServerListener, StartError> {
    let failed = |source| StartError::Listen { setting, address, source };
    let is_inherited = inherited.is_some();
    let socket = match inherited {
        Some(socket) => net::Listener::adopt(socket, BUFFERS),
        None => network.listen(address, BUFFERS),
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

    fn settings(text: &str) -> ListenSettings {
        let text = format!("region = \"r\"\n[listen]\n{text}");
        crate::config::Config::from_layers("f", &text, &[]).unwrap().settings.listen
    }

    const ANY_PORT: &str = "proxy = \"127.0.0.1:0\"\nmetrics = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"";

    #[tokio::test]
    async fn inherited_sockets_are_used_and_the_other_listeners_are_bound() {
        let (metrics, mut inherited) = (listening("127.0.0.1:0"), Inherited::default());
        let address = metrics.local_addr().unwrap();
        inherited.add("metrics", metrics).unwrap();
        let listeners = open(&settings(ANY_PORT), inherited, &Network::System).unwrap();
        assert_eq!(listeners.each_ref().map(|listener| listener.is_inherited), [false, true, false]);
        assert_eq!(listeners[1].address, address);
    }

    #[tokio::test]
    async fn one_socket_cannot_be_inherited_for_two_listeners() {
        let (proxy, mut inherited) = (listening("127.0.0.1:0"), Inherited::default());
        inherited.add("admin", proxy.try_clone().unwrap()).unwrap();
        inherited.add("proxy", proxy).unwrap();
        let refused = open(&settings(ANY_PORT), inherited, &Network::System).err().unwrap().to_string();
        assert!(refused.starts_with("admin: ") && refused.ends_with("proxy listens there already"), "{refused}");
    }

    #[test]
    fn an_unusable_inherited_socket_is_refused() {
        let mut inherited = Inherited::default();
        inherited.add("proxy", listening("127.0.0.1:0")).unwrap();
        let twice = inherited.add("proxy", listening("127.0.0.1:0")).unwrap_err();
        assert_eq!(twice, "\"proxy\" is given twice: expected each listener once");
        let unknown = inherited.add("http", listening("127.0.0.1:0")).unwrap_err();
        assert_eq!(unknown, "\"http\" is not a listener: expected one of proxy, metrics, admin");
        let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        assert_eq!(inherited.add("admin", silent.into()).unwrap_err(), "the socket for \"admin\" does not listen");
    }
}
