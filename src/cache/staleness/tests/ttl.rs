//! The ttl that is chosen for each scope.

use super::super::measure::ScopeMeasurement;
use super::super::ttl_control::HourOfAnswers;
use super::*;

#[test]
fn the_ttl_is_the_configured_one_while_the_ratio_is_unknown() {
    let mut bench = Bench::new(1);
    bench.looks("A1 B1 A1");
    bench.refresh(200);
    let configured = bench.keys[0].key.operation().ttl.as_secs_f64();
    assert_eq!(bench.ttl(0, 200), configured);
    let ttl_of = |configured, adaptive_ttl| {
        let mut operation = (**bench.keys[0].key.operation()).clone();
        (operation.ttl, operation.adaptive_ttl) = (Duration::from_secs(configured), adaptive_ttl);
        bench.staleness.of_operation(&operation, bench.at(200)).ttl.as_secs()
    };
    assert_eq!(ttl_of(2, adaptive()), 30, "within min and max");
    assert_eq!(ttl_of(2, None), 2);
}

#[test]
fn the_ttl_changes_by_at_most_a_factor_of_two_an_hour() {
    for (period, limit) in [(2, 30.0), (u32::MAX, 3600.0)] {
        let mut bench = Bench::new(1);
        let mut ttl = bench.ttl(0, 0);
        for minute in 0..60 * HOUR / 60 {
            bench.look(0, &format!("{}{}", ["A", "B"][minute as usize % 2], minute / period), minute * MINUTE);
            bench.answer(0, minute * MINUTE..minute * MINUTE + MINUTE);
            if minute % 30 == 29 {
                let now = (minute + 1) * MINUTE;
                bench.refresh(now);
                let next = bench.ttl(0, now);
                let factor = next / ttl;
                assert!(factor < 1.42 && factor > 0.70, "{ttl} {next}");
                ttl = next;
            }
        }
        assert_eq!(ttl, limit, "a change each {period} minutes");
    }
}

/// Two projects for ten hours: the lists of the first never change, and those of the second change each six minutes.
/// `requests` are those of each minute.
fn two_projects(requests: [u32; 2]) -> (Bench, u32) {
    let mut bench = Bench::new(0);
    let lists = ["calm", "busy"].map(|project| bench.add_list(project, "1"));
    for minute in 0..10 * 60 {
        let second = minute * MINUTE;
        let caller = ["A", "B"][minute as usize % 2];
        bench.look(lists[0], &format!("{caller}1"), second);
        bench.look(lists[1], &format!("{caller}{}", minute / 6), second);
        for (list, requests) in lists.into_iter().zip(requests) {
            bench.answer(list, second..second + requests);
        }
        if minute % 10 == 9 {
            bench.refresh(second + MINUTE);
            bench.ttl(0, second + MINUTE);
            bench.ttl(1, second + MINUTE);
        }
    }
    (bench, 10 * HOUR)
}

#[test]
fn the_traffic_of_a_project_does_not_move_the_ttl_of_another() {
    let [(one, end), (other, _)] = [[50, 2], [2, 50]].map(two_projects);
    for (bench, more) in [(&one, 0), (&other, 1)] {
        let ttls = [0, 1].map(|list| bench.ttl(list, end));
        assert!(ttls[0] > 1000.0, "{ttls:?}");
        assert!(ttls[1] < 100.0, "{ttls:?}");
        let known = bench.staleness.of_operation(bench.keys[0].key.operation(), bench.at(end));
        let shown: Vec<_> = known.projects.iter().map(|project| project.ttl.as_secs_f64().round()).collect();
        assert_eq!(shown, [ttls[more].round(), ttls[1 - more].round()], "those with most answers come first");
        // The mean over the answers.
        let mean = (50.0 * ttls[more] + 2.0 * ttls[1 - more]) / 52.0;
        let shown = known.ttl.as_secs_f64();
        assert!((shown - mean).abs() < 0.02 * mean, "{shown} {mean}");
    }
}

#[test]
fn the_rate_of_changes_of_an_operation_is_the_mean_of_its_projects() {
    let (bench, end) = two_projects([20, 20]);
    let known = bench.staleness.of_operation(bench.keys[0].key.operation(), bench.at(end));
    let rates: Vec<_> = known.projects.iter().filter_map(|project| project.answers.changes_per_hour).collect();
    let all = known.all.changes_per_hour.unwrap();
    assert!((all - (rates[0] + rates[1]) / 2.0).abs() < 0.05 * all, "{all} {rates:?}");
    assert!((all - 5.0).abs() < 1.0, "{all}");
}

#[test]
fn the_least_active_scope_makes_room_for_the_ttl_of_another() {
    let hour = || Some(HourOfAnswers { ratio: 0.9, mean_age: 60.0, mean_ttl: 300.0, evidence: 1.0 });
    let measured = |project: usize, answers| {
        let scope = cache_key(&adaptive(), &format!("p{project}"), "1").key.scope().clone();
        ScopeMeasurement { scope, answers, hour: hour() }
    };
    let mut ttls = ScopeTtls::default();
    let all: Vec<_> = (0..MAX_SCOPES).map(|project| measured(project, 1000.0 - project as f64)).collect();
    let operation = Arc::clone(all[0].scope.operation());
    for hour in 0..5 {
        ttls.add(&operation, f64::from(hour * HOUR), &all);
        for it in &all {
            ttls.ttl(&it.scope, &operation, f64::from(hour * HOUR));
        }
    }
    let end = f64::from(5 * HOUR);
    let last = &all[MAX_SCOPES - 1].scope;
    assert!(ttls.ttl(last, &operation, end) < 100.0);
    ttls.add(&operation, end, &[measured(MAX_SCOPES, 20.0)]);
    assert!(ttls.ttl(last, &operation, end) < 100.0, "the others were more active lately");
    ttls.add(&operation, end, &[measured(MAX_SCOPES, 2000.0)]);
    assert_eq!(ttls.ttl(last, &operation, end), 300.0);
    assert!(ttls.ttl(&all[MAX_SCOPES - 2].scope, &operation, end) < 100.0);
}
