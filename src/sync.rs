//! The locks of this crate, in one place so that a test can exchange them for locks that explore schedules. They are
//! parking_lot's: a lock whose holder has panicked stays usable, as with a mutex of `std` whose poison is ignored.

pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
