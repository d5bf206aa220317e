//! Which answers are wrong, how certain that is, and when it is unknown.

use super::*;

#[test]
fn answers_between_equal_looks_were_right() {
    let mut bench = Bench::new(1);
    let end = bench.looks(CALM);
    let answers = bench.answers(end);
    assert_eq!(answers.answers, f64::from(21 * MINUTE));
    let StaleAnswers { ratio, lower, upper } = answers.stale.unwrap();
    assert!(lower == 0.0 && ratio < 0.005 && upper < 0.05, "{ratio} {upper}");
}

#[test]
fn a_change_makes_about_half_of_the_answers_between_the_looks_wrong() {
    let mut bench = Bench::new(1);
    let end = bench.looks(&format!("{CALM} A2 B2"));
    let [wrong, lower, upper] = bench.wrong(end);
    assert!(wrong > 20.0 && wrong < 42.0, "{wrong}");
    assert!(lower < 5.0 && upper > 55.0, "{lower} {upper}");
}

#[test]
fn looks_at_other_lists_narrow_down_the_time_of_a_change() {
    let mut bench = Bench::new(3);
    // All lists change together each ten minutes. The other lists are looked at around the change.
    let mut version = 1;
    for minute in 0..55 {
        let second = minute * MINUTE;
        let look = |version: u32, caller: &str| format!("{caller}{version}");
        bench.look(0, &look(version, "A"), second);
        bench.answer(0, second..second + MINUTE);
        bench.look(1, &look(version, "B"), second + 38);
        version += u32::from(minute % 10 == 5);
        bench.look(2, &look(version, "C"), second + 42);
    }
    // Without the other lists, five changes would make 150 answers wrong, give or take 75.
    let [wrong, lower, upper] = bench.wrong(55 * MINUTE);
    assert!((wrong - 100.0).abs() < 10.0, "{wrong}");
    assert!(upper - lower < 40.0, "{lower} {upper}");
}

#[test]
fn answers_after_the_last_look_may_be_wrong_if_the_list_changes_often() {
    let mut bench = Bench::new(1);
    let mut looks = String::from("A0 B0");
    (1..25).for_each(|version| looks += &format!(" A{version} B{version}"));
    let end = bench.looks(&looks);
    let before = bench.wrong(end);
    // A caller asks for ten minutes, and there is no look.
    bench.answer(0, end..end + 10 * MINUTE);
    let after = bench.wrong(end + 10 * MINUTE);
    assert!(after[0] - before[0] > 300.0, "{before:?} {after:?}");
    assert!(after[2] - after[1] > before[2] - before[1], "{before:?} {after:?}");
}

#[test]
fn only_the_last_hour_counts() {
    let mut bench = Bench::new(1);
    bench.looks(&format!("{CALM} A2 B2 A2"));
    for minute in 30..100 {
        bench.look(0, "A2", minute * MINUTE);
        bench.answer(0, minute * MINUTE..minute * MINUTE + 30);
    }
    let answers = bench.answers(100 * MINUTE);
    assert!((answers.answers - 1800.0).abs() <= 30.0, "{answers:?}");
    assert!(answers.stale.unwrap().ratio < 0.001);
}

#[test]
fn little_evidence_is_unknown() {
    let mut bench = Bench::new(1);
    assert_eq!(bench.answers(0), Answers::default());
    let end = bench.looks("A1 B1 A1");
    assert_eq!(bench.answers(end).stale, None, "three looks");
    let mut bench = Bench::new(1);
    let end = bench.looks(CALM);
    assert!(bench.answers(end).stale.is_some());
    assert_eq!(bench.answers(end + 2 * HOUR).stale, None, "no answers in the last hour");
}

#[test]
fn looks_of_long_ago_are_no_evidence() {
    let mut bench = Bench::new(1);
    bench.ttl = Duration::from_secs(8 * 3600);
    let end = bench.looks(CALM);
    // A night without looks, but with answers.
    bench.answer(0, end..end + 4 * HOUR);
    let quiet = bench.answers(end + 4 * HOUR);
    assert_eq!((quiet.answers, quiet.stale), (0.0, None));
    assert_eq!(quiet.changes_per_hour, None);
    // Some looks in the morning are too few.
    bench.look(0, "A1", end + 4 * HOUR);
    bench.look(0, "B1", end + 4 * HOUR + MINUTE);
    bench.answer(0, end + 4 * HOUR + MINUTE..end + 4 * HOUR + 2 * MINUTE);
    assert_eq!(bench.answers(end + 4 * HOUR + 2 * MINUTE).stale, None);
}

#[test]
fn too_few_steps_make_the_ratio_unknown() {
    let mut bench = Bench::new(1);
    let end = f64::from(bench.looks(&format!("{CALM} A2 B2")));
    let state = bench.staleness.looks.lock();
    let (scope, looks) = state.scopes.iter().next().unwrap();
    let collect = || measure::collect(scope, looks, end);
    for (steps, is_known) in [(0, false), (100, false), (1_000_000, true)] {
        let mut estimator = Estimator::with_steps(1, end, steps);
        estimator.add(collect());
        let Measurement { all, projects, scopes } = estimator.finish();
        let known = [all.stale.is_some(), projects[0].answers.stale.is_some(), scopes[0].hour.is_some()];
        assert_eq!(known, [is_known; 3], "{steps}");
    }
}

#[test]
fn an_estimate_is_due_each_minute_if_it_is_used_and_shown_only_when_finished() {
    let bench = Bench::new(1);
    let used = Arc::clone(bench.keys[0].key.operation());
    let fixed = Operation { name: Arc::from("Fixed"), adaptive_ttl: None, ..(*used).clone() };
    let due =
        |operation, estimate_use, second| bench.staleness.begin_refresh(operation, estimate_use, bench.at(second));
    assert!(due(&fixed, EstimateUse::Fetch, 0) && due(&used, EstimateUse::Fetch, 0));
    assert!(!due(&fixed, EstimateUse::Display, 59) && !due(&used, EstimateUse::Display, 59), "one has begun");
    assert!(!due(&fixed, EstimateUse::Fetch, 61) && due(&used, EstimateUse::Fetch, 61));
    assert!(due(&fixed, EstimateUse::Display, 62));
    assert!(!due(&fixed, EstimateUse::Fetch, 661) && due(&fixed, EstimateUse::Fetch, 662));

    let mut bench = Bench::new(1);
    let end = bench.looks(CALM);
    let operation = Arc::clone(bench.keys[0].key.operation());
    assert_eq!(bench.staleness.of_operation(&operation, bench.at(end)).all, Answers::default());
    assert!(bench.answers(end).stale.is_some());
    assert_eq!(bench.staleness.of_operation(&operation, bench.at(end + HOUR)).all.stale, None, "an hour old");
}
