//! The locks and atomics of tests. Within an exploration of schedules, another thread may continue before and after
//! each lock, and before each access to an atomic. Elsewhere they are those of the program.

use std::fmt::Debug;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::sync::atomic::{self, Ordering};
use std::time::Duration;

use shuttle::sync as turns;

use super::explore::{is_explored, may_switch};

/// A lock, and shuttle's lock that decides whose turn it is.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T> {
    turn: turns::Mutex<()>,
    value: parking_lot::Mutex<T>,
}

#[derive(Debug, Default)]
pub(crate) struct RwLock<T> {
    turn: turns::RwLock<()>,
    value: parking_lot::RwLock<T>,
}

/// The turn of a thread, while it holds a lock. The fields are dropped in this order. `None` outside of explorations.
struct Turn<G>(Option<G>, SwitchOnDrop);

struct SwitchOnDrop;

impl Drop for SwitchOnDrop {
    fn drop(&mut self) {
        may_switch();
    }
}

impl<G> Turn<G> {
    fn wait(lock: impl FnOnce() -> Result<G, PoisonError<G>>) -> Self {
        Self(is_explored().then(|| lock().unwrap_or_else(PoisonError::into_inner)), SwitchOnDrop)
    }
}

/// Guards whose fields are dropped in this order: the lock is free before it is the turn of the next thread.
macro_rules! guards {
    ($($name:ident of $turn:ident),*) => {$(
        pub(crate) struct $name<'l, T> {
            value: parking_lot::$name<'l, T>,
            _turn: Turn<turns::$turn<'l, ()>>,
        }

        impl<T> Deref for $name<'_, T> {
            type Target = T;

            fn deref(&self) -> &T {
                &self.value
            }
        }
    )*};
}

guards!(MutexGuard of MutexGuard, RwLockReadGuard of RwLockReadGuard, RwLockWriteGuard of RwLockWriteGuard);

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { turn: turns::Mutex::default(), value: parking_lot::Mutex::new(value) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let turn = Turn::wait(|| self.turn.lock());
        MutexGuard { value: self.value.lock(), _turn: turn }
    }

    /// Not for explorations.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        assert!(!is_explored(), "it would take the lock without its turn");
        Some(MutexGuard { value: self.value.try_lock()?, _turn: Turn(None, SwitchOnDrop) })
    }
}

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { turn: turns::RwLock::default(), value: parking_lot::RwLock::new(value) }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        let turn = Turn::wait(|| self.turn.read());
        RwLockReadGuard { value: self.value.read(), _turn: turn }
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        let turn = Turn::wait(|| self.turn.write());
        RwLockWriteGuard { value: self.value.write(), _turn: turn }
    }
}

/// Not for explorations, all of whose threads it would stop.
#[derive(Debug, Default)]
pub(crate) struct Condvar(parking_lot::Condvar);

impl Condvar {
    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        assert!(!is_explored());
        self.0.wait(&mut guard.value);
    }

    pub(crate) fn wait_while_for<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        condition: impl FnMut(&mut T) -> bool,
        limit: Duration,
    ) {
        assert!(!is_explored());
        self.0.wait_while_for(&mut guard.value, condition, limit);
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

#[derive(Debug, Default)]
pub(crate) struct AtomicBool(atomic::AtomicBool);

impl AtomicBool {
    pub(crate) fn new(value: bool) -> Self {
        Self(atomic::AtomicBool::new(value))
    }

    pub(crate) fn load(&self, order: Ordering) -> bool {
        may_switch();
        self.0.load(order)
    }

    pub(crate) fn store(&self, value: bool, order: Ordering) {
        may_switch();
        self.0.store(value, order);
    }
}

#[derive(Debug, Default)]
pub(crate) struct AtomicU64(atomic::AtomicU64);

impl AtomicU64 {
    pub(crate) fn load(&self, order: Ordering) -> u64 {
        may_switch();
        self.0.load(order)
    }

    pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        may_switch();
        self.0.fetch_add(value, order)
    }
}
