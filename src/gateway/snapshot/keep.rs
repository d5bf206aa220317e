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

use tokio::task::{JoinError, JoinHandle, JoinSet};
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
        let restoring = self.restore_records(snapshot, &mut restorer, max_record);
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

    /// Reads the file in batches, each in a thread for blocking work.
    async fn restore_records(
        &self,
        snapshot: &Arc<Snapshot>,
        restorer: &mut Restorer<'_>,
        max_record: usize,
    ) -> io::Result<()> {
        let workers = self.machine.workers;
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
        Ok(())
    }

    /// Writes and removes the snapshot at the right times. It does not end, unless there is no snapshot.
    pub async fn keep_snapshot(self: Arc<Self>) {
        let Some(snapshot) = self.snapshot.clone() else { return };
        let mut schedule = SnapshotSchedule::begin(&self, &snapshot);
        loop {
            schedule.remove_if_due();
            tokio::select! {
                // What has ended comes first: revocations, however many, must not delay it.
                biased;
                Some(done) = schedule.tasks.join_next() => schedule.note_done(done),
                () = self.memory.revocations.changed() => schedule.note_revocation(),
                () = sleep_until(schedule.next_removal.unwrap_or(schedule.next_write)),
                    if schedule.next_removal.is_some() && !schedule.is_removing => {}
                () = sleep_until(schedule.last_write + INTERVAL), if schedule.is_busy() && !schedule.is_hanging => {
                    schedule.is_hanging = true;
                    self.observer.snapshot_failed("the file system of the snapshot does not answer", &"it hangs");
                }
                () = sleep_until(schedule.next_write), if !schedule.is_busy() => schedule.write_if_changed(),
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

/// What is done with the file at present, and when the next thing is due.
struct SnapshotSchedule<'a> {
    gateway: &'a Arc<Gateway>,
    snapshot: &'a Arc<Snapshot>,
    tasks: JoinSet<Done>,
    is_writing: bool,
    is_removing: bool,
    /// Whether it was reported that the file system does not answer.
    is_hanging: bool,
    last_write: Instant,
    next_write: Instant,
    next_removal: Option<Instant>,
    /// `memory.changes()` when the file was written. 0: there is no valid file.
    written_changes: u64,
}

impl<'a> SnapshotSchedule<'a> {
    fn begin(gateway: &'a Arc<Gateway>, snapshot: &'a Arc<Snapshot>) -> Self {
        let now = gateway.clock.timer_now();
        let mut schedule = Self {
            gateway,
            snapshot,
            tasks: JoinSet::new(),
            is_writing: false,
            is_removing: false,
            is_hanging: false,
            last_write: now,
            next_write: now + SHORTEST_INTERVAL,
            next_removal: None,
            written_changes: 0,
        };
        schedule.run(|snapshot, _| Done::Claimed(snapshot.claim()));
        schedule
    }

    fn run(&mut self, work: impl FnOnce(&Snapshot, &Gateway) -> Done + Send + 'static) {
        let (gateway, snapshot) = (Arc::clone(self.gateway), Arc::clone(self.snapshot));
        self.gateway.machine.workers.run_in(&mut self.tasks, move || work(&snapshot, &gateway));
    }

    fn is_busy(&self) -> bool {
        self.is_writing || self.is_removing
    }

    /// Something was revoked that the file may have.
    fn note_revocation(&mut self) {
        self.next_removal = Some(self.gateway.clock.timer_now());
        self.next_write = self.last_write + SHORTEST_INTERVAL;
    }

    fn remove_if_due(&mut self) {
        let now = self.gateway.clock.timer_now();
        if !self.is_removing && self.next_removal.is_some_and(|at| at <= now) {
            (self.next_removal, self.is_removing) = (None, true);
            self.run(|snapshot, gateway| Done::Removed(snapshot.remove(&gateway.memory)));
        }
    }

    fn write_if_changed(&mut self) {
        self.last_write = self.gateway.clock.timer_now();
        self.next_write = self.last_write + INTERVAL;
        let changes = self.gateway.memory.changes();
        if changes != self.written_changes {
            (self.written_changes, self.is_writing) = (changes, true);
            self.run(|snapshot, gateway| Done::Wrote(snapshot.write(&gateway.memory, &gateway.clock)));
        }
    }

    fn note_done(&mut self, done: Result<Done, JoinError>) {
        let observer = &self.gateway.observer;
        match done {
            Ok(Done::Claimed(Ok(()))) => {}
            Ok(Done::Claimed(Err(error))) => observer.snapshot_failed("the snapshot cannot be written", &error),
            Ok(Done::Wrote(result)) => {
                (self.is_writing, self.is_hanging) = (false, false);
                if !matches!(result, Ok(SnapshotResult::Written)) {
                    self.written_changes = 0;
                }
                observer.snapshot_ended(&result);
            }
            Ok(Done::Removed(result)) => {
                (self.is_removing, self.is_hanging) = (false, false);
                self.written_changes = 0;
                if let Err(error) = result {
                    self.next_removal = Some(self.gateway.clock.timer_now() + SHORTEST_INTERVAL);
                    observer.snapshot_failed("the snapshot cannot be removed", &error);
                }
            }
            Err(error) => {
                (self.is_writing, self.is_removing, self.written_changes) = (false, false, 0);
                observer.snapshot_failed("the snapshot cannot be written", &error);
            }
        }
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
