//! When the snapshot is read, written and removed. A file system that is full, read-only or hanging costs the snapshot and
//! nothing else: only threads for blocking work wait for it.
//!
//! A purge, an invalidation, a scope that becomes private, and the denial of a caller with a grant remove the file at
//! once. It is then written anew, at most every 10 s. Otherwise it is written once a minute if something has changed, and
//! when the process stops.

use std::collections::HashMap;
use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::{RestoredCounts, Restorer, Snapshot};
use crate::cache::record;
use crate::config::Config;
use crate::gateway::Gateway;
use crate::gateway::observer::Observer;
use crate::machine::Machine;
use crate::sync::Workers;
use crate::telemetry::events::{Event, NewEvent};
use crate::telemetry::outcome::SnapshotResult;

/// The least time between two snapshots.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(10);
/// The time between two snapshots if nothing was removed.
const INTERVAL: Duration = Duration::from_secs(60);
/// How many bytes of records are read at a time.
const BATCH: usize = 256 * 1024;
/// How long the start, and the end, of the process wait for the file system.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// What a thread for blocking work has done.
enum Done {
    /// This process is the one that writes the snapshot from now on.
    Claimed(io::Result<()>),
    Wrote(io::Result<SnapshotResult>),
    Removed(io::Result<()>),
}

impl Observer {
    fn snapshot_failed(&self, what: &'static str, error: &dyn Display) {
        self.record_event(NewEvent::new(Event::SnapshotFailed, what).with_error(error));
    }

    fn snapshot_ended(&self, result: &io::Result<SnapshotResult>) {
        let label = *result.as_ref().unwrap_or(&SnapshotResult::Failed);
        self.metrics.snapshot(label);
        match result {
            Ok(SnapshotResult::NotOwner) => {
                self.snapshot_failed("another process writes the snapshot", &"it was started later");
            }
            Ok(SnapshotResult::Written | SnapshotResult::Revoked | SnapshotResult::Failed) => {}
            Err(error) => self.snapshot_failed("the snapshot cannot be written", error),
        }
    }
}

impl Gateway {
    /// As [`Self::new`], with what the snapshot has of an earlier process. If the snapshot is unusable, there is none.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub async fn start(config: &Config, machine: impl Into<Machine>) -> io::Result<Arc<Self>> {
        let (settings, machine) = (config.clone(), machine.into());
        let (workers, random) = (machine.workers, machine.random.clone());
        let mut opening = workers.run(move || Snapshot::open(&settings, &random));
        let (snapshot, failure) = match limited(&mut opening).await {
            Ok(snapshot) => (snapshot, None),
            Err(error) => {
                if error.kind() == io::ErrorKind::TimedOut {
                    tokio::spawn(remove_when_opened(opening, workers));
                }
                (None, Some(error))
            }
        };
        let gateway = Self::new_with(config, machine, snapshot)?;
        if let Some(error) = failure {
            gateway.observer.snapshot_failed("this process neither reads nor writes a snapshot", &error);
        }
        gateway.restore_snapshot().await;
        Ok(gateway)
    }

    /// Restores what the snapshot has, before the first request. It waits at most 5 s for the file system.
    pub async fn restore_snapshot(&self) {
        // In this order: if the machine is suspended between the two, ages are too high, not too low.
        let now = self.clock.now();
        let Some(snapshot) = &self.snapshot else { return };
        let Some(moment) = self.clock.moment() else { return self.memory.grants.lose_track() };
        let active = self.active();
        let mut restorer = Restorer {
            memory: &self.memory,
            catalogue: &active.catalogue,
            digests: &self.observer.digests,
            now,
            moment,
            epoch: self.memory.store.epoch(),
            written: None,
            proofs: Vec::new(),
            scopes: HashMap::new(),
            is_complete: true,
            restored: RestoredCounts::default(),
        };
        let max_record = active.settings.cache.max_body_size.bytes().saturating_add(2 * record::MAX_HEAD);
        let workers = self.machine.workers;
        let restoring = async {
            let opened = Arc::clone(snapshot);
            let opening = workers.run(move || opened.file.read(&opened.sealer, max_record));
            let mut reader = opening.await.map_err(io::Error::other).flatten()?;
            while let Some(mut of_file) = reader.take() {
                let reading = workers.run(move || of_file.next_batch(BATCH).map(|batch| (of_file, batch)));
                let Some((of_file, batch)) = reading.await.map_err(io::Error::other)? else { break };
                reader = Some(of_file);
                for record in batch {
                    match record {
                        // What is not usable any more is a miss.
                        Ok(record) => drop(restorer.add(&record)),
                        Err(reason) => {
                            restorer.is_complete = false;
                            self.observer.metrics.unreadable_record(reason);
                            let why = format!("a record cannot be read: {}", reason.describe());
                            let what = "a record of the snapshot cannot be read, so it and the later ones are not used";
                            self.observer.snapshot_failed(what, &why);
                        }
                    }
                }
            }
            Ok::<_, io::Error>(())
        };
        // If the file system hangs, the thread ends when it does not hang any more.
        let result = timeout(TIME_LIMIT, restoring).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let was_read = result.is_ok();
        if let Err(error) = result {
            self.observer.snapshot_failed("the snapshot cannot be read", &error);
        }
        if let Some((RestoredCounts { entries, proofs }, age)) = restorer.finish(was_read) {
            let what = format!("restored a snapshot of {} s ago: {entries} entries, {proofs} proofs", age.as_secs());
            self.observer.record_event(NewEvent::new(Event::Snapshot, what));
        }
    }

    /// Writes and removes the snapshot at the right times. It does not end, unless there is no snapshot.
    pub async fn keep_snapshot(self: Arc<Self>) {
        let Some(snapshot) = self.snapshot.clone() else { return };
        let mut tasks = JoinSet::new();
        let (mut is_writing, mut is_removing, mut is_hanging) = (false, false, false);
        let mut next_removal: Option<Instant> = None;
        let mut written_changes = 0;
        self.machine.workers.run_in(&mut tasks, {
            let snapshot = Arc::clone(&snapshot);
            move || Done::Claimed(snapshot.claim())
        });
        let mut last_write = self.clock.timer_now();
        let mut next_write = last_write + SHORTEST_INTERVAL;
        loop {
            let now = self.clock.timer_now();
            if !is_removing && next_removal.is_some_and(|at| at <= now) {
                (next_removal, is_removing) = (None, true);
                let (gateway, snapshot) = (Arc::clone(&self), Arc::clone(&snapshot));
                self.machine.workers.run_in(&mut tasks, move || Done::Removed(snapshot.remove(&gateway.memory)));
            }
            tokio::select! {
                // What has ended comes first: revocations, however many, must not delay it.
                biased;
                Some(done) = tasks.join_next() => match done {
                    Ok(Done::Claimed(Ok(()))) => {}
                    Ok(Done::Claimed(Err(error))) => {
                        self.observer.snapshot_failed("the snapshot cannot be written", &error);
                    }
                    Ok(Done::Wrote(result)) => {
                        (is_writing, is_hanging) = (false, false);
                        if !matches!(result, Ok(SnapshotResult::Written)) {
                            written_changes = 0;
                        }
                        self.observer.snapshot_ended(&result);
                    }
                    Ok(Done::Removed(result)) => {
                        (is_removing, is_hanging) = (false, false);
                        written_changes = 0;
                        if let Err(error) = result {
                            next_removal = Some(self.clock.timer_now() + SHORTEST_INTERVAL);
                            self.observer.snapshot_failed("the snapshot cannot be removed", &error);
                        }
                    }
                    Err(error) => {
                        (is_writing, is_removing, written_changes) = (false, false, 0);
                        self.observer.snapshot_failed("the snapshot cannot be written", &error);
                    }
                },
                () = self.memory.revocations.changed() => {
                    next_removal = Some(self.clock.timer_now());
                    next_write = last_write + SHORTEST_INTERVAL;
                }
                () = sleep_until(next_removal.unwrap_or(next_write)), if next_removal.is_some() && !is_removing => {}
                () = sleep_until(last_write + INTERVAL), if (is_writing || is_removing) && !is_hanging => {
                    is_hanging = true;
                    self.observer.snapshot_failed("the file system of the snapshot does not answer", &"it hangs");
                }
                () = sleep_until(next_write), if !is_writing && !is_removing => {
                    last_write = self.clock.timer_now();
                    next_write = last_write + INTERVAL;
                    let changes = self.memory.changes();
                    if changes != written_changes {
                        (written_changes, is_writing) = (changes, true);
                        let (gateway, snapshot) = (Arc::clone(&self), Arc::clone(&snapshot));
                        let write = move || Done::Wrote(snapshot.write(&gateway.memory, &gateway.clock));
                        self.machine.workers.run_in(&mut tasks, write);
                    }
                }
            }
        }
    }

    /// Writes the last snapshot, after the last request. It waits at most 5 s for the file system.
    pub async fn end_snapshot(self: &Arc<Self>) {
        let Some(snapshot) = self.snapshot.clone() else { return };
        let gateway = Arc::clone(self);
        let mut writing = self.machine.workers.run(move || {
            let result = snapshot.write(&gateway.memory, &gateway.clock);
            // What was revoked must not remain, in whichever file.
            snapshot.remove(&gateway.memory).and(result)
        });
        self.observer.snapshot_ended(&limited(&mut writing).await);
    }
}

/// Waits for a thread for blocking work, at most for [`TIME_LIMIT`].
async fn limited<T>(work: &mut JoinHandle<io::Result<T>>) -> io::Result<T> {
    match timeout(TIME_LIMIT, work).await {
        Ok(done) => done.map_err(io::Error::other).flatten(),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Removes the snapshot of an earlier process as soon as that is possible, because this process does not keep it up to date.
async fn remove_when_opened(opening: JoinHandle<io::Result<Option<Snapshot>>>, workers: Workers) {
    if let Ok(Ok(Some(snapshot))) = opening.await {
        // It was reported that there is no snapshot.
        drop(workers.run(move || snapshot.file.remove()).await);
    }
}
