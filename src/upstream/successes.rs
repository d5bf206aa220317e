//! When each service last answered successfully. This distinguishes the failure of one call from a failure of the
//! service. There is no clock here: the time is an argument.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::catalogue::Service;
use crate::random::HashMap;
use crate::sync::Mutex;

/// How long a service counts as reachable after a response.
const REACHABLE_FOR: Duration = Duration::from_secs(10);

/// The latest success of each service that has been called.
#[derive(Default)]
pub(crate) struct Successes {
    /// When the head of the latest response that is no failure arrived.
    answered: Mutex<HashMap<Service, Instant>>,
    /// When the latest successful request for a product list was sent. This is separate, because each change wakes the
    /// waiters.
    lists: Mutex<HashMap<Service, watch::Sender<Option<Instant>>>>,
}

impl Successes {
    /// Records a response that is no failure.
    pub(crate) fn answered(&self, service: Service, received: Instant) {
        let mut answered = self.answered.lock();
        let latest = answered.entry(service).or_insert(received);
        *latest = received.max(*latest);
    }

    /// Records a successful request for a product list, with the time at which it was sent.
    pub(crate) fn list(&self, service: Service, sent: Instant) {
        self.lists(service, |lists| {
            lists.send_if_modified(|latest| {
                let is_later = *latest < Some(sent);
                *latest = (*latest).max(Some(sent));
                is_later
            })
        });
    }

    /// Whether a service has answered within the last 10 s, so that there is a route to it.
    pub(crate) fn is_reachable(&self, service: Service, now: Instant) -> bool {
        let answered = self.answered.lock();
        answered.get(&service).is_some_and(|answered| now.saturating_duration_since(*answered) < REACHABLE_FOR)
    }

    /// Whether a request for a product list that was sent after this moment has succeeded.
    pub(crate) fn has_listed_since(&self, service: Service, moment: Instant) -> bool {
        self.lists(service, |lists| is_since(*lists.borrow(), moment))
    }

    /// Waits until a request for a product list that was sent after this moment has succeeded.
    pub(crate) async fn listed_since(&self, service: Service, moment: Instant) {
        let mut lists = self.lists(service, watch::Sender::subscribe);
        if lists.wait_for(|latest| is_since(*latest, moment)).await.is_err() {
            std::future::pending().await
        }
    }

    fn lists<R>(&self, service: Service, read: impl FnOnce(&watch::Sender<Option<Instant>>) -> R) -> R {
        let mut lists = self.lists.lock();
        read(lists.entry(service).or_insert_with(|| watch::Sender::new(None)))
    }
}

fn is_since(latest: Option<Instant>, moment: Instant) -> bool {
    latest.is_some_and(|sent| sent > moment)
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};

    use super::*;
    use crate::clock::Clock;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_service_is_reachable_for_ten_seconds_after_a_response() {
        let (successes, start) = (Successes::default(), Clock::System.now());
        assert!(!successes.is_reachable(Service::Workspace, start));
        successes.answered(Service::Workspace, start);
        for (seconds, expected) in [(0, true), (9, true), (10, false)] {
            assert_eq!(successes.is_reachable(Service::Workspace, start + seconds * SECOND), expected, "{seconds}");
        }
        assert!(!successes.is_reachable(Service::AppStream, start));
    }

    #[test]
    fn only_a_list_that_was_sent_later_ends_the_wait() {
        let (successes, start) = (Successes::default(), Clock::System.now());
        let mut wait = pin!(successes.listed_since(Service::Workspace, start));
        let mut is_over = || wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        successes.list(Service::Workspace, start);
        successes.answered(Service::Workspace, start + SECOND);
        successes.list(Service::AppStream, start + SECOND);
        assert!(!is_over() && !successes.has_listed_since(Service::Workspace, start));
        successes.list(Service::Workspace, start + SECOND);
        assert!(is_over() && successes.has_listed_since(Service::Workspace, start));
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn other_responses_wake_no_waiter() {
        let (successes, start) = (Successes::default(), Clock::System.now());
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut wait = pin!(successes.listed_since(Service::Workspace, start));
        assert!(wait.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        successes.answered(Service::Workspace, start + SECOND);
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        successes.list(Service::Workspace, start + SECOND);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    }
}
