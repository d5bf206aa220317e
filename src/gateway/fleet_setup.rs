//! Joins a fleet, and the interface of its engine for the operator and the process.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::Gateway;
use super::hint::HintSink;
use super::tier::{LONGEST_LOOK_UP, Names, Tier};
use crate::cache::fleet_sync::FleetSync;
use crate::cache::second_tier::SecondTier;
use crate::config::fleet::FleetConfig;
use crate::fleet::{self, Fault, Fleet, LinkError, Watcher};
use crate::machine::Machine;
use crate::random::Random;
use crate::seal::Sealer;
use crate::telemetry::events::{Event, NewEvent};
use crate::telemetry::sources::FleetGauges;

/// The engine has its own limit. This one is only for what is around it.
const SCHEDULING: Duration = Duration::from_millis(2);

/// How long an operator waits until all gateways have been told.
const TOLD_SOON: Duration = Duration::from_millis(500);

/// What a gateway has of its fleet.
pub(super) struct Joined {
    pub(super) fleet: Arc<Fleet>,
    pub(super) tier: Tier,
    pub(super) hints: HintSink,
}

/// Joins the fleet of the settings. It does not connect yet.
///
/// # Errors
/// If the system has no randomness.
pub(super) fn join(
    config: &FleetConfig,
    sync: Arc<FleetSync>,
    machine: Machine,
    watcher: Arc<dyn Watcher>,
) -> io::Result<Joined> {
    let names = Names::new(config, &machine.random)?;
    let fleet = Arc::new(Fleet::new(config.clone(), names.clone().fleet_secret(), sync, machine, watcher)?);
    let (to_tell, sealing) = (Arc::clone(&fleet), names.clone());
    let hints: HintSink = Arc::new(move |hint| to_tell.tell(sealing.hint(hint)));
    let (time_limit, shares_grants) = (config.budget + SCHEDULING, config.shares_grants);
    let store = Arc::clone(&fleet) as Arc<dyn SecondTier>;
    Ok(Joined { fleet, tier: Tier { store, names, time_limit, shares_grants }, hints })
}

pub(super) fn tier_for_test(store: Arc<dyn SecondTier>, secret: &[u8; 32], random: &Random) -> io::Result<Tier> {
    let names = Names { sealer: Arc::new(Sealer::new(secret, &[], random)?) };
    Ok(Tier { store, names, time_limit: LONGEST_LOOK_UP, shares_grants: true })
}

pub(super) fn gauges(fleet: &Fleet, now: Instant) -> FleetGauges {
    let sync = fleet.sync();
    FleetGauges {
        is_lost: !fleet.is_in_use(),
        to_tell: fleet.to_tell(),
        is_in_sync: sync.is_in_sync(now),
        sync_age: fleet.sync_age(now),
    }
}

/// Connects to the engine of a fleet, and tries all that is needed. Returns what an operator wants to know of it.
///
/// # Errors
/// Why the engine cannot be used.
pub(crate) async fn check_fleet(config: &FleetConfig, machine: Machine) -> Result<String, LinkError> {
    let names = Names::new(config, &machine.random).map_err(|error| (Fault::Settings, error.to_string()))?;
    fleet::check(config, names.fleet_secret(), machine).await
}

impl Gateway {
    /// The state of the engine of the fleet, if there is one.
    pub fn fleet_state(&self) -> Option<&'static str> {
        self.memory.fleet.as_ref().map(|fleet| fleet.state().into())
    }

    /// What the names of the keys of the fleet begin with, if there is one.
    pub fn fleet_keys(&self) -> Option<&str> {
        self.memory.fleet.as_ref().map(|fleet| fleet.key_prefix())
    }

    /// Until when this gateway is in sync with its fleet, and whether it has told the engine all, for tests. `None` without a
    /// fleet.
    pub fn fleet_sync(&self) -> Option<(Instant, bool)> {
        self.memory.fleet.as_ref().map(|fleet| (fleet.sync().ended(), fleet.has_told_all()))
    }

    /// Keeps a link to the engine of the fleet, if there is one.
    pub async fn keep_fleet(self: Arc<Self>) {
        if let Some(fleet) = &self.memory.fleet {
            fleet.run(&*self).await;
        }
    }

    /// Waits for at most 1 s until the engine of the fleet knows what has become void here. The next process does not
    /// know it.
    pub async fn end_fleet(&self) {
        let Some(fleet) = &self.memory.fleet else { return };
        if timeout(Duration::from_secs(1), fleet.told()).await.is_err() {
            let what = "the engine of the fleet was not told of the last denials or purges: see deploy/fleet.md";
            self.observer.record_event(NewEvent::new(Event::FleetLost, what));
        }
    }

    /// Whether the engine of the fleet knows all that has become void here, after at most 500 ms. `None` without a fleet.
    pub async fn has_told_fleet(&self) -> Option<bool> {
        let fleet = self.memory.fleet.as_ref()?;
        Some(timeout(TOLD_SOON, fleet.told()).await.is_ok())
    }
}
