//! A link to an engine: two connections to the node that has the keys, one for look-ups and the log, and one for what is
//! stored and told, so that look-ups do not wait behind large records.

use std::sync::atomic::AtomicBool;

use tokio::sync::watch;
use tokio::time::timeout;

use super::LinkError;
use super::breaker::Breaker;
use super::commands::{Fault, Keys};
use super::connection::{Connection, SILENT};
use super::dialer::{Dialer, shown_node};
use super::tls;
use crate::config::fleet::FleetConfig;
use crate::machine::Machine;
use crate::sync::Mutex;

pub(super) struct Link {
    /// Grows with each link of this process.
    pub(super) number: u64,
    /// The host and port, for an operator.
    pub(super) node: String,
    pub(super) dialer: Dialer,
    pub(super) look_ups: Connection,
    pub(super) writes: Connection,
    /// Whether look-ups are sent.
    pub(super) breaker: Mutex<Breaker>,
    /// Whether the engine has refused something new, for want of memory.
    pub(super) is_full: AtomicBool,
    /// Why it must not be used any more.
    fault: watch::Sender<Option<Fault>>,
}

impl Link {
    /// Connects to the node that has the keys, as its settings say now: files are read each time.
    ///
    /// # Errors
    /// Why this failed, and for an operator what.
    pub(super) async fn open(
        config: &FleetConfig,
        keys: &Keys,
        machine: &Machine,
        number: u64,
    ) -> Result<Self, LinkError> {
        // Reading the files blocks, for long if their file system hangs.
        let read = config.clone();
        let reading = machine.workers.run(move || {
            let files = read.read_files()?;
            let tls = read.engine.is_tls.then(|| tls::config(&files)).transpose()?;
            Ok((files.password, tls))
        });
        let limit = || (Fault::Settings, "the files of [fleet] cannot be read within 500 ms".to_owned());
        let read: Result<_, String> = timeout(SILENT, reading).await.map_err(|_| limit())?.map_err(|_| limit())?;
        let (password, tls) = read.map_err(|error| (Fault::Settings, error))?;
        let dialer = Dialer::new(config, machine.network.clone(), (password, tls), number);
        let node = dialer.find(keys).await?;
        let (look_ups, address) = dialer.dial(&node, None, true).await?;
        // A name could stand for another machine by now.
        let (writes, _) = dialer.dial(&node, Some(address), true).await?;
        Ok(Self {
            number,
            node: shown_node(&node),
            dialer,
            look_ups,
            writes,
            breaker: Mutex::default(),
            is_full: AtomicBool::new(false),
            fault: watch::Sender::new(None),
        })
    }

    /// Makes the link unusable. The first fault counts.
    pub(super) fn fail(&self, fault: Fault) {
        self.fault.send_if_modified(|before| {
            before.is_none() && {
                *before = Some(fault);
                true
            }
        });
    }

    pub(super) fn is_failed(&self) -> bool {
        self.fault.borrow().is_some()
    }

    /// Waits until it is unusable.
    pub(super) async fn failed(&self) -> Fault {
        let mut fault = self.fault.subscribe();
        // The sender is in `self`, so this does not fail.
        let failed = fault.wait_for(Option::is_some).await.ok().and_then(|fault| *fault);
        failed.unwrap_or(Fault::Connection)
    }
}
