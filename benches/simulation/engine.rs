//! The host of the fleet's engine.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};

use tokio::task::{JoinHandle, JoinSet};
use workspace_gateway::testing::net::Network;

use super::net::SimulatedNet;
use super::resp_engine::RespEngine;

const PORT: u16 = 6379;

pub(crate) struct EngineHost {
    pub(crate) host: IpAddr,
    pub(crate) engine: RespEngine,
    accepting: JoinHandle<()>,
}

impl EngineHost {
    pub(crate) fn start(net: &SimulatedNet, host: IpAddr, seed: u64) -> Self {
        let engine = RespEngine::new(seed);
        let Network::Simulated(network) = net.of(host) else { unreachable!("it is simulated") };
        let listener = network.listen(SocketAddr::new(host, PORT)).expect("a free address");
        let accepting = tokio::spawn({
            let engine = engine.clone();
            async move {
                let mut connections = JoinSet::new();
                while let Ok(stream) = poll_fn(|context| listener.poll_accept(context)).await {
                    let engine = engine.clone();
                    connections.spawn(async move { engine.serve(stream).await });
                    while connections.try_join_next().is_some() {}
                }
            }
        });
        Self { host, engine, accepting }
    }

    pub(crate) fn address(&self) -> String {
        SocketAddr::new(self.host, PORT).to_string()
    }

    /// Ends it. Returns what it was sent that it does not know.
    pub(crate) async fn end(self) -> Vec<String> {
        self.accepting.abort();
        // It ends with a cancellation error, as intended.
        let _ = self.accepting.await;
        self.engine.unexpected()
    }
}
