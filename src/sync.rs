//! The locks of this crate, and the atomics that order what happens. They are in one place, so that tests can explore
//! schedules (`sync/explore.rs`). The program has the locks of parking_lot: after a panic of its holder, a lock stays
//! usable, like a mutex of `std` whose poisoning is ignored.

#[cfg(test)]
pub(crate) mod explore;
#[cfg(test)]
mod explored;

#[cfg(not(test))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
#[cfg(not(test))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64};

#[cfg(test)]
pub(crate) use explored::{
    AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
