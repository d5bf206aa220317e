//! Explores schedules: runs a test of some threads many times, each time in another order of what they do. The threads
//! are shuttle's: one at a time runs. Another one may continue before and after each lock of `sync`, before each access
//! to an atomic of `sync`, and where a future waits.
//!
//! So this finds faults of critical sections, lost wake-ups and deadlocks. It does not find:
//! - effects of memory orders: each access to an atomic is sequentially consistent,
//! - faults that need another thread between two operations on tokio's channels or `Notify` with no lock between them,
//! - what timers do: there is no runtime.

use std::cell::Cell;
use std::env;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use shuttle::scheduler::{
    PctScheduler, RandomScheduler, ReplayScheduler, Scheduler, UncontrolledNondeterminismCheckScheduler,
};
use shuttle::sync::atomic::AtomicBool;
use shuttle::{Config, MaxSteps, Runner, current};

/// How many schedules of each kind a test runs.
const SCHEDULES: usize = 1_000;

/// How many schedules run twice, to see that the same schedule gives the same run.
const REPEATED: usize = 20;

/// PCT changes the thread once less than this, beside the changes where a thread waits.
const DEPTH: usize = 3;

/// A test that takes more steps fails: its threads wait for each other in turn.
const MAX_STEPS: usize = 100_000;

thread_local! {
    static IS_EXPLORED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a test with random schedules, and with those of PCT (Burckhardt et al., ASPLOS 2010), which change the thread
/// rarely. Panics with the schedule in which the test has failed or no thread can continue. That schedule runs alone if
/// it is in `WORKSPACE_GATEWAY_TEST_SCHEDULE`.
pub(crate) fn explore(test: impl Fn() + Send + Sync + 'static) {
    // shuttle's locks are for one thread of the system at a time, and those in statics belong to all tests.
    static ONE_AT_A_TIME: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let _one = ONE_AT_A_TIME.lock();
    IS_EXPLORED.set(true);
    let test = Arc::new(test);
    if let Ok(schedule) = env::var("WORKSPACE_GATEWAY_TEST_SCHEDULE") {
        return run(ReplayScheduler::new_from_encoded(&schedule), &test);
    }
    run(RandomScheduler::new(SCHEDULES), &test);
    run(PctScheduler::new(DEPTH, SCHEDULES), &test);
    run(UncontrolledNondeterminismCheckScheduler::new(RandomScheduler::new(REPEATED)), &test);
}

fn run(scheduler: impl Scheduler + 'static, test: &Arc<impl Fn() + Send + Sync + 'static>) {
    let mut config = Config::new();
    config.stack_size = 256 * 1024;
    config.max_steps = MaxSteps::FailAfter(MAX_STEPS);
    let test = Arc::clone(test);
    Runner::new(scheduler, config).run(move || test());
}

/// Whether the current thread is one of an exploration.
pub(super) fn is_explored() -> bool {
    IS_EXPLORED.get() && current::try_get_current_task().is_some()
}

/// Another thread of the exploration may continue here.
pub(crate) fn may_switch() {
    if is_explored() {
        // An access to any of shuttle's atomics.
        AtomicBool::default().load(Ordering::SeqCst);
    }
}

mod tests {
    use shuttle::thread;

    use super::*;
    use crate::sync::Mutex;

    /// Runs two functions at the same time, each with a pair of locks.
    fn explore_two(one: fn(&[Mutex<u32>; 2]), other: fn(&[Mutex<u32>; 2])) {
        explore(move || {
            let locks = [(); 2].map(|()| Mutex::new(0));
            thread::scope(|threads| {
                threads.spawn(|| one(&locks));
                threads.spawn(|| other(&locks));
            });
            assert!(locks.iter().all(|lock| *lock.lock() % 2 == 0), "an update was lost");
        });
    }

    #[test]
    #[should_panic = "an update was lost"]
    fn an_exploration_finds_an_update_in_two_critical_sections() {
        let add = |[lock, _]: &[Mutex<u32>; 2]| {
            let number = *lock.lock();
            *lock.lock() = number + 1;
        };
        explore_two(add, add);
    }

    #[test]
    #[should_panic = "deadlock"]
    fn an_exploration_finds_locks_in_two_orders() {
        explore_two(|[one, other]| *one.lock() += 2 * *other.lock(), |[one, other]| *other.lock() += 2 * *one.lock());
    }
}
