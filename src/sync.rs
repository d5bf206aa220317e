//! The locks of this crate. They are in one place, so that a test can replace them by locks that explore schedules.
//! They are those of parking_lot: after a panic of its holder, a lock stays usable, like a mutex of `std` whose
//! poisoning is ignored.

pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
