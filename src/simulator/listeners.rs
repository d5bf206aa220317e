//! The simulator's listeners: started, shut down and started again on the same addresses.
//!
//! A service that is shut down keeps its socket. If it closed the socket and bound another one, the address could be in
//! use: another socket can get it meanwhile, and a process that is being started has a copy of the listening socket
//! until it executes its program.

use std::io;
use std::mem::take;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::server::{self, SimulatorState};
use crate::catalogue::Service;
use crate::net::{Listener, Network, SimulatedNetwork};
use crate::sync::Mutex;

/// The backlog of tokio's own listeners.
const BACKLOG: i32 = 1024;

/// The service of a listener. `None`: both, by the path of a request.
type ListenerService = Option<Service>;

#[derive(Default)]
pub(super) struct Listeners {
    running: Mutex<Vec<RunningListener>>,
    /// The places of the services while they are shut down.
    vacant: Mutex<Vec<(ListenerService, io::Result<Place>)>>,
}

/// What a service listens on.
pub(super) enum Place {
    /// A bound socket.
    System(Socket),
    Simulated(Arc<dyn SimulatedNetwork>, SocketAddr),
}

struct RunningListener {
    service: ListenerService,
    place: Place,
    task: JoinHandle<()>,
}

impl Place {
    /// A place at an address of this machine. Connections are refused until [`Place::listen`].
    pub(super) fn new(address: SocketAddr, network: &Network) -> io::Result<Self> {
        match network {
            Network::System => bind(address).map(Self::System),
            Network::Simulated(network) => Ok(Self::Simulated(Arc::clone(network), address)),
        }
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::System(socket) => address_of(socket),
            Self::Simulated(_, address) => Ok(*address),
        }
    }

    fn listen(&self) -> io::Result<Listener> {
        match self {
            Self::System(socket) => {
                // Connections that were just closed still occupy the address (TIME_WAIT).
                socket.set_reuse_address(true)?;
                socket.listen(BACKLOG)?;
                TcpListener::from_std(socket.try_clone()?.into()).map(Listener::System)
            }
            Self::Simulated(network, address) => network.listen(*address).map(Listener::Simulated),
        }
    }

    /// Ends listening.
    fn leave(self) -> io::Result<Self> {
        match self {
            Self::System(socket) => stop(socket).map(Self::System),
            Self::Simulated(..) => Ok(self),
        }
    }
}

impl Listeners {
    pub(super) fn listen(&self, state: &Arc<SimulatorState>, service: ListenerService, place: Place) -> io::Result<()> {
        let listener = place.listen()?;
        let task = tokio::spawn(server::listen(Arc::clone(state), service, listener));
        self.running.lock().push(RunningListener { service, place, task });
        Ok(())
    }

    pub(super) async fn shut_down(&self) {
        let running = take(&mut *self.running.lock());
        for RunningListener { service, place, task } in running {
            task.abort();
            // It ends with a cancellation error, as intended.
            let _ = task.await;
            self.vacant.lock().push((service, place.leave()));
        }
    }

    pub(super) fn restart(&self, state: &Arc<SimulatorState>) -> io::Result<()> {
        let vacant = take(&mut *self.vacant.lock());
        if vacant.is_empty() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        for (service, place) in vacant {
            self.listen(state, service, place?)?;
        }
        Ok(())
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.running.lock().iter().for_each(|listener| listener.task.abort());
    }
}

/// Binds an address without listening.
fn bind(address: SocketAddr) -> io::Result<Socket> {
    let bind = |address: SocketAddr| -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    let socket = bind(address)?;
    if address.port() != 0 {
        return Ok(socket);
    }
    // Linux leaves a port to a socket that ends listening only if it was bound by its number. Other systems do not bind
    // an address twice.
    Ok(bind(address_of(&socket)?).unwrap_or(socket))
}

fn address_of(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// Ends listening: connections are refused, and no other socket gets the address.
fn stop(socket: Socket) -> io::Result<Socket> {
    if socket.shutdown(Shutdown::Read).is_err() {
        // Not on Linux: there only a closed socket ends listening.
        let address = address_of(&socket)?;
        drop(socket);
        return bind(address);
    }
    // Otherwise a socket with this option could bind the address, too, and listen.
    socket.set_reuse_address(false)?;
    Ok(socket)
}
