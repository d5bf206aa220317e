//! What the process gets from its machine. A test replaces all of it, so that the whole program runs on one seed.

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
