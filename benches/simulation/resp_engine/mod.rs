//! An engine (Redis, Valkey) in memory, for simulations: it speaks RESP2 over any stream. It is deterministic: its time is
//! tokio's clock, which may be paused, and its dice come from a seed. It has only the commands and scripts that `src/fleet`
//! sends. All others are errors, which [`RespEngine::unexpected`] shows. `tests/resp_engine.rs` compares it with real engines.
//!
//! - `wire`: commands and replies as bytes. Pure.
//! - `keyspace`: values by key, and when they expire. Pure.
//! - `commands`: what each command does. Pure.
//! - `scripts`: what each script does. Pure.

// Each user needs a part.
#![allow(dead_code)]

mod commands;
mod keyspace;
mod scripts;
mod wire;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::Instant;

use self::commands::Data;
use self::keyspace::Keyspace;

/// What the engine's clock shows when it is made, as the time since 1970.
pub(crate) const EPOCH: Duration = Duration::from_secs(1_800_000_000);

/// What a node of the engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Master,
    /// It refuses to write. What it has does not change.
    Replica,
}

/// What an engine had at a moment.
#[derive(Clone)]
pub(crate) struct Backup(Keyspace);

/// An engine. Clones are the same engine.
#[derive(Clone)]
pub(crate) struct RespEngine(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// The state was changed by something other than a command.
    changed: Notify,
}

struct State {
    data: Data,
    begun: Instant,
    /// What the clock shows at `begun`, as the time since 1970.
    epoch: Duration,
    hangs: bool,
    restarts: u64,
}

/// What has become of the first command that was received.
enum Ran {
    Done {
        /// Whether commands of other connections may come before the next one.
        pauses: bool,
    },
    Incomplete,
    Malformed,
}

impl RespEngine {
    /// An empty master. Call it in the runtime whose clock it has.
    pub(crate) fn new(seed: u64) -> Self {
        let (data, begun) = (Data::new(seed), now());
        let state = State { data, begun, epoch: EPOCH, hangs: false, restarts: 0 };
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }))
    }

    /// Serves a connection until its client closes it, it breaks, or the engine restarts. Commands of a pipeline are answered
    /// in their order. Those of other connections may come between them, as the seed says.
    pub(crate) async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let restarts = self.0.state.lock().restarts;
        tokio::select! {
            biased;
            () = self.until(|state| state.restarts != restarts) => {}
            () = self.answer(stream) => {}
        }
    }

    /// Loses all data, and closes all connections: a new process without persistence. Other faults stay.
    pub(crate) fn restart(&self) {
        self.change(|state| {
            state.data.keyspace = Keyspace::default();
            state.restarts += 1;
        });
    }

    /// A replica says so in `ROLE`, and refuses to write (`READONLY`).
    pub(crate) fn set_role(&self, role: Role) {
        self.change(|state| state.data.is_replica = role == Role::Replica);
    }

    /// Whether it refuses what would make its data larger (`OOM`). It still deletes.
    pub(crate) fn out_of_memory(&self, is_full: bool) {
        self.change(|state| state.data.is_full = is_full);
    }

    /// While it hangs, connections are accepted and commands are received. They are run when it ends, also those of clients
    /// that have closed their connections meanwhile.
    pub(crate) fn hang(&self, hangs: bool) {
        self.change(|state| state.hangs = hangs);
    }

    /// Deletes so many records or markers, which the seed chooses. Returns how many there were.
    pub(crate) fn evict(&self, records: usize) -> usize {
        let mut evicted = 0;
        self.change(|state| evicted = state.data.evict(records));
        evicted
    }

    /// Deletes the control hash: then all records are void, and the next command begins a new incarnation.
    pub(crate) fn lose_control(&self) {
        self.change(|state| state.data.keyspace.retain(|key| !key.ends_with(b":c")));
    }

    /// Deletes the log.
    pub(crate) fn lose_log(&self) {
        self.change(|state| state.data.keyspace.retain(|key| !key.ends_with(b":log")));
    }

    /// Deletes all notices of the log but the last ones, as if many had been told. (`MAXLEN ~ 4096` does so itself.)
    pub(crate) fn trim_log(&self, keep: usize) {
        self.change(|state| state.data.keyspace.trim_streams(keep));
    }

    /// What it has now, for [`Self::go_back`].
    pub(crate) fn backup(&self) -> Backup {
        Backup(self.0.state.lock().data.keyspace.clone())
    }

    /// Has again what it had: a backup was restored, or a replica that was behind has become the master. Closes all
    /// connections.
    pub(crate) fn go_back(&self, backup: &Backup) {
        self.change(|state| {
            state.data.keyspace = backup.0.clone();
            state.restarts += 1;
        });
    }

    /// Sets the clock of the engine forward, or back if `is_back`. Keys expire by that clock.
    pub(crate) fn jump(&self, by: Duration, is_back: bool) {
        self.change(|state| {
            state.epoch = if is_back { state.epoch.saturating_sub(by) } else { state.epoch.saturating_add(by) };
        });
    }

    /// The names of the keys that have not expired, in order.
    pub(crate) fn keys(&self) -> Vec<String> {
        let mut state = self.0.state.lock();
        state.set_time();
        state.data.keyspace.keys()
    }

    /// What it was sent that `src/fleet` never sends: unknown commands and scripts, and what is no command. Each text is there
    /// once. A simulation must see that it is empty.
    pub(crate) fn unexpected(&self) -> Vec<String> {
        self.0.state.lock().data.unexpected.iter().cloned().collect()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.state.lock());
        // Wakes in the order in which they began to wait, so that a seed gives one run.
        self.0.changed.notify_waiters();
    }

    async fn until(&self, condition: impl Fn(&State) -> bool) {
        loop {
            let mut changed = pin!(self.0.changed.notified());
            // Before the check: the change may come between the two.
            changed.as_mut().enable();
            if condition(&self.0.state.lock()) {
                return;
            }
            changed.await;
        }
    }

    async fn answer(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut received = BytesMut::new();
        let mut is_open = true;
        loop {
            let hangs = self.0.state.lock().hangs;
            if !hangs {
                let mut replies = Vec::new();
                let is_malformed = self.run_all(&mut received, &mut replies).await;
                let written = async {
                    stream.write_all(&replies).await?;
                    stream.flush().await
                };
                if written.await.is_err() || is_malformed || !is_open {
                    return;
                }
            }
            received.reserve(4096);
            tokio::select! {
                biased;
                // Also while it hangs: its system receives.
                read = stream.read_buf(&mut received), if is_open => is_open = matches!(read, Ok(1..)),
                () = self.until(|state| !state.hangs), if hangs => {}
            }
        }
    }

    /// Runs all commands that have been received. Returns whether something was none.
    async fn run_all(&self, received: &mut BytesMut, replies: &mut Vec<u8>) -> bool {
        loop {
            let ran = self.run_next(received, replies);
            match ran {
                Ran::Done { pauses: true } => yield_now().await,
                Ran::Done { pauses: false } => {}
                Ran::Incomplete => return false,
                Ran::Malformed => return true,
            }
        }
    }

    fn run_next(&self, received: &mut BytesMut, replies: &mut Vec<u8>) -> Ran {
        let mut state = self.0.state.lock();
        let (reply, length) = match wire::parse(received) {
            Ok(Some((parts, length))) => {
                state.set_time();
                (state.data.run(&parts), length)
            }
            Ok(None) => return Ran::Incomplete,
            Err(wire::Malformed) => {
                state.data.note_unexpected(received);
                wire::Reply::error("ERR Protocol error").write(replies);
                return Ran::Malformed;
            }
        };
        received.advance(length);
        reply.write(replies);
        Ran::Done { pauses: state.data.roll(8) }
    }
}

impl State {
    /// Time stands still while a command or a script runs.
    fn set_time(&mut self) {
        self.data.keyspace.now = self.epoch + (now() - self.begun);
    }
}

#[allow(clippy::disallowed_methods, reason = "the engine has no other clock than that of the runtime")]
fn now() -> Instant {
    Instant::now()
}
