//! The locks of this crate, the atomics that order what happens, and the threads for blocking work. They are in one
//! place, so that a test can replace them. Unit tests explore schedules with them (`sync/explore.rs`).
//!
//! The locks of the program are those of parking_lot: after a panic of its holder, a lock stays usable, like a mutex of
//! `std` whose poisoning is ignored.

#[cfg(test)]
pub(crate) mod explore;
#[cfg(test)]
mod explored;

use tokio::task::{JoinHandle, JoinSet, spawn, spawn_blocking};

#[cfg(not(test))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
#[cfg(not(test))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64};

#[cfg(test)]
pub(crate) use explored::{
    AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

/// Where work runs that blocks or takes long.
#[derive(Clone, Copy)]
pub enum Workers {
    /// In threads of the runtime.
    Threads,
    /// In the runtime itself, so that its order does not depend on threads. For tests.
    Inline,
}

impl Workers {
    /// For use within a runtime.
    pub(crate) fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        match self {
            Self::Threads => spawn_blocking(work),
            Self::Inline => spawn(async { work() }),
        }
    }

    pub(crate) fn run_in<T: Send + 'static>(self, tasks: &mut JoinSet<T>, work: impl FnOnce() -> T + Send + 'static) {
        match self {
            Self::Threads => tasks.spawn_blocking(work),
            Self::Inline => tasks.spawn(async { work() }),
        };
    }
}
