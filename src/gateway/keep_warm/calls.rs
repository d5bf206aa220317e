//! The calls of keep warm in progress. A call that panics ends like one without an answer, so that what is known about
//! the keys is kept. Nothing is decided here.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};

use super::schedule::CallResult;

/// Calls with keys `K` for requests `Q`. If it is dropped, they are aborted.
pub(super) struct Calls<K, Q> {
    tasks: JoinSet<CallResult>,
    by_task: HashMap<Id, (K, Q)>,
}

impl<K, Q> Calls<K, Q> {
    pub(super) fn new() -> Self {
        Self { tasks: JoinSet::new(), by_task: HashMap::new() }
    }

    pub(super) fn start(&mut self, key: K, request: Q, call: impl Future<Output = CallResult> + Send + 'static) {
        let task = self.tasks.spawn(call);
        self.by_task.insert(task.id(), (key, request));
    }

    /// Waits for the end of a call. `None` if there is none. If this future is dropped, no call is lost.
    pub(super) async fn next(&mut self) -> Option<(K, Q, CallResult)> {
        let (task, result) = match self.tasks.join_next_with_id().await? {
            Ok((task, result)) => (task, result),
            Err(panicked) => (panicked.id(), CallResult::Failed { retry_after: None }),
        };
        let (key, request) = self.by_task.remove(&task)?;
        Some((key, request, result))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_panics_ends_without_an_answer() {
        let mut calls = Calls::new();
        calls.start("key", 1, async { panic!("as intended by the test") });
        assert_eq!(calls.next().await, Some(("key", 1, CallResult::Failed { retry_after: None })));
        calls.start("key", 2, async { CallResult::Answered });
        assert_eq!(calls.next().await, Some(("key", 2, CallResult::Answered)));
        assert_eq!(calls.next().await, None);
    }
}
