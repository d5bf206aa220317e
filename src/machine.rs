//! What the process gets from its machine: clocks, random numbers, the network and threads for blocking work. A test
//! replaces them, so that the whole program runs on one seed.
//!
//! Not in it are files, the limits of descriptors and memory, and the threads of the log and of `cli/`. The seeds of hash
//! maps are those of the process (`random.rs`).

use crate::clock::Clock;
use crate::net::Network;
use crate::random::Random;
use crate::sync::Workers;

#[derive(Clone)]
pub struct Machine {
    pub clock: Clock,
    pub random: Random,
    pub network: Network,
    pub workers: Workers,
}

/// The machine that this process runs on, with other clocks.
impl From<Clock> for Machine {
    fn from(clock: Clock) -> Self {
        Self { clock, random: Random::System, network: Network::System, workers: Workers::Threads }
    }
}
