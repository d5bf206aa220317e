//! Events as the status page shows them, and as they are logged.

use std::time::Duration;

use super::lines::MAX_LINES;
use super::*;
use crate::clock::{Clock, ManualClock};

/// Events on a clock that only moves when a test moves it.
struct Bench {
    state: EventHistory,
    clock: ManualClock,
}

impl Bench {
    fn new() -> Self {
        Self { state: EventHistory::default(), clock: ManualClock::default() }
    }

    fn seconds_pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// Words, count and duration in seconds of each line.
    fn lines(lines: Vec<EventLine>) -> Vec<(String, u64, Option<u64>)> {
        let fields = |line: EventLine| (line.what.into_owned(), line.count, line.duration.map(|time| time.as_secs()));
        lines.into_iter().map(fields).collect()
    }

    fn note(&mut self, new_event: NewEvent<'_>) -> Vec<(String, u64, Option<u64>)> {
        let clock = Clock::Manual(self.clock.clone());
        Self::lines(self.state.note(new_event, clock.date(), clock.now()))
    }

    fn denied(&mut self, what: &str) -> Vec<(String, u64, Option<u64>)> {
        self.note(NewEvent::new(Event::Denial, what.to_owned()))
    }

    fn due(&mut self) -> Vec<(String, u64, Option<u64>)> {
        Self::lines(self.state.due(Clock::Manual(self.clock.clone()).now()))
    }

    fn rest(&mut self) -> Vec<(String, u64, Option<u64>)> {
        Self::lines(self.state.rest(Clock::Manual(self.clock.clone()).now()))
    }

    fn fails(&mut self) -> Vec<(String, u64, Option<u64>)> {
        self.note(NewEvent::new(Event::Outage, "fails").at(Service::Workspace))
    }

    fn recovers(&mut self, seconds: u64, failures: u64) -> Vec<(String, u64, Option<u64>)> {
        let ended = NewEvent::new(Event::Recovery, "answers").at(Service::Workspace);
        self.note(ended.after(Duration::from_secs(seconds), failures))
    }
}

fn line(what: &str, count: u64, seconds: impl Into<Option<u64>>) -> (String, u64, Option<u64>) {
    (what.to_owned(), count, seconds.into())
}

#[test]
fn a_repetition_is_counted_and_comes_first() {
    let (events, at) = (Events::default(), |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second));
    for (second, event) in [(1, Event::Denial), (2, Event::Purge), (3, Event::Denial)] {
        events.note(NewEvent::new(event, "it"), at(second), Clock::System.now());
    }
    let recent: Vec<_> = events.recent().iter().map(|row| (row.event, row.count, row.first, row.last)).collect();
    assert_eq!(recent, [(Event::Denial, 2, at(1), at(3)), (Event::Purge, 1, at(2), at(2))]);
}

#[test]
fn events_of_one_kind_do_not_push_out_another_kind() {
    let (events, date, now) = (Events::default(), SystemTime::UNIX_EPOCH, Clock::System.now());
    events.note(NewEvent::new(Event::Reload, "at first"), date, now);
    for number in 0..1_000 {
        events.note(NewEvent::new(Event::Denial, format!("of {number}")), date, now);
    }
    let recent = events.recent();
    assert_eq!((recent.len(), recent[0].what.as_ref()), (MAX_OF_A_KIND + 1, "of 999"));
    assert_eq!(recent.last().unwrap().event, Event::Reload);
}

#[test]
fn the_first_event_is_logged_at_once_and_repetitions_once_a_minute_with_their_number() {
    let mut bench = Bench::new();
    assert_eq!(bench.denied("a"), [line("a", 1, None)]);
    bench.seconds_pass(59);
    assert_eq!((bench.denied("a"), bench.denied("b")), (vec![], vec![line("b", 1, None)]));
    bench.seconds_pass(1);
    assert_eq!(bench.denied("a"), [line("a", 2, 60)]);
    assert_eq!(bench.denied("a"), []);
    bench.seconds_pass(60);
    assert_eq!(bench.due(), [line("a", 1, 60)]);
    assert_eq!(bench.due(), []);
    // Actions of an operator are logged each time.
    for _ in 0..3 {
        assert_eq!(bench.note(NewEvent::new(Event::Mode, "bypass")), [line("bypass", 1, None)]);
    }
}

#[test]
fn a_near_miss_is_logged_once_and_at_the_end() {
    let mut bench = Bench::new();
    let near = || NewEvent::new(Event::NearMiss, "near");
    assert_eq!(bench.note(near()), [line("near", 1, None)]);
    bench.seconds_pass(3_600);
    assert_eq!((bench.note(near()), bench.due()), (vec![], vec![]));
    assert_eq!(bench.rest(), [line("near", 1, 3_600)]);
}

#[test]
fn lines_of_one_kind_are_limited_and_suppressed_events_are_counted() {
    let mut bench = Bench::new();
    let lines: usize = (0..1_000).map(|number| bench.denied(&number.to_string()).len()).sum();
    assert_eq!(lines, MAX_LINES as usize);
    assert_eq!(bench.fails(), [line("fails", 1, None)], "another kind");
    assert_eq!(bench.due(), []);
    bench.seconds_pass(60);
    let summary = line("more events of this kind were not logged", 1_000 - u64::from(MAX_LINES), None);
    assert_eq!(bench.denied("new"), [summary, line("new", 1, None)]);
    assert_eq!(bench.due(), []);
}

#[test]
fn if_an_outage_is_logged_its_end_is_logged() {
    let mut bench = Bench::new();
    assert_eq!(bench.fails(), [line("fails", 1, None)]);
    assert_eq!(bench.fails(), []);
    bench.seconds_pass(5);
    assert_eq!(bench.recovers(5, 2), [line("answers", 2, 5)]);
    // An outage that ends before it is logged is only logged by its end.
    assert_eq!((bench.fails(), bench.recovers(0, 1)), (vec![], vec![]));
    bench.seconds_pass(60);
    assert_eq!(bench.due(), [line("answers", 1, 0)]);
    // A longer outage is logged, and so is its end, although the previous end was logged in the same minute.
    assert_eq!(bench.fails(), [line("fails", 1, 65)]);
    assert_eq!(bench.recovers(1, 1), [line("answers", 1, 1)]);
}

#[test]
fn if_it_is_logged_that_an_engine_is_lost_it_is_logged_that_it_is_in_use_again() {
    let mut bench = Bench::new();
    let lost = |cause: &'static str| NewEvent::new(Event::FleetLost, cause);
    let in_use = || NewEvent::new(Event::Fleet, "in use");
    assert_eq!(bench.note(lost("silent")), [line("silent", 1, None)]);
    assert_eq!(bench.note(in_use()), [line("in use", 1, None)]);
    // What is held back is only logged by its end.
    assert_eq!((bench.note(lost("silent")), bench.note(in_use())), (vec![], vec![]));
    bench.seconds_pass(5);
    // Another cause has its own line, and so has its end.
    assert_eq!(bench.note(lost("denied")), [line("denied", 1, None)]);
    assert_eq!(bench.note(in_use()), [line("in use", 1, None)]);
    bench.seconds_pass(60);
    assert_eq!(bench.due(), []);
}

#[test]
fn counted_events_are_logged_when_the_process_ends() {
    let mut bench = Bench::new();
    assert_eq!(bench.denied("a"), [line("a", 1, None)]);
    assert_eq!(bench.rest(), []);
    for _ in 0..3 {
        bench.seconds_pass(1);
        assert_eq!(bench.denied("a"), []);
    }
    for number in 1..=MAX_LINES + 2 {
        bench.denied(&format!("b{number}"));
    }
    assert_eq!(bench.rest(), [line("a", 3, 3), line("more events of this kind were not logged", 3, None)]);
    assert_eq!(bench.rest(), []);
    // The line of the end already has the number of failures.
    bench.fails();
    bench.fails();
    bench.recovers(5, 2);
    assert_eq!(bench.rest(), []);
}
