//! Connections of the clients. A run has a thread of its own, with its network.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use workspace_gateway::testing::net::{Network, SimulatedStream};

use super::net::SimulatedNet;

thread_local! {
    static NET: RefCell<Option<SimulatedNet>> = const { RefCell::new(None) };
}

/// The network of the run in this thread.
pub(crate) fn begin(net: &SimulatedNet) {
    NET.with_borrow_mut(|of_thread| *of_thread = Some(net.clone()));
}

/// The host of a client.
pub(crate) fn host(client: usize) -> IpAddr {
    Ipv4Addr::from(0x0a00_0400 + u32::try_from(client).expect("few clients")).into()
}

/// Connects a client. The windows of slow readers are as large as others.
pub(crate) async fn connect(
    client: usize,
    gateway: SocketAddr,
    _is_slow: bool,
) -> io::Result<Box<dyn SimulatedStream>> {
    let network = NET.with_borrow(|net| net.as_ref().map(|net| net.of(host(client))));
    match network {
        Some(Network::Simulated(network)) => network.connect(gateway).await,
        _ => Err(io::Error::other("no run in this thread")),
    }
}
