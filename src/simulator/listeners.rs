//! The simulator's listeners: started, shut down and started again on the same addresses.

use std::io;
use std::mem::take;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

use super::server::{self, SimulatorState};
use crate::catalogue::Service;
use crate::sync::Mutex;

/// The backlog of tokio's own listeners.
const BACKLOG: u32 = 1024;

/// The service of a listener. `None`: both, by the path of a request.
type ListenerService = Option<Service>;

#[derive(Default)]
pub(super) struct Listeners {
    running: Mutex<Vec<RunningListener>>,
    /// Bound sockets without a listener: they reserve the addresses while the services are shut down.
    vacant: Mutex<Vec<(ListenerService, io::Result<TcpSocket>)>>,
}

struct RunningListener {
    service: ListenerService,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Listeners {
    pub(super) fn listen(
        &self,
        state: &Arc<SimulatorState>,
        service: ListenerService,
        listener: TcpListener,
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
            self.vacant.lock().push((service, reserve(address)));
        }
    }

    pub(super) fn restart(&self, state: &Arc<SimulatorState>) -> io::Result<()> {
        let vacant = take(&mut *self.vacant.lock());
        if vacant.is_empty() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        for (service, socket) in vacant {
            self.listen(state, service, socket?.listen(BACKLOG)?)?;
        }
        Ok(())
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.running.lock().iter().for_each(|listener| listener.task.abort());
    }
}

/// Binds an address without listening: connections are refused, and no other process can bind it.
fn reserve(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections that were just closed still occupy the address (TIME_WAIT).
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}
