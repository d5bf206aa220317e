//! The simulator's listeners: started, shut down and started again on the same addresses.

use std::io;
use std::mem::take;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpSocket;
use tokio::task::JoinHandle;

use super::server::{self, SimulatorState};
use crate::catalogue::Service;
use crate::net::{Buffers, Listener, Network};
use crate::sync::Mutex;

/// The backlog of tokio's own listeners.
const BACKLOG: u32 = 1024;

/// The service of a listener. `None`: both, by the path of a request.
type ListenerService = Option<Service>;

pub(super) struct Listeners {
    network: Network,
    running: Mutex<Vec<RunningListener>>,
    vacant: Mutex<Vec<(ListenerService, io::Result<Vacant>)>>,
}

/// An address while the services are shut down.
enum Vacant {
    /// A bound socket without a listener reserves the address.
    Reserved(TcpSocket),
    Simulated(SocketAddr),
}

/// What the kernel uses by default, about.
pub(super) const BUFFERS: Buffers = Buffers { send: 64 * 1024, receive: 128 * 1024 };

struct RunningListener {
    service: ListenerService,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Listeners {
    pub(super) fn new(network: Network) -> Self {
        Self { network, running: Mutex::default(), vacant: Mutex::default() }
    }

    pub(super) fn listen(
        &self,
        state: &Arc<SimulatorState>,
        service: ListenerService,
        listener: Listener,
    ) -> io::Result<()> {
        let address = listener.local_addr()?;
        let task = tokio::spawn(server::listen(Arc::clone(state), service, listener));
        self.running.lock().push(RunningListener { service, address, task });
        Ok(())
    }

    pub(super) async fn shut_down(&self) {
        let running = take(&mut *self.running.lock());
        for RunningListener { service, address, task } in running {
            task.abort();
            // It ends with a cancellation error, as intended.
            let _ = task.await;
            self.vacant.lock().push((service, self.reserve(address)));
        }
    }

    pub(super) fn restart(&self, state: &Arc<SimulatorState>) -> io::Result<()> {
        let vacant = take(&mut *self.vacant.lock());
        if vacant.is_empty() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        for (service, vacant) in vacant {
            let listener = match vacant? {
                Vacant::Reserved(socket) => Listener::System(socket.listen(BACKLOG)?),
                Vacant::Simulated(address) => self.network.listen(address, BUFFERS)?,
            };
            self.listen(state, service, listener)?;
        }
        Ok(())
    }

    /// Binds an address without listening: connections are refused, and no other process can bind it.
    fn reserve(&self, address: SocketAddr) -> io::Result<Vacant> {
        if let Network::Simulated(_) = self.network {
            return Ok(Vacant::Simulated(address));
        }
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // Connections that were just closed still occupy the address (TIME_WAIT).
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Vacant::Reserved(socket))
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.running.lock().iter().for_each(|listener| listener.task.abort());
    }
}
