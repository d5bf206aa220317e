//! `check --fleet`: connects to the engine, and tries each command once. It uses keys of its own, which it deletes, so that
//! a wrong secret or name leaves nothing in the engine.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::commands::{Fault, Keys, read_deleted};
use super::keeper::{SCRATCH, SCRATCH_NAME};
use super::link::Link;
use super::{Fleet, FleetSecret, LinkError, LookUpResult, StoreResult, TellResult, Watcher};
use crate::cache::fleet_sync::FleetSync;
use crate::cache::second_tier::{LookUp, NoticeKind, RecordKind};
use crate::config::fleet::FleetConfig;
use crate::machine::Machine;

/// How many look-ups are timed.
const CHECKED_LOOK_UPS: usize = 21;

struct Nobody;

impl Watcher for Nobody {
    fn looked_up(&self, _: LookUpResult, _: Duration) {}
    fn stored(&self, _: RecordKind, _: StoreResult) {}
    fn told(&self, _: NoticeKind, _: TellResult) {}
    fn missed(&self) {}
    fn faulted(&self, _: Fault) {}
    fn changed(&self, _: Result<String, LinkError>) {}
}

/// Returns what an operator wants to know of the engine.
///
/// # Errors
/// Why the engine cannot be used.
pub(crate) async fn check(config: &FleetConfig, secret: FleetSecret, machine: Machine) -> Result<String, LinkError> {
    let sync = Arc::new(FleetSync::new(machine.clock.now()));
    let fleet = Fleet::new(config.clone(), secret, sync, machine, Arc::new(Nobody));
    let mut fleet = fleet.map_err(|error| (Fault::Settings, error.to_string()))?;
    let prefix = fleet.keys.prefix().to_owned();
    fleet.keys = fleet.keys.scratch();
    let link = Link::open(config, &fleet.keys, &fleet.machine, 1).await?;
    let tried = try_all(&fleet, &link).await;
    // Also after an error: then those that commands were tried with are still there, too.
    let deleted = delete_all(&link, &[&fleet.keys, &fleet.keys.scratch()]).await;
    let times = tried?;
    deleted.map_err(|fault| (fault, format!("{}: DEL has failed", link.node)))?;
    if link.is_full.load(Ordering::Relaxed) {
        let what = "it has refused to store: raise maxmemory, or set the policy allkeys-lru";
        return Err((Fault::Full, format!("{}: {what}", link.node)));
    }
    let (median, longest) = (times[CHECKED_LOOK_UPS / 2], times[CHECKED_LOOK_UPS - 1]);
    Ok(format!(
        "a look-up takes {:.2} ms (the longest of {CHECKED_LOOK_UPS}: {:.2} ms), fleet.budget is {} ms; the fleet's keys \
         are {prefix}…",
        median.as_secs_f64() * 1e3,
        longest.as_secs_f64() * 1e3,
        config.budget.as_millis()
    ))
}

async fn delete_all(link: &Link, of: &[&Keys]) -> Result<(), Fault> {
    for keys in of {
        read_deleted(&link.writes.send(&keys.delete_all(&[SCRATCH_NAME])).await?)?;
    }
    Ok(())
}

/// Tries each command. Returns how long look-ups take, in order.
async fn try_all(fleet: &Fleet, link: &Link) -> Result<[Duration; CHECKED_LOOK_UPS], LinkError> {
    fleet.begin(link).await?;
    let nothing = LookUp { places: std::slice::from_ref(&*SCRATCH), wants_records: true, lease: None };
    let mut times = [Duration::ZERO; CHECKED_LOOK_UPS];
    for time in &mut times {
        let begun = fleet.machine.clock.timer_now();
        let asked = fleet.ask(link, nothing, 0).await;
        asked.map_err(|fault| (fault, format!("{}: a look-up has failed", link.node)))?;
        *time = fleet.machine.clock.timer_now() - begun;
    }
    times.sort_unstable();
    Ok(times)
}
