//! Finds a value again without the map that has it. A `Weak` alone would keep the memory of a struct that is gone.

use std::sync::{Arc, Weak};

use crate::sync::Mutex;

/// Leads to a value until it is dropped. The value must call [`Self::end`] then.
#[derive(Debug)]
pub(crate) struct Link<T>(Mutex<Weak<T>>);

impl<T> Link<T> {
    pub(super) fn to(value: &Arc<T>) -> Self {
        Self(Mutex::new(Arc::downgrade(value)))
    }

    pub(crate) fn value(&self) -> Option<Arc<T>> {
        self.0.lock().upgrade()
    }

    #[cfg(test)]
    pub(super) fn weak(&self) -> Weak<T> {
        self.0.lock().clone()
    }

    pub(super) fn end(&self) {
        *self.0.lock() = Weak::new();
    }
}
