//! Strangers who use up what a gateway has: connections, heads that do not end, and responses that nobody reads.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::sleep;
use workspace_gateway::testing::net::Network;

use super::net::SimulatedNet;

const STRANGERS: u32 = 250;
/// The first of their addresses: 10.0.8.0.
const FIRST: u32 = 0x0a00_0800;
/// How long it takes until all have come.
const COMING: Duration = Duration::from_secs(2);
/// The size of a head that does not end, in bytes.
const HEAD: usize = 12 * 1024;

/// They stay until this is dropped.
pub(crate) fn gather(net: &SimulatedNet, gateway: SocketAddr, dice: &mut SmallRng) -> JoinSet<()> {
    let mut crowd = JoinSet::new();
    for stranger in 0..STRANGERS {
        let (coming, reads_nothing) = (dice.random_range(Duration::ZERO..COMING), dice.random());
        let Network::Simulated(network) = net.of(IpAddr::from(Ipv4Addr::from(FIRST + stranger))) else { continue };
        crowd.spawn(async move {
            sleep(coming).await;
            let Ok(mut stream) = network.connect(gateway).await else { return };
            let head = format!("GET /v2/{stranger}/products HTTP/1.1\r\nhost: gateway\r\nx-auth-token: {stranger}\r\n");
            let request = if reads_nothing { (head + "\r\n").repeat(4) } else { head + "x-more: " + &"x".repeat(HEAD) };
            // The gateway may close the connection at any time.
            let _ = stream.write_all(request.as_bytes()).await;
            std::future::pending::<()>().await;
        });
    }
    crowd
}
