//! When each service last answered well. This tells a failure of one call from a failure of the service.
//! Pure but for waiting: the time is an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::catalogue::Service;
use crate::sync::Mutex;

/// How long a service that has answered counts as reachable.
const REACHABLE_FOR: Duration = Duration::from_secs(10);

/// The latest successes of all services that have been asked.
#[derive(Default)]
pub(crate) struct Successes {
    /// When the head of the latest answer that is no failure had come.
    answered: Mutex<HashMap<Service, Instant>>,
    /// When the request of the latest product list that was answered well had been sent. Apart, because waiters are woken
    /// whenever it changes.
    lists: Mutex<HashMap<Service, watch::Sender<Option<Instant>>>>,
}

impl Successes {
    /// Notes that a service has answered, and not with a failure.
    pub(crate) fn answered(&self, service: Service, received: Instant) {
        let mut answered = self.answered.lock();
        let latest = answered.entry(service).or_insert(received);
        *latest = received.max(*latest);
    }

    /// Notes that a service has answered a product list well whose request was sent then.
    pub(crate) fn list(&self, service: Service, sent: Instant) {
        self.lists(service, |lists| {
            lists.send_if_modified(|latest| {
                let is_later = *latest < Some(sent);
                *latest = (*latest).max(Some(sent));
                is_later
            })
        });
    }

    /// Whether a service has answered within the last ten seconds, so that there is a way to it.
    pub(crate) fn is_reachable(&self, service: Service, now: Instant) -> bool {
        let answered = self.answered.lock();
        answered.get(&service).is_some_and(|answered| now.saturating_duration_since(*answered) < REACHABLE_FOR)
    }

    /// Whether a service has answered a product list well that was sent after this moment.
    pub(crate) fn has_listed_since(&self, service: Service, moment: Instant) -> bool {
        self.lists(service, |lists| is_since(*lists.borrow(), moment))
    }

    /// Waits until a service has answered a product list well that was sent after this moment.
    pub(crate) async fn listed_since(&self, service: Service, moment: Instant) {
        let mut lists = self.lists(service, watch::Sender::subscribe);
        if lists.wait_for(|latest| is_since(*latest, moment)).await.is_err() {
            std::future::pending().await
        }
    }

    fn lists<R>(&self, service: Service, use_it: impl FnOnce(&watch::Sender<Option<Instant>>) -> R) -> R {
        let mut lists = self.lists.lock();
        use_it(lists.entry(service).or_insert_with(|| watch::Sender::new(None)))
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
    fn a_service_is_reachable_for_ten_seconds_after_an_answer() {
        let (successes, begun) = (Successes::default(), Clock::System.now());
        assert!(!successes.is_reachable(Service::Workspace, begun));
        successes.answered(Service::Workspace, begun);
        for (seconds, expected) in [(0, true), (9, true), (10, false)] {
            assert_eq!(successes.is_reachable(Service::Workspace, begun + seconds * SECOND), expected, "{seconds}");
        }
        assert!(!successes.is_reachable(Service::AppStream, begun));
    }

    #[test]
    fn only_a_list_that_was_sent_later_ends_the_wait() {
        let (successes, begun) = (Successes::default(), Clock::System.now());
        let mut wait = pin!(successes.listed_since(Service::Workspace, begun));
        let mut is_over = || wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        successes.list(Service::Workspace, begun);
        successes.answered(Service::Workspace, begun + SECOND);
        successes.list(Service::AppStream, begun + SECOND);
        assert!(!is_over() && !successes.has_listed_since(Service::Workspace, begun));
        successes.list(Service::Workspace, begun + SECOND);
        assert!(is_over() && successes.has_listed_since(Service::Workspace, begun));
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn other_answers_wake_no_waiter() {
        let (successes, begun) = (Successes::default(), Clock::System.now());
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut wait = pin!(successes.listed_since(Service::Workspace, begun));
        assert!(wait.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        successes.answered(Service::Workspace, begun + SECOND);
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        successes.list(Service::Workspace, begun + SECOND);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    }
}
